//! What may go for a price: units that a layer makes and that only layers with constant weights read.
//!
//! Units that lie on the same axes, as often on each, are one group: any of them can go instead of any other.

use super::blocks::{Whole, whole};
use super::costs::{Costs, Share};
use super::exact::reading_dot;
use super::facts::for_slices;
use super::ratio::{Criterion, Plan};
use super::widths::Widths;
use crate::analysis::groups::Groups;
use crate::analysis::sites::site;
use crate::analysis::stats::Patch;
use crate::data::Samples;
use crate::ir::{DType, Model, NodeId, ValueId};
use crate::ops::ties::{Dot, constant};
use crate::passes::Names;
use std::collections::{BTreeMap, BTreeSet};

/// Inputs of more channels are not refitted: the inverse takes time with the third power.
const MAX_INPUTS: usize = 4096;
/// Windows of more numbers than this are refitted channel by channel, with the same factors for every tap.
const MAX_WINDOW: usize = 2400;

/// A unit that may go.
#[derive(Default)]
pub struct Unit {
    /// Size of its filters, relative to their layers, summed.
    pub size: f64,
    /// The contractions that make it.
    pub made: BTreeSet<NodeId>,
    /// Who reads it, at which indices.
    pub read: BTreeMap<NodeId, Vec<usize>>,
}

/// A contraction that reads channels through a constant weight.
#[derive(Clone)]
pub struct Reader {
    /// The contraction.
    pub dot: Dot,
    /// What is read.
    pub input: ValueId,
    /// The constant.
    pub weight: ValueId,
    /// What comes out.
    pub out: ValueId,
    /// How many axes that has.
    pub rank: usize,
    /// How the rows of its second moment are cut; `None` when it is only cut, not refitted.
    pub patch: Option<Patch>,
    /// Columns of the moment for every channel.
    pub taps: usize,
}

/// Units of equal shape.
pub struct Group {
    /// Its units, in the order of their first elements.
    pub members: Vec<usize>,
    /// What one of them alone saves.
    pub share: Share,
    /// It keeps a multiple of so many.
    pub multiple: usize,
    /// What goes with all of them, when all may go.
    pub whole: Option<Whole>,
}

/// All that may go.
pub struct Units {
    /// By name (see [`Groups::unit`]).
    pub units: BTreeMap<usize, Unit>,
    /// Every contraction that reads channels; `None` when its weight is computed.
    pub readers: BTreeMap<NodeId, Option<Reader>>,
    /// Units of equal shape.
    pub groups: Vec<Group>,
    /// What they cost.
    pub costs: Costs,
    /// Units that a product of two computed values reads.
    blocked: BTreeMap<usize, NodeId>,
    /// Units of layers that the user wants left alone.
    skipped: BTreeSet<usize>,
    known: BTreeSet<usize>,
}

impl Units {
    /// Looks at every contraction of the model; those that the plan skips keep their channels.
    pub fn new(model: &Model, groups: &Groups, plan: &Plan, samples: &Samples) -> Units {
        let mut all = Units {
            units: BTreeMap::new(),
            readers: readers(model, groups),
            groups: Vec::new(),
            costs: Costs::new(model, groups, samples),
            blocked: BTreeMap::new(),
            skipped: BTreeSet::new(),
            known: BTreeSet::new(),
        };
        all.collect(model, groups, &plan.by, &plan.skip);
        let widths = Widths::new(model, groups, plan.round_to);
        let mut alike = alike(groups, &all.units, &all.costs, &widths);
        for group in &mut alike {
            group.whole = whole(model, groups, &all, &group.members);
        }
        all.groups = alike;
        all
    }

