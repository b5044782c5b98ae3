//! Writes quantized weights into the graph: for a weight `w` the initializers `w_quantized`, `w_scale`, `w_zero_point`
//! and the node `w_DequantizeLinear`, from which all its readers get it.

use super::find::Weight;
use super::fit::{Fitted, Scheme};
use super::view::View;
use crate::analysis::sites::float_tensor;
use crate::ir::{Attr, DType, Model, Tensor, ValueId};
use crate::math::affine::IntKind;
use crate::passes::planes::{self, Packer};
use crate::passes::{Context, tables};
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};

/// What is being written to.
pub struct Emitter<'a> {
    /// The model.
    pub model: &'a mut Model,
    packer: Packer,
    /// The names of all nodes.
    nodes: BTreeSet<String>,
}

/// Bytes of codes and parameters.
pub fn bytes(w: &Weight, view: &View, scheme: Scheme) -> usize {
    let (axis, span) = view.span(&w.dims);
    let parameters = match scheme.block {
        0 => w.dims.get(w.axis).copied().unwrap_or(1),
        b => w.len() / w.dims[axis].max(1) * span.div_ceil(b),
    };
    let codes = |n: usize| (n * scheme.kind.bits() as usize).div_ceil(8);
    codes(w.len()) + 4 * parameters + if scheme.zeros { codes(parameters) } else { 0 }
}

/// Adds to the bias what keeps the mean of the outputs.
///
/// # Errors
/// When the bias is not constant.
pub fn shift(model: &mut Model, w: &Weight, fitted: &Fitted) -> Result<()> {
    let Some(bias) = w
        .sites
        .first()
        .and_then(|s| s.bias)
        .filter(|_| !fitted.shift.is_empty())
    else {
        return Ok(());
    };
    let alpha = w.sites[0].layout.scale;
    let old = model.constant(bias.value).context("its bias is constant")?;
    let mut data = old.to_f32().context("its bias is float")?.into_owned();
    data.iter_mut().zip(&fitted.shift).for_each(|(b, s)| *b += alpha * s);
    let new = float_tensor(old.dtype(), old.dims(), data)?;
    model.set_const(bias.value, new);
    Ok(())
}

