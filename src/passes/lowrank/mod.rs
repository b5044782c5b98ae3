//! Low rank: a layer `y = W x + b` becomes two or three thin ones.
//!
//! Dense layers and 1×1 convolutions: `h = V x`, `y = U h + b'`, of rank `r`. The best `Ŵ = U V` under data is an eigenproblem of
//! `W C Wᵀ`, with `C` the covariance of the layer's input; the mean error goes into the bias (`math::lowrank`). Larger
//! kernels: the cheapest of four forms ([`conv`], `math::kernel`). What is lost is predicted on samples that had no part in the
//! choice of directions ([`known`]); the rank is the smallest whose error is allowed, rounded up to a multiple that kernels like.
//!
//! Predictions are for one layer. So the whole is tried on calibration samples, and where the outputs of the model err by
//! more than what was allowed for a layer, the most harmful changes are taken back ([`trial`]).
//!
//! Does nothing where weights and multiply-adds would not both fall by `gain`. Costs one run over the calibration samples,
//! one to try the result, and per layer two eigendecompositions of order `min(out, …)`; of large layers (order above 1,024) only
//! the directions that are needed are computed.

mod conv;
mod fit;
mod known;
mod ladder;
mod rewrite;
mod trial;

use super::{Context, Opt, Options, Pass, PassInfo};
use crate::analysis::sites::{Site, site};
use crate::analysis::stats::{Measure, Patch, Stats, measure};
use crate::engine::NotRun;
use crate::ir::{Model, ValueId};
use crate::parallel;
use anyhow::{Context as _, Result, ensure};
use conv::{Cost, Form, Shape, Ways};
use fit::{Fit, Weight};
use known::{Halves, Known};
use ladder::{Chain, Ladder, Rung};

/// The pass's row in the table.
pub const INFO: PassInfo = PassInfo {
    name: "lowrank",
    summary: "splits dense layers and 1×1 convolutions into two thin ones, as the data allow",
    doc: DOC,
    lossy: true,
    options: OPTIONS,
    build: |o| Ok(Box::new(LowRank::new(o)?)),
};

const DOC: &str = "\
Replaces the weight of a Gemm, a MatMul or a Conv by factors, `<node>_lr0`, `<node>_lr1` (and `_lr2`), of the smallest rank whose error on
calibration data is at most `error`, a part of the variance of the layer's output. Kernels larger than 1×1 become the cheapest of: the kernel
to few channels, then 1×1; 1×1, then the kernel; both (Tucker-2); k×1, then 1×k. Directions are chosen on one half of the samples and
the error is measured on the other, and few samples count less: they mean higher ranks, not false promises. The factors are then made from all.

The result is tried on calibration samples as well: where the model's outputs err by more than `error`, too, the changes that do most harm for
what they save are weakened or taken back, until they do not. With `rank=` or `ratio=` nothing is taken back.

Left alone: weights that other nodes read too, layers where weights and multiply-adds would not both fall by `gain`, layers inside
sub-graphs (nothing is measured there), convolutions with groups. With made-up samples, plain singular values are taken.

The default, 0.01 (20 dB), leaves room in the default budget of 10 dB. For a deep network `error=0.003` is careful.";

const OPTIONS: &[Opt] = &[
    Opt {
        name: "error",
        default: "0.01",
        values: "a part of the output's variance, such as 0.001",
        doc: "largest error of one layer's output, and of the model's",
    },
    Opt {
        name: "rank",
        default: "auto",
        values: "a number, or auto",
        doc: "this rank everywhere, whatever its error",
    },
    Opt {
        name: "ratio",
        default: "auto",
        values: "a part of the weights to keep, such as 0.5, or auto",
        doc: "the rank that keeps this part of every layer's weights, whatever its error",
    },
    Opt {
        name: "gain",
        default: "0.1",
        values: "a part, such as 0.1",
        doc: "by how much weights and multiply-adds must fall at least",
    },
    Opt {
        name: "round_to",
        default: "8",
        values: "a number",
        doc: "ranks are rounded up to a multiple of this where the gain allows it",
    },
    Opt {
        name: "min_size",
        default: "4096",
        values: "a number of weights",
        doc: "smaller weights are left alone: two calls cost more than they save",
    },
    Opt {
        name: "centered",
        default: "on",
        values: "on|off",
        doc: "let the bias take up the mean error",
    },
    Opt {
        name: "data",
        default: "on",
        values: "on|off",
        doc: "off: plain singular values, as if inputs were white noise",
    },
];

/// Wider second moments (8·in² bytes each, several at once) are not measured: of rows, and of windows.
const MAX_INPUTS: [usize; 2] = [8192, 4608];
/// Sites are measured in groups whose second moments take about this many bytes.
const MEASURE_BYTES: usize = 512 << 20;
/// Sites with wider inputs are worked on one at a time.
const WIDE: usize = 2048;
/// The errors of the rungs of a ladder, as parts of the error that is allowed.
const RUNGS: [f64; 4] = [1.0, 0.5, 0.25, 0.1];