    fn collect(&mut self, model: &Model, groups: &Groups, by: &Criterion, skip: &Names) {
        let mut units: BTreeMap<usize, Unit> = BTreeMap::new();
        for (id, flow) in &groups.flows {
            let node = model.node(*id);
            let skipped = skip.has(&model.label(*id));
            for dot in &flow.dots {
                let weight = node.input(dot.weight.0);
                let rows = weight.and_then(|v| Some((groups.axis(v, dot.row)?, sizes(model, v, dot, by)?)));
                if let Some(((start, len), sizes)) = rows.filter(|((_, len), s)| *len == s.len()) {
                    for e in start..start + len {
                        let unit = units.entry(groups.unit(e)).or_default();
                        unit.size += sizes[e - start];
                        unit.made.insert(*id);
                        if skipped {
                            self.skipped.insert(groups.unit(e));
                        }
                    }
                }
            }
            let Some(reader) = self.readers.get(id) else { continue };
            let Some(first) = flow.dots.iter().find(|d| !d.inside) else {
                continue;
            };
            let dot = reader.as_ref().map_or(first, |r| &r.dot);
            let axis = node.input(dot.data.0).and_then(|v| groups.axis(v, dot.data.1));
            let Some((start, len)) = axis else { continue };
            for e in start..start + len {
                let unit = groups.unit(e);
                match reader {
                    Some(_) => units
                        .entry(unit)
                        .or_default()
                        .read
                        .entry(*id)
                        .or_default()
                        .push(e - start),
                    None => drop(self.blocked.insert(unit, *id)),
                }
            }
        }
        self.known = units.keys().copied().collect();
        let (blocked, skipped) = (&self.blocked, &self.skipped);
        units.retain(|u, unit| {
            let used = !unit.made.is_empty() && !unit.read.is_empty();
            used && groups.stopped(*u).is_none() && !blocked.contains_key(u) && !skipped.contains(u)
        });
        self.units = units;
    }

    /// Why a unit is not among those that may go.
    pub fn refusal(&self, model: &Model, groups: &Groups, unit: usize) -> Option<String> {
        match (
            self.units.contains_key(&unit),
            groups.stopped(unit),
            self.blocked.get(&unit),
        ) {
            (true, ..) => None,
            _ if self.skipped.contains(&unit) => Some("left alone as asked (skip)".into()),
            (_, Some(why), _) => Some(why.to_owned()),
            (.., Some(n)) => Some(format!("{} multiplies it with a computed value", model.label(*n))),
            _ => Some("no layer with a constant weight reads it".into()),
        }
    }
}

fn readers(model: &Model, groups: &Groups) -> BTreeMap<NodeId, Option<Reader>> {
    let mut out = BTreeMap::new();
    for (id, flow) in &groups.flows {
        let Some(k) = reading_dot(model, *id, flow) else {
            continue;
        };
        let (node, dot) = (model.node(*id), &flow.dots[k]);
        let (Some(input), Some(weight), Some(to)) = (node.input(dot.data.0), node.input(dot.weight.0), node.output(0))
        else {
            continue;
        };
        let reader = constant(model, weight).map(|t| {
            let refit = dot.groups == 1
                && t.dtype() == DType::Float
                && model.value(weight).uses().len() == 1
                && node.graph() == model.main_id()
                && t.dims().get(dot.weight.1).is_some_and(|n| *n <= MAX_INPUTS);
            let (patch, taps) = match refit {
                true => windows(model, *id, dot),
                false => (None, 1),
            };
            Reader {
                dot: dot.clone(),
                input,
                weight,
                out: to,
                rank: groups.dims(to).map_or(0, |d| d.len()),
                patch,
                taps,
            }
        });
        out.insert(*id, reader);
    }
    out
}

/// How rows are cut: whole windows where that is affordable, else single positions.
fn windows(model: &Model, id: NodeId, dot: &Dot) -> (Option<Patch>, usize) {
    let axis = (Some(Patch::Axis(dot.data.1 as i64)), 1);
    let Some(Ok(site)) = site(model, id) else { return axis };
    let taps = site.taps();
    let wide = site.inputs().saturating_mul(taps) > MAX_WINDOW;
    let backwards = site.is_transposed();
    match taps > 1 && !wide && !backwards && matches!(site.patch, Patch::Windows { .. }) {
        true => (Some(site.patch), taps),
        false => axis,
    }
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
fn alike(groups: &Groups, units: &BTreeMap<usize, Unit>, costs: &Costs, widths: &Widths) -> Vec<Group> {
    let mut axes: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
    let mut places = Vec::new();
    for (k, (v, axis, start, len)) in groups.axes().enumerate() {
        places.push((v, axis));
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
    let shares = costs.shares(&BTreeSet::new());
    let group = |(axes, members): (Vec<(usize, usize)>, Vec<usize>)| Group {
        multiple: widths.multiple(axes.iter().map(|(k, _)| places[*k]), members.len()),
        share: members.first().and_then(|u| shares.get(u)).copied().unwrap_or_default(),
        members,
        whole: None,
    };
    alike.into_iter().map(group).collect()
}
