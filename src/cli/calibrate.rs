//! `onnxzip calibrate`

use super::engine;
use super::progress::Bar;
use super::said::{How, What};
use crate::calibrate::{Shard, again};
use crate::pipeline::{Calibrated, calibrate};
use crate::report::text::bytes;
use anyhow::{Context, Result};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  onnxzip calibrate --passes int8 --calib samples.npz --shard 3/8 model.onnx -o part3.stats
  onnxzip optimize --passes int8 --calib samples.npz --stats part?.stats model.onnx small.onnx

Exit codes:
  0  a file was written, or the files given answer everything that these passes ask
  2  bad input or usage
  3  the engine cannot run the model";

/// Measure a part of the samples, for `optimize --stats`: machines share the work, the result is the same bytes
///
/// Every machine needs the model, all data and the same passes. Where a later pass asks about what an earlier one made,
/// there are several rounds: give the files of all shards so far with --stats. See docs/calibrate.md
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    what: What,
    /// Which part of the samples: 3/8 is the third of eight. At most sixteen parts have samples
    #[arg(long, value_name = "K/N", default_value_t = Shard::ALL)]
    shard: Shard,
    #[command(flatten)]
    pub(super) engine: engine::Args,
    #[command(flatten)]
    how: How,
    /// The statistics
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// The model
    #[arg(value_name = "MODEL", required_unless_present_any = ["recipe", "stats"])]
    model: Option<PathBuf>,
}

/// Runs it and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let recipe = args.what.recipe()?;
    let ([model], stats) = args.what.files([("MODEL", &args.model, &recipe.input)])?;
    let passes = args.what.passes()?.or(recipe.passes.clone());
    let passes = passes.context("name the passes that will need statistics: --passes int8")?;
    let options = args.what.options(&args.how, passes, &recipe, stats)?;
    let chosen = args.engine.or(recipe.engine.as_deref())?;
    let engine = chosen.open(1)?;
    let done = calibrate(&model, &args.out, args.shard, &options, &*engine, &Bar::new());
    match done.map_err(|e| chosen.way_out(e))? {
        Calibrated::Wrote(m) => println!(
            "{}{}: shard {} measured {} of {} samples; wrote {}, {}",
            m.pass,
            again(m.before),
            args.shard,
            m.samples,
            m.of,
            args.out.display(),
            bytes(m.bytes)
        ),
        Calibrated::Complete => println!("nothing is left to measure: no file was written"),
    }
    Ok(0)
}
