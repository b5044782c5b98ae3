//! `onnxzip bench`

use crate::data::{Dataset, Preprocess, Sample};
use crate::engine::{Engine, NotRun, Session};
use crate::ir::Model;
use crate::math::timing::{quantile, ratio};
use crate::onnx;
use crate::pipeline::{Options, find_data};
use anyhow::{Result, anyhow};
use std::path::PathBuf;
use std::time::Instant;

/// Time two models side by side on the engine that verifies
#[derive(clap::Args)]
pub struct Args {
    /// Data, as for `optimize`; samples are taken in turn
    #[arg(long, value_name = "PATH")]
    calib: Option<PathBuf>,
    /// How images become inputs, as for `optimize`
    #[arg(long, value_name = "STEPS")]
    preprocess: Option<Preprocess>,
    /// How often each model runs; a tenth as often before, untimed
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..))]
    runs: u32,
    /// The reference
    a: PathBuf,
    /// The model that is compared with it
    b: PathBuf,
}

/// Runs it and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let (a, b) = (onnx::read(&args.a)?, onnx::read(&args.b)?);
    let mut options = Options::new(Vec::new());
    options.calib = args.calib.clone();
    options.preprocess = args.preprocess.clone();
    let data = find_data(&args.a, &a, &options)?;
    let engine = super::engine()?;
    let [first, second] = interleaved(&a, &b, &data, &*engine, args.runs as usize)?;
    println!(
        "{} runs of each in turn, one thread, {}; samples of {}",
        args.runs,
        engine.name(),
        data.whence()
    );
    println!(
        "{:<6} {:>10} {:>10} {:>10} {:>12}",
        "", "median", "p90", "p99", "samples/s"
    );
    for (name, times) in [("A", &first), ("B", &second)] {
        let [median, p90, p99] = [0.5, 0.9, 0.99].map(|p| quantile(times, p).unwrap_or(f64::NAN));
        let ms = |x: f64| format!("{:.3} ms", x * 1e3);
        println!(
            "{name:<6} {:>10} {:>10} {:>10} {:>12.1}",
            ms(median),
            ms(p90),
            ms(p99),
            1.0 / median
        );
    }
    if let Some((r, [low, high])) = ratio(&first, &second) {
        println!("B takes {r:.3} of A's time (95 % interval {low:.3} to {high:.3})");
    }
    Ok(0)
}

/// Seconds of each run, A and B in turn.
fn interleaved(a: &Model, b: &Model, data: &Dataset, engine: &dyn Engine, runs: usize) -> Result<[Vec<f64>; 2]> {
    let like = data.get(0)?;
    let load = |model: &Model| {
        let wanted: Vec<_> = model.main().outputs().iter().map(|p| p.value).collect();
        engine
            .load(model, &wanted, &like)
            .map_err(|NotRun(why)| anyhow!(NotRun(why)))
    };
    let sessions = [load(a)?, load(b)?];
    let mut times = [Vec::with_capacity(runs), Vec::with_capacity(runs)];
    let before = (runs / 10).max(1);
    for i in 0..before + runs {
        let sample = data.get(i % data.len())?;
        // Whoever comes second finds warmer caches: they take turns at that, too.
        for k in if i % 2 == 0 { [0, 1] } else { [1, 0] } {
            let t = timed(&*sessions[k], &sample)?;
            if i >= before {
                times[k].push(t);
            }
        }
    }
    Ok(times)
}

fn timed(session: &dyn Session, sample: &Sample) -> Result<f64> {
    let start = Instant::now();
    session.run(sample)?;
    Ok(start.elapsed().as_secs_f64())
}
