//! Which channels carry the same number everywhere, whatever is fed in.
//!
//! A forward walk over the flows: constants are looked at slice by slice; a contraction's row is constant when each of its
//! weights is zero or meets a constant channel, `y_o = β b_o + α Σ_j w_oj c_j`; the operators' laws do the rest. Numbers are
//! taken to be finite (0 · x = 0), as everywhere in this pass.

use crate::analysis::groups::{Groups, value_at};
use crate::ir::{DType, Model, NodeId, Tensor, ValueId};
use crate::ops::ties::{Arg, Dot, Flow, Slot, Tie, constant};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What is known of every element of [`Groups`].
pub struct Facts<'a> {
    model: &'a Model,
    groups: &'a Groups,
    /// By element: the number that the whole slice is, whatever is fed in.
    fixed: Vec<Option<f32>>,
    /// Constants that are one number everywhere; asked for again and again.
    plain: Mutex<BTreeMap<ValueId, Option<f32>>>,
}

impl<'a> Facts<'a> {
    /// Walks the model.
    pub fn new(model: &'a Model, groups: &'a Groups) -> Facts<'a> {
        let mut facts = Facts {
            model,
            groups,
            fixed: vec![None; groups.len()],
            plain: Mutex::default(),
        };
        for (v, axis, start, len) in groups.axes() {
            if let Some(t) = constant(model, v) {
                let slices = slice_numbers(&t, axis);
                if slices.len() == len {
                    facts.fixed[start..start + len].copy_from_slice(&slices);
                }
            }
        }
        for (id, flow) in &groups.flows {
            flow.dots.iter().for_each(|d| facts.rows(*id, d));
            facts.law(*id, flow);
        }
        facts
    }

    /// The number that a channel is everywhere.
    pub fn fixed(&self, element: usize) -> Option<f32> {
        self.fixed[element]
    }

    /// The number that a constant is in all its elements.
    fn plain(&self, v: ValueId) -> Option<f32> {
        let known = || self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&x) = known().get(&v) {
            return x;
        }
        let x = constant(self.model, v).and_then(|t| {
            let x = real(&t)?;
            let first = *x.first()?;
            x.iter().all(|y| *y == first).then_some(first)
        });
        known().insert(v, x);
        x
    }

    /// Output rows of a contraction that cannot vary.
    fn rows(&mut self, id: NodeId, dot: &Dot) {
        let node = self.model.node(id);
        let Some((start, len)) = node.output(0).and_then(|v| self.groups.axis(v, dot.out)) else {
            return;
        };
        let Some(rows) = row_sums(self.model, self.groups, id, dot, &|e| self.fixed(e)) else {
            return;
        };
        if rows.len() != len {
            return;
        }
        for (o, row) in rows.into_iter().enumerate() {
            let bias = match dot.bias.and_then(|slot| node.input(slot)) {
                None => Some(0.0),
                Some(b) => self.bias_number(b, o, len),
            };
            if let (Some(sum), Some(bias)) = (row, bias) {
                let y = (f64::from(dot.alpha) * sum + f64::from(dot.beta * bias)) as f32;
                self.fixed[start + o] = Some(y).filter(|y| y.is_finite());
            }
        }
    }

    /// Element o of a bias that runs along the last axis; anything else only when it is one number.
    fn bias_number(&self, bias: ValueId, o: usize, len: usize) -> Option<f32> {
        let last = self.groups.dims(bias)?.len().checked_sub(1);
        match last.and_then(|a| self.groups.axis(bias, a)) {
            Some((start, n)) if n == len => self.fixed(start + o),
            _ => self.plain(bias),
        }
    }

    /// Channels of a node's outputs by its law.
    fn law(&mut self, id: NodeId, flow: &Flow) {
        let Some(law) = &flow.law else { return };
        let node = self.model.node(id);
        for (k, out) in node.outputs().iter().enumerate() {
            let Some(out) = *out else { continue };
            let rank = self.groups.dims(out).map_or(0, |d| d.len());
            for axis in 0..rank {
                let Some((start, len)) = self.groups.axis(out, axis) else {
                    continue;
                };
                let args = self.args(id, flow, (Slot::Out(k), axis), len);
                for (o, args) in args.iter().enumerate() {
                    self.fixed[start + o] = law(args).filter(|y| y.is_finite());
                }
            }
        }
    }

    /// For every index of an output axis, what is known of each input there.
    fn args(&self, id: NodeId, flow: &Flow, axis: (Slot, usize), len: usize) -> Vec<Vec<Arg>> {
        let node = self.model.node(id);
        let loose = |v: &Option<ValueId>| Arg::Loose(v.and_then(|v| self.plain(v)));
        let mut args: Vec<Vec<Arg>> = vec![node.inputs().iter().map(loose).collect(); len];
        for tie in &flow.ties {
            let Some((input, pairs)) = self.pairs_into(id, tie, axis) else {
                continue;
            };
            for (element, o) in pairs {
                let x = self.fixed(element);
                let arg = &mut args[o][input];
                *arg = match *arg {
                    Arg::Loose(_) => Arg::Tied(x),
                    Arg::Tied(y) => Arg::Tied(x.filter(|x| Some(*x) == y)),
                };
            }
        }
        args
    }

    /// The pairs of a tie between an input and this output axis: the input, and (element, index of the output axis).
    fn pairs_into(&self, id: NodeId, tie: &Tie, axis: (Slot, usize)) -> Option<(usize, Vec<(usize, usize)>)> {
        let (other, swapped) = match (tie.from, tie.to) {
            (other, to) if to == axis => (other, false),
            (from, other) if from == axis => (other, true),
            _ => return None,
        };
        let Slot::In(input) = other.0 else { return None };
        let (start, n) = self.groups.axis(value_at(self.model, id, other.0)?, other.1)?;
        let (_, len) = self.groups.axis(value_at(self.model, id, axis.0)?, axis.1)?;
        let mut pairs = Vec::new();
        match swapped {
            false => tie.map.pairs(n, len, |i, o| pairs.push((start + i, o))),
            true => tie.map.pairs(len, n, |o, i| pairs.push((start + i, o))),
        };
        Some((input, pairs))
    }
}

