//! Writes Q/DQ pairs into the graph, in ONNX Runtime's layout and names.
//!
//! For a value `t`: nodes `t_QuantizeLinear` and `t_DequantizeLinear`, their outputs `…_Output`, and `t_scale`.
//! For a weight `w`: `w_quantized`, `w_scale` and one DQ. For a bias `b`: int32 `b_quantized`, `b_quantized_scale`, and a DQ whose
//! output keeps the name `b`. Equal zero points are one tensor (a network of many small layers is smaller by 2 to 7 % for it): `zero_points_int8_64`
//! for 64 channels, `zero_point_uint8_128` for a scalar of 128.
//!
//! A value that an integer unit makes is read through its DQ by everyone, graph outputs included: a second reader of the
//! float value would keep the runtime from fusing the Q. Of a value that is made in floating point only integer units read
//! the DQ. Readers of the shape alone read the codes.

use super::place::Placement;
use super::ranges::Scales;
use super::target::{Codes, Target};
use super::units::{Unit, Units, is_shape};
use super::weights::{Weight, quantize_bias_for};
use crate::ir::{Attr, GraphId, Model, NodeId, Tensor, Use, ValueId};
use crate::math::affine::Affine;
use crate::passes::planes::Packer;
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};

/// The parameters of a constant that is data.
///
/// # Errors
/// When a number is not finite.
pub fn of_constant(floats: &[f32], codes: Codes) -> Result<Affine> {
    let (min, max) = floats.iter().fold((0f32, 0f32), |(a, b), &x| (a.min(x), b.max(x)));
    codes.cover(min, max)
}

/// What was decided, to be written.
pub struct Emitter<'a> {
    /// The model.
    pub model: &'a mut Model,
    /// Whom it is for.
    pub target: &'a Target,
    /// The units.
    pub units: &'a Units,
    /// Which of them run in integers.
    pub placement: &'a Placement,
    /// With which parameters.
    pub scales: &'a Scales,
    graph: GraphId,
    /// Scale and zero point of each root.
    params: BTreeMap<ValueId, (ValueId, ValueId)>,
    /// The DQ output of each weight, by its place among those that are rounded.
    weights: BTreeMap<usize, ValueId>,
    /// The DQ output of each constant that is data.
    constants: BTreeMap<ValueId, ValueId>,
    /// Zero points, by their names.
    zeros: BTreeMap<String, ValueId>,
    packer: Packer,
    /// The names of all nodes.
    nodes: BTreeSet<String>,
}

