//! Operators of our own on f32, and where they take the place of tract's.

use super::depthwise::DepthWise;
use super::grid::Grid;
use super::phases::Windows;
use super::product::Product;
use super::softmax;
use super::tail::Tail;
use super::windows::Columns;
use super::winograd::Winograd;
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::nn::{GridSample, Softmax};
use tract_onnx::tract_hir::internal::*;

/// What makes one tensor of f32 of others, whose dimensions are known before.
pub trait Kernel: std::fmt::Debug + Clone + Eq + Send + Sync + 'static {
    /// What tract's plans call it.
    const NAME: &'static str;

    /// The dimensions of the result.
    fn shape(&self) -> &[usize];

    /// Writes the result, which is full of zeros.
    ///
    /// # Errors
    /// When there are not as many inputs as it takes.
    fn compute(&self, inputs: &[&[f32]], out: &mut [f32]) -> TractResult<()>;
}

/// A kernel as tract's plans hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held<K>(K);

impl<K: Kernel> Op for Held<K> {
    fn name(&self) -> StaticName {
        K::NAME.into()
    }
    op_as_typed_op!();
}

impl<K: Kernel> TypedOp for Held<K> {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(f32::fact(self.0.shape())))
    }
    as_op!();
}

impl<K: Kernel> EvalOp for Held<K> {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let inputs: Vec<_> = inputs
            .iter()
            .map(|t| t.try_as_plain_ram())
            .collect::<TractResult<_>>()?;
        let inputs: Vec<&[f32]> = inputs.iter().map(|t| t.as_slice::<f32>()).collect::<TractResult<_>>()?;
        let mut out = Tensor::zero::<f32>(self.0.shape())?;
        self.0
            .compute(&inputs, out.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?)?;
        Ok(tvec!(out.into_tvalue()))
    }
}

/// Puts kernels in the places of tract's convolutions, products, Softmax and GridSample where they are faster.
///
/// # Errors
/// When the model is not sound.
pub fn replace(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes().len() {
        if let Some(conv) = model.node(id).op_as::<Conv>() {
            replace_conv(model, id, &conv.clone())?;
        } else if let Some(einsum) = model.node(id).op_as::<EinSum>() {
            let node = model.node(id);
            let op = Product::of(einsum, &model.node_input_facts(id)?, &node.outputs[0].fact);
            if let Some(op) = op {
                let (op, last) = op.with_what_follows(model, id)?;
                put(model, &node.inputs.clone(), op, last)?;
            }
        } else if let Some(softmax) = model.node(id).op_as::<Softmax>() {
            let op = softmax::Columns::of(softmax, model.outlet_fact(model.node(id).inputs[0])?);
            put_alone(model, id, op)?;
        } else if let Some(sample) = model.node(id).op_as::<GridSample>() {
            let op = Grid::of(sample, &model.node_input_facts(id)?);
            put_alone(model, id, op)?;
        }
    }
    Ok(())
}

fn replace_conv(model: &mut TypedModel, id: usize, conv: &Conv) -> TractResult<()> {
    let node = model.node(id);
    let windows = Windows::of(conv, &model.node_input_facts(id)?, &node.outputs[0].fact);
    let Some((windows, shape)) = windows else {
        return Ok(());
    };
    let (tail, last) = Tail::behind(model, id)?;
    let inputs = node.inputs.clone();
    let filter = model.node(inputs[1].node).op_as::<Const>().map(|c| c.val().clone());
    if let Some(op) = DepthWise::of(conv, windows, tail, &shape) {
        return put(model, &inputs, op, last);
    }
    if let Some(filter) = filter
        && let Some(op) = Winograd::of(conv, &filter, (windows, tail), &shape)?
    {
        return put(model, &[inputs[0], inputs[2]], op, last);
    }
    match Columns::of(conv, windows, tail, &shape) {
        Some(op) => put(model, &inputs, op, last),
        None => Ok(()),
    }
}

/// Puts a kernel, if there is one, in the place of a node.
fn put_alone(model: &mut TypedModel, id: usize, kernel: Option<impl Kernel>) -> TractResult<()> {
    let inputs = model.node(id).inputs.clone();
    kernel.map_or(Ok(()), |kernel| put(model, &inputs, kernel, id))
}

/// Puts a kernel in the place of a node and of what is behind it, up to the last.
fn put(model: &mut TypedModel, inputs: &[OutletId], kernel: impl Kernel, last: usize) -> TractResult<()> {
    let mut patch = TypedModelPatch::default();
    let taps = patch.taps(model, inputs)?;
    let name = model.node(last).name.clone();
    let out = patch.wire_node(name, Held(kernel), &taps)?;
    patch.shunt_outside(model, last.into(), out[0])?;
    patch.apply(model)
}
