//! Operators that only move data: Reshape, Flatten, Transpose, Concat, Split, Slice, Gather, Pad, Resize, ….

use super::Slot::{In, Out};
use super::{Arg, At, Fix, Flow, Map, Row};
use crate::ir::NodeId;
use crate::ops::infer::Dim;

pub(super) const ROWS: &[(&[&str], Row)] = &[
    (&["Transpose"], transpose),
    (&["Squeeze", "Unsqueeze"], squeeze),
    (&["Reshape", "Flatten"], reshape),
    (&["Concat"], concat),
    (&["Split"], split),
    (&["Slice"], slice),
    (&["Gather"], gather),
    (&["Pad"], pad),
    (&["Resize", "Upsample"], resize),
    (&["Expand"], expand),
    (&["Shape"], shape),
    (&["Constant"], cuttable),
];

const READ: &str = "its length is read by a Shape node";
const MIXED: &str = "a Reshape mixes it with other axes";
const MOVED: &str = "positions along this axis are moved or chosen";

/// The longest run of axes that a Reshape may mix index by index.
const MAX_RUN: usize = 1 << 24;

/// All tied indices agree on a number: what is only moved keeps it.
fn moved(flow: &mut Flow) {
    flow.law = Some(Box::new(|args: &[Arg]| {
        let mut numbers = args.iter().filter_map(|a| match a {
            Arg::Tied(x) => Some(*x),
            Arg::Loose(_) => None,
        });
        let first = numbers.next()??;
        numbers.all(|x| x == Some(first)).then_some(first)
    }));
}

/// The tensor of a `Constant` node is cut like an initializer.
fn cuttable(at: &At, flow: &mut Flow) -> Option<()> {
    let t = super::constant(at.model, at.node.output(0)?)?;
    flow.rest_is_free = super::bits_are_whole_bytes(&t);
    Some(())
}

fn transpose(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(In(0))?.len();
    let perm: Vec<i64> = match at.node.ints("perm") {
        Some(p) => p.to_vec(),
        None => (0..rank as i64).rev().collect(),
    };
    if perm.len() != rank {
        return None;
    }
    for (to, &from) in perm.iter().enumerate() {
        flow.same((In(0), at.axis(from, rank)?), (Out(0), to));
    }
    moved(flow);
    Some(())
}

fn squeeze(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(In(0))?.len();
    let (shorter, longer) = match at.node.op.name.as_str() {
        "Squeeze" => (Out(0), In(0)),
        _ => (In(0), Out(0)),
    };
    let all = match longer {
        In(_) => rank,
        Out(_) => at.dims(Out(0))?.len(),
    };
    let axes = match at.axes(1, all)? {
        Some(axes) => axes,
        None => {
            let d = at.full_dims(longer)?;
            (0..all).filter(|&a| d[a] == 1).collect()
        }
    };
    for (short, long) in (0..all).filter(|a| !axes.contains(a)).enumerate() {
        flow.same((shorter, short), (longer, long));
    }
    moved(flow);
    Some(())
}

/// How many elements come in one run of axes, where runs on both sides hold the same elements.
struct Run {
    from: std::ops::Range<usize>,
    to: std::ops::Range<usize>,
}

/// Cuts two shapes of the same number of elements into the shortest runs of equal size. Unknown lengths are matched by name;
/// one more on either side may be left over: the totals are equal, so if all else agrees, these two are equal too.
fn runs(from: &[Dim], to: &[Dim]) -> Option<Vec<Run>> {
    let (from, to) = (sizes(from)?, sizes(to)?);
    let (from, to) = same_names(from, to)?;
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() || j < to.len() {
        let (i0, j0) = (i, j);
        let (mut a, mut b) = (Size::one(), Size::one());
        loop {
            // The side that is behind takes its next axis; all in all both are equal, so one side always has one.
            let behind = (a.names.len(), a.known) <= (b.names.len(), b.known);
            match (behind && i < from.len()) || j >= to.len() {
                true => a.grow(from.get(i)?, &mut i),
                false => b.grow(to.get(j)?, &mut j),
            }
            if a == b {
                break;
            }
        }
        out.push(Run { from: i0..i, to: j0..j });
    }
    Some(out)
}

/// A number of elements: the product of what is known, and the names of the rest, sorted.
#[derive(Clone, PartialEq, Eq)]
struct Size {
    known: usize,
    names: Vec<String>,
}

impl Size {
    fn one() -> Size {
        Size {
            known: 1,
            names: Vec::new(),
        }
    }
    fn grow(&mut self, by: &Size, at: &mut usize) {
        self.known = self.known.saturating_mul(by.known);
        self.names.extend(by.names.iter().cloned());
        self.names.sort();
        *at += 1;
    }
}

