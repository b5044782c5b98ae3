//! `onnxzip bench`

use super::{engine, pair, peak::peak};
use crate::engine::NotRun;
use crate::onnx::check_target;
use crate::report::bench;
use crate::verify::{SpeedEffort, speed};
use anyhow::{Context, Result, anyhow};
use std::path::{Path, PathBuf};

/// Time two models side by side: latency, throughput, peak memory, and their ratio
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub(super) engine: engine::Args,
    /// Threads for one sample (more than one with ONNX Runtime)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// Pairs of fresh sessions: where the weights lie in memory changes the times of small models
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    sessions: u16,
    /// How often the two take turns in each; every time for at least 4 ms
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..))]
    turns: u16,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    pair: pair::Args,
}

/// Runs it and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    if let Some(path) = &args.json {
        check_target(path).context("--json")?;
    }
    let threads = usize::from(args.threads);
    let (_, _, data) = args.pair.load()?;
    let engine = args.engine.open(threads)?;
    let (samples, like) = (data.all(), data.get(0)?);
    let load = |path: &Path| {
        let session = engine.load_file(path, &like);
        session.map_err(|NotRun(why)| anyhow!(NotRun(format!("{}: {why}", path.display()))))
    };
    let (a, b) = (&args.pair.a, &args.pair.b);
    let effort = SpeedEffort {
        sessions: usize::from(args.sessions),
        blocks: usize::from(args.turns),
    };
    let speed = speed(&|| load(a), &|| load(b), &samples, effort);
    let mut speed = speed.map_err(|e| args.engine.way_out(e))?;
    (speed.engine, speed.threads) = (engine.name(), threads);
    let most = |model: &Path| peak(model, &args.engine, threads, &args.pair.data, a).ok();
    (speed.before.peak_bytes, speed.after.peak_bytes) = (most(a), most(b));
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&speed)? + "\n";
        std::fs::write(path, json).with_context(|| format!("{}", path.display()))?;
    }
    print!("{}", bench(&speed, &data.whence()));
    Ok(0)
}