impl<'a> Emitter<'a> {
    /// Ready to write.
    pub fn new(model: &'a mut Model) -> Emitter<'a> {
        let nodes = model.nodes().map(|(_, n)| n.name().to_owned()).collect();
        Emitter {
            model,
            packer: Packer::default(),
            nodes,
        }
    }

    /// Puts a DequantizeLinear in the place of a weight.
    ///
    /// # Errors
    /// When codes do not fit the weight.
    pub fn dequantized(&mut self, w: &Weight, view: &View, scheme: Scheme, fitted: &Fitted) -> Result<()> {
        let name = self.model.value(w.value).name.clone();
        let graph = self.model.value(w.value).graph();
        let (span_axis, _) = view.span(&w.dims);
        let (dims, axis) = match scheme.block {
            0 => (vec![w.dims[w.axis]], w.axis),
            _ => {
                let mut dims = w.dims.clone();
                dims[span_axis] = dims[span_axis].div_ceil(fitted.grid.block);
                (dims, span_axis)
            }
        };
        let parameters = |m: &ndarray::Array2<f32>| -> Result<Vec<f32>> {
            match scheme.block {
                0 => Ok(m.iter().copied().collect()),
                _ => view.tensor(&dims, m),
            }
        };
        let codes = integers(scheme.kind, &w.dims, &view.tensor(&w.dims, &fitted.codes)?)?;
        let codes = self.constant(w.value, &format!("{name}_quantized"), codes);
        let scale = Tensor::new(&dims, parameters(&fitted.grid.scales)?);
        let scale = self.constant(w.value, &format!("{name}_scale"), scale);
        let mut inputs = vec![Some(codes), Some(scale)];
        if scheme.zeros {
            let zeros = parameters(&fitted.grid.zeros.mapv(f32::from))?;
            let zeros: Vec<i8> = zeros.into_iter().map(|z| z as i8).collect();
            let zeros = integers(scheme.kind, &dims, &zeros)?;
            inputs.push(Some(self.constant(w.value, &format!("{name}_zero_point"), zeros)));
        }
        let mut attrs = vec![Attr::int("axis", axis as i64)];
        if scheme.block > 0 {
            attrs.push(Attr::int("block_size", fitted.grid.block as i64));
        }
        let node = self.node_name(format!("{name}_DequantizeLinear"));
        let output = self.model.fresh_name(&format!("{name}_DequantizeLinear_Output"));
        let (_, out) = self
            .model
            .add_node(graph, &node, "DequantizeLinear", &inputs, &[&output], attrs);
        self.model.replace_uses(w.value, out[0]);
        self.model.erase_const(w.value);
        Ok(())
    }

    /// Puts `Mul(Cast(codes), scales)` in the place of a weight (codes of fewer than 8 bits in planes, [`planes`]): no input of the model is read, so a runtime computes it once,
    /// while it loads the model, and multiplies with floats as before.
    ///
    /// # Errors
    /// When codes do not fit the weight.
    pub fn folded(&mut self, w: &Weight, view: &View, fitted: &Fitted) -> Result<()> {
        let name = self.model.value(w.value).name.clone();
        let graph = self.model.value(w.value).graph();
        let quantized = format!("{name}_quantized");
        let codes = view.tensor(&w.dims, &fitted.codes)?;
        let (kind, step) = (fitted.kind, planes::step(fitted.kind));
        let codes = Tensor::new(&w.dims, codes.iter().map(|q| q * step as i8).collect());
        let codes = self.packer.codes(self.model, graph, &quantized, (kind, codes))?;
        let mut dims = vec![1; w.dims.len() - w.axis];
        dims[0] = w.dims[w.axis];
        let scale = Tensor::new(&dims, fitted.grid.scales.iter().map(|s| s / step).collect());
        let scale = self.constant(w.value, &format!("{name}_scale"), scale);
        let to = vec![Attr::int("to", DType::Float as i64)];
        let node = self.node_name(format!("{name}_Cast"));
        let cast = self.model.fresh_name(&node);
        let (_, cast) = self.model.add_node(graph, &node, "Cast", &[Some(codes)], &[&cast], to);
        let node = self.node_name(format!("{name}_Mul"));
        let product = self.model.fresh_name(&node);
        let inputs = [cast.first().copied(), Some(scale)];
        let (_, product) = self.model.add_node(graph, &node, "Mul", &inputs, &[&product], vec![]);
        let product = *product.first().context("a Mul has an output")?;
        self.model.replace_uses(w.value, product);
        self.model.erase_const(w.value);
        self.model.rename(product, name);
        Ok(())
    }

    /// Tables in 8 bits take fewer.
    ///
    /// # Errors
    /// As [`tables::narrow::apply`].
    pub fn tables(&mut self, kinds: &BTreeMap<ValueId, IntKind>, cx: &mut Context) -> Result<()> {
        tables::narrow::apply(self.model, kinds, &mut self.packer, cx)
    }

    /// An initializer in the graph of a weight.
    pub fn constant(&mut self, beside: ValueId, name: &str, tensor: Tensor) -> ValueId {
        let name = self.model.fresh_name(name);
        let graph = self.model.value(beside).graph();
        self.model.add_const(graph, &name, tensor)
    }

    /// The name, or with a number when a node has it.
    pub fn node_name(&mut self, name: String) -> String {
        let numbered = (1..).map(|i| format!("{name}_{i}"));
        let free = std::iter::once(name.clone())
            .chain(numbered)
            .find(|n| !self.nodes.contains(n));
        let free = free.unwrap_or(name);
        self.nodes.insert(free.clone());
        free
    }
}

/// A tensor of int8 or int4 codes.
///
/// # Errors
/// When codes are not as many as the dimensions say.
pub fn integers(kind: IntKind, dims: &[usize], codes: &[i8]) -> Result<Tensor> {
    match kind {
        IntKind::S4 => Tensor::from_raw(DType::Int4, dims, crate::ir::store::keep(packed(codes))),
        _ => Ok(Tensor::new(dims, codes.to_vec())),
    }
}

/// Two codes a byte, the first in the low half.
pub fn packed(codes: &[i8]) -> Vec<u8> {
    let low = |c: i8| c as u8 & 0x0f;
    codes
        .chunks(2)
        .map(|p| low(p[0]) | low(p.get(1).copied().unwrap_or(0)) << 4)
        .collect()
}
