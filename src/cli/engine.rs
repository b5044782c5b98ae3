//! Which engine runs the models: the same options for every subcommand that runs some.

use crate::engine::{Engine, NotRun};
use crate::report::text::ELSEWHERE;
use anyhow::{Result, ensure};
use clap::ValueEnum;
use std::ffi::OsString;
use std::path::PathBuf;

/// What runs the models
#[derive(Clone, clap::Args)]
pub struct Args {
    /// What runs the models, for calibration and verification alike: tract is built in, ort is ONNX Runtime (1.24 or newer,
    /// from --engine-lib, ORT_DYLIB_PATH, or the active Python environment). The last bits of the output depend on it. Default: tract
    #[arg(long, value_enum)]
    engine: Option<Kind>,
    /// The ONNX Runtime library, or the folder it is in
    #[arg(long, value_name = "PATH")]
    engine_lib: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Kind {
    Tract,
    Ort,
}

impl Args {
    /// These options, and what a recipe says where they say nothing.
    ///
    /// # Errors
    /// When the recipe names an engine that there is not.
    pub fn or(&self, said: Option<&str>) -> Result<Args> {
        let said = said.map(|name| Kind::from_str(name, false).map_err(anyhow::Error::msg));
        let said = said.transpose()?;
        Ok(Args {
            engine: self.engine.or(said),
            ..self.clone()
        })
    }

    /// True for ONNX Runtime.
    pub fn is_ort(&self) -> bool {
        self.engine == Some(Kind::Ort)
    }

    /// The engine, with so many threads for one sample.
    ///
    /// # Errors
    /// When it is not built in, its library cannot be loaded, or it has no threads.
    pub fn open(&self, threads: usize) -> Result<Box<dyn Engine>> {
        if self.is_ort() {
            return self.ort(threads);
        }
        ensure!(self.engine_lib.is_none(), "--engine-lib goes with --engine ort");
        ensure!(
            threads == 1,
            "tract runs a sample on one thread; several need --engine ort"
        );
        Ok(tract())
    }

    /// An error of this engine, with the way out where it is that another engine may run the model.
    pub fn way_out(&self, e: anyhow::Error) -> anyhow::Error {
        match e.is::<NotRun>() && !self.is_ort() {
            true => NotRun(format!("{e:#}{ELSEWHERE}")).into(),
            false => e,
        }
    }

    #[cfg(feature = "ort")]
    fn ort(&self, threads: usize) -> Result<Box<dyn Engine>> {
        let ort = crate::engine::ort::Ort::open(self.engine_lib.as_deref())?;
        Ok(Box::new(ort.with_threads(threads)))
    }

    #[cfg(not(feature = "ort"))]
    fn ort(&self, _: usize) -> Result<Box<dyn Engine>> {
        anyhow::bail!("this build has no ONNX Runtime engine: build it with the feature `ort`")
    }

    /// The same options on a command line.
    pub fn to_args(&self) -> Vec<OsString> {
        let kind = self
            .engine
            .unwrap_or(Kind::Tract)
            .to_possible_value()
            .map_or(String::new(), |v| v.get_name().to_owned());
        let mut args = vec![OsString::from("--engine"), kind.into()];
        if let Some(path) = &self.engine_lib {
            args.extend([OsString::from("--engine-lib"), path.into()]);
        }
        args
    }
}

#[cfg(feature = "tract")]
fn tract() -> Box<dyn Engine> {
    Box::new(crate::engine::tract::Tract)
}

#[cfg(not(feature = "tract"))]
fn tract() -> Box<dyn Engine> {
    Box::new(crate::engine::Nothing)
}
