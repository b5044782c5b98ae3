//! Operators that hand on their input unchanged, by their attributes or by the shapes around them.
//!
//! `Dropout` outside of training (opset 7 on: always, or by its `training_mode` input from opset 12 on; below: `is_test`);
//! `Cast` to the type it has; `Reshape`, `Flatten`, `Expand`, `Tile`, `Slice`, `Pad`, `Resize` that give the shape they
//! get; `Transpose` by the identity; reductions over axes of size 1; `Concat`, `Split`, `Sum`, `Max`, `Min`, `Mean` of one.

use super::work::Work;
use crate::ir::{NodeId, ValueId};
use crate::ops::infer::Dim;

pub(super) fn remove(w: &mut Work, id: NodeId) -> Option<String> {
    let op = w.model.node(id).op.name.clone();
    let same = same_as(w, id, &op)?;
    w.bypass(id, same)?;
    Some(format!("{op} does nothing: removed"))
}

fn same_as(w: &Work, id: NodeId, op: &str) -> Option<ValueId> {
    let n = w.model.node(id);
    let (x, out) = (n.input(0)?, n.output(0)?);
    let same_shape = || w.facts.same_shape(x, out);
    let nothing = match op {
        "Identity" => true,
        "Dropout" => is_inference_dropout(w, id),
        "Cast" => {
            let from = w.facts.dtype(x)?;
            n.int("to") == Some(i64::from(from as i32))
        }
        "CastLike" => w.facts.dtype(x)? == w.facts.dtype(n.input(1)?)?,
        "Reshape" => keeps_all_dims(w, id) || same_shape(),
        "Flatten" => {
            let axis = n.int_or("axis", 1);
            (w.facts.rank(x)? == 2 && (axis == 1 || axis == -1)) || same_shape()
        }
        "Squeeze" | "Unsqueeze" => w.facts.rank(x)? == w.facts.rank(out)?,
        "Expand" | "Tile" => w.ints_input(id, 1).is_some_and(|r| all_one_within(w, x, &r)) || same_shape(),
        "Transpose" => match n.ints("perm") {
            Some(p) => p.iter().enumerate().all(|(i, &p)| p == i as i64),
            None => w.facts.rank(x)? <= 1,
        },
        "Slice" => is_whole_slice(w, id),
        "Pad" => pads_nothing(w, id),
        "Resize" => is_unscaled(w, id) && same_shape(),
        "Upsample" => same_shape(),
        "Concat" | "Sum" | "Max" | "Min" | "Mean" => n.inputs().len() == 1,
        "Split" => n.outputs().len() == 1 && same_shape(),
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" => {
            n.int_or("keepdims", 1) != 0 && reduces_only_ones(w, id)
        }
        "DepthToSpace" | "SpaceToDepth" => n.int("blocksize") == Some(1),
        "Clip" => w.opset(id) >= 11 && n.input(1).is_none() && n.input(2).is_none(),
        _ => false,
    };
    nothing.then_some(x)
}

fn is_inference_dropout(w: &Work, id: NodeId) -> bool {
    let n = w.model.node(id);
    match w.opset(id) {
        0..7 => n.int_or("is_test", 0) != 0,
        7..12 => true,
        _ => match n.input(2) {
            None => true,
            Some(_) => w.constant_input(id, 2).and_then(|t| t.ints()).is_some_and(|t| t == [0]),
        },
    }
}

/// The target shape repeats every dimension of the input (0 copies one, a single -1 is then determined).
fn keeps_all_dims(w: &Work, id: NodeId) -> bool {
    let n = w.model.node(id);
    let target = match w.opset(id) < 5 {
        true => n.ints("shape").map(<[i64]>::to_vec),
        false => w.ints_input(id, 1),
    };
    let (Some(target), Some(x)) = (target, n.input(0).and_then(|x| w.facts.shape(x))) else {
        return false;
    };
    let copies = n.int_or("allowzero", 0) == 0;
    let free = target.iter().filter(|&&t| t == -1).count();
    let keeps = |(&t, d): (&i64, &Dim)| match t {
        -1 => true,
        0 if copies => true,
        t => d.known().is_some_and(|d| d as i64 == t),
    };
    target.len() == x.len() && free <= 1 && target.iter().zip(x).all(keeps)
}

