//! Lossy removal: channels chosen by damage, what reads them repaired by least squares.
//!
//! `ratio` takes the same part of every group of like units; `error` takes from each group what costs the outputs of the model
//! least for what it saves, until they err by that much (`trial.rs`); `macs` the least that leaves that part of the multiply-adds
//! (`reach.rs`). Whole branches of residual sums: `blocks.rs`. Which units go first: `ladder.rs`; how readers are
//! fitted: `refit.rs`. A layer that shares its weight, or whose input has too many channels, or that lies in a sub-graph, is
//! cut, not refitted.
//!
//! Cost: a measuring run over either half of the samples, an inverse for each reading layer; with `error`, a run over a few samples for
//! each group, and some ten over half of the samples.

use super::fold::Shift;
use super::ladder::{self, Ladder, climb};
use super::refit::{Fitted, Moments, Part};
use super::repair::repaired;
use super::trial::{ALONE, Bench, Choice, Known, Settled};
use super::units::{Group, Reader, Units};
use super::widths::RoundTo;
use super::{Context, Names, Options, cut};
use crate::analysis::groups::Groups;
use crate::engine::NotRun;
use crate::ir::{Model, NodeId};
use crate::ops::ties::constant;
use crate::parallel::in_order;
use crate::passes::charts::{Chart, Curve, Rung, curve, decibel};
use crate::passes::noise::Reference;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

/// How units are chosen.
#[derive(Clone, Copy, Debug)]
pub enum Criterion {
    /// By what the readers lose.
    Data,
    /// By the largest sums of squares.
    L2,
    /// By sums of sizes.
    L1,
}

/// How much goes.
#[derive(Clone, Copy)]
pub enum Much {
    /// This part of every group.
    Ratio(f64),
    /// As much as costs the outputs this part of their power.
    Error(f64),
    /// As little as leaves this part of the multiply-adds.
    Macs(f64),
}

/// What is asked for.
pub struct Plan {
    /// How much goes.
    pub much: Much,
    /// Which.
    pub by: Criterion,
    /// Whether readers are refitted.
    pub repair: bool,
    /// Groups keep multiples.
    pub round_to: RoundTo,
    /// Layers that keep their channels.
    pub skip: Names,
    /// For what may differ from node to node.
    pub options: Options,
}

impl Much {
    /// True when what groups do to the outputs is measured.
    fn by_outputs(self) -> bool {
        !matches!(self, Much::Ratio(_))
    }
    /// As it is asked for.
    fn spelled(self) -> &'static str {
        match self {
            Much::Ratio(_) => "prune(ratio=…)",
            Much::Error(_) => "prune(error=…)",
            Much::Macs(_) => "prune(macs=…)",
        }
    }
}

impl Plan {
    /// The part of a group that goes: the least that is asked for any layer that makes it.
    fn part(&self, model: &Model, units: &Units, group: &Group, usual: f64) -> Result<f64> {
        let made = group.members.first().map(|u| &units.units[u].made);
        if self.options.rules().is_empty() {
            return Ok(usual);
        }
        let asked = made
            .into_iter()
            .flatten()
            .map(|n| self.options.at(&model.label(*n)).get::<f64>("ratio"));
        Ok(asked
            .collect::<Result<Vec<f64>>>()?
            .into_iter()
            .reduce(f64::min)
            .unwrap_or(usual))
    }
}

/// What goes.
#[derive(Default)]
pub struct Gone {
    /// Units that are cut out of every axis.
    pub units: BTreeSet<usize>,
    /// How biases change.
    pub shifts: Vec<Shift>,
    /// Layers that read nothing any more: a constant takes their place.
    pub branches: Vec<(NodeId, Reader)>,
}

