"""Weight-only, dynamic and half precision passes on graphs with known traps, run by ONNX Runtime.   precision.py ONNXZIP FOLDER

Each result must pass onnx.checker and strict shape inference, load in ONNX Runtime, and be as close to the original as said.
"""
import collections, pathlib, subprocess, sys
import numpy as np
import onnx, onnxruntime as ort
from onnx import TensorProto as T, helper as h, numpy_helper as nh

TOOL, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
OUT.mkdir(parents=True, exist_ok=True)


class Net:
    def __init__(self, inputs, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.weights, self.inputs, self.outputs, self.count = [], [], inputs, {}, 0

    def name(self, kind):
        self.count += 1
        return f"{kind}{self.count}"

    def const(self, value, dtype=np.float32):
        name = self.name("c")
        self.weights.append(nh.from_array(np.asarray(value, dtype), name))
        return name

    def w(self, *dims, scale=None):
        fan = dims[0] if len(dims) == 2 else int(np.prod(dims[1:]))
        return self.const(self.rng.standard_normal(dims) * (scale or fan**-0.5))

    def ints(self, value):
        return self.const(value, np.int64)

    def op(self, kind, *inputs, outs=1, **attrs):
        names = [self.name("v") for _ in range(outs)]
        self.nodes.append(h.make_node(kind, list(inputs), names, name=self.name("n"), **attrs))
        return names[0] if outs == 1 else names

    def out(self, v, dims, dtype=T.FLOAT):
        self.outputs[v] = (dtype, dims)


def mlp(n):
    x = n.op("Gemm", "x", n.w(96, 100, scale=0.1), n.w(96), transB=1, alpha=0.5, beta=2.0)
    x = n.op("Relu", x)
    x = n.op("MatMul", x, n.w(96, 70))
    x = n.op("Add", x, n.w(70))
    x = n.op("Relu", x)
    n.out(n.op("Gemm", x, n.w(70, 33), n.const(np.ones((1, 33)))), ["N", 33])


def conv(n):
    x = n.op("Conv", "x", n.w(40, 3, 3, 3), n.w(40), pads=[1] * 4)
    x = n.op("Relu", x)
    x = n.op("Conv", x, n.w(40, 1, 3, 3), group=40, pads=[1] * 4)
    x = n.op("Conv", x, n.w(64, 10, 3, 3), n.w(64), group=4, pads=[1] * 4, strides=[2, 2])
    x = n.op("Conv", x, n.w(48, 64, 1, 1))
    x = n.op("ConvTranspose", x, n.w(48, 6, 2, 2), group=2, strides=[2, 2])
    y = n.op("Resize", x, "", n.const([1, 1, 2, 2]), mode="nearest")
    n.out(n.op("GlobalAveragePool", y), ["N", 12, 1, 1])
    n.out(x, ["N", 12, 8, 8])


def shared(n):
    w = n.w(64, 64)
    x = n.op("MatMul", "x", w)
    x = n.op("Tanh", x)
    x = n.op("MatMul", x, w)
    y = n.op("MatMul", n.op("Tanh", x), n.op("Transpose", w, perm=[1, 0]))
    z = n.op("Gemm", n.op("Reshape", x, n.ints([-1, 64])), n.w(64, 64), transB=1)
    n.out(y, ["N", 5, 64])
    n.out(z, ["M", 64])


def recurrent(n):
    y, _, _ = n.op("LSTM", "x", n.w(2, 64, 24), n.w(2, 64, 16), n.w(2, 128), outs=3, hidden_size=16, direction="bidirectional")
    y = n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3]), n.ints([0, 0, -1]))
    y, _ = n.op("GRU", y, n.w(1, 60, 32), n.w(1, 60, 20), n.w(1, 120), outs=2, hidden_size=20, direction="reverse", linear_before_reset=1)
    y = n.op("Squeeze", y, n.ints([1]))
    n.out(n.op("MatMul", y, n.w(20, 64)), [7, "N", 64])


def branches(n):
    def body(seed, gain):
        b = Net({}, seed)
        b.count = 1000 * seed
        y = b.op("MatMul", "hidden", b.const(np.random.default_rng(seed).standard_normal((64, 64)) * gain))
        return h.make_graph(b.nodes, f"b{seed}", [], [h.make_tensor_value_info(y, T.FLOAT, None)], b.weights)
    n.nodes.append(h.make_node("MatMul", ["x", n.w(32, 64)], ["hidden"], name="first"))
    total = n.op("ReduceSum", "x", keepdims=0)
    test = n.op("Greater", total, n.const(0.0))
    y = n.name("v")
    n.nodes.append(h.make_node("If", [test], [y], name="if", then_branch=body(1, 0.1), else_branch=body(2, 0.1)))
    n.out(n.op("Tanh", y), ["N", 64])


