//! Taking units out of a model: constants are cut, numbers that spell lengths are rewritten, declared types forgotten.

use crate::analysis::groups::{Dims, Groups, value_at};
use crate::ir::{Model, NodeId, Tensor, ValueId};
use crate::ops::infer::Dim;
use crate::ops::ties::{Axis, Fix, constant};
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
    let mut spelled = Vec::new();
    for (id, flow) in &groups.flows {
        for fix in &flow.fixes {
            if let Some(n) = new_length(model, *id, fix, kept) {
                spelled.push((*id, fix.clone(), n));
            }
        }
    }
    for (id, fix, n) in spelled {
        spell(model, id, &fix, n);
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

fn new_length(model: &Model, id: NodeId, fix: &Fix, kept: &Kept) -> Option<i64> {
    let of: &Axis = match fix {
        Fix::Entry { of, .. } | Fix::AttrEntry { of, .. } | Fix::Attr { of, .. } => of,
    };
    let keep = kept.get(&(value_at(model, id, of.0)?, of.1))?;
    Some(count(keep) as i64)
}

/// Writes a length where a node, or a constant that it reads, spells it. The constant may have other readers: they keep theirs.
fn spell(model: &mut Model, id: NodeId, fix: &Fix, n: i64) {
    match *fix {
        Fix::Entry { node, slot, index, .. } => {
            let Some(v) = model.node(node).input(slot) else { return };
            let Some(t) = constant(model, v).map(std::borrow::Cow::into_owned) else { return };
            let Some(mut ints) = t.ints() else { return };
            let Some(entry) = ints.get_mut(index) else { return };
            *entry = n;
            let new = match t.dtype() {
                crate::ir::DType::Int32 => Tensor::new(t.dims(), ints.iter().map(|&i| i as i32).collect()),
                _ => Tensor::new(t.dims(), ints),
            };
            if model.value(v).uses().len() == 1 {
                set_constant(model, v, new);
                return;
            }
            let name = model.fresh_name(&model.value(v).name.clone());
            let own = model.add_const(model.node(node).graph(), &name, new);
            model.set_input(node, slot, Some(own));
        }
        Fix::AttrEntry { name, index, .. } => {
            let node = model.node_mut(id);
            let attr = node.attrs.iter_mut().find(|a| a.name() == name);
            if let Some(entry) = attr.and_then(|a| a.proto.ints.get_mut(index)) {
                *entry = n;
            }
        }
        Fix::Attr { name, .. } => model.node_mut(id).set_attr(crate::ir::Attr::int(name, n)),
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
