//! Structured pruning: channels and neurons go, with everything that is tied to them.
//!
//! 1. `weight * mask` products are folded into the weights (`masks.rs`).
//! 2. The model's channels are united into units that stand and fall together ([`crate::analysis::groups`]).
//! 3. Units that reach nothing, or only as a constant, are taken out; the constant goes into the bias of what reads it
//!    (`exact.rs`). Outputs stay the same up to the order of rounding.
//!
//! 4. With `ratio`, `error` or `macs`, a part of the others goes too, and what reads them is refitted (`ratio.rs`).
//!
//! Channels of convolutions go in whole blocks (`widths.rs`).
//!
//! Does nothing where an operator's ties are not known, at graph inputs and outputs, and where channels carry numbers.
//! The exact part costs a few passes over the weights and needs no data.

mod blocks;
mod costs;
mod cut;
mod exact;
mod facts;
mod fold;
mod ladder;
mod masks;
mod ratio;
mod reach;
mod refit;
mod repair;
mod shuffle;
mod spell;
mod trial;
mod units;
mod widths;

use super::{Context, Names, NoteKind, Opt, Options, Part, Pass, PassInfo};
use crate::analysis::groups::{Dims, Groups};
use crate::ir::{Model, NodeId, Tensor, ValueId};
use crate::ops::infer::Dim;
use crate::ops::ties::{Dot, constant};
use crate::ops::types::infer;
use anyhow::{Result, ensure};
use exact::Survey;
use facts::Facts;
use std::collections::{BTreeMap, BTreeSet};
use widths::{RoundTo, Widths};

/// The pass's row in the table.
pub const INFO: PassInfo = PassInfo {
    name: "prune",
    summary: "remove channels that are zero or constant, with everything tied to them; fold masks into weights",
    doc: DOC,
    lossy: true,
    part: Part::Structure { error: "error" },
    options: OPTIONS,
    build: |o| Ok(Box::new(build(o)?)),
};

const DOC: &str = "\
Folds `weight * mask` and `Where(mask, weight, 0)` into plain weights. Then finds the channels and neurons that are exactly
zero, or constant, or that nothing reads, and removes them with all that is tied to them: filters, biases, normalization
parameters, columns of the next layers, blocks of columns behind a Flatten, the other side of a residual Add. A constant channel
is folded into the bias of the layers that read it, where its share is the same everywhere.

Does nothing to a channel that a graph input or output fixes, that an unknown operator touches, or that is tied to a
channel that still carries something; the report names the reason. Needs no data. Results are the same up to rounding.

`error=0.01` takes more: as many channels of every layer as cost the outputs of the model 1 % of their power (20 dB). Which ones go first
is decided by what the layers that read them lose when their other weights are refitted (second moments of their inputs over
calibration data, optimal brain surgeon by blocks), as far as what reads those next can see it, and they are refitted. How many go from
which layer is decided by what that does to the outputs for the weights and multiply-adds it saves: each group of channels is tried
alone, then the whole choice, on samples that had no part in the fit, until the outputs err by that much. Needs real data; with made-up
samples nothing more goes. A unit that never speaks, and one that says the same as others, cost nothing by this measure and go first:
there is no option for them.

`macs=0.7` leaves 70 % of the multiply-adds at most, in the same way: of all choices that do so the one that the outputs suffer least from.
With `error` and `macs` the branch f of a residual sum `x + f(x)` may go as a whole; the mean of f stays. `ratio=0.25` takes a quarter of
every group of channels, whatever it costs. Look at the verdict after either.

Of a transformer, whole attention heads and units between the two layers of an MLP may go; not the width of the stream that is normalized,
and not channels within a head.

Channels go in multiples of 16 where convolutions read or make them (`round_to=auto`): runtimes compute them in blocks, and a layer whose
channels are not whole blocks may take twice the time. Of channels that change nothing, those stay without which a layer would
leave that form: all but whole blocks of a grouped convolution, all but fours of another. With `ratio`, halves and quarters of blocks stay
where none would go else.";

