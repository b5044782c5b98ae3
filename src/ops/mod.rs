//! What is known of operators. `match` on operator names happens only in this room.
//!
//! Each facet is a table of its own, so that an operator may be known to one pass and unknown to another; what is not in
//! a table is left alone by whoever asks.

mod claims;
pub mod cost;
pub mod fused;
pub mod half;
pub mod infer;
pub mod labels;
pub mod legal;
pub mod quant;
pub mod site;
pub mod ties;
pub mod types;

use crate::ir::Node;

/// Operators that give another result in every run.
const RANDOM: &[&str] = &[
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
];

/// True when a node gives another result in every run.
pub fn is_random(node: &Node) -> bool {
    node.op.domain.is_empty() && RANDOM.contains(&node.op.name.as_str())
}

/// Operators whose results approach a limit while their inputs grow.
const SATURATING: &[&str] = &["Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh"];

/// True when a node's results say little of inputs that are large.
pub fn saturates(node: &Node) -> bool {
    node.op.domain.is_empty() && SATURATING.contains(&node.op.name.as_str())
}

/// The dimensions of the result when two operands are broadcast against each other; `None` when they cannot be.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (1, d) | (d, 1) => Some(d),
            (x, y) => (x == y).then_some(x),
        })
        .collect()
}