impl<'a> Emitter<'a> {
    /// Ready to write into `model`.
    pub fn new(
        model: &'a mut Model,
        target: &'a Target,
        units: &'a Units,
        placement: &'a Placement,
        scales: &'a Scales,
    ) -> Emitter<'a> {
        let graph = model.main_id();
        let nodes = model.nodes().map(|(_, n)| n.name().to_owned()).collect();
        Emitter {
            model,
            target,
            units,
            placement,
            scales,
            graph,
            params: BTreeMap::new(),
            weights: BTreeMap::new(),
            constants: BTreeMap::new(),
            zeros: BTreeMap::new(),
            packer: Packer::default(),
            nodes,
        }
    }

    /// Quantizes constants that integer units read beside their data.
    ///
    /// # Errors
    /// When a constant is not finite.
    pub fn constants(&mut self, unit: &Unit) -> Result<()> {
        for &(slot, v) in &unit.consts {
            let dq = match self.constants.get(&v) {
                Some(&dq) => dq,
                None => self.quantized_constant(v)?,
            };
            self.constants.insert(v, dq);
            self.model.set_input(unit.node, slot, Some(dq));
            self.drop_if_unused(v);
        }
        Ok(())
    }

    fn quantized_constant(&mut self, v: ValueId) -> Result<ValueId> {
        let tensor = self.model.constant(v).context("a constant")?;
        let floats = tensor.floats().context("a float constant")?;
        let affine = of_constant(&floats, self.target.codes)?;
        let codes = match affine.kind.signed() {
            true => Tensor::new(tensor.dims(), affine.quantize_i8(&floats)?),
            false => Tensor::new(tensor.dims(), affine.quantize_u8(&floats)?),
        };
        let name = self.model.value(v).name.clone();
        let q = self.constant(&format!("{name}_quantized"), codes);
        let scale = self.constant(&format!("{name}_scale"), Tensor::scalar(affine.scale));
        let zero = self.zero_point(&affine);
        Ok(self.dequantize(&name, q, scale, zero, None))
    }

    /// Puts a quantized weight (with its place among those that are rounded: readers of the same share its codes), and its bias, in place of the
    /// float ones. `bias` with its input slot.
    ///
    /// # Errors
    /// When the bias does not fit.
    pub fn weight(
        &mut self,
        unit: &Unit,
        (group, weight): (usize, Weight),
        bias: Option<(usize, &[f32])>,
        input_scale: f32,
    ) -> Result<()> {
        let site = unit.site.as_ref().context("a site")?;
        let axis = (weight.scales.len() > 1 || site.outputs() == 1).then_some(site.layout.out_axis);
        let int_bias = bias.filter(|_| self.target.int_bias && !unit.is_stored());
        let bias_codes =
            int_bias.map(|(slot, b)| Ok::<_, anyhow::Error>((slot, quantize_bias_for(b, input_scale, &weight)?)));
        let bias_codes = bias_codes.transpose()?;
        let dq = match self.weights.get(&group) {
            Some(&dq) => dq,
            None => {
                let name = self.model.value(site.weight).name.clone();
                let dq = self.weight_dq(&name, weight, axis)?;
                self.weights.insert(group, dq);
                dq
            }
        };
        self.model.set_input(unit.node, site.slot, Some(dq));
        self.drop_if_unused(site.weight);
        if let Some((slot, (codes, scales))) = bias_codes {
            self.bias(unit.node, slot, codes, scales);
        } else if let Some((slot, values)) = bias {
            self.float_bias(unit.node, slot, values);
        }
        for factor in ["alpha", "beta"] {
            if self.model.node(unit.node).is("Gemm") {
                self.model.node_mut(unit.node).remove_attr(factor);
            }
        }
        Ok(())
    }

    fn weight_dq(&mut self, name: &str, weight: Weight, axis: Option<usize>) -> Result<ValueId> {
        let n = weight.scales.len();
        let quantized = format!("{name}_quantized");
        let codes = (weight.kind, weight.codes);
        let codes = self.packer.codes(self.model, self.graph, &quantized, codes)?;
        let (scale, zero) = match axis {
            Some(_) => (Tensor::new(&[n], weight.scales), Tensor::new(&[n], vec![0i8; n])),
            None => (Tensor::scalar(weight.scales[0]), Tensor::scalar(0i8)),
        };
        let scale = self.constant(&format!("{name}_scale"), scale);
        let zero = self.zeros("int8", zero);
        Ok(self.dequantize(name, codes, scale, zero, axis))
    }

    fn float_bias(&mut self, node: NodeId, slot: usize, values: &[f32]) {
        let old = self.model.node(node).input(slot);
        let base = match old {
            Some(v) => self.model.value(v).name.clone(),
            None => format!("{}_bias", self.model.label(node)),
        };
        self.put(node, slot, base, Tensor::new(&[values.len()], values.to_vec()));
    }

    /// Another constant as an input; it takes over the name where nobody else reads the old one.
    pub fn put(&mut self, node: NodeId, slot: usize, name: String, tensor: Tensor) {
        let old = self.model.node(node).input(slot);
        let new = self.constant(&name, tensor);
        self.model.set_input(node, slot, Some(new));
        if old.is_some_and(|v| self.drop_if_unused(v)) {
            self.model.rename(new, name);
        }
    }

    fn bias(&mut self, node: NodeId, slot: usize, codes: Vec<i32>, scales: Vec<f32>) {
        let old = self.model.node(node).input(slot);
        let base = match old {
            Some(v) => self.model.value(v).name.clone(),
            None => self.model.fresh_name(&format!("{}_bias", self.model.label(node))),
        };
        let (channels, n) = (codes.len(), scales.len());
        let codes = self.constant(&format!("{base}_quantized"), Tensor::new(&[channels], codes));
        let (scale, zero, axis) = match n {
            1 if channels != 1 => (Tensor::scalar(scales[0]), Tensor::scalar(0i32), None),
            _ => (Tensor::new(&[n], scales), Tensor::new(&[n], vec![0i32; n]), Some(0)),
        };
        let scale = self.constant(&format!("{base}_quantized_scale"), scale);
        let zero = self.zeros("int32", zero);
        let dq = self.dequantize(&base, codes, scale, zero, axis);
        self.model.set_input(node, slot, Some(dq));
        match old {
            Some(v) if !self.drop_if_unused(v) => {}
            _ => self.model.rename(dq, base),
        }
    }

    /// Takes out the clips that saturation replaces; gives, for every result that is gone, what stands in its place.
    pub fn absorb_clips(&mut self) -> BTreeMap<ValueId, ValueId> {
        let mut moved = BTreeMap::new();
        for (i, unit) in self.units.all.iter().enumerate() {
            let [result] = unit.results[..] else { continue };
            if unit.clips.is_empty() || !self.placement.integer[i] || !self.placement.quantized.contains(&result) {
                continue;
            }
            let Some(out) = self.model.node(unit.node).outputs().iter().flatten().next().copied() else {
                continue;
            };
            self.model.replace_uses(result, out);
            for &clip in unit.clips.iter().rev() {
                self.model.erase(clip);
            }
            let name = self.model.value(result).name.clone();
            self.model.rename(out, name);
            moved.insert(result, out);
        }
        moved
    }

    /// Puts the Q/DQ pair of `v` (which stands at `at` now) into the graph.
    ///
    /// # Errors
    /// When the value has no parameters.
    pub fn pair(&mut self, v: ValueId, at: ValueId) -> Result<()> {
        let (scale, zero) = self.parameters(v)?;
        let producer = self.units.producer.get(&v);
        let producer = producer.filter(|p| self.target.results && self.placement.integer[**p]);
        let uses: Vec<Use> = self.model.value(at).uses().to_vec();
        let (codes_for, floats_for): (Vec<Use>, Vec<Use>) = uses
            .into_iter()
            .filter(|u| producer.is_some() || self.is_integer_read(u))
            .partition(|u| matches!(u, Use::Node(n, _) if is_shape(self.model, *n)));
        let name = self.model.value(at).name.clone();
        let q_inputs = [Some(at), Some(scale), Some(zero)];
        let q_name = self.model.fresh_name(&format!("{name}_QuantizeLinear_Output"));
        let node = self.node_name(format!("{name}_QuantizeLinear"));
        let (_, q) = self
            .model
            .add_node(self.graph, &node, "QuantizeLinear", &q_inputs, &[&q_name], Vec::new());
        let dq = self.dequantize(&name, q[0], scale, zero, None);
        self.model.replace_uses_where(at, q[0], |u| codes_for.contains(u));
        self.model.replace_uses_where(at, dq, |u| floats_for.contains(u));
        let is_public = |u: &Use| matches!(u, Use::Output(g, i) if self.model.graph(*g).outputs()[*i].name() == name);
        if floats_for.iter().any(is_public) {
            let inner = self.model.fresh_name(&format!("{name}_QuantizeLinear_Input"));
            self.model.rename(at, inner);
            self.model.rename(dq, name);
        }
        Ok(())
    }

    fn is_integer_read(&self, u: &Use) -> bool {
        let Use::Node(n, slot) = *u else { return false };
        let unit = self.units.of_node.get(&n).filter(|i| self.placement.integer[**i]);
        unit.is_some_and(|i| self.units.all[*i].inputs.iter().any(|(s, _)| *s == slot))
    }

    fn parameters(&mut self, v: ValueId) -> Result<(ValueId, ValueId)> {
        let root = *self.scales.roots.get(&v).context("a quantized value")?;
        if let Some(&known) = self.params.get(&root) {
            return Ok(known);
        }
        let affine = *self.scales.of(v).context("a range was chosen")?;
        let name = self.model.value(root).name.clone();
        let scale = self.constant(&format!("{name}_scale"), Tensor::scalar(affine.scale));
        let zero = self.zero_point(&affine);
        self.params.insert(root, (scale, zero));
        Ok((scale, zero))
    }

    /// The zero point as a scalar of the type of the codes.
    fn zero_point(&mut self, affine: &Affine) -> ValueId {
        let (kind, tensor) = match affine.kind.signed() {
            true => ("int8", Tensor::scalar(affine.zero_point as i8)),
            false => ("uint8", Tensor::scalar(affine.zero_point as u8)),
        };
        self.shared(format!("zero_point_{kind}_{}", affine.zero_point), tensor)
    }

    /// Zeros of a type, for a weight or a bias.
    fn zeros(&mut self, kind: &str, zeros: Tensor) -> ValueId {
        let name = match zeros.dims() {
            [n] => format!("zero_points_{kind}_{n}"),
            _ => format!("zero_point_{kind}_0"),
        };
        self.shared(name, zeros)
    }

    fn shared(&mut self, name: String, tensor: Tensor) -> ValueId {
        if let Some(&known) = self.zeros.get(&name) {
            return known;
        }
        let new = self.constant(&name, tensor);
        self.zeros.insert(name, new);
        new
    }

    fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let name = self.model.fresh_name(name);
        self.model.add_const(self.graph, &name, tensor)
    }

    fn dequantize(
        &mut self,
        name: &str,
        codes: ValueId,
        scale: ValueId,
        zero: ValueId,
        axis: Option<usize>,
    ) -> ValueId {
        let attrs = axis.map(|a| Attr::int("axis", a as i64)).into_iter().collect();
        let inputs = [Some(codes), Some(scale), Some(zero)];
        let output = self.model.fresh_name(&format!("{name}_DequantizeLinear_Output"));
        let node = self.node_name(format!("{name}_DequantizeLinear"));
        let (_, out) = self
            .model
            .add_node(self.graph, &node, "DequantizeLinear", &inputs, &[&output], attrs);
        out[0]
    }

    /// The name, or with a number when a node has it.
    fn node_name(&mut self, name: String) -> String {
        let numbered = (1..).map(|i| format!("{name}_{i}"));
        let free = std::iter::once(name.clone())
            .chain(numbered)
            .find(|n| !self.nodes.contains(n));
        let free = free.unwrap_or(name);
        self.nodes.insert(free.clone());
        free
    }

    /// Takes a constant out that nobody reads any more; true when it is gone.
    fn drop_if_unused(&mut self, v: ValueId) -> bool {
        let value = self.model.value(v);
        let unused = value.is_alive() && value.uses().is_empty();
        if unused {
            self.model.erase_const(v);
        }
        unused
    }
}
