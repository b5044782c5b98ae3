//! What one sample adds to a measure, and the sums.
//!
//! A part is computed where the sample was run, several at once; parts are added in the order of the samples. Ranges and
//! histograms are counts, exact in any order. Means are summed in f64, a sample at a time.

use super::rows::{self, Rows};
use super::{Measure, Patch};
use crate::ir::{DType, Tensor, ValueId};
use crate::math::gram::Gram;
use crate::math::histogram::{Histogram, Range};
use anyhow::{Context, Result, bail, ensure};
use ndarray::ArrayView2;
use rayon::prelude::*;

/// One measure of one value, and what was summed so far.
pub struct Job {
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
    Histogram(Histogram),
    /// See [`Measure::Mean`].
    Mean(Mean),
    /// See [`Measure::Gram`].
    Grams(Moments),
}

/// Second moments, one for every group, and rows that wait until a block is full: adding a block costs as much as its sums
/// are long, however few its rows.
pub struct Moments {
    grams: Vec<Gram>,
    waiting: Vec<Vec<f32>>,
}

impl Moments {
    fn new(rows: &Rows) -> Moments {
        Moments {
            grams: (0..rows.groups).map(|_| Gram::new(rows.dim)).collect(),
            waiting: vec![Vec::new(); rows.groups],
        }
    }

    fn add(&mut self, rows: &Rows) -> Result<()> {
        let fits = self.grams.len() == rows.groups && self.grams.iter().all(|g| g.dim() == rows.dim);
        ensure!(fits, "changes its dimensions between samples");
        if rows.data.is_empty() {
            return Ok(());
        }
        let new = rows.data.par_chunks_exact(rows.data.len() / rows.groups);
        let all = self.grams.par_iter_mut().zip(&mut self.waiting).zip(new);
        all.map(|((gram, waiting), new)| {
            waiting.extend_from_slice(new);
            match waiting.len() / gram.dim() < worth_adding(gram.dim()) {
                true => Ok(()),
                false => flush(gram, waiting),
            }
        })
        .collect()
    }

    /// The sums of all rows.
    pub fn finish(mut self) -> Result<Vec<Gram>> {
        let all = self.grams.par_iter_mut().zip(&mut self.waiting);
        all.map(|(gram, waiting)| flush(gram, waiting))
            .collect::<Result<()>>()?;
        Ok(self.grams)
    }
}

/// From how many rows on the product of a block takes longer than adding it to the sums.
fn worth_adding(dim: usize) -> usize {
    dim.min(256)
}

fn flush(gram: &mut Gram, waiting: &mut Vec<f32>) -> Result<()> {
    let rows = waiting.len().checked_div(gram.dim()).unwrap_or(0);
    gram.add_rows(ArrayView2::from_shape((rows, gram.dim()), waiting)?)?;
    waiting.clear();
    Ok(())
}

/// Sums along an axis.
pub struct Mean {
    sums: Vec<f64>,
    counts: Vec<u64>,
}

impl Mean {
    /// The means; zero where no finite number was seen.
    pub fn mean(&self) -> Vec<f64> {
        let pairs = self.sums.iter().zip(&self.counts);
        pairs.map(|(s, &n)| if n == 0 { 0.0 } else { s / n as f64 }).collect()
    }
}

/// What one sample adds.
pub enum Part {
    /// To a range.
    Range(Range),
    /// To a histogram.
    Histogram(Box<Histogram>),
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
            Part::Histogram(Box::new(Histogram::of_some(&rows::some(&x, BINNED, sample), range)))
        }
        Measure::Mean(axis) => Part::Mean(sums_along(&x, t.dims(), rows::axis_of(t.dims(), *axis)?)?),
        Measure::Gram(patch) => {
            let (dim, _) = rows::shape(t.dims(), patch)?;
            let most = rows::most_rows(dim, samples);
            let rows = rows::cut(&x, t.dims(), patch, sample, most)?;
            no_nan(rows.data.iter().filter(|x| x.is_nan()).count() as u64)?;
            Part::Rows(rows)
        }
    };
    Ok(Some(part))
}

fn no_nan(count: u64) -> Result<()> {
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

/// Bytes of second moments, and of the rows of `waiting` samples.
pub fn gram_bytes(dims: &[usize], patch: &Patch, samples: usize, waiting: usize) -> Result<usize> {
    let (dim, groups) = rows::shape(dims, patch)?;
    let most = rows::most_rows(dim, samples).saturating_mul(waiting);
    let per_group = Gram::bytes(dim).and_then(|moment| {
        let rows = most
            .checked_add(2 * worth_adding(dim))?
            .checked_mul(dim)?
            .checked_mul(4)?;
        moment.checked_add(rows)
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

impl Job {
    /// Nothing measured yet.
    pub fn new(value: ValueId, measure: Measure) -> Job {
        Job {
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
        match (&mut self.sums, part) {
            (Sums::Range(sum), Part::Range(r)) => sum.merge(&r),
            (Sums::Histogram(sum), Part::Histogram(h)) => sum.merge(&h),
            (Sums::Mean(sum), Part::Mean(m)) => {
                ensure!(sum.sums.len() == m.sums.len(), "changes its dimensions between samples");
                sum.sums.iter_mut().zip(m.sums).for_each(|(a, b)| *a += b);
                sum.counts.iter_mut().zip(m.counts).for_each(|(a, b)| *a += b);
            }
            (Sums::Grams(sum), Part::Rows(rows)) => sum.add(&rows)?,
            (sum @ Sums::None, Part::Range(r)) => *sum = Sums::Range(r),
            (sum @ Sums::None, Part::Histogram(h)) => *sum = Sums::Histogram(*h),
            (sum @ Sums::None, Part::Mean(m)) => *sum = Sums::Mean(m),
            (sum @ Sums::None, Part::Rows(rows)) => {
                let mut moments = Moments::new(&rows);
                moments.add(&rows)?;
                *sum = Sums::Grams(moments);
            }
            _ => bail!("two measures were mixed up"),
        }
        Ok(())
    }
}
