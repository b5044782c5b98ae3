//! Statistics of inner values over calibration samples, streamed in bounded memory.
//!
//! All measures are sums over samples, in an order that only the samples' numbers set (`stats/tree.rs`): the result depends neither on
//! the number of threads nor on how the samples were shared among machines.

pub(crate) mod fold;
pub(crate) mod moments;
mod plan;
pub(crate) mod rows;
mod survey;
pub(crate) mod tree;

use crate::data::{Sample, Samples};
use crate::engine::{Engine, Session};
use crate::ir::{Model, ValueId};
use crate::math::gram::Gram;
use crate::math::histogram::{Histogram, Range};
use crate::math::spread::Spread;
use crate::parallel::{in_order, in_order_ahead};
use crate::progress::Progress;
use anyhow::{Context, Result, ensure};
use fold::{Job, Sums};
use plan::{Parts, Plan};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
pub use survey::LOOKED_AT;
use survey::Survey;
use tree::{Course, Known, Part as Shard, Step, Take, Whole};

/// What to measure of a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Measure {
    /// Least and largest element.
    Range,
    /// The distribution of the elements.
    Histogram,
    /// The mean along every index of one axis (negative axes count from the end).
    Mean(i64),
    /// The second moment of rows cut out of the value.
    Gram(Patch, Detail),
}

/// How many rows a second moment is made of. More cost time and tell little.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Detail {
    /// Three for each number in a row, 512 at least: enough to round to 8 bits. Of eleven models of the zoo none lost more than
    /// half a dB by it.
    Coarse,
    /// Eight for each number in a row, 2,048 at least.
    Fine,
}

impl Detail {
    /// How many rows of `dim` numbers, of all samples together.
    fn rows(self, dim: usize) -> usize {
        match self {
            Detail::Coarse => dim.saturating_mul(3).max(512),
            Detail::Fine => dim.saturating_mul(8).max(2048),
        }
    }
}

/// How the rows x of a second moment are cut out of a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Patch {
    /// A row is what lies along this axis, at every index of the others (Gemm, MatMul: -1; 1×1 Conv: 1).
    Axis(i64),
    /// A row is one window of a convolution, channels first: [C/group, k…] flattened, as in the weight's rows; one
    /// moment for every group.
    Windows {
        /// Kernel sizes.
        kernel: Vec<usize>,
        /// Steps.
        strides: Vec<usize>,
        /// Padding with zeros: begins, then ends.
        pads: Vec<usize>,
        /// Distances between kernel taps.
        dilations: Vec<usize>,
        /// Number of groups of channels.
        groups: usize,
    },
}

impl Patch {
    /// Rows along the last axis.
    pub const LAST: Patch = Patch::Axis(-1);
}

/// What was measured. Copies share the second moments.
#[derive(Clone, Default)]
pub struct Stats {
    /// Number of samples seen.
    pub samples: usize,
    ranges: HashMap<ValueId, Range>,
    spreads: HashMap<ValueId, Spread>,
    means: HashMap<(ValueId, i64), Vec<f64>>,
    grams: HashMap<(ValueId, Patch), Arc<Vec<Gram>>>,
}

impl Stats {
    /// The range of a value, if it was measured and is a float tensor.
    pub fn range(&self, v: ValueId) -> Option<&Range> {
        self.ranges.get(&v)
    }
    /// The distribution of a value.
    pub fn histogram(&self, v: ValueId) -> Option<Cow<'_, Histogram>> {
        self.spread(v).map(Spread::all)
    }
    /// The distribution of a value, by the peaks of samples.
    pub fn spread(&self, v: ValueId) -> Option<&Spread> {
        self.spreads.get(&v)
    }
    /// The means of a value along an axis.
    pub fn mean(&self, v: ValueId, axis: i64) -> Option<&[f64]> {
        self.means.get(&(v, axis)).map(Vec::as_slice)
    }
    /// The second moments of a value, one for every group.
    pub fn gram(&self, v: ValueId, patch: &Patch) -> Option<&[Gram]> {
        self.grams.get(&(v, patch.clone())).map(|all| &all[..])
    }

    /// Bytes that it takes, about.
    pub fn bytes(&self) -> usize {
        let grams = self.grams.values().flat_map(|all| all.iter());
        let grams = grams.filter_map(|g| Gram::bytes(g.dim()));
        let spreads = self.spreads.values().map(Spread::bytes);
        grams.chain(spreads).fold(0, usize::saturating_add)
    }
}

