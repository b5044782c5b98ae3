//! `onnxzip optimize`

use super::progress::Bar;
use crate::onnx::{WriteOptions, check_target};
use crate::passes::parse_list;
use crate::pipeline::{self, Options};
use crate::report::text;
use crate::verify::Budget;
use anyhow::{Context, Result};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  onnxzip optimize --passes simplify model.onnx small.onnx
  onnxzip optimize --passes int8 --calib samples.npz model.onnx small.onnx
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
    /// Passes in order, with options: prune,lowrank(rank=32),int8. `simplify` always runs first, see --no-simplify.
    /// `onnxzip passes` lists them
    #[arg(long, default_value = "simplify", value_name = "LIST")]
    passes: String,
    /// Data to calibrate and verify with: an .npz (keys are input names, the first axis counts samples), an .npy, or a
    /// folder with test_data_set_N/input_K.pb. Default: such folders beside the model, else made-up numbers
    #[arg(long, value_name = "PATH")]
    calib: Option<PathBuf>,
    /// What may be lost, on held-back samples: sqnr:20dB, top1:1%, cosine:0.999, or several with commas. Default:
    /// sqnr:10dB with lossy passes, sqnr:60dB without
    #[arg(long, value_name = "SPEC")]
    budget: Option<Budget>,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the output even when the verdict is against it
    #[arg(long)]
    keep: bool,
    /// Let the output out unseen
    #[arg(long)]
    no_verify: bool,
    /// Do not run `simplify` first
    #[arg(long)]
    no_simplify: bool,
    /// Raise the default operator set to N before all passes: runtimes and passes may need a newer one
    #[arg(long, value_name = "N")]
    opset: Option<i64>,
    /// Seed of everything random
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Threads; the output does not depend on it. Default: all processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Put weights into OUT.data beside the model (always done above 1.9 GB)
    #[arg(long)]
    external_data: bool,
    /// Say what the passes did, and did not, node by node
    #[arg(short, long)]
    verbose: bool,
    /// The model
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The result; may be the same file
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

/// Runs it and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let mut passes = parse_list(&args.passes).context("--passes")?;
    if let Some(to) = args.opset {
        let raise = parse_list(&format!("opset(to={to})")).context("--opset")?;
        passes.splice(0..0, raise);
    }
    let mut options = Options::new(passes);
    options.simplify_first = !args.no_simplify;
    options.calib = args.calib.clone();
    options.budget = args.budget;
    options.keep = args.keep;
    options.verify = !args.no_verify;
    options.seed = args.seed;
    options.threads = args.threads.map_or(options.threads, usize::from);
    options.write = WriteOptions {
        external_data: args.external_data,
        ..WriteOptions::default()
    };
    if let Some(path) = &args.json {
        check_target(path).context("--json")?; // before any work is done and any output let out
    }
    let engine = super::engine()?;
    let report = pipeline::optimize(&args.input, &args.output, &options, &*engine, &Bar::new())?;
    if let Some(path) = &args.json {
        std::fs::write(path, report.json()?).with_context(|| format!("{}", path.display()))?;
    }
    print!("{}", text::render(&report, args.verbose));
    Ok(report.exit_code())
}
