//! How channels run through an operator: which indices of which axes stand and fall together.
//!
//! An operator is described by its [`Flow`]:
//!
//! * a [`Tie`] says that index i of one axis and index j of another are one channel: taking one away means taking the other
//!   away too (a filter of a Conv and the output channel it makes; both operands of a residual Add; a channel and its
//!   block of columns after Flatten);
//! * a [`Dot`] is a contraction, the only place where a channel's numbers reach other channels: `y_o = Σ_j w_oj x_j + b_o`;
//! * a [`Stop`] is an axis that cannot change its length, with the reason;
//! * a [`Fix`] is a number in the node, or in a constant it reads, that spells the length of an axis;
//! * the [`Law`] gives what comes out along a channel when what goes in is constant along it.
//!
//! An operator without a row in the table stops all its axes. An axis of length 1 that broadcasts is not tied.

mod layers;
mod moves;
mod picks;
mod pointwise;
mod recurrent;
mod reshape;

use super::infer::Dim;
use crate::ir::{Model, Node, NodeId, Tensor, ValueId};
use std::borrow::Cow;

/// One input or output of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Slot {
    /// Input number.
    In(usize),
    /// Output number.
    Out(usize),
}

/// An axis of an input or output, counted from 0.
pub type Axis = (Slot, usize);

/// Which index of one axis belongs to which of the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Map {
    /// i to i.
    Same,
    /// i to i + the number (Concat, Split).
    Offset(usize),
    /// For every f below `total`: `(f / inner) mod size` on either side; the pairs are `(inner, size)`. Index digits of
    /// a common row-major number (Flatten, Reshape, groups).
    Digits {
        /// How many numbers f there are.
        total: usize,
        /// The digit that is the index of `from`.
        from: (usize, usize),
        /// The digit that is the index of `to`.
        to: (usize, usize),
    },
    /// Index j of `to` is index `list[j]` of `from` (Gather, Slice).
    Pick(Vec<usize>),
}

impl Map {
    /// Calls `f` for every pair of indices; `false`, before any call, when the map does not fit axes of these lengths.
    pub fn pairs(&self, from_len: usize, to_len: usize, mut f: impl FnMut(usize, usize)) -> bool {
        match self {
            Map::Same => {
                if from_len != to_len {
                    return false;
                }
                (0..from_len).for_each(|i| f(i, i));
            }
            Map::Offset(k) => {
                if k.checked_add(from_len).is_none_or(|end| end > to_len) {
                    return false;
                }
                (0..from_len).for_each(|i| f(i, i + k));
            }
            &Map::Digits { total, from, to } => {
                let fits = |(inner, size): (usize, usize), len: usize| inner > 0 && size > 0 && size <= len;
                if !fits(from, from_len) || !fits(to, to_len) {
                    return false;
                }
                (0..total).for_each(|n| f(n / from.0 % from.1, n / to.0 % to.1));
            }
            Map::Pick(list) => {
                if list.len() != to_len || list.iter().any(|&i| i >= from_len) {
                    return false;
                }
                list.iter().enumerate().for_each(|(j, &i)| f(i, j));
            }
        }
        true
    }
}

/// Two axes whose indices belong together.
#[derive(Clone, Debug)]
pub struct Tie {
    /// One axis.
    pub from: Axis,
    /// The other.
    pub to: Axis,
    /// Which index of `from` belongs to which of `to`.
    pub map: Map,
}

/// An axis that must keep its length.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Where.
    pub slot: Slot,
    /// Which axis; `None` is all of them.
    pub axis: Option<usize>,
    /// Why, for the report.
    pub why: &'static str,
}

/// A contraction `y_o = alpha · Σ_j w_oj x_{g·J+j} + beta · b_o`, where row o lies in group g and a group has J inputs.
#[derive(Clone, Debug)]
pub struct Dot {
    /// The side whose channels are summed over.
    pub data: (usize, usize),
    /// The weight input, and the axis of it that is summed over.
    pub weight: (usize, usize),
    /// The axis of the weight that numbers the rows o.
    pub row: usize,
    /// The axis of output 0 that the rows become.
    pub out: usize,
    /// Groups of channels.
    pub groups: usize,
    /// The bias input, when the operator has one (it may still be left out).
    pub bias: Option<usize>,
    /// Factor of the sum.
    pub alpha: f32,
    /// Factor of the bias.
    pub beta: f32,
    /// True when a constant channel adds the same number everywhere; padding, for one, breaks that at the border.
    pub uniform: bool,
    /// True when a channel reaches only rows that are tied to itself (depthwise): nothing leaves the channel.
    pub inside: bool,
}

