//! What the rewrites share: types, new inputs, attributes that a function's caller gives.

use crate::ir::{Attr, DType, Model, NodeId, Tensor, ValueId};
use crate::onnx::default_domain;
use crate::ops::infer::Dim;
use crate::ops::types::{Types, infer};
use crate::pb;
use anyhow::{Context as _, Result, bail, ensure};

/// A model on its way to operator set `to`.
pub(super) struct Work<'m> {
    pub model: &'m mut Model,
    pub to: i64,
    /// Of the model as it was.
    types: Types,
}

impl<'m> Work<'m> {
    pub fn new(model: &'m mut Model, to: i64) -> Work<'m> {
        let types = infer(model).unwrap_or_default(); // a contradiction is for others to report
        Work { model, to, types }
    }

    pub fn input(&self, id: NodeId, slot: usize) -> Result<ValueId> {
        let v = self.model.node(id).input(slot);
        v.with_context(|| format!("input {slot} is missing"))
    }

    pub fn shape(&self, v: ValueId) -> Option<&[Dim]> {
        self.types.shape(v)
    }

    pub fn rename(&mut self, id: NodeId, op: &str) {
        op.clone_into(&mut self.model.node_mut(id).op.name);
    }

    /// The name of the node's first output and `what`, made fresh.
    pub fn name(&self, id: NodeId, what: &str) -> String {
        let output = self.model.node(id).outputs().iter().flatten().next();
        let base = output.map_or("", |v| self.model.value(*v).name.as_str());
        self.model.fresh_name(&format!("{base}_{what}"))
    }

    /// Adds a node with one output beside another node, and gives the output.
    pub fn add(&mut self, beside: NodeId, what: &str, op: &str, inputs: &[ValueId], attrs: Vec<Attr>) -> ValueId {
        let name = self.name(beside, what);
        let graph = self.model.node(beside).graph();
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        let (_, outputs) = self.model.add_node(graph, &name, op, &inputs, &[&name], attrs);
        outputs[0]
    }

    /// A constant beside a node; bodies of functions hold no initializers.
    pub fn constant(&mut self, beside: NodeId, what: &str, tensor: Tensor) -> ValueId {
        let graph = self.model.node(beside).graph();
        if self.model.graph(graph).function.is_some() {
            let value = Attr::tensor("value", tensor.to_inline_proto());
            return self.add(beside, what, "Constant", &[], vec![value]);
        }
        let name = self.name(beside, what);
        self.model.add_const(graph, &name, tensor)
    }

    /// Puts a constant at an input.
    pub fn add_input(&mut self, id: NodeId, slot: usize, what: &str, tensor: Tensor) {
        let value = self.constant(id, what, tensor);
        self.model.set_input(id, slot, Some(value));
    }

    /// Refuses an attribute whose value the caller of a function gives.
    pub fn own(&self, id: NodeId, name: &str) -> Result<()> {
        let by_caller = self
            .model
            .node(id)
            .attr(name)
            .is_some_and(|a| !a.proto.ref_attr_name().is_empty());
        ensure!(
            !by_caller,
            "its attribute {name:?} is given by the caller of the function; inline the function first"
        );
        Ok(())
    }

    /// Makes an attribute an input. `tensor` gives the data, of an attribute of the node itself; one that a function's
    /// caller gives becomes a `Constant` that refers to it, under the attribute `kind` of that operator.
    pub fn make_input(
        &mut self,
        id: NodeId,
        slot: usize,
        name: &str,
        kind: &str,
        tensor: impl FnOnce(&Self, &Attr) -> Result<Option<Tensor>>,
    ) -> Result<()> {
        let Some(attr) = self.model.node(id).attr(name).cloned() else {
            return Ok(());
        };
        if attr.proto.ref_attr_name().is_empty() {
            if let Some(t) = tensor(self, &attr)? {
                self.add_input(id, slot, name, t);
            }
        } else {
            self.always_given(id, attr.proto.ref_attr_name())?;
            let mut given = attr;
            given.proto.name = Some(kind.to_owned());
            let value = self.add(id, name, "Constant", &[], vec![given]);
            self.model.set_input(id, slot, Some(value));
        }
        self.model.node_mut(id).remove_attr(name);
        Ok(())
    }

    /// Refuses an attribute of the enclosing function that has no default and that a caller leaves out, and attributes
    /// as such before operator set 12, where `Constant` learnt to take numbers.
    fn always_given(&self, id: NodeId, name: &str) -> Result<()> {
        ensure!(
            self.to >= 12,
            "an attribute given by the caller of a function needs operator set 12"
        );
        let mut graph = self.model.node(id).graph();
        while let Some(parent) = self.model.graph(graph).parent() {
            graph = self.model.node(parent).graph();
        }
        let Some(f) = &self.model.graph(graph).function else {
            bail!("attribute {name:?} refers to a function, but the node is in none")
        };
        let has_default = f.attribute_proto.iter().any(|a| a.name() == name);
        let calls = |n: &crate::ir::Node| n.op.name == f.name() && n.op.domain == default_domain(f.domain());
        let left_out = self.model.nodes().any(|(_, n)| calls(n) && n.attr(name).is_none());
        ensure!(
            has_default || !left_out,
            "a caller of the function leaves attribute {name:?} out"
        );
        Ok(())
    }

    pub fn ints_to_input(&mut self, id: NodeId, name: &str, slot: usize) -> Result<()> {
        self.make_input(id, slot, name, "value_ints", |_, a| {
            let ints = a.proto.ints.clone();
            Ok(Some(Tensor::new(&[ints.len()], ints)))
        })
    }

    /// A scalar of the type of a node's first input.
    pub fn scalar_like(&self, id: NodeId, x: f32) -> Result<Tensor> {
        Ok(match self.float_type(self.input(id, 0)?)? {
            DType::Float => Tensor::scalar(x),
            DType::Double => Tensor::scalar(f64::from(x)),
            DType::Float16 => Tensor::scalar(half::f16::from_f32(x)),
            other => bail!("an input of type {} has no such limit", other.as_str_name()),
        })
    }

    /// The type of a value; float where it is not known and the model has no other float type.
    pub fn float_type(&self, v: ValueId) -> Result<DType> {
        if let Some(t) = self.types.dtype(v).or_else(|| declared(self.model, v)) {
            return Ok(t);
        }
        let others = [DType::Float16, DType::Double, DType::Bfloat16];
        let ports = self
            .model
            .main()
            .inputs()
            .iter()
            .filter_map(|p| declared(self.model, p.value));
        let consts = self.model.values().filter_map(|(_, v)| v.tensor().map(Tensor::dtype));
        let mixed = ports.chain(consts).any(|t| others.contains(&t));
        ensure!(
            !mixed,
            "the type of {} is not known; declare it (onnx.shape_inference writes it into the file)",
            self.model.value(v).name
        );
        Ok(DType::Float)
    }
}

fn declared(model: &Model, v: ValueId) -> Option<DType> {
    match model.declared_type(v)?.value.as_ref()? {
        pb::type_proto::Value::TensorType(t) => DType::try_from(t.elem_type()).ok(),
        _ => None,
    }
}
