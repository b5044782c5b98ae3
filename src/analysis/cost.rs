//! What a model costs: parameters, bytes of constants and MACs, node by node and in all.
//!
//! * **Parameters** are the elements of constant weights that are read somewhere: floats of at least one dimension and
//!   quantized integers; not shapes, indices, scales and zero points. A tensor read at several places counts once.
//! * **Bytes** are those of all constants that are read somewhere, whatever they are.
//! * **MACs** are counted for matrix operators ([`ops::cost`](crate::ops::cost)). Of an `If`, the branch that costs more
//!   counts; a loop's body counts once, since the number of iterations is not known.
//!
//! A constant is put down to the node that uses it: through `DequantizeLinear`, `Cast`, `Transpose` and the like, so that
//! a quantized Conv has its weight as an unquantized one has.

use crate::ir::{GraphId, Model, NodeId, Use, ValueId};
use crate::ops::cost::{bodies, constant_size, hands_on, is_parameter, macs};
use crate::ops::infer::{Call, Fact};
use crate::ops::types::{Functions, Types, function_of, functions};
use std::collections::BTreeMap;

/// What one node costs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeCost {
    /// The node.
    pub node: NodeId,
    /// Elements of its weights.
    pub params: u64,
    /// Bytes of its constants.
    pub bytes: u64,
    /// Multiply-accumulates of one run, without those of its sub-graphs; `None` when dimensions are not known.
    pub macs: Option<u64>,
}

/// What a model costs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cost {
    /// Elements of weights.
    pub params: u64,
    /// Bytes of constants.
    pub bytes: u64,
    /// Multiply-accumulates of one run; `None` when dimensions are not known.
    pub macs: Option<u64>,
    /// The nodes that cost something, of all graphs, oldest first.
    pub nodes: Vec<NodeCost>,
}

/// The cost of a model under these types (of [`infer_for`](crate::ops::types::infer_for), to have all dimensions).
pub fn cost(model: &Model, types: &Types) -> Cost {
    let mut weights: BTreeMap<NodeId, (u64, u64)> = BTreeMap::new();
    let mut total = Cost::default();
    for (v, value) in model.values() {
        let Some((rank, len, bytes)) = constant(model, v) else {
            continue;
        };
        if value.uses().is_empty() {
            continue;
        }
        let dtype = types.dtype(v).unwrap_or(crate::ir::DType::Undefined);
        let counts = |u: &Use| match *u {
            Use::Node(n, slot) => {
                let op = &model.node(n).op;
                is_parameter(&op.domain, &op.name, slot, dtype, rank)
            }
            Use::Output(..) => false,
        };
        let params = match in_planes(model, v) {
            Some(codes) => codes,
            None if value.uses().iter().any(counts) => len,
            None => 0,
        };
        total.params = total.params.saturating_add(params);
        total.bytes = total.bytes.saturating_add(bytes);
        if let Some(n) = owner(model, v) {
            let w = weights.entry(n).or_default();
            *w = (w.0.saturating_add(params), w.1.saturating_add(bytes));
        }
    }
    let mut by_node: BTreeMap<NodeId, Option<u64>> = BTreeMap::new();
    for (id, _) in model.nodes() {
        by_node.insert(id, node_macs(model, types, id));
    }
    let mut sums = Sums {
        model,
        types,
        functions: functions(model),
        by_node: &by_node,
        done: BTreeMap::new(),
    };
    total.macs = sums.graph(model.main_id());
    for (node, macs) in by_node {
        let (params, bytes) = weights.get(&node).copied().unwrap_or_default();
        if params > 0 || bytes > 0 || macs != Some(0) {
            total.nodes.push(NodeCost {
                node,
                params,
                bytes,
                macs,
            });
        }
    }
    total
}

/// Rank, elements and bytes of a constant: an initializer, or what a Constant node gives.
fn constant(model: &Model, v: ValueId) -> Option<(usize, u64, u64)> {
    let value = model.value(v);
    match value.tensor() {
        Some(t) => Some((t.dims().len(), t.len() as u64, t.byte_len() as u64)),
        None => constant_size(model.node(value.producer()?)),
    }
}

/// A constant goes through so many nodes at most to the one that uses it.
const HANDED_ON: usize = 12;

