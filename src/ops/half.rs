//! Operators of the default domain that may compute in float16 or bfloat16, from which operator set on.
//!
//! Made from the type constraints of onnx 1.23 (`onnx.defs`); a test compares. Some inputs and outputs are float32 in every version:
//! the scales of Resize, the mean and deviation that LayerNormalization gives out. Not here, and so in float32 for ever: operators
//! whose type stands in an attribute, control flow, sequences, and those that compute places in images (RoiAlign, GridSample, AffineGrid), which eleven
//! bits cannot tell apart.

use crate::ir::{DType, Node};

pub use crate::math::narrow::{bfloat16, float16};

/// No operator set has it yet.
const NEVER: i64 = i64::MAX;

/// Since when all float inputs and outputs of these operators may be float16, and since when bfloat16.
const TABLE: &[(i64, i64, &[&str])] = &[
    (
        7,
        13,
        &[
            "Abs",
            "Add",
            "ArgMax",
            "ArgMin",
            "Ceil",
            "Clip",
            "Concat",
            "DepthToSpace",
            "Div",
            "Equal",
            "Exp",
            "Flatten",
            "Floor",
            "Gather",
            "Gemm",
            "Greater",
            "Hardmax",
            "Identity",
            "LRN",
            "Less",
            "Log",
            "LogSoftmax",
            "MatMul",
            "Max",
            "Mean",
            "Min",
            "Mul",
            "Neg",
            "Pad",
            "Reciprocal",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
            "Relu",
            "Reshape",
            "Shape",
            "Sigmoid",
            "Size",
            "Slice",
            "Softmax",
            "SpaceToDepth",
            "Split",
            "Sqrt",
            "Squeeze",
            "Sub",
            "Sum",
            "Tanh",
            "Tile",
            "Transpose",
            "Unsqueeze",
        ],
    ),
    (7, 14, &["BatchNormalization"]),
    (7, 15, &["Pow"]),
    (7, 16, &["LeakyRelu", "PRelu"]),
    (
        7,
        22,
        &[
            "Acos",
            "Asin",
            "Atan",
            "AveragePool",
            "Conv",
            "ConvTranspose",
            "Cos",
            "Dropout",
            "Elu",
            "GRU",
            "GlobalAveragePool",
            "GlobalLpPool",
            "GlobalMaxPool",
            "HardSigmoid",
            "InstanceNormalization",
            "LSTM",
            "LpNormalization",
            "LpPool",
            "MaxPool",
            "RNN",
            "Selu",
            "Sin",
            "Softplus",
            "Softsign",
            "Tan",
        ],
    ),
    (7, 24, &["TopK"]),
    (7, NEVER, &["Upsample"]),
    (8, 13, &["Expand"]),
    (9, 13, &["Erf", "IsNaN", "MeanVarianceNormalization", "NonZero", "Sign"]),
    (9, 16, &["Where"]),
    (9, 22, &["Acosh", "Asinh", "Atanh", "Cosh", "MaxUnpool", "Sinh"]),
    (9, 28, &["Compress"]),
    (9, NEVER, &["OneHot", "Shrink"]),
    (10, 13, &["Mod", "Resize"]),
    (10, 22, &["ThresholdedRelu"]),
    (10, 28, &["ReverseSequence"]),
    (11, 13, &["GatherElements", "GatherND", "ScatterElements", "ScatterND"]),
    (11, 22, &["Det", "Round"]),
    (11, 28, &["Unique"]),
    (12, 16, &["GreaterOrEqual", "LessOrEqual"]),
    (12, 28, &["Einsum"]),
    (14, 14, &["CumSum", "Trilu"]),
    (14, 22, &["HardSwish"]),
    (17, 17, &["DFT", "LayerNormalization", "STFT"]),
    (18, 18, &["CenterCropPad", "Col2Im"]),
    (18, 22, &["Mish"]),
    (20, 20, &["Gelu", "IsInf"]),
    (21, 21, &["GroupNormalization"]),
    (23, 23, &["Attention", "RMSNormalization", "RotaryEmbedding"]),
    (24, 24, &["Swish", "TensorScatter"]),
    (28, 28, &["Celu"]),
];

/// Inputs and outputs that are float32 whatever the others are.
const FLOAT: &[(&str, &[usize], &[usize])] = &[
    ("LayerNormalization", &[], &[1, 2]),
    ("Resize", &[1, 2], &[]),
    ("Upsample", &[1], &[]),
];

/// Operators that give out elements of their first input, or their limits, as they are.
const EXACT: &[&str] = &[
    "CenterCropPad",
    "Clip",
    "Compress",
    "Concat",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "GlobalMaxPool",
    "Identity",
    "Max",
    "MaxPool",
    "Min",
    "Neg",
    "Abs",
    "Pad",
    "ReduceMax",
    "ReduceMin",
    "Relu",
    "Reshape",
    "ReverseSequence",
    "ScatterElements",
    "ScatterND",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unique",
    "Unsqueeze",
    "Where",
    "Dropout",
];

/// True when the node may compute in `dtype` (float16 or bfloat16) under this operator set. Sums and products of scattered elements may not: ONNX Runtime
/// has no kernel for them on a CPU, and eleven bits are few for a sum.
pub fn allowed(node: &Node, opset: i64, dtype: DType) -> bool {
    if node.string("reduction").is_some_and(|r| r != "none") {
        return false;
    }
    let row = TABLE.iter().find(|r| r.2.iter().any(|op| node.is(op)));
    let since = row.map(|r| if dtype == DType::Bfloat16 { r.1 } else { r.0 });
    since.is_some_and(|since| opset >= since)
}

/// True when input `slot` stays float32.
pub fn input_is_float(node: &Node, slot: usize) -> bool {
    FLOAT
        .iter()
        .any(|(op, inputs, _)| node.is(op) && inputs.contains(&slot))
}

/// True when output `slot` stays float32.
pub fn output_is_float(node: &Node, slot: usize) -> bool {
    FLOAT
        .iter()
        .any(|(op, _, outputs)| node.is(op) && outputs.contains(&slot))
}

/// True for operators that round nothing: what goes in comes out.
pub fn is_exact(op: &str) -> bool {
    EXACT.contains(&op)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_has_one_row() {
        let mut all: Vec<&str> = TABLE.iter().flat_map(|r| r.2).copied().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(EXACT.iter().all(|op| all.contains(op)));
    }
}
