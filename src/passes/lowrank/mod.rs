//! Low rank: a layer `y = W x + b` becomes two or three thin ones.
//!
//! Dense layers and 1×1 convolutions: `h = V x`, `y = U h + b'`, of rank `r`. The best `Ŵ = U V` under data is an eigenproblem of
//! `W C Wᵀ`, with `C` the covariance of the layer's input; the mean error goes into the bias (`math::lowrank`). Larger
//! kernels: the cheapest of four forms (`conv`, `math::kernel`). What is lost is predicted on samples that had no part in the
//! choice of directions (`known`); what they count is asked of what reads the outputs ([`crate::analysis::readers`]); the rank is the smallest whose error is allowed, rounded up to a multiple that kernels like.
//!
//! Predictions are for one layer. So the whole is tried on calibration samples, and where the outputs of the model err by
//! more than what was allowed for a layer, the most harmful changes are taken back (`passes::trial`).
//!
//! Then the last factors are fitted once more, front to back (`repair`).
//!
//! Layers with nothing between them are multiplied together first, and factors that have come to lie side by side last (`merge`).
//!
//! Does nothing where weights and multiply-adds would not both fall by `gain`. Costs one run over the calibration samples,
//! one to try the result, those of the repair, and per layer two eigendecompositions of order `min(out, …)`; of large layers (order above 1,024) only
//! the directions that are needed are computed.

mod conv;
mod fit;
mod known;
mod ladder;
mod merge;
mod plan;
mod repair;
mod rewrite;
mod single;
mod wide;

use super::charts::decibel;
use super::{Context, Names, Opt, Options, Part, Pass, PassInfo, trial};
use crate::analysis::sites::Site;
use crate::engine::NotRun;
use crate::ir::Model;
use anyhow::{Result, ensure};
use conv::{Cost, Form, Shape};
use ladder::{Ladder, Rung};
pub(super) use rewrite::set_bias;

/// The pass's row in the table.
pub const INFO: PassInfo = PassInfo {
    name: "lowrank",
    summary: "splits dense layers and convolutions into thin ones, as the data allow",
    doc: DOC,
    lossy: true,
    part: Part::Structure { error: "error" },
    options: OPTIONS,
    build: |o| Ok(Box::new(LowRank::new(o)?)),
};

const DOC: &str = "\
Replaces the weight of a Gemm, a MatMul or a Conv by factors, `<node>_lr0`, `<node>_lr1` (and `_lr2`), of the smallest rank whose error on
calibration data is at most `error`, a part of the variance of the layer's output. Kernels larger than 1×1 become the cheapest of: the kernel
to few channels, then 1×1; 1×1, then the kernel; both (Tucker-2); k×1, then 1×k. Directions are chosen on one half of the samples and
the error is measured on the other, and few samples count less: they mean higher ranks, not false promises. The factors are then made from all.

What an error of an output counts is asked of the layers that read it next, through activations and pooling, where these are all that do:
an output that they hardly look at, or that an activation cuts off, may err more. Elsewhere very loud outputs count a little less than their power.

The result is tried on calibration samples as well: where the model's outputs err by more than `error`, too, the changes that do most harm for
what they save are weakened or taken back, until they do not. With `rank=` or `ratio=` nothing is taken back.

Then the last factor of every layer is fitted once more, front to back, to what the layer gave out before, from what now comes in: so layers make
up for what was lost before them. Samples that have no part in this tell whether it helps; where it does not, it is left.

