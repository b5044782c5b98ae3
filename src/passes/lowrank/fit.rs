//! One layer: its spectrum under the data, the rank for an error, the factors.

use crate::analysis::sites::Site;
use crate::analysis::stats::Stats;
use crate::ir::Model;
use crate::math::gram::Gram;
use crate::math::lowrank::{Spectrum, bias_shift};
use crate::math::shrink::{Shrunk, for_half, powers, shrunk};
use anyhow::Result;
use ndarray::{Array1, Array2, Axis};

/// What is to be done at a site.
pub struct Plan {
    pub site: Site,
    pub rank: usize,
    /// Predicted error of the output relative to its variance; without data, squared error of the weight relative to its size.
    pub error: f64,
    /// True when the error rests on data.
    pub measured: bool,
    /// r × in.
    pub first: Array2<f32>,
    /// out × r.
    pub second: Array2<f32>,
    /// All that is to be added to the output, when the mean error goes there.
    pub bias: Option<Vec<f32>>,
}

/// Sums over the input of a site in two halves of the samples; the second may be empty.
pub struct Halves<'s>(pub &'s Gram, pub Option<&'s Gram>);

/// A weight and its spectrum, in a measure of error that [`loudness`] says.
pub struct Fit {
    weight: Array2<f64>,
    /// Every output is divided by this before errors are added up.
    units: Array1<f64>,
    spectrum: Spectrum,
    /// Error of the output at every rank from 0, relative to its variance, both in these units; not rising.
    errors: Vec<f64>,
    measured: bool,
    /// The bias as it is, and the mean input, when the bias may change.
    centre: Option<(Vec<f32>, Array1<f64>)>,
}

/// What was measured of a site's input in two halves of the samples; `None` when nothing was.
pub fn halves<'s>(one: &'s Stats, other: &'s Stats, site: &Site) -> Option<Halves<'s>> {
    let of = |stats: &'s Stats| {
        let gram = stats.gram(site.input, &site.patch)?.first()?;
        (gram.dim() == site.inputs() && gram.n > 0).then_some(gram)
    };
    match (of(one), of(other)) {
        (Some(a), b) => Some(Halves(a, b)),
        (None, Some(b)) => Some(Halves(b, None)),
        (None, None) => None,
    }
}

impl Fit {
    /// The spectrum of a site's weight, for inputs as measured, or (`None`) for white noise.
    pub fn new(model: &Model, site: &Site, input: Option<Halves>, centered: bool) -> Result<Fit> {
        let weight = site.matrix(model)?.mapv(f64::from);
        let Some(Halves(one, other)) = input else {
            let spectrum = Spectrum::new(weight.view(), None)?;
            return Ok(Fit {
                errors: (0..=spectrum.full_rank()).map(|r| spectrum.error(r)).collect(),
                units: Array1::ones(weight.nrows()),
                weight,
                spectrum,
                measured: false,
                centre: None,
            });
        };
        // A MatMul without an Add after it has no bias that could change.
        let adjustable = site.bias.is_some() || !model.node(site.node).is("MatMul");
        let bias = site.bias_values(model).filter(|_| centered && adjustable);
        let all = shrunk(one, other.unwrap_or(&Gram::new(one.dim())))?;
        let units = loudness(&powers(weight.view(), all.covariance.view()));
        let scaled = &weight / &units.view().insert_axis(Axis(1));
        let under = |input: &Shrunk| match bias {
            Some(_) => Spectrum::new(scaled.view(), Some(input.covariance.view())),
            None => Spectrum::new(scaled.view(), Some(input.moment().view())),
        };
        let spectrum = under(&all)?;
        let errors = match other {
            Some(other) => {
                let half = Shrunk::new(one, for_half(all.intensity));
                unseen(&scaled, &under(&half)?, &half, other, bias.is_some())
            }
            None => {
                let power = powers(scaled.view(), all.covariance.view()).iter().sum();
                let lost = (0..=spectrum.full_rank()).map(|r| spectrum.residual(r));
                lost.map(|x| relative(x, power)).collect()
            }
        };
        Ok(Fit {
            weight,
            units,
            spectrum,
            errors,
            measured: true,
            centre: bias.map(|b| (b, all.mean)),
        })
    }