/// The elements of a real tensor; `None` for types that hold no weights.
fn real(t: &Tensor) -> Option<std::borrow::Cow<'_, [f32]>> {
    match t.dtype() {
        DType::Float | DType::Float16 | DType::Bfloat16 | DType::Double => t.to_f32(),
        _ => None,
    }
}

/// For every index of an axis, the number that the whole slice is.
fn slice_numbers(t: &Tensor, axis: usize) -> Vec<Option<f32>> {
    let (dims, Some(x)) = (t.dims(), real(t)) else {
        return Vec::new();
    };
    let Some(&len) = dims.get(axis) else { return Vec::new() };
    let inner: usize = dims[axis + 1..].iter().product();
    if x.is_empty() {
        return Vec::new();
    }
    let mut out: Vec<Option<f32>> = x.chunks(inner).take(len).map(|c| Some(c[0])).collect();
    for block in x.chunks(len * inner) {
        for (slice, first) in block.chunks(inner).zip(&mut out) {
            if first.is_some_and(|f| !slice.iter().all(|y| *y == f)) {
                *first = None;
            }
        }
    }
    out
}

/// `Σ_j w_oj c_j` for every row o whose weights are zero or meet constant channels, `None` for the others; without the
/// factor α. `number` gives what a data element is, if it is constant.
pub fn row_sums(
    model: &Model,
    groups: &Groups,
    id: NodeId,
    dot: &Dot,
    number: &dyn Fn(usize) -> Option<f32>,
) -> Option<Vec<Option<f64>>> {
    let node = model.node(id);
    let weight = constant(model, node.input(dot.weight.0)?)?;
    let data = groups.axis(node.input(dot.data.0)?, dot.data.1);
    let dims = weight.dims();
    let (rows, per_group) = (*dims.get(dot.row)?, *dims.get(dot.weight.1)?);
    let in_group = (rows / dot.groups).max(1);
    let known = |o: usize, j: usize| {
        let (start, len) = data?;
        let i = o / in_group * per_group + j;
        // Zero adds nothing anywhere; another constant adds the same everywhere only without a border.
        number(start + i).filter(|x| i < len && (*x == 0.0 || dot.uniform))
    };
    let mut sums = vec![Some(0.0); rows];
    let x = real(&weight)?;
    for_slices(dims, dot.row, dot.weight.1, |o, j, at, n| {
        let Some(sum) = sums[o] else { return };
        let slice = &x[at..at + n];
        if slice.iter().all(|w| *w == 0.0) {
            return;
        }
        sums[o] = known(o, j).map(|c| sum + f64::from(c) * slice.iter().map(|w| f64::from(*w)).sum::<f64>());
    });
    Some(sums)
}

/// Calls `f(o, j, start, length)` for every contiguous piece of a row-major tensor at index o of axis `row` and j of axis `col`.
pub fn for_slices(dims: &[usize], row: usize, col: usize, mut f: impl FnMut(usize, usize, usize, usize)) {
    let (p, q) = (row.min(col), row.max(col));
    if p == q || q >= dims.len() {
        return;
    }
    let size = |r: std::ops::Range<usize>| dims[r].iter().product::<usize>();
    let (outer, between, inner) = (size(0..p), size(p + 1..q), size(q + 1..dims.len()));
    let mut at = 0;
    for _ in 0..outer {
        for i in 0..dims[p] {
            for _ in 0..between {
                for j in 0..dims[q] {
                    let (o, c) = if p == row { (i, j) } else { (j, i) };
                    f(o, c, at, inner);
                    at += inner;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_constant_only_when_every_element_agrees() {
        let t = Tensor::new(&[2, 3], vec![0.0f32, 1.0, 5.0, -0.0, 1.0, 6.0]);
        assert_eq!(slice_numbers(&t, 1), [Some(0.0), Some(1.0), None]);
        assert_eq!(slice_numbers(&t, 0), [None, None]);
        assert!(slice_numbers(&Tensor::new(&[2], vec![1i64, 1]), 0).is_empty());
        let nan = Tensor::new(&[1, 2], vec![f32::NAN, f32::NAN]);
        assert_eq!(slice_numbers(&nan, 0), [None]);
        assert!(slice_numbers(&Tensor::new::<f32>(&[0, 2], vec![]), 1).is_empty());
    }

    #[test]
    fn slices_are_found_for_either_order_of_the_axes() {
        let mut seen = Vec::new();
        for_slices(&[2, 2, 3], 1, 0, |o, j, at, n| seen.push((o, j, at, n)));
        assert_eq!(seen, [(0, 0, 0, 3), (1, 0, 3, 3), (0, 1, 6, 3), (1, 1, 9, 3)]);
        for_slices(&[2], 0, 0, |_, _, _, _| panic!("one axis is no matrix"));
    }
}
