//! Numbers that spell lengths and places are rewritten where a node, or a constant that it reads, says them.

use super::cut::set_constant;
use crate::ir::{Attr, DType, Model, NodeId, Tensor};
use crate::ops::ties::{Fix, constant};

/// Writes what a fix has to say.
pub fn spell(model: &mut Model, id: NodeId, fix: &Fix, new: &[i64]) {
    match (fix, new) {
        (Fix::Entry { node, slot, index, .. }, &[n]) => entries(model, *node, *slot, &[(*index, n)]),
        (Fix::AttrEntry { name, index, .. }, &[n]) => attr_entries(model, id, name, &[(*index, n)]),
        (Fix::Attr { name, .. }, &[n]) => model.node_mut(id).set_attr(Attr::int(name, n)),
        (
            Fix::Bounds {
                by_attr: true, index, ..
            },
            &[start, end],
        ) => {
            attr_entries(model, id, "starts", &[(*index, start)]);
            attr_entries(model, id, "ends", &[(*index, end)]);
        }
        (Fix::Bounds { index, .. }, &[start, end]) => {
            entries(model, id, 1, &[(*index, start)]);
            entries(model, id, 2, &[(*index, end)]);
        }
        (
            Fix::Pads {
                by_attr, axis, rank, ..
            },
            &[before, after],
        ) => {
            let both = [(*axis, before), (*axis + *rank, after)];
            match by_attr {
                true => ["pads", "paddings"]
                    .into_iter()
                    .for_each(|name| attr_entries(model, id, name, &both)),
                false => entries(model, id, 1, &both),
            }
        }
        (Fix::Picks { slot, .. }, list) => own(model, id, *slot, list.to_vec()),
        (Fix::Sizes { .. }, sizes) => match model.opset_of(id) < 13 {
            true => model.node_mut(id).set_attr(Attr::ints("split", sizes.to_vec())),
            false => {
                model.node_mut(id).remove_attr("num_outputs");
                let name = model.fresh_name(&format!("{}_sizes", model.label(id)));
                let graph = model.node(id).graph();
                let list = model.add_const(graph, &name, Tensor::new(&[sizes.len()], sizes.to_vec()));
                model.set_input(id, 1, Some(list));
            }
        },
        _ => {}
    }
}

fn attr_entries(model: &mut Model, id: NodeId, name: &str, new: &[(usize, i64)]) {
    let attr = model.node_mut(id).attrs.iter_mut().find(|a| a.name() == name);
    let Some(attr) = attr else { return };
    for &(index, n) in new {
        if let Some(entry) = attr.proto.ints.get_mut(index) {
            *entry = n;
        }
    }
}

fn entries(model: &mut Model, id: NodeId, slot: usize, new: &[(usize, i64)]) {
    let Some(mut ints) = model.node(id).input(slot).and_then(|v| constant(model, v)?.ints()) else {
        return;
    };
    for &(index, n) in new {
        if let Some(entry) = ints.get_mut(index) {
            *entry = n;
        }
    }
    own(model, id, slot, ints);
}

/// Replaces the constant integers at an input; other readers of the constant keep theirs.
fn own(model: &mut Model, id: NodeId, slot: usize, ints: Vec<i64>) {
    let Some(v) = model.node(id).input(slot) else { return };
    let Some(old) = constant(model, v) else { return };
    let dims = if old.len() == ints.len() {
        old.dims().to_vec()
    } else {
        vec![ints.len()]
    };
    let new = match old.dtype() {
        DType::Int32 => Tensor::new(&dims, ints.iter().map(|&i| i as i32).collect()),
        _ => Tensor::new(&dims, ints),
    };
    drop(old);
    if model.value(v).uses().len() == 1 {
        set_constant(model, v, new);
        return;
    }
    let name = model.fresh_name(&model.value(v).name.clone());
    let own = model.add_const(model.node(id).graph(), &name, new);
    model.set_input(id, slot, Some(own));
}