fn all_one_within(w: &Work, x: ValueId, sizes: &[i64]) -> bool {
    sizes.iter().all(|&s| s == 1) && w.facts.rank(x).is_some_and(|r| sizes.len() <= r)
}

fn is_whole_slice(w: &Work, id: NodeId) -> bool {
    let n = w.model.node(id);
    let (Some(x), Some(out)) = (n.input(0), n.output(0)) else {
        return false;
    };
    let (starts, ends, steps) = match w.opset(id) < 10 {
        true => (
            n.ints("starts").map(<[i64]>::to_vec),
            n.ints("ends").map(<[i64]>::to_vec),
            None,
        ),
        false => {
            let steps = n.input(4).map(|_| w.ints_input(id, 4).unwrap_or(vec![0]));
            (w.ints_input(id, 1), w.ints_input(id, 2), steps)
        }
    };
    let forward = steps.is_none_or(|s| s.iter().all(|&s| s == 1));
    let (Some(starts), Some(ends)) = (starts, ends) else {
        return forward && w.facts.same_shape(x, out);
    };
    let open = ends.iter().all(|&e| e >= i64::from(i32::MAX));
    forward && (starts.iter().all(|&s| s == 0) && open || w.facts.same_shape(x, out))
}

fn pads_nothing(w: &Work, id: NodeId) -> bool {
    let n = w.model.node(id);
    let pads = match w.opset(id) < 11 {
        true => n.ints("pads").or(n.ints("paddings")).map(<[i64]>::to_vec),
        false => w.ints_input(id, 1),
    };
    pads.is_some_and(|p| p.iter().all(|&p| p == 0))
}

/// Every coordinate maps to itself when a size is kept, unless a region of interest is cropped.
fn is_unscaled(w: &Work, id: NodeId) -> bool {
    let n = w.model.node(id);
    let crops = n.string("coordinate_transformation_mode") == Some("tf_crop_and_resize");
    let policy = n.string("keep_aspect_ratio_policy").unwrap_or("stretch");
    let scales = match w.opset(id) < 11 {
        true => Some(1),
        false => n.input(2).map(|_| 2),
    };
    let by_one = |slot: usize| {
        let scales = w.constant_input(id, slot).filter(|t| !t.is_empty());
        scales.is_some_and(|t| super::numbers::all_are(&t, 1.0))
    };
    let sizes = w.opset(id) >= 11 && n.input(3).is_some();
    !crops && policy == "stretch" && (sizes || scales.is_some_and(by_one))
}

/// Each reduced axis has one element, and is kept.
fn reduces_only_ones(w: &Work, id: NodeId) -> bool {
    let n = w.model.node(id);
    let Some(shape) = n.input(0).and_then(|x| w.facts.shape(x)) else {
        return false;
    };
    let since = if n.op.name == "ReduceSum" { 13 } else { 18 };
    let axes = match w.opset(id) < since {
        true => Some(n.ints("axes").map(<[i64]>::to_vec).unwrap_or_default()),
        false if n.input(1).is_none() => Some(Vec::new()),
        false => w.ints_input(id, 1),
    };
    let Some(axes) = axes else { return false };
    let one = |d: Option<&Dim>| d.is_some_and(|d| *d == Dim::Known(1));
    if axes.is_empty() {
        return n.int_or("noop_with_empty_axes", 0) != 0 || shape.iter().all(|d| *d == Dim::Known(1));
    }
    let rank = shape.len() as i64;
    axes.iter().all(|&a| {
        let a = if a < 0 { a + rank } else { a };
        usize::try_from(a).is_ok_and(|a| one(shape.get(a)))
    })
}
