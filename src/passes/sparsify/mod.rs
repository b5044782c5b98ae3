//! Single weights become zero, wherever they lie, and the others make up for them.
//!
//! Which weights go: by `obs`, those that cost the layer's output least when the others are refitted ([`crate::math::sparse`]); by
//! `wanda`, those of the least product with the size of their input, in every row as many; by `magnitude`, the smallest. With
//! `scope=global` the costs of all layers, each relative to the power of its output, compete. With `error`, half of the samples say
//! which weights go and what the others become, the other half what that does to the outputs of the model, and the number
//! of zeros is moved until they err by that much; then all is done again with all samples.
//!
//! Does nothing to shapes: ordinary runtimes multiply zeros as they do other numbers. What falls is the size of a compressed file, or,
//! with `format=sparse`, of the file itself where zeros are many; runtimes with kernels for N:M patterns gain time.
//! Costs a run over the samples and, per layer, one inverse and many small factorizations.

mod layer;
mod store;

use super::charts::decibel;
use super::noise::Reference;
use super::{Context, Names, NoteKind, Opt, Options, Part, Pass, PassInfo, Rule};
use crate::analysis::sites::Site;
use crate::analysis::stats::{Detail, Measure, Stats};
use crate::engine::NotRun;
use crate::ir::Model;
use crate::math::sparse::{Pattern, largest};
use anyhow::{Context as _, Result, ensure};
use layer::{Layer, Method, Thin};
use ndarray::Array2;

/// The pass's row in the table.
pub const INFO: PassInfo = PassInfo {
    name: "sparsify",
    summary: "sets single weights to zero, the others making up for them",
    doc: DOC,
    lossy: true,
    part: Part::Aside,
    options: OPTIONS,
    build: |o| Ok(Box::new(Sparsify::new(o)?)),
};

const DOC: &str = "\
Sets weights of Gemm, MatMul and Conv to zero and refits the others by least squares on calibration data, mean errors going into the
bias. By default as many as cost the outputs of the model 1 % of their power (20 dB), those of all layers competing; `sparsity=0.8` sets
80 %, whatever it costs. The report lists every layer: zeros, weights that remain, and its size before and after compression
(deflate, as in gzip and zip).

What it is good for: a smaller compressed file (or `format=sparse`, which stores few weights by their places; more than two thirds must
be zero), and runtimes with kernels for patterns such as `pattern=2:4`. Ordinary runtimes run as fast as before.

Left alone: weights that other nodes read too, convolutions with groups, small weights, layers inside sub-graphs, inputs too wide to
measure. With made-up samples, or where the model cannot be run, the smallest weights go, and only with `sparsity=` given.";

const OPTIONS: &[Opt] = &[
    Opt {
        name: "sparsity",
        default: "auto",
        values: "a part from 0 to 1, such as 0.8, or auto",
        doc: "the part of the weights that becomes zero; auto: as `error` allows",
    },
    Opt {
        name: "error",
        default: "0.01",
        values: "a part of the outputs' power, such as 0.01",
        doc: "by how much the outputs of the model may err, when no sparsity is given",
    },
    Opt {
        name: "method",
        default: "obs",
        values: "obs|wanda|magnitude",
        doc: "which weights go; only obs refits the others",
    },
    Opt {
        name: "scope",
        default: "auto",
        values: "auto|layer|global",
        doc: "the same part of every layer, or what costs least in all; auto: global with error, layer with sparsity",
    },
    Opt {
        name: "pattern",
        default: "none",
        values: "none, or N:M such as 2:4",
        doc: "in every row, of every M inputs in a row N stay at most",
    },
    Opt {
        name: "block",
        default: "1",
        values: "a whole number",
        doc: "so many inputs in a row go or stay together",
    },
    Opt {
        name: "min_size",
        default: "1024",
        values: "a number of weights",
        doc: "smaller weights are left alone",
    },
    Opt {
        name: "format",
        default: "dense",
        values: "dense|sparse",
        doc: "sparse: as sparse_initializer where that takes fewer bytes; give it in the last pass, others do not look inside",
    },
    Opt {
        name: "skip",
        default: "",
        values: "names of nodes, `*` and `?` as wildcards, separated by `;`",
        doc: "nodes whose weights stay as they are",
    },
];

/// Wider inputs are not measured.
const MAX_INPUTS: usize = 4608;
/// Factorizations of all layers may take about so many multiply-adds each time.
const WORK: f64 = 4.0e10;
/// How often a number of zeros is tried.
const ROUNDS: usize = 7;
/// An error from this part of the limit on is near enough.
const NEAR: f64 = 0.85;

/// How many zeros.
#[derive(Clone, Copy, Debug)]
enum Much {
    Part(f64),
    Error(f64),
}

