//! `onnxzip verify`

use super::progress::Bar;
use crate::data::{Dataset, Preprocess};
use crate::onnx;
use crate::pipeline::{Options, find_data};
use crate::report::text;
use crate::verify::{Budget, Verdict, compare, judge};
use anyhow::Result;
use std::path::PathBuf;

/// Compare two models with the same inputs and outputs on data
#[derive(clap::Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Args {
    /// Data, as for `optimize`; all samples are used
    #[arg(long, value_name = "PATH")]
    calib: Option<PathBuf>,
    /// How images become inputs, as for `optimize`
    #[arg(long, value_name = "STEPS")]
    preprocess: Option<Preprocess>,
    /// What B may lose
    #[arg(long, value_name = "SPEC", default_value = "sqnr:10dB")]
    budget: Budget,
    /// The reference
    a: PathBuf,
    /// The model that is judged
    b: PathBuf,
}

/// Runs it and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let (a, b) = (onnx::read(&args.a)?, onnx::read(&args.b)?);
    let mut options = Options::new(Vec::new());
    options.calib = args.calib.clone();
    options.preprocess = args.preprocess.clone();
    let data: Dataset = find_data(&args.a, &a, &options)?;
    let engine = super::engine()?;
    let gaps = compare(&a, &b, &data.all(), &*engine, options.threads, &Bar::new())?;
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
