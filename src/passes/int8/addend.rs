//! Vectors that are added behind products with a matrix.
//!
//! ONNX Runtime joins a MatMul and an Add of a vector before it looks for Q/DQ pairs; where the rank is not 2 and it knows all dimensions, it makes
//! Reshape, Gemm and Reshape of them (seen with 1.32), whose pairs fuse no more: the weight becomes floats again in each run. A MiniLM with fixed
//! dimensions took 2.0 times as long as in floating point, instead of 0.48. A row `[1, n]` adds the same as the vector, and is left alone there.
//! Behind a product of a vector it would not do, since it has one axis more: such a product has to give out codes.

use super::emit::Emitter;
use super::units::Unit;
use crate::ir::{Model, NodeId};
use crate::ops::types::Types;

/// Finds the vector behind a unit that may give out floats.
pub fn look(model: &Model, types: &Types, unit: &mut Unit) {
    if !unit.free_output || !model.node(unit.node).is("MatMul") {
        return;
    }
    let rank = unit.inputs.first().and_then(|(_, v)| types.rank(*v));
    match (vector(model, unit), rank) {
        (Some(_), Some(1)) => unit.free_output = false,
        (Some(at), Some(3..)) => unit.addend = Some(at),
        _ => {}
    }
}

/// The Add, and the slot of the vector.
fn vector(model: &Model, unit: &Unit) -> Option<(NodeId, usize)> {
    let (add, slot) = model.only_use(*unit.results.first()?)?;
    let other = 1 - slot.min(1);
    let is_vector = model.constant_input(add, other)?.dims().len() == 1;
    (model.node(add).is("Add") && is_vector).then_some((add, other))
}

/// Makes a row of it.
pub fn set_apart(emitter: &mut Emitter, (add, slot): (NodeId, usize)) {
    let model = &*emitter.model;
    let vector = model.node(add).input(slot).and_then(|v| Some((v, model.constant(v)?)));
    if let Some((v, t)) = vector {
        let (name, row) = (model.value(v).name.clone(), t.with_dims(&[1, t.len()]));
        emitter.put(add, slot, name, row);
    }
}
