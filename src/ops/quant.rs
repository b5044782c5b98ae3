//! How operators take part in quantization: which inputs carry data, which are weights, and what becomes of the scale.
//!
//! `x ≈ s·(q − z)` turns an operator into an integer kernel in one of these ways:
//! * [`Role::Weighted`]: sums of products `Σ w·x + b`; the sum is an int32 with scale `s_x·s_w`, rescaled once.
//! * [`Role::Rescale`]: reads each input with its own scale and writes with a scale of its own.
//! * [`Role::Same`]: only moves or selects elements, so codes pass through untouched and the scale stays.
//! * [`Role::Clip`]: saturates; the saturation of the codes of its input does the same, when the range ends there.
//! * [`Role::Product`]: a product of two measured values.
//!
//! What a runtime makes of it is a matter of the target (`passes/int8/target.rs`), not of the operator.

use crate::ir::{Model, NodeId, ValueId};

/// What an operator does to the scales of its data.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Role {
    /// Products of a constant weight with the data at input 0, summed, plus an optional constant bias.
    Weighted {
        /// Input number of the weight.
        weight: usize,
        /// Input number of the bias.
        bias: Option<usize>,
    },
    /// Sums of products of two values, neither constant.
    Product,
    /// Each input has a scale of its own, and so has the output.
    Rescale,
    /// As `Rescale`; the output lies in this range whatever the input is.
    Fixed(f32, f32),
    /// Every output has the scale of input 0.
    Same,
    /// Saturates the input.
    Clip,
}

/// Which inputs carry data; the others are shapes, axes, indices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Data {
    First,
    All,
}

struct Row(&'static str, Role, Data);

const fn weighted(weight: usize, bias: Option<usize>) -> Role {
    Role::Weighted { weight, bias }
}

/// One row for each operator of the default domain. What is not here stays in floating point.
const TABLE: &[Row] = &[
    Row("Conv", weighted(1, Some(2)), Data::First),
    Row("ConvTranspose", weighted(1, Some(2)), Data::First),
    Row("Gemm", weighted(1, Some(2)), Data::First),
    Row("MatMul", weighted(1, None), Data::First),
    Row("Add", Role::Rescale, Data::All),
    Row("Sub", Role::Rescale, Data::All),
    Row("Mul", Role::Rescale, Data::All),
    Row("Div", Role::Rescale, Data::All),
    Row("Concat", Role::Rescale, Data::All),
    Row("AveragePool", Role::Rescale, Data::First),
    Row("GlobalAveragePool", Role::Rescale, Data::First),
    Row("ReduceMean", Role::Rescale, Data::First),
    Row("LeakyRelu", Role::Rescale, Data::First),
    Row("HardSwish", Role::Rescale, Data::First),
    Row("Sigmoid", Role::Fixed(0.0, 1.0), Data::First),
    Row("HardSigmoid", Role::Fixed(0.0, 1.0), Data::First),
    Row("Softmax", Role::Fixed(0.0, 1.0), Data::First),
    Row("Tanh", Role::Fixed(-1.0, 1.0), Data::First),
    Row("MaxPool", Role::Same, Data::First),
    Row("GlobalMaxPool", Role::Same, Data::First),
    Row("ReduceMax", Role::Same, Data::First),
    Row("ReduceMin", Role::Same, Data::First),
    Row("Reshape", Role::Same, Data::First),
    Row("Flatten", Role::Same, Data::First),
    Row("Transpose", Role::Same, Data::First),
    Row("Squeeze", Role::Same, Data::First),
    Row("Unsqueeze", Role::Same, Data::First),
    Row("Expand", Role::Same, Data::First),
    Row("Tile", Role::Same, Data::First),
    Row("Slice", Role::Same, Data::First),
    Row("Split", Role::Same, Data::First),
    Row("Gather", Role::Same, Data::First),
    Row("GatherElements", Role::Same, Data::First),
    Row("DepthToSpace", Role::Same, Data::First),
    Row("SpaceToDepth", Role::Same, Data::First),
    Row("Resize", Role::Same, Data::First),
    Row("Pad", Role::Same, Data::First),
    Row("Relu", Role::Clip, Data::First),
    Row("Clip", Role::Clip, Data::First),
];

fn row(model: &Model, node: NodeId) -> Option<&'static Row> {
    let op = &model.node(node).op;
    let row = TABLE.iter().find(|r| r.0 == op.name)?;
    op.domain.is_empty().then_some(row)
}

/// How the node takes part, given which of its inputs are constant; `None` when it has no integer form.
pub fn role(model: &Model, node: NodeId) -> Option<Role> {
    let role = row(model, node)?.1;
    let constant = |slot: usize| model.constant_input(node, slot).is_some();
    match role {
        Role::Weighted { weight, bias } => {
            let n = model.node(node);
            let data = n.input(0).is_some() && !constant(0);
            let late = bias.is_some_and(|b| n.input(b).is_some() && !constant(b));
            match (data, constant(weight), late) {
                (true, true, false) => Some(role),
                (true, false, false) if n.is("MatMul") => Some(Role::Product),
                _ => None,
            }
        }
        _ => Some(role),
    }
}

/// The input slots that carry data, and what stands there. A weight is not among them.
pub fn data_inputs(model: &Model, node: NodeId) -> Vec<(usize, ValueId)> {
    let inputs = model.node(node).inputs();
    let take = match (row(model, node), role(model, node)) {
        (None, _) => 0,
        (_, Some(Role::Product)) => 2,
        (Some(Row(_, _, Data::First)), _) => 1,
        (Some(Row(_, _, Data::All)), _) => inputs.len(),
    };
    let given = inputs.iter().take(take).enumerate();
    given.filter_map(|(slot, v)| Some((slot, (*v)?))).collect()
}

/// The limits of a `Relu` or `Clip`, when they are constants (opset 6 attributes or opset 11 inputs).
pub fn clip_limits(model: &Model, node: NodeId) -> Option<(f32, f32)> {
    let n = model.node(node);
    if n.is("Relu") {
        return Some((0.0, f32::INFINITY));
    }
    if !n.is("Clip") {
        return None;
    }
    let limit = |slot: usize, attr: &str, none: f32| -> Option<f32> {
        match n.input(slot) {
            Some(_) => model.constant_input(node, slot)?.to_f32()?.first().copied(),
            None => Some(n.float(attr).unwrap_or(none)),
        }
    };
    let low = limit(1, "min", f32::NEG_INFINITY)?;
    let high = limit(2, "max", f32::INFINITY)?;
    (low <= high).then_some((low, high))
}

/// True for operators whose presence says that a model is quantized already.
pub fn is_quantized_op(model: &Model, node: NodeId) -> bool {
    let name = model.node(node).op.name.as_str();
    const EXACT: &[&str] = &[
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "ConvInteger",
        "MatMulInteger",
    ];
    const NAMES: &[&str] = &[
        "QGemm",
        "QAttention",
        "MatMulNBits",
        "DynamicQuantizeLSTM",
        "MatMulIntegerToFloat",
    ];
    EXACT.contains(&name)
        || NAMES.contains(&name)
        || name.starts_with("QLinear")
        || name.starts_with("DynamicQuantizeMatMul")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_has_one_row() {
        for (i, r) in TABLE.iter().enumerate() {
            assert!(TABLE[..i].iter().all(|q| q.0 != r.0), "{} twice", r.0);
        }
    }
}
