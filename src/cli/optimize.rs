//! `onnxzip optimize`

use super::engine;
use super::pair::Data;
use super::peak::peak;
use super::progress::Bar;
use super::said::{How, What};
use crate::cache::Cache;
use crate::onnx::{WriteOptions, check_target};
use crate::passes::parse_list;
use crate::pipeline::{self, Amount, Options, Targets};
use crate::report::{Baseline, Report, html, markdown, text};
use crate::search::{self, Effort};
use crate::verify::Budget;
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  onnxzip optimize --budget accuracy:0.5pt --calib samples.npz model.onnx small.onnx
  onnxzip optimize --target-ratio 4x --budget sqnr:20dB --calib samples.npz model.onnx small.onnx
  onnxzip optimize --passes simplify model.onnx small.onnx
  onnxzip optimize --passes int8 --calib samples.npz model.onnx small.onnx
  onnxzip optimize --recipe onnxzip.toml
  onnxzip optimize --passes 'prune,lowrank(error=0.01),int8(ranges=mse)' --calib samples.npz \\
      --budget top1:1%,sqnr:15dB --json report.json model.onnx small.onnx

Exit codes:
  0  the result is inside the budget (or verification was refused with --no-verify)
  1  outside the budget: no output, unless --keep
  2  bad input or usage
  3  could not verify: no output, unless --no-verify or --keep";

/// Rewrite a model into a smaller and faster one, and verify it
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    what: What,
    /// What may be lost, on held-back samples: sqnr:20dB, top1:1% (of the classes change), cosine:0.999, accuracy:0.5pt
    /// (needs labels), with @NAME for one output only, or several with commas. Default: sqnr:10dB with lossy passes,
    /// sqnr:60dB without
    #[arg(long, value_name = "SPEC")]
    budget: Option<Budget>,
    /// Most bytes of the result: 5MB, or 25%
    #[arg(long, value_name = "BYTES", conflicts_with = "target_ratio")]
    max_bytes: Option<Amount>,
    /// Most multiply-accumulate operations for one sample: 20M, or 50%
    #[arg(long, value_name = "MACS")]
    max_macs: Option<Amount>,
    /// How many times smaller the result has to be: 4x
    #[arg(long, value_name = "RATIO", value_parser = Amount::times_smaller)]
    target_ratio: Option<Amount>,
    /// How long to search for the passes: a few measurements, some ten, or some twenty and every precision
    #[arg(long, value_enum, conflicts_with = "passes")]
    preset: Option<Effort>,
    /// How long the search may go on measuring: 90s, 5m or 1h. It takes the best by then, which another machine may not have reached;
    /// the passes that the report names give the same bytes everywhere
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "passes")]
    search_time: Option<Duration>,
    /// Keep what is measured on the way in this file, for the next run with the same model and data: the result is the same,
    /// only sooner
    #[arg(long, value_name = "FILE")]
    cache: Option<PathBuf>,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report as a page that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Append the report as Markdown, for the summary of a CI job
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
    /// The --json report of an earlier run: fail when size, MACs, SQNR, accuracy or (with --bench) latency
    /// are worse than there
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// By how much they may be worse
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = percent, requires = "baseline")]
    tolerance: f64,
    #[command(flatten)]
    pub(super) engine: engine::Args,
    /// Measure latency, throughput and peak memory of both models, and put them into the report
    #[arg(long)]
    bench: bool,
    /// Most time that the result may take, in parts of the original's, as --bench measures it: 80%
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_latency: Option<f64>,
    /// Write the output even when the verdict is against it
    #[arg(long)]
    keep: bool,
    /// Let the output out unseen
    #[arg(long)]
    no_verify: bool,
    #[command(flatten)]
    how: How,
    /// Put weights into OUT.data beside the model (always done above 1.9 GB)
    #[arg(long)]
    external_data: bool,
    /// Names of inner values and of nodes without weights: short, or as they are; a search makes them short, since
    /// they are up to a third of a small file
    #[arg(long, value_enum, value_name = "NAMES")]
    names: Option<Inner>,
    /// Say what the passes did, and did not, node by node
    #[arg(short, long)]
    verbose: bool,
    /// The model
    #[arg(value_name = "IN", required_unless_present_any = ["recipe", "stats"])]
    input: Option<PathBuf>,
    /// The result; may be the same file
    #[arg(value_name = "OUT", required_unless_present_any = ["recipe", "stats"])]
    output: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration> {
    let wrong = || format!("{text:?}: write 90s, 5m or 1h");
    let text = text.trim();
    let unit = text.chars().last().with_context(wrong)?;
    let seconds = [('s', 1.0), ('m', 60.0), ('h', 3600.0)]
        .into_iter()
        .find(|u| u.0 == unit);
    let number: f64 = text.trim_end_matches(unit).trim().parse().with_context(wrong)?;
    Duration::try_from_secs_f64(number * seconds.with_context(wrong)?.1).with_context(wrong)
}