    /// What is lost at this rank, relative to the variance of the output.
    pub fn error(&self, rank: usize) -> f64 {
        self.errors.get(rank).copied().unwrap_or(0.0)
    }

    /// The smallest rank whose error is at most this.
    pub fn rank_for(&self, error: f64) -> usize {
        let found = self.errors.iter().position(|&e| e <= error);
        found.unwrap_or(self.spectrum.full_rank())
    }

    /// The factors at a rank.
    pub fn plan(self, site: &Site, rank: usize) -> Plan {
        let units = self.units.view().insert_axis(Axis(1));
        let (mut first, mut second) = self.spectrum.factors(rank, (&self.weight / &units).view());
        second *= &units;
        let scale = f64::from(site.layout.scale);
        let bias = self.centre.as_ref().map(|(bias, mean)| {
            let shift = bias_shift(self.weight.view(), first.view(), second.view(), mean.view());
            let shifted = bias.iter().zip(&shift).map(|(&b, s)| (f64::from(b) + scale * s) as f32);
            shifted.collect()
        });
        self.balance(&mut first, &mut second);
        Plan {
            site: site.clone(),
            rank: second.ncols(),
            error: self.error(rank),
            measured: self.measured,
            first: first.mapv(|x| x as f32),
            second: second.mapv(|x| x as f32),
            bias,
        }
    }

    /// Parts each direction's power evenly between the factors. With all of it in the first, the inner activation has
    /// channels of very different ranges, and one scale for all of them (int8) drowns the weak ones; with all of it in the second the same
    /// happens to its weights.
    fn balance(&self, first: &mut Array2<f64>, second: &mut Array2<f64>) {
        let strongest = self.spectrum.values.first().copied().unwrap_or(0.0);
        if strongest <= 0.0 {
            return;
        }
        for (i, &value) in self.spectrum.values.iter().take(first.nrows()).enumerate() {
            let factor = (value / strongest).max(1e-12).powf(0.25);
            first.index_axis_mut(Axis(0), i).mapv_inplace(|x| x / factor);
            second.index_axis_mut(Axis(1), i).mapv_inplace(|x| x * factor);
        }
    }
}

/// What one output's error is divided by: the root of its standard deviation, from its variance.
///
/// With plain squares, an output of huge variance (transformers have such channels: one of 384 with 98 % of all variance
/// was seen, before a normalization) hides that all others are lost. Divided by the full deviation, outputs that hardly move
/// would count as much as any. Half-way is within 0.5 dB of plain squares where no output stands out. Outputs below a
/// ten-thousandth of the mean variance count as if they had that.
fn loudness(variances: &[f64]) -> Array1<f64> {
    let mean = variances.iter().sum::<f64>() / variances.len().max(1) as f64;
    if !(mean > 0.0 && mean.is_finite()) {
        return Array1::ones(variances.len());
    }
    variances.iter().map(|v| (v / mean).max(1e-4).powf(0.25)).collect()
}

/// The error at every rank, on samples that had no part in the choice of directions.
fn unseen(weight: &Array2<f64>, chosen: &Spectrum, on: &Shrunk, other: &Gram, centered: bool) -> Vec<f64> {
    let power = powers(weight.view(), other.covariance().view()).iter().sum();
    // Around the mean that the bias was adjusted to.
    let moment = match centered {
        false => other.moment(),
        true => {
            let (mean, mut moment) = (other.mean(), other.covariance());
            let apart = &mean - &on.mean;
            for (mut row, &m) in moment.rows_mut().into_iter().zip(&apart) {
                row.scaled_add(m, &apart);
            }
            moment
        }
    };
    let full = chosen.full_rank();
    let (first, _) = chosen.factors(full, weight.view());
    let kept = powers(first.view(), moment.view());
    // What lies outside of all chosen directions is lost at every rank. The rest is added from the small end.
    let total: f64 = powers(weight.view(), moment.view()).iter().sum();
    let mut lost = (total - kept.iter().sum::<f64>()).max(0.0);
    let mut errors = vec![relative(lost, power); full + 1];
    for rank in (0..full).rev() {
        lost += kept[rank];
        errors[rank] = relative(lost, power);
    }
    errors
}

fn relative(lost: f64, power: f64) -> f64 {
    if lost > 0.0 { lost / power } else { 0.0 }
}
