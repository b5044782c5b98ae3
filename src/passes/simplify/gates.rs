//! Hard gates that are spelled out become `HardSigmoid`, which every operator set has:
//! `Clip(x + b, 0, h) · c = (c·h) · HardSigmoid(x)` with α = 1/h, β = b/h, since HardSigmoid is `max(0, min(1, α·x + β))`.
//!
//! Exporters write the hard swish `y·Clip(x + 3, 0, 6)/6` (x = y) with four operators, each a pass over the value, for want of
//! `HardSwish` before operator set 14; two are left.

use super::fuse::{close, factors};
use super::numbers::floats;
use super::work::Work;
use crate::ir::{Attr, NodeId, ValueId};
use crate::ops::quant::clip_limits;

/// A clipped sum that nothing else reads.
struct Gate {
    clip: NodeId,
    x: ValueId,
    /// What is added to `x`.
    shift: f64,
    /// Where the sum is cut off above.
    high: f64,
}

pub(super) fn hard_sigmoid(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is_any(id, &["Mul", "Div"]) {
        return None;
    }
    let product = factors(w, id)?;
    let (v, gate) = product
        .factors
        .iter()
        .find_map(|v| Some((*v, gate(w, *v)?)))
        .filter(|_| product.constants.iter().all(|c| is_scalar(w, *c, product.factors[0])))?;
    let other = product.factors.iter().copied().find(|f| *f != v);
    if product.factors.len() != 1 + usize::from(other.is_some()) {
        return None;
    }
    let factor = product.constant * gate.high;
    let plain = close(factor, 1.0);
    if !plain && (other.is_none() || product.constants.is_empty()) {
        return None;
    }
    let attrs = vec![
        Attr::float("alpha", (1.0 / gate.high) as f32),
        Attr::float("beta", (gate.shift / gate.high) as f32),
    ];
    let out = w.model.value(w.model.node(id).output(0)?).name.clone();
    let Some(other) = other else {
        w.set_op(id, "HardSigmoid", attrs);
        w.model.set_inputs(id, vec![Some(gate.x)]);
        return Some("recognised as HardSigmoid".into());
    };
    let graph = w.model.node(id).graph();
    let scale = match plain {
        true => None,
        false => Some(super::numbers::store(
            w.constant(product.constants[0])?.dtype(),
            &[],
            &[factor],
        )?),
    };
    w.set_op(gate.clip, "HardSigmoid", attrs);
    w.model.set_inputs(gate.clip, vec![Some(gate.x)]);
    let name = w.model.fresh_name(&format!("{out}_gate"));
    w.model.rename(v, name);
    let mut inputs = vec![Some(other), Some(v)];
    if let Some(scale) = scale {
        let name = w.model.fresh_name(&format!("{out}_unscaled"));
        let (_, gated) = w.model.add_node(graph, &name, "Mul", &inputs, &[&name], Vec::new());
        let scale = w.add_const(graph, &format!("{out}_scale"), scale);
        inputs = vec![Some(gated[0]), Some(scale)];
    }
    w.set_op(id, "Mul", Vec::new());
    w.model.set_inputs(id, inputs);
    Some("its factor recognised as HardSigmoid".into())
}

/// What gives `v`, when it is a clipped sum.
fn gate(w: &Work, v: ValueId) -> Option<Gate> {
    let clip = w.model.value(v).producer().filter(|p| w.is(*p, "Clip"))?;
    w.model.only_use(v)?;
    let (low, high) = clip_limits(w.model, clip)?;
    let add = w.private_producer(clip, 0).filter(|p| w.is(*p, "Add"))?;
    let slot = (0..2).find(|&s| w.constant_input(add, s).is_some())?;
    let (c, x) = (w.model.node(add).input(slot)?, w.model.node(add).input(1 - slot)?);
    let shift = *floats(&w.constant(c)?)?.first()?;
    let fits = low == 0.0 && high.is_finite() && high > 0.0 && shift.is_finite() && is_scalar(w, c, x);
    fits.then_some(Gate {
        clip,
        x,
        shift,
        high: f64::from(high),
    })
}

/// A constant of one number, which leaves the shape of `x` as it is.
fn is_scalar(w: &Work, c: ValueId, x: ValueId) -> bool {
    w.constant(c).is_some_and(|t| {
        let one = t.dims().iter().all(|d| *d == 1);
        one && (t.dims().len() < 2 && w.facts.rank(x) != Some(0) || w.facts.broadcasts_into(t.dims(), x))
    })
}
