//! Low rank: a dense layer `y = W x + b` becomes two, `h = V x` and `y = U h + b'`, of rank `r`.
//!
//! The best `Ŵ = U V` under data is an eigenproblem of `W C Wᵀ`, with `C` the covariance of the layer's input; the mean error
//! goes into the bias (`math::lowrank`). What is lost is known beforehand: the eigenvalues left out, relative to the variance of the
//! output. The rank is the smallest whose error is allowed, rounded up to a multiple that kernels like.
//!
//! Acts on Gemm, MatMul with a constant matrix on either side, and 1×1 Conv. Does nothing where weights and multiply-adds
//! (both are `r·(in + out)` against `in·out`) would not fall by `gain`. Costs one run over the calibration samples, and per
//! layer about what an eigendecomposition of order `min(out, …)` costs.

mod fit;
mod rewrite;

use super::{Context, Opt, Options, Pass, PassInfo};
use crate::analysis::sites::{Site, site};
use crate::analysis::stats::{Measure, Patch, Stats, measure};
use crate::ir::{Model, NodeId, ValueId};
use crate::parallel;
use anyhow::{Context as _, Result, ensure};
use fit::{Fit, Plan};

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
Replaces the weight of a Gemm, a MatMul or a 1×1 Conv by two factors, `<node>_lr0` and `<node>_lr1`, of the smallest rank whose error on
calibration data is at most `error`, a part of the variance of the layer's output. Directions are chosen on one half of the samples and
the error is measured on the other, so few samples mean higher ranks, not false promises; the factors are then made from all samples.

Left alone: weights that other nodes read too, layers where weights and multiply-adds would not both fall by `gain`, layers inside
sub-graphs (nothing is measured there), convolutions with larger kernels or groups.

`error` counts for one layer. The default, 0.01 (20 dB), leaves room in the default budget of 10 dB: errors of layers in a row add up, but
later layers ignore most directions (two layers at 20 dB each left 32 dB at the output of an MLP). For a deep network `error=0.003` is careful.";

