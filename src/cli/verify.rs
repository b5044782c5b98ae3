//! `onnxzip verify`

use super::progress::Bar;
use super::{engine, pair};
use crate::data::Dataset;
use crate::engine::Engine;
use crate::ir::Model;
use crate::pipeline::{Opened, Options};
use crate::report::text;
use crate::verify::{Budget, OutputGap, Verdict, compare, judge};
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
    let judged = judged([&a, &b], &data, &args.budget, (&*engine, threads));
    let (gaps, verdict) = judged.map_err(|e| args.engine.way_out(e))?;
    let mut out = format!(
        "{} samples of {}, run by {}:\n",
        data.len(),
        data.whence(),
        engine.name()
    );
    text::gaps(&mut out, &gaps);
    print!("{out}");
    let (line, code) = match verdict {
        Verdict::Same => ("OK: outputs are equal bit for bit".to_owned(), 0),
        Verdict::Within => (format!("OK: within budget {}", args.budget), 0),
        Verdict::Outside(why) => (format!("FAILED: {why}"), 1),
        Verdict::Vacuous(why) | Verdict::NotRun(why) => (format!("NOT VERIFIED: {why}"), 3),
    };
    println!("{line}");
    Ok(code)
}

/// What is measured between two models, and the verdict. Where they choose inside, the original's choice is given to both.
fn judged(
    [a, b]: [&Model; 2],
    data: &Dataset,
    budget: &Budget,
    (engine, threads): (&dyn Engine, usize),
) -> Result<(Vec<OutputGap>, Verdict)> {
    let bar = Bar::new();
    let opened = Opened::of(a, data, (engine, threads), &bar)?;
    let both = opened.as_ref().and_then(|opened| Some((opened, opened.like(b)?)));
    let Some((opened, mut changed)) = both else {
        let gaps = compare(a, b, &data.all(), engine, threads, &bar)?;
        let verdict = judge(&gaps, budget);
        return Ok((gaps, verdict));
    };
    let samples = opened.data.all();
    let mut gaps = compare(&opened.model, &changed, &samples, engine, threads, &bar)?;
    let chosen = opened.close(&mut changed)?;
    let measured = (judge(&gaps, budget), &mut gaps[..]);
    let verdict = opened.judge((&changed, &chosen), &samples, (engine, threads), measured)?;
    Ok((gaps, verdict))
}
