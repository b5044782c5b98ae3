//! The engine inside the binary: tract (<https://github.com/sonos/tract>). The only place that names it.
//!
//! tract gets a copy of the model, prepared by `prepare`: the wanted values are its outputs, and what tract lacks or
//! computes wrongly is replaced by something of the same meaning. One optimized plan serves all threads; each run has a
//! state of its own, and tract starts no threads.
//!
//! float16 and bfloat16 are computed in f32: outputs that the model declares as such are rounded on the way out.
//! Convolutions, matrix products, Softmax and GridSample are computed by operators of our own (`kernel`: `depthwise`, `winograd`, `windows`, `product`, `softmax`, `grid`), with what follows them (`tail`).
//! tract keeps a copy of the weights of its own, so a session costs about twice the weights while it is made, and once after.

mod amend;
mod control;
mod convert;
mod depthwise;
mod dequantize;
mod graph;
mod grid;
mod kernel;
mod loops;
mod nbits;
mod ops;
mod packed;
mod phases;
mod plan;
mod prepare;
mod product;
mod shadow;
mod softmax;
mod tail;
mod windows;
mod winograd;

use super::wanted::{at_hand, gather, places};
use super::{Each, Engine, NotRun, Session, hand_over};
use crate::data::Sample;
use crate::ir::{Model, Tensor, ValueId};
use crate::parallel::panic_text;
use anyhow::{Context, Result, anyhow, bail};
use plan::Plan;
use prepare::Job;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use tract_onnx::prelude::TValue;

/// tract as an [`Engine`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Tract;

impl Engine for Tract {
    fn name(&self) -> String {
        "tract 0.23.9".to_owned()
    }

    fn load(&self, model: &Model, wanted: &[ValueId], like: &Sample) -> Result<Box<dyn Session>, NotRun> {
        let load = || Running::new(Job::new(model, wanted, like)?, like);
        let running = quietly(load).map_err(|e| NotRun(short(&e)))?;
        Ok(Box::new(running))
    }
}

/// A model that tract has compiled.
struct Running {
    job: Job,
    /// For each computed value its numbers among the wanted ones.
    places: BTreeMap<usize, Vec<usize>>,
    /// One for every way through branches and loops seen; empty when nothing needs computing.
    plans: Mutex<Vec<Arc<Plan>>>,
}

impl Running {
    fn new(mut job: Job, like: &Sample) -> Result<Running> {
        let mut plans = Vec::new();
        if let Some(flat) = job.flat.take() {
            let plan = Plan::for_sample(flat.clone(), &job.names, like)?;
            if !plan.serves_all() {
                job.flat = Some(flat);
            }
            plans.push(Arc::new(plan));
        }
        Ok(Running {
            places: places(&job.give),
            job,
            plans: Mutex::new(plans),
        })
    }

    fn plans(&self) -> MutexGuard<'_, Vec<Arc<Plan>>> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compute(&self, sample: &Sample) -> Result<Vec<TValue>> {
        let plans = self.plans().clone();
        for plan in &plans {
            match (plan.compute(sample), &self.job.flat) {
                (Ok(Some(values)), _) => return Ok(values),
                (Err(e), None) => return Err(e),
                _ => {} // the way of another sample
            }
        }
        let Some(flat) = &self.job.flat else {
            return Ok(Vec::new());
        };
        let plan = Arc::new(Plan::for_sample(flat.clone(), &self.job.names, sample)?);
        let values = plan
            .compute(sample)?
            .context("an If or a Loop takes another way each time")?;
        self.plans().push(plan);
        Ok(values)
    }
}

impl Session for Running {
    fn run(&self, sample: &Sample) -> Result<Vec<Tensor>> {
        let run = || {
            let values = self.compute(sample)?;
            let typed = values.into_iter().zip(&self.job.dtypes);
            typed.map(|(v, dtype)| convert::from_tract(v, *dtype)).collect()
        };
        let computed: Vec<Tensor> = quietly(run).map_err(failed)?;
        gather(&self.job.give, &computed, sample)
    }

    fn visit(&self, sample: &Sample, each: &mut Each) -> Result<()> {
        let plan = self.plans().first().cloned();
        let (Some(plan), None) = (plan, &self.job.flat) else {
            return hand_over(self.run(sample)?, each);
        };
        at_hand(&self.job.give, sample, each)?;
        let mut theirs = None;
        let run = || {
            plan.run(sample, &mut |k, value| {
                let value = convert::from_tract(value, self.job.dtypes.get(k).copied().flatten())?;
                // What decides on the way comes last, and is not wanted.
                let mut places = self.places.get(&k).into_iter().flatten();
                let outcome = places.try_for_each(|i| each(*i, value.clone()));
                outcome.or_else(|e| {
                    theirs = Some(e);
                    bail!("stopped")
                })
            })
        };
        let outcome = quietly(run);
        theirs.map_or_else(|| outcome.map_err(failed), Err)
    }
}

/// What went wrong with a sample; a panic is not the sample's fault.
fn failed(e: anyhow::Error) -> anyhow::Error {
    let why = format!("tract: {}", short(&e));
    match e.is::<NotRun>() {
        true => NotRun(why).into(),
        false => anyhow!(why),
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Calls into tract: a panic there becomes [`NotRun`], and is not printed.
fn quietly<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.with(Cell::get) {
                before(info);
            }
        }));
    });
    let outer = QUIET.with(|q| q.replace(true));
    let result = catch_unwind(AssertUnwindSafe(f));
    QUIET.with(|q| q.set(outer));
    result.unwrap_or_else(|p| Err(NotRun(format!("panicked: {}", panic_text(&*p))).into()))
}

/// An error's chain in one short line.
fn short(e: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in e.chain() {
        let text = cause.to_string();
        let line = text.lines().next().unwrap_or_default().trim().to_owned();
        if !line.is_empty() && !parts.iter().any(|p| p.contains(&line)) {
            parts.push(line);
        }
    }
    super::one_line(&parts)
}

#[cfg(test)]
mod tests;