/// A number that spells the length of an axis.
#[derive(Clone, Debug)]
pub enum Fix {
    /// Element `index` of the constant integers at input `slot` of `node`.
    Entry {
        /// The node that reads the constant: this one, or the Concat that makes its shape input.
        node: NodeId,
        /// Its input.
        slot: usize,
        /// Which element.
        index: usize,
        /// The axis whose length it is.
        of: Axis,
    },
    /// Integer `index` of a list attribute.
    AttrEntry {
        /// The attribute.
        name: &'static str,
        /// Which element.
        index: usize,
        /// The axis whose length it is.
        of: Axis,
    },
    /// A plain integer attribute.
    Attr {
        /// The attribute.
        name: &'static str,
        /// The axis whose length it is.
        of: Axis,
    },
    /// The constant list at input `slot` says which indices of `from` those of `to` are (Gather).
    Picks {
        /// The list.
        slot: usize,
        /// What is picked from.
        from: Axis,
        /// What is picked.
        to: Axis,
    },
    /// Bounds of a Slice with step 1.
    Bounds {
        /// Attributes `starts` and `ends`, or inputs 1 and 2.
        by_attr: bool,
        /// Which element of the lists.
        index: usize,
        /// The axis of the input.
        axis: usize,
        /// What is taken of it.
        range: std::ops::Range<usize>,
    },
    /// The amounts of a Pad on one axis.
    Pads {
        /// Attribute `pads` (or `paddings`), or input 1.
        by_attr: bool,
        /// Which axis.
        axis: usize,
        /// Of how many.
        rank: usize,
        /// Where the input lies in the output.
        inner: std::ops::Range<usize>,
    },
    /// A Split that does not say its sizes has to say them when they are no longer equal.
    Sizes {
        /// The axis.
        axis: usize,
    },
}

/// What is known of an input along one channel of an output.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Arg {
    /// The input varies along the channel's axis, and its tied indices are constant with this number, if one is given.
    Tied(Option<f32>),
    /// The input does not vary along this axis; it is this number everywhere, if one is given.
    Loose(Option<f32>),
}

impl Arg {
    /// The number, if it is constant.
    pub fn number(self) -> Option<f32> {
        match self {
            Arg::Tied(x) | Arg::Loose(x) => x,
        }
    }
}

/// What comes out along a channel, given what goes in.
pub type Law = Box<dyn Fn(&[Arg]) -> Option<f32> + Send + Sync>;

/// All that is known of how channels run through one node.
#[derive(Default)]
pub struct Flow {
    /// Indices that belong together.
    pub ties: Vec<Tie>,
    /// Axes that keep their length.
    pub stops: Vec<Stop>,
    /// Contractions.
    pub dots: Vec<Dot>,
    /// Numbers that spell lengths.
    pub fixes: Vec<Fix>,
    /// True when axes that are not mentioned may change their length; else they are stopped.
    pub rest_is_free: bool,
    /// Constants in, constants out; `None` when nothing is known, or a [`Dot`] says it.
    pub law: Option<Law>,
}

impl Flow {
    fn tie(&mut self, from: Axis, to: Axis, map: Map) {
        self.ties.push(Tie { from, to, map });
    }
    fn same(&mut self, from: Axis, to: Axis) {
        self.tie(from, to, Map::Same);
    }
    fn stop(&mut self, axis: Axis, why: &'static str) {
        self.stops.push(Stop {
            slot: axis.0,
            axis: Some(axis.1),
            why,
        });
    }
    fn stop_slot(&mut self, slot: Slot, why: &'static str) {
        self.stops.push(Stop { slot, axis: None, why });
    }
}

/// A node, and what is known around it.
pub struct At<'a> {
    /// The model.
    pub model: &'a Model,
    /// The node's id.
    pub id: NodeId,
    /// The node.
    pub node: &'a Node,
    /// The dimensions of a value, as far as they are known; `None` when not even the rank is.
    pub dims: &'a dyn Fn(ValueId) -> Option<Vec<Dim>>,
    /// True when an axis is known to keep its length.
    pub stopped: &'a dyn Fn(ValueId, usize) -> bool,
}

