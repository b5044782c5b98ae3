//! Quantized weights and quantization steps, said in a way that tract runs right and fast.
//!
//! * DequantizeLinear of a constant, or of what is computed from constants (`packed`), is replaced by its float values: any integer type down
//!   to 2 bits, per tensor, axis or block. They are the same numbers that a runtime computes from them.
//! * MatMulInteger with a constant matrix and DynamicQuantizeLSTM become float operators (`shadow`).
//! * MatMulNBits becomes a MatMul with the float values of its weight (`nbits`).
//! * QuantizeLinear followed by DequantizeLinear of the same parameters becomes one operator ([`ops::FAKE`]); others go to
//!   operators of our own.

use super::graph::{Flat, label};
use super::{nbits, ops, packed, shadow};
use crate::ir::{DType, Tensor};
use crate::pb;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeSet, HashMap};

/// Rewrites the main graph.
pub fn rewrite(flat: &mut Flat) -> Result<()> {
    packed::compute(flat);
    let nodes = std::mem::take(&mut flat.graph.node);
    let mut kept: Vec<pb::NodeProto> = Vec::with_capacity(nodes.len());
    let mut quantized: HashMap<String, pb::NodeProto> = HashMap::new();
    let mut scalars = BTreeSet::new();
    for mut n in nodes {
        match n.op_type() {
            "QuantizeLinear" if known_domain(&n) => {
                if let Some(out) = n.output.first() {
                    quantized.insert(out.clone(), n.clone());
                }
                own_quantize(&mut n, flat);
            }
            "DequantizeLinear" if known_domain(&n) => {
                if let Some(t) = folded(&n, flat).with_context(|| label(&n))? {
                    flat.tensors.insert(n.output[0].clone(), t);
                    continue;
                }
                let source = n.input.first().and_then(|v| quantized.get(v));
                match source.and_then(|q| fused(q, &n, flat)) {
                    Some(f) => n = f,
                    None if int_attr(&n, "block_size", 0) == 0 => n.op_type = Some(ops::DEQUANTIZE.into()),
                    None => {}
                }
                n.domain = None;
            }
            "DynamicQuantizeLinear" if default_domain(&n) => scalars.extend(n.output.iter().skip(1).cloned()),
            "MatMulInteger" if default_domain(&n) => {
                if let Some(plain) = shadow::matmul_integer(&n, flat, &scalars).with_context(|| label(&n))? {
                    kept.extend(plain);
                    continue;
                }
            }
            "DynamicQuantizeLSTM" if n.domain() == "com.microsoft" => {
                if let Some(plain) = shadow::lstm(&n, flat).with_context(|| label(&n))? {
                    n = plain;
                }
            }
            "MatMulNBits" if n.domain() == "com.microsoft" => {
                if let Some(plain) = nbits::rewrite(&n, flat).with_context(|| label(&n))? {
                    kept.extend(plain);
                    continue;
                }
            }
            _ => {}
        }
        kept.push(n);
    }
    flat.graph.node = kept;
    flat.prune();
    Ok(())
}

fn known_domain(n: &pb::NodeProto) -> bool {
    (default_domain(n) || n.domain() == "com.microsoft") && n.output.len() == 1
}

/// Whether an operator is one of ONNX itself.
pub fn default_domain(n: &pb::NodeProto) -> bool {
    matches!(n.domain(), "" | "ai.onnx")
}

/// An attribute that is a whole number.
pub fn int_attr(n: &pb::NodeProto, name: &str, default: i64) -> i64 {
    let a = n.attribute.iter().find(|a| a.name() == name);
    a.and_then(|a| a.i).unwrap_or(default)
}

/// The integer type that a QuantizeLinear makes, when it is known.
fn quantized_type(q: &pb::NodeProto, flat: &Flat) -> Option<DType> {
    match q.input.get(2).filter(|z| !z.is_empty()) {
        Some(z) => flat.tensors.get(z).map(Tensor::dtype),
        None => match int_attr(q, "output_dtype", 0) {
            0 => Some(DType::Uint8),
            code => DType::try_from(i32::try_from(code).ok()?).ok(),
        },
    }
}

