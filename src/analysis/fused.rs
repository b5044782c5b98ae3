//! Operators of ONNX Runtime's own, and such as ONNX has dropped, spelled out in a whole model ([`crate::ops::fused`]).

use crate::ir::{Model, NodeId};
use crate::ops::fused::{is_fused, spell_out as one};
use crate::ops::types::infer;
use anyhow::Result;

/// Spells out what can be, and gives the nodes, which bear the names and outputs that they had, with what they were.
///
/// # Errors
/// When the model's dimensions contradict each other.
pub fn spell_out(model: &mut Model) -> Result<Vec<(NodeId, String)>> {
    let nodes = model.node_ids().into_iter().filter(|id| is_fused(model, *id));
    let name = |id: NodeId| {
        let op = &model.node(id).op;
        let dot = if op.domain.is_empty() { "" } else { "." };
        format!("{}{dot}{}", op.domain, op.name)
    };
    let all: Vec<(NodeId, String)> = nodes.map(|id| (id, name(id))).collect();
    if all.is_empty() {
        return Ok(all);
    }
    let types = infer(model)?;
    Ok(all
        .into_iter()
        .filter(|(id, _)| one(model, *id, &types).is_some())
        .collect())
}
