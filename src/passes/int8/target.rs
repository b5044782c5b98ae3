//! What a runtime makes of Q/DQ pairs: data, not code. One [`Target`] for each runtime.
//!
//! The rows for ONNX Runtime were found by experiment with version 1.31.1: one graph for each operator, loaded with
//! `ORT_ENABLE_EXTENDED`, and the operators counted in the graph that it built. `Conv` fuses only when a Q follows; `Gemm`
//! and `MatMul` also give out floats (`QGemm`, `MatMulIntegerToFloat`); `Relu` and `Clip` do not fuse at all and must go. `ConvTranspose` has no
//! integer kernel; a float weight of one between codes it stores in 8 bits itself, with one scale for all of it (since 1.21,
//! `WeightBiasQuantization`), so that it is better stored here.
//! The other rows are what the runtimes' documents ask for; they were not run here:
//! * TensorRT, "Explicit Quantization": int8 with zero point 0 on the inputs of operators with weights, their outputs and biases
//!   float, and of a residual Add only the branch that does not come straight from a Conv, so that Conv, Add and Relu fuse.
//! * OpenVINO, low precision transformations: u8 activations on the inputs of operators, biases float.
//! * QNN, the configuration of ONNX Runtime's execution provider: every operator between pairs, one scale per channel only
//!   for convolutions.

use super::time::{Kernel, each, read};
use crate::ir::{Model, NodeId};
use crate::math::affine::{Affine, IntKind};
use anyhow::Result;

/// One operator that a target runs in integers.
#[derive(Debug)]
pub struct Runs {
    /// The operator.
    pub op: &'static str,
    /// The kernel needs no Q on its output: it may give out floats.
    pub free_output: bool,
    /// How long it takes.
    pub kernel: Kernel,
    /// Beyond the operator: what else must hold, and what to say when it does not.
    pub when: Option<Condition>,
}

/// What must hold of a node, and what to say when it does not.
pub type Condition = (fn(&Model, NodeId) -> bool, &'static str);

/// A runtime, as far as Q/DQ pairs are concerned.
#[derive(Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// The codes of activations.
    pub codes: Codes,
    /// The codes of weights, unless the user says otherwise.
    pub weights: IntKind,
    /// Operators whose weights have one scale, not one for each output channel.
    pub per_tensor: &'static [&'static str],
    /// Biases are int32 with the scale of the products; else they stay float.
    pub int_bias: bool,
    /// Results are quantized where they are made, and clips that saturation replaces go; else values are quantized only for
    /// those who read them in integers.
    pub results: bool,
    /// Of an Add that one operator with a weight feeds alone, only the other operand is quantized.
    pub joins_add: bool,
    /// The time model tells how long its kernels take; else whatever can run in integers does.
    pub timed: bool,
    /// Operators on constants are run once, while it loads a model, so that weights can be stored in fewer bits.
    pub unpacks: bool,
    /// What it runs in integers.
    pub runs: &'static [Runs],
    /// Activations that a float convolution computes on the way, and an integer one does not: what each takes as a kernel of its own,
    /// in nanoseconds for each element.
    pub activations: &'static [(&'static str, f64)],
    /// Pairs that it joins in floating point before it looks for Q/DQ pairs: an operator, and what may follow it. Such an
    /// operator does not become an integer kernel that gives out floats.
    pub joins: &'static [(&'static str, &'static [&'static str])],
    /// So are a MatMul and an Add of a vector ([`super::addend`]).
    pub joins_vectors: bool,
}

/// The codes of activations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Codes {
    /// u8 with any zero point.
    U8,
    /// s8 with zero point 0.
    S8Symmetric,
}

impl Codes {
    /// Parameters for values in a range.
    ///
    /// # Errors
    /// When the range is not finite.
    pub fn cover(self, min: f32, max: f32) -> Result<Affine> {
        match self {
            Codes::U8 => Affine::asymmetric(min, max, IntKind::U8),
            Codes::S8Symmetric => Affine::symmetric(min.abs().max(max.abs()), IntKind::S8),
        }
    }
}

const fn runs(op: &'static str, kernel: Kernel) -> Runs {
    Runs {
        op,
        free_output: false,
        kernel,
        when: None,
    }
}

const fn if_so(op: &'static str, kernel: Kernel, when: fn(&Model, NodeId) -> bool, why_not: &'static str) -> Runs {
    Runs {
        when: Some((when, why_not)),
        ..runs(op, kernel)
    }
}

const fn free(op: &'static str, kernel: Kernel) -> Runs {
    Runs {
        free_output: true,
        ..runs(op, kernel)
    }
}