fn own_quantize(n: &mut pb::NodeProto, flat: &Flat) {
    let code = match quantized_type(n, flat) {
        Some(d @ (DType::Uint8 | DType::Int8 | DType::Uint16 | DType::Int16)) => d as i64,
        _ => return,
    };
    if int_attr(n, "block_size", 0) != 0 {
        return;
    }
    let axis = int_attr(n, "axis", 1);
    n.op_type = Some(ops::QUANTIZE.into());
    n.domain = None;
    n.attribute = vec![int("code", code), int("axis", axis)];
}

fn int(name: &str, i: i64) -> pb::AttributeProto {
    crate::ir::Attr::int(name, i).proto
}

/// One node for a pair with the same parameters.
fn fused(q: &pb::NodeProto, d: &pb::NodeProto, flat: &mut Flat) -> Option<pb::NodeProto> {
    let input = |n: &pb::NodeProto, i: usize| n.input.get(i).filter(|v| !v.is_empty()).cloned();
    let same = |i: usize| match (input(q, i), input(d, i)) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            let data = |v: &String| flat.tensors.get(v);
            a == b || matches!((data(&a), data(&b)), (Some(x), Some(y)) if x.same_data(y))
        }
        _ => false,
    };
    let axis = int_attr(q, "axis", 1);
    let blocks = int_attr(q, "block_size", 0) != 0 || int_attr(d, "block_size", 0) != 0;
    if !same(1) || !same(2) || axis != int_attr(d, "axis", 1) || blocks {
        return None;
    }
    let (lo, hi) = match quantized_type(q, flat)? {
        DType::Uint8 => (0, 255),
        DType::Int8 => (-128, 127),
        DType::Uint16 => (0, 65535),
        DType::Int16 => (-32768, 32767),
        DType::Uint4 => (0, 15),
        DType::Int4 => (-8, 7),
        _ => return None,
    };
    let mut inputs = vec![input(q, 0)?, input(q, 1)?];
    if let Some(z) = input(q, 2) {
        let zero = codes(flat.tensors.get(&z)?)?;
        let dims = flat.tensors.get(&z)?.dims().to_vec();
        let name = format!("{z}/as float");
        flat.tensors.insert(name.clone(), Tensor::new(&dims, zero));
        inputs.push(name);
    }
    let mut node = super::graph::plain_node(ops::FAKE, d.name(), inputs, d.output.clone());
    node.attribute = vec![int("axis", axis), int("lo", lo), int("hi", hi)];
    Some(node)
}

/// The float values of a DequantizeLinear whose inputs are all constants of known types.
fn folded(n: &pb::NodeProto, flat: &Flat) -> Result<Option<Tensor>> {
    let tensor = |i: usize| n.input.get(i).filter(|v| !v.is_empty()).map(|v| flat.tensors.get(v));
    let (Some(Some(x)), Some(Some(scale))) = (tensor(0), tensor(1)) else {
        return Ok(None);
    };
    let zero = match tensor(2) {
        None => None,
        Some(None) => return Ok(None),
        Some(Some(z)) => Some(z),
    };
    let (Some(mut data), Some(scales)) = (codes(x), scale.to_f32()) else {
        return Ok(None);
    };
    let zeros = match zero.map(codes) {
        Some(None) => return Ok(None),
        Some(Some(z)) => Some(z),
        None => None,
    };
    ensure!(
        !scales.is_empty() && zeros.as_ref().is_none_or(|z| z.len() == scales.len()),
        "scale and zero point differ in size"
    );
    let at = places(
        x.dims(),
        scale.dims(),
        int_attr(n, "axis", 1),
        int_attr(n, "block_size", 0),
    )?;
    at.apply(&mut data, (&scales, zeros.as_deref()));
    Ok(Some(Tensor::new(x.dims(), data)))
}