/// One size for every axis; an unknown length has the empty name. `None` when there is an empty axis or several unknowns.
fn sizes(dims: &[Dim]) -> Option<Vec<Size>> {
    let of = |d: &Dim| match d {
        Dim::Known(n) => (*n, Vec::new()),
        Dim::Symbol(s) => (1, vec![format!("={s}")]),
        Dim::Unknown => (1, vec![String::new()]),
    };
    let sizes = dims.iter().map(of).map(|(known, names)| Size { known, names });
    let all: Vec<Size> = sizes.collect();
    let unknown = dims.iter().filter(|d| **d == Dim::Unknown).count();
    (unknown <= 1 && all.iter().all(|s| s.known > 0)).then_some(all)
}

/// Gives the one length that has no partner on the other side the same name on both; `None` when totals differ.
fn same_names(mut from: Vec<Size>, mut to: Vec<Size>) -> Option<(Vec<Size>, Vec<Size>)> {
    let total = |sizes: &[Size]| {
        let known = sizes.iter().try_fold(1usize, |p, s| p.checked_mul(s.known));
        let names: Vec<String> = sizes.iter().flat_map(|s| s.names.clone()).collect();
        known.map(|k| (k, names))
    };
    let ((a, mut only_from), (b, names)) = (total(&from)?, total(&to)?);
    let mut only_to = Vec::new();
    for n in names {
        match only_from.iter().position(|m| *m == n) {
            Some(i) => drop(only_from.swap_remove(i)),
            None => only_to.push(n),
        }
    }
    if a != b || only_from.len() != only_to.len() || only_from.len() > 1 {
        return None;
    }
    for (sizes, only) in [(&mut from, only_from), (&mut to, only_to)] {
        let odd = sizes.iter_mut().rev().find(|s| !only.is_empty() && s.names == only);
        if let Some(s) = odd {
            s.names = vec!["?".into()];
        }
    }
    Some((from, to))
}

fn reshape(at: &At, flow: &mut Flow) -> Option<()> {
    let runs = runs(&at.shape(In(0))?, &at.shape(Out(0))?)?;
    let (from, to) = (at.dims(In(0))?, at.dims(Out(0))?);
    for run in runs {
        if !tie_run(at, flow, &from, &to, &run) {
            run.from.for_each(|a| flow.stop((In(0), a), MIXED));
            run.to.for_each(|a| flow.stop((Out(0), a), MIXED));
        }
    }
    if at.node.is("Reshape") {
        let entries = entries(at, 1);
        for (a, _) in to.iter().enumerate() {
            match entries.as_ref().and_then(|e| e.get(a)) {
                Some(&Entry::Constant(_, _, n)) if n <= 0 => {}
                Some(&Entry::Constant(node, (slot, index), _)) => flow.fixes.push(Fix::Entry {
                    node,
                    slot,
                    index,
                    of: (Out(0), a),
                }),
                _ if to[a].is_none() => {}
                _ => flow.stop((Out(0), a), "its length is computed for a Reshape"),
            }
        }
    }
    moved(flow);
    Some(())
}

/// Ties the one axis on either side of a run that carries channels; every other axis of the run keeps its length.
fn tie_run(at: &At, flow: &mut Flow, from: &[Option<usize>], to: &[Option<usize>], run: &Run) -> bool {
    let carrier = |slot, d: &[Option<usize>], range: &std::ops::Range<usize>| {
        let long: Vec<usize> = range.clone().filter(|&a| d[a] != Some(1)).collect();
        let free = |a: &usize| at.value(slot).is_some_and(|v| !(at.stopped)(v, *a));
        let chosen = match long[..] {
            [only] => Some(only),
            _ => long.iter().copied().find(free),
        };
        (chosen, long)
    };
    let ((Some(a), ins), (Some(b), outs)) = (carrier(In(0), from, &run.from), carrier(Out(0), to, &run.to)) else {
        return run.from.clone().chain(run.to.clone()).count() == 0
            || from[run.from.clone()].iter().all(|d| *d == Some(1));
    };
    if ins.len() == 1 && outs.len() == 1 {
        flow.same((In(0), a), (Out(0), b));
        return true;
    }
    let digit = |d: &[Option<usize>], axis: usize, range: &std::ops::Range<usize>| {
        let inner = d[axis + 1..range.end]
            .iter()
            .try_fold(1usize, |p, x| p.checked_mul((*x)?));
        Some((inner?, d[axis]?))
    };
    let total = from[run.from.clone()]
        .iter()
        .try_fold(1usize, |p, x| p.checked_mul((*x)?));
    let (Some(x), Some(y), Some(total)) = (digit(from, a, &run.from), digit(to, b, &run.to), total) else {
        return false;
    };
    if total > MAX_RUN {
        return false;
    }
    let map = Map::Digits { total, from: x, to: y };
    flow.tie((In(0), a), (Out(0), b), map);
    ins.iter()
        .filter(|x| **x != a)
        .for_each(|&x| flow.stop((In(0), x), MIXED));
    outs.iter()
        .filter(|x| **x != b)
        .for_each(|&x| flow.stop((Out(0), x), MIXED));
    true
}

