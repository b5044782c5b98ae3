//! Lossy removal: a part of every group of channels, chosen by damage, repaired by least squares.
//!
//! Units that lie on the same axes are one group; `ratio` of each group goes. By `data`, a unit's damage is what the layers
//! that read it lose, in parts of their output power, after refitting their other weights ([`crate::math::channels`]): the
//! cheapest goes first, and the damage of the others is told anew after each. By `l1` and `l2` it is the mean size of
//! the filters that make it, relative to their layer.
//!
//! All moments are those of the original's activations, between channels (a k×k Conv refits every tap by the same
//! coefficients); the mean is kept through the bias. A layer that shares its weight, or whose input has more than
//! [`MAX_INPUTS`] channels, or that lies in a sub-graph, is not refitted. Cost: one measuring run, and one inverse for each
//! reading layer.

use super::exact::reading_dot;
use super::facts::for_slices;
use super::fold::{Shift, takes_shift};
use super::{Context, cut};
use crate::analysis::groups::Groups;
use crate::analysis::stats::{Measure, Patch, Stats};
use crate::ir::{DType, Model, NodeId, Tensor, ValueId};
use crate::math::channels::{Surgeon, bias_shift};
use crate::ops::ties::{Dot, constant};
use anyhow::{Context as _, Result};
use ndarray::{Array1, Array2, ArrayViewD, Axis, IxDyn};
use std::collections::{BTreeMap, BTreeSet};

/// Inputs of more channels are not refitted: the inverse takes time with the third power.
const MAX_INPUTS: usize = 4096;
/// Relative to the mean variance of the channels: what is below this is noise of the sample.
const DAMPING: f64 = 1e-4;

/// How units are chosen.
pub enum Criterion {
    /// By what the readers lose.
    Data,
    /// By the largest sums of squares.
    L2,
    /// By sums of sizes.
    L1,
}

/// What is asked for.
pub struct Plan {
    /// The part of each group that goes.
    pub part: f64,
    /// Which.
    pub by: Criterion,
    /// Whether readers are refitted.
    pub repair: bool,
    /// Groups keep a multiple of so many.
    pub round_to: usize,
}

/// A unit that may go.
#[derive(Default)]
struct Unit {
    /// Size of its filters, relative to their layers, summed.
    size: f64,
    made: bool,
    /// Who reads it, at which indices.
    read: BTreeMap<NodeId, Vec<usize>>,
}

/// A contraction that reads channels.
struct Reader {
    dot: Dot,
    input: ValueId,
    weight: ValueId,
    out: ValueId,
    /// Refitted, or only cut.
    refit: bool,
}

/// The units that go, and how biases change. Weights of refitted readers are written at once.
///
/// # Errors
/// When measuring fails for another reason than that the engine cannot run the model.
pub fn choose(model: &mut Model, groups: &Groups, plan: &Plan, cx: &mut Context) -> Result<(BTreeSet<usize>, Vec<Shift>)> {
    let readers = readers(model, groups);
    let units = units(model, groups, &plan.by, &readers);
    let alike = alike(groups, &units);
    let needs_data = plan.repair || matches!(plan.by, Criterion::Data);
    let stats = match needs_data {
        true => measured(model, cx, &readers),
        false => None,
    };
    let mut work = Work {
        readers,
        stats,
        taken: BTreeMap::new(),
        shifts: BTreeMap::new(),
        lost: BTreeMap::new(),
    };
    let mut gone = BTreeSet::new();
    for members in alike.values() {
        let left = members.len() - (members.len() as f64 * plan.part) as usize;
        let left = left.div_ceil(plan.round_to).saturating_mul(plan.round_to).min(members.len());
        if left < members.len() {
            gone.extend(work.thin_out(model, &units, members, members.len() - left, plan)?);
        }
    }
    for (id, lost) in &work.lost {
        let db = -10.0 * lost.max(1e-12).log10();
        cx.did(model, *id, format!("refitted to the channels that are left; predicted SQNR of its output {db:.1} dB"));
    }
    Ok((gone, work.into_shifts()))
}

