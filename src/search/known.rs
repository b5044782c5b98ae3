//! Results that an earlier run measured.

use super::plan::knobs;
use super::{Measured, Plan, Search};
use crate::cache::Key;
use crate::data::Samples;
use crate::engine::Engine;
use crate::ir::Model;
use crate::pipeline::Options;
use crate::report::Tried;
use crate::verify::Budget;
use anyhow::{Result, ensure};

/// What results depend on but for the plan; `None` when nothing outlives this run.
///
/// # Errors
/// When a sample cannot be read.
pub(super) fn key(
    model: &Model,
    budget: &Budget,
    samples: [&Samples; 2],
    options: &Options,
    engine: &dyn Engine,
) -> Result<Option<Key>> {
    if !options.cache.as_ref().is_some_and(|c| c.is_kept()) {
        return Ok(None);
    }
    let mut key = Key::new(
        "a result of a search, part by part, of typical samples, whether exhausted, what is left in floats",
        &engine.name(),
    )
    .model(model)?;
    key = key.text(&budget.to_string()).number(options.seed as usize);
    key = key.number(usize::from(options.write.short_names));
    for part in samples {
        key = key.number(part.len());
        for i in 0..part.len() {
            let label = part.label(i).map_or(0, |l| l + 1);
            key = key.sample(&part.get(i)?).number(label);
        }
    }
    Ok(Some(key))
}

impl Search<'_> {
    /// A plan's result, measured now or by an earlier run.
    pub(super) fn known(&mut self, plan: &Plan) -> Result<Measured> {
        let (Some(cache), Some(key)) = (self.options.cache.clone(), self.key.clone()) else {
            let tried = self.looked_at(plan)?;
            return Ok(self.measured(plan, tried));
        };
        let mut options = self.options.clone();
        options.passes = plan.requests(&self.options.passes)?;
        let mut now = None;
        let numbers = cache.numbers(key.text(&options.spelled()), || {
            let tried = self.looked_at(plan)?;
            let m = now.insert(self.measured(plan, tried));
            Ok(numbers(m))
        })?;
        match now {
            Some(measured) => Ok(measured),
            None => read(plan, &numbers),
        }
    }

    /// With what the structural passes saved.
    pub(super) fn measured(&self, plan: &Plan, tried: Tried) -> Measured {
        Measured {
            plan: plan.clone(),
            tried,
            held: None,
            saved: self.saved(),
            exhausted: self.exhausted(plan),
            floats: self.floats(),
        }
    }
}

/// Bytes, multiply-adds (−1: not known), what it uses, SQNR, whether a larger error gives the same (1), the part that is left in float32, and what each structural pass saved (NaN: it did not run).
fn numbers(m: &Measured) -> Vec<f64> {
    let macs = m.tried.macs.map_or(-1.0, |m| m as f64);
    let saved = knobs()
        .into_iter()
        .map(|(name, _)| m.saved.get(name).copied().unwrap_or(f64::NAN));
    let exhausted = f64::from(u8::from(m.exhausted));
    [
        m.tried.bytes as f64,
        macs,
        m.tried.used,
        m.tried.sqnr_db,
        exhausted,
        m.floats,
    ]
    .into_iter()
    .chain(saved)
    .collect()
}

fn read(plan: &Plan, numbers: &[f64]) -> Result<Measured> {
    let (&[bytes, macs, used, sqnr_db, exhausted, floats, ref saved @ ..], knobs) = (numbers, knobs()) else {
        anyhow::bail!("the cache holds too few numbers: remove it");
    };
    ensure!(saved.len() == knobs.len(), "the cache holds other numbers: remove it");
    let saved = knobs.into_iter().zip(saved).filter(|(_, x)| !x.is_nan());
    Ok(Measured {
        plan: plan.clone(),
        tried: Tried {
            passes: plan.to_string(),
            bytes: bytes as u64,
            macs: (macs >= 0.0).then_some(macs as u64),
            used,
            sqnr_db,
            cached: true,
            ..Tried::default()
        },
        held: None,
        exhausted: exhausted > 0.0,
        floats,
        saved: saved.map(|((name, _), x)| (name, *x)).collect(),
    })
}