const OPTIONS: &[Opt] = &[
    Opt {
        name: "tolerance",
        default: "0",
        values: "a number",
        doc: "a filter whose weights are all at most this large counts as zero",
    },
    Opt {
        name: "error",
        default: "0",
        values: "a part of the outputs' power, such as 0.01",
        doc: "channels go until the outputs of the model err by this much; 0 removes only what changes nothing",
    },
    Opt {
        name: "macs",
        default: "1",
        values: "a number up to 1",
        doc: "the part of the multiply-adds that stays: as few channels go as that takes, those that cost the outputs least; 1 removes only what changes nothing",
    },
    Opt {
        name: "ratio",
        default: "0",
        values: "a number from 0 to 1",
        doc: "the part of every layer's channels that goes; 0 removes only what changes nothing",
    },
    Opt {
        name: "criterion",
        default: "data",
        values: "data|l2|l1",
        doc: "which channels go: those that the layers reading them miss least, or those with the smallest filters",
    },
    Opt {
        name: "repair",
        default: "on",
        values: "on|off",
        doc: "refit the layers that read removed channels by least squares on calibration data",
    },
    Opt {
        name: "round_to",
        default: "auto",
        values: "auto, or a whole number",
        doc: "channels are kept in multiples of this; auto: of 16 (8 or 4 in narrow layers) where convolutions read or make them",
    },
    Opt {
        name: "skip",
        default: "",
        values: "names of nodes, `*` and `?` as wildcards, separated by `;`",
        doc: "nodes all of whose channels stay, except those that change nothing",
    },
];

/// More rounds than any real model is deep.
const MAX_ROUNDS: usize = 1000;

struct Prune {
    tolerance: f32,
    round_to: RoundTo,
    lossy: Option<ratio::Plan>,
}

fn build(o: &Options) -> Result<Prune> {
    let tolerance: f32 = o.get("tolerance")?;
    ensure!(
        tolerance >= 0.0 && tolerance.is_finite(),
        "prune(tolerance={tolerance}): give a number of 0 or more"
    );
    let part: f64 = o.get("ratio")?;
    ensure!(
        (0.0..1.0).contains(&part),
        "prune(ratio={part}): give a number from 0 to below 1"
    );
    let round_to = match o.text("round_to") {
        "auto" => RoundTo::Auto,
        _ => RoundTo::Fixed(o.get("round_to")?),
    };
    ensure!(
        round_to != RoundTo::Fixed(0),
        "prune(round_to=0): give 1 or more, or auto"
    );
    let error: f64 = o.get("error")?;
    ensure!(
        (0.0..1.0).contains(&error),
        "prune(error={error}): give a number from 0 to below 1"
    );
    let macs: f64 = o.get("macs")?;
    ensure!(
        macs > 0.0 && macs <= 1.0,
        "prune(macs={macs}): give the part that stays, above 0 and up to 1"
    );
    let much = match (part > 0.0, error > 0.0, macs < 1.0) {
        (true, false, false) => Some(ratio::Much::Ratio(part)),
        (false, true, false) => Some(ratio::Much::Error(error)),
        (false, false, true) => Some(ratio::Much::Macs(macs)),
        (true, ..) | (_, true, _) => anyhow::bail!("prune: give one of error, macs and ratio"),
        (false, false, false) => o
            .rules()
            .iter()
            .any(|r| r.option == "ratio")
            .then_some(ratio::Much::Ratio(0.0)),
    };
    let plan = |much| ratio::Plan {
        much,
        by: match o.text("criterion") {
            "l1" => ratio::Criterion::L1,
            "l2" => ratio::Criterion::L2,
            _ => ratio::Criterion::Data,
        },
        repair: o.text("repair") == "on",
        round_to,
        skip: Names::of(o, "skip"),
        options: o.clone(),
    };
    Ok(Prune {
        tolerance,
        round_to,
        lossy: much.map(plan),
    })
}

