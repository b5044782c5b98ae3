//! Statistics of inner values over calibration samples, streamed in bounded memory.
//!
//! All measures are sums over samples, in the order of the samples: the result does not depend on the number of threads.

mod fold;
pub(crate) mod rows;

use crate::data::{Sample, Samples};
use crate::engine::{Engine, Session};
use crate::ir::{DType, Model, ValueId};
use crate::math::gram::Gram;
use crate::math::histogram::{Histogram, Range};
use crate::parallel::in_order;
use crate::progress::Progress;
use anyhow::{Context, Result, ensure};
use fold::{Job, Part, Sums};
use std::collections::{BTreeMap, HashMap};

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
    Gram(Patch),
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

/// What was measured.
#[derive(Default)]
pub struct Stats {
    /// Number of samples seen.
    pub samples: usize,
    ranges: HashMap<ValueId, Range>,
    histograms: HashMap<ValueId, Histogram>,
    means: HashMap<(ValueId, i64), Vec<f64>>,
    grams: HashMap<(ValueId, Patch), Vec<Gram>>,
}

impl Stats {
    /// The range of a value, if it was measured and is a float tensor.
    pub fn range(&self, v: ValueId) -> Option<&Range> {
        self.ranges.get(&v)
    }
    /// The distribution of a value.
    pub fn histogram(&self, v: ValueId) -> Option<&Histogram> {
        self.histograms.get(&v)
    }
    /// The means of a value along an axis.
    pub fn mean(&self, v: ValueId, axis: i64) -> Option<&[f64]> {
        self.means.get(&(v, axis)).map(Vec::as_slice)
    }
    /// The second moments of a value, one for every group.
    pub fn gram(&self, v: ValueId, patch: &Patch) -> Option<&[Gram]> {
        self.grams.get(&(v, patch.clone())).map(Vec::as_slice)
    }
}

/// Second moments that are summed at once may take so many bytes, rows that wait to be added included. A single one that
/// needs more is left out.
const MOMENTS: usize = 1_500_000_000;

/// Measures values of the main graph. Values that are no float tensors, and second moments of more than 1.5 GB (rows of
/// some 13,000 numbers), are left out of the result.
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
    let mut stats = Stats {
        samples: samples.len(),
        ..Stats::default()
    };
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
    let (known, computed): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|(v, _)| model.constant(*v).is_some());
    for (v, measures) in known {
        let Some(t) = model.constant(v) else { continue };
        let named = || model.value(v).name.clone();
        let mut sums: Vec<Job> = measures.into_iter().map(|m| Job::new(v, m)).collect();
        for job in &mut sums {
            if too_large(&job.measure, t.dims()).with_context(named)? {
                continue;
            }
            let part = fold::part(&job.measure, t, 0, 1).with_context(named)?;
            part.map_or(Ok(()), |p| job.add(p)).with_context(named)?;
        }
        stats.take(sums)?;
    }
    if computed.is_empty() {
        return Ok(stats);
    }
    ensure!(!samples.is_empty(), "there is no sample to measure with");
    let runner = Runner {
        model,
        engine,
        samples,
        threads,
        progress,
    };
    runner.measure(computed, &mut stats)?;
    Ok(stats)
}

fn too_large(measure: &Measure, dims: &[usize]) -> Result<bool> {
    match measure {
        Measure::Gram(patch) => Ok(fold::gram_bytes(dims, patch, 1, 1)? > MOMENTS),
        _ => Ok(false),
    }
}

struct Runner<'a> {
    model: &'a Model,
    engine: &'a dyn Engine,
    samples: &'a Samples,
    threads: usize,
    progress: &'a dyn Progress,
}

type Wanted = Vec<(ValueId, Vec<Measure>)>;
/// Types and dimensions of the wanted values, by number.
type Shapes = BTreeMap<usize, (DType, Vec<usize>)>;

fn shapes(session: &dyn Session, sample: &Sample) -> Result<Shapes> {
    let mut shapes = Shapes::new();
    session.visit(sample, &mut |i, value| {
        shapes.insert(i, (value.dtype(), value.dims().to_vec()));
        Ok(())
    })?;
    Ok(shapes)
}

