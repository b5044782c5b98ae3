//! A channel shuffle becomes a Gather: then every channel can go alone.
//!
//! `Reshape [N, C, …] → [N, g, C/g, …]`, `Transpose` of the two, `Reshape` back is a permutation of channels that a shorter tensor of other
//! channels could only spell by losing the same channel in every group. `Gather` with the list of channels spells any. The
//! outputs are equal bit for bit. Done only when channels are to go, and only where nothing else reads the values between.
//!
//! A shuffle that is followed by a split may also be spelled as two Slices of every second channel: they become Gathers, too.

use crate::analysis::groups::Dims;
use crate::ir::{Attr, Model, NodeId, Tensor, ValueId};
use crate::ops::infer::Dim;
use crate::ops::ties::constant;

/// Replaces every shuffle, and says which and of how many channels; `dims` are extended by what is new.
pub fn unfold(model: &mut Model, dims: &mut Dims) -> Vec<(String, usize)> {
    let mut said = Vec::new();
    let of = |id: NodeId| shuffle(model, dims, id).or_else(|| strided(model, dims, id));
    let found: Vec<(NodeId, ValueId, ValueId, Vec<i64>)> = model.node_ids().into_iter().filter_map(of).collect();
    for (last, from, to, list) in found {
        let graph = model.node(last).graph();
        let label = format!("{}_gather", model.label(last));
        let n = list.len();
        let name = model.fresh_name(&format!("{label}_list"));
        let list = model.add_const(graph, &name, Tensor::new(&[n], list));
        let base = model.value(to).name.clone();
        let name = model.fresh_name(&base);
        let (_, outs) = model.add_node(
            graph,
            &label,
            "Gather",
            &[Some(from), Some(list)],
            &[&name],
            vec![Attr::int("axis", 1)],
        );
        let Some(&new) = outs.first() else { continue };
        said.push((model.label(last), n));
        model.replace_uses(to, new);
        let known = dims.get(to.index()).cloned().flatten();
        for (v, d) in [(new, known), (list, Some(vec![Dim::Known(n)]))] {
            dims.resize(dims.len().max(v.index() + 1), None);
            dims[v.index()] = d;
        }
    }
    model.sweep();
    said
}

/// The last node of a shuffle, what goes in and comes out, and for every channel that comes out which one it was.
fn shuffle(model: &Model, dims: &Dims, last: NodeId) -> Option<(NodeId, ValueId, ValueId, Vec<i64>)> {
    let is = |id: NodeId, op: &str| model.node(id).is(op) && model.node(id).op.domain.is_empty();
    let shape = |v: ValueId| -> Option<Vec<Option<usize>>> {
        Some(dims.get(v.index())?.as_ref()?.iter().map(Dim::known).collect())
    };
    let before = |id: NodeId| {
        let v = model.node(id).input(0)?;
        let p = model.value(v).producer()?;
        (model.only_use(v).is_some() && model.node(p).graph() == model.node(id).graph()).then_some((p, v))
    };
    let (turn, _) = before(last).filter(|_| is(last, "Reshape"))?;
    let (first, split) = before(turn).filter(|(p, _)| is(turn, "Transpose") && is(*p, "Reshape"))?;
    let (from, to) = (model.node(first).input(0)?, model.node(last).output(0)?);
    let (a, b, c) = (shape(from)?, shape(split)?, shape(to)?);
    let perm = model.node(turn).ints("perm")?;
    let swaps = perm.iter().enumerate().all(|(i, p)| {
        *p == match i {
            1 => 2,
            2 => 1,
            i => i as i64,
        }
    });
    let (channels, g, per) = (a.get(1).copied()??, b.get(1).copied()??, b.get(2).copied()??);
    let same_ends = b.len() == a.len() + 1 && a.len() == c.len() && c.get(1).copied()? == Some(channels);
    // The other axes are what they were, known or not: then the first Reshape did not move anything across them.
    let others = |x: &[Option<usize>], y: &[Option<usize>]| {
        x.len() == y.len() && x.iter().zip(y).all(|(x, y)| x.is_some() && x == y)
    };
    let batch = a.first()? == b.first()? && b.first()? == c.first()?;
    if !swaps || perm.len() != b.len() || !same_ends || !batch || g.checked_mul(per)? != channels {
        return None;
    }
    if !others(&a[2..], &b[3..]) || !others(&a[2..], &c[2..]) {
        return None;
    }
    let list = (0..channels).map(|p| (p % g * per + p / g) as i64).collect();
    Some((last, from, to, list))
}

/// As [`shuffle`] for a Slice that takes channels with a step.
fn strided(model: &Model, dims: &Dims, id: NodeId) -> Option<(NodeId, ValueId, ValueId, Vec<i64>)> {
    let node = model.node(id);
    if !node.is("Slice") || !node.op.domain.is_empty() || node.ints("starts").is_some() {
        return None;
    }
    let (from, to) = (node.input(0)?, node.output(0)?);
    let of = |v: ValueId| dims.get(v.index())?.as_ref()?.get(1)?.known();
    let (channels, taken) = (of(from)?, of(to)?);
    let one = |slot: usize| {
        let list = constant(model, node.input(slot)?)?.ints()?;
        (list.len() == 1).then(|| list[0])
    };
    let (start, axis, step) = (one(1)?, one(3)?, one(4)?);
    let n = i64::try_from(channels).ok()?;
    let first = if start < 0 { start.checked_add(n)? } else { start };
    let last = first.checked_add(step.checked_mul(i64::try_from(taken).ok()?.checked_sub(1)?)?)?;
    if axis != 1 || step < 2 || !(0..n).contains(&first) || !(0..n).contains(&last) {
        return None;
    }
    Some((id, from, to, (0..taken as i64).map(|k| first + k * step).collect()))
}