/// How the rank is chosen.
#[derive(Clone, Copy, Debug)]
enum Choice {
    Error(f64),
    Rank(usize),
    Ratio(f64),
}

struct LowRank {
    choice: Choice,
    gain: f64,
    round_to: usize,
    min_size: usize,
    centered: bool,
    data: bool,
}

impl LowRank {
    fn new(o: &Options) -> Result<LowRank> {
        let part = |name: &str, x: f64| {
            ensure!(
                (0.0..=1.0).contains(&x),
                "lowrank({name}={x}): give a number from 0 to 1"
            );
            Ok(x)
        };
        let error = part("error", o.get("error")?)?;
        let choice = match (o.get_or_auto("rank")?, o.get_or_auto("ratio")?) {
            (None, None) => Choice::Error(error),
            (Some(rank), None) => Choice::Rank(rank),
            (None, Some(ratio)) => Choice::Ratio(part("ratio", ratio)?),
            _ => anyhow::bail!("lowrank: give rank or ratio, not both"),
        };
        ensure!(
            !matches!(choice, Choice::Rank(0)),
            "lowrank(rank=0): give a number above 0"
        );
        let round_to: usize = o.get("round_to")?;
        ensure!(round_to > 0, "lowrank(round_to=0): give a number above 0");
        Ok(LowRank {
            choice,
            gain: part("gain", o.get("gain")?)?,
            round_to,
            min_size: o.get("min_size")?,
            centered: o.text("centered") == "on",
            data: o.text("data") == "on",
        })
    }

    fn cheap(&self, cost: Cost) -> bool {
        // At a gain of nothing both must still fall.
        cost.params.max(cost.macs) <= 1.0 - self.gain && cost.params < 1.0 && cost.macs < 1.0
    }

    /// The largest rank of a pair that saves enough; 0 when none does.
    fn largest(&self, shape: &Shape) -> usize {
        shape.largest(1, shape.out, |c| self.cheap(c), Form::Pair)
    }

    /// Why a site cannot be factored, or would not gain by it.
    fn refusal(&self, model: &Model, site: &Site) -> Option<String> {
        let (size, width) = (site.dims().iter().product::<usize>(), width(site));
        let window = site.layout.window.as_ref();
        let most = MAX_INPUTS[usize::from(site.taps() > 1)];
        if window.is_some_and(|w| w.transposed) {
            Some("transposed convolutions are not factored".into())
        } else if site.layout.groups != 1 {
            Some(format!("it has {} groups", site.layout.groups))
        } else if site.shared {
            Some(format!("{} is read by other nodes too", model.value(site.weight).name))
        } else if size < self.min_size {
            Some(format!("small: {size} weights"))
        } else if site.taps() == 1 && self.largest(&Shape::of(site)) == 0 {
            Some(format!(
                "{}×{} saves too little at any rank",
                site.outputs(),
                site.inputs()
            ))
        } else if self.data && width > most {
            Some(format!(
                "{width} inputs are too many to measure; lowrank(data=off) does without"
            ))
        } else if self.data && model.node(site.node).graph() != model.main_id() {
            Some("it is in a sub-graph, where nothing is measured; lowrank(data=off) does without".into())
        } else if rewrite::too_old(model, site) {
            Some("Gemm before opset 7".into())
        } else {
            None
        }
    }

    fn candidates(&self, model: &Model, cx: &mut Context) -> Vec<Site> {
        let mut all = Vec::new();
        for id in model.node_ids() {
            match site(model, id) {
                None => {}
                Some(Err(reason)) => cx.skip(model, id, reason),
                Some(Ok(site)) => match self.refusal(model, &site) {
                    Some(reason) => cx.skip(model, id, reason),
                    None => all.push(site),
                },
            }
        }
        all
    }

    /// What could be done at a site, or why nothing.
    fn ladder(&self, model: &Model, site: &Site, known: Option<&Known>) -> Result<std::result::Result<Ladder, String>> {
        let shape = Shape::of(site);
        let most = self.largest(&shape);
        let weight = Weight::new(model, site, known, self.centered && fit::adjustable(model, site))?;
        let allowed = match self.choice {
            Choice::Error(e) => e,
            _ => 0.0,
        };
        let fit = Fit::new(&weight, known, most, allowed, SEED)?;
        let choices: Vec<(Form, f64)> = match self.choice {
            Choice::Error(e) => return self.by_error(site, &shape, &weight, known, &fit, e),
            Choice::Rank(r) => vec![(Form::Pair(r), fit.error(r))],
            Choice::Ratio(part) => {
                let whole = shape.cost(Form::Pair(1)).params;
                let r = ((part / whole) as usize).max(1);
                vec![(Form::Pair(r), fit.error(r))]
            }
        };
        if let Some((Form::Pair(r), error)) = choices.first()
            && *r > most
        {
            return Ok(Err(format!(
                "the request needs rank {r}, but only up to {most} there is a gain (error {:.1} dB)",
                decibel(*error)
            )));
        }
        self.build(site, &shape, &weight, known, &fit, None, choices).map(Ok)
    }

