//! Operators that only regroup elements: `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`. Their order of elements is the
//! same, so in a chain of them only the last shape counts.
//!
//! A chain that ends in the shape it began with is nothing; otherwise its last operator reads the first one's input, as a
//! `Reshape` to a constant shape with at most one -1 (never beside a dimension of size 0). A target that a shape
//! sub-graph computes becomes constant when at most one of its entries is not known; an entry that copies the input's
//! dimension at its place is written as 0.

use super::numbers::list;
use super::work::Work;
use crate::ir::{Attr, NodeId, ValueId};
use crate::ops::infer::Dim;

const REGROUP: &[&str] = &["Reshape", "Flatten", "Squeeze", "Unsqueeze"];

pub(super) fn merge(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is_any(id, REGROUP) || w.opset(id) < 5 {
        return None;
    }
    let inner = w.model.input_producer(id, 0)?;
    if !w.is_any(inner, REGROUP) {
        return None;
    }
    let (x, out) = (w.model.node(inner).input(0)?, w.model.node(id).output(0)?);
    if w.facts.same_shape(x, out) || undoes(w, inner, id) {
        w.bypass(id, x)?;
        return Some("undoes the regrouping before it: both removed".into());
    }
    skip_inner(w, id, inner, x)
        .or_else(|| as_reshape(w, id, inner, x, out))
        .or_else(|| join_axes(w, id, inner, x))
}

/// `Squeeze` and `Unsqueeze` of the same axes: both lists count axes of the larger shape.
fn undoes(w: &Work, inner: NodeId, outer: NodeId) -> bool {
    let opposite =
        w.is(inner, "Squeeze") && w.is(outer, "Unsqueeze") || w.is(inner, "Unsqueeze") && w.is(outer, "Squeeze");
    match (axes(w, inner), axes(w, outer)) {
        (Some(mut a), Some(mut b)) if opposite => {
            a.sort_unstable();
            b.sort_unstable();
            a == b
        }
        _ => false,
    }
}

/// A target without copied dimensions does not depend on how its input is grouped.
fn skip_inner(w: &mut Work, id: NodeId, inner: NodeId, x: ValueId) -> Option<String> {
    if !w.is(id, "Reshape") {
        return None;
    }
    let target = w.ints_input(id, 1)?;
    let copies = w.model.node(id).int_or("allowzero", 0) == 0;
    if copies && target.contains(&0) {
        let between = w.facts.shape(w.model.node(inner).output(0)?)?;
        let resolved = target.iter().enumerate().map(|(i, &t)| match t {
            0 => between.get(i)?.known().filter(|d| *d > 0).map(|d| d as i64),
            t => Some(t),
        });
        let resolved = resolved.collect::<Option<Vec<i64>>>()?;
        set_target(w, id, &resolved);
    }
    w.model.set_input(id, 0, Some(x));
    Some("Reshape reads the input of the regrouping before it".into())
}

fn as_reshape(w: &mut Work, id: NodeId, inner: NodeId, x: ValueId, out: ValueId) -> Option<String> {
    if w.private_producer(id, 0) != Some(inner) {
        return None;
    }
    let target = target_of(w.facts.shape(out)?, None)?;
    w.set_op(id, "Reshape", Vec::new());
    w.model.set_inputs(id, vec![Some(x)]);
    set_target(w, id, &target);
    Some("merged with the regrouping before it into one Reshape".into())
}

/// The entries of a constant target for this shape; `x` is the shape that zeros copy from.
fn target_of(shape: &[Dim], x: Option<&[Dim]>) -> Option<Vec<i64>> {
    let mut free = 0;
    let entry = |(i, d): (usize, &Dim)| match d {
        Dim::Known(0) => None,
        Dim::Known(n) => i64::try_from(*n).ok(),
        d if x.and_then(|x| x.get(i)).is_some_and(|s| s.same(d)) => Some(0),
        _ => {
            free += 1;
            Some(-1)
        }
    };
    let target = shape.iter().enumerate().map(entry).collect::<Option<Vec<i64>>>()?;
    (free <= 1).then_some(target)
}

fn set_target(w: &mut Work, id: NodeId, target: &[i64]) {
    let out = w.model.node(id).output(0);
    let base = out.map_or(String::new(), |o| format!("{}_shape", w.model.value(o).name));
    let graph = w.model.node(id).graph();
    let shape = w.add_const(graph, &base, list(target));
    w.model.set_input(id, 1, Some(shape));
}

/// The axes of a `Squeeze` or `Unsqueeze`, when they are given and constant.
fn axes(w: &Work, id: NodeId) -> Option<Vec<i64>> {
    match w.opset(id) < 13 {
        true => w.model.node(id).ints("axes").map(<[i64]>::to_vec),
        false => w.ints_input(id, 1),
    }
}

/// Two `Squeeze` or two `Unsqueeze` in a row are one.
fn join_axes(w: &mut Work, id: NodeId, inner: NodeId, x: ValueId) -> Option<String> {
    let same_op = w.model.node(id).op == w.model.node(inner).op && !w.is(id, "Reshape") && !w.is(id, "Flatten");
    if !same_op || w.private_producer(id, 0) != Some(inner) {
        return None;
    }
    let (first, second) = (axes(w, inner)?, axes(w, id)?);
    if first.iter().chain(&second).any(|&a| !(0..64).contains(&a)) {
        return None;
    }
    // Unsqueeze: the first axes lie among those that the second does not insert. Squeeze: the second ones among those
    // that the first leaves.
    let (kept, moved) = match w.is(id, "Unsqueeze") {
        true => (second, first),
        false => (first, second),
    };
    let places: Vec<i64> = (0..128).filter(|p| !kept.contains(p)).collect();
    let mut all = kept;
    all.extend(moved.iter().map(|&m| places[m as usize]));
    all.sort_unstable();
    w.model.set_input(id, 0, Some(x));
    if w.opset(id) < 13 {
        w.model.node_mut(id).set_attr(Attr::ints("axes", all));
    } else {
        let graph = w.model.node(id).graph();
        let new = w.add_const(graph, "axes", list(&all));
        w.model.set_input(id, 1, Some(new));
    }
    Some("merged with the one before it".into())
}

/// Makes a computed target shape constant where the shape of the output is known well enough.
pub(super) fn constant_target(w: &mut Work, id: NodeId) -> Option<String> {
    let expand = w.is(id, "Expand");
    let reads_target = expand || (w.is(id, "Reshape") && w.opset(id) >= 5);
    if !reads_target || w.constant_input(id, 1).is_some() {
        return None;
    }
    let n = w.model.node(id);
    let (x, out) = (w.facts.shape(n.input(0)?)?, w.facts.shape(n.output(0)?)?);
    let target = match expand {
        true => expand_target(x, out)?,
        false => target_of(out, (n.int_or("allowzero", 0) == 0).then_some(x))?,
    };
    set_target(w, id, &target);
    Some("its shape is known: made constant".into())
}

/// 1 keeps a dimension of the input; dimensions are aligned at the end.
fn expand_target(x: &[Dim], out: &[Dim]) -> Option<Vec<i64>> {
    let lead = out.len().checked_sub(x.len())?;
    let entry = |(i, d): (usize, &Dim)| match d {
        d if i >= lead && x[i - lead].same(d) => Some(1),
        Dim::Known(n) => i64::try_from(*n).ok(),
        _ => None,
    };
    out.iter().enumerate().map(entry).collect()
}
