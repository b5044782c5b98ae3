//! Layers that are spelled out in small operators, where the operator set has a name for them (only with `fuse=on`):
//!
//! * `x·Φ(x)`, Φ(x) = ½(1 + erf(x/√2)): `Gelu` (opset 20);
//! * `x·min(max(x+3, 0), 6)/6`, `x·HardSigmoid(x)` with α = 1/6, β = ½: `HardSwish` (14);
//! * `x·Sigmoid(x)`: `Swish` (24);
//! * `(x−m)/√(mean((x−m)²)+ε)·g + b`, m = mean(x) over the last axis: `LayerNormalization` (17).
//!
//! The sums are the same in another order: results differ by rounding. Inner values must have no other readers, which the
//! sweep sees to: the new operator reads `x` alone.

use super::numbers::floats;
use super::work::Work;
use crate::ir::{Attr, NodeId, ValueId};

/// Relative difference up to which a stored constant is the number that a formula names.
const CLOSE: f64 = 1e-5;

pub(super) fn recognize(w: &mut Work, id: NodeId) -> Option<String> {
    activation(w, id).or_else(|| layer_norm(w, id))
}

pub(super) fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= CLOSE * b.abs()
}

/// The number that a constant repeats.
fn number(w: &Work, v: ValueId) -> Option<f64> {
    let x = floats(&w.constant(v)?)?;
    let first = *x.first()?;
    x.iter().all(|&e| e == first).then_some(first)
}

/// A product of what is constant and what is not.
pub(super) struct Product {
    /// The product of all constants.
    pub constant: f64,
    pub constants: Vec<ValueId>,
    pub factors: Vec<ValueId>,
}

/// The factors of a product, through Mul and Div that nothing else reads. Every constant repeats one number.
pub(super) fn factors(w: &Work, id: NodeId) -> Option<Product> {
    let mut product = Product {
        constant: 1.0,
        constants: Vec::new(),
        factors: Vec::new(),
    };
    let mut open = vec![id];
    while let Some(n) = open.pop() {
        let divides = w.is(n, "Div");
        for slot in 0..2 {
            let v = w.model.node(n).input(slot)?;
            if let Some(c) = number(w, v) {
                product.constant *= if divides && slot == 1 { 1.0 / c } else { c };
                product.constants.push(v);
                continue;
            }
            if divides && slot == 1 || product.factors.len() > 2 {
                return None;
            }
            match w.private_producer(n, slot) {
                Some(p) if w.is_any(p, &["Mul", "Div"]) && open.len() < 4 => open.push(p),
                _ => product.factors.push(v),
            }
        }
    }
    Some(product)
}

fn product(w: &Work, id: NodeId) -> Option<(f64, Vec<ValueId>)> {
    factors(w, id).map(|p| (p.constant, p.factors))
}

fn activation(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is_any(id, &["Mul", "Div"]) || w.opset(id) < 14 {
        return None;
    }
    let (c, factors) = product(w, id)?;
    let &[a, b] = &factors[..] else { return None };
    let found = [(a, b), (b, a)]
        .into_iter()
        .find_map(|(x, f)| Some((x, name_of(w, c, x, f)?)));
    let (x, (name, since)) = found?;
    let out = w.model.node(id).output(0)?;
    if w.opset(id) < since || !w.facts.same_shape(x, out) {
        return None;
    }
    w.set_op(id, name, Vec::new());
    w.model.set_inputs(id, vec![Some(x)]);
    Some(format!("recognised as {name}"))
}

/// What `c·x·f` is, and since which opset.
fn name_of(w: &Work, c: f64, x: ValueId, f: ValueId) -> Option<(&'static str, i64)> {
    let p = w.model.value(f).producer().filter(|p| w.may_touch(*p))?;
    let n = w.model.node(p);
    let reads_x = n.input(0) == Some(x);
    match n.op.name.as_str() {
        "Sigmoid" if reads_x && close(c, 1.0) => Some(("Swish", 24)),
        "HardSigmoid" if reads_x && close(c, 1.0) => {
            let of = |name: &str, default: f32| f64::from(n.float(name).unwrap_or(default));
            let fits = close(of("alpha", 0.2), 1.0 / 6.0) && close(of("beta", 0.5), 0.5);
            fits.then_some(("HardSwish", 14))
        }
        "Clip" if close(c, 1.0 / 6.0) => {
            let ends = (number(w, n.input(1)?)?, number(w, n.input(2)?)?);
            let inner = w.model.input_producer(p, 0)?;
            (ends == (0.0, 6.0) && plus(w, inner, 3.0)? == x).then_some(("HardSwish", 14))
        }
        "Add" if close(c, 0.5) => {
            let erf = w.model.value(plus(w, p, 1.0)?).producer().filter(|e| w.is(*e, "Erf"))?;
            let scaled = w
                .model
                .input_producer(erf, 0)
                .filter(|s| w.is_any(*s, &["Mul", "Div"]))?;
            let (k, inner) = product(w, scaled)?;
            (close(k, std::f64::consts::FRAC_1_SQRT_2) && inner == [x]).then_some(("Gelu", 20))
        }
        _ => None,
    }
}