struct Sparsify {
    much: Much,
    method: Method,
    global: bool,
    pattern: Pattern,
    block: usize,
    min_size: usize,
    sparse: bool,
    skip: Names,
    /// For what may differ from node to node.
    options: Options,
}

impl Sparsify {
    fn new(o: &Options) -> Result<Sparsify> {
        let much = match o.get_or_auto::<f64>("sparsity")? {
            Some(p) => {
                ensure!(
                    (0.0..1.0).contains(&p),
                    "sparsify(sparsity={p}): give a number from 0 to below 1"
                );
                Much::Part(p)
            }
            None => {
                let e: f64 = o.get("error")?;
                ensure!(
                    e > 0.0 && e < 1.0,
                    "sparsify(error={e}): give a number above 0 and below 1"
                );
                Much::Error(e)
            }
        };
        let pattern = match o.text("pattern") {
            "none" => Pattern::Free,
            text => pattern(text).with_context(|| format!("sparsify(pattern={text}): write N:M, such as 2:4"))?,
        };
        let block: usize = o.get("block")?;
        ensure!(block > 0, "sparsify(block=0): give 1 or more");
        ensure!(
            block == 1 || pattern == Pattern::Free,
            "sparsify: give a pattern or a block, not both"
        );
        Ok(Sparsify {
            much,
            method: match o.text("method") {
                "wanda" => Method::Wanda,
                "magnitude" => Method::Magnitude,
                _ => Method::Obs,
            },
            global: match o.text("scope") {
                "auto" => matches!(much, Much::Error(_)),
                text => text == "global",
            },
            pattern,
            block,
            min_size: o.get("min_size")?,
            sparse: o.text("format") == "sparse",
            skip: Names::of(o, "skip"),
            options: o.clone(),
        })
    }

    /// Why a site is left alone.
    fn refusal(&self, model: &Model, site: &Site) -> Option<String> {
        let size = site.dims().iter().product::<usize>();
        let width = site.inputs().saturating_mul(site.taps());
        if self.skip.has(&model.label(site.node)) {
            Some("left alone as asked (skip)".into())
        } else if site.shared {
            Some(format!("{} is read by other nodes too", model.value(site.weight).name))
        } else if site.layout.groups != 1 {
            Some(format!("it has {} groups", site.layout.groups))
        } else if size < self.min_size {
            Some(format!("small: {size} weights"))
        } else if self.method != Method::Magnitude && width > MAX_INPUTS {
            Some(format!(
                "{width} inputs are too many to measure; sparsify(method=magnitude) does without"
            ))
        } else if self.method != Method::Magnitude && model.node(site.node).graph() != model.main_id() {
            Some("it is in a sub-graph, where nothing is measured; sparsify(method=magnitude) does without".into())
        } else {
            None
        }
    }

    /// The layers with what was measured over either half; `None` where nothing could be.
    fn measured(&self, model: &Model, sites: &[Site], cx: &mut Context) -> Result<Option<[Stats; 2]>> {
        if self.method == Method::Magnitude {
            return Ok(None);
        }
        if cx.samples.synthetic() {
            cx.warn("sparsify: the samples are made up, so the smallest weights go");
            return Ok(None);
        }
        let wanted = sites
            .iter()
            .map(|s| (s.input, Measure::Gram(s.patch.clone(), Detail::Fine)));
        match cx.halves(model, wanted) {
            Ok(halves) => Ok(Some(halves)),
            Err(e) if e.chain().any(|c| c.is::<NotRun>()) => {
                cx.warn(format!(
                    "sparsify knows nothing of the data, so the smallest weights go: {e:#}"
                ));
                Ok(None)
            }
            Err(e) => Err(e.context("sparsify: measuring")),
        }
    }

    /// How many weights every layer keeps when this part of all becomes zero.
    fn counts(&self, layers: &[Layer], part: f64) -> Vec<usize> {
        let keep = |n: usize, part: f64| ((n as f64 * (1.0 - part)).round() as usize).max(1);
        if !self.global || layers.is_empty() {
            let of = |l: &Layer| keep(l.matrix.len(), l.own.unwrap_or(part));
            return layers.iter().map(of).collect();
        }
        let competing = layers.iter().filter(|l| l.own.is_none());
        let costs: Vec<f64> = competing.flat_map(|l| l.costs.iter().copied()).collect();
        let total = keep(costs.len(), part);
        let Ok(costs) = Array2::from_shape_vec((1, costs.len()), costs) else {
            return Vec::new();
        };
        let mask = largest(&costs, total);
        let mut at = 0;
        let count = |l: &Layer| {
            if let Some(own) = l.own {
                return keep(l.matrix.len(), own);
            }
            let n = mask.iter().skip(at).take(l.matrix.len()).filter(|m| **m).count();
            at += l.matrix.len();
            // A layer without weights says nothing at all.
            n.max(l.matrix.len() / 200).max(1)
        };
        layers.iter().map(count).collect()
    }

