//! Per-channel scales and shifts go into the linear operator beside them.
//!
//! `BatchNormalization` outside of training is `y = a·x + c` with `a = scale/√(var + ε)`, `c = B − a·mean`; Mul, Add, Sub
//! and Div with a constant that varies along the channel axis only are of the same form.
//!
//! * After a linear operator, `a·(W∗x + b) + c = (a·W)∗x + (a·b + c)`, by output channel.
//! * Before one, `W∗(a·x + c) + b = (W·a)∗x + (b + Σ W·c)`, by input channel. The sum holds at the borders only without
//!   padding, so that a shift stays before a padded Conv. A scale before it goes past: `a·x + c = a·(x + c/a)`.
//!
//! Nothing is done when the value between has other readers, when the weight is not constant, or when a result is not finite.

use super::numbers::floats;
use super::weights::{Kind, Linear};
use super::work::Work;
use crate::ir::{NodeId, Tensor, ValueId};

pub(super) fn fold(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is_any(id, &["BatchNormalization", "Mul", "Add", "Sub", "Div"]) {
        return None;
    }
    if halves_gelu(w, id) {
        return None;
    }
    let form = Form::read(w, id)?;
    after(w, id, &form)
        .or_else(|| after_bias(w, id, &form))
        .or_else(|| before(w, id, &form))
        .or_else(|| past_shift(w, id, &form))
}

/// The ½ of `x·(erf(x/√2) + 1)·½`, which runtimes make one `Gelu` as long as it is whole.
fn halves_gelu(w: &Work, id: NodeId) -> bool {
    let product = |slot| w.private_producer(id, slot).filter(|p| w.is(*p, "Mul"));
    let Some(product) = (0..2).find_map(product).filter(|_| w.is_any(id, &["Mul", "Div"])) else {
        return false;
    };
    let erf = |add, slot| w.same_graph_producer(add, slot).is_some_and(|e| w.is(e, "Erf"));
    let gates = |slot| w.same_graph_producer(product, slot).filter(|add| w.is(*add, "Add"));
    (0..2).filter_map(gates).any(|add| erf(add, 0) || erf(add, 1))
}

/// `y = scale·x + shift`, before it is known how channels lie.
struct Form {
    /// The input that is not constant.
    slot: usize,
    scale: Numbers,
    shift: Numbers,
    /// How the constant lies against `x`.
    layout: Layout,
}

enum Numbers {
    All(f64),
    Each(Vec<f64>),
}

enum Layout {
    /// One number for each channel of axis 1.
    Normalization(usize),
    /// Dimensions aligned at the end.
    Broadcast(Vec<usize>),
    /// Dimensions aligned at an axis (opset below 7).
    From(usize, Vec<usize>),
}

struct PerChannel {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

impl Form {
    fn read(w: &Work, id: NodeId) -> Option<Form> {
        match w.is(id, "BatchNormalization") {
            true => Form::normalization(w, id),
            false => Form::arithmetic(w, id),
        }
    }

    fn normalization(w: &Work, id: NodeId) -> Option<Form> {
        let n = w.model.node(id);
        let opset = w.opset(id);
        let trains = match opset {
            0..7 => n.int_or("is_test", 0) == 0,
            7..14 => false,
            _ => n.int_or("training_mode", 0) != 0,
        };
        if trains || opset < 9 && n.int_or("spatial", 1) != 1 {
            return None;
        }
        w.sole_output(id)?;
        let of = |slot: usize| floats(&w.constant_input(id, slot)?);
        let (s, b, mean, var) = (of(1)?, of(2)?, of(3)?, of(4)?);
        let count = s.len();
        if b.len() != count || mean.len() != count || var.len() != count {
            return None;
        }
        let epsilon = f64::from(n.float("epsilon").unwrap_or(1e-5));
        let scale: Vec<f64> = s.iter().zip(&var).map(|(s, v)| s / (v + epsilon).sqrt()).collect();
        let shift = (0..count).map(|i| b[i] - scale[i] * mean[i]).collect();
        Some(Form {
            slot: 0,
            scale: Numbers::Each(scale),
            shift: Numbers::Each(shift),
            layout: Layout::Normalization(count),
        })
    }

