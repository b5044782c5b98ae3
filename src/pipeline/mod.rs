//! The main job: read, rewrite pass by pass, verify, put into place, account for it.

mod calibrate;
mod choices;
mod options;
mod targets;

pub use calibrate::{Calibrated, calibrate};
pub use choices::Opened;
pub use options::Options;
pub use targets::{Amount, Targets};

use crate::calibrate::Memo;
use crate::data::{Dataset, Samples};
use crate::engine::{Engine, NotRun};
use crate::ir::{Model, check::check};
use crate::onnx;
use crate::ops::labels;
use crate::passes::{Context, Request, Rule};
use crate::progress::Progress;
use crate::report::{DataUsed, PassRun, Report, Size, credit, layer_sizes, weights};
use crate::verify::{Budget, Decisions, OutputGap, Speed, SpeedEffort, Verdict, compare, judge, layers, speed};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

/// Samples that are made up when there are no real ones.
const SYNTHETIC_SAMPLES: usize = 16;
/// As many as leave one to verify with: an identity that is wrong is wrong on almost every input.
const SAMPLES_FOR_IDENTITIES: usize = 4;

/// The result has so many bytes, which is not within [`Options::bytes`].
#[derive(Clone, Copy, Debug)]
pub struct OtherSize(pub u64);

impl std::fmt::Display for OtherSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the result has {} bytes, which is not what was looked for", self.0)
    }
}
impl std::error::Error for OtherSize {}