    fn thinned(&self, layers: &[Layer], part: f64, work: f64) -> Result<Vec<Thin>> {
        let work = work / layers.len().max(1) as f64;
        let counts = self.counts(layers, part);
        let each = layers.iter().zip(counts);
        each.map(|(l, keep)| l.thinned(keep, self.method, self.pattern, self.block, work))
            .collect()
    }

    /// The largest part of zeros whose outputs err by the limit at most, on samples that had no part.
    fn settle(
        &self,
        model: &Model,
        sites: &[Site],
        halves: &[Stats; 2],
        limit: f64,
        cx: &Context,
    ) -> Result<(f64, f64)> {
        let [one, other] = cx.samples.halves();
        let reference = Reference::new(model, if other.is_empty() { &one } else { &other }, cx)?;
        let limit = reference.careful(limit);
        let layers = self.layers(model, sites, Some(&halves[..1]))?;
        let (mut best, mut low, mut high) = ((0.0, 0.0), 1.0f64, 0.005f64); // densities: low is safe
        let mut density = 0.4f64;
        cx.progress.start("try zeros", ROUNDS);
        for _ in 0..ROUNDS {
            let mut changed = model.clone();
            for (l, thin) in layers
                .iter()
                .zip(self.thinned(&layers, 1.0 - density, WORK / ROUNDS as f64)?)
            {
                l.write(&mut changed, &thin)?;
            }
            let error = reference.error(&changed, cx)?;
            cx.progress.advance(1);
            if error <= limit {
                (best, low) = ((1.0 - density, error), density);
                if error >= NEAR * limit || self.pattern != Pattern::Free {
                    break;
                }
            } else {
                high = density;
            }
            density = (low * high).sqrt();
        }
        cx.progress.finish();
        Ok(best)
    }
}

/// `N:M`.
fn pattern(text: &str) -> Result<Pattern> {
    let (n, m) = text.split_once(':').context("no colon")?;
    let (n, m): (usize, usize) = (n.trim().parse()?, m.trim().parse()?);
    ensure!(n > 0 && n < m && m <= 64, "N from 1 to M − 1, M up to 64");
    Ok(Pattern::Of(n, m))
}

impl Sparsify {
    fn layers(&self, model: &Model, sites: &[Site], stats: Option<&[Stats]>) -> Result<Vec<Layer>> {
        let mut layers = Vec::new();
        for s in sites {
            let label = model.label(s.node);
            let named = || format!("sparsify: {label}");
            let Some(mut layer) = Layer::new(model, s, stats, self.method).with_context(named)? else {
                continue;
            };
            let ruled = |r: &Rule| r.option == "sparsity" && r.matches(&label);
            if self.options.rules().iter().any(ruled) {
                layer.own = self.options.at(&label).get_or_auto("sparsity")?;
            }
            layers.push(layer);
        }
        Ok(layers)
    }
}

impl Pass for Sparsify {
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        let sites = cx.sites(model, |site| self.refusal(model, site));
        let halves = self.measured(model, &sites, cx)?;
        let part = match (self.much, &halves) {
            (Much::Part(p), _) => p,
            (Much::Error(limit), Some(halves)) if !sites.is_empty() => {
                match self.settle(model, &sites, halves, limit, cx) {
                    Ok((part, error)) => {
                        let what = format!(
                            "{:.1} % of the weights looked at become zero: on samples that had no part, outputs err by {:.1} dB of the {:.1} dB allowed",
                            100.0 * part,
                            decibel(error),
                            decibel(limit)
                        );
                        cx.note(NoteKind::Did, String::new(), what);
                        part
                    }
                    Err(e) if e.chain().any(|c| c.is::<NotRun>()) => 0.0,
                    Err(e) => return Err(e.context("sparsify: trying the result")),
                }
            }
            (Much::Error(_), _) => {
                cx.warn("sparsify: without real data nobody knows the damage; give sparsity= to set weights to zero all the same");
                0.0
            }
        };
        let all = part > 0.0 || self.pattern != Pattern::Free && matches!(self.much, Much::Part(_));
        if all || !self.options.rules().is_empty() {
            let mut layers = self.layers(model, &sites, halves.as_ref().map(|h| &h[..]))?;
            layers.retain(|l| all || l.own.is_some());
            for (l, thin) in layers.iter().zip(self.thinned(&layers, part, WORK)?) {
                l.write(model, &thin)?;
                cx.did(model, l.site.node, l.account(model, &thin));
            }
        }
        store::account(model, self.sparse, cx)
    }
}
