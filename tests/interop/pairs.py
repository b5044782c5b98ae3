"""Whether ONNX Runtime runs all products of a model in integers.   pairs.py MODEL.onnx

None that is left computes in floating point, and no weight becomes floats again in each run.
"""
import collections, sys, tempfile
import onnx
import onnxruntime as ort

with tempfile.NamedTemporaryFile(suffix=".onnx") as f:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = f.name
    ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    graph = onnx.load(f.name).graph
stored = {i.name for i in graph.initializer}
operators = collections.Counter(n.op_type for n in graph.node)
again = [n.name for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
print(dict(operators), again)
sys.exit(bool(again or operators["MatMul"] or operators["Gemm"] or not operators["MatMulIntegerToFloat"]))
