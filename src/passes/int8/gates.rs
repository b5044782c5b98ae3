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
    model.node(node).is("Mul") && only_reader(model, node).is_some_and(|n| model.node(n).is("HardSigmoid"))
}

/// Whether a node is a part of a Gelu that is spelled out, `x·(1 + f(…))·½` with `f` Erf or Tanh: runtimes make one float kernel of all of
/// it, as long as no codes come between (and codes for `1 + f`, and the products of it, would be coarse).
pub fn in_gelu(model: &Model, node: NodeId) -> bool {
    /// So many sums and products at most stand before `f` (of Tanh: `(x + c·x·x·x)·k`).
    const BEFORE: usize = 5;
    let ahead = |n: NodeId| only_reader(model, n);
    let on = |n: &NodeId| ahead(*n).filter(|_| is_sum_or_product(model, *n));
    let mut way = std::iter::successors(Some(node), on).skip(1).take(BEFORE);
    if way.any(|n| opens_gelu(model, n)) {
        return true;
    }
    let makers = |n: NodeId| (0..2).filter_map(move |slot| model.input_producer(n, slot));
    let multiplies = |n: NodeId| model.node(n).is("Mul") && makers(n).any(|p| lifts_gelu(model, p));
    lifts_gelu(model, node)
        || multiplies(node)
        // The ½, behind the product or before it.
        || model.node(node).is("Mul") && has_number(model, node) && (makers(node).any(multiplies) || ahead(node).is_some_and(multiplies))
}

fn is_sum_or_product(model: &Model, node: NodeId) -> bool {
    ["Add", "Mul", "Div"].iter().any(|op| model.node(node).is(op))
}

/// A single number among the inputs.
fn has_number(model: &Model, node: NodeId) -> bool {
    let mut inputs = model.node(node).inputs().iter().flatten();
    inputs.any(|v| model.constant(*v).is_some_and(|t| t.len() == 1))
}

/// The node that alone reads what a node gives out.
fn only_reader(model: &Model, node: NodeId) -> Option<NodeId> {
    let (reader, _) = model.node(node).output(0).and_then(|v| model.only_use(v))?;
    Some(reader)
}

/// A function that may be `f`.
fn bends(model: &Model, node: NodeId) -> bool {
    model.node(node).is("Erf") || model.node(node).is("Tanh")
}

/// `f`, to which 1 is added.
fn opens_gelu(model: &Model, node: NodeId) -> bool {
    bends(model, node) && only_reader(model, node).is_some_and(|add| lifts_gelu(model, add))
}

/// `1 + f`.
fn lifts_gelu(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    let one = |v: &ValueId| model.constant(*v).and_then(|t| t.floats().map(|f| *f == [1.0]));
    let bent = |slot| model.input_producer(node, slot).is_some_and(|p| bends(model, p));
    n.is("Add") && n.inputs().iter().flatten().any(|v| one(v) == Some(true)) && (0..2).any(bent)
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
