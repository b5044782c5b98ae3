//! Spells operators in the way that the target has an integer kernel for. Every rewrite is exact.
//!
//! * `ReduceMean` over all axes behind the channels, kept as axes of length 1 → `GlobalAveragePool`.

use crate::ir::{Model, NodeId, ValueId};

/// Rewrites what can be rewritten in the main graph, given in order of execution.
pub fn prepare(model: &mut Model, order: &[NodeId]) {
    for &node in order {
        if is_global_mean(model, node) == Some(true) {
            let input = model.node(node).input(0);
            model.set_inputs(node, vec![input]);
            let n = model.node_mut(node);
            n.attrs.clear();
            "GlobalAveragePool".clone_into(&mut n.op.name);
        }
    }
}

fn is_global_mean(model: &Model, node: NodeId) -> Option<bool> {
    let n = model.node(node);
    if !n.is("ReduceMean") || n.int_or("keepdims", 1) == 0 || n.has_attr_refs() {
        return None;
    }
    let axes = match n.input(1) {
        Some(_) => model.constant_input(node, 1)?.ints()?,
        None => n.ints("axes")?.to_vec(),
    };
    let rank = rank(model, n.input(0)?, 64)? as i64;
    let mut axes: Vec<i64> = axes.iter().map(|a| if *a < 0 { a + rank } else { *a }).collect();
    axes.sort_unstable();
    Some(rank >= 3 && axes == (2..rank).collect::<Vec<_>>())
}

/// The number of axes of a value, as far as it can be told from declarations and from convolutions before it.
fn rank(model: &Model, v: ValueId, steps: usize) -> Option<usize> {
    if let Some(crate::pb::type_proto::Value::TensorType(t)) = model.declared_type(v).and_then(|t| t.value.as_ref()) {
        if let Some(shape) = &t.shape {
            return Some(shape.dim.len());
        }
    }
    const KEEP: &[&str] = &["Relu", "Clip", "Add", "Mul", "BatchNormalization", "MaxPool", "AveragePool", "HardSwish", "Sigmoid"];
    let p = model.value(v).producer()?;
    let n = model.node(p);
    if n.is("Conv") {
        return Some(model.constant_input(p, 1)?.dims().len());
    }
    let same = KEEP.iter().any(|op| n.is(op)) && steps > 0;
    // Of an elementwise operator either operand could have more axes; one that is known not to be a constant decides.
    let data = n.inputs().iter().flatten().find(|v| model.constant(**v).is_none());
    let other = n.inputs().iter().flatten().filter_map(|v| model.constant(*v)).map(|t| t.dims().len()).max();
    let rank = if same { rank(model, *data?, steps - 1)? } else { return None };
    (other.unwrap_or(0) <= rank).then_some(rank)
}
