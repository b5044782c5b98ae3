//! What a node of the default domain may look like: how many inputs and outputs, and the types of its attributes.
//!
//! Both are taken over all versions of an operator up to set 28 (the schemas of the `onnx` package, 1.23.2): what no version allows
//! is illegal. An operator that is not in the table may belong to a newer set, or to a runtime: nothing is said of it.

use crate::ir::Node;
use crate::pb::attribute_proto::AttributeType as T;
use anyhow::{Result, ensure};
use std::ops::RangeInclusive;

const MANY: usize = usize::MAX;

/// Inputs, outputs, and the operators that have so many. Inputs are counted to the last that is there.
#[rustfmt::skip]
const OPERATORS: &[(RangeInclusive<usize>, RangeInclusive<usize>, &[&str])] = &[
    (0..=0, 1..=1, &[
        "Constant", "RandomNormal", "RandomUniform", "SequenceEmpty",
    ]),
    (0..=1, 1..=1, &[
        "Optional", "OptionalHasElement",
    ]),
    (1..=1, 1..=1, &[
        "Abs", "Acos", "Acosh", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool", "Bernoulli",
        "BitCast", "BitwiseNot", "BlackmanWindow", "Cast", "Ceil", "Celu", "ConcatFromSequence", "ConstantOfShape",
        "Cos", "Cosh", "DepthToSpace", "Det", "Elu", "Erf", "Exp", "EyeLike", "Flatten", "Floor", "Gelu",
        "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "HammingWindow", "HannWindow", "HardSigmoid",
        "HardSwish", "Hardmax", "Identity", "ImageDecoder", "IsInf", "IsNaN", "LRN", "LeakyRelu", "Log", "LogSoftmax",
        "LpNormalization", "LpPool", "MeanVarianceNormalization", "Mish", "Multinomial", "Neg", "NonZero", "Not",
        "OptionalGetElement", "RandomNormalLike", "RandomUniformLike", "Reciprocal", "RegexFullMatch", "Relu",
        "Round", "Selu", "SequenceLength", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Softmax",
        "Softplus", "Softsign", "SpaceToDepth", "Sqrt", "StringNormalizer", "Swish", "Tan", "Tanh", "TfIdfVectorizer",
        "ThresholdedRelu", "Transpose",
    ]),
    (1..=1, 1..=2, &[
        "MaxPool",
    ]),
    (1..=1, 1..=4, &[
        "Unique",
    ]),
    (1..=1, 1..=MANY, &[
        "If",
    ]),
    (1..=1, 2..=2, &[
        "StringSplit",
    ]),
    (1..=1, 3..=3, &[
        "DynamicQuantizeLinear",
    ]),
    (1..=2, 1..=1, &[
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape", "SequenceErase", "SplitToSequence", "Squeeze",
        "Trilu", "Unsqueeze", "Upsample",
    ]),
    (1..=2, 1..=MANY, &[
        "Split",
    ]),
    (1..=2, 2..=2, &[
        "TopK",
    ]),
    (1..=3, 1..=1, &[
        "Clip", "DFT",
    ]),
    (1..=3, 1..=2, &[
        "Dropout",
    ]),
    (1..=4, 1..=1, &[
        "Pad", "Resize",
    ]),
    (1..=5, 1..=1, &[
        "Slice",
    ]),
    (1..=MANY, 1..=1, &[
        "Concat", "Einsum", "Max", "Mean", "Min", "SequenceConstruct", "Sum",
    ]),
    (1..=MANY, 1..=MANY, &[
        "Scan", "SequenceMap",
    ]),
    (2..=2, 1..=1, &[
        "Add", "AffineGrid", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "CastLike", "CenterCropPad",
        "Compress", "CumProd", "CumSum", "Div", "Equal", "Expand", "Gather", "GatherElements", "GatherND", "Greater",
        "GreaterOrEqual", "GridSample", "Less", "LessOrEqual", "MatMul", "MaxRoiPool", "Mod", "Mul", "Or", "PRelu",
        "Pow", "RMSNormalization", "ReverseSequence", "SequenceAt", "StringConcat", "Sub", "SwiGLU", "Xor",
    ]),
    (2..=3, 1..=1, &[
        "Conv", "ConvTranspose", "DequantizeLinear", "Gemm", "MaxUnpool", "NegativeLogLikelihoodLoss",
        "QuantizeLinear", "SequenceInsert", "TensorScatter", "Tile",
    ]),
    (2..=3, 1..=2, &[
        "SoftmaxCrossEntropyLoss",
    ]),
    (2..=3, 1..=3, &[
        "LayerNormalization",
    ]),
    (2..=4, 1..=1, &[
        "ConvInteger", "MatMulInteger", "STFT",
    ]),
    (2..=4, 2..=2, &[
        "CausalConvWithState",
    ]),
    (2..=5, 1..=1, &[
        "NonMaxSuppression",
    ]),
    (2..=MANY, 1..=MANY, &[
        "Loop",
    ]),
    (3..=3, 1..=1, &[
        "Col2Im", "GroupNormalization", "InstanceNormalization", "OneHot", "Range", "RoiAlign", "Scatter",
        "ScatterElements", "ScatterND", "Where",
    ]),
    (3..=4, 1..=1, &[
        "RotaryEmbedding",
    ]),
    (3..=5, 1..=1, &[
        "DeformConv",
    ]),
    (3..=6, 0..=2, &[
        "GRU", "RNN",
    ]),
    (3..=6, 2..=2, &[
        "LinearAttention",
    ]),
    (3..=7, 1..=4, &[
        "Attention",
    ]),
    (3..=8, 0..=3, &[
        "LSTM",
    ]),
    (5..=5, 1..=1, &[
        "MelWeightMatrix",
    ]),
    (5..=5, 1..=5, &[
        "BatchNormalization",
    ]),
    (8..=8, 1..=1, &[
        "QLinearMatMul",
    ]),
    (8..=9, 1..=1, &[
        "QLinearConv",
    ]),
];

