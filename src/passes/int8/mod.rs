//! Static INT8 with Q/DQ pairs: `x ≈ s·(q − z)`.
//!
//! Activations are u8 with one scale and zero point per value, weights s8 with one scale per output channel and zero
//! point 0, biases int32. The flow: which operators could run in integers (`units`), the distributions of the values around
//! them (`analysis::stats`), which of them should (`place`), the range of every value (`ranges`), the weights (`weights`), and
//! then the graph (`emit`). What the runtime cannot fuse stays in floating point: a stray Q/DQ pair costs time and accuracy.
//!
//! Does nothing to a model that is quantized already. What stays in floating point is stored in 8 bits (`rest`). Costs one
//! run over the calibration samples and 16 KB for every quantized value.

mod account;
mod addend;
mod blame;
mod chart;
mod cut;
mod emit;
mod equalize;
mod gates;
mod narrow;
mod place;
mod prepare;
mod ranges;
mod rest;
mod seen;
mod settle;
mod target;
mod tied;
mod time;
mod units;
mod weights;

use super::weights::recurrent_measures;
use super::{Context, Names, NoteKind, Opt, Options, Part, Pass, PassInfo, tables};
use crate::analysis::sites::Site;
use crate::analysis::stats::{Detail, Measure, Stats};
use crate::ir::{Model, NodeId, ValueId};
use crate::math::affine::IntKind;
use crate::ops::quant::Role;
use account::{describe, summary};
use anyhow::{Context as _, Result, anyhow, ensure};
use place::Prefer;
use ranges::Method;
use seen::Seen;
use settle::{Outcome, Rival};
use std::collections::{BTreeMap, BTreeSet};
use target::Target;
use tied::Weights;
use units::{Unit, Units};
use weights::{Choice, Scheme};

/// The pass's row in the table.
pub const INFO: PassInfo = PassInfo {
    name: "int8",
    summary: "static INT8: Q/DQ pairs in ONNX Runtime's layout, per-channel weights, int32 biases",
    doc: include_str!("doc.md"),
    lossy: true,
    part: Part::Precision {
        // What stays in floating point is stored in as few bits as will do, by the pass behind.
        ways: &[
            "int8(rest=float)",
            "int8(error=0.01,rest=float)",
            "int8(error=0.003,rest=float)",
        ],
        error: Some("mixed"),
    },
    options: OPTIONS,
    build: |o| Ok(Box::new(build(o)?)),
};

const OPTIONS: &[Opt] = &[
    Opt {
        name: "target",
        default: "ort",
        values: target::NAMES,
        doc: "the runtime that the result is for",
    },
    Opt {
        name: "ranges",
        default: "auto",
        values: ranges::METHODS,
        doc: "how the range of an activation is chosen",
    },
    Opt {
        name: "weights",
        default: "auto",
        values: "auto|8|7",
        doc: "bits of a weight; auto: 8, or 7 for x86 CPUs without VNNI (ort-avx2), whose sums of two products saturate",
    },
    Opt {
        name: "per_channel",
        default: "on",
        values: "on|off",
        doc: "one weight scale for each output channel",
    },
    Opt {
        name: "rounding",
        default: "data",
        values: "data|nearest",
        doc: "round weights so that errors cancel on the calibration data, and correct biases; or each to the nearest code",
    },
    Opt {
        name: "error",
        default: "0.05",
        values: "a part of the output's power, such as 0.01",
        doc: "when an output errs by more on calibration data, what does most harm stays in floating point",
    },
    Opt {
        name: "mixed",
        default: "0",
        values: "a part of the output's power, such as 0.01",
        doc: "weights are stored in 3 to 6 bits, as few as will do for outputs that err by no more because of it; computed with in 8 bits all the same (target=ort)",
    },
    Opt {
        name: "prefer",
        default: "speed",
        values: "speed|size",
        doc: "leave operators in floating point that would be slower in integers, conversions included; or store every weight in 8 bits",
    },
    Opt {
        name: "rest",
        default: "stored",
        values: "stored|float",
        doc: "weights of what stays in floating point: stored in 8 bits, from which a runtime makes floats while it loads the model (target=ort), or left as they are",
    },
    Opt {
        name: "skip",
        default: "",
        values: "names of nodes, `*` and `?` as wildcards, separated by `;`",
        doc: "nodes to leave in floating point, with their weights",
    },
];