/// The other operand of `v + c`.
fn plus(w: &Work, id: NodeId, c: f64) -> Option<ValueId> {
    if !w.is(id, "Add") {
        return None;
    }
    let n = w.model.node(id);
    let (a, b) = (n.input(0)?, n.input(1)?);
    match (number(w, a), number(w, b)) {
        (_, Some(k)) if k == c => Some(a),
        (Some(k), _) if k == c => Some(b),
        _ => None,
    }
}

fn layer_norm(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is(id, "Add") || w.opset(id) < 17 {
        return None;
    }
    let (mul, bias) = row_operand(w, id)?;
    let mul = w.model.value(mul).producer().filter(|p| w.is(*p, "Mul"))?;
    let (normal, scale) = row_operand(w, mul)?;
    let div = w.model.value(normal).producer().filter(|p| w.is(*p, "Div"))?;
    let (centred, root) = (w.model.node(div).input(0)?, w.model.input_producer(div, 1)?);
    let sub = w.model.value(centred).producer().filter(|p| w.is(*p, "Sub"))?;
    let (x, mean) = (w.model.node(sub).input(0)?, w.model.input_producer(sub, 1)?);
    if mean_of_rows(w, mean)? != x || !w.is(root, "Sqrt") {
        return None;
    }
    let sum = w.model.input_producer(root, 0).filter(|p| w.is(*p, "Add"))?;
    let n = w.model.node(sum);
    let slot = (0..2).find(|&s| n.input(s).is_some_and(|v| number(w, v).is_some()))?;
    let epsilon = number(w, n.input(slot)?)?;
    let square = w
        .model
        .value(mean_of_rows(w, w.model.input_producer(sum, 1 - slot)?)?)
        .producer()?;
    let s = w.model.node(square);
    let squares = match s.op.name.as_str() {
        "Pow" => s.input(0)? == centred && number(w, s.input(1)?)? == 2.0,
        "Mul" => s.input(0)? == centred && s.input(1)? == centred,
        _ => false,
    };
    let width = w.facts.shape(x)?.last()?.known()?;
    let fits = |w: &Work, v: ValueId| w.constant(v).is_some_and(|t| t.dims() == [width]);
    if !squares || !fits(w, scale) || !fits(w, bias) {
        return None;
    }
    w.set_op(
        id,
        "LayerNormalization",
        vec![Attr::int("axis", -1), Attr::float("epsilon", epsilon as f32)],
    );
    w.model.set_inputs(id, vec![Some(x), Some(scale), Some(bias)]);
    Some("recognised as LayerNormalization".into())
}

/// The computed and the constant operand of a node with one of each.
fn row_operand(w: &Work, id: NodeId) -> Option<(ValueId, ValueId)> {
    let n = w.model.node(id);
    let (a, b) = (n.input(0)?, n.input(1)?);
    match (w.constant(a).is_some(), w.constant(b).is_some()) {
        (false, true) => Some((a, b)),
        (true, false) => Some((b, a)),
        _ => None,
    }
}

/// What a mean over the last axis, which is kept, is the mean of.
fn mean_of_rows(w: &Work, id: NodeId) -> Option<ValueId> {
    if !w.is(id, "ReduceMean") {
        return None;
    }
    let n = w.model.node(id);
    let axes = match w.opset(id) < 18 {
        true => n.ints("axes")?.to_vec(),
        false => w.ints_input(id, 1)?,
    };
    let x = n.input(0)?;
    let last = w.facts.rank(x).map(|r| r as i64 - 1);
    let is_last = axes.len() == 1 && (axes[0] == -1 || Some(axes[0]) == last);
    (is_last && n.int_or("keepdims", 1) != 0).then_some(x)
}
