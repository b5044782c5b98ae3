//! The command line: one file a subcommand.

mod bench;
mod calibrate;
mod engine;
mod inspect;
mod memory;
mod optimize;
mod pair;
mod passes;
mod peak;
mod progress;
mod said;
mod verify;

pub use passes::explain;

use crate::engine::NotRun;
use clap::{Parser, Subcommand};

const EXIT_CODES: &str = "\
Exit codes:
  0  the result is inside the budget (or verification was refused with --no-verify)
  1  outside the budget: no output, unless --keep
  2  bad input or usage
  3  could not verify: no output, unless --no-verify or --keep";

/// Compress ONNX models. Every output is run beside the original before it is let out.
#[derive(Parser)]
#[command(name = "onnxzip", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Optimize(Box<optimize::Args>),
    Calibrate(calibrate::Args),
    Inspect(inspect::Args),
    Verify(verify::Args),
    Passes(passes::Args),
    Bench(bench::Args),
    #[command(hide = true)]
    Peak(peak::Args),
}

/// Parses the command line, runs it, and gives the exit code. Wrong usage ends the process with code 2.
pub fn main() -> u8 {
    let outcome = match &Cli::parse().command {
        Command::Optimize(args) => optimize::run(args),
        Command::Calibrate(args) => calibrate::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Passes(args) => passes::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Peak(args) => peak::run(args),
    };
    outcome.unwrap_or_else(|e| {
        eprintln!("error: {e:#}");
        if e.is::<NotRun>() { 3 } else { 2 }
    })
}