/// One element of a list of lengths that a node reads.
enum Entry {
    /// Constant: the node that reads it, its input and the position there; and the number.
    Constant(NodeId, (usize, usize), i64),
    /// Computed.
    Computed,
}

/// The elements of the list at an input: constant, or joined by a Concat of constants and computed single numbers.
fn entries(at: &At, slot: usize) -> Option<Vec<Entry>> {
    let of = |node: NodeId, slot: usize, ints: Vec<i64>| {
        let one = move |(i, n): (usize, i64)| Entry::Constant(node, (slot, i), n);
        ints.into_iter().enumerate().map(one).collect::<Vec<_>>()
    };
    if let Some(ints) = at.ints(slot) {
        return Some(of(at.id, slot, ints));
    }
    let id = at.model.value(at.node.input(slot)?).producer()?;
    let node = at.model.node(id);
    if !node.is("Concat") {
        return None;
    }
    let mut all = Vec::new();
    for (i, v) in node.inputs().iter().enumerate() {
        let v = (*v)?;
        match super::constant(at.model, v) {
            Some(t) => all.extend(of(id, i, t.ints()?)),
            None => {
                let n = (at.dims)(v)?.first()?.known()?;
                if n > 64 {
                    return None;
                }
                all.extend((0..n).map(|_| Entry::Computed));
            }
        }
    }
    Some(all)
}

fn concat(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(Out(0))?.len();
    let axis = at.axis(at.node.int_or("axis", 1), rank)?;
    let mut offset = Some(0usize);
    for i in 0..at.node.inputs().len() {
        let d = at.dims(In(i))?;
        if d.len() != rank {
            return None;
        }
        for a in (0..rank).filter(|a| *a != axis) {
            flow.same((In(i), a), (Out(0), a));
        }
        match offset {
            Some(o) => flow.tie((In(i), axis), (Out(0), axis), Map::Offset(o)),
            None => flow.stop((In(i), axis), "an input before it has an unknown length"),
        }
        offset = offset.and_then(|o| o.checked_add(d[axis]?));
    }
    if offset.is_none() {
        flow.stop((Out(0), axis), "an input of a Concat has an unknown length");
        return Some(());
    }
    moved(flow);
    Some(())
}

fn split(at: &At, flow: &mut Flow) -> Option<()> {
    let d = at.dims(In(0))?;
    let axis = at.axis(at.node.int_or("axis", 0), d.len())?;
    let attr = at.node.ints("split").map(<[i64]>::to_vec);
    let by_attr = attr.is_some();
    let sizes = match (attr, at.node.input(1)) {
        (Some(s), _) => Some(s),
        (None, Some(_)) => at.ints(1),
        (None, None) => None,
    };
    let mut offset = 0usize;
    for k in 0..at.node.outputs().len() {
        at.node.output(k)?;
        for a in (0..d.len()).filter(|a| *a != axis) {
            flow.same((In(0), a), (Out(k), a));
        }
        let Some(n) = sizes.as_ref().and_then(|s| usize::try_from(*s.get(k)?).ok()) else {
            flow.stop((In(0), axis), "it is split into parts of equal or computed size");
            flow.stop((Out(k), axis), "it is one of parts of equal or computed size");
            continue;
        };
        flow.tie((Out(k), axis), (In(0), axis), Map::Offset(offset));
        offset = offset.checked_add(n)?;
        let of = (Out(k), axis);
        flow.fixes.push(match by_attr {
            true => Fix::AttrEntry {
                name: "split",
                index: k,
                of,
            },
            false => Fix::Entry {
                node: at.id,
                slot: 1,
                index: k,
                of,
            },
        });
    }
    moved(flow);
    Some(())
}

