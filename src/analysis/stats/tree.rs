//! In which order samples are summed, so that machines can share the work and no bit of the result tells.
//!
//! A sum of floating-point numbers depends on its order. So samples are parted into [`RUNS`] runs, by their number alone; each
//! run is summed from zero, and the sums of runs are added in their order. Whoever knows the sums of some runs, measured
//! elsewhere, need not run their samples. The number of runs is fixed, not their length: what is kept of a run (mostly second
//! moments) is as long for few samples as for many, and so is all that machines hand to each other. Ranges and histograms are
//! exact in any order, and follow the same path.

use super::Stats;
use super::fold::{Job, Sums};
use anyhow::Result;
use std::collections::BTreeSet;
use std::ops::Range;

/// Into how many runs samples are parted, if there are that many.
pub const RUNS: usize = 16;

/// How many runs there are of so many samples.
pub fn runs(samples: usize) -> usize {
    samples.min(RUNS)
}

/// The samples of a run, of so many in all.
pub fn run(number: usize, samples: usize) -> Range<usize> {
    let edge = |r: usize| (r as u128 * samples as u128 / runs(samples).max(1) as u128) as usize;
    edge(number)..edge(number + 1)
}

/// A sample, with the number of the run that it ends, if it does.
pub type Step = (usize, Option<usize>);

/// The samples of some runs.
pub fn walk(runs: &[usize], samples: usize) -> Vec<Step> {
    let of = |&number: &usize| {
        let range = run(number, samples);
        let last = range.end - 1;
        range.map(move |i| (i, (i == last).then_some(number)))
    };
    runs.iter().flat_map(of).collect()
}

/// Sums of runs that were measured before.
pub trait Known {
    /// True when those of this run are known, for every measure that was asked for.
    fn has(&self, run: usize) -> bool;

    /// What measure number `job` came to in a run.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, job: usize, run: usize) -> Result<Sums>;
}

/// What is done with sums, as runs end.
pub trait Course {
    /// Before the first sample.
    fn begin(&mut self, jobs: &mut [Job]) -> Result<()>;
    /// A run has ended.
    fn ended(&mut self, run: usize, jobs: &mut [Job]) -> Result<()>;
    /// All have.
    fn done(&mut self, jobs: Vec<Job>) -> Result<()>;
}

/// All runs are added: those that are known, and those that are measured.
pub struct Whole<'a> {
    /// Sums that were measured before.
    pub known: Option<&'a dyn Known>,
    /// How many samples there are.
    pub samples: usize,
    /// Where the results go.
    pub stats: &'a mut Stats,
}

impl Whole<'_> {
    /// Adds known runs, from number `next` up to the first that is not known.
    fn add(&self, jobs: &mut [Job], next: usize) -> Result<()> {
        let Some(known) = self.known else { return Ok(()) };
        for run in (next..runs(self.samples)).take_while(|r| known.has(*r)) {
            for job in jobs.iter_mut() {
                job.merge(known.read(job.number, run)?)?;
            }
        }
        Ok(())
    }

    /// A measure of which all runs are known.
    pub fn only_known(&mut self, job: Job) -> Result<()> {
        let mut jobs = vec![job];
        self.add(&mut jobs, 0)?;
        self.done(jobs)
    }
}

impl Course for Whole<'_> {
    fn begin(&mut self, jobs: &mut [Job]) -> Result<()> {
        self.add(jobs, 0)
    }

    fn ended(&mut self, run: usize, jobs: &mut [Job]) -> Result<()> {
        self.add(jobs, run + 1)
    }

    fn done(&mut self, jobs: Vec<Job>) -> Result<()> {
        self.stats.take(jobs);
        Ok(())
    }
}

/// Takes the sums of a run: the number of the measure, that of the run, the sums.
pub type Take<'a> = dyn FnMut(usize, usize, Sums) -> Result<()> + 'a;

/// The sums of each run are given away.
pub struct Part<'a, 'b> {
    take: &'a mut Take<'b>,
    /// Measures that no sample was run for: values that are not measured.
    left: BTreeSet<usize>,
}

impl<'a, 'b> Part<'a, 'b> {
    /// For measures of these numbers.
    pub fn new(numbers: impl Iterator<Item = usize>, take: &'a mut Take<'b>) -> Self {
        Part {
            take,
            left: numbers.collect(),
        }
    }

    /// Says of these runs that nothing came of what was not measured.
    pub fn finish(self, runs: &[usize]) -> Result<()> {
        let all = self
            .left
            .iter()
            .flat_map(|job| runs.iter().map(move |run| (*job, *run)));
        all.into_iter()
            .try_for_each(|(job, run)| (self.take)(job, run, Sums::None))
    }
}

impl Course for Part<'_, '_> {
    fn begin(&mut self, jobs: &mut [Job]) -> Result<()> {
        self.left.retain(|number| jobs.iter().all(|j| j.number != *number));
        Ok(())
    }

    fn ended(&mut self, run: usize, jobs: &mut [Job]) -> Result<()> {
        jobs.iter_mut()
            .try_for_each(|j| (self.take)(j.number, run, std::mem::take(&mut j.sums)))
    }

    fn done(&mut self, _: Vec<Job>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_all_samples_once_and_in_order() {
        for n in [0, 1, 5, 16, 17, 96, 1000] {
            let all: Vec<usize> = (0..runs(n)).collect();
            let walked = walk(&all, n);
            assert_eq!(
                walked.iter().map(|s| s.0).collect::<Vec<_>>(),
                (0..n).collect::<Vec<_>>()
            );
            assert_eq!(walked.iter().filter_map(|s| s.1).collect::<Vec<_>>(), all);
        }
    }
}
