//! Readers fitted once more, front to back, against what the original computes.
//!
//! After earlier layers have lost channels, a later one gets another input x' than it was fitted to. What its output v then lacks,
//! `r = v − v'` with v from the original and v' from the changed model on the same samples, is fitted by its own input:
//! `ΔW = E[r x'ᵀ] (E[x' x'ᵀ] + δ)⁻¹`, around the means where the bias can take them up (He et al. 2017; the damping keeps ΔW small
//! where samples are few). Where a Relu or Clip alone reads v, what it cuts off need not fit: r is taken to the nearest number that
//! it makes the same of (Zhang et al. 2015, one step of their alternation). Where only a residual Add reads the output, v is that sum: so the layer makes up for what the other
//! branch has lost, too. Layers are taken in waves, each measured after the one before it was written; what the original
//! computes is measured before, for as many waves as memory allows.

use super::Context;
use super::fold::takes_shift;
use super::refit::{Fitted, by_row, matrix, rebuilt};
use super::trial::Bench;
use super::units::Reader;
use crate::analysis::sites::site;
use crate::analysis::stats::Patch;
use crate::analysis::stats::rows::{cut, most_rows, shape};
use crate::data::Samples;
use crate::ir::{Model, NodeId, Tensor, Use, ValueId};
use crate::math::few::solve;
use crate::math::gram::Gram;
use crate::ops::ties::constant;
use crate::parallel::in_order;
use anyhow::{Context as _, Result};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How often values are measured anew, at most and at least.
const WAVES: [usize; 2] = [24, 6];
/// Samples that are run in each wave, of layers with many positions, at most and at least.
const SAMPLES: [usize; 2] = [48, 12];
/// Multiply-adds that all runs together may take: large models get fewer waves of fewer samples.
const WORK: f64 = 1.2e11;
/// Bytes of what the original computes that are kept.
const KEPT: usize = 256 << 20;
/// Damping where there are many more rows than inputs, relative to the mean of the diagonal.
const DAMPING: f64 = 0.01;

/// What was written so far, by node and weight.
type Current = BTreeMap<(NodeId, ValueId), Fitted>;

/// One reader of a wave.
struct Target<'a> {
    id: NodeId,
    reader: &'a Reader,
    patch: Patch,
    /// What is compared, and the axis of it that its rows become.
    value: ValueId,
    /// All that reads it cuts off what lies outside.
    bounds: [f32; 2],
    axis: usize,
    /// Numbers in a row of what it reads, and of what it gives out.
    columns: usize,
    outputs: usize,
}

/// The readers of a changed model after the repair: those that were fitted, and others that come after them.
///
/// # Errors
/// When a sample fails, or numbers are not finite.
pub fn repair(bench: &Bench, fitted: Vec<Fitted>, samples: &Samples, cx: &Context) -> Result<Vec<Fitted>> {
    let mut current: Current = fitted.into_iter().map(|f| ((f.id, f.weight), f)).collect();
    let targets = targets(bench, &current);
    let runs = (WORK / bench.units.costs.macs.max(1.0)) as usize;
    let waves = (runs / (2 * SAMPLES[1])).clamp(WAVES[1], WAVES[0]);
    let most = (runs / waves).clamp(SAMPLES[1], SAMPLES[0]);
    let size = targets.len().div_ceil(waves).max(1);
    let waves: Vec<&[Target]> = targets.chunks(size).collect();
    cx.progress.start("repair", waves.len());
    let mut ahead: VecDeque<Original> = VecDeque::new(); // of the next waves
    for (k, wave) in waves.iter().enumerate() {
        if ahead.is_empty() {
            ahead = originals(bench, &waves[k..], (samples, most), cx)?.into();
        }
        let original = ahead.pop_front().context("waves were measured")?;
        let changed = bench.changed(&current.values().cloned().collect::<Vec<_>>());
        let sums = measured(&changed, wave, &original, samples, cx)?;
        for (t, sums) in wave.iter().zip(sums) {
            let place = (t.id, t.reader.weight);
            if let Some(new) = sums
                .map(|g| solved(bench, t, current.get(&place), (&g, original.len())))
                .transpose()?
                .flatten()
            {
                current.insert(place, new);
            }
        }
        cx.progress.advance(1);
    }
    cx.progress.finish();
    Ok(current.into_values().collect())
}

