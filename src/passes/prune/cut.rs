//! Taking units out of a model: constants are cut, numbers that spell lengths are rewritten, declared types forgotten.

use super::spell;
use crate::analysis::groups::{Dims, Groups, value_at};
use crate::ir::{Model, NodeId, Tensor, ValueId};
use crate::ops::infer::Dim;
use crate::ops::ties::{Axis, Fix, Slot, constant};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Which indices of which axes stay: `true` stays. Axes that keep all are left out.
pub type Kept = BTreeMap<(ValueId, usize), Vec<bool>>;

/// What stays of every axis when these units go.
pub fn kept(groups: &Groups, gone: &BTreeSet<usize>) -> Kept {
    let of_axis = |(v, axis, start, len): (ValueId, usize, usize, usize)| {
        let keep: Vec<bool> = (start..start + len).map(|e| !gone.contains(&groups.unit(e))).collect();
        keep.contains(&false).then_some(((v, axis), keep))
    };
    groups.axes().filter_map(of_axis).collect()
}

/// Cuts every axis in `kept` and gives the new dimensions.
///
/// # Errors
/// When the rows of the table of ties contradict each other: a fault of this program, not of the file.
pub fn cut(model: &mut Model, groups: Groups, kept: &Kept) -> Result<Dims> {
    let mut by_value: BTreeMap<ValueId, Vec<(usize, &Vec<bool>)>> = BTreeMap::new();
    for ((v, axis), keep) in kept {
        by_value.entry(*v).or_default().push((*axis, keep));
    }
    let mut spelled = Vec::new();
    for (id, flow) in &groups.flows {
        for fix in &flow.fixes {
            let new = new_numbers(model, &groups, *id, fix, kept);
            spelled.extend(new.map(|n| (*id, fix.clone(), n)));
        }
    }
    for (&v, axes) in &by_value {
        if let Some(t) = constant(model, v) {
            let mut t = t.into_owned();
            for (axis, keep) in axes {
                t = cut_tensor(&t, *axis, keep).with_context(|| format!("cutting {}", model.value(v).name))?;
            }
            set_constant(model, v, t);
        }
        model.forget_type(v);
    }
    for (id, fix, n) in spelled {
        spell::spell(model, id, &fix, &n);
    }
    let mut dims = groups.into_dims();
    for ((v, axis), keep) in kept {
        if let Some(d) = dims.get_mut(v.index()).and_then(|d| d.as_mut()?.get_mut(*axis)) {
            *d = Dim::Known(count(keep));
        }
    }
    Ok(dims)
}

/// How many stay.
pub fn count(keep: &[bool]) -> usize {
    keep.iter().filter(|k| **k).count()
}

/// The elements of a tensor at the kept indices of an axis.
pub fn cut_tensor(t: &Tensor, axis: usize, keep: &[bool]) -> Option<Tensor> {
    let mut dims = t.dims().to_vec();
    let width = crate::ir::bits(t.dtype()).filter(|b| b % 8 == 0)? / 8;
    if *dims.get(axis)? != keep.len() {
        return None;
    }
    let inner = dims[axis + 1..].iter().product::<usize>() * width;
    let raw = t.raw();
    let mut out = Vec::with_capacity(raw.len() / keep.len().max(1) * count(keep));
    if inner > 0 {
        for (slice, keep) in raw.chunks(inner).zip(keep.iter().cycle()) {
            if *keep {
                out.extend_from_slice(slice);
            }
        }
    }
    dims[axis] = count(keep);
    Tensor::from_raw(t.dtype(), &dims, out.into()).ok()
}

/// Replaces a constant, be it an initializer or a `Constant` node.
pub fn set_constant(model: &mut Model, v: ValueId, t: Tensor) {
    if model.constant(v).is_some() {
        model.set_const(v, t);
        return;
    }
    if let Some(id) = model.value(v).producer() {
        let node = model.node_mut(id);
        if let Some(a) = node.attrs.iter_mut().find(|a| a.name() == "value") {
            a.proto.t = Some(t.to_inline_proto());
        }
        model.forget_type(v);
    }
}

/// What a fix has to say now; `None` when nothing changes.
fn new_numbers(model: &Model, groups: &Groups, id: NodeId, fix: &Fix, kept: &Kept) -> Option<Vec<i64>> {
    let keep = |(slot, axis): Axis| kept.get(&(value_at(model, id, slot)?, axis));
    let stay = |k: &[bool]| count(k) as i64;
    match fix {
        Fix::Entry { of, .. } | Fix::AttrEntry { of, .. } | Fix::Attr { of, .. } => Some(vec![stay(keep(*of)?)]),
        Fix::Bounds { axis, range, .. } => {
            let k = keep((Slot::In(0), *axis))?;
            Some(vec![stay(k.get(..range.start)?), stay(k.get(..range.end)?)])
        }
        Fix::Pads { axis, inner, .. } => {
            let k = keep((Slot::Out(0), *axis))?;
            Some(vec![stay(k.get(..inner.start)?), stay(k.get(inner.end..)?)])
        }
        Fix::Sizes { axis } => {
            keep((Slot::In(0), *axis))?;
            let size = |slot: usize| match keep((Slot::Out(slot), *axis)) {
                Some(k) => Some(stay(k)),
                None => Some(groups.axis(model.node(id).output(slot)?, *axis)?.1 as i64),
            };
            (0..model.node(id).outputs().len()).map(size).collect()
        }
        Fix::Picks { slot, from, to } => {
            let list = constant(model, model.node(id).input(*slot)?)?.ints()?;
            let (source, taken) = (keep(*from), keep(*to));
            if source.is_none() && taken.is_none() {
                return None;
            }
            let n = groups.axis(value_at(model, id, from.0)?, from.1)?.1 as i64;
            let place = |i: &i64| {
                let i = usize::try_from(if *i < 0 { i + n } else { *i }).ok()?;
                source.map_or(Some(i as i64), |k| k.get(..i).map(stay))
            };
            let stays = |j: usize| taken.is_none_or(|k| k.get(j) == Some(&true));
            list.iter()
                .enumerate()
                .filter(|(j, _)| stays(*j))
                .map(|(_, i)| place(i))
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_cut_along_any_axis_and_type() {
        let t = Tensor::new(&[2, 3], vec![1u8, 2, 3, 4, 5, 6]);
        let cut = cut_tensor(&t, 1, &[true, false, true]).expect("it fits");
        assert_eq!((cut.dims(), cut.raw().to_vec()), (&[2, 2][..], vec![1, 3, 4, 6]));
        let cut = cut_tensor(&t, 0, &[false, true]).expect("it fits");
        assert_eq!((cut.dims(), cut.raw().to_vec()), (&[1, 3][..], vec![4, 5, 6]));
        assert!(cut_tensor(&t, 0, &[true]).is_none());
        assert!(cut_tensor(&t, 2, &[true]).is_none());
    }
}
