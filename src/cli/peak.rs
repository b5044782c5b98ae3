//! The most memory that running a model takes: a process of its own loads the file, runs a few samples and says what the
//! system counted (`VmHWM` of `/proc/self/status`, so on Linux only). The binary and the engine's library are in it.

use super::engine;
use super::pair::Data;
use crate::onnx;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// As often the model runs: the first run allocates, the second settles.
const RUNS: usize = 3;

/// Load a model, run it, and print the peak memory in bytes
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    engine: engine::Args,
    #[command(flatten)]
    data: Data,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Where the data are looked for when none are named
    #[arg(long)]
    beside: PathBuf,
    model: PathBuf,
}

/// Runs it and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let sample = {
        let like = onnx::read(&args.model)?;
        args.data.find(&args.beside, &like)?.get(0)?
    };
    let engine = args.engine.open(args.threads)?;
    let session = engine.load_file(&args.model, &sample)?;
    for _ in 0..RUNS {
        session.run(&sample)?;
    }
    println!("{}", high_water().context("the system does not say")?);
    Ok(0)
}

fn high_water() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// The most memory that a model takes, in bytes. `beside`: where data are looked for when none are named.
///
/// # Errors
/// When the process does not end well, with what it said.
pub fn peak(model: &Path, engine: &engine::Args, threads: usize, data: &Data, beside: &Path) -> Result<u64> {
    let mut child = Command::new(std::env::current_exe()?);
    child.arg("peak").args(engine.to_args());
    child.args(["--threads", &threads.to_string()]);
    if let Some(path) = &data.calib {
        child.arg("--calib").arg(path);
    }
    if let Some(line) = &data.preprocess {
        child.arg("--preprocess").arg(line.to_string());
    }
    child
        .arg("--beside")
        .arg(beside)
        .arg("--")
        .arg(model)
        .stdin(Stdio::null());
    let out = child.output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{}: {}", model.display(), said.trim());
    let text = String::from_utf8_lossy(&out.stdout);
    text.trim().parse().with_context(|| format!("{text:?}"))
}
