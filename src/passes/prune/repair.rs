//! Readers fitted once more, front to back, against what the original computes.
//!
//! After earlier layers have lost channels, a later one gets another input x' than it was fitted to. What its output v then lacks,
//! `r = v − v'` with v from the original and v' from the changed model on the same samples, is fitted by its own input:
//! `ΔW = E[r x'ᵀ] (E[x' x'ᵀ] + δ)⁻¹`, around the means where the bias can take them up (He et al. 2017; the damping keeps ΔW small
//! where samples are few). Where only a residual Add reads the output, v is that sum: so the layer makes up for what the other
//! branch has lost, too. Layers are taken in waves, each measured after the one before it was written.

use super::Context;
use super::fold::takes_shift;
use super::refit::{Fitted, by_row, matrix, rebuilt};
use super::trial::Bench;
use super::units::Reader;
use crate::analysis::sites::site;
use crate::analysis::stats::Patch;
use crate::analysis::stats::rows::{cut, most_rows, shape};
use crate::data::Samples;
use crate::ir::{Model, NodeId, Tensor, ValueId};
use crate::math::few::solve;
use crate::math::gram::Gram;
use crate::ops::ties::constant;
use crate::parallel::in_order;
use anyhow::Result;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use std::collections::{BTreeMap, BTreeSet};

/// How often values are measured anew, at most and at least.
const WAVES: [usize; 2] = [24, 6];
/// Samples that are run in each wave, of layers with many positions, at most and at least.
const SAMPLES: [usize; 2] = [48, 12];
/// Multiply-adds that all runs together may take: large models get fewer waves of fewer samples.
const WORK: f64 = 1.2e11;
/// Damping where there are many more rows than inputs, relative to the mean of the diagonal.
const DAMPING: f64 = 0.01;

/// One reader of a wave.
struct Target<'a> {
    id: NodeId,
    reader: &'a Reader,
    patch: Patch,
    /// What is compared, and the axis of it that its rows become.
    value: ValueId,
    axis: usize,
}

/// The readers of a changed model after the repair: those that were fitted, and others that come after them.
///
/// # Errors
/// When a sample fails, or numbers are not finite.
pub fn repair(bench: &Bench, fitted: Vec<Fitted>, samples: &Samples, cx: &Context) -> Result<Vec<Fitted>> {
    let mut current: BTreeMap<NodeId, Fitted> = fitted.into_iter().map(|f| (f.id, f)).collect();
    let targets = targets(bench, &current);
    let runs = (WORK / bench.units.macs.max(1.0)) as usize;
    let waves = (runs / (2 * SAMPLES[1])).clamp(WAVES[1], WAVES[0]);
    let most = (runs / waves).clamp(SAMPLES[1], SAMPLES[0]);
    let size = targets.len().div_ceil(waves).max(1);
    cx.progress.start("repair", targets.len().div_ceil(size));
    for wave in targets.chunks(size) {
        let changed = bench.changed(&current.values().cloned().collect::<Vec<_>>());
        let (sums, seen) = measured(bench, &changed, wave, (samples, most), cx)?;
        for (t, sums) in wave.iter().zip(sums) {
            if let Some(new) = sums
                .map(|g| solved(bench, t, current.get(&t.id), (&g, seen)))
                .transpose()?
                .flatten()
            {
                current.insert(t.id, new);
            }
        }
        cx.progress.advance(1);
    }
    cx.progress.finish();
    Ok(current.into_values().collect())
}

/// What comes after a change, in the order of execution.
fn targets<'a>(bench: &Bench<'a>, fitted: &BTreeMap<NodeId, Fitted>) -> Vec<Target<'a>> {
    let model = bench.model;
    let mut tainted: BTreeSet<ValueId> = BTreeSet::new();
    let mut targets = Vec::new();
    for (id, _) in &bench.groups.flows {
        let node = model.node(*id);
        let touched = fitted.contains_key(id) || node.inputs().iter().flatten().any(|v| tainted.contains(v));
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
        targets.push(Target {
            id: *id,
            reader,
            patch,
            value: compared(model, reader.out),
            axis: reader.dot.out,
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

/// Sums over rows `[x', r]` for each target, `None` where rows do not correspond; and how many samples were run.
fn measured(
    bench: &Bench,
    changed: &Model,
    wave: &[Target],
    (samples, most): (&Samples, usize),
    cx: &Context,
) -> Result<(Vec<Option<Gram>>, usize)> {
    let input = |t: &Target| changed.node(t.id).input(t.reader.dot.data.0).unwrap_or(t.reader.input);
    let now = |t: &Target| shifted(changed, t.value);
    let inner: Vec<ValueId> = wave.iter().flat_map(|t| [input(t), now(t)]).collect();
    let before: Vec<ValueId> = wave.iter().map(|t| t.value).collect();
    let first = samples.get(0)?;
    let load = |m: &Model, v: &[ValueId]| cx.engine.load(m, v, &first);
    let (original, new) = (load(bench.model, &before)?, load(changed, &inner)?);
    // Layers that see few rows of a sample need all samples.
    let probe = new.run(&first)?;
    let few = wave.iter().enumerate().any(|(i, t)| {
        let x = &probe[2 * i];
        let dim = shape(x.dims(), &t.patch).map_or(1, |s| s.0).max(1);
        2 * most * t.reader.taps * (x.len() / dim) < dim
    });
    let n = if few { samples.len() } else { samples.len().min(most) };
    let mut sums: Vec<Option<Gram>> = vec![None; wave.len()];
    let mut misfits = vec![false; wave.len()];
    in_order(
        n,
        cx.threads,
        |i| {
            let sample = samples.get(i)?;
            let (was, is) = (original.run(&sample)?, new.run(&sample)?);
            let rows = |(k, t): (usize, &Target)| stacked(t, &is[2 * k], (&was[k], &is[2 * k + 1]), i, n);
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
    Ok((sums.into_iter().zip(misfits).map(usable).collect(), n))
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
    x: &Tensor,
    (was, is): (&Tensor, &Tensor),
    sample: usize,
    samples: usize,
) -> Result<Option<Array2<f32>>> {
    let (Some(a), Some(b), Some(data)) = (was.floats(), is.floats(), x.floats()) else {
        return Ok(None);
    };
    if was.dims() != is.dims() || was.dims().len() <= t.axis {
        return Ok(None);
    }
    let most = most_rows(shape(x.dims(), &t.patch)?.0, samples);
    let r: Vec<f32> = a.iter().zip(b.iter()).map(|(a, b)| a - b).collect();
    let rows = cut(&data, x.dims(), &t.patch, sample, most)?;
    let other = cut(&r, was.dims(), &Patch::Axis(t.axis as i64), sample, most)?;
    let (n, m) = (rows.data.len() / rows.dim.max(1), other.data.len() / other.dim.max(1));
    let positions = |dims: &[usize], dim: usize| dims.iter().product::<usize>() / dim.max(1);
    let pointwise = matches!(t.patch, Patch::Axis(_));
    // The same positions were chosen only when there are as many on either side.
    if n != m
        || n == 0
        || rows.groups != 1
        || (pointwise && positions(x.dims(), rows.dim) != positions(was.dims(), other.dim))
    {
        return Ok(None);
    }
    let mut all = Array2::zeros((n, rows.dim + other.dim));
    all.slice_mut(s![.., ..rows.dim])
        .assign(&ArrayView2::from_shape((n, rows.dim), &rows.data)?);
    all.slice_mut(s![.., rows.dim..])
        .assign(&ArrayView2::from_shape((n, other.dim), &other.data)?);
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
