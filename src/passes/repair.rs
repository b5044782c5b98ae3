//! Layers fitted once more, front to back, against what the original computes.
//!
//! After earlier layers have changed, a later one gets another input x' than it was fitted to. What its output v then lacks,
//! `r = v − v'` with v from the original and v' from the changed model on the same samples, is fitted by its own input:
//! `ΔW = E[r x'ᵀ] (E[x' x'ᵀ] + δ)⁻¹`, around the means where the bias can take them up (He et al. 2017; the damping keeps ΔW small
//! where samples are few). Where a Relu or Clip alone reads v, what it cuts off need not fit: r is taken to the nearest number that
//! it makes the same of (Zhang et al. 2015, one step of their alternation). Where only a residual Add reads the output, v is that sum: so
//! the layer makes up for what the other branch has lost, too.
//!
//! One layer is fitted after the other, each measured after the one before it was written: two that are measured together would both make up
//! for the same lack; each run begins where the last one ended ([`super::onward`]). What is too large for a run for every layer gets fewer layers,
//! those before residual sums first. What the original computes is measured before, for as many layers as memory allows.

use super::Context;
use super::onward::Onward;
use crate::analysis::stats::rows::{axis_of, cut, most_rows, shape};
use crate::analysis::stats::{Detail, Patch};
use crate::data::Samples;
use crate::ir::{Model, NodeId, Tensor, Use, ValueId};
use crate::math::few::solve;
use crate::math::gram::Gram;
use crate::ops::ties::constant;
use crate::parallel::in_order;
use anyhow::{Context as _, Result};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

/// How many layers are fitted, at most and at least.
const LAYERS: [usize; 2] = [48, 8];
/// Samples that are run for each, where it sees many positions, at most and at least.
const SAMPLES: [usize; 2] = [256, 24];
/// Multiply-adds that all runs together may take: of large models fewer layers are fitted, on fewer samples.
const WORK: f64 = 2e11;
/// Bytes of what the original computes that are kept.
const KEPT: usize = 256 << 20;
/// Damping where there are many more rows than inputs, relative to the mean of the diagonal.
const DAMPING: f64 = 0.01;

/// A layer that is fitted once more.
pub struct Target {
    /// Which: the same node in both models.
    pub id: NodeId,
    /// The input of the node that its weight multiplies.
    pub slot: usize,
    /// How rows are cut out of it.
    pub patch: Patch,
    /// Numbers in such a row.
    pub columns: usize,
    /// What is compared.
    pub value: ValueId,
    /// The axis of it that the outputs lie along; negative: from the end.
    pub axis: i64,
    /// Numbers of outputs.
    pub outputs: usize,
}

/// A changed model, and how its layers are written.
pub trait Subject {
    /// The model as it is by now.
    fn model(&self) -> Cow<'_, Model>;

    /// Fits a target, or leaves it as it is.
    ///
    /// # Errors
    /// When numbers are not finite.
    fn correct(&mut self, target: &Target, lack: &Lack) -> Result<()>;
}

/// What a layer lacks, over rows of samples.
pub struct Lack {
    /// Over rows `[x', r]`.
    sums: Gram,
    samples: usize,
    columns: usize,
}

/// What takes up most of what a layer lacks.
pub struct Correction {
    /// outputs × columns.
    pub weight: Array2<f64>,
    /// What its output is to grow by; nothing where its bias cannot change.
    pub shift: Array1<f64>,
}

impl Lack {
    /// Numbers of columns and of outputs.
    pub fn dim(&self) -> (usize, usize) {
        (self.columns, self.sums.dim() - self.columns)
    }

    /// The correction by these columns of the input; `shifts`: the bias may change. `None` when nothing comes in.
    ///
    /// # Errors
    /// When numbers are not finite.
    pub fn correction(&self, kept: &[usize], shifts: bool) -> Result<Option<Correction>> {
        let (sums, (n, rows)) = (&self.sums, self.dim());
        let second = if shifts { sums.covariance() } else { sums.moment() };
        let inner = second.select(Axis(0), kept).select(Axis(1), kept);
        if kept.is_empty() || inner.diag().sum() <= 0.0 {
            return Ok(None);
        }
        let cross = second.slice(s![..n, n..]).select(Axis(0), kept);
        // Rows of one sample are evidence, but not independent: the geometric mean of samples and rows counts.
        let evidence = (sums.n as f64 * self.samples as f64).sqrt();
        let damping = DAMPING + kept.len() as f64 / evidence;
        let change = solve(inner.view(), cross.view(), damping, sums.n)?;
        let mut weight = Array2::zeros((rows, n));
        for (k, &j) in kept.iter().enumerate() {
            weight.column_mut(j).assign(&change.row(k));
        }
        let mean = sums.mean();
        let shift = match shifts {
            true => &mean.slice(s![n..]) - &change.t().dot(&mean.select(Axis(0), kept)),
            false => Array1::zeros(rows),
        };
        Ok(Some(Correction { weight, shift }))
    }
}

