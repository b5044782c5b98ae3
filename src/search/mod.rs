//! Which passes, and how strong: the smallest result within a budget.
//!
//! The calibration samples are parted once more: passes look at two thirds, results are measured on the rest (the tuning
//! samples); the held-back ones are asked at the end only. The budget's use `u` of a result is what it loses on the tuning
//! samples as a part of what may be lost ([`Budget::risked`]). The search
//!
//! 1. takes the first precision (the passes that are [`Part::Precision`](crate::passes::Part::Precision)) that fits alone, with weights in 8 bits and in float16
//!    where it leaves many as they were; one that can go further (2.) and has room for it before a slightly smaller one that cannot;
//! 2. looks for the largest error `e` with `u ≤ FIT` (less where samples are few) that a precision which can go further
//!    for an error (fewer bits in `int8` and `weights`) may make. Noise adds up by its power, so `P(u) = P(u₀) + c·e` predicts the next `e` from the last one
//!    (`u₀`: precision alone; `P(u) = u` where the budget is about powers, `u²` where it is about decisions); a bracket keeps it honest;
//! 3. puts the structural passes ([`Part::Structure`](crate::passes::Part::Structure)) in front of it and does the same, with one `e` for all, and then with each structural pass alone:
//!    they compete for the same weights. What they leave too small to gain by integers is stored in few bits. Storage in few bits with floats at run time is tried as well: it may be smaller. What saves next to nothing is left out, and what does not fit and is not smaller is given up;
//! 4. gives the smallest that fits (of results of about the same size one that computes in integers, or loses least), and more careful ones where
//!    the held-back samples disagree, or where it comes too close to the budget for so few of them; when that does not end, the
//!    smallest that fits by the tuning samples and those together.
//!
//! With targets ([`crate::pipeline::Targets`]) the smallest `e` that meets them is looked for instead: the best result of
//! that size. The winner is made anew from all calibration samples, no bolder than it was measured; its list of passes alone gives
//! the same bytes again, if names inside are written in the same way.

mod known;
mod made;
mod order;
mod plan;
mod precision;
mod strength;

pub use plan::{Effort, Plan};

use crate::cache::Key;
use crate::data::Samples;
use crate::engine::{Engine, NotRun};
use crate::ir::{DType, Model, Tensor};
use crate::onnx;
use crate::pipeline::{self, Options};
use crate::progress::Progress;
use crate::report::{Report, Size, Tried};
use crate::verify::{Budget, Decisions, compare, worst_db};
use anyhow::{Context, Result};
use order::{Candidate, order};
use plan::{Knob, REST, further, knobs};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The part of the budget that may be used up on the tuning samples: the held-back ones differ.
const FIT: f64 = 0.9;
/// Less of it when samples are few: what they lose is known from `n` of them up to about this, divided by `√n`; of decisions,
const DOUBT: f64 = 2.5;
/// and of powers, which differ from sample to sample, too;
const DOUBT_OF_POWERS: f64 = 1.2;
/// but of powers this part may always be used.
const LEAST: f64 = 0.5;
/// A structural pass that saves less than this of bytes and multiply-adds is not searched on its own, nor with less error.
const LITTLE: f64 = 0.03;

