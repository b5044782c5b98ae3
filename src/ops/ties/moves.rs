//! Operators that only move data: Transpose, Concat, Split, Slice, Gather, Pad, Resize, ….

use super::Slot::{In, Out};
use super::{Arg, At, Fix, Flow, Map, Row};
use crate::ir::NodeId;

pub(super) const ROWS: &[(&[&str], Row)] = &[
    (&["Transpose"], transpose),
    (&["Squeeze", "Unsqueeze"], squeeze),
    (&["Concat"], concat),
    (&["Pad"], pad),
    (&["Resize", "Upsample"], resize),
    (&["Expand"], expand),
    (&["Shape"], shape),
    (&["Constant"], cuttable),
];

const READ: &str = "its length is read by a Shape node";
pub(super) const MOVED: &str = "positions along this axis are moved or chosen";

/// All tied indices agree on a number: what is only moved keeps it.
pub(super) fn moved(flow: &mut Flow) {
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

/// One element of a list of lengths that a node reads.
pub(super) enum Entry {
    /// Constant: the node that reads it, its input and the position there; and the number.
    Constant(NodeId, (usize, usize), i64),
    /// Computed.
    Computed,
}

/// The elements of the list at an input: constant, or joined by a Concat of constants and computed single numbers.
pub(super) fn entries(at: &At, slot: usize) -> Option<Vec<Entry>> {
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

/// Axes outside of `touched` pass through, the others keep their length.
pub(super) fn keep_axes(flow: &mut Flow, rank: usize, touched: &[usize]) {
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
    let constant = at.node.string("mode").unwrap_or("constant") == "constant";
    let (from, to) = (at.dims(In(0))?, at.dims(Out(0))?);
    for a in 0..rank {
        let around = (usize::try_from(pads[a]), usize::try_from(pads[a + rank]));
        match (around, from[a], to.get(a).copied().flatten()) {
            ((Ok(0), Ok(0)), ..) => flow.same((In(0), a), (Out(0), a)),
            ((Ok(before), Ok(after)), Some(n), Some(m))
                if constant && before + n + after == m && (a < 2 || a + 1 == rank) =>
            {
                flow.tie((In(0), a), (Out(0), a), Map::Offset(before));
                flow.fixes.push(Fix::Pads {
                    by_attr,
                    axis: a,
                    rank,
                    inner: before..before + n,
                });
            }
            _ => {
                flow.stop((In(0), a), MOVED);
                flow.stop((Out(0), a), MOVED);
            }
        }
    }
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
    flow.stop((Out(0), 0), "a shape has a number for every axis");
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
