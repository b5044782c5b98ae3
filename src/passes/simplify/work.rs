//! What a rule works on: the model, what is known of its values, and the edits that several rules share.

use super::facts::Facts;
use crate::ir::{Attr, GraphId, Model, NodeId, Origin, Tensor, Use, ValueId};
use crate::pb;
use anyhow::Result;
use std::collections::BTreeSet;

/// The model during one round.
pub(super) struct Work<'m> {
    pub model: &'m mut Model,
    /// What was known when the round began. It stays true: rules never change what a value holds, but for
    /// [`Work::absorb`], which keeps type and shape.
    pub facts: Facts,
    /// Operators of the default domain that the model defines itself as functions.
    local_functions: BTreeSet<String>,
    /// Initializers that annotations name: they keep their names and data.
    pinned: BTreeSet<ValueId>,
}

impl<'m> Work<'m> {
    /// # Errors
    /// When the shapes of the model certainly contradict each other.
    pub fn new(model: &'m mut Model) -> Result<Work<'m>> {
        let functions = model
            .functions()
            .iter()
            .filter_map(|f| model.graph(*f).function.as_ref());
        let local_functions = functions
            .filter(|f| matches!(f.domain(), "" | "ai.onnx"))
            .map(|f| f.name().to_owned())
            .collect();
        let pinned = pinned(model);
        let facts = Facts::of(model)?;
        Ok(Work {
            model,
            facts,
            local_functions,
            pinned,
        })
    }

    /// True when the rules know what the node does.
    pub fn may_touch(&self, id: NodeId) -> bool {
        let n = self.model.node(id);
        n.op.domain.is_empty() && !n.has_attr_refs() && !self.local_functions.contains(&n.op.name)
    }

    /// True when the node is the operator `op` of the default domain and may be touched.
    pub fn is(&self, id: NodeId, op: &str) -> bool {
        self.model.node(id).is(op) && self.may_touch(id)
    }

    /// True when the node is one of these operators and may be touched.
    pub fn is_any(&self, id: NodeId, ops: &[&str]) -> bool {
        ops.contains(&self.model.node(id).op.name.as_str()) && self.may_touch(id)
    }

    pub fn opset(&self, id: NodeId) -> i64 {
        self.model.opset_of(id)
    }

    /// The data of a value that is the same in every run: an initializer, or what a `Constant` node gives.
    pub fn constant(&self, v: ValueId) -> Option<Tensor> {
        if let Some(t) = self.model.constant(v) {
            return Some(t.clone());
        }
        let node = self.model.value(v).producer()?;
        if !self.is(node, "Constant") {
            return None;
        }
        super::constant::tensor_of(self.model.node(node))
    }

    pub fn constant_input(&self, id: NodeId, slot: usize) -> Option<Tensor> {
        self.constant(self.model.node(id).input(slot)?)
    }

    /// The integers of a constant input.
    pub fn ints_input(&self, id: NodeId, slot: usize) -> Option<Vec<i64>> {
        let v = self.model.node(id).input(slot)?;
        self.ints(v)
    }

    /// The integers of a value that is known, as a constant or by inference.
    pub fn ints(&self, v: ValueId) -> Option<Vec<i64>> {
        match self.constant(v) {
            Some(t) => t.ints(),
            None => self.facts.ints(v),
        }
    }

    /// The only output of a node that anything reads, when it is output 0.
    pub fn sole_output(&self, id: NodeId) -> Option<ValueId> {
        let n = self.model.node(id);
        let first = n.output(0)?;
        let others = n.outputs().iter().skip(1).flatten();
        others
            .copied()
            .all(|v| self.model.value(v).uses().is_empty())
            .then_some(first)
    }

    /// The node behind an input, when it stands in the same graph and nothing else reads its output.
    pub fn private_producer(&self, id: NodeId, slot: usize) -> Option<NodeId> {
        let v = self.model.node(id).input(slot)?;
        let p = self.same_graph_producer(id, slot)?;
        (self.model.only_use(v) == Some((id, slot)) && self.sole_output(p) == Some(v)).then_some(p)
    }

    /// The node behind an input, when it stands in the same graph.
    pub fn same_graph_producer(&self, id: NodeId, slot: usize) -> Option<NodeId> {
        let p = self.model.input_producer(id, slot)?;
        (self.model.node(p).graph() == self.model.node(id).graph() && self.may_touch(p)).then_some(p)
    }

    /// True when `new` may stand for `old` without an `Identity` at a graph output.
    pub fn can_stand_for(&self, old: ValueId, new: ValueId) -> bool {
        let n = self.model.value(new);
        self.model.value(old).uses().iter().all(|u| match *u {
            Use::Node(..) => true,
            Use::Output(g, _) => {
                let elsewhere = n.uses().iter().any(|u| matches!(u, Use::Output(h, _) if *h == g));
                matches!(n.origin(), Origin::Node(..)) && n.graph() == g && !elsewhere
            }
        })
    }

    /// Takes a node out whose output 0 always equals `same`; `None` when an output would need an `Identity` instead.
    pub fn bypass(&mut self, id: NodeId, same: ValueId) -> Option<()> {
        let out = self.sole_output(id)?;
        if !self.can_stand_for(out, same) {
            return None;
        }
        self.model.replace_uses(out, same);
        self.model.erase(id);
        Some(())
    }

    /// `second`, the only reader of `first`'s output, was folded into `first`: that output now holds what `second` gave,
    /// and bears its name.
    pub fn absorb(&mut self, first: NodeId, second: NodeId) -> Option<()> {
        let (from, to) = (self.model.node(second).output(0)?, self.model.node(first).output(0)?);
        let name = self.model.value(from).name.clone();
        self.model.replace_uses(from, to);
        self.model.erase(second);
        self.model.rename(to, name);
        Some(())
    }

    /// A new constant that `graph` can read: an initializer, or a `Constant` node in the body of a function.
    pub fn add_const(&mut self, graph: GraphId, name: &str, tensor: Tensor) -> ValueId {
        let name = self.model.fresh_name(name);
        if self.model.graph(graph).function.is_none() {
            return self.model.add_const(graph, &name, tensor);
        }
        let attr = constant_attr(&tensor);
        let (_, outs) = self.model.add_node(graph, "", "Constant", &[], &[&name], vec![attr]);
        outs[0]
    }

    /// Puts other data behind an input that is a constant. The initializer itself changes only when nothing else reads it.
    pub fn set_const_input(&mut self, id: NodeId, slot: usize, base: &str, tensor: Tensor) {
        let old = self.model.node(id).input(slot);
        if let Some(v) = old
            && self.is_private_const(v)
        {
            self.model.set_const(v, tensor);
            return;
        }
        let graph = self.model.node(id).graph();
        let new = self.add_const(graph, base, tensor);
        self.model.set_input(id, slot, Some(new));
    }

    /// True for an initializer that one node reads and nothing else refers to.
    pub fn is_private_const(&self, v: ValueId) -> bool {
        let value = self.model.value(v);
        value.origin() == Origin::Const && value.uses().len() == 1 && !value.is_output() && !self.is_pinned(v)
    }

    pub fn is_pinned(&self, v: ValueId) -> bool {
        self.pinned.contains(&v)
    }

    /// Makes the value a constant: its readers read an initializer of its name, or a `Constant` node where it is a
    /// graph output. Its producer is left for the sweep, when it has other outputs.
    pub fn make_const(&mut self, v: ValueId, tensor: Tensor) {
        let graph = self.model.value(v).graph();
        let name = self.model.value(v).name.clone();
        let base = format!("{name}_const");
        let new = if self.model.value(v).is_output() {
            let fresh = self.model.fresh_name(&base);
            let attr = constant_attr(&tensor);
            let (_, outs) = self
                .model
                .add_node(graph, &fresh, "Constant", &[], &[&fresh], vec![attr]);
            outs[0]
        } else {
            self.add_const(graph, &base, tensor)
        };
        self.model.replace_uses(v, new);
        let Some(p) = self.model.value(v).producer() else {
            return;
        };
        let all_unused = |m: &Model| {
            let mut outs = m.node(p).outputs().iter().flatten();
            outs.all(|o| m.value(*o).uses().is_empty())
        };
        if all_unused(self.model) {
            self.model.erase(p);
            self.model.rename(new, name);
        }
    }

    /// Changes what a node is, keeping its name and outputs.
    pub fn set_op(&mut self, id: NodeId, op: &str, attrs: Vec<Attr>) {
        let n = self.model.node_mut(id);
        n.set_op("", op);
        n.attrs = attrs;
    }
}

/// The `value` attribute of a `Constant` node.
pub(super) fn constant_attr(tensor: &Tensor) -> Attr {
    let mut attr = Attr::int("value", 0);
    attr.proto.i = None;
    attr.proto.r#type = Some(pb::attribute_proto::AttributeType::Tensor as i32);
    let mut t = tensor.to_inline_proto();
    t.name = None;
    attr.proto.t = Some(t);
    attr
}

/// The values that quantization annotations name.
fn pinned(model: &Model) -> BTreeSet<ValueId> {
    let mut all = BTreeSet::new();
    for g in model.live_graphs() {
        let annotations = &model.graph(g).rest.quantization_annotation;
        if annotations.is_empty() {
            continue;
        }
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for a in annotations {
            names.insert(a.tensor_name());
            names.extend(a.quant_parameter_tensor_names.iter().map(|e| e.value()));
        }
        let named = model
            .values()
            .filter(|(_, v)| v.graph() == g && names.contains(v.name.as_str()));
        all.extend(named.map(|(id, _)| id));
    }
    all
}