    fn by_error(
        &self,
        site: &Site,
        shape: &Shape,
        weight: &Weight,
        known: Option<&Known>,
        fit: &Fit,
        allowed: f64,
    ) -> Result<std::result::Result<Ladder, String>> {
        let cheap = |c: Cost| self.cheap(c);
        let round = |r: usize| {
            let up = r.next_multiple_of(self.round_to);
            if self.cheap(shape.cost(Form::Pair(up))) { up } else { r }
        };
        let ways = match known {
            Some(k) if site.taps() > 1 => Some(Ways::new(site, weight, k, self.round_to, cheap)?),
            _ => None,
        };
        let mut choices: Vec<(Form, f64)> = Vec::new();
        for part in RUNGS {
            if let Some(choice) = conv::choose(shape, fit, ways.as_ref(), part * allowed, round, cheap)?
                && choices.iter().all(|(form, _)| *form != choice.0)
            {
                choices.push(choice);
            }
        }
        if choices.is_empty() {
            let most = self.largest(shape);
            let why = match fit.rank_for(allowed) {
                Some(r) => format!("needs rank {r}"),
                None => "needs too many directions".to_owned(),
            };
            return Ok(Err(format!(
                "an error of {:.1} dB {why}, but only up to {most} there is a gain (error there {:.1} dB)",
                decibel(allowed),
                decibel(fit.error(most))
            )));
        }
        self.build(site, shape, weight, known, fit, ways.as_ref(), choices).map(Ok)
    }

    /// The ladder of these choices.
    #[allow(clippy::too_many_arguments)]
    fn build(
        &self,
        site: &Site,
        shape: &Shape,
        weight: &Weight,
        known: Option<&Known>,
        fit: &Fit,
        ways: Option<&Ways>,
        choices: Vec<(Form, f64)>,
    ) -> Result<Ladder> {
        let ranks: Vec<usize> = choices
            .iter()
            .filter_map(|(form, _)| match form {
                Form::Pair(r) => Some(*r),
                _ => None,
            })
            .collect();
        let mut pairs = fit.chains(weight, known, &ranks).into_iter();
        let mut rungs = Vec::new();
        for (form, error) in choices {
            let made: Option<(Chain, Option<Chain>)> = match (form, ways) {
                (Form::Pair(_), _) => pairs.next(),
                (_, Some(ways)) => ways.chains(form)?.map(|[all, half]| (all, Some(half))),
                _ => None,
            };
            let Some((chain, trial)) = made else { continue };
            let cost = shape.cost(form);
            rungs.push(Rung {
                what: form.words(),
                params: cost.params,
                macs: cost.macs,
                error,
                chain,
                trial,
            });
        }
        Ok(Ladder {
            site: site.clone(),
            measured: known.is_some(),
            rungs,
        })
    }

    /// The ladders of a group of sites that were measured together.
    fn group(&self, model: &Model, group: &[Site], halves: Option<&Halves>, cx: &mut Context) -> Result<Vec<Ladder>> {
        let mut ladders = Vec::new();
        let work = |i: usize| {
            let site: &Site = &group[i];
            let named = || format!("lowrank: {}", model.label(site.node));
            let centered = self.centered && fit::adjustable(model, site) && site.bias_values(model).is_some();
            let known = match halves {
                None => None,
                Some(h) => match h.of(site, width(site), centered).with_context(named)? {
                    None => return Ok(Err("its input could not be measured".to_owned())),
                    known => known,
                },
            };
            self.ladder(model, site, known.as_ref()).with_context(named)
        };
        let wide = group.iter().any(|s| width(s) > WIDE);
        let threads = if wide { 1 } else { cx.threads };
        parallel::in_order(group.len(), threads, work, |i, result| {
            match result {
                Ok(ladder) => ladders.push(ladder),
                Err(reason) => cx.skip(model, group[i].node, reason),
            }
            Ok(())
        })?;
        Ok(ladders)
    }