impl Pass for Prune {
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        masks::fold(model, cx);
        let mut account = Account::default();
        let mut dims = self.exactly(model, inferred(model)?, &mut account)?;
        if let Some(plan) = &self.lossy {
            let (whole, known) = (model.clone(), dims.clone());
            let unfolded = shuffle::unfold(model, &mut dims);
            let groups = Groups::new(model, dims);
            let gone = ratio::choose(model, &groups, plan, cx)?;
            if gone.units.is_empty() && gone.branches.is_empty() {
                (*model, dims) = (whole, known);
            } else {
                for (node, n) in unfolded {
                    cx.note(
                        NoteKind::Did,
                        node,
                        format!("a shuffle of channels becomes a Gather of {n}"),
                    );
                }
                let round = exact::remove(model, groups, &BTreeMap::new(), &gone.units, gone.shifts)?;
                account.add(round.tied);
                blocks::drop_branches(model, &gone.branches);
                dims = self.exactly(model, round.dims, &mut account)?;
            }
        }
        let groups = Groups::new(model, dims);
        let facts = Facts::new(model, &groups);
        let survey = Survey::new(model, &groups, &facts);
        account.report(model, cx, &groups, &facts, &survey);
        Ok(())
    }
}

impl Prune {
    /// Takes out what changes nothing, until nothing more goes.
    fn exactly(&self, model: &mut Model, mut dims: Dims, account: &mut Account) -> Result<Dims> {
        for _ in 0..MAX_ROUNDS {
            refresh(model, &mut dims);
            let groups = Groups::new(model, dims);
            account.before(model, &groups);
            if self.tolerance > 0.0 {
                flush(model, &groups, self.tolerance);
            }
            let facts = Facts::new(model, &groups);
            let survey = Survey::new(model, &groups, &facts);
            let gone = survey.removable(&groups, &Widths::new(model, &groups, self.round_to));
            if gone.is_empty() {
                return Ok(groups.into_dims());
            }
            let constants = survey.constants;
            let round = exact::remove(model, groups, &constants, &gone, Vec::new())?;
            dims = round.dims;
            account.add(round.tied);
        }
        refresh(model, &mut dims);
        Ok(dims)
    }
}

/// The dimensions of all values as far as they follow from the file.
fn inferred(model: &Model) -> Result<Dims> {
    let types = infer(model)?;
    let size = model.values().map(|(v, _)| v.index() + 1).max().unwrap_or(0);
    let mut dims: Dims = vec![None; size];
    for (v, _) in model.values() {
        dims[v.index()] = types.shape(v).map(<[Dim]>::to_vec);
    }
    Ok(dims)
}

/// The dimensions of constants are what they are.
fn refresh(model: &Model, dims: &mut Dims) {
    let values: Vec<ValueId> = model.values().map(|(v, _)| v).collect();
    for v in values {
        dims.resize(dims.len().max(v.index() + 1), None);
        if let Some(t) = constant(model, v) {
            dims[v.index()] = Some(t.dims().iter().map(|d| Dim::Known(*d)).collect());
        }
    }
}

/// Filters whose weights are all as small as the tolerance become zero.
fn flush(model: &mut Model, groups: &Groups, tolerance: f32) {
    for (id, flow) in &groups.flows {
        let Some((v, dot)) = weight_of(model, *id, &flow.dots) else {
            continue;
        };
        let Some(t) = constant(model, v) else { continue };
        let (dims, Some(x)) = (t.dims().to_vec(), t.floats()) else {
            continue;
        };
        let mut largest = vec![0.0f32; dims.get(dot.row).copied().unwrap_or(0)];
        let (row, col) = (dot.row, dot.weight.1);
        facts::for_slices(&dims, row, col, |o, _, at, n| {
            largest[o] = x[at..at + n].iter().fold(largest[o], |m, w| m.max(w.abs()));
        });
        if !largest.iter().any(|m| *m > 0.0 && *m <= tolerance) {
            continue;
        }
        let mut y = x.into_owned();
        facts::for_slices(&dims, row, col, |o, _, at, n| {
            if largest[o] <= tolerance {
                y[at..at + n].fill(0.0);
            }
        });
        cut::set_constant(model, v, Tensor::new(&dims, y));
    }
}