fn percent(text: &str) -> Result<f64> {
    let wrong = || format!("{text:?}: write 1%");
    let x: f64 = text.trim().trim_end_matches('%').trim().parse().with_context(wrong)?;
    ensure!(x.is_finite() && x >= 0.0, "{}", wrong());
    Ok(x / 100.0)
}

/// Names inside a model.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Inner {
    Short,
    Keep,
}

/// What the flags and the recipe ask for together; flags go first.
struct Job {
    input: PathBuf,
    output: PathBuf,
    /// How long to search; `None` when the passes are given.
    search: Option<Effort>,
    engine: engine::Args,
    options: Options,
}

impl Job {
    fn new(args: &Args) -> Result<Job> {
        let recipe = args.what.recipe()?;
        let targets = Targets {
            max_bytes: args.max_bytes.or(args.target_ratio).or(recipe.max_bytes),
            max_macs: args.max_macs.or(recipe.max_macs),
            max_latency: args.max_latency,
        };
        let budget = args.budget.clone().or(recipe.budget.clone());
        // Passes and a preset exclude each other, wherever they are said.
        let given = args.what.passes()?;
        let preset = args.preset.or(recipe.preset.filter(|_| given.is_none()));
        let given = given.or(recipe.passes.clone().filter(|_| args.preset.is_none()));
        let wishes = budget.is_some() || preset.is_some() || targets.any();
        let search = (given.is_none() && wishes).then(|| preset.unwrap_or(Effort::Balanced));
        let passes = match given {
            Some(passes) => passes,
            None => parse_list(if search.is_some() { "" } else { "simplify" })?,
        };
        let names = [
            ("IN", &args.input, &recipe.input),
            ("OUT", &args.output, &recipe.output),
        ];
        let ([input, output], stats) = args.what.files(names)?;
        let mut options = args.what.options(&args.how, passes, &recipe, stats)?;
        ensure!(
            search.is_none() || options.stats.is_empty(),
            "--stats goes with --passes: a search asks for other statistics at every step"
        );
        options.budget = budget;
        let cache = args.cache.as_deref().map(Cache::open);
        options.cache = cache.transpose().context("--cache")?.map(Arc::new);
        options.targets = targets;
        options.search_time = args.search_time;
        options.keep = args.keep;
        options.bench = args.bench || args.max_latency.is_some();
        options.layers = args.json.is_some() || args.report.is_some() || args.verbose;
        options.verify = !args.no_verify;
        options.write = WriteOptions {
            external_data: args.external_data || recipe.external_data.unwrap_or(false),
            short_names: match args.names {
                Some(names) => names == Inner::Short,
                None => recipe.short_names.unwrap_or(search.is_some()),
            },
            ..WriteOptions::default()
        };
        let read = |path| Baseline::read(path, args.tolerance).context("--baseline");
        options.baseline = args.baseline.as_deref().map(read).transpose()?;
        Ok(Job {
            input,
            output,
            search,
            engine: args.engine.or(recipe.engine.as_deref())?,
            options,
        })
    }
}

/// Runs it and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let job = Job::new(args)?;
    for (name, path) in [
        ("--json", &args.json),
        ("--report", &args.report),
        ("--summary", &args.summary),
    ] {
        if let Some(path) = path {
            check_target(path).context(name)?; // before any work is done and any output let out
        }
    }
    let engine = job.engine.open(1)?;
    let (input, output, options, bar) = (&job.input, &job.output, &job.options, Bar::new());
    let data = Data {
        calib: options.calib.clone(),
        preprocess: options.preprocess.clone(),
    };
    let most = |model: &PathBuf| peak(model, &job.engine, 1, &data, input).ok();
    let peak_before = if options.bench { most(input) } else { None };
    let report = match job.search {
        Some(effort) => search::optimize(input, output, options, effort, &*engine, &bar),
        None => pipeline::optimize(input, output, options, &*engine, &bar),
    };
    // What was measured is worth keeping, however it ended.
    options.cache.as_ref().map_or(Ok(()), |c| c.save()).context("--cache")?;
    let mut report = report.map_err(|e| job.engine.way_out(e))?;
    if let (Some(speed), true) = (&mut report.speed, report.written) {
        (speed.before.peak_bytes, speed.after.peak_bytes) = (peak_before, most(output));
    }
    write_reports(args, &report)?;
    print!("{}", text::render(&report, args.verbose));
    Ok(report.exit_code())
}

fn write_reports(args: &Args, report: &Report) -> Result<()> {
    let named = |path: &PathBuf| format!("{}", path.display());
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?).with_context(|| named(path))?;
    }
    if let Some(path) = &args.report {
        std::fs::write(path, html::render(report)).with_context(|| named(path))?;
    }
    if let Some(path) = &args.summary {
        // A job's summary has several authors.
        let mut file = std::fs::OpenOptions::new();
        let mut file = file.create(true).append(true).open(path).with_context(|| named(path))?;
        file.write_all(markdown::render(report).as_bytes())
            .with_context(|| named(path))?;
    }
    Ok(())
}