impl Runner<'_> {
    fn measure(&self, wanted: Wanted, stats: &mut Stats) -> Result<()> {
        let first = self.samples.get(0)?;
        let session = self.load(&wanted, &first)?;
        let moments = |m: &Measure| matches!(m, Measure::Gram(_));
        let mut rounds = match wanted.iter().any(|(_, m)| m.iter().any(moments)) {
            true => self.rounds(&wanted, &shapes(&*session, &first)?)?,
            false => {
                let all =
                    |(v, m): &(ValueId, Vec<Measure>)| m.iter().map(|m| Job::new(*v, m.clone())).collect::<Vec<_>>();
                vec![wanted.iter().flat_map(all).collect()]
            }
        };
        self.progress.start("measure", self.samples.len() * rounds.len());
        if let [only] = rounds.as_mut_slice() {
            stats.take(self.round(&wanted, std::mem::take(only), &*session)?)?;
        } else {
            drop(session);
            for jobs in rounds {
                let values: Wanted = wanted
                    .iter()
                    .filter(|(v, _)| jobs.iter().any(|j| j.value == *v))
                    .cloned()
                    .collect();
                let session = self.load(&values, &first)?;
                stats.take(self.round(&values, jobs, &*session)?)?;
            }
        }
        self.progress.finish();
        Ok(())
    }

    fn load(&self, wanted: &Wanted, like: &Sample) -> Result<Box<dyn Session>> {
        let values: Vec<ValueId> = wanted.iter().map(|(v, _)| *v).collect();
        Ok(self.engine.load(self.model, &values, like)?)
    }

    /// Which measures are taken in which run over the samples: everything small in the first, moments as memory allows.
    fn rounds(&self, wanted: &Wanted, shapes: &Shapes) -> Result<Vec<Vec<Job>>> {
        let mut rounds: Vec<Vec<Job>> = vec![Vec::new()];
        let mut taken = 0usize;
        for (i, (v, measures)) in wanted.iter().enumerate() {
            let Some((dtype, dims)) = shapes.get(&i) else { continue };
            for m in measures.iter().filter(|_| fold::is_float(*dtype)) {
                if let Measure::Gram(patch) = m {
                    let bytes = fold::gram_bytes(dims, patch, self.samples.len(), 2 * self.threads);
                    let bytes = bytes.with_context(|| self.model.value(*v).name.clone())?;
                    if bytes > MOMENTS {
                        continue;
                    }
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

    fn round(&self, wanted: &Wanted, mut jobs: Vec<Job>, session: &dyn Session) -> Result<Vec<Job>> {
        let n = self.samples.len();
        let place: HashMap<ValueId, usize> = wanted.iter().enumerate().map(|(i, (v, _))| (*v, i)).collect();
        let mut plan: Vec<Vec<(usize, Measure)>> = vec![Vec::new(); wanted.len()];
        for (k, job) in jobs.iter().enumerate() {
            plan[place[&job.value]].push((k, job.measure.clone()));
        }
        let count = jobs.len();
        let name = |v: ValueId| self.model.value(v).name.clone();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(self.threads.max(1))
            .build()?;
        in_order(
            n,
            self.threads,
            |i| {
                let sample = self.samples.get(i)?;
                let mut parts: Vec<Option<Part>> = (0..count).map(|_| None).collect();
                let run = session.visit(&sample, &mut |at, value| {
                    for (k, measure) in &plan[at] {
                        let part = fold::part(measure, &value, i, n);
                        parts[*k] = part.with_context(|| name(wanted[at].0))?;
                    }
                    Ok(())
                });
                run.with_context(|| format!("sample {i}"))?;
                Ok(parts)
            },
            |i, parts| {
                self.progress.advance(1);
                pool.install(|| fold::add_all(&mut jobs, parts))
                    .map_err(|(v, e)| e.context(format!("{}, sample {i}", name(v))))
            },
        )?;
        Ok(jobs)
    }
}

impl Stats {
    fn take(&mut self, jobs: Vec<Job>) -> Result<()> {
        for job in jobs {
            let v = job.value;
            match (job.sums, job.measure) {
                (Sums::None, _) => {}
                (Sums::Range(r), _) => drop(self.ranges.insert(v, r)),
                (Sums::Histogram(h), _) => {
                    self.ranges.insert(v, h.range);
                    self.histograms.insert(v, h);
                }
                (Sums::Mean(m), Measure::Mean(axis)) => drop(self.means.insert((v, axis), m.mean())),
                (Sums::Grams(g), Measure::Gram(patch)) => drop(self.grams.insert((v, patch), g.finish()?)),
                (Sums::Mean(_) | Sums::Grams(_), _) => {}
            }
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests;
