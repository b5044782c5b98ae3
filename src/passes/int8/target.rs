//! What a runtime makes of Q/DQ pairs: data, not code. One [`Target`] for each runtime.
//!
//! The rows for ONNX Runtime were found by experiment with version 1.31.1: one graph for each operator, loaded with
//! `ORT_ENABLE_EXTENDED`, and the operators counted in the graph that it built. `Conv` fuses only when a Q follows; `Gemm`
//! and `MatMul` also give out floats (`QGemm`, `MatMulIntegerToFloat`); `Relu` and `Clip` do not fuse at all and must go.

use super::time::{Kernel, each, read};
use crate::ir::{Model, NodeId};

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
    /// What it runs in integers.
    pub runs: &'static [Runs],
    /// Pairs that it joins in floating point before it looks for Q/DQ pairs: an operator, and what may follow it. Such an
    /// operator does not become an integer kernel that gives out floats.
    pub joins: &'static [(&'static str, &'static [&'static str])],
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
        op,
        free_output: false,
        kernel,
        when: Some((when, why_not)),
    }
}

const fn free(op: &'static str, kernel: Kernel) -> Runs {
    Runs {
        op,
        free_output: true,
        kernel,
        when: None,
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

/// ONNX Runtime on a CPU.
pub const ORT: Target = Target {
    name: "ort",
    joins: &[("Gemm", GEMM_ACTIVATIONS)],
    runs: &[
        runs("Conv", Kernel::Conv),
        free("Gemm", Kernel::Product),
        free("MatMul", Kernel::Product),
        runs("Add", each(0.4, 0.23)),
        runs("Mul", each(0.4, 0.36)),
        runs("Concat", each(0.4, 0.1)),
        runs("AveragePool", read(0.3, 3.2)),
        runs("GlobalAveragePool", read(0.12, 0.08)),
        runs("LeakyRelu", each(0.3, 0.37)),
        runs("Sigmoid", each(0.5, 0.5)),
        if_so("MaxPool", read(0.5, 0.9), one_output, "its Indices output is used"),
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
    ],
};

/// Every target.
pub const ALL: &[&Target] = &[&ORT];

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
