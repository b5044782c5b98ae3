//! What was measured of the inputs of weights, and how far it is to be believed.

use super::ranges::Chosen;
use crate::analysis::sites::Site;
use crate::analysis::stats::Stats;
use crate::ir::ValueId;
use crate::math::gram::Gram;
use crate::math::shrink::{Shrunk, for_half, shrunk_by};
use anyhow::Result;
use ndarray::Array2;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Rounding leans on all directions, weak and strong: the λ that is best for the whole.
const TIMES: f64 = 1.0;

/// What was measured.
pub struct Seen<'a> {
    /// Of the values around operators.
    pub stats: &'a Stats,
    /// Which range of each codes are to cover.
    pub ranges: BTreeMap<ValueId, Chosen>,
    /// The second moments over either half of the samples, when they are not among the rest.
    pub halves: Option<[Stats; 2]>,
}

/// Second moments of the input of a site, one for each group; none when nothing was measured.
pub struct Moments<'a> {
    sums: Cow<'a, [Gram]>,
    /// How far the entries off the diagonals are pulled to zero (`math::shrink`); empty: not at all.
    doubt: Vec<f64>,
}

impl Moments<'_> {
    /// The mean of the input, group by group.
    pub fn means(&self) -> impl Iterator<Item = ndarray::Array1<f64>> {
        self.sums.iter().map(Gram::mean)
    }

    /// The covariances (`centered`), or the second moments.
    pub fn matrices(&self, centered: bool) -> Vec<Array2<f64>> {
        let plain = |sums: &Gram| if centered { sums.covariance() } else { sums.moment() };
        let shrunk = |(sums, doubt): (&Gram, &f64)| {
            let shrunk = Shrunk::new(sums, *doubt);
            if centered {
                shrunk.covariance
            } else {
                shrunk.into_moment()
            }
        };
        match self.doubt.is_empty() {
            true => self.sums.iter().map(plain).collect(),
            false => self.sums.iter().zip(&self.doubt).map(shrunk).collect(),
        }
    }
}

impl Seen<'_> {
    fn halves(&self, site: &Site) -> Option<[&[Gram]; 2]> {
        let [one, other] = self.halves.as_ref()?;
        Some([one.gram(site.input, &site.patch)?, other.gram(site.input, &site.patch)?])
    }

    /// What all samples say, with this doubt; empty: none.
    ///
    /// # Errors
    /// When the halves do not fit together.
    pub fn all(&self, site: &Site, doubt: Vec<f64>) -> Result<Moments<'_>> {
        let sums = match self.halves(site) {
            Some(halves) => Cow::Owned(both(halves)?),
            None => Cow::Borrowed(self.stats.gram(site.input, &site.patch).unwrap_or_default()),
        };
        Ok(Moments { sums, doubt })
    }

    /// How far the entries off the diagonals are to be doubted, group by group: codes of few bits make large errors, which must
    /// cancel on other samples, too. Empty when there are no halves to compare.
    ///
    /// # Errors
    /// When the halves do not fit together.
    pub fn doubt(&self, site: &Site) -> Result<Vec<f64>> {
        let pairs = self.halves(site).map(|[one, other]| one.iter().zip(other));
        let doubt = |(a, b)| Ok(shrunk_by(TIMES, a, b)?.all.intensity);
        pairs.into_iter().flatten().map(doubt).collect()
    }

    /// What the first half says, with the doubt that is due to it; nothing without halves.
    pub fn half(&self, site: &Site, doubt: &[f64]) -> Moments<'_> {
        let sums = self.halves(site).map_or(&[][..], |[one, _]| one);
        Moments {
            sums: Cow::Borrowed(sums),
            doubt: doubt.iter().map(|l| for_half(*l)).collect(),
        }
    }
}

fn both([one, other]: [&[Gram]; 2]) -> Result<Vec<Gram>> {
    let mut all = one.to_vec();
    all.iter_mut().zip(other).try_for_each(|(sum, more)| sum.merge(more))?;
    Ok(all)
}