Layers with nothing between them (1×1 convolutions beside others, dense layers) are multiplied together where weights and multiply-adds
fall by it, before the rest and after it: the last factor of one layer and the first of the next are one matrix then.

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
        default: "0.3",
        values: "a part, such as 0.1",
        doc: "by how much weights and multiply-adds must fall at least; below 0.3 two calls are often slower than one",
    },
    Opt {
        name: "round_to",
        default: "8",
        values: "a number",
        doc: "ranks are rounded up to a multiple of this",
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
    Opt {
        name: "repair",
        default: "on",
        values: "on|off",
        doc: "the last factors are fitted once more, front to back, where that helps on samples that have no part in it",
    },
    Opt {
        name: "merge",
        default: "on",
        values: "on|off",
        doc: "layers with nothing between them are multiplied together where that is smaller, before and after",
    },
    Opt {
        name: "tables",
        default: "off",
        values: "on|off",
        doc: "on: embedding tables too, a thin table and a MatMul behind the Gather: smaller, not faster",
    },
    Opt {
        name: "recurrent",
        default: "off",
        values: "on|off",
        doc: "on: the input weights of LSTM, GRU and RNN too, with a MatMul before the node",
    },
    Opt {
        name: "skip",
        default: "",
        values: "names of nodes, `*` and `?` as wildcards, separated by `;`",
        doc: "nodes that are left whole",
    },
];

/// Wider second moments (8·in² bytes each, several at once) are not measured: of rows, and of windows. Those of outputs are, then.
const MAX_INPUTS: [usize; 2] = [8192, 4608];

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
    repair: bool,
    merge: bool,
    tables: bool,
    recurrent: bool,
    skip: Names,
    /// For what may differ from node to node.
    options: Options,
}

impl LowRank {
    /// The pass with the options of a node.
    fn at(&self, model: &Model, site: &Site) -> Result<LowRank> {
        LowRank::new(&self.options.at(&model.label(site.node)))
    }

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
            repair: o.text("repair") == "on",
            merge: o.text("merge") == "on",
            tables: o.text("tables") == "on",
            recurrent: o.text("recurrent") == "on",
            skip: Names::of(o, "skip"),
            options: o.clone(),
        })
    }

    fn merge(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        match self.merge {
            true => merge::neighbours(model, cx, |model, id| !self.skip.has(&model.label(id))),
            false => Ok(()),
        }
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
        } else if self.data && wide::is_wide(site) && site.outputs() > MAX_INPUTS[0] {
            Some(format!(
                "{}×{width} is too wide to be measured; lowrank(data=off) does without",
                site.outputs()
            ))
        } else if self.data && model.node(site.node).graph() != model.main_id() {
            Some("it is in a sub-graph, where nothing is measured; lowrank(data=off) does without".into())
        } else if rewrite::too_old(model, site) {
            Some("Gemm before opset 7".into())
        } else {
            None
        }
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
        self.merge(model, cx)?;
        let sites = cx.sites(model, |site| match self.at(model, site) {
            _ if self.skip.has(&model.label(site.node)) => Some("left alone as asked (skip)".into()),
            Ok(here) => here.refusal(model, site),
            Err(e) => Some(format!("{e:#}")),
        });
        let ladders = self.ladders(model, &sites, cx)?;
        let choice = self.settle(model, &ladders, cx)?;
        let whole = model.clone();
        for (ladder, &rung) in ladders.iter().zip(&choice) {
            let node = ladder.site.node;
            cx.charts.push(ladder.chart(model.label(node), rung));
            let dims = format!("{}×{}", ladder.site.outputs(), width(&ladder.site));
            let Some(rung) = rung.map(|r| &ladder.rungs[r]) else {
                cx.skip(
                    model,
                    node,
                    format!("{dims}: an output of the model would err too much"),
                );
                continue;
            };
            let other = |r: &Rung| format!("; {} would give {:.1} dB", r.what, decibel(r.error));
            let others = ladder.rungs.iter().filter(|r| r.what != rung.what).map(other);
            let what = format!(
                "{dims} → {}: −{:.0} % weights, −{:.0} % multiply-adds, {} {:.1} dB{}",
                rung.what,
                100.0 * (1.0 - rung.params),
                100.0 * (1.0 - rung.macs),
                if ladder.measured {
                    "predicted error"
                } else {
                    "error of the weights"
                },
                decibel(rung.error),
                others.collect::<String>()
            );
            cx.did(model, node, what);
            rewrite::replace(model, &ladder.site, &rung.chain)?;
        }
        self.repaired((&whole, model), (&ladders, &choice), cx)?;
        self.merge(model, cx)?;
        self.singles(model, cx)
    }
}

/// Length of the rows that a site multiplies.
fn width(site: &Site) -> usize {
    site.inputs() * site.taps()
}