struct Int8 {
    target: &'static Target,
    ranges: Method,
    /// For what may differ from node to node.
    options: Options,
    prefer: Prefer,
    error: f64,
    /// What weights of fewer bits may cost; 0: none.
    mixed: f64,
    /// Weights of what stays in floating point are stored in 8 bits.
    rest: bool,
    skip: Names,
}

fn build(o: &Options) -> Result<Int8> {
    let error: f64 = o.get("error")?;
    ensure!(error > 0.0, "int8(error={error}): give a number above 0, such as 0.01");
    let mixed: f64 = o.get("mixed")?;
    ensure!(
        (0.0..1.0).contains(&mixed),
        "int8(mixed={mixed}): give a number from 0 to below 1, such as 0.01"
    );
    let name = o.text("target");
    let target = target::ALL.iter().find(|t| t.name == name);
    let target = target.ok_or_else(|| anyhow!("there is no target {name:?}"))?;
    Ok(Int8 {
        target,
        ranges: o.get("ranges")?,
        options: o.clone(),
        error,
        mixed,
        rest: o.text("rest") == "stored",
        prefer: if o.text("prefer") == "size" {
            Prefer::Size
        } else {
            Prefer::Speed
        },
        skip: Names::of(o, "skip"),
    })
}

/// How weights are rounded, for a target, or for a node where a rule says otherwise.
fn scheme(o: &Options, target: &Target) -> Scheme {
    Scheme {
        kind: match o.text("weights") {
            "7" => IntKind::S7,
            "8" => IntKind::S8,
            _ => target.weights,
        },
        per_channel: o.text("per_channel") == "on",
        rounding: if o.text("rounding") == "data" {
            Choice::Data
        } else {
            Choice::Nearest
        },
    }
}

/// A value more of whose nonzero elements would become zero is not quantized.
const MOST_LOST: f64 = 0.5;

/// Multiply-adds that runs over samples may take to measure distributions and moments, beyond so many samples. Of fifteen models
/// of the zoo that were measured with 48 instead of 96 samples, one lost more than 1 dB: a small one, which has all of them in any case.
const WORK: u64 = 15_000_000_000;
const SAMPLES: usize = 48;

/// The first default-domain opset with per-channel Q/DQ.
const OPSET: i64 = 13;

impl Pass for Int8 {
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        let Some(mut work) = cx.to_quantize(model, OPSET) else {
            return Ok(());
        };
        let quantize = |work: &mut Model, _, cx: &mut Context| self.quantize(work, cx);
        if tables::quantize_with(&mut work, (true, &self.skip), cx, quantize)? {
            *model = work;
        }
        Ok(())
    }
}

impl Int8 {
    /// Quantizes a model of opset 13 or later; false when there is nothing to quantize.
    fn quantize(&self, model: &mut Model, cx: &mut Context) -> Result<bool> {
        prepare::prepare(model, &order(model)?)?;
        Ok(self.measured(model, &BTreeMap::new(), None, cx)? == Outcome::Quantized)
    }