impl At<'_> {
    /// The value at a slot.
    pub fn value(&self, slot: Slot) -> Option<ValueId> {
        match slot {
            Slot::In(i) => self.node.input(i),
            Slot::Out(i) => self.node.output(i),
        }
    }
    /// The dimensions at a slot, with the names of unknown ones.
    fn shape(&self, slot: Slot) -> Option<Vec<Dim>> {
        (self.dims)(self.value(slot)?)
    }
    /// The dimensions at a slot.
    fn dims(&self, slot: Slot) -> Option<Vec<Option<usize>>> {
        Some(self.shape(slot)?.iter().map(Dim::known).collect())
    }
    /// The dimensions at a slot when all are known.
    fn full_dims(&self, slot: Slot) -> Option<Vec<usize>> {
        self.dims(slot)?.into_iter().collect()
    }
    fn constant(&self, i: usize) -> Option<Cow<'_, Tensor>> {
        constant(self.model, self.node.input(i)?)
    }
    /// The integers of a constant input.
    fn ints(&self, i: usize) -> Option<Vec<i64>> {
        self.constant(i)?.ints()
    }
    /// The single number of a constant input.
    fn number(&self, i: usize) -> Option<f32> {
        let t = self.constant(i)?;
        match t.to_f32()?.as_ref() {
            &[x] => Some(x),
            _ => None,
        }
    }
    fn opset(&self) -> i64 {
        self.model.opset_of(self.id)
    }
    /// Every input and output that is there.
    fn slots(&self) -> Vec<Slot> {
        let ins = (0..self.node.inputs().len()).map(Slot::In);
        let outs = (0..self.node.outputs().len()).map(Slot::Out);
        ins.chain(outs).filter(|s| self.value(*s).is_some()).collect()
    }
    /// A possibly negative axis of a tensor of this rank.
    fn axis(&self, axis: i64, rank: usize) -> Option<usize> {
        let a = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(a).ok().filter(|a| *a < rank)
    }
    /// Axes given as attribute `axes` or as constant input `slot`; `Some(None)` when none are given.
    fn axes(&self, slot: usize, rank: usize) -> Option<Option<Vec<usize>>> {
        let list = match (self.node.ints("axes"), self.node.input(slot)) {
            (Some(a), _) => a.to_vec(),
            (None, Some(_)) => self.ints(slot)?,
            (None, None) => return Some(None),
        };
        let axes: Option<Vec<usize>> = list.iter().map(|&a| self.axis(a, rank)).collect();
        axes.map(Some)
    }
}

/// The tensor behind a value that is the same in every run: an initializer, or the tensor of a `Constant` node.
pub fn constant(model: &Model, v: ValueId) -> Option<Cow<'_, Tensor>> {
    if let Some(t) = model.constant(v) {
        return Some(Cow::Borrowed(t));
    }
    let node = model.node(model.value(v).producer()?);
    if !node.is("Constant") || node.has_attr_refs() {
        return None;
    }
    let proto = node.attr("value")?.proto.t.clone()?;
    Tensor::from_proto(proto, None).ok().map(Cow::Owned)
}

/// True when every element of a tensor takes whole bytes, so that it can be cut by index.
pub fn bits_are_whole_bytes(t: &Tensor) -> bool {
    crate::ir::bits(t.dtype()).is_some_and(|b| b % 8 == 0)
}

/// One row of the table: fills a flow, or gives `None` when this node's case is not known.
type Row = fn(&At, &mut Flow) -> Option<()>;

/// True for operators whose ties depend on which axes are already known to be stopped; ask for them last.
pub fn is_late(node: &Node) -> bool {
    node.is("Reshape") || node.is("Flatten")
}

/// How channels run through a node.
pub fn flow(at: &At) -> Flow {
    let rows = [
        layers::ROWS,
        moves::ROWS,
        picks::ROWS,
        recurrent::ROWS,
        reshape::ROWS,
        pointwise::ROWS,
    ];
    let row = rows
        .iter()
        .flat_map(|r| r.iter())
        .find(|(names, _)| names.contains(&at.node.op.name.as_str()));
    let known = at.node.op.domain.is_empty() && !at.node.has_attr_refs();
    let mut flow = Flow::default();
    if let (true, Some((_, row))) = (known, row) {
        if row(at, &mut flow).is_some() {
            return flow;
        }
        flow = Flow::default();
    }
    let why = match row {
        Some(_) if known => "its shapes or parameters are not known well enough",
        _ => "how channels run through this operator is not known",
    };
    at.slots().into_iter().for_each(|s| flow.stop_slot(s, why));
    flow
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(map: Map, from: usize, to: usize) -> Option<Vec<(usize, usize)>> {
        let mut out = Vec::new();
        map.pairs(from, to, |i, j| out.push((i, j))).then_some(out)
    }

    #[test]
    fn maps_give_their_pairs_or_refuse_lengths_that_do_not_fit() {
        assert_eq!(all(Map::Same, 2, 2), Some(vec![(0, 0), (1, 1)]));
        assert_eq!(all(Map::Same, 2, 3), None);
        assert_eq!(all(Map::Offset(3), 2, 5), Some(vec![(0, 3), (1, 4)]));
        assert_eq!(all(Map::Offset(usize::MAX), 2, 5), None);
        assert_eq!(all(Map::Pick(vec![2, 0]), 3, 2), Some(vec![(2, 0), (0, 1)]));
        assert_eq!(all(Map::Pick(vec![3]), 3, 1), None);
        let flatten = Map::Digits {
            total: 6,
            from: (3, 2),
            to: (1, 6),
        };
        let pairs = vec![(0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (1, 5)];
        assert_eq!(all(flatten.clone(), 2, 6), Some(pairs));
        assert_eq!(all(flatten, 1, 6), None);
    }
}
