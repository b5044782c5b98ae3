//! What a pass may use: the engine, calibration samples, statistics; and where it says what it did.

use crate::analysis::stats::{Measure, Stats, measure};
use crate::data::Samples;
use crate::engine::Engine;
use crate::ir::{Model, NodeId, ValueId};
use crate::progress::Progress;
use anyhow::Result;
use serde::Serialize;
use std::fmt::Display;
use std::sync::Arc;

/// Whether a note tells of a change, of something left alone, or of something the user should know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NoteKind {
    /// A change.
    Did,
    /// Left alone, with the reason.
    Skip,
    /// A warning.
    Warn,
}

/// One line of a pass's account.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Note {
    /// What kind of line it is.
    pub kind: NoteKind,
    /// The node (or value) that it is about; empty when it is about the model.
    pub node: String,
    /// What was done, or why not.
    pub what: String,
}

/// Handed to every pass.
pub struct Context<'a> {
    /// The engine that folds constants and measures activations.
    pub engine: &'a dyn Engine,
    /// Calibration samples (the held-back ones are not here).
    pub samples: &'a Samples,
    /// How many threads to use; results do not depend on it.
    pub threads: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Where progress is shown.
    pub progress: &'a dyn Progress,
    /// What was said so far.
    pub notes: Vec<Note>,
}

impl Context<'_> {
    /// Measures values of the main graph over the calibration samples.
    ///
    /// # Errors
    /// When the engine cannot run the model, or a sample fails.
    pub fn stats(&mut self, model: &Model, wanted: &[(ValueId, Measure)]) -> Result<Arc<Stats>> {
        measure(model, wanted, self.engine, self.samples, self.threads, self.progress).map(Arc::new)
    }

    /// Says what was done to a node.
    pub fn did(&mut self, model: &Model, node: NodeId, what: impl Display) {
        self.note(NoteKind::Did, model.label(node), what);
    }

    /// Says why a node was left alone.
    pub fn skip(&mut self, model: &Model, node: NodeId, why: impl Display) {
        self.note(NoteKind::Skip, model.label(node), why);
    }

    /// Says something that the user should know.
    pub fn warn(&mut self, what: impl Display) {
        self.note(NoteKind::Warn, String::new(), what);
    }

    /// Adds a line about something named.
    pub fn note(&mut self, kind: NoteKind, node: String, what: impl Display) {
        self.notes.push(Note {
            kind,
            node,
            what: what.to_string(),
        });
    }
}