/// The types that attributes of a name have.
#[rustfmt::skip]
const ATTRIBUTES: &[(&[T], &[&str])] = &[
    (&[T::Int], &[
        "align_corners", "allowzero", "antialias", "axis", "batch_axis", "batch_dims", "block_size", "blocksize",
        "broadcast", "ceil_mode", "center_point_box", "chunk_size", "count_include_pad", "detect_negative",
        "detect_positive", "dtype", "end", "exclude_outside", "exclusive", "fmod", "group", "hidden_size",
        "ignore_index", "input_forget", "interleaved", "inverse", "is_case_sensitive", "is_causal", "is_test", "k",
        "keepdims", "kv_num_heads", "largest", "layout", "left_window_size", "linear_before_reset", "max_gram_length",
        "max_skip_count", "maxsplit", "min_gram_length", "new_axis", "noop_with_empty_axes", "num_groups",
        "num_heads", "num_outputs", "num_scan_inputs", "offset_group", "onesided", "output_datatype", "output_dtype",
        "output_height", "output_sequence", "output_width", "periodic", "precision", "q_num_heads",
        "qk_matmul_output_mode", "reverse", "right_window_size", "rotary_embedding_dim", "sample_size",
        "sampling_ratio", "saturate", "select_last_index", "size", "softmax_precision", "sorted", "spatial", "start",
        "stash_type", "storage_order", "time_axis", "training_mode", "transA", "transB", "upper", "value_int",
    ]),
    (&[T::Float], &[
        "alpha", "beta", "bias", "clip", "cubic_coeff_a", "epsilon", "extrapolation_value", "gamma", "high", "lambd",
        "low", "max", "mean", "min", "momentum", "ratio", "scale", "softcap", "spatial_scale", "value_float",
    ]),
    (&[T::String], &[
        "activation", "approximate", "auto_pad", "case_change_action", "coordinate_transformation_mode", "delimiter",
        "direction", "equation", "keep_aspect_ratio_policy", "locale", "mode", "nearest_mode", "padding_mode",
        "pattern", "pixel_format", "reduction", "round_mode", "update_rule", "value_string",
    ]),
    (&[T::Graph], &[
        "body", "else_branch", "then_branch",
    ]),
    (&[T::TypeProto], &[
        "type",
    ]),
    (&[T::Int, T::String], &[
        "to",
    ]),
    (&[T::Ints], &[
        "axes", "consumed_inputs", "dilations", "directions", "ends", "kernel_shape", "ngram_counts", "ngram_indexes",
        "output_padding", "output_shape", "paddings", "pads", "perm", "pool_int64s", "pooled_shape",
        "scan_input_axes", "scan_input_directions", "scan_output_axes", "scan_output_directions", "shape", "split",
        "starts", "strides", "value_ints",
    ]),
    (&[T::Float, T::Int], &[
        "p", "seed",
    ]),
    (&[T::Float, T::Tensor], &[
        "value",
    ]),
    (&[T::SparseTensor], &[
        "sparse_value",
    ]),
    (&[T::Strings], &[
        "activations", "pool_strings", "stopwords", "value_strings",
    ]),
    (&[T::Floats], &[
        "activation_alpha", "activation_beta", "scales", "value_floats", "weights",
    ]),
];