    fn arithmetic(w: &Work, id: NodeId) -> Option<Form> {
        let slot = usize::from(w.constant_input(id, 1).is_none());
        let c = w.constant_input(id, 1 - slot)?;
        if slot == 1 && w.opset(id) < 7 {
            return None;
        }
        let x = floats(&c)?;
        let each = |f: fn(f64) -> f64| Numbers::Each(x.iter().map(|&x| f(x)).collect());
        let (one, none) = (Numbers::All(1.0), Numbers::All(0.0));
        let (scale, shift) = match (w.model.node(id).op.name.as_str(), slot) {
            ("Mul", _) => (each(|x| x), none),
            ("Add", _) => (one, each(|x| x)),
            ("Sub", 0) => (one, each(|x| -x)),
            ("Sub", _) => (Numbers::All(-1.0), each(|x| x)),
            ("Div", 0) => (each(|x| 1.0 / x), none),
            _ => return None,
        };
        Some(Form {
            slot,
            scale,
            shift,
            layout: Form::layout(w, id, &c)?,
        })
    }

    fn layout(w: &Work, id: NodeId, c: &Tensor) -> Option<Layout> {
        let n = w.model.node(id);
        let dims = c.dims().to_vec();
        if w.opset(id) >= 7 || n.int("axis").is_none() {
            return Some(Layout::Broadcast(dims));
        }
        let axis = usize::try_from(n.int("axis")?).ok()?;
        Some(Layout::From(axis, dims))
    }

    /// Whether the result certainly has the shape of `x`.
    fn keeps_shape(&self, w: &Work, x: ValueId) -> bool {
        match &self.layout {
            Layout::Broadcast(d) => w.facts.broadcasts_into(d, x),
            _ => true,
        }
    }

