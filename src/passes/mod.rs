//! The passes: THE table, how a pass is asked for, and what it may use.
//!
//! A pass is one file (or folder), its `mod` line and its line in the table [`ALL`] (no macro declares the modules: rustfmt would not see them). It reads `ops`, `analysis` and `math`, edits
//! through the methods of [`Model`], and tells what it did with [`Context::did`] and what it left alone, and why, with
//! [`Context::skip`].

pub mod charts;
mod checkpoints;
mod context;
mod exchange;
mod mixed;
mod names;
mod noise;
mod onward;
mod options;
mod planes;
mod repair;
mod rules;
mod tables;
mod trial;
mod watched;

pub mod dynamic;
pub mod fp16;
pub mod fp32;
pub mod int8;
pub mod lowrank;
pub mod opset;
pub mod prune;
pub mod simplify;
pub mod sparsify;
pub mod weights;

pub use charts::Chart;
pub use context::{Context, Note, NoteKind};
pub use names::Names;
pub use options::{Opt, Options, Request, parse_list, parts};
pub use rules::{Rule, SCOPED, SKIP};

use crate::ir::Model;
use anyhow::Result;

/// One rewrite of a model.
pub trait Pass {
    /// Rewrites the model. "Does not apply" is a skip, not an error.
    ///
    /// # Errors
    /// When the file or the request is bad; the message names the node and the way out.
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()>;
}

/// What a search under a budget ([`crate::search`]) may ask of a pass.
#[derive(Clone, Copy)]
pub enum Part {
    /// Nothing: it changes no numbers, or only on request.
    Aside,
    /// It makes the network smaller, up to an error of the outputs (a part of their power) that this option sets.
    Structure {
        /// The option.
        error: &'static str,
    },
    /// It stores or computes in fewer bits; at most one such pass runs, the last.
    Precision {
        /// As it is written, the boldest way first.
        ways: &'static [&'static str],
        /// The option that lets it go further, up to an error of the outputs.
        error: Option<&'static str>,
    },
}

/// What the table knows of a pass: help and documentation are made from it.
pub struct PassInfo {
    /// The name on the command line.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// What it does, when it does nothing, what it costs. Markdown.
    pub doc: &'static str,
    /// True when outputs may change by more than rounding.
    pub lossy: bool,
    /// What a search under a budget may ask of it.
    pub part: Part,
    /// Its options.
    pub options: &'static [Opt],
    /// Builds the pass.
    pub build: fn(&Options) -> Result<Box<dyn Pass>>,
}

/// Every pass, in the order in which they are usually run.
pub const ALL: &[&PassInfo] = &[
    &opset::INFO,
    &simplify::INFO,
    &fp32::INFO,
    &prune::INFO,
    &sparsify::INFO,
    &lowrank::INFO,
    &int8::INFO,
    &weights::INFO,
    &dynamic::INFO,
    &fp16::INFO,
];

/// The pass called `name`.
pub fn find(name: &str) -> Option<&'static PassInfo> {
    ALL.iter().copied().find(|p| p.name == name)
}