/// What ONNX Runtime's GemmActivationFusion takes.
const GEMM_ACTIVATIONS: &[&str] = &[
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "Elu",
    "HardSigmoid",
    "Selu",
    "Softplus",
    "Softsign",
    "ThresholdedRelu",
];

/// Of ONNX Runtime 1.32; 1.19 leaves `HardSwish` out.
const CONV_ACTIVATIONS: &[(&str, f64)] = &[
    ("LeakyRelu", 0.16),
    ("HardSigmoid", 0.17),
    ("HardSwish", HARD_SWISH),
    ("Sigmoid", 0.29),
    ("Tanh", 0.4),
];

/// `HardSigmoid` and `Mul`.
const HARD_SWISH: f64 = 0.33;

/// ONNX Runtime on a CPU.
pub const ORT: Target = Target {
    name: "ort",
    codes: Codes::U8,
    weights: IntKind::S8,
    per_tensor: &[],
    int_bias: true,
    results: true,
    joins_add: false,
    timed: true,
    unpacks: true,
    activations: CONV_ACTIVATIONS,
    joins: &[("Gemm", GEMM_ACTIVATIONS)],
    joins_vectors: true,
    runs: ORT_RUNS,
};

/// ONNX Runtime on an x86 CPU without VNNI, where the sum of two products saturates at 16 bits.
const ORT_AVX2: Target = Target {
    name: "ort-avx2",
    weights: IntKind::S7,
    ..ORT
};

/// What no rate is known of.
const fn untimed(op: &'static str) -> Runs {
    runs(op, each(0.0, 0.0))
}

/// As [`untimed`], and floats may come out.
const fn reads(op: &'static str) -> Runs {
    free(op, each(0.0, 0.0))
}

const TENSORRT: Target = Target {
    name: "tensorrt",
    codes: Codes::S8Symmetric,
    int_bias: false,
    results: false,
    joins_add: true,
    runs: &[
        reads("Conv"),
        reads("ConvTranspose"),
        reads("Gemm"),
        reads("MatMul"),
        reads("Add"),
        reads("MaxPool"),
        reads("AveragePool"),
        reads("GlobalAveragePool"),
    ],
    ..GENERIC
};

const OPENVINO: Target = Target {
    name: "openvino",
    int_bias: false,
    results: false,
    runs: &[
        reads("Conv"),
        reads("ConvTranspose"),
        reads("Gemm"),
        reads("MatMul"),
        reads("Add"),
        reads("Mul"),
        reads("Concat"),
        reads("MaxPool"),
        reads("AveragePool"),
        reads("GlobalAveragePool"),
        reads("Reshape"),
        reads("Flatten"),
        reads("Transpose"),
        reads("Split"),
    ],
    ..GENERIC
};

const QNN: Target = Target {
    name: "qnn",
    per_tensor: &["Gemm", "MatMul"],
    ..GENERIC
};

/// Pairs around everything that has an integer form, for runtimes that are not in the list.
const GENERIC: Target = Target {
    name: "generic",
    timed: false,
    unpacks: false,
    activations: &[],
    joins: &[],
    joins_vectors: false,
    runs: GENERIC_RUNS,
    ..ORT
};

const GENERIC_RUNS: &[Runs] = &[
    untimed("Conv"),
    untimed("ConvTranspose"),
    untimed("Gemm"),
    untimed("MatMul"),
    untimed("Add"),
    untimed("Sub"),
    untimed("Mul"),
    untimed("Div"),
    untimed("Concat"),
    untimed("AveragePool"),
    untimed("GlobalAveragePool"),
    untimed("LeakyRelu"),
    untimed("HardSwish"),
    untimed("Sigmoid"),
    untimed("HardSigmoid"),
    untimed("Softmax"),
    untimed("Tanh"),
    if_so("MaxPool", each(0.0, 0.0), one_output, "its Indices output is used"),
    untimed("ReduceMax"),
    untimed("Reshape"),
    untimed("Flatten"),
    untimed("Squeeze"),
    untimed("Unsqueeze"),
    untimed("Transpose"),
    untimed("Expand"),
    untimed("Tile"),
    untimed("Slice"),
    untimed("Split"),
    untimed("Gather"),
    untimed("GatherElements"),
    untimed("DepthToSpace"),
    if_so(
        "Resize",
        each(0.0, 0.0),
        is_nearest,
        "only Resize by nearest neighbour runs in integers",
    ),
];