fn slice(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(In(0))?.len();
    let (axes, count) = match at.node.ints("starts") {
        Some(starts) => (at.axes(usize::MAX, rank)?, starts.len()),
        None => {
            let axes = match at.node.input(3) {
                Some(_) => Some(
                    at.ints(3)?
                        .iter()
                        .map(|&a| at.axis(a, rank))
                        .collect::<Option<Vec<_>>>()?,
                ),
                None => None,
            };
            (axes, at.dims(In(1))?.first().copied()??)
        }
    };
    let axes = axes.unwrap_or_else(|| (0..count.min(rank)).collect());
    keep_axes(flow, rank, &axes);
    Some(())
}

/// Axes outside of `touched` pass through, the others keep their length.
fn keep_axes(flow: &mut Flow, rank: usize, touched: &[usize]) {
    for a in 0..rank {
        match touched.contains(&a) {
            false => flow.same((In(0), a), (Out(0), a)),
            true => {
                flow.stop((In(0), a), MOVED);
                flow.stop((Out(0), a), MOVED);
            }
        }
    }
    moved(flow);
}

fn gather(at: &At, flow: &mut Flow) -> Option<()> {
    let (rank, index_rank) = (at.dims(In(0))?.len(), at.dims(In(1))?.len());
    let axis = at.axis(at.node.int_or("axis", 0), rank)?;
    for a in (0..rank).filter(|a| *a != axis) {
        let to = if a < axis { a } else { a + index_rank - 1 };
        flow.same((In(0), a), (Out(0), to));
    }
    flow.stop((In(0), axis), MOVED);
    flow.stop_slot(In(1), MOVED);
    (axis..axis + index_rank).for_each(|a| flow.stop((Out(0), a), MOVED));
    moved(flow);
    Some(())
}

fn pad(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(In(0))?.len();
    let by_attr = at.node.ints("pads").or_else(|| at.node.ints("paddings"));
    let (pads, by_attr) = match by_attr {
        Some(p) => (p.to_vec(), true),
        None => (at.ints(1)?, false),
    };
    if pads.len() != 2 * rank || at.node.input(3).is_some() {
        return None;
    }
    let touched: Vec<usize> = (0..rank).filter(|&a| pads[a] != 0 || pads[a + rank] != 0).collect();
    keep_axes(flow, rank, &touched);
    let constant = at.node.string("mode").unwrap_or("constant") == "constant";
    let filler = match (by_attr, at.node.input(2)) {
        (true, _) => at.node.float("value").unwrap_or(0.0),
        (false, Some(_)) => at.number(2).unwrap_or(f32::NAN),
        (false, None) => 0.0,
    };
    flow.law = Some(Box::new(move |args: &[Arg]| {
        args.first()?.number().filter(|x| !constant || *x == filler)
    }));
    Some(())
}

fn resize(at: &At, flow: &mut Flow) -> Option<()> {
    let (from, to) = (at.dims(In(0))?, at.dims(Out(0))?);
    if from.len() != to.len() || at.node.attr("axes").is_some() {
        return None;
    }
    let touched: Vec<usize> = (0..from.len())
        .filter(|&a| from[a].is_none() || from[a] != to[a])
        .collect();
    keep_axes(flow, from.len(), &touched);
    if at.node.input(3).is_some() {
        let entries = entries(at, 3);
        for a in (0..to.len()).filter(|a| !touched.contains(a) && to[*a] != Some(1)) {
            match entries.as_ref().and_then(|e| e.get(a)) {
                Some(&Entry::Constant(node, (slot, index), _)) => flow.fixes.push(Fix::Entry {
                    node,
                    slot,
                    index,
                    of: (Out(0), a),
                }),
                _ => flow.stop((Out(0), a), "its length is computed for a Resize"),
            }
        }
    }
    let plain = at.node.string("coordinate_transformation_mode") != Some("tf_crop_and_resize");
    flow.law = Some(Box::new(move |args: &[Arg]| {
        args.first()?.number().filter(|x| plain && *x == 0.0)
    }));
    Some(())
}

fn expand(at: &At, flow: &mut Flow) -> Option<()> {
    let (from, to) = (at.dims(In(0))?, at.dims(Out(0))?);
    let shift = to.len().checked_sub(from.len())?;
    let entries = entries(at, 1);
    for (a, d) in from.iter().enumerate() {
        let Some(n) = d else {
            flow.stop((Out(0), a + shift), MOVED);
            continue;
        };
        if *n == 1 {
            continue;
        }
        flow.same((In(0), a), (Out(0), a + shift));
        let at_end = entries
            .as_ref()
            .and_then(|e| e.get((a + shift + e.len()).checked_sub(to.len())?));
        match at_end {
            Some(&Entry::Constant(_, _, 1)) => {}
            Some(&Entry::Constant(node, (slot, index), _)) => flow.fixes.push(Fix::Entry {
                node,
                slot,
                index,
                of: (Out(0), a + shift),
            }),
            _ => flow.stop((Out(0), a + shift), "its length is computed for an Expand"),
        }
    }
    moved(flow);
    Some(())
}