/// What goes. Weights of refitted readers are written at once.
///
/// # Errors
/// When a sample fails or numbers are not finite.
pub fn choose(model: &mut Model, groups: &Groups, plan: &Plan, cx: &mut Context) -> Result<Gone> {
    let units = Units::new(model, groups, plan, cx.samples);
    refuse(model, groups, &units, cx);
    let by_outputs = plan.much.by_outputs();
    if by_outputs && cx.samples.synthetic() {
        cx.warn(format!(
            "{}: the samples are made up and tell nothing of the damage; only what changes nothing was removed",
            plan.much.spelled()
        ));
        return Ok(Gone::default());
    }
    let needs_data = plan.repair || matches!(plan.by, Criterion::Data) || by_outputs;
    let moments = match needs_data && !units.groups.is_empty() {
        true => measured(model, cx, &units)?,
        false => None,
    };
    if by_outputs && moments.is_none() {
        return Ok(Gone::default());
    }
    let part = if by_outputs { Part::Half } else { Part::All };
    let ladders = ladders(model, &units, plan, moments.as_ref().map(|m| (m, part)), cx)?;
    let [one, other] = cx.samples.halves();
    let reference = match &moments {
        Some(_) => {
            let reference = Reference::new(model, if other.is_empty() { &one } else { &other }, cx)?;
            Some(reference.piecemeal(model, ALONE))
        }
        None => None,
    };
    let bench = Bench {
        model,
        groups,
        units: &units,
        ladders: &ladders,
        moments: moments.as_ref().filter(|_| plan.repair),
        reference,
    };
    let choice: Choice = match plan.much {
        Much::Ratio(_) => ladders.iter().map(|l| l.order.len()).collect(),
        _ => match by_outputs_of(&bench, plan, cx)? {
            Some(choice) => choice,
            None => return Ok(Gone::default()),
        },
    };
    cx.charts.extend(charts(&bench, &choice));
    let fitted = final_fit(&bench, &choice, cx)?;
    let parts = choice
        .iter()
        .enumerate()
        .map(|(i, n)| if bench.all(i, *n).is_some() { 0 } else { *n });
    let gone = bench.gone(&parts.collect());
    let whole = choice.iter().enumerate().filter_map(|(i, n)| bench.all(i, *n));
    let readers: BTreeSet<NodeId> = whole.flat_map(|w| &w.readers).copied().collect();
    let shifts = write(model, &units, fitted, &readers, cx);
    let reader = |id: NodeId| Some((id, units.readers.get(&id)?.clone()?));
    Ok(Gone {
        units: gone,
        shifts,
        branches: readers.into_iter().filter_map(reader).collect(),
    })
}

/// The readers fitted to all samples, repaired where that helps on samples that have no part.
fn final_fit(bench: &Bench, choice: &Choice, cx: &mut Context) -> Result<Vec<Fitted>> {
    let all = bench.fitted(choice, Part::All, &mut Known::new(), cx)?;
    if bench.moments.is_none() {
        return Ok(all);
    }
    let [one, _] = cx.samples.halves();
    let half = bench.fitted(choice, Part::Half, &mut Known::new(), cx)?;
    let before = bench.error(&half, cx)?;
    let after = bench.error(&repaired(bench, half, &one, cx)?, cx)?;
    match (before, after) {
        (Some(before), Some(after)) if after < before => repaired(bench, all, &cx.samples.clone(), cx),
        _ => Ok(all),
    }
}

fn measured(model: &Model, cx: &mut Context, units: &Units) -> Result<Option<Moments>> {
    match Moments::measured(model, cx, &units.readers) {
        Ok(moments) => Ok(Some(moments)),
        Err(e) if e.chain().any(|c| c.is::<NotRun>()) || cx.samples.is_empty() => {
            cx.warn(format!(
                "nothing could be measured ({e:#}): channels are chosen by their weights and nothing is refitted"
            ));
            Ok(None)
        }
        Err(e) => Err(e.context("prune: measuring")),
    }
}

