//! What one sample adds to a measure, and the sums.
//!
//! A part is computed where the sample was run, several at once; parts are added in the order of the samples, run by run
//! ([`super::tree`]). Ranges and histograms are counts, exact in any order. Means are summed in f64, a sample at a time.

use super::moments::{self, Moments};
use super::rows::{self, Rows};
use super::{Detail, Measure, Patch, tree};
use crate::ir::{DType, Tensor, ValueId};
use crate::math::histogram::{Histogram, Range};
use crate::math::spread::Spread;
use crate::math::vector::count_nan;
use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

/// One measure of one value, and what was summed so far.
pub struct Job {
    /// Its place among what was asked for.
    pub number: usize,
    /// Which value.
    pub value: ValueId,
    /// What is measured.
    pub measure: Measure,
    /// The sums.
    pub sums: Sums,
}

/// Sums over samples.
#[derive(Default)]
pub enum Sums {
    /// Nothing was added yet.
    #[default]
    None,
    /// See [`Measure::Range`].
    Range(Range),
    /// See [`Measure::Histogram`].
    Histogram(Spread),
    /// See [`Measure::Mean`].
    Mean(Means),
    /// See [`Measure::Gram`].
    Grams(Moments),
}

/// Sums along an axis.
#[derive(Clone, Default)]
pub struct Mean {
    /// Of finite numbers.
    pub sums: Vec<f64>,
    /// How many.
    pub counts: Vec<u64>,
}

/// Sums along an axis, of runs that ended and of one that has not.
#[derive(Default)]
pub struct Means {
    /// Of runs that ended.
    pub all: Option<Mean>,
    open: Option<Mean>,
}

impl Means {
    /// Of a run.
    pub fn of(mean: Mean) -> Means {
        Means {
            all: Some(mean),
            open: None,
        }
    }

    fn end(&mut self) -> Result<()> {
        add(&mut self.all, self.open.take())
    }

    /// The means; zero where no finite number was seen.
    pub fn mean(&self) -> Vec<f64> {
        let pairs = self.all.iter().flat_map(|m| m.sums.iter().zip(&m.counts));
        pairs.map(|(s, &n)| if n == 0 { 0.0 } else { s / n as f64 }).collect()
    }
}

fn add(to: &mut Option<Mean>, other: Option<Mean>) -> Result<()> {
    match (to, other) {
        (Some(sum), Some(m)) => {
            ensure!(sum.sums.len() == m.sums.len(), "changes its dimensions between samples");
            sum.sums.iter_mut().zip(m.sums).for_each(|(a, b)| *a += b);
            sum.counts.iter_mut().zip(m.counts).for_each(|(a, b)| *a += b);
        }
        (to @ None, other) => *to = other,
        (Some(_), None) => {}
    }
    Ok(())
}

/// What one sample adds.
pub enum Part {
    /// To a range.
    Range(Range),
    /// To histograms.
    Histogram(Spread),
    /// To a mean.
    Mean(Mean),
    /// To second moments.
    Rows(Rows),
}

/// Of how many numbers of a sample's value the bins are counted; the range is that of all.
const BINNED: usize = 1 << 16;

/// True for the types that are measured.
pub fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::Float | DType::Double | DType::Float16 | DType::Bfloat16)
}

/// What a value of sample number `sample` of `samples` adds to a measure; `None` when it is no float tensor.
pub fn part(measure: &Measure, t: &Tensor, sample: usize, samples: usize) -> Result<Option<Part>> {
    let Some(x) = t.to_f32().filter(|_| is_float(t.dtype())) else {
        return Ok(None);
    };
    let part = match measure {
        Measure::Range => {
            let mut r = Range::default();
            r.add(&x);
            no_nan(r.nan)?;
            Part::Range(r)
        }
        Measure::Histogram => {
            let mut range = Range::default();
            range.add(&x);
            no_nan(range.nan)?;
            let binned = Histogram::of_some(&rows::some(&x, BINNED, sample), range);
            Part::Histogram(Spread::of(binned))
        }
        Measure::Mean(axis) => Part::Mean(sums_along(&x, t.dims(), rows::axis_of(t.dims(), *axis)?)?),
        Measure::Gram(patch, detail) => {
            let (dim, _) = rows::shape(t.dims(), patch)?;
            let most = rows::most_rows(dim, samples, *detail);
            let rows = rows::cut(&x, t.dims(), patch, sample, most)?;
            no_nan(count_nan(&rows.data))?;
            Part::Rows(rows)
        }
    };
    Ok(Some(part))
}

/// An error when there are NaN.
pub fn no_nan(count: u64) -> Result<()> {
    if count > 0 {
        bail!("{count} numbers are NaN: these data drive the model out of its range; check their scale");
    }
    Ok(())
}