/// Second moments that are summed at once may take so many bytes, rows that wait to be added included. A single one that
/// needs more is left out.
const MOMENTS: usize = 1_500_000_000;

/// Measures values of the main graph. Values that are no float tensors, and second moments of more than 1.5 GB (rows of
/// some 13,000 numbers), are left out of the result. The first samples tell how large numbers usually are
/// ([`Samples::spread_first`]).
///
/// Memory is bounded: samples are read one by one, and second moments that do not fit together are measured in several
/// runs over the samples.
///
/// # Errors
/// When the engine cannot load the model, a sample fails, or a value is NaN (the message names it).
pub fn measure(
    model: &Model,
    wanted: &[(ValueId, Measure)],
    engine: &dyn Engine,
    samples: &Samples,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Stats> {
    let runner = Runner {
        model,
        engine,
        samples,
        threads,
        progress,
    };
    runner.all(wanted, None)
}

/// What has to be run for: no constants, nothing twice, in a fixed order.
pub(crate) fn asked(model: &Model, wanted: &[(ValueId, Measure)]) -> Vec<(ValueId, Measure)> {
    let computed = distinct(wanted)
        .into_iter()
        .filter(|(v, _)| model.constant(*v).is_none());
    computed
        .flat_map(|(v, all)| all.into_iter().map(move |m| (v, m)))
        .collect()
}

fn distinct(wanted: &[(ValueId, Measure)]) -> Wanted {
    let mut jobs: BTreeMap<ValueId, Vec<Measure>> = BTreeMap::new();
    for (v, m) in wanted {
        let measures = jobs.entry(*v).or_default();
        if !measures.contains(m) {
            measures.push(m.clone());
        }
    }
    for measures in jobs.values_mut().filter(|m| m.contains(&Measure::Histogram)) {
        measures.retain(|m| *m != Measure::Range); // a histogram knows its range
    }
    jobs.into_iter().collect()
}

fn too_large(measure: &Measure, dims: &[usize]) -> Result<bool> {
    match measure {
        Measure::Gram(patch, detail) => Ok(fold::gram_bytes(dims, (patch, *detail), 1, 1)? > MOMENTS),
        _ => Ok(false),
    }
}

/// What is measured, on which samples, with what.
pub(crate) struct Runner<'a> {
    /// The model.
    pub model: &'a Model,
    /// What runs it.
    pub engine: &'a dyn Engine,
    /// All samples.
    pub samples: &'a Samples,
    /// How many threads to use; results do not depend on it.
    pub threads: usize,
    /// Where progress is shown.
    pub progress: &'a dyn Progress,
}

type Wanted = Vec<(ValueId, Vec<Measure>)>;

/// What samples gave that were run before their turn.
type Early = BTreeMap<usize, Parts>;

