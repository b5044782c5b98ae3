//! What a runtime makes of Q/DQ pairs: data, not code. One [`Target`] for each runtime.
//!
//! The rows for ONNX Runtime were found by experiment with version 1.31.1: one graph for each operator, loaded with
//! `ORT_ENABLE_EXTENDED`, and the operators counted in the graph that it built. `Conv` fuses only when a Q follows; `Gemm`
//! and `MatMul` also give out floats (`QGemm`, `MatMulIntegerToFloat`); `Relu` and `Clip` do not fuse at all and must go.

use crate::ir::{Model, NodeId};

/// One operator that a target runs in integers.
#[derive(Debug)]
pub struct Runs {
    /// The operator.
    pub op: &'static str,
    /// The kernel needs no Q on its output: it may give out floats.
    pub free_output: bool,
    /// What the integer kernel saves per element of its output, in units of converting one element.
    pub gain: f64,
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

const fn runs(op: &'static str, gain: f64) -> Runs {
    Runs {
        op,
        free_output: false,
        gain,
        when: None,
    }
}

const fn if_so(op: &'static str, gain: f64, when: fn(&Model, NodeId) -> bool, why_not: &'static str) -> Runs {
    Runs {
        op,
        free_output: false,
        gain,
        when: Some((when, why_not)),
    }
}

const fn free(op: &'static str) -> Runs {
    Runs {
        op,
        free_output: true,
        gain: 4.0,
        when: None,
    }
}

/// What ONNX Runtime's GemmActivationFusion takes.
const GEMM_ACTIVATIONS: &[&str] = &[
    "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "HardSigmoid", "Selu", "Softplus", "Softsign", "ThresholdedRelu",
];

/// ONNX Runtime on a CPU.
pub const ORT: Target = Target {
    name: "ort",
    joins: &[("Gemm", GEMM_ACTIVATIONS)],
    runs: &[
        runs("Conv", 4.0),
        free("Gemm"),
        free("MatMul"),
        runs("Add", 0.6),
        runs("Mul", 0.6),
        runs("Concat", 0.6),
        runs("AveragePool", 0.6),
        runs("GlobalAveragePool", 0.6),
        runs("LeakyRelu", 0.6),
        runs("Sigmoid", 1.5),
        if_so("MaxPool", 0.6, one_output, "its Indices output is used"),
        runs("ReduceMax", 0.3),
        runs("Reshape", 0.05),
        runs("Flatten", 0.05),
        runs("Squeeze", 0.05),
        runs("Unsqueeze", 0.05),
        runs("Transpose", 0.5),
        runs("Expand", 0.3),
        runs("Tile", 0.3),
        runs("Slice", 0.3),
        runs("Split", 0.3),
        runs("Gather", 0.3),
        runs("GatherElements", 0.3),
        runs("DepthToSpace", 0.5),
        if_so("Resize", 0.5, is_nearest, "only Resize by nearest neighbour runs in integers"),
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

    /// The row of a node's operator, or why there is none.
    ///
    /// # Errors
    /// The reason, to be shown.
    pub fn row(&self, model: &Model, node: NodeId) -> Result<&'static Runs, String> {
        let op = &model.node(node).op;
        let found = self.runs.iter().find(|r| op.domain.is_empty() && r.op == op.name);
        let row = found.ok_or_else(|| format!("{} has no integer kernel for {}", self.name, op.name))?;
        match row.when {
            Some((holds, why)) if !holds(model, node) => Err(why.to_owned()),
            _ => Ok(row),
        }
    }
}

fn one_output(model: &Model, node: NodeId) -> bool {
    model.node(node).outputs().iter().skip(1).all(Option::is_none)
}

fn is_nearest(model: &Model, node: NodeId) -> bool {
    model.node(node).string("mode").unwrap_or("nearest") == "nearest"
}
