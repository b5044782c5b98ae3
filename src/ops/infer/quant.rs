//! Quantization: Q/DQ, and ONNX Runtime's integer forms of layers.

use super::call::Call;
use super::fact::Fact;
use super::{Infer, Table, concat, pool};
use crate::ir::DType;
use anyhow::Result;

pub(super) const TABLE: Table = &[
    ("DequantizeLinear", dequantize),
    ("DynamicQuantizeLinear", dynamic),
    ("QuantizeLinear", quantize),
];

pub(super) const MICROSOFT: Table = &[
    ("DequantizeLinear", dequantize),
    ("QLinearAdd", binary),
    ("QLinearAveragePool", |c| pooled(c, pool::pool)),
    ("QLinearConcat", |c| {
        Ok(vec![concat::concat(c, (2..c.inputs.len()).step_by(3))?])
    }),
    ("QLinearGlobalAveragePool", |c| pooled(c, pool::global)),
    ("QLinearLeakyRelu", |c| Ok(vec![c.like(0)])),
    ("QLinearMul", binary),
    ("QLinearSigmoid", |c| Ok(vec![c.like(0)])),
    ("QLinearSoftmax", |c| Ok(vec![c.like(0)])),
    ("QuantizeLinear", quantize),
];

/// The type of the zero point, or `output_dtype` (opset 21), or `uint8`.
fn quantize(c: &Call) -> Result<Vec<Fact>> {
    let dtype = match c.fact(2) {
        Some(zero) => zero.dtype,
        None => Some(c.type_attr("output_dtype").unwrap_or(DType::Uint8)),
    };
    Ok(vec![c.shaped(dtype, 0)])
}

/// The type of the scale (`float` before opset 19), or `output_dtype` (opset 23).
fn dequantize(c: &Call) -> Result<Vec<Fact>> {
    Ok(vec![c.shaped(c.type_attr("output_dtype").or(c.dtype(1)), 0)])
}

fn dynamic(c: &Call) -> Result<Vec<Fact>> {
    let u8s = Some(DType::Uint8);
    Ok(vec![
        c.shaped(u8s, 0),
        Fact::of(DType::Float, &[]),
        Fact::of(DType::Uint8, &[]),
    ])
}

/// A, A_scale, A_zero, B, …: broadcast.
fn binary(c: &Call) -> Result<Vec<Fact>> {
    Ok(vec![Fact::new(c.dtype(0), c.broadcast([0, 3])?)])
}

/// X, X_scale, X_zero, Y_scale, Y_zero. With `channels_last` the axes are others, and nothing is said.
fn pooled(c: &Call, rule: Infer) -> Result<Vec<Fact>> {
    let shape = match c.int_or("channels_last", 0) {
        0 => rule(c)?.into_iter().next().and_then(|f| f.shape),
        _ => None,
    };
    Ok(vec![Fact::new(c.dtype(0), shape)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{f, facts, typed};
    use crate::ir::{Attr, DType};

    #[test]
    fn the_zero_point_gives_the_type() {
        let q = |attrs: Vec<Attr>, x: &[super::Fact]| facts("QuantizeLinear", 21, attrs, x).expect("fits")[0].clone();
        assert_eq!(
            q(vec![], &[f("N, 3"), f(""), typed(DType::Int8, "")]),
            typed(DType::Int8, "N, 3")
        );
        assert_eq!(q(vec![], &[f("N, 3"), f("")]), typed(DType::Uint8, "N, 3"));
        let asked = vec![Attr::int("output_dtype", DType::Int16 as i64)];
        assert_eq!(q(asked, &[f("N, 3"), f("")]), typed(DType::Int16, "N, 3"));
        let back = facts("DequantizeLinear", 13, vec![], &[typed(DType::Int8, "N, 3"), f("")]);
        assert_eq!(back.expect("fits")[0], f("N, 3"));
    }
}
