"""Recurrences that an exporter has written as a Loop: tract runs them, and what comes out of it runs in ONNX Runtime.   loops.py ONNXZIP FOLDER

Convolutions, whose maps a Loop reads column by column, forwards or with ReverseSequence backwards. Its weights are handed from iteration to
iteration and never change, as tf2onnx writes it; it ends by a condition.
"""
import pathlib, subprocess, sys
import numpy as np
import onnx, onnxruntime as ort
from onnx import TensorProto as T, helper as h, numpy_helper as nh

TOOL, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
OUT.mkdir(parents=True, exist_ok=True)
RNG = np.random.default_rng(3)
STEPS, WIDTH = 20, 16 * 8


def weight(name, *dims):
    return nh.from_array((RNG.normal(size=dims) / np.sqrt(np.prod(dims[1:]))).astype(np.float32), name)


def build(opset, backwards):
    port = lambda name, dtype, dims: h.make_tensor_value_info(name, dtype, dims)
    body = h.make_graph(
        [
            h.make_node("Gather", ["columns", "t"], ["column"], axis=0),
            h.make_node("MatMul", ["column", "w_in"], ["a"]),
            h.make_node("MatMul", ["state", "r_in"], ["b"]),
            h.make_node("Add", ["a", "b"], ["sum"]),
            h.make_node("Tanh", ["sum"], ["next"]),
            h.make_node("Add", ["t", "one"], ["t_next"]),
            h.make_node("Less", ["t_next", "steps"], ["on"]),
            h.make_node("Identity", ["w_in"], ["w_out"]),
            h.make_node("Identity", ["r_in"], ["r_out"]),
            h.make_node("Identity", ["next"], ["row"]),
        ],
        "body",
        [port("i", T.INT64, []), port("on_in", T.BOOL, []), port("t", T.INT64, []), port("state", T.FLOAT, None),
         port("w_in", T.FLOAT, None), port("r_in", T.FLOAT, None)],
        [port("on", T.BOOL, []), port("t_next", T.INT64, []), port("next", T.FLOAT, None), port("w_out", T.FLOAT, None),
         port("r_out", T.FLOAT, None), port("row", T.FLOAT, None)],
    )
    read, given = ("reversed", "rows") if backwards else ("sequence", "y")
    body.node[0].input[0] = read
    nodes = [
        h.make_node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4),
        h.make_node("Relu", ["c1"], ["r1"]),
        h.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        h.make_node("Relu", ["c2"], ["r2"]),
        h.make_node("Reshape", ["r2", "shape"], ["flat"]),
        h.make_node("Transpose", ["flat"], ["sequence"], perm=[2, 0, 1]),
        h.make_node("Loop", ["", "yes", "zero", "nothing", "w", "r"], ["l0", "last", "l2", "l3", given], body=body),
    ]
    if backwards:
        nodes.insert(-1, h.make_node("ReverseSequence", ["sequence", "lengths"], ["reversed"]))
        nodes.append(h.make_node("ReverseSequence", ["rows", "lengths"], ["y"]))
    constants = [
        weight("w1", 16, 4, 3, 3), weight("w2", 16, 16, 3, 3), weight("w", WIDTH, 64), weight("r", 64, 64),
        nh.from_array(np.array([1, WIDTH, STEPS]), "shape"), nh.from_array(np.array(True), "yes"),
        nh.from_array(np.array(0), "zero"), nh.from_array(np.array(1), "one"), nh.from_array(np.array(STEPS), "steps"),
        nh.from_array(np.zeros((1, 64), np.float32), "nothing"), nh.from_array(np.array([STEPS]), "lengths"),
    ]
    graph = h.make_graph(nodes, "g", [port("x", T.FLOAT, [1, 4, 8, STEPS])], [port("y", T.FLOAT, [STEPS, 1, 64])], constants)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8)


def run(path, x):
    # Where ONNX Runtime ends the process, only a process of its own tells.
    code = (
        "import sys, numpy as np, onnxruntime as ort; s = ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider']); "
        "np.save(sys.argv[3], s.run(None, {'x': np.load(sys.argv[2])})[0])"
    )
    files = [OUT / "x.npy", OUT / "y.npy"]
    np.save(files[0], x)
    subprocess.run([sys.executable, "-c", code, path, *files], check=True, capture_output=True)
    return np.load(files[1])


failed = 0
for opset in (11, 17):
    for backwards in (False, True):
        before, data = OUT / f"{opset}.{backwards}.onnx", OUT / "calib.npz"
        onnx.save(build(opset, backwards), before)
        np.savez(data, x=RNG.normal(size=(24, 4, 8, STEPS)).astype(np.float32))
        x = RNG.normal(size=(1, 4, 8, STEPS)).astype(np.float32)
        want = run(before, x)
        for passes, least in (("simplify", 100), ("int8", 25)):
            after = before.with_suffix(f".{passes}.onnx")
            tool = subprocess.run([TOOL, "optimize", "--passes", passes, "--calib", data, before, after], capture_output=True, text=True)
            wrong = tool.stderr.strip() if tool.returncode else ""
            if not wrong:
                try:
                    got = run(after, x)
                except subprocess.CalledProcessError as e:
                    wrong = e.stderr.decode()[-300:]
                else:
                    sqnr = 10 * np.log10((want**2).sum() / max(((want - got) ** 2).sum(), 1e-30))
                    ratio = before.stat().st_size / after.stat().st_size
                    operators = {n.op_type for n in onnx.load(after).graph.node}
                    wrong = "" if sqnr >= least else f"{sqnr:.1f} dB"
                    if passes == "int8" and (ratio < 2.5 or "QuantizeLinear" not in operators):
                        wrong += f" {ratio:.2f} x {operators}"
            print(opset, backwards, passes, wrong or f"{sqnr:.1f} dB")
            failed += bool(wrong)
sys.exit(bool(failed))