const OPTIONS: &[Opt] = &[
    Opt {
        name: "error",
        default: "0.01",
        values: "a part of the output's variance, such as 0.001",
        doc: "largest error of one layer's output",
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

/// Wider second moments (8·in² bytes each, several at once) are not measured.
const MAX_INPUTS: usize = 8192;
/// Sites are measured in groups whose second moments take about this many bytes.
const MEASURE_BYTES: usize = 512 << 20;

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

    /// The largest rank that saves enough; 0 when none does.
    fn largest(&self, site: &Site) -> usize {
        let (out, inputs) = (site.outputs() as f64, site.inputs() as f64);
        let limit = (1.0 - self.gain) * out * inputs / (out + inputs);
        // At a gain of nothing the rank must still be below the limit: both must fall.
        let rank = limit.floor() as usize;
        if rank as f64 == limit && self.gain == 0.0 {
            rank.saturating_sub(1)
        } else {
            rank
        }
    }

    /// Why a site cannot be factored, or would not gain by it.
    fn refusal(&self, model: &Model, site: &Site) -> Option<String> {
        let size = site.outputs().saturating_mul(site.inputs());
        let window = site.layout.window.as_ref();
        if window.is_some_and(|w| w.transposed) {
            Some("transposed convolutions are not factored".into())
        } else if site.layout.groups != 1 {
            Some(format!("it has {} groups", site.layout.groups))
        } else if site.taps() != 1 {
            Some("convolutions with kernels larger than 1×1 are not factored".into())
        } else if site.shared {
            Some(format!("{} is read by other nodes too", model.value(site.weight).name))
        } else if size < self.min_size {
            Some(format!("small: {size} weights"))
        } else if self.largest(site) == 0 {
            Some(format!(
                "{}×{} saves too little at any rank",
                site.outputs(),
                site.inputs()
            ))
        } else if self.data && site.inputs() > MAX_INPUTS {
            Some(format!(
                "{} inputs are too many to measure; lowrank(data=off) does without",
                site.inputs()
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

    /// The rank for a fit, or why there is none.
    fn rank(&self, site: &Site, fit: &Fit) -> Result<usize, String> {
        let most = self.largest(site);
        let wanted = match self.choice {
            Choice::Error(e) => fit.rank_for(e).max(1),
            Choice::Rank(r) => r,
            Choice::Ratio(part) => {
                let (out, inputs) = (site.outputs() as f64, site.inputs() as f64);
                ((part * out * inputs / (out + inputs)) as usize).max(1)
            }
        };
        if wanted > most {
            let why = match self.choice {
                Choice::Error(e) => format!("an error of {:.1} dB", decibel(e)),
                _ => "the request".into(),
            };
            return Err(format!(
                "{}×{}: {why} needs rank {wanted}, but only up to {most} there is a gain (error there {:.1} dB)",
                site.outputs(),
                site.inputs(),
                decibel(fit.error(most))
            ));
        }
        let rounded = wanted.next_multiple_of(self.round_to);
        Ok(if matches!(self.choice, Choice::Error(_)) && rounded <= most {
            rounded
        } else {
            wanted
        })
    }

    /// What to do at every site of a group, measured together.
    fn plan(&self, model: &Model, group: &[Site], halves: Option<&[Stats; 2]>, cx: &mut Context) -> Result<Vec<Plan>> {
        let mut plans = Vec::new();
        let work = |i: usize| {
            let site: &Site = &group[i];
            let named = || format!("lowrank: {}", model.label(site.node));
            let input = halves.map(|[a, b]| fit::halves(a, b, site));
            if let Some(None) = input {
                return Ok(Err("its input could not be measured".to_owned()));
            }
            let fit = Fit::new(model, site, input.flatten(), self.centered).with_context(named)?;
            Ok(self.rank(site, &fit).map(|rank| fit.plan(site, rank)))
        };
        parallel::in_order(group.len(), cx.threads, work, |i, result| {
            match result {
                Ok(plan) => plans.push(plan),
                Err(reason) => cx.skip(model, group[i].node, reason),
            }
            Ok(())
        })?;
        Ok(plans)
    }

    fn plans(&self, model: &Model, sites: &[Site], cx: &mut Context) -> Result<Vec<Plan>> {
        let mut plans = Vec::new();
        let mut rest = sites;
        while self.data && !rest.is_empty() {
            let (group, after) = rest.split_at(fitting(rest));
            match halves(model, group, cx) {
                Ok(halves) => plans.extend(self.plan(model, group, Some(&halves), cx)?),
                Err(e) if e.chain().any(|c| c.is::<crate::engine::NotRun>()) => {
                    cx.warn(format!(
                        "lowrank knows nothing of the data and takes plain singular values: {e:#}"
                    ));
                    break;
                }
                Err(e) => return Err(e.context("lowrank: measuring")),
            }
            rest = after;
        }
        // Each layer's factors are kept, not its spectrum: memory stays at the size of the weights.
        plans.extend(self.plan(model, rest, None, cx)?);
        Ok(plans)
    }
}

impl Pass for LowRank {
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        let sites = self.candidates(model, cx);
        for plan in self.plans(model, &sites, cx)? {
            let label: NodeId = plan.site.node;
            let (out, inputs) = (plan.site.outputs(), plan.site.inputs());
            let kept = (plan.rank * (out + inputs)) as f64 / (out * inputs) as f64;
            let what = format!(
                "{out}×{inputs} → rank {}: −{:.0} % weights, {} {:.1} dB",
                plan.rank,
                100.0 * (1.0 - kept),
                if plan.measured {
                    "predicted error"
                } else {
                    "error of the weights"
                },
                decibel(plan.error)
            );
            cx.did(model, label, what);
            rewrite::replace(model, &plan)?;
        }
        Ok(())
    }
}

/// How many of the next sites are measured together: as many as fit, and at least one.
fn fitting(sites: &[Site]) -> usize {
    let mut seen: Vec<(ValueId, &Patch)> = Vec::new();
    let mut bytes = 0usize;
    for (i, site) in sites.iter().enumerate() {
        if !seen.contains(&(site.input, &site.patch)) {
            // Two halves, in f64.
            bytes = bytes.saturating_add(16 * site.inputs().saturating_mul(site.inputs()));
            seen.push((site.input, &site.patch));
        }
        if i > 0 && bytes > MEASURE_BYTES {
            return i;
        }
    }
    sites.len()
}

/// Second moments of the sites' inputs over the even and over the odd samples.
fn halves(model: &Model, group: &[Site], cx: &mut Context) -> Result<[Stats; 2]> {
    let mut wanted: Vec<(ValueId, Measure)> = Vec::new();
    for site in group {
        let want = (site.input, Measure::Gram(site.patch.clone()));
        if !wanted.contains(&want) {
            wanted.push(want);
        }
    }
    let over = |from: usize| match cx.samples.every(2, from) {
        half if half.is_empty() => Ok(Stats::default()),
        half => measure(model, &wanted, cx.engine, &half, cx.threads, cx.progress),
    };
    Ok([over(0)?, over(1)?])
}

fn decibel(ratio: f64) -> f64 {
    10.0 * ratio.max(1e-30).log10()
}