fn sums_along(x: &[f32], dims: &[usize], axis: usize) -> Result<Mean> {
    let inner: usize = dims[axis + 1..].iter().product();
    let length = dims[axis];
    let (mut sums, mut counts) = (vec![0.0f64; length], vec![0u64; length]);
    for (i, run) in x.chunks_exact(inner.max(1)).enumerate() {
        let sum: f64 = run.iter().map(|&x| f64::from(x)).sum();
        if sum.is_finite() {
            sums[i % length] += sum;
            counts[i % length] += run.len() as u64;
            continue;
        }
        no_nan(run.iter().filter(|x| x.is_nan()).count() as u64)?;
        for x in run.iter().filter(|x| x.is_finite()) {
            sums[i % length] += f64::from(*x);
            counts[i % length] += 1;
        }
    }
    Ok(Mean { sums, counts })
}

/// Bytes of second moments over `samples` samples, and of the rows of `waiting` of them.
pub fn gram_bytes(dims: &[usize], (patch, detail): (&Patch, Detail), samples: usize, waiting: usize) -> Result<usize> {
    let (dim, groups) = rows::shape(dims, patch)?;
    let most = rows::most_rows(dim, samples, detail);
    let run = most.saturating_mul(samples.div_ceil(tree::runs(samples).max(1)));
    let per_group = moments::bytes(dim, run, most).and_then(|bytes| {
        let rows = most.checked_mul(waiting)?.checked_mul(dim)?.checked_mul(4)?;
        bytes.checked_add(rows)
    });
    per_group.and_then(|n| n.checked_mul(groups)).context("rows too long")
}

/// Adds one sample's parts, one for every job, on the threads of the pool that this is called in.
///
/// # Errors
/// Says for which value.
pub fn add_all(jobs: &mut [Job], parts: Vec<Option<Part>>) -> Result<(), (ValueId, anyhow::Error)> {
    let add = |(job, part): (&mut Job, Option<Part>)| match part {
        Some(p) => job.add(p).map_err(|e| (job.value, e)),
        None => Ok(()),
    };
    let outcomes: Vec<_> = jobs.par_iter_mut().zip(parts).map(add).collect();
    outcomes.into_iter().collect()
}

/// Ends a run of samples, on the threads of the pool that this is called in.
///
/// # Errors
/// Says for which value.
pub fn end_all(jobs: &mut [Job]) -> Result<(), (ValueId, anyhow::Error)> {
    let end = |job: &mut Job| job.end().map_err(|e| (job.value, e));
    let outcomes: Vec<_> = jobs.par_iter_mut().map(end).collect();
    outcomes.into_iter().collect()
}

impl Job {
    /// Nothing measured yet.
    pub fn new(value: ValueId, measure: Measure) -> Job {
        Job {
            number: 0,
            value,
            measure,
            sums: Sums::None,
        }
    }

    /// Adds what the next sample gives.
    ///
    /// # Errors
    /// When its dimensions differ from those of the samples before.
    pub fn add(&mut self, part: Part) -> Result<()> {
        if let Sums::None = self.sums {
            self.sums = match &part {
                Part::Range(_) => Sums::Range(Range::default()),
                Part::Histogram(_) => Sums::Histogram(Spread::default()),
                Part::Mean(_) => Sums::Mean(Means::default()),
                Part::Rows(rows) => Sums::Grams(Moments::new(rows)),
            };
        }
        match (&mut self.sums, part) {
            (Sums::Range(sum), Part::Range(r)) => sum.merge(&r),
            (Sums::Histogram(sum), Part::Histogram(h)) => sum.merge(&h),
            (Sums::Mean(sum), Part::Mean(m)) => add(&mut sum.open, Some(m))?,
            (Sums::Grams(sum), Part::Rows(rows)) => sum.add(&rows)?,
            _ => bail!("two measures were mixed up"),
        }
        Ok(())
    }

    /// Ends a run of samples.
    ///
    /// # Errors
    /// When the dimensions in it differ from those before.
    pub fn end(&mut self) -> Result<()> {
        match &mut self.sums {
            Sums::Mean(sum) => sum.end(),
            Sums::Grams(sum) => sum.end(),
            Sums::None | Sums::Range(_) | Sums::Histogram(_) => Ok(()),
        }
    }

    /// Adds the sums of a run.
    ///
    /// # Errors
    /// When its dimensions differ from those of the runs before.
    pub fn merge(&mut self, run: Sums) -> Result<()> {
        match (&mut self.sums, run) {
            (_, Sums::None) => {}
            (Sums::Range(sum), Sums::Range(r)) => sum.merge(&r),
            (Sums::Histogram(sum), Sums::Histogram(h)) => sum.merge(&h),
            (Sums::Mean(sum), Sums::Mean(m)) => add(&mut sum.all, m.all)?,
            (Sums::Grams(sum), Sums::Grams(m)) => sum.merge(&m)?,
            (sum @ Sums::None, run) => *sum = run,
            _ => bail!("two measures were mixed up"),
        }
        Ok(())
    }
}
