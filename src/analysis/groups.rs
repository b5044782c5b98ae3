//! Channel groups: which channels of the whole model stand and fall together.
//!
//! Every index of every axis that an operator ties is an element; ties unite elements (union-find), and what is united is
//! one **unit**: a channel with all its filters, biases, parameters, columns and block of columns after Flatten. Taking a
//! unit out of every axis leaves a model of consistent shapes. A unit is stopped when one of its elements is: the
//! first reason is kept. See [`crate::ops::ties`] for what an operator says.
//!
//! Cost: one pass over the nodes, and memory of about 16 bytes for every index of every tied axis.

use crate::ir::{GraphId, Model, NodeId, Origin, Use, ValueId};
use crate::ops::infer::Dim;
use crate::ops::ties::{self, At, Axis, Flow, Slot, Tie, bits_are_whole_bytes};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The dimensions of values as far as they are known, by [`ValueId::index`].
pub type Dims = Vec<Option<Vec<Dim>>>;

/// No more elements than this in all, and on an axis: a bound on memory for absurd shapes.
const MAX_ELEMENTS: usize = 1 << 26;
const MAX_LENGTH: usize = 1 << 20;

/// The units of a model, and the flows that they come from.
pub struct Groups {
    /// Every axis with elements: the first element, and how many.
    axes: BTreeMap<(ValueId, usize), (usize, usize)>,
    /// Element → element of the same unit; a unit's root points to itself. Whoever looks for a root makes ways to it shorter.
    parent: Vec<AtomicU32>,
    /// Unit root → why it must stay.
    stops: BTreeMap<usize, Arc<str>>,
    /// The flow of every node, in an order of execution, inner nodes before the node that holds them.
    pub flows: Vec<(NodeId, Flow)>,
    dims: Dims,
}

impl Groups {
    /// The units of the main graph and its sub-graphs. `dims` is indexed by value.
    pub fn new(model: &Model, dims: Dims) -> Groups {
        let mut g = Groups {
            axes: BTreeMap::new(),
            parent: Vec::new(),
            stops: BTreeMap::new(),
            flows: Vec::new(),
            dims,
        };
        let mut order = Vec::new();
        execution_order(model, model.main_id(), &mut order);
        let late = |n: &NodeId| ties::is_late(model.node(*n));
        let mut flows: BTreeMap<NodeId, Flow> = BTreeMap::new();
        for &n in order.iter().filter(|n| !late(n)) {
            flows.insert(n, g.add(model, n));
        }
        g.stop_ports(model);
        for &n in order.iter().filter(|n| late(n)) {
            flows.insert(n, g.add(model, n));
        }
        g.stop_what_cannot_be_cut(model);
        g.flows = order.into_iter().filter_map(|n| Some((n, flows.remove(&n)?))).collect();
        g
    }

    fn add(&mut self, model: &Model, id: NodeId) -> Flow {
        let flow = {
            let this = &*self;
            let at = At {
                model,
                id,
                node: model.node(id),
                dims: &|v| this.dims(v),
                stopped: &|v, a| this.is_stopped(v, a),
            };
            ties::flow(&at)
        };
        for stop in &flow.stops {
            let Some(v) = value_at(model, id, stop.slot) else {
                continue;
            };
            let why = format!("{}: {}", model.label(id), stop.why);
            match stop.axis {
                Some(a) => self.stop_axis(v, a, &why),
                None => self.stop_value(v, &why),
            }
        }
        for tie in &flow.ties {
            self.unite(model, id, tie);
        }
        if !flow.rest_is_free {
            self.stop_the_rest(model, id, &flow);
        }
        flow
    }

    /// What a flow does not mention is not free to change.
    fn stop_the_rest(&mut self, model: &Model, id: NodeId, flow: &Flow) {
        let node = model.node(id);
        let ins = node.inputs().iter().enumerate().map(|(i, v)| (Slot::In(i), *v));
        let outs = node.outputs().iter().enumerate().map(|(i, v)| (Slot::Out(i), *v));
        let tied: BTreeSet<Axis> = flow.ties.iter().flat_map(|t| [t.from, t.to]).collect();
        for (slot, v) in ins.chain(outs) {
            let Some(v) = v else { continue };
            let rank = self.dims.get(v.index()).and_then(|d| d.as_ref()).map_or(0, Vec::len);
            for axis in (0..rank).filter(|a| !tied.contains(&(slot, *a))) {
                self.stop_axis(
                    v,
                    axis,
                    &format!("{}: this axis has a fixed length here", model.label(id)),
                );
            }
        }
    }

    fn unite(&mut self, model: &Model, id: NodeId, tie: &Tie) {
        let side = |axis: Axis| Some((value_at(model, id, axis.0)?, axis.1));
        let (Some(from), Some(to)) = (side(tie.from), side(tie.to)) else {
            return;
        };
        let fits = match (self.elements(from.0, from.1), self.elements(to.0, to.1)) {
            (Some((a, na)), Some((b, nb))) => {
                let mut pairs = Vec::new();
                let fits = tie.map.pairs(na, nb, |i, j| pairs.push((a + i, b + j)));
                pairs.into_iter().for_each(|(x, y)| self.join(x, y));
                fits
            }
            (None, None) => true,
            _ => false,
        };
        if !fits {
            let why = format!(
                "{}: the lengths of its axes are not known or do not fit",
                model.label(id)
            );
            self.stop_axis(from.0, from.1, &why);
            self.stop_axis(to.0, to.1, &why);
        }
    }

