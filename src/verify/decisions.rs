//! The original's decisions on many samples: how close they are, so that a noise measured on few can be judged.

use super::OutputGap;
use super::meter::classes;
use crate::data::Samples;
use crate::engine::{Engine, NotRun};
use crate::ir::Model;
use crate::math::margins::Margins;
use crate::ops::labels;
use crate::parallel::in_order;
use crate::progress::Progress;
use anyhow::Result;
use std::collections::BTreeMap;

/// Margins of decisions, by output.
pub struct Decisions(BTreeMap<String, Margins>);

impl Decisions {
    /// Runs the original over the samples.
    ///
    /// # Errors
    /// [`NotRun`] (in the chain) when the engine cannot run it; otherwise when a sample fails.
    pub fn of(
        original: &Model,
        samples: &Samples,
        engine: &dyn Engine,
        threads: usize,
        progress: &dyn Progress,
    ) -> Result<Decisions> {
        let outputs = original.main().outputs();
        let session = engine.load(original, &labels::outputs(original), &samples.get(0)?);
        let session = session.map_err(|NotRun(why)| anyhow::Error::new(NotRun(format!("the original: {why}"))))?;
        let mut all: Vec<Margins> = vec![Margins::default(); outputs.len()];
        progress.start("margins", samples.len());
        in_order(
            samples.len(),
            threads,
            |i| session.run(&samples.get(i)?),
            |i, outputs| {
                for (margins, t) in all.iter_mut().zip(&outputs) {
                    let Some((classes, label)) = classes(t, samples.label(i)) else {
                        continue;
                    };
                    let Some(scores) = t.reals() else { continue };
                    scores.chunks_exact(classes).for_each(|row| margins.add(row, label));
                }
                progress.advance(1);
                Ok(())
            },
        )?;
        progress.finish();
        let names = outputs.iter().map(|p| p.name().to_owned());
        Ok(Decisions(names.zip(all).collect()))
    }

    /// Replaces what is expected of the gaps' own few samples by what is expected of these.
    pub fn refine(&self, gaps: &mut [OutputGap]) {
        for g in gaps.iter_mut().filter(|g| !g.inner) {
            let (Some(margins), Some(noise)) = (self.0.get(&g.name), g.margin_noise) else {
                continue;
            };
            g.top1_expected_change = margins.changes(noise).or(g.top1_expected_change);
            if let (Some(a), Some(loss)) = (&mut g.accuracy, margins.loss(noise)) {
                a.expected_loss = loss;
            }
        }
    }
}