    /// Quantizes a model that is spelled for the target. `ends`: where values matter, besides what their readers tell.
    fn measured(
        &self,
        model: &mut Model,
        ends: &BTreeMap<ValueId, (f32, f32)>,
        rival: Option<&Rival>,
        cx: &mut Context,
    ) -> Result<Outcome> {
        let start = cx.notes.len();
        let mut units = units::find(model, &order(model)?, self.target, &self.skip)?;
        for (v, ends) in ends {
            if let Some(&made) = units.producer.get(v) {
                units.all[made].limit(Some(*ends));
            }
        }
        for (node, why) in &units.refused {
            cx.skip(model, *node, why);
        }
        let values = place::candidates(model, &units);
        let mut weights = Weights::new(&units, |node| self.scheme(model, node));
        let mut wanted: Vec<(ValueId, Measure)> = values.iter().map(|&v| (v, Measure::Histogram)).collect();
        let moments = self.moments(&weights);
        let split = self.mixed > 0.0 && cx.samples.len() > 1;
        wanted.extend(moments.iter().filter(|_| !split).cloned());
        let left = match self.rest && self.options.text("rounding") == "data" && !cx.samples.synthetic() {
            true => recurrent_measures(model),
            false => Vec::new(),
        };
        if wanted.is_empty() {
            return self.recurrent_alone(model, &left, rival.is_none(), cx);
        }
        // The halves hold them, too.
        let moments = moments.into_iter().chain(left.iter().cloned());
        wanted.extend(left.iter().filter(|_| !split).cloned());
        let stats = cx.stats_of(model, &wanted, &cx.affordable(model, WORK, SAMPLES))?;
        let ranges = ranges::all(self.ranges, &values, &stats, &units);
        let elements = elements(model, &values, &units, &ranges, &stats, cx);
        let halves = split.then(|| cx.halves(model, moments)).transpose()?;
        let seen = Seen {
            stats: &stats,
            ranges,
            halves,
            objects: cx.objects.map(|o| &**o),
        };
        self.settle(model, &units, elements, (&seen, &mut weights), (rival, start), cx)
    }

    /// Where no operator can run in integers: weights are stored, those of recurrent layers by what `left` measures. `first`: nothing was tried before.
    fn recurrent_alone(
        &self,
        model: &mut Model,
        left: &[(ValueId, Measure)],
        first: bool,
        cx: &mut Context,
    ) -> Result<Outcome> {
        cx.leave("no weight in the main graph meets an activation");
        if !(first && self.rest) {
            return self.without_integers(model, None, None, cx);
        }
        let reference = settle::closer(model, cx)?;
        let stats = match left.is_empty() {
            true => None,
            false => Some(cx.stats_of(model, left, &cx.affordable(model, WORK, SAMPLES))?),
        };
        let seen = stats.as_deref().map(Seen::of);
        self.without_integers(model, seen.as_ref(), Some(&reference), cx)
    }

    /// Writes the Q/DQ pairs.
    fn write(
        &self,
        model: &mut Model,
        units: &Units,
        placement: &place::Placement,
        scales: &ranges::Scales,
        weights: &Weights,
        cx: &mut Context,
    ) -> Result<()> {
        let mut emitter = emit::Emitter::new(model, self.target, units, placement, scales);
        for unit in integer(units, placement) {
            emitter.constants(unit)?;
            let Some(site) = &unit.site else { continue };
            let input = scales.of(site.input).context("its input is quantized")?;
            let (group, weight) = weights.of(site.node, input.scale).context("its weight was rounded")?;
            let output = unit.results.first().and_then(|v| scales.of(*v));
            cx.did(emitter.model, unit.node, describe(input, output, weight));
            let bias = site.bias.filter(|b| b.node == site.node);
            let moved = shifted_bias(emitter.model, site, weight)?;
            let wanted = bias.is_some() || !weight.shift.is_empty();
            let slot = bias.map_or(2, |b| b.slot);
            let bias = wanted.then_some((slot, &moved[..]));
            emitter.weight(unit, (group, weight.clone()), bias, input.scale)?;
            if let Some(at) = unit.addend.filter(|_| output.is_none()) {
                addend::set_apart(&mut emitter, at);
            }
        }
        let moved = emitter.absorb_clips();
        for &v in &placement.quantized {
            emitter.pair(v, *moved.get(&v).unwrap_or(&v))?;
        }
        summary(emitter.model, units, placement, cx);
        Ok(())
    }
}

/// The main graph in order of execution.
fn order(model: &Model) -> Result<Vec<NodeId>> {
    let order = model.topological(model.main_id());
    order.map_err(|_| anyhow!("the graph has a cycle"))
}