/// Where the parameters of an element lie.
struct Places {
    /// Elements from one place of the axis to the next.
    inner: usize,
    length: usize,
    /// Places that share parameters, where those are for blocks; 0: each place has one.
    block: usize,
    /// Blocks of the axis; 0: one for all elements.
    blocks: usize,
}

impl Places {
    /// Makes numbers of codes.
    fn apply(&self, data: &mut [f32], (scales, zeros): (&[f32], Option<&[f32]>)) {
        let zero = |p: usize| zeros.map_or(0.0, |z| z[p]);
        let each = |data: &mut [f32], first: usize| {
            for (p, q) in (first..).zip(data) {
                *q = (*q - zero(p)) * scales[p];
            }
        };
        let one = |data: &mut [f32], p: usize| {
            let (zero, scale) = (zero(p), scales[p]);
            data.iter_mut().for_each(|q| *q = (*q - zero) * scale);
        };
        let (inner, length) = (self.inner.max(1), self.length.max(1));
        match (self.blocks, self.block) {
            (0, _) => one(data, 0),
            (_, 0) if inner == 1 => data.chunks_mut(length).for_each(|row| each(row, 0)),
            (_, 0) => data
                .chunks_mut(inner)
                .enumerate()
                .for_each(|(i, part)| one(part, i % length)),
            (blocks, block) => {
                for (i, part) in data.chunks_mut(inner).enumerate() {
                    each(part, (i / length * blocks + i % length / block) * inner);
                }
            }
        }
    }
}

fn places(dims: &[usize], scale: &[usize], axis: i64, block: i64) -> Result<Places> {
    let count: usize = scale.iter().product();
    if count == 1 && block == 0 {
        return Ok(Places {
            inner: 1,
            length: 1,
            block: 0,
            blocks: 0,
        });
    }
    let rank = dims.len() as i64;
    let axis = if axis < 0 { axis + rank } else { axis };
    ensure!((0..rank).contains(&axis), "axis {axis} of dimensions {dims:?}");
    let axis = axis as usize;
    let (length, inner) = (dims[axis], dims[axis + 1..].iter().product());
    let block = usize::try_from(block)?;
    let mut want = dims.to_vec();
    if block > 0 {
        want[axis] = length.div_ceil(block);
    } else {
        want = vec![length];
    }
    ensure!(scale == want, "scale of dimensions {scale:?} for {dims:?}, axis {axis}");
    Ok(Places {
        inner,
        length,
        block,
        blocks: if block > 0 { want[axis] } else { length },
    })
}

/// Integer codes as floats; `None` for types that are not quantized integers.
pub fn codes(t: &Tensor) -> Option<Vec<f32>> {
    let signed = |bits: u32, code: u8| (i32::from(code) << (32 - bits) >> (32 - bits)) as f32;
    match t.dtype() {
        DType::Uint4 | DType::Int4 | DType::Uint2 | DType::Int2 => {
            let bits = crate::ir::bits(t.dtype())? as u32;
            let per = 8 / bits as usize;
            let raw = t.raw();
            let is_signed = matches!(t.dtype(), DType::Int4 | DType::Int2);
            let code = |i: usize| {
                let code = (raw.get(i / per)? >> (i % per * bits as usize)) & ((1 << bits) - 1);
                Some(if is_signed { signed(bits, code) } else { f32::from(code) })
            };
            (0..t.len()).map(code).collect()
        }
        DType::Int8 => Some(t.view::<i8>()?.iter().map(|q| f32::from(*q)).collect()),
        DType::Uint8 => Some(t.view::<u8>()?.iter().map(|q| f32::from(*q)).collect()),
        DType::Int16 | DType::Uint16 | DType::Int32 => Some(t.ints()?.into_iter().map(|i| i as f32).collect()),
        _ => None,
    }
}
