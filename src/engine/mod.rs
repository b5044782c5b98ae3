//! Running a model: the reference that every rewrite is compared with, and the instrument of calibration.
//!
//! An [`Engine`] loads a model for inputs shaped like one sample and gives a [`Session`], which threads share. Passes and
//! `verify` know only these traits; `tract.rs` is the one file that names tract, `ort.rs` the one that names ONNX Runtime.

use crate::data::Sample;
use crate::ir::{Model, Tensor, ValueId};
use crate::onnx;
use crate::ops::labels;
use anyhow::Result;
use std::fmt;
use std::path::Path;

pub mod eval;
#[cfg(feature = "ort")]
pub mod ort;
#[cfg(test)]
pub mod testing;
#[cfg(feature = "tract")]
pub mod tract;
#[cfg(any(feature = "tract", feature = "ort"))]
mod wanted;

/// Why an engine cannot run a model. Not a fault of the model: another engine may run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotRun(pub String);

impl fmt::Display for NotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for NotRun {}

/// The parts of an error in one line that can be read at a glance.
#[cfg(any(feature = "tract", feature = "ort"))]
fn one_line(parts: &[String]) -> String {
    let mut text = parts.join(": ");
    if let Some((at, _)) = text.char_indices().nth(400) {
        text.truncate(at);
        text.push('…');
    }
    text
}

/// Something that runs ONNX models.
pub trait Engine: Sync {
    /// Its name and version, for reports.
    fn name(&self) -> String;

    /// Prepares a model for inputs with the dimensions of `like` (one tensor for every input of the main graph that has no default).
    /// The session gives the values of `wanted`, in that order; they may be any values of the main graph.
    ///
    /// # Errors
    /// [`NotRun`] when the engine does not support the model.
    fn load(&self, model: &Model, wanted: &[ValueId], like: &Sample) -> Result<Box<dyn Session>, NotRun>;

    /// Prepares a model file for its outputs, in their order, as whoever ships it would load it.
    ///
    /// # Errors
    /// As [`Engine::load`], and when the file cannot be read.
    fn load_file(&self, path: &Path, like: &Sample) -> Result<Box<dyn Session>, NotRun> {
        let model = onnx::read(path).map_err(|e| NotRun(format!("{e:#}")))?;
        self.load(&model, &labels::outputs(&model), like)
    }
}

/// A model that is ready to run. Several threads may run it at once.
pub trait Session: Send + Sync {
    /// Runs one sample and gives the wanted values.
    ///
    /// # Errors
    /// When the engine fails on this sample.
    fn run(&self, sample: &Sample) -> Result<Vec<Tensor>>;

    /// Runs one sample and hands over each wanted value with its number among them, in any order, as soon as it is computed
    /// where the engine can: so that not all of them are in memory at once.
    ///
    /// # Errors
    /// When the engine fails on this sample, and those of `each`, which end the run.
    fn visit(&self, sample: &Sample, each: &mut Each) -> Result<()> {
        hand_over(self.run(sample)?, each)
    }
}

/// Takes a value, and its number.
pub type Each<'a> = dyn FnMut(usize, Tensor) -> Result<()> + 'a;

fn hand_over(all: Vec<Tensor>, each: &mut Each) -> Result<()> {
    all.into_iter().enumerate().try_for_each(|(i, value)| each(i, value))
}

/// No engine at all, where the crate is built without one: models are read, rewritten and written, but nothing is run.
#[cfg(not(feature = "tract"))]
pub struct Nothing;

#[cfg(not(feature = "tract"))]
impl Engine for Nothing {
    fn name(&self) -> String {
        "none".into()
    }

    fn load(&self, _: &Model, _: &[ValueId], _: &Sample) -> Result<Box<dyn Session>, NotRun> {
        Err(NotRun(
            "this program was built without tract; --engine ort takes ONNX Runtime".into(),
        ))
    }
}