def embedding(n):
    x = n.op("Gather", n.w(300, 48, scale=1), "x")
    p = n.op("Cast", n.op("Shape", x), to=T.FLOAT)
    p = n.op("Cast", n.op("Floor", n.op("Mul", n.op("ReduceProd", p, keepdims=0), n.const(7.3))), to=T.INT64)
    n.out(n.op("LayerNormalization", n.op("MatMul", x, n.w(48, 48)), n.const(np.ones(48)), n.const(np.zeros(48)), axis=-1), ["N", 6, 48])
    n.out(p, [], T.INT64)


def traps(n):
    """What float16 cannot hold: large numbers, small divisors, masks, sums, positions."""
    big = n.op("MatMul", n.op("Mul", "x", n.const(3e4)), n.w(32, 64))
    n.out(n.op("Div", big, n.op("ReduceMax", n.op("Abs", big), keepdims=1)), ["N", 4, 64])
    m = n.op("ReduceMean", "x", n.ints([-1]), keepdims=1)
    d = n.op("Sub", "x", m)
    v = n.op("ReduceMean", n.op("Mul", d, d), n.ints([-1]), keepdims=1)
    y = n.op("Div", d, n.op("Sqrt", n.op("Add", v, n.const(1e-12))))
    n.out(n.op("MatMul", y, n.w(32, 64)), ["N", 4, 64])
    mask = n.op("Mul", n.op("Cast", n.op("Greater", "x", n.const(0.5)), to=T.FLOAT), n.const(-3.4e38))
    n.out(n.op("Softmax", n.op("Add", "x", mask), axis=-1), ["N", 4, 32])
    n.out(n.op("ReduceSumSquare", n.op("Mul", "x", n.const(100.0)), n.ints([1, 2]), keepdims=0), ["N"])
    filled = n.op("ConstantOfShape", n.op("Shape", "x"), value=nh.from_array(np.array([0.25], np.float32)))
    n.out(n.op("Add", n.op("Add", filled, "x"), n.op("Range", n.const(0.0), n.const(32.0), n.const(1.0))), ["N", 4, 32])
    n.out(n.op("Sigmoid", "x"), ["N", 4, 32])


def sequences(n):
    """The batch is the second axis inside, as in torch.nn.MultiheadAttention; scattered sums. ONNX Runtime 1.31 ends the process over
    such a Transpose in float16, and has no kernel for such sums."""
    x = n.op("Transpose", n.op("Relu", n.op("Cast", "x", to=T.FLOAT)), perm=[1, 0, 2])
    q = n.op("Add", n.op("MatMul", x, n.w(64, 64)), n.w(64))
    q = n.op("Transpose", q, perm=[1, 0, 2])
    at = n.const(np.arange(2 * 64).reshape(1, 2, 64) % 6, np.int64)
    n.out(n.op("ScatterElements", q, at, n.w(1, 2, 64, scale=1.0), axis=1, reduction="add"), ["N", 6, 64])


X = lambda *dims, dtype=np.float32: {"x": (dtype, list(dims))}
CASES = [
    (mlp, 13, X("N", 100)), (conv, 13, X("N", 3, 8, 8)), (shared, 17, X("N", 5, 64)), (recurrent, 14, X(7, "N", 24)),
    (branches, 17, X("N", 32)), (embedding, 17, X("N", 6, dtype=np.int64)), (traps, 18, X("N", 4, 32)),
    (sequences, 18, X("N", 6, 64)),
]
# Passes, least SQNR in dB, whether ONNX Runtime's CPU provider computes it.
PASSES = [
    ("weights", 32, True), ("weights(bits=8,block=64,symmetric=off)", 32, True), ("weights(bits=4)", 13, True),
    ("weights(bits=4,block=0)", 8, True), ("weights(bits=4,form=matmulnbits)", 13, True),
    ("weights(bits=4,symmetric=on,form=matmulnbits,block=16)", 13, True), ("weights(bits=8,form=matmulnbits,block=128)", 30, True),
    ("weights(form=folded)", 32, True), ("weights(form=folded,mixed=0.3)", 6, True), ("weights(form=folded,mixed=0.002)", 20, True),
    ("weights(bits=4,rounding=nearest,min=1)", 11, True), ("dynamic", 25, True), ("dynamic(rounding=nearest,lstm=off)", 25, True),
    ("fp16", 45, True), ("fp16(keep_io=off)", 45, True), ("fp16(only=weights)", 60, True),
    ("fp16(type=bfloat16,only=weights)", 40, True), ("fp16(type=bfloat16)", 0, False),
]


def write(build, opset, inputs):
    n = Net(inputs)
    build(n)
    info = [h.make_tensor_value_info(k, T.INT64 if d == np.int64 else T.FLOAT, dims) for k, (d, dims) in inputs.items()]
    outs = [h.make_tensor_value_info(k, d, dims) for k, (d, dims) in n.outputs.items()]
    graph = h.make_graph(n.nodes, "g", info, outs, n.weights)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path = OUT / f"{build.__name__}.onnx"
    onnx.save(model, path)
    rng = np.random.default_rng(5)
    some = lambda count: {k: rng.integers(0, 300, [count, *[3 if s == "N" else s for s in dims]]) if d == np.int64
                          else rng.standard_normal([count, *[3 if s == "N" else s for s in dims]]).astype(d) for k, (d, dims) in inputs.items()}
    np.savez(OUT / f"{build.__name__}.npz", **some(24))
    return path, some(4)


