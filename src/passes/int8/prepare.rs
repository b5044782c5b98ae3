//! Spells operators in the way that the target has an integer kernel for. Every rewrite is exact.
//!
//! * `ReduceMean` over all axes behind the channels, kept as axes of length 1 → `GlobalAveragePool`.
//! * `AveragePool` whose one window is the whole map → `GlobalAveragePool`.

use crate::ir::{Model, NodeId};
use crate::ops::types::{Types, infer};
use anyhow::Result;

/// Rewrites what can be rewritten in the main graph, given in order of execution.
///
/// # Errors
/// When the model's dimensions contradict each other.
pub fn prepare(model: &mut Model, order: &[NodeId]) -> Result<()> {
    let types = infer(model)?;
    for &node in order {
        if is_global_mean(model, &types, node) == Some(true) || is_global_pool(model, &types, node) == Some(true) {
            let input = model.node(node).input(0);
            model.set_inputs(node, vec![input]);
            let n = model.node_mut(node);
            n.attrs.clear();
            "GlobalAveragePool".clone_into(&mut n.op.name);
        }
    }
    Ok(())
}

fn is_global_pool(model: &Model, types: &Types, node: NodeId) -> Option<bool> {
    let n = model.node(node);
    let kernel = n
        .ints("kernel_shape")
        .filter(|_| n.is("AveragePool") && !n.has_attr_refs())?;
    let plain = n.ints("pads").is_none_or(|p| p.iter().all(|&p| p == 0))
        && n.ints("dilations").is_none_or(|d| d.iter().all(|&d| d == 1))
        && matches!(n.string("auto_pad"), None | Some("" | "NOTSET" | "VALID"));
    let map = types.shape(n.input(0)?)?.get(2..)?;
    let whole = map.len() == kernel.len()
        && map
            .iter()
            .zip(kernel)
            .all(|(d, &k)| d.known() == usize::try_from(k).ok());
    Some(plain && whole)
}

fn is_global_mean(model: &Model, types: &Types, node: NodeId) -> Option<bool> {
    let n = model.node(node);
    if !n.is("ReduceMean") || n.int_or("keepdims", 1) == 0 || n.has_attr_refs() {
        return None;
    }
    let axes = match n.input(1) {
        Some(_) => model.constant_input(node, 1)?.ints()?,
        None => n.ints("axes")?.to_vec(),
    };
    let rank = types.rank(n.input(0)?)? as i64;
    let mut axes: Vec<i64> = axes.iter().map(|a| if *a < 0 { a + rank } else { *a }).collect();
    axes.sort_unstable();
    Some(rank >= 3 && axes == (2..rank).collect::<Vec<_>>())
}