/// What comes after a change, in the order of execution.
fn targets<'a>(bench: &Bench<'a>, fitted: &Current) -> Vec<Target<'a>> {
    let model = bench.model;
    let changed: BTreeSet<NodeId> = fitted.keys().map(|(id, _)| *id).collect();
    let mut tainted: BTreeSet<ValueId> = BTreeSet::new();
    let mut targets = Vec::new();
    for (id, _) in &bench.groups.flows {
        let node = model.node(*id);
        let touched = changed.contains(id) || node.inputs().iter().flatten().any(|v| tainted.contains(v));
        if !touched || node.graph() != model.main_id() {
            continue;
        }
        tainted.extend(node.outputs().iter().flatten());
        let Some(Some(reader)) = bench.units.readers.get(id) else {
            continue;
        };
        let Some(own) = &reader.patch else { continue };
        // A recurrent layer's output is not its product.
        if reader.dot.alpha != 1.0 || reader.dot.beta == 0.0 {
            continue;
        }
        let patch = match site(model, *id) {
            Some(Ok(s)) if reader.taps == s.taps() => s.patch,
            _ => own.clone(),
        };
        let weight = constant(model, reader.weight).and_then(|w| matrix(&w, reader));
        let Some((outputs, columns)) = weight.map(|w| w.dim()).filter(|d| d.0 * d.1 > 0) else {
            continue;
        };
        let value = compared(model, reader.out);
        targets.push(Target {
            id: *id,
            reader,
            patch,
            value,
            bounds: bounds(model, value),
            axis: reader.dot.out,
            columns,
            outputs,
        });
    }
    targets
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

/// What the original computes for the readers of a wave: for each sample and each of them rows of the value that is compared.
type Original = Vec<Vec<Option<Rows>>>;

/// Rows of a value, and the dimensions that it has as a whole.
struct Rows {
    dims: Vec<usize>,
    rows: Vec<f32>,
}

impl Target<'_> {
    /// Rows of what is compared, at the positions that are taken of the input, too.
    fn compared(&self, value: &Tensor, sample: usize, samples: usize) -> Result<Option<Rows>> {
        let dims = value.dims().to_vec();
        let Some(x) = value.floats().filter(|_| dims.get(self.axis) == Some(&self.outputs)) else {
            return Ok(None);
        };
        let most = most_rows(self.columns, samples);
        let rows = cut(&x, &dims, &Patch::Axis(self.axis as i64), sample, most)?.data;
        Ok(Some(Rows { dims, rows }))
    }
}

/// Runs the original for the first of these waves, and for as many more as fit into memory.
fn originals(
    bench: &Bench,
    waves: &[&[Target]],
    (samples, most): (&Samples, usize),
    cx: &Context,
) -> Result<Vec<Original>> {
    let first = samples.get(0)?;
    let load = |waves: &[&[Target]]| {
        let values: Vec<ValueId> = waves.iter().flat_map(|w| w.iter()).map(|t| t.value).collect();
        cx.engine.load(bench.model, &values, &first)
    };
    let session = load(waves)?;
    let mut sizes = BTreeMap::new();
    session.visit(&first, &mut |k, y| {
        sizes.insert(k, y.len());
        Ok(())
    })?;
    let mut sizes = sizes.into_values();
    let (mut counts, mut bytes) = (Vec::new(), 0usize);
    for wave in waves {
        let of: Vec<(&Target, usize)> = wave.iter().zip(sizes.by_ref()).collect();
        // Layers that see few rows of a sample need all samples.
        let few = of.iter().any(|(t, len)| 2 * most * (len / t.outputs) < t.columns);
        let n = if few { samples.len() } else { samples.len().min(most) };
        let rows = |(t, len): &(&Target, usize)| n * (len / t.outputs).min(most_rows(t.columns, n)) * t.outputs;
        bytes += 4 * of.iter().map(rows).sum::<usize>();
        if bytes > KEPT && !counts.is_empty() {
            break;
        }
        counts.push(n);
    }
    let session = match counts.len() == waves.len() {
        true => session,
        false => load(&waves[..counts.len()])?,
    };
    let place: Vec<(usize, &Target)> = (0..counts.len())
        .flat_map(|w| waves[w].iter().map(move |t| (w, t)))
        .collect();
    let mut all: Vec<Original> = counts.iter().map(|_| Original::new()).collect();
    in_order(
        counts.iter().copied().max().unwrap_or(0),
        cx.threads,
        |i| {
            let mut rows: Vec<Option<Rows>> = place.iter().map(|_| None).collect();
            session.visit(&samples.get(i)?, &mut |k, value| {
                let (w, t) = place[k];
                if i < counts[w] {
                    rows[k] = t.compared(&value, i, counts[w])?;
                }
                Ok(())
            })?;
            Ok(rows)
        },
        |i, rows| {
            let mut rows = rows.into_iter();
            for (w, original) in all.iter_mut().enumerate() {
                let of_wave = rows.by_ref().take(waves[w].len()).collect();
                if i < counts[w] {
                    original.push(of_wave);
                }
            }
            Ok(())
        },
    )?;
    Ok(all)
}