fn readers(model: &Model, groups: &Groups) -> BTreeMap<NodeId, Option<Reader>> {
    let mut out = BTreeMap::new();
    for (id, flow) in &groups.flows {
        let Some(k) = reading_dot(model, *id, flow) else { continue };
        let (node, dot) = (model.node(*id), &flow.dots[k]);
        let (Some(input), Some(weight), Some(to)) = (node.input(dot.data.0), node.input(dot.weight.0), node.output(0)) else {
            continue;
        };
        let tensor = constant(model, weight);
        let reader = tensor.map(|t| Reader {
            dot: dot.clone(),
            input,
            weight,
            out: to,
            refit: dot.groups == 1
                && t.dtype() == DType::Float
                && model.value(weight).uses().len() == 1
                && node.graph() == model.main_id()
                && t.dims().get(dot.weight.1).is_some_and(|n| *n <= MAX_INPUTS),
        });
        out.insert(*id, reader);
    }
    out
}

/// The units that are made by a layer, may go, and are read only by layers with constant weights.
fn units(
    model: &Model,
    groups: &Groups,
    by: &Criterion,
    readers: &BTreeMap<NodeId, Option<Reader>>,
) -> BTreeMap<usize, Unit> {
    let mut units: BTreeMap<usize, Unit> = BTreeMap::new();
    let mut blocked = BTreeSet::new();
    for (id, flow) in &groups.flows {
        let node = model.node(*id);
        for dot in &flow.dots {
            let weight = node.input(dot.weight.0);
            let rows = weight.and_then(|v| Some((groups.axis(v, dot.row)?, sizes(model, v, dot, by)?)));
            if let Some(((start, len), sizes)) = rows.filter(|((_, len), s)| *len == s.len()) {
                for e in start..start + len {
                    let unit = units.entry(groups.unit(e)).or_default();
                    unit.size += sizes[e - start];
                    unit.made = true;
                }
            }
        }
        let Some(reader) = readers.get(id) else { continue };
        let dots = flow.dots.iter().filter(|d| !d.inside);
        for dot in dots.take(1) {
            let dot = reader.as_ref().map_or(dot, |r| &r.dot);
            let axis = node.input(dot.data.0).and_then(|v| groups.axis(v, dot.data.1));
            let Some((start, len)) = axis else { continue };
            for e in start..start + len {
                let unit = groups.unit(e);
                match reader {
                    Some(_) => units.entry(unit).or_default().read.entry(*id).or_default().push(e - start),
                    None => {
                        blocked.insert(unit);
                    }
                }
            }
        }
    }
    units.retain(|u, unit| unit.made && !unit.read.is_empty() && groups.stopped(*u).is_none() && !blocked.contains(u));
    units
}

/// The size of every row, relative to the mean of the layer.
fn sizes(model: &Model, weight: ValueId, dot: &Dot, by: &Criterion) -> Option<Vec<f64>> {
    let t = constant(model, weight)?;
    let x = t.to_f32()?;
    let mut out = vec![0.0; *t.dims().get(dot.row)?];
    for_slices(t.dims(), dot.row, dot.weight.1, |o, _, at, n| {
        out[o] += x[at..at + n]
            .iter()
            .map(|w| match by {
                Criterion::L1 => f64::from(w.abs()),
                _ => f64::from(*w) * f64::from(*w),
            })
            .sum::<f64>();
    });
    let mean = out.iter().sum::<f64>() / out.len().max(1) as f64;
    out.iter_mut().for_each(|x| *x /= mean.max(f64::MIN_POSITIVE));
    Some(out)
}

/// Units on the same axes, in the order of their first elements.
fn alike(groups: &Groups, units: &BTreeMap<usize, Unit>) -> BTreeMap<Vec<(usize, usize)>, Vec<usize>> {
    let mut axes: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
    for (k, (_, _, start, len)) in groups.axes().enumerate() {
        for e in start..start + len {
            let unit = groups.unit(e);
            if units.contains_key(&unit) {
                *axes.entry(unit).or_default().entry(k).or_default() += 1;
            }
        }
    }
    let mut alike: BTreeMap<Vec<(usize, usize)>, Vec<usize>> = BTreeMap::new();
    for (unit, axes) in axes {
        alike.entry(axes.into_iter().collect()).or_default().push(unit);
    }
    alike
}

