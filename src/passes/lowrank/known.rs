//! What is known of a layer's input, and how far it can be trusted.
//!
//! Directions are chosen on one half of the samples, the error is judged on the other. To what the other half says, one
//! sample of entries that are independent, each of its measured power, is added: `(1 − β) C + β diag(C)` with
//! `β = 1/(1 + n)`. Rows of one sample (pixels, tokens) are evidence, but not independent: n is the geometric mean of samples and rows. Inputs that calibration never showed (a class, a page turned another way) excite other
//! directions than those that were seen; with few samples, a factorization must also be good for the weights themselves.

use crate::analysis::sites::Site;
use crate::analysis::stats::Stats;
use crate::math::gram::Gram;
use crate::math::shrink::{Halved, Shrunk, for_half, shrunk};
use anyhow::Result;
use ndarray::{Array1, Array2};

/// Second moments of the inputs of sites over two halves of the samples.
pub struct Halves {
    /// Over either half; the second may be empty.
    pub stats: [Stats; 2],
}

/// The input of one site.
pub struct Known {
    /// The mean over all samples.
    pub mean: Array1<f64>,
    /// The second moment that the factors are made for: around the mean when the bias may change, else around zero.
    pub all: Array2<f64>,
    /// The mean over the first half.
    pub half_mean: Array1<f64>,
    /// As `all`, from the first half only.
    pub half: Array2<f64>,
    /// The covariance that errors are relative to, of the second half.
    pub spread: Array2<f64>,
    apart: Option<Array2<f64>>,
}

impl Halves {
    /// What is known of a site's input; `None` when nothing was measured.
    ///
    /// # Errors
    /// When the halves do not fit together.
    pub fn of(&self, site: &Site, columns: usize, centered: bool) -> Result<Option<Known>> {
        let [a, b] = &self.stats;
        let samples = a.samples + b.samples;
        match (gram(a, site, columns), gram(b, site, columns)) {
            (Some(one), Some(other)) => Known::new(one, Some(other), samples, centered).map(Some),
            (Some(one), None) | (None, Some(one)) => Known::new(one, None, samples, centered).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// The sums over a site's input, when there are any of rows of this length.
fn gram<'s>(stats: &'s Stats, site: &Site, columns: usize) -> Option<&'s Gram> {
    let gram = stats.gram(site.input, &site.patch)?.first()?;
    (gram.dim() == columns && gram.n > 0).then_some(gram)
}

impl Known {
    /// From the sums over both halves (or one, if there is no other) of this many samples.
    ///
    /// # Errors
    /// When their sizes differ.
    pub fn new(one: &Gram, other: Option<&Gram>, samples: usize, centered: bool) -> Result<Known> {
        let Halved {
            all,
            one: first,
            other: second,
        } = shrunk(one, other.unwrap_or(&Gram::new(one.dim())))?;
        let (half, mut spread, mean) = match other {
            Some(other) => {
                let half = Shrunk::of(one, first, for_half(all.intensity));
                (half, second, other.mean())
            }
            None => (all.clone(), first, one.mean()),
        };
        // Around the mean that the bias is adjusted to.
        outer(&mut spread, &(&mean - &half.mean));
        let evidence = (samples as f64 * all.rows as f64).sqrt();
        let trust = evidence / (1.0 + evidence);
        spread *= trust;
        let powers = all.covariance.diag().to_owned();
        spread.diag_mut().scaled_add(1.0 - trust, &powers);
        let apart = (!centered).then(|| {
            let mut moment = spread.clone();
            outer(&mut moment, &mean);
            moment
        });
        let moment = |s: Shrunk| if centered { s.covariance } else { s.into_moment() };
        Ok(Known {
            mean: all.mean.clone(),
            half_mean: half.mean.clone(),
            all: moment(all),
            half: moment(half),
            spread,
            apart,
        })
    }

    /// What factors made from the first half are judged by: the second half's moment, around the mean when the bias may change.
    pub fn unseen(&self) -> &Array2<f64> {
        self.apart.as_ref().unwrap_or(&self.spread)
    }
}

/// `m += v vᵀ`.
fn outer(m: &mut Array2<f64>, v: &Array1<f64>) {
    for (mut row, &x) in m.rows_mut().into_iter().zip(v) {
        row.scaled_add(x, v);
    }
}
