//! One machine's part of what passes measure.

use super::{Options, apply, find_data, opened};
use crate::calibrate::{Measured, Memo, Shard};
use crate::engine::Engine;
use crate::onnx;
use crate::progress::Progress;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Calibrated {
    /// A file was written.
    Wrote(Measured),
    /// The files given answer everything that the passes ask; none was written.
    Complete,
}

/// Runs the passes up to the first statistics that [`Options::stats`] do not hold, measures them over a part of the calibration
/// samples, and writes them to `target`.
///
/// # Errors
/// As [`super::optimize`]; when there are no data, or files are of another model or other data.
pub fn calibrate(
    input: &Path,
    target: &Path,
    shard: Shard,
    options: &Options,
    engine: &dyn Engine,
    progress: &dyn Progress,
) -> Result<Calibrated> {
    onnx::check_target(target)?;
    let mut model = onnx::read(input)?;
    let named = || format!("{}", input.display());
    crate::analysis::legal::check(&model).with_context(named)?;
    let mut data = find_data(input, &model, options)?;
    ensure!(!data.synthetic, "no data were given: name them with --calib");
    if let Some(opened) = opened(&model, &data, options, engine, progress).with_context(named)? {
        (model, data) = (opened.model, opened.data);
    }
    let spelled = options.spelled();
    let memo = Memo::open(&options.stats, &model, data.len(), &engine.name(), &spelled).context("--stats")?;
    let memo = memo.measuring(shard, target);
    let (samples, _) = data.split();
    let requests = options.requests_for(&model);
    let applied = apply(
        &mut model,
        &requests,
        &samples,
        options,
        (engine, progress),
        Some(&memo),
    );
    match memo.measured() {
        Some(measured) => Ok(Calibrated::Wrote(measured)), // and what ended the run is that
        None => applied.with_context(named).map(|_| Calibrated::Complete),
    }
}