/// Fits these layers of a changed model, given in the order of execution. `macs`: multiply-adds of a run of the original.
///
/// # Errors
/// When a sample fails, or numbers are not finite. [`crate::engine::NotRun`] is in the chain when the engine does not run a model.
pub fn repair(
    original: &Model,
    macs: f64,
    targets: &[Target],
    subject: &mut impl Subject,
    samples: &Samples,
    cx: &Context,
) -> Result<()> {
    let runs = (WORK / macs.max(1.0)) as usize;
    let layers = (runs / SAMPLES[1])
        .clamp(LAYERS[1], LAYERS[0])
        .min(targets.len())
        .max(1);
    let most = (runs / layers).clamp(SAMPLES[1], SAMPLES[0]);
    let all: Vec<Compared> = targets.iter().map(|t| Compared::new(original, t)).collect();
    let chosen = thinned(&all, layers, |c| c.value != c.target.value); // before a residual sum
    cx.progress.start("repair", chosen.len());
    let mut ahead: VecDeque<Original> = VecDeque::new(); // of the next layers
    let mut onward = Onward::default();
    for (done, c) in chosen.iter().enumerate() {
        if ahead.is_empty() {
            ahead = originals(original, &chosen[done..], (samples, most), cx)?.into();
        }
        let original = ahead.pop_front().context("layers were measured")?;
        let rest: Vec<NodeId> = chosen[done..].iter().map(|c| c.target.id).collect();
        if let Some(sums) = measured((&subject.model(), &mut onward, &rest), c, &original, samples, cx)? {
            let lack = Lack {
                sums,
                samples: original.len(),
                columns: c.target.columns,
            };
            subject.correct(c.target, &lack)?;
        }
        cx.progress.advance(1);
    }
    cx.progress.finish();
    Ok(())
}

/// So many of these, evenly spread; of each stretch the last that is `better`, else its last.
fn thinned<T>(all: &[T], most: usize, better: impl Fn(&T) -> bool) -> Vec<&T> {
    let stretches = most.min(all.len());
    let of = |i: usize| {
        let stretch = &all[i * all.len() / stretches..(i + 1) * all.len() / stretches];
        stretch.iter().rfind(|t| better(t)).or(stretch.last())
    };
    (0..stretches).filter_map(of).collect()
}

/// What of a target is compared, and how far.
struct Compared<'a> {
    target: &'a Target,
    /// The residual sum that alone reads what the target makes, else that.
    value: ValueId,
    /// All that reads it cuts off what lies outside.
    bounds: [f32; 2],
}

/// The residual sum that alone reads a value, else the value.
fn compared(model: &Model, out: ValueId) -> ValueId {
    let sum = || {
        let (add, slot) = model.only_use(out)?;
        let node = model.node(add);
        let other = node.input(1usize.checked_sub(slot)?)?;
        let plain = node.is("Add") && node.graph() == model.main_id() && constant(model, other).is_none();
        node.output(0).filter(|_| plain)
    };
    sum().unwrap_or(out)
}

/// Outside of these nothing that reads a value tells numbers apart.
fn bounds(model: &Model, value: ValueId) -> [f32; 2] {
    let open = [f32::NEG_INFINITY, f32::INFINITY];
    let of = |u: &Use| match *u {
        Use::Node(id, 0) => cutting(model, id).unwrap_or(open),
        _ => open,
    };
    let all = model.value(value).uses().iter().map(of);
    all.reduce(|a, b| [a[0].min(b[0]), a[1].max(b[1])]).unwrap_or(open)
}

