//! What is done to every number of a product behind it: a bias, and the bounds of a `Relu` or `Clip`. An operator of its own reads and writes all
//! of them once more for that, in several times the time of the product where that is small.

use crate::math::vector::widest;
use tract_onnx::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_core::ops::math::{Add, Max, Min};
use tract_onnx::tract_hir::internal::*;

/// Between what numbers are held; NaN stays NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    low: f32,
    high: f32,
}

// Neither is NaN.
impl Eq for Bounds {}

impl Bounds {
    pub const NONE: Bounds = Bounds {
        low: f32::NEG_INFINITY,
        high: f32::INFINITY,
    };

    /// Those of the nodes behind one, and the last of them: at each, nobody but the next reads.
    pub fn behind(model: &TypedModel, mut node: usize) -> TractResult<(Bounds, usize)> {
        let mut bounds = Bounds::NONE;
        if let Some((next, low)) = uniform::<Max>(model, node)? {
            (bounds.low, node) = (low, next);
        }
        if let Some((next, high)) = uniform::<Min>(model, node)? {
            (bounds.high, node) = (high, next);
        }
        Ok((bounds, node))
    }

    /// A number between them.
    #[inline(always)]
    pub fn hold(self, x: f32) -> f32 {
        let x = if x < self.low { self.low } else { x };
        if x > self.high { self.high } else { x }
    }

    /// `x + bias` between them.
    pub fn hold_all(self, x: &mut [f32], bias: f32) {
        widest!(x.iter_mut().for_each(|x| *x = self.hold(*x + bias)));
    }

    /// `x + bias` between them, each with a bias of its own.
    pub fn hold_each(self, x: &mut [f32], bias: &[f32]) {
        widest!(x.iter_mut().zip(bias).for_each(|(x, bias)| *x = self.hold(*x + bias)));
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
    let outlet = OutletId::new(node, 0);
    let [next] = model.node(node).outputs[0].successors[..] else {
        return Ok(None);
    };
    let behind = model.node(next.node);
    let does = behind.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<T>());
    if !does || model.outputs.contains(&outlet) {
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

/// Puts an operator in the place of one and of what is behind it, up to the last.
///
/// # Errors
/// When the model is not sound.
pub fn put(model: &mut TypedModel, inputs: &[OutletId], op: impl TypedOp, last: usize) -> TractResult<()> {
    let mut patch = TypedModelPatch::default();
    let taps = patch.taps(model, inputs)?;
    let name = model.node(last).name.clone();
    let out = patch.wire_node(name, op, &taps)?;
    patch.shunt_outside(model, last.into(), out[0])?;
    patch.apply(model)
}
