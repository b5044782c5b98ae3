//! Nodes that no version of ONNX allows: a file with one is damaged, and no runtime would run it.

use crate::ir::Model;
use crate::ops::legal::legal;
use crate::ops::types::{function_of, functions};
use anyhow::{Context, Result};

/// Checks every node of the default domain, in sub-graphs and functions too.
///
/// # Errors
/// Names the node, and what is wrong with it.
pub fn check(model: &Model) -> Result<()> {
    let functions = functions(model);
    for (id, node) in model.nodes() {
        if node.op.domain.is_empty() && function_of(&functions, node).is_none() {
            legal(node).with_context(|| format!("node {:?} ({})", model.label(id), node.op.name))?;
        }
    }
    Ok(())
}