fn measured(model: &Model, cx: &mut Context, readers: &BTreeMap<NodeId, Option<Reader>>) -> Option<std::sync::Arc<Stats>> {
    let wanted: BTreeMap<(ValueId, usize), ()> = readers
        .values()
        .flatten()
        .filter(|r| r.refit)
        .map(|r| ((r.input, r.dot.data.1), ()))
        .collect();
    let wanted: Vec<(ValueId, Measure)> = wanted
        .into_keys()
        .map(|(v, a)| (v, Measure::Gram(Patch::Axis(a as i64))))
        .collect();
    match cx.stats(model, &wanted) {
        Ok(stats) => Some(stats),
        Err(e) => {
            cx.warn(format!("nothing could be measured ({e:#}): channels are chosen by their weights and nothing is refitted"));
            None
        }
    }
}

/// Readers while their inputs go.
struct Work {
    readers: BTreeMap<NodeId, Option<Reader>>,
    stats: Option<std::sync::Arc<Stats>>,
    /// Indices that a reader has lost.
    taken: BTreeMap<NodeId, BTreeSet<usize>>,
    shifts: BTreeMap<NodeId, Vec<f64>>,
    /// Predicted loss, in parts of the output's power.
    lost: BTreeMap<NodeId, f64>,
}

/// One reader under the knife.
struct Patient {
    id: NodeId,
    surgeon: Surgeon,
    before: Array2<f64>,
    mean: Array1<f64>,
    /// Index of the channel → column of the map.
    column: BTreeMap<usize, usize>,
    shifts: bool,
}

impl Work {
    /// Chooses so many of these units, and refits what reads them.
    fn thin_out(
        &mut self,
        model: &mut Model,
        units: &BTreeMap<usize, Unit>,
        members: &[usize],
        count: usize,
        plan: &Plan,
    ) -> Result<Vec<usize>> {
        let mut reading: BTreeSet<NodeId> = BTreeSet::new();
        members.iter().filter_map(|u| units.get(u)).for_each(|u| reading.extend(u.read.keys()));
        let mut patients: Vec<Patient> = Vec::new();
        for id in reading {
            patients.extend(self.open(model, id)?);
        }
        let mut left = members.to_vec();
        let mut gone = Vec::new();
        for _ in 0..count {
            let by_data = matches!(plan.by, Criterion::Data) && !patients.is_empty();
            let damage = match by_data {
                true => damage(&patients, units, &left)?,
                false => left.iter().map(|u| units[u].size).collect(),
            };
            let Some(k) = (0..left.len()).min_by(|a, b| damage[*a].total_cmp(&damage[*b])) else {
                break;
            };
            let unit = left.remove(k);
            for p in &mut patients {
                let block = p.block(&units[&unit]);
                *self.lost.entry(p.id).or_default() += p.surgeon.costs(std::slice::from_ref(&block))?[0];
                p.surgeon.remove(&block)?;
            }
            for (id, indices) in &units[&unit].read {
                self.taken.entry(*id).or_default().extend(indices);
            }
            gone.push(unit);
        }
        match plan.repair {
            true => patients.into_iter().for_each(|p| self.close(model, p)),
            false => self.lost.clear(),
        }
        Ok(gone)
    }

    /// A reader's map and moments without the inputs that it has lost already; `None` when it is only cut.
    fn open(&self, model: &Model, id: NodeId) -> Result<Option<Patient>> {
        let Some(r) = self.readers.get(&id).and_then(Option::as_ref).filter(|r| r.refit) else {
            return Ok(None);
        };
        let patch = Patch::Axis(r.dot.data.1 as i64);
        let gram = self.stats.as_ref().and_then(|s| s.gram(r.input, &patch)?.first());
        let (Some(gram), Some(tensor)) = (gram.filter(|g| g.n > 0), constant(model, r.weight)) else {
            return Ok(None);
        };
        let Some(map) = matrix(&tensor, &r.dot).filter(|m| m.ncols() == gram.dim()) else {
            return Ok(None);
        };
        let shifts = takes_shift(model, id, &r.dot);
        let moments = if shifts { gram.covariance() } else { gram.moment() };
        let taken = self.taken.get(&id);
        let left: Vec<usize> = (0..map.ncols()).filter(|i| taken.is_none_or(|t| !t.contains(i))).collect();
        let inner = moments.select(Axis(0), &left).select(Axis(1), &left);
        let before = map.select(Axis(1), &left);
        if inner.diag().iter().all(|x| *x <= 0.0) {
            return Ok(None);
        }
        let surgeon = Surgeon::new(before.clone(), inner.view(), DAMPING);
        Ok(Some(Patient {
            id,
            surgeon: surgeon.with_context(|| format!("prune: refitting {}", model.label(id)))?,
            before,
            mean: gram.mean().select(Axis(0), &left),
            column: left.into_iter().enumerate().map(|(k, i)| (i, k)).collect(),
            shifts,
        }))
    }

