//! Sums of second moments, run by run ([`super::tree`]).
//!
//! Adding a product of rows costs as much as the sums are long, however few the rows. So rows wait: short ones until there are as
//! many as numbers in a row (64 at least), long ones until [`ROWS`] are there or the run of samples ends. Where all rows of a run are
//! multiplied at once, their product is the sum of the run, and goes into the whole at once; only where there are more, the run
//! has sums of its own.

use super::rows::Rows;
use crate::math::gram::{Gram, ROWS};
use anyhow::{Result, ensure};
use ndarray::ArrayView2;
use rayon::prelude::*;

/// Second moments, one for every group.
#[derive(Default)]
pub struct Moments {
    grams: Vec<Gram>,
    open: Vec<Open>,
}

/// What was seen of a run that has not ended.
#[derive(Default)]
struct Open {
    sums: Option<Gram>,
    waiting: Vec<f32>,
}

impl Moments {
    /// Sums over rows like these, with none of them.
    pub fn new(rows: &Rows) -> Moments {
        Moments::of((0..rows.groups).map(|_| Gram::new(rows.dim)).collect())
    }

    /// With these sums.
    pub fn of(grams: Vec<Gram>) -> Moments {
        let open = grams.iter().map(|_| Open::default()).collect();
        Moments { grams, open }
    }

    /// Adds a sample's rows.
    ///
    /// # Errors
    /// When they are others than before.
    pub fn add(&mut self, rows: &Rows) -> Result<()> {
        let fits = self.grams.len() == rows.groups && self.grams.iter().all(|g| g.dim() == rows.dim);
        ensure!(fits, "changes its dimensions between samples");
        if rows.data.is_empty() {
            return Ok(());
        }
        let dim = rows.dim;
        let new = rows.data.par_chunks_exact(rows.data.len() / rows.groups);
        let all = self.open.par_iter_mut().zip(new);
        all.map(|(open, new)| {
            open.waiting.reserve_exact(new.len());
            open.waiting.extend_from_slice(new);
            match open.waiting.len() / dim < worth_adding(dim) {
                true => Ok(()),
                false => flush(open.sums.get_or_insert_with(|| Gram::new(dim)), &mut open.waiting),
            }
        })
        .collect()
    }

    /// Ends a run of samples.
    ///
    /// # Errors
    /// Never, for rows that were added.
    pub fn end(&mut self) -> Result<()> {
        let all = self.grams.par_iter_mut().zip(&mut self.open);
        all.map(|(gram, open)| match open.sums.take() {
            // Less than `ROWS`: one product.
            None => flush(gram, &mut open.waiting),
            Some(mut sums) => {
                flush(&mut sums, &mut open.waiting)?;
                gram.merge(&sums)
            }
        })
        .collect()
    }

    /// Adds the sums of a run.
    ///
    /// # Errors
    /// When they are over other rows.
    pub fn merge(&mut self, other: &Moments) -> Result<()> {
        let fits = self.grams.len() == other.grams.len()
            && self.grams.iter().zip(&other.grams).all(|(a, b)| a.dim() == b.dim());
        ensure!(fits, "changes its dimensions between samples");
        let mut all = self.grams.iter_mut().zip(&other.grams);
        all.try_for_each(|(a, b)| a.merge(b))
    }

    /// The sums of all runs that ended.
    pub fn grams(&self) -> &[Gram] {
        &self.grams
    }

    /// The sums of all runs that ended.
    pub fn into_grams(self) -> Vec<Gram> {
        self.grams
    }
}

/// From how many rows on a product is added. A depthwise convolution has a thousand short moments, and each product its price.
fn worth_adding(dim: usize) -> usize {
    if dim < 256 { dim.max(64) } else { ROWS }
}

fn flush(gram: &mut Gram, waiting: &mut Vec<f32>) -> Result<()> {
    let rows = waiting.len().checked_div(gram.dim()).unwrap_or(0);
    gram.add_rows(ArrayView2::from_shape((rows, gram.dim()), waiting)?)?;
    waiting.clear();
    Ok(())
}

/// Bytes of one second moment while `run` rows of a run come in, `most` at once; `None` when that is no number.
pub fn bytes(dim: usize, run: usize, most: usize) -> Option<usize> {
    let sums = if run < worth_adding(dim) { 1 } else { 2 };
    let rows = run.min(worth_adding(dim).checked_add(most)?).checked_mul(2)?;
    Gram::bytes(dim)?
        .checked_mul(sums)?
        .checked_add(rows.checked_mul(dim)?.checked_mul(4)?)
}
