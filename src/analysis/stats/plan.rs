//! What one sample gives for everything that is measured in a run over the samples.

use super::fold::{self, Job, Part};
use super::survey::{self, Survey};
use super::{Measure, Wanted};
use crate::data::Samples;
use crate::engine::Session;
use crate::ir::{Model, ValueId};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What is measured of which value.
pub struct Plan<'a> {
    model: &'a Model,
    wanted: &'a Wanted,
    /// The value of every job.
    values: Vec<ValueId>,
    /// The jobs of every value that is wanted, with their measures.
    jobs: Vec<Vec<(usize, Measure)>>,
    watched: BTreeSet<ValueId>,
}

/// What one sample adds to every job, with all the rows that a sample may give; and the powers of the values that are watched.
pub struct Parts {
    all: Vec<Option<Part>>,
    /// See [`survey::power`].
    pub powers: BTreeMap<ValueId, f64>,
}

impl<'a> Plan<'a> {
    /// For jobs on some of the values that a session gives out.
    pub fn new(model: &'a Model, wanted: &'a Wanted, jobs: &[Job], survey: &Survey) -> Plan<'a> {
        let place: HashMap<ValueId, usize> = wanted.iter().enumerate().map(|(i, (v, _))| (*v, i)).collect();
        let mut at: Vec<Vec<(usize, Measure)>> = vec![Vec::new(); wanted.len()];
        for (k, job) in jobs.iter().enumerate() {
            at[place[&job.value]].push((k, job.measure.clone()));
        }
        let values: Vec<ValueId> = jobs.iter().map(|j| j.value).collect();
        let watched = values.iter().flat_map(|v| survey.watched(*v)).collect();
        Plan {
            model,
            wanted,
            values,
            jobs: at,
            watched,
        }
    }

    /// Runs sample `i` of those that are measured. Its number among all samples tells which rows are taken.
    ///
    /// # Errors
    /// When it fails, or a value is NaN (the message names it).
    pub fn run(&self, session: &dyn Session, samples: &Samples, i: usize) -> Result<Parts> {
        let number = samples.number(i);
        let mut all: Vec<Option<Part>> = self.values.iter().map(|_| None).collect();
        let mut powers = BTreeMap::new();
        let run = session.visit(&samples.get(i)?, &mut |at, value| {
            let v = self.wanted[at].0;
            for (k, measure) in &self.jobs[at] {
                let part = fold::part(measure, &value, number, samples.len());
                all[*k] = part.with_context(|| self.model.value(v).name.clone())?;
            }
            let watched = self.watched.contains(&v) && fold::is_float(value.dtype());
            if let Some(x) = value.to_f32().filter(|_| watched) {
                powers.insert(v, survey::power(&x, number));
            }
            Ok(())
        });
        run.with_context(|| format!("sample {number}"))?;
        Ok(Parts { all, powers })
    }

    /// What sample `number` adds, with fewer rows where it stands out.
    pub fn weighed(&self, mut parts: Parts, survey: &Survey, number: usize) -> Vec<Option<Part>> {
        for (part, v) in parts.all.iter_mut().zip(&self.values) {
            if let Some(Part::Rows(rows)) = part {
                rows.keep(survey.share(*v, &parts.powers, rows.count(), number), number);
            }
        }
        parts.all
    }
}