/// The units that run in integers.
fn integer<'a>(units: &'a Units, placement: &'a place::Placement) -> impl Iterator<Item = &'a Unit> {
    units
        .all
        .iter()
        .zip(&placement.integer)
        .filter(|(_, i)| **i)
        .map(|(u, _)| u)
}

/// What is added to the products of a site: its own bias, or zeros.
fn bias_of(model: &Model, site: &Site) -> Result<Vec<f32>> {
    match site.bias.filter(|b| b.node == site.node) {
        Some(_) => site.bias_values(model).context("its bias is constant"),
        None => Ok(vec![0.0; site.outputs()]),
    }
}

/// The same, with what the weight shifts.
fn shifted_bias(model: &Model, site: &Site, weight: &weights::Weight) -> Result<Vec<f32>> {
    let mut bias = bias_of(model, site)?;
    bias.iter_mut().zip(&weight.shift).for_each(|(b, s)| *b += s);
    Ok(bias)
}

impl Int8 {
    fn scheme(&self, model: &Model, node: NodeId) -> Scheme {
        scheme(&self.options.at(&model.label(node)), self.target)
    }

    /// The second moments of the inputs of all weights that are rounded by them and small enough to be worth it. Where several operators
    /// read a large weight, those of some.
    fn moments(&self, weights: &Weights) -> Vec<(ValueId, Measure)> {
        /// Beyond this many inputs the moment costs more than the model itself; fewer bits are worth twice as many.
        const MOST: usize = 2304;
        let most = if self.mixed > 0.0 { 2 * MOST } else { MOST };
        let mut all: Vec<(ValueId, Measure)> = Vec::new();
        for (sites, scheme) in weights.all() {
            let columns = sites[0].columns().max(1);
            if columns > most || scheme.rounding != Choice::Data {
                continue;
            }
            for site in tied::spread(sites, most * most / (columns * columns)) {
                let wanted = (site.input, Measure::Gram(site.patch.clone(), Detail::Coarse));
                if !all.contains(&wanted) {
                    all.push(wanted);
                }
            }
        }
        all
    }
}

/// Elements per sample of the values that can be quantized.
fn elements(
    model: &Model,
    values: &BTreeSet<ValueId>,
    units: &Units,
    ranges: &BTreeMap<ValueId, ranges::Chosen>,
    stats: &Stats,
    cx: &mut Context,
) -> BTreeMap<ValueId, u64> {
    let mut all = BTreeMap::new();
    for v in values {
        let Some(h) = stats.histogram(*v) else { continue };
        let name = model.value(*v).name.clone();
        if h.range.nan > 0 || h.range.infinite > 0 {
            cx.note(
                NoteKind::Skip,
                name,
                "NaN or infinite on the calibration data: stays in floating point",
            );
            continue;
        }
        let weighted = |u: &Unit| u.site.as_ref().is_some_and(|s| s.input == *v);
        if h.minmax() == Some((0.0, 0.0)) && units.all.iter().any(weighted) {
            let what = "zero in all calibration samples, so nothing is known of its range: stays in floating point";
            cx.note(NoteKind::Skip, name, what);
            continue;
        }
        let Some(chosen) = ranges.get(v) else { continue };
        if chosen.lost > MOST_LOST {
            let made = units.producer.get(v).map(|p| units.all[*p].role);
            let stretched = match (made, h.minmax().unwrap_or_default()) {
                (Some(Role::Fixed(low, high)), _) => format!("codes would cover [{low}, {high}]"),
                (_, (low, high)) => format!("outliers stretch its range to [{low:.4}, {high:.4}]"),
            };
            let lost = chosen.lost * 100.0;
            let what = format!("{stretched}, {lost:.0} % of the rest would become zero: stays in floating point");
            cx.note(NoteKind::Skip, name, what);
            continue;
        }
        all.insert(*v, h.range.count / stats.samples.max(1) as u64);
    }
    all
}