fn ladders(
    model: &Model,
    units: &Units,
    plan: &Plan,
    moments: Option<(&Moments, Part)>,
    cx: &Context,
) -> Result<Vec<Ladder>> {
    let mut ladders = Vec::new();
    let least = match plan.much {
        Much::Ratio(part) => left(model, units, part, plan)?,
        // Where all may go, all are put in order.
        _ => units.groups.iter().map(|g| usize::from(g.whole.is_none())).collect(),
    };
    // The probes of a search climb the same ladders, by half of the samples.
    let key = match (cx.cache, &moments) {
        (Some(_), Some((_, Part::Half))) => Some(ladder::key(model, &cx.samples.measured_halves()[0], cx)?),
        _ => None,
    };
    let work = |i: usize| {
        let (group, by) = (&units.groups[i], (least[i], &plan.by));
        let climb = || climb(model, units, group, by, moments);
        match (cx.cache, &key) {
            (Some(cache), Some(key)) => {
                ladder::known((cache, ladder::of_group(key, units, group, by)), &group.members, climb)
            }
            _ => climb(),
        }
    };
    in_order(units.groups.len(), cx.threads, work, |_, l| {
        ladders.push(l);
        Ok(())
    })?;
    Ok(ladders)
}

/// How many units of every group stay when a part of them is to go. Channels of one layer whose ways part later are several groups: what
/// rounding leaves in one goes from the next.
fn left(model: &Model, units: &Units, part: f64, plan: &Plan) -> Result<Vec<usize>> {
    let mut rest: BTreeMap<Option<NodeId>, f64> = BTreeMap::new();
    let of = |group: &Group| {
        let n = group.members.len();
        let rest = rest.entry(maker(units, group)).or_default();
        *rest += n as f64 * plan.part(model, units, group, part)?;
        let gone = (*rest as usize).min(n.saturating_sub(1));
        *rest -= gone as f64;
        Ok(plan.round_to.nearest(n, n - gone, group.multiple))
    };
    units.groups.iter().map(of).collect()
}

/// What each group loses, by what that does to the outputs, with a word about it; `None` when nothing may go.
fn by_outputs_of(bench: &Bench, plan: &Plan, cx: &mut Context) -> Result<Option<Choice>> {
    let rung = |(g, l): (&Group, &Ladder)| -> Vec<usize> {
        let fits = |n: &usize| *n == 0 || (g.members.len() - n).is_multiple_of(g.multiple);
        (0..=l.order.len()).filter(fits).collect()
    };
    let rungs: Vec<Vec<usize>> = bench.units.groups.iter().zip(bench.ladders).map(rung).collect();
    let settled = match plan.much {
        Much::Macs(part) => bench.reach(part, &rungs, cx),
        Much::Error(limit) => bench.settle(limit, &rungs, cx).map(Some),
        Much::Ratio(_) => Ok(None),
    };
    let settled = match settled {
        Ok(Some(settled)) => settled,
        Ok(None) => {
            let least = 100.0 * bench.left(&rungs.iter().map(|r| r.last().copied().unwrap_or(0)).collect());
            cx.leave(format_args!(
                "{}: {least:.1} % of the multiply-adds are left at least; only what changes nothing was removed",
                plan.much.spelled()
            ));
            return Ok(None);
        }
        Err(e) if e.chain().any(|c| c.is::<NotRun>()) => {
            cx.warn(format!(
                "{}: {e:#}; only what changes nothing was removed",
                plan.much.spelled()
            ));
            return Ok(None);
        }
        Err(e) => return Err(e.context("prune: trying the result")),
    };
    tell(bench, plan, &settled, cx);
    Ok(settled.choice.iter().any(|n| *n > 0).then_some(settled.choice))
}

