//! Arithmetic with a neutral constant: `x·1`, `x/1`, `x+0`, `x−0`, `x^1`, `x and true`, `x or false`, `x xor false`;
//! `Where` with a constant condition; `Not∘Not`, `Neg∘Neg`.
//!
//! Only where broadcasting the constant cannot change the shape. (−0 + 0 is 0: the sign of a zero may change.)

use super::numbers::all_are;
use super::work::Work;
use crate::ir::{NodeId, ValueId};

pub(super) fn remove(w: &mut Work, id: NodeId) -> Option<String> {
    let op = w.model.node(id).op.name.clone();
    let same = match op.as_str() {
        "Mul" | "And" => either(w, id, 1.0),
        "Add" | "Or" | "Xor" => either(w, id, 0.0),
        "Div" | "Pow" => right(w, id, 1.0),
        "Sub" => right(w, id, 0.0),
        "Where" => chosen(w, id),
        "Not" | "Neg" => twice(w, id, &op),
        _ => None,
    }?;
    w.bypass(id, same)?;
    Some(format!("{op} with a neutral constant: removed"))
}

fn either(w: &Work, id: NodeId, neutral: f64) -> Option<ValueId> {
    right(w, id, neutral).or_else(|| {
        let x = w.model.node(id).input(1)?;
        let c = w.constant_input(id, 0)?;
        let fits = w.opset(id) >= 7 && w.facts.broadcasts_into(c.dims(), x);
        (fits && all_are(&c, neutral)).then_some(x)
    })
}

/// Below opset 7 the second operand is always broadcast to the first.
fn right(w: &Work, id: NodeId, neutral: f64) -> Option<ValueId> {
    let x = w.model.node(id).input(0)?;
    let c = w.constant_input(id, 1)?;
    let fits = w.opset(id) < 7 || w.facts.broadcasts_into(c.dims(), x);
    (fits && all_are(&c, neutral)).then_some(x)
}

fn chosen(w: &Work, id: NodeId) -> Option<ValueId> {
    let n = w.model.node(id);
    let cond = w.constant_input(id, 0)?.ints()?;
    let all = |x: i64| !cond.is_empty() && cond.iter().all(|&c| (c != 0) as i64 == x);
    let pick = match (all(1), all(0)) {
        (true, _) => n.input(1)?,
        (_, true) => n.input(2)?,
        _ => return None,
    };
    w.facts.same_shape(pick, n.output(0)?).then_some(pick)
}

fn twice(w: &Work, id: NodeId, op: &str) -> Option<ValueId> {
    let inner = w.model.input_producer(id, 0)?;
    w.is(inner, op).then(|| w.model.node(inner).input(0))?
}