    /// Writes the refitted weight, and remembers the bias.
    fn close(&mut self, model: &mut Model, p: Patient) {
        let Some(r) = self.readers.get(&p.id).and_then(Option::as_ref) else { return };
        let Some(tensor) = constant(model, r.weight).map(std::borrow::Cow::into_owned) else { return };
        if let Some(new) = rebuilt(&tensor, &r.dot, &p) {
            cut::set_constant(model, r.weight, new);
        }
        if p.shifts {
            let by_line = bias_shift(p.before.view(), p.surgeon.weight.view(), p.mean.view());
            let rows = tensor.dims()[r.dot.row];
            let shift = self.shifts.entry(p.id).or_insert_with(|| vec![0.0; rows]);
            for (line, x) in by_line.iter().enumerate() {
                shift[row_of_line(tensor.dims(), &r.dot, line)] += x;
            }
        }
    }

    fn into_shifts(self) -> Vec<Shift> {
        let mut out = Vec::new();
        for (id, by_row) in self.shifts {
            if let Some(Some(r)) = self.readers.get(&id) {
                out.push(Shift {
                    node: id,
                    dot: r.dot.clone(),
                    out: r.out,
                    by_row,
                });
            }
        }
        out
    }
}

impl Patient {
    /// The columns of a unit.
    fn block(&self, unit: &Unit) -> Vec<usize> {
        let indices = unit.read.get(&self.id).into_iter().flatten();
        indices.filter_map(|i| self.column.get(i).copied()).collect()
    }
}

fn damage(patients: &[Patient], units: &BTreeMap<usize, Unit>, left: &[usize]) -> Result<Vec<f64>> {
    let mut sum = vec![0.0; left.len()];
    for p in patients {
        let blocks: Vec<Vec<usize>> = left.iter().map(|u| p.block(&units[u])).collect();
        for (total, cost) in sum.iter_mut().zip(p.surgeon.costs(&blocks)?) {
            *total += cost;
        }
    }
    Ok(sum)
}

/// The axes of a weight with the contracted one last.
fn order(rank: usize, dot: &Dot) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank).filter(|a| *a != dot.weight.1).collect();
    order.push(dot.weight.1);
    order
}

/// A weight as a matrix: a line for every output row and tap, a column for every channel.
fn matrix(t: &Tensor, dot: &Dot) -> Option<Array2<f64>> {
    let x = t.floats()?;
    let view = ArrayViewD::from_shape(IxDyn(t.dims()), &x).ok()?;
    let columns = *t.dims().get(dot.weight.1)?;
    let turned = view.permuted_axes(order(t.dims().len(), dot));
    let data: Vec<f64> = turned.iter().map(|x| f64::from(*x)).collect();
    Array2::from_shape_vec((data.len() / columns.max(1), columns), data).ok()
}

/// The weight tensor with a patient's new columns.
fn rebuilt(t: &Tensor, dot: &Dot, p: &Patient) -> Option<Tensor> {
    let mut x = t.floats()?.into_owned();
    let mut view = ndarray::ArrayViewMutD::from_shape(IxDyn(t.dims()), &mut x).ok()?;
    let columns = *t.dims().get(dot.weight.1)?;
    let turned = view.view_mut().permuted_axes(order(t.dims().len(), dot));
    for (k, w) in turned.into_iter().enumerate() {
        if let Some(&c) = p.column.get(&(k % columns)) {
            *w = p.surgeon.weight[[k / columns, c]] as f32;
        }
    }
    Some(Tensor::new(t.dims(), x))
}

/// The output row of a line of [`matrix`].
fn row_of_line(dims: &[usize], dot: &Dot, line: usize) -> usize {
    let behind = (dot.row + 1..dims.len()).filter(|a| *a != dot.weight.1);
    let step: usize = behind.map(|a| dims[a]).product();
    line / step.max(1) % dims[dot.row]
}