impl Runner<'_> {
    /// As [`measure`], but for runs of samples whose sums are known.
    pub fn all(&self, wanted: &[(ValueId, Measure)], known: Option<&dyn Known>) -> Result<Stats> {
        let samples = self.samples.len();
        let mut stats = Stats {
            samples,
            ..Stats::default()
        };
        let (constant, computed): (Wanted, Wanted) = distinct(wanted)
            .into_iter()
            .partition(|(v, _)| self.model.constant(*v).is_some());
        self.constants(constant, &mut stats)?;
        if computed.is_empty() {
            return Ok(stats);
        }
        ensure!(samples > 0, "there is no sample to measure with");
        let has = |run: &usize| known.is_some_and(|k| k.has(*run));
        let missing: Vec<usize> = (0..tree::runs(samples)).filter(|run| !has(run)).collect();
        let mut whole = Whole {
            known,
            samples,
            stats: &mut stats,
        };
        match missing.is_empty() {
            true => numbered(&computed).try_for_each(|job| whole.only_known(job))?,
            false => self.measure(computed, &missing, &mut whole)?,
        }
        Ok(stats)
    }

    /// Measures some runs of samples ([`tree`]) and gives away the sums of each, for everything that is [`asked`].
    pub fn some(&self, wanted: &[(ValueId, Measure)], runs: &[usize], take: &mut Take) -> Result<()> {
        let computed: Wanted = distinct(wanted)
            .into_iter()
            .filter(|(v, _)| self.model.constant(*v).is_none())
            .collect();
        if runs.is_empty() || computed.is_empty() {
            return Ok(());
        }
        let mut shard = Shard::new(numbered(&computed).map(|j| j.number), take);
        self.measure(computed, runs, &mut shard)?;
        shard.finish(runs)
    }

    fn constants(&self, wanted: Wanted, stats: &mut Stats) -> Result<()> {
        for (v, measures) in wanted {
            let Some(t) = self.model.constant(v) else { continue };
            let named = || self.model.value(v).name.clone();
            let mut sums: Vec<Job> = measures.into_iter().map(|m| Job::new(v, m)).collect();
            for job in &mut sums {
                if too_large(&job.measure, t.dims()).with_context(named)? {
                    continue;
                }
                let part = fold::part(&job.measure, t, 0, 1).with_context(named)?;
                part.map_or(Ok(()), |p| job.add(p)).with_context(named)?;
                job.end()?;
            }
            stats.take(sums);
        }
        Ok(())
    }

    fn measure(&self, wanted: Wanted, runs: &[usize], course: &mut dyn Course) -> Result<()> {
        let session = self.load(&wanted, &self.samples.get(0)?)?;
        let walk = tree::walk(runs, self.samples.len());
        let moments = |m: &Measure| matches!(m, Measure::Gram(..));
        let (survey, mut rounds, early) = match wanted.iter().any(|(_, m)| m.iter().any(moments)) {
            true => self.survey(&wanted, &walk, &*session)?,
            false => (Survey::default(), vec![numbered(&wanted).collect()], Early::new()),
        };
        number(&mut rounds, &wanted);
        self.progress.start("measure", walk.len() * rounds.len());
        if let [only] = rounds.as_mut_slice() {
            self.round(
                &wanted,
                std::mem::take(only),
                &*session,
                (&survey, early, &walk, course),
            )?;
            drop(session);
        } else {
            drop(session);
            for jobs in rounds {
                let needed: BTreeSet<ValueId> = jobs
                    .iter()
                    .flat_map(|j| survey.watched(j.value).chain([j.value]))
                    .collect();
                let values = wanted.iter().filter(|(v, _)| needed.contains(v)).cloned().collect();
                let session = self.load(&values, &self.samples.get(0)?)?;
                self.round(&values, jobs, &*session, (&survey, Early::new(), &walk, course))?;
            }
        }
        self.progress.finish();
        Ok(())
    }

    /// Looks at some samples; when all can be measured in one round, what those of the walk give is kept for it.
    fn survey(&self, wanted: &Wanted, walk: &[Step], session: &dyn Session) -> Result<(Survey, Vec<Vec<Job>>, Early)> {
        let mut survey = Survey::new(self.model, wanted);
        let look = |some: &[usize], survey: &mut Survey| {
            survey.look(session, (self.model, wanted), (self.samples, some), self.threads)
        };
        look(&[0], &mut survey)?;
        let rounds = self.rounds(wanted, &survey)?;
        let walked: BTreeSet<usize> = walk.iter().map(|w| w.0).collect();
        let kept = |i: &usize| rounds.len() == 1 && walked.contains(i);
        let (early, others): (Vec<usize>, Vec<usize>) = (1..LOOKED_AT.min(self.samples.len())).partition(kept);
        look(&others, &mut survey)?;
        let plan = Plan::new(self.model, wanted, &rounds[0], &survey);
        let mut all = Early::new();
        let run = |k: usize| plan.run(session, self.samples, early[k]);
        in_order(early.len(), self.threads, run, |k, parts| {
            survey.add(&parts.powers);
            all.insert(early[k], parts);
            Ok(())
        })?;
        Ok((survey, rounds, all))
    }

    fn load(&self, wanted: &Wanted, like: &Sample) -> Result<Box<dyn Session>> {
        let values: Vec<ValueId> = wanted.iter().map(|(v, _)| *v).collect();
        Ok(self.engine.load(self.model, &values, like)?)
    }

    /// Which measures are taken in which run over the samples: everything small in the first, moments as memory allows.
    fn rounds(&self, wanted: &Wanted, survey: &Survey) -> Result<Vec<Vec<Job>>> {
        let mut rounds: Vec<Vec<Job>> = vec![Vec::new()];
        let mut taken = 0usize;
        for (v, measures) in wanted {
            let Some((dtype, dims)) = survey.shape(*v) else {
                continue;
            };
            for m in measures.iter().filter(|_| fold::is_float(dtype)) {
                if let Measure::Gram(patch, detail) = m {
                    let bytes = |waiting| {
                        let bytes = fold::gram_bytes(dims, (patch, *detail), self.samples.len(), waiting);
                        bytes.with_context(|| self.model.value(*v).name.clone())
                    };
                    if bytes(1)? > MOMENTS {
                        continue; // whatever the number of threads
                    }
                    let bytes = bytes(self.threads + 1)?;
                    if taken > 0 && taken + bytes > MOMENTS {
                        rounds.push(Vec::new());
                        taken = 0;
                    }
                    taken += bytes;
                    rounds.last_mut().expect("one at least").push(Job::new(*v, m.clone()));
                } else {
                    rounds[0].push(Job::new(*v, m.clone()));
                }
            }
        }
        Ok(rounds)
    }

    fn round(
        &self,
        wanted: &Wanted,
        mut jobs: Vec<Job>,
        session: &dyn Session,
        (survey, early, walk, course): (&Survey, Early, &[Step], &mut dyn Course),
    ) -> Result<()> {
        let plan = Plan::new(self.model, wanted, &jobs, survey);
        let early = Mutex::new(early);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads.max(1))
            .build()?;
        course.begin(&mut jobs)?;
        in_order_ahead(
            walk.len(),
            (self.threads, 1), // adding takes all threads, too
            |step| {
                let i = walk[step].0;
                let known = early.lock().expect("no thread panics while it holds it").remove(&i);
                let parts = known.map_or_else(|| plan.run(session, self.samples, i), Ok)?;
                Ok(plan.weighed(parts, survey, self.samples.number(i)))
            },
            |step, parts| {
                let (i, ends) = walk[step];
                self.progress.advance(1);
                let named = |(v, e): (ValueId, anyhow::Error)| {
                    e.context(format!(
                        "{}, sample {}",
                        self.model.value(v).name,
                        self.samples.number(i)
                    ))
                };
                pool.install(|| fold::add_all(&mut jobs, parts)).map_err(named)?;
                let Some(run) = ends else { return Ok(()) };
                pool.install(|| fold::end_all(&mut jobs)).map_err(named)?;
                course.ended(run, &mut jobs)
            },
        )?;
        course.done(jobs)
    }
}