/// Says what goes from every group, and what all of it does.
fn tell(bench: &Bench, plan: &Plan, settled: &Settled, cx: &mut Context) {
    for (i, (group, n)) in bench.units.groups.iter().zip(&settled.choice).enumerate() {
        let Some(maker) = maker(bench.units, group) else {
            continue;
        };
        let size = group.members.len();
        match n {
            0 => cx.skip(
                bench.model,
                maker,
                format!("{size} channels: an output of the model would err too much for what they save"),
            ),
            n => {
                let readers = 10.0 * bench.ladders[i].damage[n - 1].max(1e-30).log10();
                let outputs = 10.0 * settled.alone[i].max(1e-30).log10();
                let what = format!(
                    "{n} of {size} channels go: predicted error of what reads them {readers:.1} dB, of the model's outputs {outputs:.1} dB"
                );
                cx.did(bench.model, maker, what);
            }
        }
    }
    let saved = bench.share(&settled.choice);
    let error = 10.0 * settled.error.max(1e-30).log10();
    let allowed = match plan.much {
        Much::Error(limit) => format!(" of the {:.1} dB allowed", 10.0 * limit.log10()),
        _ => String::new(),
    };
    let what = format!(
        "on samples that had no part, outputs err by {error:.1} dB{allowed}; {:.1} % of weights and {:.1} % of multiply-adds go",
        100.0 * saved.weights,
        100.0 * saved.macs
    );
    cx.note(super::super::NoteKind::Did, String::new(), what);
}

/// For the report: what the readers of every group lose, and how many channels go.
fn charts(bench: &Bench, choice: &Choice) -> Vec<Chart> {
    let groups = bench.units.groups.iter().zip(bench.ladders).zip(choice);
    let of = |((group, ladder), n): ((&Group, &Ladder), &usize)| {
        let rung = |k: usize| Rung {
            what: format!("{n} of {} channels", group.members.len()),
            at: *n as f64,
            error_db: decibel(ladder.damage[k]),
            chosen: true,
        };
        let place = n.checked_sub(1).filter(|k| *k < ladder.damage.len());
        Some(Chart::Curve(Curve {
            node: bench.model.label(maker(bench.units, group)?),
            along: "channels removed",
            of: "error of what reads them",
            points: curve(&ladder.damage),
            rungs: place.map(rung).into_iter().collect(),
        }))
    };
    groups.filter_map(of).collect()
}

fn maker(units: &Units, group: &Group) -> Option<NodeId> {
    units.units[group.members.first()?].made.first().copied()
}

/// Writes what changes, and says so; gives the changes of biases.
fn write(
    model: &mut Model,
    units: &Units,
    fitted: Vec<Fitted>,
    dead: &BTreeSet<NodeId>,
    cx: &mut Context,
) -> Vec<Shift> {
    let mut shifts = Vec::new();
    for f in fitted {
        if let Some(Some(r)) = units.readers.get(&f.id) {
            shifts.extend(f.bias(r));
        }
        if dead.contains(&f.id) {
            cx.did(
                model,
                f.id,
                "its branch goes as a whole; the mean of what it gave stays",
            );
        } else if let Some(lost) = f.lost {
            let db = -10.0 * lost.max(1e-12).log10();
            cx.did(
                model,
                f.id,
                format!("refitted to the channels that are left; predicted SQNR of its output {db:.1} dB"),
            );
        }
        cut::set_constant(model, f.weight, f.tensor);
    }
    shifts
}

/// Says for every layer with weights why none of its channels may go.
fn refuse(model: &Model, groups: &Groups, units: &Units, cx: &mut Context) {
    for (id, flow) in &groups.flows {
        let node = model.node(*id);
        let weight = flow.dots.iter().find_map(|d| {
            let v = node.input(d.weight.0)?;
            constant(model, v).map(|_| (v, d.row))
        });
        let Some((start, len)) = weight.and_then(|(v, row)| groups.axis(v, row)) else {
            continue;
        };
        let mut why: BTreeMap<String, usize> = BTreeMap::new();
        for e in start..start + len {
            match units.refusal(model, groups, groups.unit(e)) {
                Some(reason) => *why.entry(reason).or_default() += 1,
                None => break,
            }
        }
        if why.values().sum::<usize>() == len
            && let Some((reason, _)) = why.into_iter().max_by_key(|(_, n)| *n)
        {
            cx.skip(model, *id, format!("none of its {len} channels may go: {reason}"));
        }
    }
}