/// The node that uses a value in the end.
fn owner(model: &Model, v: ValueId) -> Option<NodeId> {
    let mut v = v;
    let mut last = None;
    for _ in 0..HANDED_ON {
        let Some(n) = model.readers(v).first().copied() else {
            break;
        };
        last = Some(n);
        let node = model.node(n);
        let next = node
            .output(0)
            .filter(|_| hands_on(node) && node.input(0) == Some(v) || joins_planes(model, n));
        match next {
            Some(o) if model.readers(o).len() == 1 => v = o,
            _ => break,
        }
    }
    last
}

/// The node of this kind that makes a value.
fn made_by<'m>(model: &'m Model, v: ValueId, op: &str) -> Option<&'m crate::ir::Node> {
    model.value(v).producer().map(|p| model.node(p)).filter(|n| n.is(op))
}

/// True for an Add of planes of bits (`int8(mixed=…)` writes them), cast to wider integers.
fn joins_planes(model: &Model, id: NodeId) -> bool {
    let plane = |v: &ValueId| {
        let cast = made_by(model, *v, "Cast").and_then(|n| n.input(0));
        let shaped = cast.and_then(|v| made_by(model, v, "Reshape")).and_then(|n| n.input(0));
        shaped.is_some_and(|v| made_by(model, v, "BitShift").is_some())
    };
    let node = model.node(id);
    node.is("Add") && node.inputs().iter().flatten().all(plane)
}

/// How many codes have their highest bits in these bytes; 0 for lower bits, which others count; `None` when it is no plane of bits.
fn in_planes(model: &Model, v: ValueId) -> Option<u64> {
    let shifted = |v: ValueId| match model.readers(v)[..] {
        [n] if model.node(n).is("BitShift") && model.node(n).input(0) == Some(v) => Some(model.node(n)),
        _ => None,
    };
    let apart = shifted(v)?;
    let low = shifted(apart.output(0)?)?;
    let codes_each = model.constant(apart.input(1)?)?.len() as u64;
    let high = low.output(0).and_then(shifted);
    match high.is_some_and(|n| n.input(1) == low.input(1)) {
        true => constant(model, v)?.1.checked_mul(codes_each),
        false => Some(0),
    }
}

fn node_macs(model: &Model, types: &Types, id: NodeId) -> Option<u64> {
    let node = model.node(id);
    let facts =
        |vs: &[Option<ValueId>]| -> Vec<Option<Fact>> { vs.iter().map(|v| v.map(|v| types.fact(v).clone())).collect() };
    if !crate::ops::cost::multiplies(&node.op.domain, &node.op.name) {
        return Some(0);
    }
    let (inputs, outputs) = (facts(node.inputs()), facts(node.outputs()));
    let inputs = inputs.iter().map(Option::as_ref).collect();
    let outputs: Vec<Option<&Fact>> = outputs.iter().map(Option::as_ref).collect();
    macs(
        &Call {
            node,
            opset: model.opset_of(id),
            inputs,
        },
        &outputs,
    )
}

/// Adds up graphs; the sum of a graph is kept, since a function may be called from many places.
struct Sums<'m> {
    model: &'m Model,
    functions: Functions<'m>,
    types: &'m Types,
    by_node: &'m BTreeMap<NodeId, Option<u64>>,
    done: BTreeMap<GraphId, Option<u64>>,
}

impl Sums<'_> {
    /// The MACs of all nodes of a graph; of the branches of an `If`, the largest.
    fn graph(&mut self, g: GraphId) -> Option<u64> {
        if let Some(known) = self.done.get(&g) {
            return *known;
        }
        self.done.insert(g, None); // what a function that calls itself would find
        let model = self.model;
        let nodes = model.graph(g).nodes().iter();
        let sum = nodes.copied().try_fold(0u64, |sum, n| sum.checked_add(self.node(n)?));
        self.done.insert(g, sum);
        sum
    }

    fn node(&mut self, n: NodeId) -> Option<u64> {
        let node = self.model.node(n);
        let called = function_of(&self.functions, node);
        let mut inner = 0u64;
        let condition = node.input(0).and_then(|v| self.types.fact(v).ints());
        let (taken, one_of) = bodies(node, condition.as_deref());
        for body in taken.into_iter().chain(called) {
            let macs = self.graph(body)?;
            inner = if one_of {
                inner.max(macs)
            } else {
                inner.checked_add(macs)?
            };
        }
        inner.checked_add((*self.by_node.get(&n)?)?)
    }
}
