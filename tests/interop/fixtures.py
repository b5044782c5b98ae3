"""Compares rewritten fixtures with their originals in ONNX Runtime.   fixtures.py JOBS.json

JOBS.json: a list of {original, result, data, passes, sqnr, points}: the least SQNR in dB of every output, and the most
percentage points of accuracy on `labels` that may be lost. A job whose passes hold int8 must come out fully quantized.
"""
import collections, json, sys, tempfile
import numpy as np
import onnx
import onnxruntime as ort


def session(path, save_to=None):
    o = ort.SessionOptions()
    o.intra_op_num_threads = o.inter_op_num_threads = 1
    o.log_severity_level = 4
    if save_to:
        o.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        o.optimized_model_filepath = save_to
    return ort.InferenceSession(path, o, providers=["CPUExecutionProvider"])


def operators(path):
    return collections.Counter(n.op_type for n in onnx.load(path).graph.node)


def quantized(original, result):
    """What is wrong with the graph that ONNX Runtime makes of an int8 model."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as f:
        session(result, f.name)
        have, was = operators(f.name), operators(original)
    wrong = []
    for op, becomes in (("Conv", "QLinearConv"), ("Add", "QLinearAdd")):
        if have[becomes] != was[op]:
            wrong.append(f"{was[op]} {op} became {have[becomes]} {becomes}")
    stray = have["QuantizeLinear"] + have["DequantizeLinear"]
    if "Conv" in was and stray > 2:
        wrong.append(f"{stray} stray QuantizeLinear and DequantizeLinear: {dict(have)}")
    return wrong


def check(job):
    wrong, data = [], dict(np.load(job["data"]))
    labels = data.pop("labels")
    onnx.checker.check_model(job["result"], full_check=True)
    a, b = (session(job[k]) for k in ("original", "result"))
    names = [o.name for o in a.get_outputs()]
    if names != [o.name for o in b.get_outputs()]:
        wrong.append("the outputs have other names")
    feeds = {i.name: data[i.name] for i in a.get_inputs()}
    x, y = a.run(None, feeds)[0].astype(np.float64), b.run(None, feeds)[0].astype(np.float64)
    noise = ((x - y) ** 2).sum()
    sqnr = 10 * np.log10((x ** 2).sum() / noise) if noise > 0 else np.inf
    score = [100 * (v.argmax(1) == labels).mean() for v in (x, y)]
    one = b.run(None, {k: v[:1] for k, v in feeds.items()})[0]
    if one.shape != (1, *y.shape[1:]):
        wrong.append(f"a batch of 1 gives {one.shape}")
    if not sqnr >= job["sqnr"]:
        wrong.append(f"{sqnr:.1f} dB, at least {job['sqnr']} wanted")
    if score[0] - score[1] > job["points"]:
        wrong.append(f"accuracy {score[0]:.2f} → {score[1]:.2f} %")
    if "int8" in job["passes"]:
        was = operators(job["original"])
        if job["passes"] == "int8" and was["Conv"]:
            wrong += quantized(job["original"], job["result"])
    return sqnr, score, wrong


def main():
    failed = 0
    for job in json.load(open(sys.argv[1])):
        try:
            sqnr, score, wrong = check(job)
            row = f"{sqnr:7.1f} dB   accuracy {score[0]:.2f} → {score[1]:.2f} %"
        except Exception as e:
            row, wrong = "", [f"{type(e).__name__}: {e}"]
        failed += bool(wrong)
        print(f"{job['name']:<16} {job['passes']:<22} {job['bytes'][0]:>8} → {job['bytes'][1]:>8} bytes {row}   {'; '.join(wrong) or 'ok'}")
    sys.exit(failed > 0)


main()