/// Checks a node of the default domain that is no call of a function.
///
/// # Errors
/// Says what no version of the operator allows.
pub fn legal(node: &Node) -> Result<()> {
    let Some((inputs, outputs, _)) = OPERATORS
        .iter()
        .find(|(_, _, ops)| ops.contains(&node.op.name.as_str()))
    else {
        return Ok(());
    };
    let there = |all: &[Option<crate::ir::ValueId>]| all.iter().rposition(Option::is_some).map_or(0, |i| i + 1);
    for (what, count, allowed) in [
        ("inputs", there(node.inputs()), inputs),
        ("outputs", there(node.outputs()), outputs),
    ] {
        let range = match (*allowed.start(), *allowed.end()) {
            (a, b) if a == b => format!("{a}"),
            (a, MANY) => format!("at least {a}"),
            (a, b) => format!("{a} to {b}"),
        };
        ensure!(
            allowed.contains(&count),
            "it has {count} {what}, but {} takes {range}: the file is damaged, or was \
            edited by hand; export the model anew",
            node.op.name
        );
    }
    for a in &node.attrs {
        let Some((types, _)) = ATTRIBUTES.iter().find(|(_, names)| names.contains(&a.name())) else {
            continue;
        };
        // Files of IR version 1 do not say the type.
        let kind = a.proto.r#type();
        let fits = kind == T::Undefined || types.contains(&kind);
        ensure!(
            fits,
            "attribute {:?} is of type {}, but must be {}: export the model anew",
            a.name(),
            kind.as_str_name(),
            types[0].as_str_name()
        );
    }
    windows(node)
}

/// Operators that slide a window.
const WINDOWS: &[&str] = &[
    "AveragePool",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "LpPool",
    "MaxPool",
    "QLinearConv",
];

/// Sizes of windows are positive, and padding takes nothing away.
fn windows(node: &Node) -> Result<()> {
    if !WINDOWS.contains(&node.op.name.as_str()) {
        return Ok(());
    }
    for (name, least) in [("kernel_shape", 1), ("strides", 1), ("dilations", 1), ("pads", 0)] {
        let bad = node.ints(name).and_then(|x| x.iter().find(|x| **x < least));
        if let Some(x) = bad {
            anyhow::bail!("attribute {name:?} has {x}, but {least} is the least: export the model anew");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attr, Model};

    #[test]
    fn a_window_without_size_and_padding_that_takes_away_are_refused() {
        let conv = |name: &str, x: i64| {
            let mut m = Model::new(crate::pb::ModelProto::default());
            let (node, _) = m.add_node(
                m.main_id(),
                "n",
                "Conv",
                &[],
                &["y"],
                vec![Attr::ints(name, vec![x, 1])],
            );
            windows(m.node(node)).map_err(|e| format!("{e}"))
        };
        assert_eq!(conv("pads", 0), Ok(()));
        assert_eq!(conv("kernel_shape", 1), Ok(()));
        for (name, x) in [
            ("pads", -1_000_000_000),
            ("strides", 0),
            ("dilations", -1),
            ("kernel_shape", 0),
        ] {
            let e = conv(name, x).expect_err("refused");
            assert!(e.contains(name) && e.contains(&x.to_string()), "{e}");
        }
    }

    #[test]
    fn no_operator_and_no_attribute_is_listed_twice() {
        let mut ops: Vec<&str> = OPERATORS.iter().flat_map(|r| r.2).copied().collect();
        let mut names: Vec<&str> = ATTRIBUTES.iter().flat_map(|r| r.1).copied().collect();
        for all in [&mut ops, &mut names] {
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
        }
    }
}
