//! How fast a result is beside its original: both run in turn, in blocks, over several pairs of fresh sessions.
//!
//! Where the weights land in memory alone moves small models by 10 %, so one pair of sessions proves little; a machine
//! slows down for a while, so only what ran side by side is compared. Samples are read outside of the timed part.

use crate::data::Samples;
use crate::engine::Session;
use crate::math::timing::{quantile, ratio};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::time::Instant;

/// A block takes at least so long, in seconds: a clock is read once a run.
const BLOCK: f64 = 4e-3;
/// Untimed runs of a fresh session, of which the shortest says how many runs make a block.
const BEFORE: usize = 3;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Pairs of fresh sessions.
    pub sessions: usize,
    /// Blocks of runs of each model for each of them.
    pub blocks: usize,
}

impl Default for Effort {
    fn default() -> Self {
        Effort { sessions: 4, blocks: 9 }
    }
}

/// What one model takes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Times {
    /// Median latency of a sample, milliseconds.
    pub median_ms: f64,
    /// Nine of ten samples take no longer.
    pub p90_ms: f64,
    /// Ninety-nine of a hundred samples take no longer.
    pub p99_ms: f64,
    /// Samples a second, one after the other.
    pub samples_per_s: f64,
    /// Timed runs.
    pub runs: usize,
    /// Most memory of a process that loads the file and runs it, where that was measured.
    pub peak_bytes: Option<u64>,
}

/// Both models side by side.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    /// What ran them.
    pub engine: String,
    /// Threads for one sample.
    pub threads: usize,
    /// Pairs of fresh sessions.
    pub sessions: usize,
    /// The original.
    pub before: Times,
    /// The result.
    pub after: Times,
    /// The result's time in parts of the original's: the median over blocks that ran side by side.
    pub ratio: f64,
    /// Holds the ratio in 95 of 100 cases.
    pub interval: [f64; 2],
}

/// Makes a fresh session of one of the models.
pub type Load<'a> = dyn Fn() -> Result<Box<dyn Session>> + 'a;

/// Measures two models on the samples in turn.
///
/// # Errors
/// When a model cannot be loaded, or a sample fails.
pub fn speed(original: &Load, changed: &Load, samples: &Samples, effort: Effort) -> Result<Speed> {
    ensure!(!samples.is_empty(), "there is no sample");
    let mut times = [Vec::new(), Vec::new()];
    let mut groups = Vec::new();
    for i in 0..effort.sessions.max(1) {
        // Whoever comes second finds another memory: they take turns.
        let (a, b);
        if i % 2 == 0 {
            (a, b) = (original()?, changed()?);
        } else {
            b = changed()?;
            a = original()?;
        }
        let mut pair = [Side::new(&*a, samples)?, Side::new(&*b, samples)?];
        let mut group = Vec::new();
        for block in 0..effort.blocks.max(1) {
            let mut medians = [0.0; 2];
            for k in if block % 2 == 0 { [0, 1] } else { [1, 0] } {
                medians[k] = pair[k].block(samples, &mut times[k])?;
            }
            group.push(medians);
        }
        groups.push(group);
    }
    let (ratio, interval) = ratio(&groups).context("nothing was measured")?;
    let [before, after] = times.map(|t| summary(&t));
    Ok(Speed {
        engine: String::new(),
        threads: 1,
        sessions: effort.sessions.max(1),
        before,
        after,
        ratio,
        interval,
    })
}

/// One model in one session.
struct Side<'a> {
    session: &'a dyn Session,
    /// Runs of a block.
    runs: usize,
    next: usize,
}

impl<'a> Side<'a> {
    fn new(session: &'a dyn Session, samples: &Samples) -> Result<Side<'a>> {
        let mut side = Side {
            session,
            runs: BEFORE,
            next: 0,
        };
        let mut times = Vec::new();
        side.block(samples, &mut times)?;
        let shortest = quantile(&times, 0.0).unwrap_or(BLOCK);
        side.runs = ((BLOCK / shortest).ceil() as usize).clamp(1, 10_000);
        side.next = 0;
        Ok(side)
    }

    /// Runs a block and gives the median of its times: now and then another process has the processor for a while.
    fn block(&mut self, samples: &Samples, times: &mut Vec<f64>) -> Result<f64> {
        let from = times.len();
        for _ in 0..self.runs {
            let sample = samples.get(self.next % samples.len())?;
            self.next += 1;
            let start = Instant::now();
            self.session.run(&sample)?;
            times.push(start.elapsed().as_secs_f64());
        }
        quantile(&times[from..], 0.5).context("a block has runs")
    }
}

fn summary(times: &[f64]) -> Times {
    let ms = |part| quantile(times, part).unwrap_or(f64::NAN) * 1e3;
    Times {
        median_ms: ms(0.5),
        p90_ms: ms(0.9),
        p99_ms: ms(0.99),
        samples_per_s: times.len() as f64 / times.iter().sum::<f64>(),
        runs: times.len(),
        peak_bytes: None,
    }
}