    /// Graph inputs and outputs never change shape.
    fn stop_ports(&mut self, model: &Model) {
        for (v, value) in model.values() {
            if value.origin() == Origin::Input {
                let why = match model.constant(v) {
                    Some(_) => format!(
                        "{} is listed among the graph inputs (as before IR 4); simplify first",
                        value.name
                    ),
                    None => format!("graph input {}", value.name),
                };
                self.stop_value(v, &why);
            }
            let port = value.uses().iter().find_map(|u| match *u {
                Use::Output(g, slot) => model.graph(g).outputs().get(slot),
                Use::Node(..) => None,
            });
            if let Some(port) = port {
                self.stop_value(v, &format!("graph output {}", port.name()));
            }
        }
    }

    /// Initializers whose bytes cannot be cut by index.
    fn stop_what_cannot_be_cut(&mut self, model: &Model) {
        for (v, value) in model.values() {
            let whole = match (value.origin(), value.tensor()) {
                (Origin::Const, Some(t)) => bits_are_whole_bytes(t),
                (Origin::Sparse, _) => false,
                _ => true,
            };
            if !whole {
                self.stop_value(v, &format!("{} is stored in a form that is not cut", value.name));
            }
        }
    }

    /// The dimensions of a value.
    pub fn dims(&self, v: ValueId) -> Option<Vec<Dim>> {
        self.dims.get(v.index())?.clone()
    }

    /// All dimensions, by value.
    pub fn all_dims(&self) -> &Dims {
        &self.dims
    }

    /// All dimensions, to carry over to the next round.
    pub fn into_dims(self) -> Dims {
        self.dims
    }

    /// The first element of an axis and their number; made when they are asked for the first time.
    fn elements(&mut self, v: ValueId, axis: usize) -> Option<(usize, usize)> {
        if let Some(&e) = self.axes.get(&(v, axis)) {
            return Some(e);
        }
        let len = self.dims.get(v.index())?.as_ref()?.get(axis)?.known()?;
        let start = self.parent.len();
        if len == 0 || len > MAX_LENGTH || len > MAX_ELEMENTS - start {
            return None;
        }
        self.parent
            .extend((start..start + len).map(|e| AtomicU32::new(e as u32)));
        self.axes.insert((v, axis), (start, len));
        Some((start, len))
    }

    /// The first element of an axis and their number, if anything ties or stops it.
    pub fn axis(&self, v: ValueId, axis: usize) -> Option<(usize, usize)> {
        self.axes.get(&(v, axis)).copied()
    }

    /// Every axis with elements, its first element and their number.
    pub fn axes(&self) -> impl Iterator<Item = (ValueId, usize, usize, usize)> + '_ {
        self.axes.iter().map(|(&(v, a), &(start, len))| (v, a, start, len))
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.parent.len()
    }

    /// True when nothing is tied.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The unit that an element belongs to, named by one of its elements.
    pub fn unit(&self, element: usize) -> usize {
        let up = |e: usize| self.parent[e].load(Relaxed) as usize;
        let mut root = element;
        while up(root) != root {
            let next = up(up(root));
            self.parent[root].store(next as u32, Relaxed);
            root = next;
        }
        root
    }

    /// Why a unit must stay, if something says so.
    pub fn stopped(&self, unit: usize) -> Option<&str> {
        self.stops.get(&unit).map(|why| &**why)
    }

    /// True when every index of an axis must stay.
    fn is_stopped(&self, v: ValueId, axis: usize) -> bool {
        let Some((start, len)) = self.axis(v, axis) else {
            return false;
        };
        (start..start + len).all(|e| self.stops.contains_key(&self.unit(e)))
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.unit(a), self.unit(b));
        if a == b {
            return;
        }
        let (root, child) = (a.min(b), a.max(b));
        *self.parent[child].get_mut() = root as u32;
        if let Some(why) = self.stops.remove(&child) {
            self.stops.entry(root).or_insert(why);
        }
    }

    fn stop_axis(&mut self, v: ValueId, axis: usize, why: &str) {
        if let Some((start, len)) = self.elements(v, axis) {
            let why: Arc<str> = why.into();
            for e in start..start + len {
                let unit = self.unit(e);
                self.stops.entry(unit).or_insert_with(|| why.clone());
            }
        }
    }

    fn stop_value(&mut self, v: ValueId, why: &str) {
        let rank = self.dims.get(v.index()).and_then(|d| d.as_ref()).map_or(0, Vec::len);
        (0..rank).for_each(|a| self.stop_axis(v, a, why));
    }
}

/// The value at a slot of a node.
pub fn value_at(model: &Model, id: NodeId, slot: ties::Slot) -> Option<ValueId> {
    match slot {
        ties::Slot::In(i) => model.node(id).input(i),
        ties::Slot::Out(i) => model.node(id).output(i),
    }
}

/// The nodes of a graph and of its sub-graphs, each after what it reads.
fn execution_order(model: &Model, graph: GraphId, out: &mut Vec<NodeId>) {
    for n in model.topological(graph).unwrap_or_default() {
        for g in model.node(n).sub_graphs() {
            execution_order(model, g, out);
        }
        out.push(n);
    }
}
