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

# Of words x [2, 5, 8] come a mask of rows, of lengths, for every query; "rows", "lengths", "queries" name them
QKV = [random(8, 24), random(24)]
THREE = [None, None, random(24)]
ATTENTION = [
    ("Attention", QKV, dict(num_heads=2)), ("Attention", QKV, dict(num_heads=4, scale=0.3)),
    ("Attention", [*QKV, "rows"], dict(num_heads=2)), ("Attention", [*QKV, "lengths"], dict(num_heads=2, mask_filter_value=-3.0)),
    ("Attention", [*QKV, "queries"], dict(num_heads=2)), ("Attention", QKV, dict(num_heads=2, unidirectional=1)),
    ("Attention", [*QKV, "", "", random(2, 2, 5, 5)], dict(num_heads=2)), ("Attention", [*QKV, "rows", "", random(2, 2, 5, 5)], dict(num_heads=2)),
    ("Attention", [random(8, 20), random(20)], dict(num_heads=2, qkv_hidden_sizes=[8, 8, 4])),
    ("MultiHeadAttention", [None, None], dict(num_heads=2)), ("MultiHeadAttention", THREE, dict(num_heads=2, scale=0.5)),
    ("MultiHeadAttention", [*THREE, "rows"], dict(num_heads=4)), ("MultiHeadAttention", [*THREE, "lengths"], dict(num_heads=2)),
    ("MultiHeadAttention", [*THREE, "", random(1, 2, 5, 5)], dict(num_heads=2)),
    ("MultiHeadAttention", THREE, dict(num_heads=2, unidirectional=1)),
]
TABLES = [random(7, 8), random(9, 8), random(2, 8)]
# EmbedLayerNormalization: whether it has segments, a mask, positions, and what else it gives
EMBEDDING = [(True, True, False, ["sum"]), (False, False, False, []), (True, False, True, []), (True, True, False, ["counts"])]
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
    return finish(nodes, weights, opset, dims)


def finish(nodes, weights, opset, dims=WORDS):
    port = lambda name, dims: h.make_tensor_value_info(name, 1, dims)
    graph = h.make_graph(nodes, "g", [port("x", dims)], [port("y", None)], weights)
    opsets = [h.make_opsetid("", opset), h.make_opsetid("com.microsoft", 1)]
    return h.make_model(graph, opset_imports=opsets, ir_version=8)


def masks(opset):
    """From x alone, so that nothing is constant: which words begin with a number that is not small; of lengths how many those are."""
    nodes = [
        h.make_node("Gather", ["x", "first"], ["heads"], axis=2), h.make_node("Greater", ["heads", "small"], ["seen"]),
        h.make_node("Cast", ["seen"], ["rows"], to=6),
        h.make_node("ReduceSum", ["rows", "axis"], ["lengths"], keepdims=0) if opset > 12 else h.make_node("ReduceSum", ["rows"], ["lengths"], axes=[1], keepdims=0),
        h.make_node("MatMul", ["x", "turn"], ["turned"]), h.make_node("Greater", ["turned", "small"], ["some"]), h.make_node("Cast", ["some"], ["queries"], to=6),
    ]
    constants = dict(first=np.int64(0), small=np.float32(-0.3), axis=np.array([1]), turn=random(8, 5))
    return nodes, [nh.from_array(np.asarray(v), k) for k, v in constants.items() if opset > 12 or k != "axis"]


def build_attention(op, others, attrs, opset):
    nodes, weights = masks(opset)
    names = []
    for i, other in enumerate(others):
        name = "x2" if other is None else other if isinstance(other, str) else f"w{i}"
        if not (other is None or isinstance(other, str)):
            weights.append(nh.from_array(other, name))
        names.append(name)
    weights += [nh.from_array(np.float32(0.5), "two")]
    if op == "MultiHeadAttention":  # of products, whose width is known by their weights
        weights += [nh.from_array(random(8, 8), "query")]
        nodes += [h.make_node("MatMul", ["x", "query"], ["x2"])]
    else:
        nodes += [h.make_node("Mul", ["x", "two"], ["x2"])]
    nodes += [h.make_node(op, ["x2", *names], ["fused"], name="it", domain="com.microsoft", **attrs), h.make_node("Neg", ["fused"], ["y"])]
    return finish(nodes, weights, opset)


def build_embedding(segments, mask, positions, more, opset):
    nodes, weights = masks(opset)
    weights += [nh.from_array(w, n) for w, n in zip(TABLES + NORM, ["words", "places", "kinds", "gamma", "beta"])]
    weights += [nh.from_array(np.arange(10, dtype=np.int32)[::2].reshape(1, 5).repeat(2, 0) % 9, "chosen")]
    weights += QKV_TENSORS
    tables = ["words", "places", "kinds" if segments else ""]
    inputs = ["rows", "rows" if segments else "", *tables, "gamma", "beta", "rows" if mask else "", "chosen" if positions else ""]
    outputs = ["fused", "counts" if mask else "", "sum" if "sum" in more else ""]
    nodes += [h.make_node("EmbedLayerNormalization", inputs, outputs, name="it", domain="com.microsoft", epsilon=1e-4)]
    if "counts" in more:
        nodes += [h.make_node("Attention", ["fused", "qkv", "qkv_bias", "counts"], ["y"], domain="com.microsoft", num_heads=2)]
    else:
        nodes += [h.make_node("Add", ["fused", "sum" if "sum" in more else "gamma"], ["y"])]
    return finish(nodes, weights, opset)


QKV_TENSORS = [nh.from_array(w, n) for w, n in zip(QKV, ["qkv", "qkv_bias"])]


def run(path, x):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


failed = 0
OLD = ["SkipLayerNormalization"]  # before opset 17 there is no LayerNormalization
ALL = [(op, dims, (7, 9) if op in DROPPED else (11, 17, 20) if op in OLD else (17, 20), attrs, lambda opset, c=(op, dims, others, attrs): build(*c, opset)) for op, dims, others, attrs in CASES]
ALL += [(op, WORDS, (11, 14, 20), attrs, lambda opset, c=(op, others, attrs): build_attention(*c, opset)) for op, others, attrs in ATTENTION]
ALL += [("EmbedLayerNormalization", WORDS, (11, 14, 20), case, lambda opset, c=case: build_embedding(*c, opset)) for case in EMBEDDING]
for number, (op, dims, opsets, attrs, made) in enumerate(ALL):
    for opset in opsets:
        before, after = OUT / f"{number}.{opset}.onnx", OUT / f"{number}.{opset}.plain.onnx"
        onnx.save(made(opset), before)
        tool = subprocess.run([TOOL, "optimize", "--passes", "simplify", before, after], capture_output=True, text=True)
        wrong = (tool.stderr + tool.stdout).strip() if tool.returncode else ""
        if not wrong:
            x = random(*dims)
            a, b = run(before, x), run(after, x)
            gap = np.abs(a - b).max()
            left = {n.op_type for n in onnx.load(after).graph.node if n.domain or n.op_type in DROPPED}
            wrong = f"{left} left" if left else "" if gap < 1e-4 else f"differs by {gap}"
        failed += bool(wrong)
        print(f"{op:<24} opset {opset}  {attrs}   {wrong or 'ok'}")
sys.exit(failed > 0)
