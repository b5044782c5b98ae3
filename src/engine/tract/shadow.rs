//! Integer operators through the float values of their weights.
//!
//! * MatMulInteger with a constant matrix is a float product of `a − z_a` and `b − z_b`: whole numbers, of which f32 keeps sums below
//!   2²⁴ exactly and larger ones to 24 bits. tract's own is far slower.
//! * DynamicQuantizeLSTM is an LSTM with the same weights; that its activations are rounded to 8 bits inside is not seen.

use super::dequantize::codes;
use super::graph::{Flat, plain_node};
use crate::ir::{Attr, DType, Tensor};
use crate::pb;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;

/// The nodes that compute a MatMulInteger; `None` when its matrix is not constant, or a zero point is not a single number.
/// `scalars`: computed values that are known to be single numbers.
pub fn matmul_integer(
    n: &pb::NodeProto,
    flat: &mut Flat,
    scalars: &BTreeSet<String>,
) -> Result<Option<Vec<pb::NodeProto>>> {
    let input = |i: usize| n.input.get(i).filter(|v| !v.is_empty());
    let (Some(a), Some(b), Some(output)) = (input(0), input(1), n.output.first()) else {
        return Ok(None);
    };
    let Some(matrix) = flat.tensors.get(b) else {
        return Ok(None);
    };
    let single = |v: &String| scalars.contains(v) || flat.tensors.get(v).is_some_and(|t| t.len() == 1);
    if matrix.dims().len() != 2 || !input(2).is_none_or(single) {
        return Ok(None);
    }
    let columns = matrix.dims()[1];
    let zeros = match input(3) {
        None => vec![0.0],
        Some(z) => match flat.tensors.get(z).and_then(codes) {
            Some(z) if z.len() == 1 || z.len() == columns => z,
            _ => return Ok(None),
        },
    };
    let Some(mut values) = codes(matrix) else {
        return Ok(None);
    };
    for (i, x) in values.iter_mut().enumerate() {
        *x -= zeros[if zeros.len() == 1 { 0 } else { i % columns }];
    }
    let values = Tensor::new(matrix.dims(), values);
    let name = |what: &str| format!("{output}/{what}");
    flat.tensors.insert(name("matrix"), values);
    let cast = |from: &String, to: String, dtype: DType| {
        let mut c = plain_node("Cast", &to, vec![from.clone()], vec![to.clone()]);
        c.attribute = vec![Attr::int("to", dtype as i64).proto];
        c
    };
    let mut nodes = vec![cast(a, name("floats"), DType::Float)];
    let mut left = name("floats");
    if let Some(z) = input(2) {
        nodes.push(cast(z, name("zero"), DType::Float));
        nodes.push(plain_node(
            "Sub",
            &name("centred"),
            vec![left, name("zero")],
            vec![name("centred")],
        ));
        left = name("centred");
    }
    nodes.push(plain_node(
        "MatMul",
        &name("product"),
        vec![left, name("matrix")],
        vec![name("product")],
    ));
    nodes.push(cast(&name("product"), output.clone(), DType::Int32));
    Ok(Some(nodes))
}

/// The LSTM of a DynamicQuantizeLSTM; `None` when its weights are not constant.
pub fn lstm(n: &pb::NodeProto, flat: &mut Flat) -> Result<Option<pb::NodeProto>> {
    let mut node = n.clone();
    for (slot, parameters) in [(1, 8), (2, 10)] {
        let of = |i: usize| n.input.get(i).and_then(|v| flat.tensors.get(v));
        let (Some(w), Some(scale), Some(zero)) = (of(slot), of(parameters), of(parameters + 1)) else {
            return Ok(None);
        };
        let turned = turned(w, scale, zero)?;
        let name = format!("{}/weights", n.input[slot]);
        flat.tensors.insert(name.clone(), turned);
        node.input[slot] = name;
    }
    node.input.truncate(8);
    while node.input.last().is_some_and(String::is_empty) {
        node.input.pop();
    }
    node.op_type = Some("LSTM".into());
    node.domain = None;
    Ok(Some(node))
}

/// `[directions, gates, length]` floats of `[directions, length, gates]` codes; one scale for each direction, or each gate of each.
fn turned(w: &Tensor, scale: &Tensor, zero: &Tensor) -> Result<Tensor> {
    let &[directions, length, gates] = w.dims() else {
        anyhow::bail!("weights of {:?}", w.dims())
    };
    let (values, zeros) = (
        codes(w).context("integer weights")?,
        codes(zero).context("integer zero points")?,
    );
    let scales = scale.to_f32().context("float scales")?;
    let per_gate = scales.len() == directions * gates;
    ensure!(
        (per_gate || scales.len() == directions) && zeros.len() == scales.len(),
        "{} scales and {} zero points for {:?}",
        scales.len(),
        zeros.len(),
        w.dims()
    );
    let mut data = vec![0f32; values.len()];
    for (i, &q) in values.iter().enumerate() {
        let (gate, at, direction) = (i % gates, i / gates % length, i / gates / length);
        let p = if per_gate { direction * gates + gate } else { direction };
        data[(direction * gates + gate) * length + at] = (q - zeros[p]) * scales[p];
    }
    Ok(Tensor::new(&[directions, gates, length], data))
}