/// What a Relu or a Clip lets through.
fn cutting(model: &Model, id: NodeId) -> Option<[f32; 2]> {
    let node = model.node(id);
    if node.is("Relu") {
        return Some([0.0, f32::INFINITY]);
    }
    if !node.is("Clip") {
        return None;
    }
    let bound = |slot: usize, name: &str, none: f32| match node.input(slot) {
        Some(v) => constant(model, v)?.to_f32()?.first().copied(),
        None => Some(node.float(name).unwrap_or(none)),
    };
    let bounds = [bound(1, "min", f32::NEG_INFINITY)?, bound(2, "max", f32::INFINITY)?];
    (bounds[0] < bounds[1]).then_some(bounds)
}

/// What is lacking: up to the nearest number that becomes what the original's becomes.
fn lacking([low, high]: [f32; 2], was: f32, is: f32) -> f32 {
    let aim = match was {
        _ if was <= low => is.min(low),
        _ if was >= high => is.max(high),
        _ => was,
    };
    aim - is
}

/// What the original computes where a layer is compared, for each sample.
type Original = Vec<Option<Rows>>;

/// Rows of a value, and the dimensions that it has as a whole.
struct Rows {
    dims: Vec<usize>,
    rows: Vec<f32>,
}

impl<'a> Compared<'a> {
    fn new(model: &Model, target: &'a Target) -> Compared<'a> {
        let value = compared(model, target.value);
        Compared {
            target,
            value,
            bounds: bounds(model, value),
        }
    }

    /// Rows of what is compared, at the positions that are taken of the input, too.
    fn rows(&self, value: &Tensor, sample: usize, samples: usize) -> Result<Option<Rows>> {
        let (t, dims) = (self.target, value.dims().to_vec());
        let along = axis_of(&dims, t.axis).is_ok_and(|axis| dims[axis] == t.outputs);
        let Some(x) = value.floats().filter(|_| along) else {
            return Ok(None);
        };
        let rows = cut(
            &x,
            &dims,
            &Patch::Axis(t.axis),
            sample,
            most_rows(t.columns, samples, Detail::Fine),
        )?
        .data;
        Ok(Some(Rows { dims, rows }))
    }
}

/// Runs the original for the first of these layers, and for as many more as fit into memory.
fn originals(
    original: &Model,
    layers: &[&Compared],
    (samples, most): (&Samples, usize),
    cx: &Context,
) -> Result<Vec<Original>> {
    let first = samples.get(0)?;
    let load = |layers: &[&Compared]| {
        let values: Vec<ValueId> = layers.iter().map(|c| c.value).collect();
        cx.engine.load(original, &values, &first)
    };
    let session = load(layers)?;
    let mut sizes = BTreeMap::new();
    session.visit(&first, &mut |k, y| {
        sizes.insert(k, y.len());
        Ok(())
    })?;
    let (mut counts, mut bytes) = (Vec::new(), 0usize);
    for (c, len) in layers.iter().zip(sizes.into_values()) {
        let (columns, positions) = (c.target.columns, len / c.target.outputs);
        // Layers that see few rows of a sample need all samples.
        let few = most * positions < 2 * columns;
        let n = if few { samples.len() } else { samples.len().min(most) };
        bytes += 4 * n * positions.min(most_rows(columns, n, Detail::Fine)) * c.target.outputs;
        if bytes > KEPT && !counts.is_empty() {
            break;
        }
        counts.push(n);
    }
    let session = match counts.len() == layers.len() {
        true => session,
        false => load(&layers[..counts.len()])?,
    };
    let layers = &layers[..counts.len()];
    let mut all: Vec<Original> = counts.iter().map(|_| Original::new()).collect();
    in_order(
        counts.iter().copied().max().unwrap_or(0),
        cx.threads,
        |i| {
            let mut rows: Vec<Option<Rows>> = layers.iter().map(|_| None).collect();
            session.visit(&samples.get(i)?, &mut |k, value| {
                if counts.get(k).is_some_and(|n| i < *n) {
                    rows[k] = layers[k].rows(&value, i, counts[k])?;
                }
                Ok(())
            })?;
            Ok(rows)
        },
        |i, rows| {
            for ((original, rows), n) in all.iter_mut().zip(rows).zip(&counts) {
                if i < *n {
                    original.push(rows);
                }
            }
            Ok(())
        },
    )?;
    Ok(all)
}

/// Sums over rows `[x', r]`; `None` where rows do not correspond. Nothing before the first node of `rest` will change any more.
fn measured(
    (changed, onward, rest): (&Model, &mut Onward, &[NodeId]),
    c: &Compared,
    original: &Original,
    samples: &Samples,
    cx: &Context,
) -> Result<Option<Gram>> {
    let input = changed.node(c.target.id).input(c.target.slot);
    let wanted = [input.context("a layer has an input")?, shifted(changed, c.value)];
    let n = original.len();
    let (mut sums, mut misfit) = (Gram::new(c.target.columns + c.target.outputs), false);
    onward.run(
        (changed, &wanted, rest),
        (samples, n),
        (cx.engine, cx.threads),
        |i, is| stacked(c, (&is[0], &is[1]), &original[i], (i, n)),
        |rows| {
            match rows {
                Some(rows) => sums.add_rows(rows.view())?,
                None => misfit = true,
            }
            Ok(())
        },
    )?;
    Ok((!misfit && sums.n > 1).then_some(sums))
}

/// The value after the Add that took up a changed bias.
fn shifted(changed: &Model, value: ValueId) -> ValueId {
    let after = || {
        let (add, slot) = changed.only_use(value)?;
        let node = changed.node(add);
        let other = changed.constant(node.input(1usize.checked_sub(slot)?)?)?;
        node.output(0)
            .filter(|_| node.is("Add") && other.dims().iter().filter(|d| **d != 1).count() <= 1)
    };
    match changed
        .value(value)
        .producer()
        .is_some_and(|p| changed.node(p).is("MatMul"))
    {
        true => after().unwrap_or(value),
        false => value,
    }
}

/// Rows `[x', r]` of one sample.
fn stacked(
    c: &Compared,
    (x, is): (&Tensor, &Tensor),
    was: &Option<Rows>,
    (sample, samples): (usize, usize),
) -> Result<Option<Array2<f32>>> {
    let (Some(data), Some(was), Some(is)) = (x.floats(), was, c.rows(is, sample, samples)?) else {
        return Ok(None);
    };
    let t = c.target;
    if was.dims != is.dims || shape(x.dims(), &t.patch)? != (t.columns, 1) {
        return Ok(None);
    }
    let rows = cut(
        &data,
        x.dims(),
        &t.patch,
        sample,
        most_rows(t.columns, samples, Detail::Fine),
    )?
    .data;
    let (n, m) = (rows.len() / t.columns, was.rows.len() / t.outputs);
    let pointwise = matches!(t.patch, Patch::Axis(_));
    // The same positions were chosen only when there are as many on either side.
    if n != m || n == 0 || (pointwise && x.len() / t.columns != was.dims.iter().product::<usize>() / t.outputs) {
        return Ok(None);
    }
    let r: Vec<f32> = was
        .rows
        .iter()
        .zip(&is.rows)
        .map(|(a, b)| lacking(c.bounds, *a, *b))
        .collect();
    let mut all = Array2::zeros((n, t.columns + t.outputs));
    all.slice_mut(s![.., ..t.columns])
        .assign(&ArrayView2::from_shape((n, t.columns), &rows)?);
    all.slice_mut(s![.., t.columns..])
        .assign(&ArrayView2::from_shape((n, t.outputs), &r)?);
    Ok(Some(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_activation_cuts_off_lacks_nothing() {
        let relu = [0.0, f32::INFINITY];
        let cases = [(-1.0, -3.0, 0.0), (-1.0, 2.0, -2.0), (1.0, -3.0, 4.0), (1.0, 3.0, -2.0)];
        for (was, is, r) in cases {
            assert_eq!(lacking(relu, was, is), r, "{was} {is}");
        }
        let clip = [0.0, 6.0];
        for (was, is, r) in [(7.0, 9.0, 0.0), (7.0, 4.0, 2.0), (5.0, 7.0, -2.0)] {
            assert_eq!(lacking(clip, was, is), r, "{was} {is}");
        }
        assert_eq!(lacking([f32::NEG_INFINITY, f32::INFINITY], -1.0, -3.0), 2.0);
    }

    #[test]
    fn of_too_many_layers_those_before_sums_are_fitted() {
        let layers = [0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(thinned(&layers, 20, |_| false).len(), 9);
        assert_eq!(thinned(&layers, 3, |_| false), [&2, &5, &8]);
        assert_eq!(thinned(&layers, 3, |k| [0, 3, 4].contains(k)), [&0, &4, &8]);
        assert_eq!(thinned(&[0; 0], 3, |_| true), [&0; 0]);
    }
}
