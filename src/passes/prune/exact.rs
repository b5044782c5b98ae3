//! Exact removal: units whose numbers reach nothing, or reach it as a constant.
//!
//! A unit's numbers leave it only through contractions (everything else that reads them is cut with it). It may go when
//! at every contraction it is zero, or its weights there are zero, or it is a constant c that adds the same to
//! every position: then `b_o += α/β · c · Σ w_oi` takes its place. What goes may leave zeros behind in the layers before it, so
//! this is repeated until nothing more goes. Every axis keeps at least one index.

use super::cut::{Kept, cut, kept};
use super::facts::Facts;
use super::fold;
use super::widths::{Widths, whole};
use crate::analysis::groups::{Dims, Groups};
use crate::ir::{Model, NodeId};
use crate::ops::ties::{Dot, Flow, constant};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

/// Where a constant channel is read: `(node, which of its dots)` → index of the channel → the constant.
pub type Constants = BTreeMap<(NodeId, usize), BTreeMap<usize, f32>>;

/// Why a unit is alive.
#[derive(Clone, Copy)]
enum Alive {
    /// It is read here, and varies.
    Varies(NodeId),
    /// It is this constant, but its share is not the same at every position here.
    Uneven(NodeId, f32),
}

/// What is known of the units at one point of the way.
pub struct Survey {
    alive: BTreeMap<usize, Alive>,
    /// Constant channels that can go into a bias.
    pub constants: Constants,
}

/// What one round took away.
pub struct Round {
    /// The dimensions after it.
    pub dims: Dims,
    /// For every contraction that lost rows: the other contractions that lost the same units, on either side.
    pub tied: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

impl Survey {
    /// Looks at every contraction.
    pub fn new(model: &Model, groups: &Groups, facts: &Facts) -> Survey {
        let mut survey = Survey {
            alive: BTreeMap::new(),
            constants: BTreeMap::new(),
        };
        for (id, flow) in &groups.flows {
            for k in reading_dots(model, *id, flow) {
                survey.look(model, groups, facts, (*id, k), &flow.dots[k]);
            }
        }
        survey
    }

    fn look(&mut self, model: &Model, groups: &Groups, facts: &Facts, key: (NodeId, usize), dot: &Dot) {
        let node = model.node(key.0);
        let axis = |(slot, axis): (usize, usize)| groups.axis(node.input(slot)?, axis);
        let (Some((start, len)), Some((weights, per_group))) = (axis(dot.data), axis(dot.weight)) else {
            return;
        };
        let has_dims = node.output(0).is_some_and(|v| groups.dims(v).is_some());
        let foldable = has_dims && fold::is_foldable(model, key.0, dot);
        for i in 0..len {
            let (x, w) = (facts.fixed(start + i), facts.fixed(weights + i % per_group));
            if x == Some(0.0) || w == Some(0.0) {
                continue;
            }
            let unit = groups.unit(start + i);
            match x {
                Some(c) if foldable => {
                    self.constants.entry(key).or_default().insert(i, c);
                }
                Some(c) => {
                    self.alive.entry(unit).or_insert(Alive::Uneven(key.0, c));
                }
                None => {
                    self.alive.insert(unit, Alive::Varies(key.0));
                }
            }
        }
    }

    /// Why a unit stays.
    pub fn why(&self, model: &Model, groups: &Groups, unit: usize) -> String {
        match (groups.stopped(unit), self.alive.get(&unit)) {
            (Some(why), _) => why.to_owned(),
            (None, Some(Alive::Varies(n))) => format!(
                "tied to channels that are not zero where {} reads them",
                model.label(*n)
            ),
            (None, Some(Alive::Uneven(n, c))) => format!(
                "it is the constant {c:.4}, but padding or strides of {} make its share differ from place to place",
                model.label(*n)
            ),
            (None, None) => "one channel must stay, and whole blocks of channels (round_to)".into(),
        }
    }

