//! `onnxzip verify`

use super::progress::Bar;
use super::{engine, pair};
use crate::pipeline::Options;
use crate::report::text;
use crate::verify::{Budget, Verdict, compare, judge};
use anyhow::Result;

/// Compare two models with the same inputs and outputs on data
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {
    #[command(flatten)]
    pub(super) engine: engine::Args,
    /// What B may lose
    #[arg(long, value_name = "SPEC", default_value = "sqnr:10dB")]
    budget: Budget,
    #[command(flatten)]
    pair: pair::Args,
}

/// Runs it and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let (a, b, data) = args.pair.load()?;
    let engine = args.engine.open(1)?;
    let threads = Options::new(Vec::new()).threads;
    let gaps = compare(&a, &b, &data.all(), &*engine, threads, &Bar::new());
    let gaps = gaps.map_err(|e| args.engine.way_out(e))?;
    let mut out = format!(
        "{} samples of {}, run by {}:\n",
        data.len(),
        data.whence(),
        engine.name()
    );
    text::gaps(&mut out, &gaps);
    print!("{out}");
    let (line, code) = match judge(&gaps, &args.budget) {
        Verdict::Same => ("OK: outputs are equal bit for bit".to_owned(), 0),
        Verdict::Within => (format!("OK: within budget {}", args.budget), 0),
        Verdict::Outside(why) => (format!("FAILED: {why}"), 1),
        Verdict::Vacuous(why) | Verdict::NotRun(why) => (format!("NOT VERIFIED: {why}"), 3),
    };
    println!("{line}");
    Ok(code)
}