    /// One scale and one shift for each of `count` channels along `axis` of a value of rank `rank`; `None` when the
    /// constant varies along another axis as well.
    fn per_channel(&self, rank: usize, axis: usize, count: usize) -> Option<PerChannel> {
        let fits = match &self.layout {
            Layout::Normalization(n) => axis == 1 && *n == count,
            Layout::Broadcast(d) => {
                let lead = rank.checked_sub(d.len())?;
                varies_along(d, lead, axis, count)
            }
            Layout::From(lead, d) => lead + d.len() <= rank && varies_along(d, *lead, axis, count),
        };
        let spread = |n: &Numbers| match n {
            Numbers::All(x) => Some(vec![*x; count]),
            Numbers::Each(x) if x.len() == count => Some(x.clone()),
            Numbers::Each(x) if x.len() == 1 => Some(vec![x[0]; count]),
            Numbers::Each(_) => None,
        };
        let (scale, shift) = (spread(&self.scale)?, spread(&self.shift)?);
        let finite = scale.iter().chain(&shift).all(|x| x.is_finite());
        (fits && finite).then_some(PerChannel { scale, shift })
    }
}

fn varies_along(dims: &[usize], lead: usize, axis: usize, count: usize) -> bool {
    dims.iter()
        .enumerate()
        .all(|(i, &d)| d == 1 || lead + i == axis && d == count)
}

impl PerChannel {
    fn shifts(&self) -> bool {
        self.shift.iter().any(|&x| x != 0.0)
    }
    fn scales(&self) -> bool {
        self.scale.iter().any(|&x| x != 1.0)
    }
}

/// `id` reads a linear operator's output.
fn after(w: &mut Work, id: NodeId, form: &Form) -> Option<String> {
    let linear = Linear::read(w, w.private_producer(id, form.slot)?)?;
    let (rank, axis) = linear.channel_axis(w)?;
    let f = form.per_channel(rank, axis, linear.outs)?;
    if linear.kind == Kind::MatMul && f.shifts() {
        return None;
    }
    let bias = linear.bias(w)?;
    let bias = (0..linear.outs).map(|o| f.scale[o] * bias[o] + f.shift[o]).collect();
    let weight = match f.scales() {
        true => Some(linear.scaled_outputs(&f.scale)?),
        false => None,
    };
    let op = w.model.node(id).op.name.clone();
    linear.rewrite(w, weight, (linear.kind != Kind::MatMul).then_some(bias))?;
    let into = w.model.label(linear.node);
    w.absorb(linear.node, id)?;
    Some(format!("{op} folded into {into}"))
}

/// `id` reads the sum of a MatMul and a constant row.
fn after_bias(w: &mut Work, id: NodeId, form: &Form) -> Option<String> {
    let add = w.private_producer(id, form.slot)?;
    if !w.is(add, "Add") {
        return None;
    }
    let sum = Form::read(w, add)?;
    let linear = Linear::read(w, w.private_producer(add, sum.slot)?)?;
    if linear.kind != Kind::MatMul {
        return None;
    }
    let (rank, axis) = linear.channel_axis(w)?;
    let (b, f) = (
        sum.per_channel(rank, axis, linear.outs)?,
        form.per_channel(rank, axis, linear.outs)?,
    );
    let bias: Vec<f64> = (0..linear.outs).map(|o| f.scale[o] * b.shift[o] + f.shift[o]).collect();
    let bias = super::numbers::store(linear.weight.dtype(), &[linear.outs], &bias)?;
    let weight = match f.scales() {
        true => Some(linear.scaled_outputs(&f.scale)?),
        false => None,
    };
    let op = w.model.node(id).op.name.clone();
    let base = format!("{}_bias", w.model.value(w.model.node(id).output(0)?).name);
    linear.rewrite(w, weight, None)?;
    w.set_const_input(add, 1 - sum.slot, &base, bias);
    let into = w.model.label(linear.node);
    w.absorb(add, id)?;
    Some(format!("{op} folded into {into} and its bias"))
}

/// A linear operator is the only reader of `id`.
fn before(w: &mut Work, id: NodeId, form: &Form) -> Option<String> {
    let (x, out) = (w.model.node(id).input(form.slot)?, w.sole_output(id)?);
    let (next, 0) = w.model.only_use(out)? else { return None };
    if w.model.node(next).graph() != w.model.node(id).graph() {
        return None;
    }
    let linear = Linear::read(w, next)?;
    let (rank, axis) = linear.channel_axis(w)?;
    let f = form.per_channel(rank, axis, linear.ins)?;
    let n = w.model.node(next);
    let blocked = match linear.kind {
        Kind::Conv => !is_unpadded(w, next),
        Kind::Gemm { .. } => n.int_or("transA", 0) != 0,
        Kind::ConvTranspose | Kind::MatMul => true,
    };
    let transposed = linear.kind != Kind::Conv && n.int_or("transA", 0) != 0;
    if !form.keeps_shape(w, x) || transposed || f.shifts() && blocked {
        return None;
    }
    let bias = match f.shifts() {
        true => {
            let alpha = f64::from(n.float("alpha").unwrap_or(1.0));
            let (old, more) = (linear.bias(w)?, linear.response(&f.shift)?);
            Some(old.iter().zip(&more).map(|(b, m)| b + alpha * m).collect())
        }
        false => None,
    };
    let weight = match f.scales() {
        true => Some(linear.scaled_inputs(&f.scale)?),
        false => None,
    };
    let op = w.model.node(id).op.name.clone();
    linear.rewrite(w, weight, bias)?;
    let into = w.model.label(next);
    w.model.set_input(next, 0, Some(x));
    w.model.erase(id);
    Some(format!("{op} folded into {into}"))
}

/// A sum with a constant, which a linear operator alone reads, is the only reader of the product `id`.
fn past_shift(w: &mut Work, id: NodeId, form: &Form) -> Option<String> {
    /// Quotients of shifts and scales may be so much larger than the shifts.
    const LARGEST: f64 = 1e3;
    let out = w.sole_output(id)?;
    let (add, slot) = w.model.only_use(out)?;
    if !w.is(add, "Add") || w.private_producer(add, slot) != Some(id) {
        return None;
    }
    let (next, 0) = w.model.only_use(w.sole_output(add)?)? else {
        return None;
    };
    let (x, graph) = (w.model.node(id).input(form.slot)?, w.model.node(id).graph());
    let linear = Linear::read(w, next).filter(|l| l.kind == Kind::Conv && w.model.node(next).graph() == graph)?;
    let (rank, axis) = linear.channel_axis(w)?;
    let sum = Form::read(w, add).filter(|sum| sum.slot == slot)?;
    let (f, g) = (
        form.per_channel(rank, axis, linear.ins)?,
        sum.per_channel(rank, axis, linear.ins)?,
    );
    let small = f.scale.iter().any(|a| a.abs() * LARGEST < 1.0);
    if f.shifts() || small || !form.keeps_shape(w, x) || !sum.keeps_shape(w, out) {
        return None;
    }
    let shift: Vec<f64> = g.shift.iter().zip(&f.scale).map(|(c, a)| c / a).collect();
    let mut dims = vec![1; rank - axis];
    dims[0] = linear.ins;
    let shift = super::numbers::store(linear.weight.dtype(), &dims, &shift)?;
    linear.rewrite(w, Some(linear.scaled_inputs(&f.scale)?), None)?;
    let (op, into) = (w.model.node(id).op.name.clone(), w.model.label(next));
    w.set_const_input(add, 1 - slot, &format!("{into}_shift"), shift);
    w.model.set_input(add, slot, Some(x));
    w.model.erase(id);
    Some(format!("{op} folded into {into}, past the Add between"))
}

fn is_unpadded(w: &Work, conv: NodeId) -> bool {
    let n = w.model.node(conv);
    match n.string("auto_pad") {
        None | Some("NOTSET" | "") => n.ints("pads").is_none_or(|p| p.iter().all(|&p| p == 0)),
        Some("VALID") => true,
        Some(_) => false,
    }
}