/// Looks for the smallest result within the budget and writes it, as [`pipeline::optimize`] does with passes that are given.
/// [`Options::passes`] are run before all others.
///
/// # Errors
/// As [`pipeline::optimize`]; an engine that cannot run the model ends the search.
pub fn optimize(
    input: &Path,
    output: &Path,
    options: &Options,
    effort: Effort,
    engine: &dyn Engine,
    progress: &dyn Progress,
) -> Result<Report> {
    let start = Instant::now();
    onnx::check_target(output)?;
    let mut original = onnx::read(input)?;
    crate::analysis::legal::check(&original)?;
    let mut options = options.clone();
    let budget = options.budget.get_or_insert_with(Budget::lossy).clone();
    let mut data = pipeline::find_data(input, &original, &options)?;
    pipeline::check_budget(&budget, &original, &data)?;
    if let Some(opened) = pipeline::opened(&original, &data, &options, engine, progress)? {
        (original, data) = (opened.model, opened.data);
    }
    let calib = data.split().0;
    let [fit, tune] = calib.parted();
    let dims = data.dims()?;
    options.cache.get_or_insert_default();
    options.objects = Some(Arc::default());
    let key = known::key(&original, &budget, [&fit, &tune], &options, engine)?;
    let mut search = Search {
        before: Size {
            bytes: onnx::size_on_disk(input, &original)?,
            ..Size::of(&original, &dims)
        },
        original: &original,
        fit,
        tune,
        dims,
        decisions: OnceCell::new(),
        calib: &calib,
        key,
        budget,
        effort,
        options: &options,
        engine,
        progress,
        chain: Vec::new(),
        tried: Vec::new(),
        start,
        stopped: false,
    };
    search.run().with_context(|| format!("{}", input.display()))?;
    let (k, mut report) = search.verified([input, output], data.split().1.len())?;
    search.tried[k].tried.chosen = true;
    report.tuning_samples = search.tune.len();
    if search.stopped {
        let why = "the search ended for its time (--search-time): a smaller result may be within the budget";
        report.warnings.push(why.into());
    }
    report.search = search.tried.into_iter().map(|m| m.tried).collect();
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

/// The part of a budget that may be used up on so many samples.
fn usable(budget: &Budget, samples: usize) -> f64 {
    let part = |doubt: f64| 1.0 - doubt / (samples.max(1) as f64).sqrt();
    match budget.about_decisions() {
        true => part(DOUBT).max(0.0),
        false => part(DOUBT_OF_POWERS).max(LEAST),
    }
}

struct Search<'a> {
    original: &'a Model,
    before: Size,
    fit: Samples,
    tune: Samples,
    dims: BTreeMap<String, Vec<usize>>,
    budget: Budget,
    /// Of the original on all calibration samples.
    decisions: OnceCell<Decisions>,
    calib: &'a Samples,
    /// Tells all that results depend on but the passes.
    key: Option<Key>,
    effort: Effort,
    options: &'a Options,
    engine: &'a dyn Engine,
    progress: &'a dyn Progress,
    /// The last result, pass by pass.
    chain: Vec<Made>,
    tried: Vec<Measured>,
    start: Instant,
    /// It ended for its time.
    stopped: bool,
}

/// What a pass made.
struct Made {
    /// The pass, as it is written.
    pass: String,
    model: Model,
    /// It would make the same of a larger error.
    exhausted: bool,
}

/// A result that was measured.
struct Measured {
    plan: Plan,
    tried: Tried,
    /// What it used of the budget on the held-back samples, where these refused it.
    held: Option<f64>,
    /// By structural pass: the part of the bytes or of the multiply-adds that it saved, the larger of the two.
    saved: BTreeMap<&'static str, f64>,
    /// A larger error would give the same.
    exhausted: bool,
    /// The part of its bytes that are weights in float32.
    floats: f64,
}

impl Measured {
    /// Whether a structural pass ran and saved next to nothing.
    fn idle(&self, pass: &str) -> bool {
        self.saved.get(pass).is_some_and(|part| *part < LITTLE)
    }
}