    /// The units that may go, such that no axis loses all, and as many of each kind as leave whole multiples.
    pub fn removable(&self, groups: &Groups, widths: &Widths) -> BTreeSet<usize> {
        let mut left = Vec::new();
        let mut places = Vec::new();
        let mut on: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
        for (k, (v, axis, start, len)) in groups.axes().enumerate() {
            left.push(len);
            places.push((v, axis));
            for e in start..start + len {
                *on.entry(groups.unit(e)).or_default().entry(k).or_default() += 1;
            }
        }
        // What lies on the same axes is of one kind.
        let mut kinds: BTreeMap<Vec<(usize, usize)>, Vec<usize>> = BTreeMap::new();
        for (unit, axes) in on {
            kinds.entry(axes.into_iter().collect()).or_default().push(unit);
        }
        let idle = |u: &usize| groups.stopped(*u).is_none() && !self.alive.contains_key(u);
        let mut gone = BTreeSet::new();
        for (axes, units) in kinds {
            let may: Vec<usize> = units.iter().copied().filter(idle).collect();
            // One has to stay on every axis.
            let room = axes.iter().map(|(k, n)| left[*k].saturating_sub(1) / n).min();
            let count = may.len().min(room.unwrap_or(0));
            let multiple = widths.harmless(axes.iter().map(|(k, _)| places[*k]), units.len());
            let count = whole(units.len(), count, multiple);
            axes.iter().for_each(|(k, n)| left[*k] -= n * count);
            gone.extend(may.into_iter().take(count));
        }
        gone
    }
}

/// The contraction through which a node reads channels from other nodes.
pub fn reading_dot(model: &Model, id: NodeId, flow: &Flow) -> Option<usize> {
    reading_dots(model, id, flow).into_iter().next()
}

/// All contractions through which a node reads channels: for a product of two activations, either one.
fn reading_dots(model: &Model, id: NodeId, flow: &Flow) -> Vec<usize> {
    let is_constant = |d: &Dot| {
        let weight = model.node(id).input(d.weight.0);
        weight.is_some_and(|v| constant(model, v).is_some())
    };
    let outside = |d: &Dot| !d.inside;
    let outer = |k: &usize| outside(&flow.dots[*k]);
    let read: Vec<usize> = (0..flow.dots.len()).filter(outer).collect();
    let constant: Vec<usize> = read.iter().copied().filter(|k| is_constant(&flow.dots[*k])).collect();
    match constant.is_empty() {
        true => read.into_iter().take(1).collect(),
        false => constant,
    }
}

/// Takes these units out, constants folded into the biases of what read them. `shifts` are other changes of biases.
///
/// # Errors
/// When the table of ties contradicts itself.
pub fn remove(
    model: &mut Model,
    groups: Groups,
    constants: &Constants,
    gone: &BTreeSet<usize>,
    mut shifts: Vec<fold::Shift>,
) -> Result<Round> {
    let kept = kept(&groups, gone);
    let tied = tied(model, &groups, gone, &kept);
    shifts.extend(fold::shifts(model, &groups, constants, gone));
    let mut dims = cut(model, groups, &kept)?;
    for shift in shifts {
        shift.apply(model, &kept, &mut dims);
    }
    Ok(Round { dims, tied })
}

fn tied(model: &Model, groups: &Groups, gone: &BTreeSet<usize>, kept: &Kept) -> BTreeMap<NodeId, BTreeSet<NodeId>> {
    let mut by_unit: BTreeMap<usize, BTreeSet<NodeId>> = BTreeMap::new();
    let mut shrunk = Vec::new();
    for (id, flow) in &groups.flows {
        let node = model.node(*id);
        let parametric = flow.dots.iter().any(|d| {
            let weight = node.input(d.weight.0);
            weight.is_some_and(|v| constant(model, v).is_some())
        });
        if !parametric {
            continue;
        }
        let both = [node.input(0), node.input(1), node.output(0)];
        for v in both.into_iter().flatten() {
            let rank = groups.dims(v).map_or(0, |d| d.len());
            for axis in (0..rank).filter(|a| kept.contains_key(&(v, *a))) {
                let Some((start, len)) = groups.axis(v, axis) else {
                    continue;
                };
                let units = (start..start + len).map(|e| groups.unit(e));
                units.filter(|u| gone.contains(u)).for_each(|u| {
                    by_unit.entry(u).or_default().insert(*id);
                });
            }
        }
        if let Some(v) = node
            .output(0)
            .filter(|v| flow.dots.iter().any(|d| kept.contains_key(&(*v, d.out))))
        {
            shrunk.push((*id, v));
        }
    }
    let mut out = BTreeMap::new();
    for (id, v) in shrunk {
        let mut others: BTreeSet<NodeId> = BTreeSet::new();
        for (_, _, start, len) in groups.axes().filter(|(w, ..)| *w == v) {
            for e in start..start + len {
                others.extend(by_unit.get(&groups.unit(e)).into_iter().flatten());
            }
        }
        others.remove(&id);
        out.insert(id, others);
    }
    out
}

/// For every contraction with a constant weight, the elements of the rows that are zero.
pub fn zero_rows(model: &Model, groups: &Groups, facts: &Facts) -> Vec<(NodeId, Vec<usize>)> {
    let mut out = Vec::new();
    for (id, flow) in &groups.flows {
        let node = model.node(*id);
        let Some(dot) = flow.dots.iter().find(|d| {
            let weight = node.input(d.weight.0);
            weight.is_some_and(|v| constant(model, v).is_some())
        }) else {
            continue;
        };
        let weight = node.input(dot.weight.0).and_then(|v| groups.axis(v, dot.row));
        let Some((start, len)) = weight else { continue };
        let zero: Vec<usize> = (start..start + len).filter(|e| facts.fixed(*e) == Some(0.0)).collect();
        if !zero.is_empty() {
            out.push((*id, zero));
        }
    }
    out
}
