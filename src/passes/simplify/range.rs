//! Chains of `Relu` and `Clip`: `clip(clip(x, a, b), c, d)` is one `Clip` when the outer interval lies within the inner
//! one, and the inner one when its interval lies within the outer one; `relu∘relu` is `relu`, and a `Relu` before a `Clip` with a lower end ≥ 0 does nothing.

use super::work::Work;
use crate::ir::NodeId;

pub(super) fn merge(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is_any(id, &["Relu", "Clip"]) {
        return None;
    }
    let (low, high) = interval(w, id)?;
    if let Some(inner) = w.model.input_producer(id, 0)
        && w.is_any(inner, &["Relu", "Clip"])
        && let Some((a, b)) = interval(w, inner)
    {
        if a <= low && high <= b && low <= high {
            let x = w.model.node(inner).input(0);
            w.model.set_input(id, 0, x);
            return Some("skipped the node before: its range contains this one's".into());
        }
        if low <= a && b <= high && a <= b {
            let same = w.model.node(id).input(0)?;
            w.bypass(id, same)?;
            return Some("its range contains that of the node before: removed".into());
        }
    }
    None
}

/// The values that pass unchanged; `None` when an end is not constant.
fn interval(w: &Work, id: NodeId) -> Option<(f64, f64)> {
    let n = w.model.node(id);
    if n.is("Relu") {
        return Some((0.0, f64::INFINITY));
    }
    if w.opset(id) < 11 {
        let end = |name: &str, default: f32| f64::from(n.float(name).unwrap_or(default));
        return Some((end("min", f32::MIN), end("max", f32::MAX)));
    }
    let end = |slot: usize, default: f64| match n.input(slot) {
        None => Some(default),
        Some(_) => {
            let t = w.constant_input(id, slot)?;
            match super::numbers::floats(&t)?[..] {
                [x] if !x.is_nan() => Some(x),
                _ => None,
            }
        }
    };
    Some((end(1, f64::NEG_INFINITY)?, end(2, f64::INFINITY)?))
}