def sqnr(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    noise = ((a - b) ** 2).sum()
    if not np.isfinite(b).all():
        return -np.inf
    return np.inf if noise == 0 else 10 * np.log10(max((a**2).sum(), 1e-300) / noise)


def session(path):
    o = ort.SessionOptions()
    o.log_severity_level, o.intra_op_num_threads = 4, 1
    return ort.InferenceSession(path, o, providers=["CPUExecutionProvider"])


def check(path, data, passes, least, runs):
    out = OUT / f"{path.stem}.{passes}.onnx"
    out.unlink(missing_ok=True)
    args = [TOOL, "optimize", "--budget", "sqnr:5dB", "--passes", passes, "--calib", path.with_suffix(".npz"), path, out]
    run = subprocess.run(args, capture_output=True, text=True)
    if run.returncode != 0:
        return "", [f"exit {run.returncode}: {run.stdout[-300:]} {run.stderr[-300:]}"]
    wrong = [] if "OK" in run.stdout else [run.stdout[-200:]]
    model = onnx.load(out)
    ops = collections.Counter(n.op_type for n in model.graph.node)
    contributed = any(o.domain == "com.microsoft" for o in model.opset_import)
    onnx.checker.check_model(model, full_check=not contributed)
    if not contributed:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    names = [n.name for n in model.graph.node]
    if len(set(names)) < len(names):
        wrong.append("two nodes have one name")
    if [i.name for i in model.graph.input] != ["x"]:
        wrong.append("other inputs")
    size = f"{path.stat().st_size:>7} → {out.stat().st_size:>7} bytes"
    if not runs:
        return size, wrong
    a, b = session(path), session(out)
    half = b.get_inputs()[0].type == "tensor(float16)"
    low = np.inf
    for i in range(4):
        x = {k: v[i] for k, v in data.items()}
        y = {k: v.astype(np.float16) if half else v for k, v in x.items()}
        low = min(low, *[sqnr(p, q) for p, q in zip(a.run(None, x), b.run(None, y))])
    if not low >= least:
        wrong.append(f"{low:.1f} dB, at least {least} wanted; {dict(ops)}")
    return f"{size} {low:7.1f} dB  {ops['Cast']} Casts", wrong


def precision_table():
    """src/ops/half.rs allows nothing that onnx.defs does not."""
    import re
    source = (pathlib.Path(__file__).parents[2] / "src/ops/half.rs").read_text()
    table = source[source.index("const TABLE"):source.index("/// Inputs and outputs that are float32")]
    fixed = {"Resize": ({1, 2}, set()), "Upsample": ({1}, set()), "LayerNormalization": (set(), {1, 2})}
    rows, wrong = re.findall(r"\(\s*(\d+),\s*(\d+|NEVER),\s*&\[(.*?)\],?\s*\)", table, re.S), []
    for f16, bf16, names in rows:
        for name in re.findall(r'"(\w+)"', names):
            for since, want in ((f16, "tensor(float16)"), (bf16, "tensor(bfloat16)")):
                if since == "NEVER":
                    continue
                versions = [s for s in onnx.defs.get_all_schemas_with_history() if s.name == name and s.domain == ""]
                at = max((s for s in versions if s.since_version <= int(since)), key=lambda s: s.since_version, default=None)
                if at is None:
                    wrong.append(f"{name} is not there at {since}")
                    continue
                for s in [at] + [s for s in versions if s.since_version > int(since)]:
                    if s.deprecated:
                        continue
                    of = lambda p: next((set(c.allowed_type_strs) for c in s.type_constraints if c.type_param_str == p.type_str), {p.type_str})
                    for skip, all in zip(fixed.get(name, (set(), set())), (s.inputs, s.outputs)):
                        for i, p in enumerate(all):
                            if i not in skip and "tensor(float)" in of(p) and want not in of(p):
                                wrong.append(f"{name} {s.since_version}: {p.name} is no {want}")
    count = sum(len(re.findall(r'"(\w+)"', r[2])) for r in rows)
    print(f"{count} operators in src/ops/half.rs: {'; '.join(wrong) or 'ok'}")
    return bool(wrong) or count < 100


def main():
    only = sys.argv[3:]
    bad = precision_table()
    for build, opset, inputs in CASES:
        path, data = write(build, opset, inputs)
        for passes, least, runs in PASSES:
            if only and not any(o in f"{build.__name__} {passes}" for o in only):
                continue
            try:
                row, wrong = check(path, data, passes, least, runs)
            except Exception as e:
                row, wrong = "", [f"{type(e).__name__}: {str(e)[:400]}"]
            bad += bool(wrong)
            print(f"{build.__name__:<10} {passes:<55} {row}   {'; '.join(wrong) or 'ok'}", flush=True)
    sys.exit(bad > 0)


main()
