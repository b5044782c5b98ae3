//! Values of which only a part matters: what hard gates let through.
//!
//! `HardSigmoid` is constant where `α·x + β` is below 0 or above 1, and `x·HardSigmoid(x)`, the hard swish, is 0 in the first of
//! these. Codes for what lies beyond would be wasted: behind a convolution that is half of them and more.

use crate::ir::{Model, NodeId, Use, ValueId};

/// The ends beyond which nothing depends on `v` (below 0, above 0), where every reader is such a gate.
pub fn ends(model: &Model, v: ValueId) -> Option<(f32, f32)> {
    let reader = |u: &Use| match *u {
        Use::Node(n, _) => gate(model, n).or_else(|| gated(model, n, v)),
        Use::Output(..) => None,
    };
    let each = model.value(v).uses().iter().map(reader);
    let all = each.reduce(|a, b| a.zip(b).map(|(a, b)| (a.0.min(b.0), a.1.max(b.1))));
    all.flatten().filter(|(low, high)| *low < 0.0 && 0.0 < *high)
}

/// Whether what a node multiplies goes to a hard gate alone.
pub fn feeds_gate(model: &Model, node: NodeId) -> bool {
    let reader = model.node(node).output(0).and_then(|v| model.only_use(v));
    model.node(node).is("Mul") && reader.is_some_and(|(n, _)| model.node(n).is("HardSigmoid"))
}

/// The ends of what a gate tells apart.
fn gate(model: &Model, node: NodeId) -> Option<(f32, f32)> {
    let n = model.node(node);
    match n.op.name.as_str() {
        _ if !n.op.domain.is_empty() || n.has_attr_refs() => None,
        "HardSwish" => Some((-3.0, f32::INFINITY)),
        "HardSigmoid" => {
            let (alpha, beta) = (n.float("alpha").unwrap_or(0.2), n.float("beta").unwrap_or(0.5));
            (alpha > 0.0).then(|| (-beta / alpha, (1.0 - beta) / alpha))
        }
        _ => None,
    }
}

/// The ends of what matters of `v` to its product with its own gate.
fn gated(model: &Model, node: NodeId, v: ValueId) -> Option<(f32, f32)> {
    let n = model.node(node);
    let own = |slot| {
        let p = model.input_producer(node, slot)?;
        let opens = model.node(p).is("HardSigmoid") && model.node(p).input(0) == Some(v);
        opens.then(|| gate(model, p)).flatten()
    };
    let (low, _) = (0..2).find_map(own).filter(|_| n.is("Mul"))?;
    Some((low, f32::INFINITY))
}
