//! Two models and the data for them: what `verify` and `bench` are about.

use crate::data::Dataset;
use crate::ir::Model;
use crate::onnx;
use crate::pipeline::{Options, find_data};
use anyhow::Result;
use std::path::PathBuf;

/// Two models with the same inputs
#[derive(clap::Args)]
pub struct Args {
    /// Data, as for `optimize`; all samples are used
    #[arg(long, value_name = "PATH")]
    pub calib: Option<PathBuf>,
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
        let mut options = Options::new(Vec::new());
        options.calib = self.calib.clone();
        let data = find_data(&self.a, &a, &options)?;
        Ok((a, b, data))
    }
}
