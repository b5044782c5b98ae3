//! What is done to every number of a product behind it: a bias, the bounds of a `Relu` or `Clip`, the steps of a quantization. An operator of its
//! own reads and writes all of them once more for each, and takes as long as the product where that is small.

use super::ops::Steps;
use crate::math::vector::widest;
use tract_onnx::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_core::ops::math::{Add, Max, Min};
use tract_onnx::tract_hir::internal::*;

/// Bounds, and then perhaps steps of a quantization.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tail {
    low: f32,
    high: f32,
    steps: Option<Steps>,
}

// No bound is NaN; a scale may be, in a broken file, and then two are never taken for the same.
impl Eq for Tail {}

impl Tail {
    pub const NONE: Tail = Tail {
        low: f32::NEG_INFINITY,
        high: f32::INFINITY,
        steps: None,
    };

    /// That of the nodes behind one, and the last of them: at each, nobody but the next reads.
    ///
    /// # Errors
    /// When the model is not sound.
    pub fn behind(model: &TypedModel, mut node: usize) -> TractResult<(Tail, usize)> {
        let mut tail = Tail::NONE;
        if let Some((next, low)) = uniform::<Max>(model, node)? {
            (tail.low, node) = (low, next);
        }
        if let Some((next, high)) = uniform::<Min>(model, node)? {
            (tail.high, node) = (high, next);
        }
        if let Some(next) = only_reader(model, node).filter(|next| next.slot == 0) {
            tail.steps = Steps::of(model.node(next.node), &model.node_input_facts(next.node)?)?;
            node = tail.steps.map_or(node, |_| next.node);
        }
        Ok((tail, node))
    }

    /// What becomes of a number; NaN stays NaN unless it is quantized.
    #[inline(always)]
    pub fn of(self, x: f32) -> f32 {
        let x = if x < self.low { self.low } else { x };
        let x = if x > self.high { self.high } else { x };
        self.steps.map_or(x, |steps| steps.nearest(x))
    }

    /// What becomes of `x + bias`.
    pub fn of_all(self, x: &mut [f32], bias: f32) {
        widest!(x.iter_mut().for_each(|x| *x = self.of(*x + bias)));
    }

    /// What becomes of `x + bias`, each with a bias of its own.
    pub fn of_each(self, x: &mut [f32], bias: &[f32]) {
        widest!(x.iter_mut().zip(bias).for_each(|(x, bias)| *x = self.of(*x + bias)));
    }
}

/// The constant that is added behind a node, and the node that does it.
///
/// # Errors
/// When the model is not sound.
pub fn bias(model: &TypedModel, node: usize) -> TractResult<Option<(usize, Arc<Tensor>)>> {
    with_constant::<Add>(model, node)
}

fn uniform<T: BinMiniOp>(model: &TypedModel, node: usize) -> TractResult<Option<(usize, f32)>> {
    let Some((next, constant)) = with_constant::<T>(model, node)? else {
        return Ok(None);
    };
    let value = constant.as_uniform().map(|t| t.cast_to_scalar::<f32>()).transpose()?;
    Ok(value.filter(|x| !x.is_nan()).map(|x| (next, x)))
}

/// The one node behind, when it does this with a constant of f32, and what it makes has the same dimensions.
fn with_constant<T: BinMiniOp>(model: &TypedModel, node: usize) -> TractResult<Option<(usize, Arc<Tensor>)>> {
    let Some(next) = only_reader(model, node) else {
        return Ok(None);
    };
    let behind = model.node(next.node);
    if !behind.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<T>()) {
        return Ok(None);
    }
    let (before, after) = (&model.node(node).outputs[0].fact, &behind.outputs[0].fact);
    let other = model.outlet_fact(behind.inputs[1 - next.slot])?;
    let same = before.shape == after.shape && before.datum_type == after.datum_type;
    let constant = other
        .konst
        .clone()
        .filter(|c| same && c.datum_type() == f32::datum_type());
    Ok(constant.map(|c| (next.node, c)))
}

/// What alone reads the result of a node.
fn only_reader(model: &TypedModel, node: usize) -> Option<InletId> {
    match model.node(node).outputs[0].successors[..] {
        [next] if !model.outputs.contains(&node.into()) => Some(next),
        _ => None,
    }
}
