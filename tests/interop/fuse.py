"""Layers spelled out in small operators, recognised by `simplify(fuse=on)`, give the same numbers.   fuse.py ONNXZIP FOLDER"""
import collections, pathlib, subprocess, sys
import numpy as np
import onnx, onnxruntime as ort
from onnx import helper as h, numpy_helper as nh

TOOL, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
OUT.mkdir(parents=True, exist_ok=True)


class Net:
    def __init__(self):
        self.nodes, self.weights = [], []

    def const(self, value):
        name = f"c{len(self.weights)}"
        self.weights.append(nh.from_array(np.asarray(value, np.float32), name))
        return name

    def ints(self, value):
        name = f"c{len(self.weights)}"
        self.weights.append(nh.from_array(np.asarray(value, np.int64), name))
        return name

    def op(self, kind, *inputs, **attrs):
        name = f"v{len(self.nodes)}"
        inputs = [i if isinstance(i, str) else self.const(i) for i in inputs]
        self.nodes.append(h.make_node(kind, inputs, [name], **attrs))
        return name


def gelu_div(n, x):
    return n.op("Mul", n.op("Mul", x, n.op("Add", n.op("Erf", n.op("Div", x, 2**0.5)), 1)), 0.5)


def gelu_mul(n, x):
    return n.op("Mul", n.op("Mul", 0.5, x), n.op("Add", 1, n.op("Erf", n.op("Mul", x, 0.5**0.5))))


def hard_swish_clip(n, x):
    return n.op("Div", n.op("Mul", x, n.op("Clip", n.op("Add", x, 3), 0, 6)), 6)


def hard_swish_sigmoid(n, x):
    return n.op("Mul", x, n.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def swish(n, x):
    return n.op("Mul", x, n.op("Sigmoid", x))


def layer_norm(square, at):
    def build(n, x):
        mean = lambda v: n.op("ReduceMean", v, axes=[-1]) if at < 18 else n.op("ReduceMean", v, n.ints([-1]))
        d = n.op("Sub", x, mean(x))
        s = n.op("Pow", d, 2) if square == "Pow" else n.op("Mul", d, d)
        y = n.op("Div", d, n.op("Sqrt", n.op("Add", mean(s), 1e-5)))
        return n.op("Add", n.op("Mul", y, np.linspace(0.5, 2, 8)), np.linspace(-1, 1, 8))
    return build


# What only looks like one: wrong constants, a wrong axis, an inner value that the world sees.
def not_gelu(n, x):
    return n.op("Mul", n.op("Mul", x, n.op("Add", n.op("Erf", n.op("Div", x, 1.5)), 1)), 0.5)


def not_swish(n, x):
    return n.op("Mul", n.op("Neg", x), n.op("Sigmoid", x))


def not_layer_norm(n, x):
    d = n.op("Sub", x, n.op("ReduceMean", x, axes=[1]))
    y = n.op("Div", d, n.op("Sqrt", n.op("Add", n.op("ReduceMean", n.op("Mul", d, d), axes=[-1]), 1e-5)))
    return n.op("Add", n.op("Mul", y, np.linspace(0.5, 2, 8)), np.linspace(-1, 1, 8))


CASES = [
    ("Gelu", 20, gelu_div), ("Gelu", 20, gelu_mul), (None, 19, gelu_div), (None, 20, not_gelu),
    ("HardSwish", 14, hard_swish_clip), ("HardSwish", 14, hard_swish_sigmoid), (None, 13, hard_swish_clip),
    ("Swish", 24, swish), (None, 23, swish), (None, 24, not_swish),
    ("LayerNormalization", 17, layer_norm("Pow", 17)), ("LayerNormalization", 18, layer_norm("Mul", 18)),
    (None, 16, layer_norm("Pow", 16)), (None, 17, not_layer_norm),
]
LAYERS = {"Gelu", "HardSwish", "Swish", "LayerNormalization"}
bad = 0
for k, (want, opset, build) in enumerate(CASES):
    n = Net()
    # A layer is rarely alone: factors before and after it must not be folded away first.
    w = np.random.default_rng(k).standard_normal((8, 8)) / 3
    y = n.op("MatMul", build(n, n.op("MatMul", "x", w)), w)
    info = lambda name: h.make_tensor_value_info(name, 1, ["N", 4, 8])
    graph = h.make_graph(n.nodes, "g", [info("x")], [info(y)], n.weights)
    a, b = OUT / f"{k}.onnx", OUT / f"{k}.fused.onnx"
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8), a)
    run = subprocess.run([TOOL, "optimize", "--no-verify", "--passes", "simplify(fuse=on)", a, b], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    x = np.random.default_rng(1).standard_normal((3, 4, 8), np.float32) * 3
    p, q = (ort.InferenceSession(f, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0] for f in (a, b))
    ops = collections.Counter(node.op_type for node in onnx.load(b).graph.node)
    found = LAYERS & set(ops)
    off = float(np.abs(p - q).max() / np.abs(p).max())
    ok = off < 1e-5 and found == ({want} if want else set()) and (not want or sum(ops.values()) <= 5)
    bad += not ok
    print(f"{build.__qualname__.split('.')[0]:<20} opset {opset:<3} {dict(ops)} off by {off:.1e} {'' if ok else 'WRONG'}")
sys.exit(bad > 0)
