//! What a `Loop` carries and no iteration changes is read from outside, as exporters of TensorFlow's loops hand in all weights.

use super::work::Work;
use crate::ir::{NodeId, SubGraphs, Use, ValueId};

/// In front of what is carried, a Loop has the largest number of iterations and a condition, its body the number of the
/// iteration and a condition; among its outputs the body has a condition there.
const BEFORE: usize = 2;

pub(super) fn read_from_outside(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is(id, "Loop") {
        return None;
    }
    let &SubGraphs::One(body) = &w.model.node(id).attr("body")?.graphs else {
        return None;
    };
    let carried = w.model.node(id).inputs().len().checked_sub(BEFORE)?;
    let g = w.model.graph(body);
    if g.inputs().len() != carried + BEFORE
        || g.outputs().len() <= carried
        || w.model.node(id).outputs().len() < carried
    {
        return None;
    }
    let mut kept = 0;
    // From the last to the first: places before stay what they are.
    for k in (0..carried).rev() {
        let g = w.model.graph(body);
        let (inside, given) = (g.inputs()[k + BEFORE].value, g.outputs()[k + 1].value);
        let outside = w.model.node(id).input(k + BEFORE);
        let (true, Some(outside)) = (inside == origin(w, given), outside) else {
            kept += 1;
            continue;
        };
        let own = Use::Output(body, k + 1);
        w.model.replace_uses_where(inside, outside, |u| *u != own);
        if let Some(out) = w.model.node(id).output(k) {
            w.model.replace_uses(out, outside);
        }
        w.model.remove_output(body, k + 1);
        w.model.remove_input(body, k + BEFORE);
        w.model.remove_node_output(id, k);
        let mut inputs = w.model.node(id).inputs().to_vec();
        inputs.remove(k + BEFORE);
        w.model.set_inputs(id, inputs);
    }
    (kept < carried).then(|| {
        format!(
            "{} of {carried} carried values never change: read from outside",
            carried - kept
        )
    })
}

/// Before an Identity, which an exporter puts before the outputs of a body.
fn origin(w: &Work, v: ValueId) -> ValueId {
    let maker = w.model.value(v).producer().filter(|n| w.is(*n, "Identity"));
    maker.and_then(|n| w.model.node(n).input(0)).unwrap_or(v)
}
