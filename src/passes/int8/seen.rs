//! What was measured of the inputs of weights, and how far it is to be believed.

use super::ranges::Chosen;
use crate::analysis::sites::Site;
use crate::analysis::stats::{Patch, Stats};
use crate::cache::{Key, Objects};
use crate::ir::ValueId;
use crate::math::gram::Gram;
use crate::math::shrink::{Shrunk, for_half, intensity};
use anyhow::Result;
use ndarray::{Array1, Array2};
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
    /// What was rounded before, within a search.
    pub objects: Option<&'a Objects>,
}

/// Second moments of the inputs of sites that read one weight, all together, one for each group; none when nothing was measured.
pub struct Moments<'a> {
    sums: Cow<'a, [Gram]>,
    /// How far the entries off the diagonals are pulled to zero (`math::shrink`); empty: not at all.
    doubt: Vec<f64>,
    /// The mean input of each site, group by group; that of all where its own was not measured.
    means: Vec<Vec<Array1<f64>>>,
}

impl Moments<'_> {
    fn new<'a>(measured: &[&'a Stats], sites: &[&Site], doubt: Vec<f64>) -> Result<Moments<'a>> {
        let own = |site: &Site| summed(measured, std::slice::from_ref(&site));
        let sums = summed(measured, sites)?;
        let means = |sums: &[Gram]| sums.iter().map(Gram::mean).collect::<Vec<_>>();
        let means = match sites {
            [_] => vec![means(&sums)],
            all => {
                let all = all.iter().map(|site| {
                    let own = own(site)?;
                    Ok(means(if own.is_empty() { &sums } else { &own }))
                });
                all.collect::<Result<_>>()?
            }
        };
        Ok(Moments { sums, doubt, means })
    }

    /// The mean input of the `i`-th site, group by group.
    pub fn means(&self, i: usize) -> &[Array1<f64>] {
        self.means.get(i).map_or(&[], |m| m)
    }

    /// Tells all that [`Moments::matrix`] gives.
    pub fn key(&self, mut key: Key) -> Key {
        for sums in &*self.sums {
            let means = sums.sum.as_slice().unwrap_or_default();
            key = key.number(sums.n as usize).numbers(means).numbers(sums.exponents());
            key = sums.rows(false).fold(key, Key::numbers);
        }
        key.numbers(&self.doubt)
    }

    /// How many groups were measured.
    pub fn groups(&self) -> usize {
        self.sums.len()
    }

    /// The covariance of a group (`centered`), or its second moment.
    pub fn matrix(&self, group: usize, centered: bool) -> Array2<f64> {
        let sums = &self.sums[group];
        match self.doubt.get(group) {
            None if centered => sums.covariance(),
            None => sums.moment(),
            Some(doubt) if centered => Shrunk::new(sums, *doubt).covariance,
            Some(doubt) => Shrunk::new(sums, *doubt).into_moment(),
        }
    }
}

impl<'a> Seen<'a> {
    /// Moments alone.
    pub fn of(stats: &'a Stats) -> Seen<'a> {
        Seen {
            stats,
            ranges: BTreeMap::new(),
            halves: None,
            objects: None,
        }
    }
}

impl Seen<'_> {
    /// What all samples say, with this doubt; empty: none.
    ///
    /// # Errors
    /// When what was measured does not fit together.
    pub fn all(&self, sites: &[&Site], doubt: Vec<f64>) -> Result<Moments<'_>> {
        match &self.halves {
            Some([one, other]) => Moments::new(&[one, other], sites, doubt),
            None => Moments::new(&[self.stats], sites, doubt),
        }
    }

    /// How far the entries off the diagonals are to be doubted, group by group: codes of few bits make large errors, which must
    /// cancel on other samples, too. Empty when there are no halves to compare.
    ///
    /// # Errors
    /// When the halves do not fit together.
    pub fn doubt(&self, sites: &[&Site]) -> Result<Vec<f64>> {
        let Some([one, other]) = &self.halves else {
            return Ok(Vec::new());
        };
        let (one, other) = (summed(&[one], sites)?, summed(&[other], sites)?);
        let doubt = |(a, b)| intensity(TIMES, a, b);
        one.iter().zip(&*other).map(doubt).collect()
    }

    /// What the first half says, with the doubt that is due to it; nothing without halves.
    ///
    /// # Errors
    /// When what was measured does not fit together.
    pub fn half(&self, sites: &[&Site], doubt: &[f64]) -> Result<Moments<'_>> {
        let one: Vec<&Stats> = self.halves.iter().map(|[one, _]| one).collect();
        Moments::new(&one, sites, doubt.iter().map(|l| for_half(*l)).collect())
    }
}

/// The sums over the inputs of all sites, over all samples; a value that several read counts once. Empty when nothing was measured.
fn summed<'a>(measured: &[&'a Stats], sites: &[&Site]) -> Result<Cow<'a, [Gram]>> {
    let mut inputs: Vec<(ValueId, &Patch)> = Vec::new();
    for site in sites {
        if !inputs.contains(&(site.input, &site.patch)) {
            inputs.push((site.input, &site.patch));
        }
    }
    let each = inputs
        .iter()
        .flat_map(|(v, patch)| measured.iter().filter_map(|s| s.gram(*v, patch)));
    each.map(|sums| Ok(Cow::Borrowed(sums)))
        .reduce(|all, sums| both(all?, &sums?))
        .unwrap_or(Ok(Cow::Borrowed(&[])))
}

fn both<'a>(all: Cow<'a, [Gram]>, more: &[Gram]) -> Result<Cow<'a, [Gram]>> {
    let mut all = all.into_owned();
    all.iter_mut().zip(more).try_for_each(|(sum, more)| sum.merge(more))?;
    Ok(Cow::Owned(all))
}