/// Rewrites the model in `input` into `output`, which may be the same file.
///
/// The output is written to a temporary file and renamed only when the verdict allows it; [`Report::written`] says
/// whether it was.
///
/// # Errors
/// When a file or the request is bad. An engine that cannot run the model is not an error but [`Verdict::NotRun`], except
/// where a pass needs it: then [`NotRun`] is in the chain.
pub fn optimize(
    input: &Path,
    output: &Path,
    options: &Options,
    engine: &dyn Engine,
    progress: &dyn Progress,
) -> Result<Report> {
    let start = Instant::now();
    onnx::check_target(output)?;
    let mut model = onnx::read(input)?;
    let original = model.clone();
    let data = find_data(input, &original, options)?;
    let mut report =
        rewrite(&mut model, &data, options, engine, progress).with_context(|| format!("{}", input.display()))?;
    report.input = input.display().to_string();
    report.output = output.display().to_string();
    report.before.bytes = onnx::size_on_disk(input, &original)?;
    let staged = onnx::write(&model, output, options.write)?;
    report.after.bytes = staged.size();
    if report.after.bytes > report.before.bytes {
        let grown = report.after.bytes - report.before.bytes;
        report
            .warnings
            .push(format!("the output is {grown} bytes larger than the input"));
    }
    if options.bench && (report.may_leave() || options.keep) {
        match side_by_side(&original, &model, &data, engine) {
            Ok(speed) => report.speed = Some(speed),
            Err(e) => report.warnings.push(format!("speed was not measured: {e:#}")),
        }
    }
    let missed = options.targets.missed(&report.before, &report.after);
    let missed = missed.or_else(|| options.targets.too_slow(report.speed.as_ref()));
    let missed = missed.or_else(|| options.baseline.as_ref()?.worse(&report));
    if let (true, Some(missed)) = (report.may_leave(), missed) {
        report.verdict = Verdict::Outside(missed);
        report.unverified = false;
    }
    if options.keep || report.may_leave() {
        staged.commit()?;
        report.written = true;
    }
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

/// Times both models on the engine.
fn side_by_side(original: &Model, changed: &Model, data: &Dataset, engine: &dyn Engine) -> Result<Speed> {
    let like = data.get(0)?;
    let load = |model: &Model| {
        let outputs = labels::outputs(model);
        engine.load(model, &outputs, &like).map_err(anyhow::Error::new)
    };
    let (a, b) = (|| load(original), || load(changed));
    let mut speed = speed(&a, &b, &data.all(), SpeedEffort::default())?;
    speed.engine = engine.name();
    Ok(speed)
}

/// Rewrites and verifies a model in memory. The result stands in `model`; the caller acts on [`Report::verdict`].
///
/// # Errors
/// As [`optimize`]; [`OtherSize`].
pub fn rewrite(
    model: &mut Model,
    data: &Dataset,
    options: &Options,
    engine: &dyn Engine,
    progress: &dyn Progress,
) -> Result<Report> {
    crate::analysis::legal::check(model)?;
    let Some(opened) = opened(model, data, options, engine, progress)? else {
        return rewrite_plain(model, data, options, engine, progress);
    };
    *model = opened.model.clone();
    let mut report = rewrite_plain(model, &opened.data, options, engine, progress)?;
    let chosen = opened.close(model)?;
    if !report.gaps.is_empty() {
        let (held, threads) = (opened.data.split().1, options.threads);
        let measured = (report.verdict, &mut report.gaps[..]);
        report.verdict = opened.judge((model, &chosen), &held, (engine, threads), measured)?;
    }
    Ok(report)
}

/// The model opened where it chooses inside, if anything of it will be compared.
///
/// # Errors
/// As [`Opened::of`].
pub fn opened(
    model: &Model,
    data: &Dataset,
    options: &Options,
    engine: &dyn Engine,
    progress: &dyn Progress,
) -> Result<Option<Opened>> {
    let lossy = options.requests_for(model).iter().any(|r| r.info.lossy);
    match options.verify || lossy {
        true => Opened::of(model, data, (engine, options.threads), progress),
        false => Ok(None),
    }
}

/// As [`rewrite`], for a model that nothing is chosen in, or that is opened there.
fn rewrite_plain(
    model: &mut Model,
    data: &Dataset,
    options: &Options,
    engine: &dyn Engine,
    progress: &dyn Progress,
) -> Result<Report> {
    let original = model.clone();
    let requests = options.requests_for(&original);
    let lossy = requests.iter().any(|r| r.info.lossy);
    let (calib, held) = data.split();
    let mut report = Report::new(engine.name());
    let dims = data.dims()?;
    report.before = Size::of(&original, &dims);
    report.data = DataUsed {
        origin: data.origin.clone(),
        preprocess: data.preprocess.clone(),
        synthetic: data.synthetic,
        calibration: calib.len(),
        held_back: held.len(),
    };
    if lossy && data.synthetic {
        report.warnings.push(
            "no data were given, so made-up numbers were used: ranges and errors say nothing about real inputs; give real ones with --calib".into(),
        );
    }
    if lossy && !data.synthetic && data.len() < 4 {
        let n = data.len();
        report
            .warnings
            .push(format!("only {n} sample(s): the verdict rests on one of them"));
    }
    if let Some(budget) = &options.budget {
        check_budget(budget, &original, data)?;
    }
    let usual = if lossy { Budget::lossy } else { Budget::lossless };
    report.budget = options.budget.clone().unwrap_or_else(usual);
    let memo = memo(&original, data, options, engine)?;
    let applied = apply(model, &requests, &calib, options, (engine, progress), memo.as_ref())?;
    if options.bytes != (0..=u64::MAX) {
        let bytes = onnx::written_len(model, options.write)?;
        ensure!(options.bytes.contains(&bytes), OtherSize(bytes));
    }
    if let Some(memo) = &memo {
        memo.all_answered()?;
        report.warnings.extend(memo.warnings());
    }
    report.rules = options.rules.clone();
    for glob in unmatched(&options.rules, [&original, model]) {
        let what = format!("recipe: no node is called {glob:?}, so what a [[layer]] says of it had no effect");
        report.warnings.push(what);
    }
    report.passes = applied.runs;
    (report.weights_before, report.weights_after) = (weights(&original), weights(model));
    report.layer_sizes = layer_sizes(&original, model, &dims);
    credit(&mut report.layer_sizes, &report.passes);
    report.seed = options.seed;
    report.external_data = options.write.external_data;
    report.short_names = options.write.short_names;
    report.after = Size::of(model, &dims);
    if !options.verify {
        report.verdict = Verdict::NotRun("--no-verify was given: nobody looked at the output".into());
        report.unverified = true;
        return Ok(report);
    }
    if data.synthetic
        && let Err(e) = data.get(0)
    {
        report.verdict = Verdict::NotRun(format!("{e:#}"));
        return Ok(report);
    }
    let mut trial = Trial {
        original: &original,
        held: &held,
        decisions: None,
        options,
        engine,
        progress,
    };
    let measured = trial
        .look_at_decisions(&report.budget, data)
        .and_then(|()| trial.gaps(model));
    match measured {
        Ok(gaps) => {
            report.verdict = judge(&gaps, &report.budget);
            if options.part < 1.0 {
                report.verdict = close(report.verdict, report.budget.risked(&gaps), options.part);
            }
            report.gaps = gaps;
        }
        Err(e) => match e.downcast_ref::<NotRun>() {
            Some(NotRun(why)) => report.verdict = Verdict::NotRun(why.clone()),
            None => return Err(e.context("verification")),
        },
    }
    let refused = matches!(report.verdict, Verdict::Outside(_));
    let explained = match refused {
        true => options.part >= 1.0,
        false => options.layers && lossy,
    };
    if refused && explained {
        report.culprit = trial.culprit(&applied.snapshots, &report.budget)?;
    }
    if explained && !report.gaps.is_empty() {
        // An account, not the verdict: what cannot be had is left out.
        report.layers = layers(&original, model, &held, engine, options.threads).unwrap_or_default();
    }
    Ok(report)
}

/// The verdict, or that too much of the budget is used up.
fn close(verdict: Verdict, used: Option<f64>, part: f64) -> Verdict {
    match (&verdict, used) {
        (Verdict::Within, Some(used)) if used > part => Verdict::Outside(format!(
            "{:.0} % of the budget are used up, too much for so few samples",
            100.0 * used
        )),
        _ => verdict,
    }
}

/// What was measured before, when files are named.
fn memo(original: &Model, data: &Dataset, options: &Options, engine: &dyn Engine) -> Result<Option<Memo>> {
    let spelled = options.spelled();
    let open = || Memo::open(&options.stats, original, data.len(), &engine.name(), &spelled);
    (!options.stats.is_empty()).then(open).transpose().context("--stats")
}

/// The names of rules that no node of these models has.
fn unmatched(rules: &[Rule], models: [&Model; 2]) -> BTreeSet<String> {
    let matched = |r: &Rule| {
        models
            .iter()
            .any(|m| m.node_ids().into_iter().any(|n| r.matches(&m.label(n))))
    };
    rules.iter().filter(|r| !matched(r)).map(|r| r.glob.clone()).collect()
}

/// Whether a budget can be about this model and these data.
///
/// # Errors
/// When it names an output that the model does not have, or needs labels and there are none.
pub fn check_budget(budget: &Budget, model: &Model, data: &Dataset) -> Result<()> {
    let names: Vec<&str> = model.main().outputs().iter().map(|p| p.name()).collect();
    if let Some(unknown) = budget.unknown_output(&names) {
        bail!(
            "--budget: there is no output {unknown:?}; there are: {}",
            names.join(", ")
        );
    }
    if budget.needs_labels() {
        data.labels().context("--budget accuracy")?;
    }
    Ok(())
}

/// What passes did.
pub struct Applied {
    /// Their account.
    pub runs: Vec<PassRun>,
    /// Whether each of them would give the same for a larger error.
    pub exhausted: Vec<bool>,
    /// The model as it was after each pass that changed it.
    snapshots: Vec<(String, Model)>,
}

/// Runs passes, which may look at these samples.
///
/// # Errors
/// When a request is bad, or the engine cannot run the model where a pass needs it; [`crate::calibrate::Stopped`], when the memo
/// is one that measures, and has.
pub fn apply(
    model: &mut Model,
    requests: &[Request],
    samples: &Samples,
    options: &Options,
    (engine, progress): (&dyn Engine, &dyn Progress),
    memo: Option<&Memo>,
) -> Result<Applied> {
    let (mut runs, mut exhausted, mut snapshots) = (Vec::new(), Vec::new(), Vec::new());
    for request in requests {
        let start = Instant::now();
        let revision = model.revision();
        let mut cx = Context {
            engine,
            samples,
            threads: options.threads,
            seed: options.seed,
            progress,
            memo,
            cache: options.cache.as_deref(),
            objects: options.objects.as_ref(),
            notes: Vec::new(),
            charts: Vec::new(),
            exhausted: false,
        };
        let named = || format!("pass {}", request.info.name);
        let pass = request.build(model).with_context(named)?;
        memo.iter().for_each(|m| m.enter(request.info.name));
        pass.run(model, &mut cx).with_context(named)?;
        memo.map_or(Ok(()), Memo::go_on)?; // the pass may have made do without statistics
        model.sweep();
        check(model).with_context(|| format!("pass {} broke the model; please report it", request.info.name))?;
        let changed = model.revision() != revision;
        if changed {
            snapshots.push((request.spelled(), model.clone()));
        }
        exhausted.push(cx.exhausted);
        runs.push(PassRun {
            pass: request.spelled(),
            changed,
            seconds: start.elapsed().as_secs_f64(),
            notes: cx.notes,
            charts: cx.charts,
        });
    }
    Ok(Applied {
        runs,
        exhausted,
        snapshots,
    })
}

/// What is needed to try a changed model on held-back samples.
struct Trial<'a> {
    original: &'a Model,
    held: &'a Samples,
    decisions: Option<Decisions>,
    options: &'a Options,
    engine: &'a dyn Engine,
    progress: &'a dyn Progress,
}