/// Only the axes that somebody looks at keep their length.
fn shape(at: &At, flow: &mut Flow) -> Option<()> {
    flow.rest_is_free = true;
    let rank = at.dims(In(0))?.len();
    let clamp = |i: i64| (if i < 0 { i + rank as i64 } else { i }).clamp(0, rank as i64) as usize;
    let (start, end) = (
        clamp(at.node.int_or("start", 0)),
        clamp(at.node.int_or("end", rank as i64)),
    );
    let all: Vec<usize> = (start..end.max(start)).collect();
    let mut read: Vec<usize> = Vec::new();
    let out = at.model.value(at.node.output(0)?);
    for u in out.uses() {
        let of_use = match *u {
            crate::ir::Use::Node(n, 0) => picked(at, n, all.len()),
            _ => None,
        };
        match of_use {
            Some(list) => read.extend(list.into_iter().filter_map(|i| all.get(i))),
            None => read.extend(&all),
        }
    }
    read.into_iter().for_each(|a| flow.stop((In(0), a), READ));
    Some(())
}

/// Which elements of a vector of `n` a Gather or Slice picks, when that is constant.
fn picked(at: &At, reader: NodeId, n: usize) -> Option<Vec<usize>> {
    let node = at.model.node(reader);
    let ints = |i: usize| super::constant(at.model, node.input(i)?)?.ints();
    let index = |i: i64| usize::try_from(if i < 0 { i + n as i64 } else { i }).ok();
    if node.is("Gather") {
        return ints(1)?.into_iter().map(index).collect();
    }
    if !node.is("Slice") || node.input(4).is_some_and(|_| ints(4) != Some(vec![1])) {
        return None;
    }
    let bound = |name: &str, slot: usize| match node.ints(name) {
        Some(&[x]) => Some(x),
        Some(_) => None,
        None => match ints(slot)?[..] {
            [x] => Some(x),
            _ => None,
        },
    };
    let clamp = |i: i64| (if i < 0 { i.saturating_add(n as i64) } else { i }).clamp(0, n as i64) as usize;
    let (start, end) = (clamp(bound("starts", 1)?), clamp(bound("ends", 2)?));
    Some((start..end.max(start)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(from: &[i64], to: &[i64]) -> Option<Vec<(std::ops::Range<usize>, std::ops::Range<usize>)>> {
        let dims = |d: &[i64]| {
            let dim = |&x: &i64| match x {
                0 => Dim::Unknown,
                x if x < 0 => Dim::Symbol(format!("n{x}")),
                x => Dim::Known(x as usize),
            };
            d.iter().map(dim).collect::<Vec<_>>()
        };
        Some(
            runs(&dims(from), &dims(to))?
                .into_iter()
                .map(|r| (r.from, r.to))
                .collect(),
        )
    }

    #[test]
    fn a_reshape_falls_into_runs_of_equal_size() {
        // 0 stands for an unknown length, negative numbers for names.
        assert_eq!(cut(&[0, 8, 7, 7], &[0, 392]), Some(vec![(0..1, 0..1), (1..4, 1..2)]));
        assert_eq!(cut(&[-1, 8, 7, 7], &[0, 392]), Some(vec![(0..1, 0..1), (1..4, 1..2)]));
        assert_eq!(
            cut(&[2, 6, 5], &[2, 3, 2, 5]),
            Some(vec![(0..1, 0..1), (1..2, 1..3), (2..3, 3..4)])
        );
        assert_eq!(
            cut(&[-1, -2, 12], &[-1, 0, 3, 4]),
            Some(vec![(0..1, 0..1), (1..2, 1..2), (2..3, 2..4)])
        );
        assert_eq!(cut(&[4, 3], &[6, 2]), Some(vec![(0..2, 0..2)]));
        assert_eq!(cut(&[0, 4], &[4, 0]), Some(vec![(0..2, 0..2)]));
        assert_eq!(cut(&[3], &[3, 1, 1]).map(|r| r.len()), Some(3));
        for (from, to) in [(&[0, 4], &[0, 5]), (&[0, 0], &[0, 0]), (&[-1, -2], &[-3, -4])] {
            assert_eq!(cut(from, to), None);
        }
        assert_eq!(cut(&[i64::MAX, 4], &[4, i64::MAX]), None);
    }
}
