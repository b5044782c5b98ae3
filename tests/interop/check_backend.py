"""Runs rewritten backend tests on their data.   check_backend.py FOLDER RESULTS

FOLDER as gen_backend.py lays it out; RESULTS/KIND/NAME.onnx are the rewritten models. The reference is ONNX Runtime where it
reproduces the expected outputs with the original, else onnx.reference where that does, else there is none. A rewritten model
passes when the reference still gives the expected outputs, and onnx.checker finds nothing that it did not find before.

Two worker processes do it: either may die in native code, and is started again.
"""
import collections, json, os, pathlib, queue, select, subprocess, sys, threading

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
SECONDS = 60


# ---- in the worker

def load(path, info):
    import onnx
    from onnx import numpy_helper as nh
    kind, b = info.type.WhichOneof("value"), path.read_bytes()
    if kind == "sequence_type":
        return nh.to_list(onnx.SequenceProto.FromString(b))
    if kind == "optional_type":
        return nh.to_optional(onnx.OptionalProto.FromString(b))
    if kind == "map_type":
        return nh.to_dict(onnx.MapProto.FromString(b))
    return nh.to_array(onnx.TensorProto.FromString(b))


def data_of(model, folder):
    count = lambda word: len(list(folder.glob(f"{word}_*.pb")))
    defaults = {i.name for i in model.graph.initializer} | {i.values.name for i in model.graph.sparse_initializer}
    inputs = [i for i in model.graph.input if i.name not in defaults]
    if len(inputs) != count("input"):
        inputs = list(model.graph.input)
    feeds = {inputs[k].name: load(folder / f"input_{k}.pb", inputs[k]) for k in range(count("input"))}
    return feeds, [load(folder / f"output_{k}.pb", model.graph.output[k]) for k in range(count("output"))]


def differs(want, got, rtol, atol):
    import numpy as np
    if want is None or got is None:
        return None if want is got else "None against a value"
    if isinstance(want, dict):
        if not isinstance(got, dict) or list(want) != list(got):
            return "map keys"
        return next((r for k in want if (r := differs(want[k], got[k], rtol, atol))), None)
    if isinstance(want, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(want) != len(got):
            return "list length"
        return next((r for x, y in zip(want, got) if (r := differs(x, y, rtol, atol))), None)
    a, b = np.asarray(want), np.asarray(got)
    if a.shape != b.shape:
        return f"shape {b.shape}, expected {a.shape}"
    if a.dtype.kind in "OUS":
        return None if (a.astype(str) == b.astype(str)).all() else "strings"
    if a.dtype != b.dtype:
        return f"type {b.dtype}, expected {a.dtype}"
    if a.dtype.kind in "biu":
        return None if (a == b).all() else f"{(a != b).sum()} of {a.size} integers"
    if a.dtype.name == "bfloat16":
        rtol = max(rtol, 2 ** -6)
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    a, b = a.astype(wide), b.astype(wide)
    if np.allclose(b, a, rtol=rtol, atol=atol, equal_nan=True):
        return None
    with np.errstate(all="ignore"):
        return f"off by {np.nanmax(np.abs(a - b)):.3g} of {np.nanmax(np.abs(a)):.3g}"


def run(how, path, model, feeds):
    if how == "ort":
        import onnxruntime as ort
        o = ort.SessionOptions()
        o.intra_op_num_threads = o.inter_op_num_threads = 1
        o.log_severity_level = 4
        return ort.InferenceSession(str(path), o, providers=["CPUExecutionProvider"]).run(None, feeds)
    from onnx.reference import ReferenceEvaluator
    return ReferenceEvaluator(model).run(None, feeds)


def reproduces(how, path, model, feeds, want, tolerance):
    try:
        got = run(how, path, model, feeds)
    except Exception as e:
        return f"{type(e).__name__}: {str(e)[:200]}"
    if len(got) != len(want):
        return f"{len(got)} outputs, expected {len(want)}"
    return next((f"output {k}: {r}" for k, (a, b) in enumerate(zip(want, got)) if (r := differs(a, b, *tolerance))), None)


def fault(path):
    import onnx
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as e:
        return f"{type(e).__name__}: {str(e)[:200]}"


def signature(model):
    return [(v.name, v.type.SerializeToString()) for v in model.graph.output]


def judge(folder, result, engines):
    import onnx
    folder, result = pathlib.Path(folder), pathlib.Path(result)
    original = onnx.load(folder / "model.onnx")
    data, tol = folder / "test_data_set_0", folder / "tolerance.json"
    tolerance = json.loads(tol.read_text()) if tol.exists() else [1e-3, 1e-7]
    how = None
    if data.exists():
        feeds, want = data_of(original, data)
        for engine in engines:
            if reproduces(engine, folder / "model.onnx", original, feeds, want, tolerance) is None:
                how = engine
                break
    if result.read_bytes() == (folder / "model.onnx").read_bytes():
        return how, None, False
    changed = onnx.load(result)
    if signature(changed) != signature(original):
        return how, "the outputs have other names or types", True
    why = fault(result)
    if why and not fault(folder / "model.onnx"):
        return how, f"checker: {why}", True
    if how:
        why = reproduces(how, result, changed, feeds, want, tolerance)
        return how, why and f"{how}: {why}", True
    return how, None, True


def worker():
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print
    for line in sys.stdin:
        try:
            answer = judge(*json.loads(line))
        except Exception as e:
            answer = None, f"{type(e).__name__}: {e}", True
        out.write(json.dumps(answer) + "\n")
        out.flush()


# ---- in the parent

class Worker:
    def __init__(self):
        self.process = None

    def ask(self, *job):
        """The answer, or None when the worker died or hung."""
        if self.process is None:
            self.process = subprocess.Popen([sys.executable, "-W", "ignore", __file__, "worker"], text=True,
                                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            if select.select([self.process.stdout], [], [], SECONDS)[0]:
                line = self.process.stdout.readline()
                if line:
                    return json.loads(line)
        except OSError:
            pass
        self.process.kill()
        self.process.wait()
        self.process = None

    def judge(self, folder, result):
        for engines in (["ort", "ref"], ["ref"], []):  # fewer, when one of them kills the worker
            answer = self.ask(folder, result, engines)
            if answer:
                return answer
        return None, "the checker died", True


def main():
    folder, results = map(pathlib.Path, sys.argv[1:])
    jobs, table, faults = queue.SimpleQueue(), collections.defaultdict(collections.Counter), []
    for path in sorted(results.glob("*/*.onnx")):
        jobs.put(path)

    def work():
        w = Worker()
        while True:
            try:
                path = jobs.get_nowait()
            except queue.Empty:
                break
            kind, name = path.parent.name, path.stem
            how, why, changed = w.judge(str(folder / kind / name), str(path))
            row = table[kind]
            row["models"] += 1
            row["changed"] += changed
            row["failed" if why else "passed" if how else "no reference"] += 1
            if why:
                faults.append(f"{kind}/{name}: {why}")
        if w.process:
            w.process.stdin.close()
            w.process.wait()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    table["all"] = sum(table.values(), collections.Counter())
    print(f"{'kind':<20} {'models':>7} {'changed':>8} {'passed':>7} {'not supported by the reference':>31} {'failed':>7}")
    for kind, r in table.items():
        print(f"{kind:<20} {r['models']:>7} {r['changed']:>8} {r['passed']:>7} {r['no reference']:>31} {r['failed']:>7}")
    print("\n".join(sorted(faults)))
    sys.exit(bool(faults))


if sys.argv[1:] == ["worker"]:
    worker()
else:
    main()
