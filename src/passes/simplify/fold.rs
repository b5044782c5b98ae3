//! Constant folding: what depends on constants only, or on shapes that are known, is computed here and now.
//!
//! A file must not grow by it: a result is kept when it is at most [`SLACK`] bytes larger than the constants that only
//! this computation reads.

use super::work::Work;
use crate::ir::{DType, NodeId, Tensor, ValueId};
use crate::ops::infer::product;

/// What a folded node's own message takes in a file, at least: operator, names and edges.
const SLACK: usize = 1024;
/// Larger integer results are weights, not shapes.
const MAX_INTS: usize = 128;

/// Values whose integers inference found become constants.
pub(super) fn known_integers(w: &mut Work) -> Vec<(String, String)> {
    let mut done = Vec::new();
    for id in w.model.node_ids() {
        if !w.model.is_alive(id) || !foldable(w, id) {
            continue;
        }
        let outs: Vec<ValueId> = w.model.node(id).outputs().iter().flatten().copied().collect();
        for v in outs {
            let Some(t) = known(w, v) else { continue };
            if w.model.value(v).uses().is_empty() {
                continue;
            }
            let label = w.model.label(id);
            w.make_const(v, t);
            done.push((label, "its value is known: made a constant".into()));
        }
    }
    done
}

fn foldable(w: &Work, id: NodeId) -> bool {
    let n = w.model.node(id);
    w.may_touch(id) && n.op.name != "Constant" && n.sub_graphs().next().is_none()
}

fn known(w: &Work, v: ValueId) -> Option<Tensor> {
    let fact = w.facts.get(v)?;
    let dims = fact.dims()?;
    let ints = fact.ints()?;
    if product(fact.shape.as_deref()?)? != ints.len() || ints.len() > MAX_INTS {
        return None;
    }
    match fact.dtype? {
        DType::Int64 => Some(Tensor::new(&dims, ints)),
        DType::Int32 => {
            let narrow: Result<Vec<i32>, _> = ints.iter().map(|&x| i32::try_from(x)).collect();
            Some(Tensor::new(&dims, narrow.ok()?))
        }
        DType::Bool => {
            let bytes: Vec<u8> = ints.iter().map(|&x| u8::from(x != 0)).collect();
            Tensor::from_raw(DType::Bool, &dims, bytes.into()).ok()
        }
        _ => None,
    }
}