/// A job for every measure.
fn numbered(wanted: &Wanted) -> impl Iterator<Item = Job> {
    let all = wanted
        .iter()
        .flat_map(|(v, all)| all.iter().map(|m| Job::new(*v, m.clone())));
    all.enumerate().map(|(number, job)| Job { number, ..job })
}

/// Numbers jobs as [`numbered`] does.
fn number(rounds: &mut [Vec<Job>], wanted: &Wanted) {
    let of = |job: Job| ((job.value, job.measure), job.number);
    let numbers: HashMap<_, _> = numbered(wanted).map(of).collect();
    for job in rounds.iter_mut().flatten() {
        job.number = numbers[&(job.value, job.measure.clone())];
    }
}

impl Stats {
    fn take(&mut self, jobs: impl IntoIterator<Item = Job>) {
        for job in jobs {
            let v = job.value;
            match (job.sums, job.measure) {
                (Sums::None, _) => {}
                (Sums::Range(r), _) => drop(self.ranges.insert(v, r)),
                (Sums::Histogram(h), _) => {
                    self.ranges.insert(v, h.all().range);
                    self.spreads.insert(v, h);
                }
                (Sums::Mean(m), Measure::Mean(axis)) => drop(self.means.insert((v, axis), m.mean())),
                (Sums::Grams(g), Measure::Gram(patch, _)) => {
                    drop(self.grams.insert((v, patch), Arc::new(g.into_grams())))
                }
                (Sums::Mean(_) | Sums::Grams(_), _) => {}
            }
        }
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests;