impl Search<'_> {
    /// The part of the budget that may be used up on the tuning samples.
    fn fit(&self) -> f64 {
        FIT * usable(&self.budget, self.tune.len())
    }

    /// Whether a result may be taken, as far as the tuning samples tell.
    fn fits(&self, t: &Tried) -> bool {
        t.refused.is_none() && t.used <= self.fit()
    }

    /// Whether the time is over after which nothing more is measured.
    fn late(&mut self) -> bool {
        self.stopped |= self
            .options
            .search_time
            .is_some_and(|most| self.start.elapsed() >= most);
        self.stopped
    }

    /// Measures as many results as the effort and the time allow.
    fn run(&mut self) -> Result<()> {
        let (precision, base) = self.precision()?;
        if base > self.fit() && precision.is_some() || self.effort == Effort::Fast && !self.options.targets.any() {
            return Ok(());
        }
        // All passes of a plan err alike, and what fits one of them leaves each of several a part.
        let mut sum = self.first_error(base);
        for (round, part) in self.parts(precision.as_deref()).into_iter().enumerate() {
            if self.late() {
                break;
            }
            if round > 0 && self.idle(&part) {
                continue;
            }
            let start = sum / part.takers() as f64;
            let left = self.effort.most().saturating_sub(self.tried.len());
            let best = self.strength(&part, base, start, self.effort.probes().min(left))?;
            sum = best.map_or(sum, |e| e * part.takers() as f64);
        }
        Ok(())
    }

    /// Whether the structural passes of a part have saved next to nothing wherever they ran.
    fn idle(&self, part: &Plan) -> bool {
        let Some(one) = part.only() else { return false };
        let mut ran = self.tried.iter().filter(|m| m.saved.contains_key(one)).peekable();
        ran.peek().is_some() && ran.all(|m| m.idle(one))
    }

    /// What is searched, in turn: all together, then what leaves something out, since all compete for the same weights.
    fn parts(&self, precision: Option<&str>) -> Vec<Plan> {
        let knobs = knobs();
        let plan = |structure: &[Knob]| Plan::new(structure, 0.0, precision);
        let alone = knobs.chunks(1).filter(|_| knobs.len() > 1);
        match precision.is_some_and(|p| further(p) > 0) {
            false => std::iter::once(&knobs[..]).chain(alone).map(plan).collect(),
            true => {
                // With a target the boldest first: less might not reach it.
                let mut bold = vec![&[][..], &knobs[..]];
                if self.options.targets.any() {
                    bold.reverse();
                }
                let bold = bold.into_iter().chain(alone.clone());
                let plain = std::iter::once(&knobs[..]).chain(alone);
                // What computes in integers errs by that, too: what only stores them may store more in few bits, but runs no faster.
                let stored = REST.iter().filter(|p| further(p) > 0 && precision != Some(p));
                let stored = stored.map(|p| Plan::new(&[], 0.0, Some(p)).further());
                let more = plain.map(plan).filter(|_| self.effort == Effort::Smallest);
                let mut all: Vec<Plan> = bold.map(|s| plan(s).further()).chain(more).collect();
                all.splice(2..2, stored);
                all
            }
        }
    }

    /// Runs the passes of a plan on the fitting samples, measures the result on the tuning samples, and gives its place.
    fn measure(&mut self, plan: Plan) -> Result<usize> {
        let known = self.tried.iter().position(|m| m.plan == plan);
        if let Some(k) = known {
            return Ok(k);
        }
        let start = Instant::now();
        let mut measured = match self.known(&plan) {
            // What the engine cannot run is nothing to take; the original itself it must run.
            Err(e) if plan.weaker(1.0).is_some() && e.chain().any(|c| c.is::<NotRun>()) => {
                let tried = Tried {
                    passes: plan.to_string(),
                    bytes: self.before.bytes,
                    used: f64::INFINITY,
                    sqnr_db: f64::NAN,
                    refused: Some(format!("{e:#}")),
                    ..Tried::default()
                };
                self.measured(&plan, tried)
            }
            other => other?,
        };
        measured.tried.seconds = start.elapsed().as_secs_f64();
        self.tried.push(measured);
        Ok(self.tried.len() - 1)
    }

    fn looked_at(&mut self, plan: &Plan) -> Result<Tried> {
        let model = self.made(plan)?;
        let (threads, engine) = (self.options.threads, self.engine);
        let mut gaps = compare(self.original, &model, &self.tune, engine, threads, self.progress)?;
        if self.budget.about_decisions() {
            self.decisions()?.refine(&mut gaps);
        }
        Ok(Tried {
            passes: plan.to_string(),
            bytes: onnx::written_len(&model, self.options.write)?,
            macs: Size::of(&model, &self.dims).macs,
            used: self.budget.risked(&gaps).unwrap_or(f64::INFINITY),
            sqnr_db: worst_db(&gaps).unwrap_or(f64::INFINITY),
            ..Tried::default()
        })
    }

    fn decisions(&self) -> Result<&Decisions> {
        if let Some(known) = self.decisions.get() {
            return Ok(known);
        }
        let (engine, threads) = (self.engine, self.options.threads);
        let made = Decisions::of(self.original, self.calib, engine, threads, self.progress)?;
        Ok(self.decisions.get_or_init(|| made))
    }

    /// The model after the passes of a plan; those that it shares with the last plan are not run again.
    fn made(&mut self, plan: &Plan) -> Result<Model> {
        let mut first = self.options.clone();
        first.passes = plan.requests(&self.options.passes)?;
        let requests = first.requests_for(self.original);
        let same = self
            .chain
            .iter()
            .zip(&requests)
            .take_while(|(made, r)| made.pass == r.spelled());
        self.chain.truncate(same.count());
        for request in &requests[self.chain.len()..] {
            let mut model = self.chain.last().map_or(self.original, |made| &made.model).clone();
            let one = std::slice::from_ref(request);
            let applied = pipeline::apply(
                &mut model,
                one,
                &self.fit,
                self.options,
                (self.engine, self.progress),
                None,
            )?;
            self.chain.push(Made {
                pass: request.spelled(),
                model,
                exhausted: applied.exhausted.contains(&true),
            });
        }
        Ok(self.chain.last().map_or(self.original, |made| &made.model).clone())
    }

    /// What each structural pass of the last plan saved.
    fn saved(&self) -> BTreeMap<&'static str, f64> {
        let cost = |model: &Model| {
            let macs = Size::of(model, &self.dims).macs.unwrap_or(0);
            [onnx::encoded_len(model).unwrap_or(0) as f64, macs as f64]
        };
        let all = std::iter::once(self.original).chain(self.chain.iter().map(|made| &made.model));
        let of = |(Made { pass, model: after, .. }, before): (&Made, &Model)| {
            let (name, _) = knobs().into_iter().find(|k| pass.split('(').next() == Some(k.0))?;
            let part = |(b, a): (f64, f64)| if b > 0.0 { 1.0 - a / b } else { 0.0 };
            let parts = cost(before).into_iter().zip(cost(after)).map(part);
            Some((name, parts.fold(0.0, f64::max)))
        };
        self.chain.iter().zip(all).filter_map(of).collect()
    }

    /// Whether a larger error would change nothing of the last result, which is that of a plan.
    fn exhausted(&self, plan: &Plan) -> bool {
        let made: Vec<&Made> = self.chain.iter().filter(|made| plan.takes(&made.pass)).collect();
        !made.is_empty() && made.iter().all(|made| made.exhausted)
    }

    /// The part of the last result's bytes that are weights in float32, not biases or scales.
    fn floats(&self) -> f64 {
        let model = self.chain.last().map_or(self.original, |made| &made.model);
        let weights = model.values().filter_map(|(_, v)| v.tensor());
        let matrices = weights.filter(|t| t.dtype() == DType::Float && t.dims().len() > 1);
        let bytes = matrices.map(Tensor::byte_len);
        let all = onnx::encoded_len(model).unwrap_or(0).max(1);
        bytes.sum::<usize>() as f64 / all as f64
    }

    /// What was measured, the best first.
    fn order(&self) -> Vec<usize> {
        let all = self.tried.iter().map(|m| Candidate {
            tried: &m.tried,
            met: self.misses(&m.tried).is_none(),
            integers: m.plan.in_integers(),
        });
        let all: Vec<Candidate> = all.collect();
        order(&all, (self.options.targets.any(), self.fit()))
    }

    fn best(&self) -> usize {
        self.order()[0] // run() measures at least one
    }

    /// The target that a result misses.
    fn misses(&self, t: &Tried) -> Option<String> {
        let size = Size {
            bytes: t.bytes,
            macs: t.macs,
            ..Size::default()
        };
        self.options.targets.missed(&self.before, &size)
    }
}