impl Trial<'_> {
    /// Looks at the original's decisions on all samples, where the budget is about such: passes had no part in them.
    fn look_at_decisions(&mut self, budget: &Budget, data: &Dataset) -> Result<()> {
        if budget.about_decisions() {
            let (all, threads) = (data.all(), self.options.threads);
            self.decisions = Some(Decisions::of(self.original, &all, self.engine, threads, self.progress)?);
        }
        Ok(())
    }

    fn gaps(&self, model: &Model) -> Result<Vec<OutputGap>> {
        let threads = self.options.threads;
        let mut gaps = compare(self.original, model, self.held, self.engine, threads, self.progress)?;
        if let Some(decisions) = &self.decisions {
            decisions.refine(&mut gaps);
        }
        Ok(gaps)
    }

    /// The first pass after which the budget no longer held.
    fn culprit(&self, snapshots: &[(String, Model)], budget: &Budget) -> Result<Option<String>> {
        for (pass, model) in snapshots {
            if let Verdict::Outside(reason) = judge(&self.gaps(model)?, budget) {
                return Ok(Some(format!("after pass {pass}: {reason}")));
            }
        }
        Ok(None)
    }
}

/// The samples that the options ask for.
///
/// # Errors
/// When data were named that cannot be read or do not fit the model.
pub fn find_data(model_path: &Path, model: &Model, options: &Options) -> Result<Dataset> {
    if let Some(path) = &options.calib {
        return Dataset::open_with(path, options.preprocess.as_ref(), model);
    }
    ensure!(
        options.preprocess.is_none(),
        "a preprocess line is about images, and no data were given: name their folder with --calib"
    );
    let identities = !options.passes.is_empty() && options.requests().iter().all(|r| !r.info.lossy);
    let count = if identities {
        SAMPLES_FOR_IDENTITIES
    } else {
        SYNTHETIC_SAMPLES
    };
    let mut made_up = Dataset::synthetic(model, options.seed, count);
    match Dataset::beside(model_path, model) {
        Ok(Some(data)) => return Ok(data),
        Ok(None) => {}
        // Nobody asked for them.
        Err(e) => made_up.origin += &format!("; the data beside the model cannot be used ({e:#})"),
    }
    Ok(made_up)
}
