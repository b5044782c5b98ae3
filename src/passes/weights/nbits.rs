//! `MatMulNBits` of ONNX Runtime (domain `com.microsoft`, [contributed operators](https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md)):
//! `Y = A · Bᵀ + bias`, `B` with unsigned codes in blocks along K.
//!
//! `B` is `[N, ⌈K / block⌉, block · bits / 8]` bytes, low bits first, the last block filled up with zero points; scales are `[N, ⌈K / block⌉]`,
//! zero points `[N, ⌈⌈K / block⌉ · bits / 8⌉]` bytes; without them it is the middle, 8 or 128. Scales may be negative.
//!
//! `accuracy_level` 4 lets the runtime round activations to int8 in blocks: it has no fast kernel for 8 bits without that (8 × slower than float
//! on a transformer, measured with 1.31), and `DequantizeLinear` in front of a MatMul gets it by default.

use super::emit::{Emitter, packed};
use super::find::Weight;
use super::fit::Fitted;
use crate::ir::{Attr, Model, NodeId, Tensor, ValueId};
use crate::pb;
use anyhow::{Context as _, Result};

/// The domain of the operator.
const DOMAIN: &str = "com.microsoft";

/// True when all readers of a weight can become `MatMulNBits`.
pub fn fits(model: &Model, w: &Weight) -> bool {
    let whole = w.nodes.len() == model.value(w.value).uses().len() && w.sites.len() == w.nodes.len();
    whole
        && w.sites.iter().all(|s| {
            let n = model.node(s.node);
            let plain = n.is("MatMul") || n.is("Gemm") && n.int_or("transA", 0) == 0;
            let bias =
                !n.is("Gemm") || n.input(2).is_none() || s.bias_values(model).is_some_and(|b| b.len() == s.outputs());
            plain && bias && s.slot == 1 && s.layout.scale == 1.0
        })
}

/// Puts `MatMulNBits` in place of the readers of a weight, whose matrix is N × K. `int8`: activations may be rounded inside.
///
/// # Errors
/// When the bias of a Gemm is not constant.
pub fn emit(emitter: &mut Emitter, w: &Weight, fitted: &Fitted, int8: bool) -> Result<()> {
    let name = emitter.model.value(w.value).name.clone();
    let bits = if fitted.grid.limits.1 < 127 { 4 } else { 8 };
    let (n, k) = fitted.codes.dim();
    let block = fitted.grid.block.next_power_of_two().max(16);
    let blocks = fitted.grid.scales.ncols();
    let middle = 1i32 << (bits - 1);
    let mut bytes = Vec::with_capacity(n * blocks * block * bits / 8);
    let mut zeros = Vec::new();
    for row in 0..n {
        let unsigned = |q: i8| (i32::from(q) + middle) as u8 as i8;
        let mut codes: Vec<i8> = fitted.codes.row(row).iter().map(|&q| unsigned(q)).collect();
        let fill = fitted.grid.zeros[[row, blocks - 1]];
        codes.resize(blocks * block, unsigned(fill));
        let zero: Vec<i8> = fitted.grid.zeros.row(row).iter().map(|&z| unsigned(z)).collect();
        bytes.extend(stored(bits, &codes));
        zeros.extend(stored(bits, &zero));
    }
    let codes = Tensor::new(&[n, blocks, block * bits / 8], bytes);
    let codes = emitter.constant(w.value, &format!("{name}_Q{bits}"), codes);
    let scales = Tensor::new(&[n, blocks], fitted.grid.scales.iter().copied().collect());
    let scales = emitter.constant(w.value, &format!("{name}_scales"), scales);
    let zero = fitted.grid.zeros.iter().any(|z| *z != 0).then(|| {
        let zeros = Tensor::new(&[n, zeros.len() / n.max(1)], zeros);
        emitter.constant(w.value, &format!("{name}_zero_points"), zeros)
    });
    let attrs = [("K", k), ("N", n), ("bits", bits), ("block_size", block)];
    let level = int8.then_some(("accuracy_level", 4));
    let attrs: Vec<Attr> = attrs
        .into_iter()
        .chain(level)
        .map(|(a, x)| Attr::int(a, x as i64))
        .collect();
    for node in w.nodes.clone() {
        let bias = bias(emitter, w, node)?;
        let input = emitter.model.node(node).input(0);
        let mut inputs = vec![input, Some(codes), Some(scales), zero];
        if bias.is_some() {
            inputs.extend([None, bias]);
        }
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        emitter.model.set_inputs(node, inputs);
        let n = emitter.model.node_mut(node);
        n.set_op(DOMAIN, "MatMulNBits");
        n.attrs.clone_from(&attrs);
    }
    if emitter.model.opset(DOMAIN) == 0 {
        emitter.model.rest.opset_import.push(pb::OperatorSetIdProto {
            domain: Some(DOMAIN.to_owned()),
            version: Some(1),
        });
    }
    emitter.model.erase_const(w.value);
    Ok(())
}

/// The bias of a Gemm as the operator wants it, `[N]`, `beta` included.
fn bias(emitter: &mut Emitter, w: &Weight, node: NodeId) -> Result<Option<ValueId>> {
    let site = w.sites.iter().find(|s| s.node == node).context("a site")?;
    let model = &mut *emitter.model;
    let Some(old) = site.bias.filter(|b| b.node == node && model.node(node).is("Gemm")) else {
        return Ok(None);
    };
    let values = site.bias_values(model).context("its bias is constant")?;
    if old.scale == 1.0 && model.constant(old.value).is_some_and(|t| t.dims() == [site.outputs()]) {
        return Ok(Some(old.value));
    }
    let name = format!("{}_flat", model.value(old.value).name);
    let flat = Tensor::new(&[values.len()], values);
    Ok(Some(emitter.constant(w.value, &name, flat)))
}

fn stored(bits: usize, codes: &[i8]) -> Vec<u8> {
    match bits {
        4 => packed(codes),
        _ => codes.iter().map(|&c| c as u8).collect(),
    }
}
