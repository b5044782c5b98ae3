//! Two models and the data for them: what `verify` and `bench` are about.

use crate::data::{Dataset, Preprocess};
use crate::ir::Model;
use crate::onnx;
use crate::pipeline::{Options, find_data};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// Data to run models on
#[derive(clap::Args, Clone)]
pub struct Data {
    /// Data, as for `optimize`; all samples are used
    #[arg(long, value_name = "PATH")]
    pub calib: Option<PathBuf>,
    /// How images become inputs, as for `optimize`
    #[arg(long, value_name = "STEPS")]
    pub preprocess: Option<Preprocess>,
}

impl Data {
    /// The data for a model; where none are named, those beside `path`, or made-up ones.
    ///
    /// # Errors
    /// As [`find_data`].
    pub fn find(&self, path: &Path, model: &Model) -> Result<Dataset> {
        let mut options = Options::new(Vec::new());
        options.calib = self.calib.clone();
        options.preprocess = self.preprocess.clone();
        find_data(path, model, &options)
    }
}

/// Two models with the same inputs
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub data: Data,
    /// The reference
    pub a: PathBuf,
    /// The model that is compared with it
    pub b: PathBuf,
}

impl Args {
    /// Reads the models, and finds the data for the first.
    ///
    /// # Errors
    /// When a file cannot be read, or the data do not fit.
    pub fn load(&self) -> Result<(Model, Model, Dataset)> {
        let (a, b) = (onnx::read(&self.a)?, onnx::read(&self.b)?);
        let data = self.data.find(&self.a, &a)?;
        Ok((a, b, data))
    }
}