/// Sums over rows `[x', r]` for each target; `None` where rows do not correspond.
fn measured(
    changed: &Model,
    wave: &[Target],
    original: &Original,
    samples: &Samples,
    cx: &Context,
) -> Result<Vec<Option<Gram>>> {
    let input = |t: &Target| changed.node(t.id).input(t.reader.dot.data.0).unwrap_or(t.reader.input);
    let wanted: Vec<ValueId> = wave
        .iter()
        .flat_map(|t| [input(t), shifted(changed, t.value)])
        .collect();
    let session = cx.engine.load(changed, &wanted, &samples.get(0)?)?;
    let n = original.len();
    let mut sums: Vec<Option<Gram>> = vec![None; wave.len()];
    let mut misfits = vec![false; wave.len()];
    in_order(
        n,
        cx.threads,
        |i| {
            let is = session.run(&samples.get(i)?)?;
            let rows = |(k, t): (usize, &Target)| stacked(t, (&is[2 * k], &is[2 * k + 1]), &original[i][k], (i, n));
            wave.iter().enumerate().map(rows).collect::<Result<Vec<_>>>()
        },
        |_, parts| {
            for (k, rows) in parts.into_iter().enumerate() {
                let Some(rows) = rows else {
                    misfits[k] = true;
                    continue;
                };
                let gram = sums[k].get_or_insert_with(|| Gram::new(rows.ncols()));
                match gram.dim() == rows.ncols() {
                    true => gram.add_rows(rows.view())?,
                    false => misfits[k] = true,
                }
            }
            Ok(())
        },
    )?;
    let usable = |(g, misfit): (Option<Gram>, bool)| g.filter(|g| !misfit && g.n > 1);
    Ok(sums.into_iter().zip(misfits).map(usable).collect())
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
    t: &Target,
    (x, is): (&Tensor, &Tensor),
    was: &Option<Rows>,
    (sample, samples): (usize, usize),
) -> Result<Option<Array2<f32>>> {
    let (Some(data), Some(was), Some(is)) = (x.floats(), was, t.compared(is, sample, samples)?) else {
        return Ok(None);
    };
    if was.dims != is.dims || shape(x.dims(), &t.patch)? != (t.columns, 1) {
        return Ok(None);
    }
    let rows = cut(&data, x.dims(), &t.patch, sample, most_rows(t.columns, samples))?.data;
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
        .map(|(a, b)| lacking(t.bounds, *a, *b))
        .collect();
    let mut all = Array2::zeros((n, t.columns + t.outputs));
    all.slice_mut(s![.., ..t.columns])
        .assign(&ArrayView2::from_shape((n, t.columns), &rows)?);
    all.slice_mut(s![.., t.columns..])
        .assign(&ArrayView2::from_shape((n, t.outputs), &r)?);
    Ok(Some(all))
}

/// A reader with what it lacks.
fn solved(
    bench: &Bench,
    t: &Target,
    current: Option<&Fitted>,
    (sums, samples): (&Gram, usize),
) -> Result<Option<Fitted>> {
    let Some(original) = constant(bench.model, t.reader.weight) else {
        return Ok(None);
    };
    let tensor = current.map_or_else(|| original.as_ref().clone(), |f| f.tensor.clone());
    let Some(map) = matrix(&tensor, t.reader) else {
        return Ok(None);
    };
    let (rows, n) = map.dim();
    if sums.dim() != rows + n {
        return Ok(None);
    }
    let shifts = takes_shift(bench.model, t.id, &t.reader.dot);
    let second = if shifts { sums.covariance() } else { sums.moment() };
    let kept: Vec<usize> = (0..n).filter(|j| map.column(*j).iter().any(|w| *w != 0.0)).collect();
    let inner = second.select(Axis(0), &kept).select(Axis(1), &kept);
    if kept.is_empty() || inner.diag().sum() <= 0.0 {
        return Ok(None);
    }
    let cross = second.slice(s![..n, n..]).select(Axis(0), &kept);
    // Rows of one sample are evidence, but not independent: the geometric mean of samples and rows counts.
    let evidence = (sums.n as f64 * samples as f64).sqrt();
    let damping = DAMPING + kept.len() as f64 / evidence;
    let change = solve(inner.view(), cross.view(), damping, sums.n)?;
    let mut new = map;
    for (k, &j) in kept.iter().enumerate() {
        let mut column = new.column_mut(j);
        column += &change.row(k);
    }
    let mean = sums.mean();
    let shift = shifts.then(|| {
        let lines: Array1<f64> = &mean.slice(s![n..]) - &change.t().dot(&mean.select(Axis(0), &kept));
        let before = current.and_then(|f| f.shift.clone());
        let more = by_row(&lines, original.dims(), t.reader);
        match before {
            Some(b) => b.iter().zip(more).map(|(a, b)| a + b).collect(),
            None => more,
        }
    });
    Ok(rebuilt(&original, t.reader, &new).map(|tensor| Fitted {
        id: t.id,
        weight: t.reader.weight,
        tensor,
        shift,
        lost: current.and_then(|f| f.lost),
    }))
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
}