    fn ladders(&self, model: &Model, sites: &[Site], cx: &mut Context) -> Result<Vec<Ladder>> {
        let mut ladders = Vec::new();
        let mut rest = sites;
        let measured = self.data && !cx.samples.synthetic();
        if self.data && !measured && !sites.is_empty() {
            cx.warn("lowrank: the samples are made up, so it takes plain singular values");
        }
        while measured && !rest.is_empty() {
            let (group, after) = rest.split_at(fitting(rest));
            match halves(model, group, cx) {
                Ok(halves) => ladders.extend(self.group(model, group, Some(&halves), cx)?),
                Err(e) if e.chain().any(|c| c.is::<NotRun>()) => {
                    cx.warn(format!(
                        "lowrank knows nothing of the data and takes plain singular values: {e:#}"
                    ));
                    break;
                }
                Err(e) => return Err(e.context("lowrank: measuring")),
            }
            rest = after;
        }
        // Each layer's factors are kept, not its spectrum: memory stays at a few times the size of the weights.
        ladders.extend(self.group(model, rest, None, cx)?);
        Ok(ladders)
    }

    /// The rung of every ladder that the outputs of the model allow.
    fn settle(&self, model: &Model, ladders: &[Ladder], cx: &mut Context) -> Result<trial::Choice> {
        let everything = vec![Some(0); ladders.len()];
        let Choice::Error(limit) = self.choice else {
            return Ok(everything);
        };
        if ladders.is_empty() || cx.samples.is_empty() {
            return Ok(everything);
        }
        let [one, other] = cx.samples.halves();
        let samples = if other.is_empty() { one } else { other };
        match trial::settle(model, ladders, limit, &samples, cx) {
            Ok(settled) => {
                if settled.choice != everything {
                    cx.warn(format!(
                        "lowrank: with every layer at {:.1} dB an output of the model errs by {:.1} dB on calibration samples; changes were weakened or taken back, and it errs by {:.1} dB",
                        decibel(limit),
                        decibel(settled.first),
                        decibel(settled.last)
                    ));
                }
                Ok(settled.choice)
            }
            Err(e) if e.chain().any(|c| c.is::<NotRun>()) => Ok(everything),
            Err(e) => Err(e.context("lowrank: trying the result")),
        }
    }
}

impl Pass for LowRank {
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        let sites = self.candidates(model, cx);
        let ladders = self.ladders(model, &sites, cx)?;
        let choice = self.settle(model, &ladders, cx)?;
        for (ladder, rung) in ladders.iter().zip(choice) {
            let node = ladder.site.node;
            let dims = format!("{}×{}", ladder.site.outputs(), width(&ladder.site));
            let Some(rung) = rung.map(|r| &ladder.rungs[r]) else {
                cx.skip(model, node, format!("{dims}: an output of the model would err too much"));
                continue;
            };
            let what = format!(
                "{dims} → {}: −{:.0} % weights, −{:.0} % multiply-adds, {} {:.1} dB",
                rung.what,
                100.0 * (1.0 - rung.params),
                100.0 * (1.0 - rung.macs),
                if ladder.measured {
                    "predicted error"
                } else {
                    "error of the weights"
                },
                decibel(rung.error)
            );
            cx.did(model, node, what);
            rewrite::replace(model, &ladder.site, &rung.chain)?;
        }
        Ok(())
    }
}

/// Seed of the blocks that the search for directions starts from.
const SEED: u64 = 0x6f6e_6e78;

/// Length of the rows that a site multiplies.
fn width(site: &Site) -> usize {
    site.inputs() * site.taps()
}

/// How many of the next sites are measured together: as many as fit, and at least one.
fn fitting(sites: &[Site]) -> usize {
    let mut seen: Vec<(ValueId, &Patch)> = Vec::new();
    let mut bytes = 0usize;
    for (i, site) in sites.iter().enumerate() {
        if !seen.contains(&(site.input, &site.patch)) {
            // Two halves, in f64.
            bytes = bytes.saturating_add(16 * width(site).saturating_mul(width(site)));
            seen.push((site.input, &site.patch));
        }
        if i > 0 && bytes > MEASURE_BYTES {
            return i;
        }
    }
    sites.len()
}

/// Second moments of the sites' inputs over two halves of the samples.
fn halves(model: &Model, group: &[Site], cx: &mut Context) -> Result<Halves> {
    let mut wanted: Vec<(ValueId, Measure)> = Vec::new();
    for site in group {
        let want = (site.input, Measure::Gram(site.patch.clone()));
        if !wanted.contains(&want) {
            wanted.push(want);
        }
    }
    let over = |half: &crate::data::Samples| match half.is_empty() {
        true => Ok(Stats::default()),
        false => measure(model, &wanted, cx.engine, half, cx.threads, cx.progress),
    };
    let [one, other] = cx.samples.halves();
    Ok(Halves {
        stats: [over(&one)?, over(&other)?],
    })
}

fn decibel(ratio: f64) -> f64 {
    10.0 * ratio.max(1e-30).log10()
}
