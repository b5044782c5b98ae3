"""Operators of ONNX Runtime's own, and such as ONNX has dropped, spelled out by `simplify`, give the same numbers; inside, tract verifies them.   fused.py ONNXZIP FOLDER"""
import pathlib, subprocess, sys
import numpy as np
import onnx, onnxruntime as ort
from onnx import helper as h, numpy_helper as nh

TOOL, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
OUT.mkdir(parents=True, exist_ok=True)
RNG = np.random.default_rng(7)


def random(*dims):
    return RNG.normal(size=dims).astype(np.float32)


IMAGE, ROWS, WORDS = [2, 4, 6, 6], [3, 8], [2, 5, 8]
NORM = [random(8), random(8)]
# operator, dimensions of x, other inputs (None: x again), attributes
CASES = [
    ("FusedConv", IMAGE, [random(4, 4, 3, 3), random(4)], dict(activation="Relu", pads=[1] * 4)),
    ("FusedConv", IMAGE, [random(4, 4, 3, 3), random(4), None], dict(activation="Relu", pads=[1] * 4)),
    ("FusedConv", IMAGE, [random(6, 2, 1, 1)], dict(activation="Clip", activation_params=[-0.5, 1.5], group=2)),
    ("FusedConv", IMAGE, [random(4, 4, 1, 1)], dict(activation="LeakyRelu", activation_params=[0.3])),
    ("FusedConv", IMAGE, [random(4, 4, 1, 1)], dict(activation="HardSigmoid", activation_params=[0.3, 0.4])),
    ("FusedGemm", ROWS, [random(8, 5), random(5)], dict(activation="Sigmoid", alpha=0.5, beta=2.0)),
    ("FusedGemm", ROWS, [random(5, 8), random(5)], dict(activation="LeakyRelu", activation_alpha=0.2, transB=1)),
    ("FusedMatMul", WORDS, [None], dict(transB=1, alpha=0.25)),
    ("FusedMatMul", WORDS, [None], dict(transA=1)),
    ("FusedMatMul", WORDS, [random(8, 3)], dict(alpha=3.0)),
    ("Gelu", WORDS, [], {}), ("BiasGelu", WORDS, [random(8)], {}), ("QuickGelu", WORDS, [], dict(alpha=1.3)),
    ("FastGelu", WORDS, [random(8)], {}), ("FastGelu", WORDS, [], {}),
    ("SkipLayerNormalization", WORDS, [None, *NORM, random(8)], dict(epsilon=1e-3)),
    ("SkipLayerNormalization", WORDS, [None, NORM[0]], dict(epsilon=1e-5)),
    ("ImageScaler", IMAGE, [], dict(scale=0.5, bias=[1.0, -2.0, 0.25, 3.0])), ("Affine", IMAGE, [], dict(alpha=2.0, beta=-0.5)),
    ("Crop", IMAGE, [], dict(border=[1, 2, 0, 1])), ("Crop", IMAGE, [], dict(border=[2, 1, 0, 0], scale=[3, 2])),
]
DROPPED = ["ImageScaler", "Affine", "Crop"]


def build(op, dims, others, attrs, opset):
    names = [f"w{i}" for i in range(len(others))]
    weights = [nh.from_array(w, n) for n, w in zip(names, others) if w is not None]
    inputs = ["x2"] + [n if w is not None else "x2" for n, w in zip(names, others)]
    outputs = ["fused", "", "", "sum"] if op == "SkipLayerNormalization" and len(others) == 4 else ["fused"]
    nodes = [
        h.make_node("Mul", ["x", "two"], ["x2"]),
        h.make_node(op, inputs, outputs, name="it", domain="" if op in DROPPED else "com.microsoft", **attrs),
        h.make_node("Add" if len(outputs) > 1 else "Neg", ["fused", "sum"][: len(outputs) // 2 or 1], ["y"]),
    ]
    weights.append(nh.from_array(np.float32(0.5), "two"))
    port = lambda name, dims: h.make_tensor_value_info(name, 1, dims)
    graph = h.make_graph(nodes, "g", [port("x", dims)], [port("y", None)], weights)
    opsets = [h.make_opsetid("", opset), h.make_opsetid("com.microsoft", 1)]
    return h.make_model(graph, opset_imports=opsets, ir_version=8)


def run(path, x):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


failed = 0
for number, (op, dims, others, attrs) in enumerate(CASES):
    for opset in (7, 9) if op in DROPPED else (17, 20):
        before, after = OUT / f"{number}.{opset}.onnx", OUT / f"{number}.{opset}.plain.onnx"
        onnx.save(build(op, dims, others, attrs, opset), before)
        tool = subprocess.run([TOOL, "optimize", "--passes", "simplify", before, after], capture_output=True, text=True)
        wrong = tool.stderr.strip() if tool.returncode else ""
        if not wrong:
            x = random(*dims)
            a, b = run(before, x), run(after, x)
            gap = np.abs(a - b).max()
            left = {n.op_type for n in onnx.load(after).graph.node if n.domain or n.op_type in DROPPED}
            wrong = f"{left} left" if left else "" if gap < 1e-4 else f"differs by {gap}"
        failed += bool(wrong)
        print(f"{op:<24} opset {opset}  {attrs}   {wrong or 'ok'}")
sys.exit(failed > 0)
