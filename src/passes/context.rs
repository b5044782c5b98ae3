//! What a pass may use: the engine, calibration samples, statistics; and where it says what it did.

use super::charts::Chart;
use super::opset::raise_opset;
use crate::analysis::cost::cost;
use crate::analysis::sites::{Site, site};
use crate::analysis::stats::{LOOKED_AT, Measure, Stats, measure};
use crate::cache::{Cache, Key, Objects};
use crate::calibrate::key::spelled;
use crate::calibrate::{Memo, With};
use crate::data::Samples;
use crate::engine::Engine;
use crate::ir::{Model, NodeId, ValueId};
use crate::ops::quant::is_quantized_op;
use crate::ops::types::infer_sample;
use crate::progress::{Progress, Silent};
use anyhow::Result;
use serde::Serialize;
use std::fmt::Display;
use std::sync::Arc;

/// Whether a note tells of a change, of something left alone, or of something the user should know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
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
    /// What was measured elsewhere.
    pub memo: Option<&'a Memo>,
    /// What changes did to outputs in earlier trials.
    pub cache: Option<&'a Cache>,
    /// What passes before made, where they may run again.
    pub objects: Option<&'a Arc<Objects>>,
    /// What was said so far.
    pub notes: Vec<Note>,
    /// What the report draws.
    pub charts: Vec<Chart>,
    /// The pass did all that it does for an error: a larger one gives the same.
    pub exhausted: bool,
}

/// How many runs of so many multiply-adds take no more than `most` together; all, where they are not known, and `least` in any case.
pub fn runs(macs: Option<u64>, most: u64, least: usize) -> usize {
    macs.map_or(usize::MAX, |macs| (most / macs.max(1)) as usize).max(least)
}

impl<'a> Context<'a> {
    /// For what is computed beside the pass: it shows no progress, and what it says is not kept.
    pub fn aside(&self) -> Context<'a> {
        Context {
            progress: &Silent,
            notes: Vec::new(),
            charts: Vec::new(),
            exhausted: false,
            ..*self
        }
    }
}

impl Context<'_> {
    /// Measures values of the main graph over the calibration samples.
    ///
    /// # Errors
    /// When the engine cannot run the model, or a sample fails.
    pub fn stats(&mut self, model: &Model, wanted: &[(ValueId, Measure)]) -> Result<Arc<Stats>> {
        self.stats_of(model, wanted, self.samples)
    }

    /// Measures values of the main graph over some of the calibration samples, which the model alone has to choose.
    ///
    /// # Errors
    /// As [`Context::stats`].
    pub fn stats_of(&self, model: &Model, wanted: &[(ValueId, Measure)], samples: &Samples) -> Result<Arc<Stats>> {
        let mut all = self.measured(model, wanted, &[samples])?;
        Ok(Arc::new(all.pop().unwrap_or_default()))
    }

    /// Multiply-adds of a run over the first sample, where they are known.
    pub fn macs(&self, model: &Model) -> Option<u64> {
        let types = self.samples.get(0).and_then(|s| infer_sample(model, &s));
        types.ok().and_then(|t| cost(model, &t).macs)
    }

    /// All calibration samples, or so many, spread over all, that runs over them take no more than `most` multiply-adds; but
    /// `least` of them in any case. Which ones depends on the model and on how many there are.
    pub fn affordable(&self, model: &Model, most: u64, least: usize) -> Samples {
        self.samples.spread(runs(self.macs(model), most, least))
    }

    fn measured(&self, model: &Model, wanted: &[(ValueId, Measure)], over: &[&Samples]) -> Result<Vec<Stats>> {
        let (engine, threads, progress) = (self.engine, self.threads, self.progress);
        let over: Vec<Samples> = over.iter().map(|s| s.spread_first(LOOKED_AT)).collect();
        if let Some(memo) = self.memo {
            let over: Vec<&Samples> = over.iter().collect();
            return memo.ask(
                model,
                wanted,
                &over,
                With {
                    engine,
                    threads,
                    progress,
                },
            );
        }
        let one = |samples: &Samples| measure(model, wanted, engine, samples, threads, progress);
        let Some(objects) = self.objects else {
            return over.iter().map(one).collect();
        };
        let mut key = Key::new("statistics", &engine.name()).model(model)?;
        for want in wanted {
            key = key.text(&format!("{want:?}")).text(&spelled(model, want));
        }
        let kept = |samples: &Samples| {
            let key = key.clone().samples(samples);
            let stats = objects.get(key, Stats::bytes, || one(samples))?;
            Ok(Stats::clone(&stats))
        };
        over.iter().map(kept).collect()
    }

    /// Measures values of the main graph over two halves of the calibration samples ([`Samples::measured_halves`]).
    ///
    /// # Errors
    /// As [`Context::stats`].
    pub fn halves(&self, model: &Model, wanted: impl IntoIterator<Item = (ValueId, Measure)>) -> Result<[Stats; 2]> {
        let mut all: Vec<(ValueId, Measure)> = Vec::new();
        for want in wanted {
            if !all.contains(&want) {
                all.push(want);
            }
        }
        let halves = self.samples.measured_halves();
        let over: Vec<&Samples> = halves.iter().filter(|h| !h.is_empty() && !all.is_empty()).collect();
        let mut measured = self.measured(model, &all, &over)?.into_iter();
        Ok(halves.each_ref().map(|half| match half.is_empty() {
            true => Stats::default(),
            false => measured.next().unwrap_or_default(),
        }))
    }

    /// The places where a constant weight meets an activation, in all graphs; says why others are left alone, those too for
    /// which `refusal` gives a reason.
    pub fn sites(&mut self, model: &Model, refusal: impl Fn(&Site) -> Option<String>) -> Vec<Site> {
        let mut all = Vec::new();
        for id in model.node_ids() {
            match site(model, id) {
                None => {}
                Some(Err(reason)) => self.skip(model, id, reason),
                Some(Ok(site)) => match refusal(&site) {
                    Some(reason) => self.skip(model, id, reason),
                    None => all.push(site),
                },
            }
        }
        all
    }

    /// Says what was done to a node.
    pub fn did(&mut self, model: &Model, node: NodeId, what: impl Display) {
        self.note(NoteKind::Did, model.label(node), what);
    }

    /// Says why a node was left alone.
    pub fn skip(&mut self, model: &Model, node: NodeId, why: impl Display) {
        self.note(NoteKind::Skip, model.label(node), why);
    }

    /// Says why the model as a whole was left alone.
    pub fn leave(&mut self, why: impl Display) {
        self.note(NoteKind::Skip, String::new(), why);
    }

    /// True, and says so, when the model is quantized already: its scales are part of what its integers mean.
    pub fn is_quantized(&mut self, model: &Model) -> bool {
        let first = model.nodes().find(|(id, _)| is_quantized_op(model, *id));
        if let Some((node, _)) = first {
            self.skip(model, node, "the model is quantized already: left as it is");
        }
        first.is_some()
    }

    /// A copy to quantize, of operator set `opset` or later; `None`, and says why, when the model is quantized already or
    /// cannot be raised.
    pub fn to_quantize(&mut self, model: &Model, opset: i64) -> Option<Model> {
        if self.is_quantized(model) {
            return None;
        }
        let mut work = model.clone();
        if work.opset("") < opset
            && let Err(why) = raise_opset(&mut work, opset)
        {
            self.leave(format_args!(
                "left in floating point: operator set {opset} is needed, and {why:#}"
            ));
            return None;
        }
        Some(work)
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