/// The constant weight of a node, and the contraction that reads it.
fn weight_of<'d>(model: &Model, id: NodeId, dots: &'d [Dot]) -> Option<(ValueId, &'d Dot)> {
    dots.iter().find_map(|d| {
        let v = model.node(id).input(d.weight.0)?;
        constant(model, v).map(|_| (v, d))
    })
}

/// What is told at the end.
#[derive(Default)]
struct Account {
    rows_before: BTreeMap<NodeId, usize>,
    tied: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

impl Account {
    fn before(&mut self, model: &Model, groups: &Groups) {
        if !self.rows_before.is_empty() {
            return;
        }
        for (id, flow) in &groups.flows {
            if let Some(n) = rows(model, *id, &flow.dots) {
                self.rows_before.insert(*id, n);
            }
        }
    }

    fn add(&mut self, tied: BTreeMap<NodeId, BTreeSet<NodeId>>) {
        for (id, others) in tied {
            self.tied.entry(id).or_default().extend(others);
        }
    }

    fn report(&self, model: &Model, cx: &mut Context, groups: &Groups, facts: &Facts, survey: &Survey) {
        // Others went with their branch.
        let there: BTreeSet<NodeId> = groups.flows.iter().map(|(id, _)| *id).collect();
        let mut stay: BTreeMap<NodeId, BTreeMap<String, usize>> = BTreeMap::new();
        for (id, elements) in exact::zero_rows(model, groups, facts) {
            for e in elements {
                let why = survey.why(model, groups, groups.unit(e));
                *stay.entry(id).or_default().entry(why).or_default() += 1;
            }
        }
        for (id, flow) in &groups.flows {
            let (Some(now), Some(&before)) = (rows(model, *id, &flow.dots), self.rows_before.get(id)) else {
                continue;
            };
            if now < before {
                let names: Vec<String> = self
                    .tied
                    .get(id)
                    .into_iter()
                    .flatten()
                    .filter(|n| there.contains(n))
                    .map(|n| model.label(*n))
                    .collect();
                cx.did(model, *id, format!("{before} → {now} channels{}", listed(&names)));
            }
            for (why, n) in stay.remove(id).into_iter().flatten() {
                cx.skip(model, *id, format!("{n} of {now} filters are zero but stay: {why}"));
            }
            self.report_zeros(model, cx, *id, &flow.dots);
        }
    }

    /// Zeros inside of channels that stay: ordinary runtimes do not skip them, a compressed file is smaller.
    fn report_zeros(&self, model: &Model, cx: &mut Context, id: NodeId, dots: &[Dot]) {
        let weight = weight_of(model, id, dots).and_then(|(v, _)| constant(model, v));
        let Some(t) = weight else { return };
        let Some(x) = t.to_f32() else { return };
        let left = x.iter().filter(|w| **w != 0.0).count();
        if (x.len() - left) * 100 >= x.len() && left < x.len() {
            let what = format!("scattered zeros stay: {}", masks::sparsity(left, x.len()));
            drop(x);
            cx.skip(model, id, what);
        }
    }
}

fn rows(model: &Model, id: NodeId, dots: &[Dot]) -> Option<usize> {
    let (v, dot) = weight_of(model, id, dots)?;
    constant(model, v)?.dims().get(dot.row).copied()
}

/// `; tied: a, b and 3 more`.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 5;
    if names.is_empty() {
        return String::new();
    }
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => format!("; tied: {shown}"),
        more => format!("; tied: {shown} and {more} more"),
    }
}
