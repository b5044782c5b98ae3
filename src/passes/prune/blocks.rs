//! Whole branches of residual sums, `y = x + f(x)`: when a layer loses all that it reads, f is a constant.
//!
//! A group of channels may go as a whole when each layer that reads it reads nothing else, and what that layer gives out is only
//! added to something of the same shape. The mean of f stays: `y = x + E f(x)`; and what later layers then lack they make up for
//! in the repair. With the layer goes all that only it needs. Else every group keeps one channel.

use super::costs::Share;
use super::fold::takes_shift;
use super::units::{Reader, Units};
use crate::analysis::groups::Groups;
use crate::ir::{Model, NodeId, Tensor, Use, ValueId};
use crate::ops::ties::constant;
use std::collections::{BTreeMap, BTreeSet};

/// A group that may go as a whole.
pub struct Whole {
    /// The layers that read it, and nothing else.
    pub readers: BTreeSet<NodeId>,
    /// They, and all that only they need.
    pub dead: BTreeSet<NodeId>,
    /// What all of these cost.
    pub share: Share,
}

/// What a group's going as a whole takes along; `None` when it cannot.
pub fn whole(model: &Model, groups: &Groups, units: &Units, members: &[usize]) -> Option<Whole> {
    let mut read: BTreeMap<NodeId, BTreeSet<usize>> = BTreeMap::new();
    for (id, channels) in members.iter().filter_map(|u| units.units.get(u)).flat_map(|u| &u.read) {
        read.entry(*id).or_default().extend(channels);
    }
    for (id, channels) in &read {
        let r = units.readers.get(id)?.as_ref()?;
        let (_, len) = groups.axis(r.input, r.dot.data.1)?;
        let plain = r.dot.groups == 1 && r.dot.alpha == 1.0 && r.dot.beta == 1.0 && r.patch.is_some();
        if channels.len() != len || !plain || !takes_shift(model, *id, &r.dot) || !is_added(model, groups, r.out) {
            return None;
        }
    }
    let readers: BTreeSet<NodeId> = read.into_keys().collect();
    let dead = dead(model, groups, &readers);
    let share = units.costs.saved(&BTreeSet::new(), &dead);
    (!readers.is_empty()).then_some(Whole { readers, dead, share })
}

/// True when a value is read by sums only, which are not larger for it.
fn is_added(model: &Model, groups: &Groups, v: ValueId) -> bool {
    let uses = model.value(v).uses();
    let added = |u: &Use| {
        let Use::Node(id, slot @ (0 | 1)) = *u else {
            return false;
        };
        let node = model.node(id);
        let (Some(other), Some(sum)) = (node.input(1 - slot), node.output(0)) else {
            return false;
        };
        if !node.is("Add") || !node.op.domain.is_empty() || other == v {
            return false;
        }
        match constant(model, other) {
            Some(_) => groups.dims(sum) == groups.dims(v) && is_added(model, groups, sum),
            None => groups
                .dims(sum)
                .is_some_and(|d| groups.dims(other) == Some(d.clone()) && groups.dims(v) == Some(d)),
        }
    };
    groups.dims(v).is_some() && !uses.is_empty() && uses.iter().all(added)
}

/// These nodes, and all that only they need.
fn dead(model: &Model, groups: &Groups, ends: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut dead = ends.clone();
    for (id, _) in groups.flows.iter().rev() {
        let node = model.node(*id);
        let unused = |v: &ValueId| {
            let gone = |u: &Use| matches!(u, Use::Node(n, _) if dead.contains(n));
            model.value(*v).uses().iter().all(gone)
        };
        if node.graph() == model.main_id() && node.outputs().iter().flatten().all(unused) {
            dead.insert(*id);
        }
    }
    dead
}

/// Puts constants in the places of these layers, which read nothing that matters any more, and takes out what is not needed then.
pub fn drop_branches(model: &mut Model, branches: &[(NodeId, Reader)]) {
    for (id, r) in branches {
        let node = model.node(*id);
        let (graph, label) = (node.graph(), model.label(*id));
        let (Some(out), Some(rows)) = (
            node.output(0),
            constant(model, r.weight).and_then(|t| t.dims().get(r.dot.row).copied()),
        ) else {
            continue;
        };
        let bias = r.dot.bias.and_then(|slot| node.input(slot));
        let bias = bias.and_then(|b| Some(constant(model, b)?.to_f32()?.into_owned()));
        let mean: Vec<f32> = match bias.as_deref() {
            Some([one]) => vec![*one; rows],
            Some(all) => all.to_vec(),
            None => vec![0.0; rows],
        };
        if mean.iter().all(|x| *x == 0.0) {
            add_nothing(model, out);
            continue;
        }
        let mut dims = vec![1; r.rank.saturating_sub(r.dot.out).max(1)];
        dims[0] = rows;
        let name = model.fresh_name(&format!("{label}_mean"));
        let mean = model.add_const(graph, &name, Tensor::new(&dims, mean));
        model.replace_uses(out, mean);
    }
    model.sweep();
}

/// Sums that a value is part of are what they are without it.
fn add_nothing(model: &mut Model, v: ValueId) {
    for u in model.value(v).uses().to_vec() {
        if let Use::Node(id, slot @ (0 | 1)) = u
            && let (Some(other), Some(sum)) = (model.node(id).input(1 - slot), model.node(id).output(0))
        {
            model.replace_uses(sum, other);
        }
    }
}
