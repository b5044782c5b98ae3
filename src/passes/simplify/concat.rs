//! `Concat` of a `Concat` along the same axis is one `Concat`.

use super::work::Work;
use crate::ir::NodeId;

pub(super) fn merge(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is(id, "Concat") {
        return None;
    }
    let axis = w.model.node(id).int("axis")?;
    let slots = 0..w.model.node(id).inputs().len();
    let mut inner = slots.filter_map(|s| Some((s, w.private_producer(id, s)?)));
    let (slot, first) = inner.find(|(_, p)| w.is(*p, "Concat") && same_axis(w, id, *p, axis))?;
    let mut inputs = w.model.node(id).inputs().to_vec();
    inputs.splice(slot..=slot, w.model.node(first).inputs().to_vec());
    w.model.set_inputs(id, inputs);
    Some("merged with the Concat before it".into())
}

fn same_axis(w: &Work, outer: NodeId, inner: NodeId, axis: i64) -> bool {
    let Some(other) = w.model.node(inner).int("axis") else {
        return false;
    };
    let rank = w.model.node(outer).output(0).and_then(|o| w.facts.rank(o));
    let front = |a: i64| match rank {
        Some(r) if a < 0 => a + r as i64,
        _ => a,
    };
    front(axis) == front(other)
}
