//! Writes matrix products in integers, in the layout and with the names of ONNX Runtime's `quantize_dynamic`.
//!
//! For an activation `x`: node `x_QuantizeLinear` (DynamicQuantizeLinear), outputs `x_quantized`, `x_scale`, `x_zero_point`. For a product `n`:
//! `n_quant` (MatMulInteger), `n_quant_cast`, `n_quant_scales_mul` (the product of the two scales) and `n_quant_output_scale_mul`.

use crate::analysis::sites::Site;
use crate::ir::{Attr, DType, GraphId, Model, NodeId, Tensor, ValueId};
use crate::passes::weights::find::Weight;
use crate::passes::weights::fit::Fitted;
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};

/// What is being written to.
pub struct Emitter<'a> {
    /// The model.
    pub model: &'a mut Model,
    /// Codes, scale and zero point of activations that are quantized already, where they are.
    quantized: BTreeMap<(ValueId, GraphId), [ValueId; 3]>,
    /// The names of all nodes.
    nodes: BTreeSet<String>,
}

/// Why a product cannot be written in integers.
pub fn refuses(model: &Model, site: &Site) -> Option<&'static str> {
    let n = model.node(site.node);
    if site.slot != 1 {
        return Some("its weight is on the left: stays in floating point");
    }
    if !n.is("Gemm") {
        return None;
    }
    if n.int_or("transA", 0) != 0 {
        return Some("its activation is transposed: stays in floating point");
    }
    let constant = n.input(2).is_none() || site.bias_values(model).is_some_and(|b| b.len() == site.outputs());
    let plain = site.layout.bias_scale == 1.0;
    (!constant && !plain).then_some("its bias is not constant and has a factor: stays in floating point")
}

impl<'a> Emitter<'a> {
    /// Ready to write.
    pub fn new(model: &'a mut Model) -> Emitter<'a> {
        let nodes = model.nodes().map(|(_, n)| n.name().to_owned()).collect();
        Emitter {
            model,
            quantized: BTreeMap::new(),
            nodes,
        }
    }

    /// Puts integer products in place of all readers of a weight, whose codes are outputs × inputs.
    ///
    /// # Errors
    /// When a bias is not constant that was.
    pub fn products(&mut self, w: &Weight, fitted: &Fitted) -> Result<()> {
        let name = self.model.value(w.value).name.clone();
        let graph = self.model.value(w.value).graph();
        let (n, k) = fitted.codes.dim();
        let codes = Tensor::new(&[k, n], fitted.codes.t().iter().copied().collect());
        let codes = self.constant(graph, &format!("{name}_quantized"), codes);
        // It is 0, but ONNX Runtime packs the matrix beforehand only when it is there.
        let zero = self.constant(graph, &format!("{name}_zero_point"), Tensor::scalar(0i8));
        let mut scales: BTreeMap<u32, ValueId> = BTreeMap::new();
        for site in &w.sites {
            let alpha = site.layout.scale;
            let scale = match scales.get(&alpha.to_bits()) {
                Some(&s) => s,
                None => {
                    let values = fitted.grid.scales.iter().map(|s| s * alpha).collect();
                    let s = self.constant(graph, &format!("{name}_scale"), Tensor::new(&[n], values));
                    scales.insert(alpha.to_bits(), s);
                    s
                }
            };
            self.product(site, codes, scale, zero)?;
        }
        self.model.erase_const(w.value);
        Ok(())
    }

    fn product(&mut self, site: &Site, codes: ValueId, scale: ValueId, zero: ValueId) -> Result<()> {
        let (node, graph) = (site.node, self.model.node(site.node).graph());
        let label = format!("{}_quant", self.model.label(node));
        let output = self.model.node(node).output(0).context("an output")?;
        let base = self.model.value(output).name.clone();
        let bias = self.bias(site)?;
        let [q, s, z] = self.activation(site.input, graph);
        let inputs = [Some(q), Some(codes), Some(z), Some(zero)];
        let integers = self.node(
            graph,
            &label,
            "MatMulInteger",
            &inputs,
            &format!("{base}_output_quantized"),
            Vec::new(),
        );
        let to = vec![Attr::int("to", DType::Float as i64)];
        let cast = self.node(
            graph,
            &format!("{label}_cast"),
            "Cast",
            &[Some(integers)],
            &format!("{base}_cast"),
            to,
        );
        let inputs = [Some(s), Some(scale)];
        let factor = self.node(
            graph,
            &format!("{label}_scales_mul"),
            "Mul",
            &inputs,
            &format!("{base}_scales_mul"),
            Vec::new(),
        );
        let name = format!("{label}_output_scale_mul");
        let (op, inputs, name) = match bias {
            None => ("Mul", [cast, factor], name),
            Some(bias) => {
                let product = self.node(
                    graph,
                    &name,
                    "Mul",
                    &[Some(cast), Some(factor)],
                    &format!("{base}_product"),
                    Vec::new(),
                );
                ("Add", [product, bias], self.model.label(node))
            }
        };
        self.model.set_inputs(node, inputs.map(Some).to_vec());
        let name = if bias.is_none() { self.node_name(name) } else { name };
        let n = self.model.node_mut(node);
        n.set_op("", op);
        n.attrs.clear();
        n.rest.name = Some(name);
        Ok(())
    }

    /// What a Gemm adds: its C times beta.
    fn bias(&mut self, site: &Site) -> Result<Option<ValueId>> {
        let n = self.model.node(site.node);
        let Some(c) = n.input(2).filter(|_| n.is("Gemm")) else {
            return Ok(None);
        };
        if site.layout.bias_scale == 1.0 {
            return Ok(Some(c));
        }
        let values = site.bias_values(self.model).context("its bias is constant")?;
        let graph = n.graph();
        let name = format!("{}_scaled", self.model.value(c).name);
        Ok(Some(self.constant(graph, &name, Tensor::new(&[values.len()], values))))
    }

    /// Codes, scale and zero point of an activation, in `graph`.
    fn activation(&mut self, x: ValueId, graph: GraphId) -> [ValueId; 3] {
        if let Some(&known) = self.quantized.get(&(x, graph)) {
            return known;
        }
        let name = self.model.value(x).name.clone();
        let node = self.node_name(format!("{name}_QuantizeLinear"));
        let outputs = ["quantized", "scale", "zero_point"].map(|s| format!("{name}_{s}"));
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let (_, out) = self
            .model
            .add_node(graph, &node, "DynamicQuantizeLinear", &[Some(x)], &outputs, Vec::new());
        let made = [out[0], out[1], out[2]];
        self.quantized.insert((x, graph), made);
        made
    }

    fn node(
        &mut self,
        graph: GraphId,
        name: &str,
        op: &str,
        inputs: &[Option<ValueId>],
        output: &str,
        attrs: Vec<Attr>,
    ) -> ValueId {
        let name = self.node_name(name.to_owned());
        self.model.add_node(graph, &name, op, inputs, &[output], attrs).1[0]
    }

    /// An initializer with this name, or this name and a number.
    pub fn constant(&mut self, graph: GraphId, name: &str, tensor: Tensor) -> ValueId {
        let name = self.model.fresh_name(name);
        self.model.add_const(graph, &name, tensor)
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

    /// The name that a node has from now on.
    pub fn rename(&mut self, node: NodeId, name: String) {
        let name = self.node_name(name);
        self.model.node_mut(node).rest.name = Some(name);
    }
}