const ORT_RUNS: &[Runs] = &[
    runs("Conv", Kernel::Conv),
    free("Gemm", Kernel::Product),
    free("MatMul", Kernel::Product),
    free("ConvTranspose", Kernel::Stored),
    runs("Add", each(0.16, 0.25)),
    runs("Mul", each(0.24, 0.35)),
    runs("Concat", each(0.25, 0.12)),
    runs("AveragePool", each(0.6, 10.0)),
    runs("GlobalAveragePool", read(0.15, 0.14)),
    runs("LeakyRelu", each(0.16, 0.6)),
    runs("Sigmoid", each(0.29, 0.64)),
    if_so("MaxPool", read(0.17, 0.22), one_output, "its Indices output is used"),
    runs("ReduceMax", read(0.3, 0.3)),
    runs("Reshape", each(0.05, 0.01)),
    runs("Flatten", each(0.05, 0.01)),
    runs("Squeeze", each(0.05, 0.01)),
    runs("Unsqueeze", each(0.05, 0.01)),
    runs("Transpose", each(0.3, 0.1)),
    runs("Expand", each(0.3, 0.1)),
    runs("Tile", each(0.3, 0.1)),
    if_so("Slice", each(0.15, 0.1), |m, n| !has_steps(m, n, |_| true), ""),
    if_so("Slice", each(1.2, 1.2), |m, n| !has_steps(m, n, |axis| axis == 1), ""),
    runs("Slice", each(1.2, 5.4)),
    runs("Split", each(0.15, 0.1)),
    runs("Gather", each(0.3, 0.2)),
    runs("GatherElements", each(0.3, 0.2)),
    runs("DepthToSpace", each(0.3, 0.2)),
    if_so(
        "Resize",
        each(1.3, 5.0),
        is_nearest,
        "only Resize by nearest neighbour runs in integers",
    ),
];

/// Every target.
pub const ALL: &[&Target] = &[&ORT, &ORT_AVX2, &OPENVINO, &QNN, &TENSORRT, &GENERIC];

/// Their names, as the option spells them; a test compares.
pub const NAMES: &str = "ort|ort-avx2|openvino|qnn|tensorrt|generic";

impl Target {
    /// Whether an operator is joined with the node behind it in floating point.
    pub fn swallows(&self, op: &str, model: &Model, next: NodeId) -> bool {
        let mut rows = self.joins.iter().filter(|j| j.0 == op);
        rows.any(|j| j.1.iter().any(|n| model.node(next).is(n)))
    }

    /// The first row of a node's operator that fits, or why there is none.
    ///
    /// # Errors
    /// The reason, to be shown.
    pub fn row(&self, model: &Model, node: NodeId) -> Result<&'static Runs, String> {
        let op = &model.node(node).op;
        let mut why_not = format!("{} has no integer kernel for {}", self.name, op.name);
        for row in self.runs.iter().filter(|r| op.domain.is_empty() && r.op == op.name) {
            match row.when {
                Some((holds, why)) if !holds(model, node) => why_not = why.to_owned(),
                _ => return Ok(row),
            }
        }
        Err(why_not)
    }
}

fn one_output(model: &Model, node: NodeId) -> bool {
    model.node(node).outputs().iter().skip(1).all(Option::is_none)
}

/// True when a Slice leaves elements out between those that it takes, along one of some axes. ONNX Runtime keeps channels last
/// between integer convolutions, where steps over channels are single bytes.
fn has_steps(model: &Model, node: NodeId, axes: fn(i64) -> bool) -> bool {
    let n = model.node(node);
    if n.input(4).is_none() {
        return false;
    }
    let given = |slot| model.constant_input(node, slot).and_then(|t| t.ints());
    let Some(steps) = given(4) else { return true };
    let along = given(3).unwrap_or_else(|| (0..steps.len() as i64).collect());
    steps.iter().zip(along).any(|(&step, axis)| step != 1 && axes(axis))
}

fn is_nearest(model: &Model, node: NodeId) -> bool {
    model.node(node).string("mode").unwrap_or("nearest") == "nearest"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_lists_every_target() {
        let names: Vec<&str> = ALL.iter().map(|t| t.name).collect();
        assert_eq!(names.join("|"), NAMES);
    }

    #[test]
    fn symmetric_codes_have_their_zero_in_the_middle() {
        let s8 = Codes::S8Symmetric.cover(-1.0, 3.0).expect("finite");
        assert_eq!((s8.zero_point, s8.quantize(3.0), s8.quantize(-3.0)), (0, 127, -127));
        let u8 = Codes::U8.cover(0.0, 3.0).expect("finite");
        assert_eq!((u8.zero_point, u8.quantize(3.0)), (0, 255));
    }
}
