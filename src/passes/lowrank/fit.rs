//! One layer: its spectrum under the data, the rank for an error, the factors.

use crate::analysis::sites::Site;
use crate::analysis::stats::Stats;
use crate::ir::Model;
use crate::math::gram::Gram;
use crate::math::lowrank::{Spectrum, bias_shift};
use crate::math::shrink::{Shrunk, shrunk};
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

/// A weight and its spectrum.
pub struct Fit {
    weight: Array2<f64>,
    spectrum: Spectrum,
    /// Variance of the output.
    power: f64,
    measured: bool,
    /// The bias as it is, and the mean input, when the bias may change.
    centre: Option<(Vec<f32>, Array1<f64>)>,
}

/// Mean and covariance of a site's input from two halves of the samples; `None` when it was not measured.
pub fn moments(one: &Stats, other: &Stats, site: &Site) -> Result<Option<Shrunk>> {
    fn of<'s>(stats: &'s Stats, site: &Site) -> Option<&'s Gram> {
        let gram = stats.gram(site.input, &site.patch)?.first()?;
        (gram.dim() == site.inputs() && gram.n > 0).then_some(gram)
    }
    match (of(one, site), of(other, site)) {
        (Some(a), Some(b)) => shrunk(a, b).map(Some),
        (Some(a), None) | (None, Some(a)) => shrunk(a, &Gram::new(a.dim())).map(Some),
        (None, None) => Ok(None),
    }
}

impl Fit {
    /// The spectrum of a site's weight, for inputs with these moments, or (`None`) for white noise.
    pub fn new(model: &Model, site: &Site, input: Option<Shrunk>, centered: bool) -> Result<Fit> {
        let weight = site.matrix(model)?.mapv(f64::from);
        let Some(input) = input else {
            let spectrum = Spectrum::new(weight.view(), None)?;
            return Ok(Fit {
                power: spectrum.total(),
                weight,
                spectrum,
                measured: false,
                centre: None,
            });
        };
        // A MatMul without an Add after it has no bias that could change.
        let adjustable = site.bias.is_some() || !model.node(site.node).is("MatMul");
        let bias = site.bias_values(model).filter(|_| centered && adjustable);
        let (spectrum, power) = match &bias {
            Some(_) => {
                let spectrum = Spectrum::new(weight.view(), Some(input.covariance.view()))?;
                let power = spectrum.total();
                (spectrum, power)
            }
            None => {
                let spectrum = Spectrum::new(weight.view(), Some(input.moment().view()))?;
                let mean = weight.dot(&input.mean);
                let power = spectrum.total() - mean.dot(&mean);
                (spectrum, power.max(0.0))
            }
        };
        Ok(Fit {
            weight,
            spectrum,
            power,
            measured: true,
            centre: bias.map(|b| (b, input.mean)),
        })
    }

    /// What is lost at this rank, relative to the variance of the output.
    pub fn error(&self, rank: usize) -> f64 {
        match self.spectrum.residual(rank) {
            0.0 => 0.0,
            lost => lost / self.power,
        }
    }

    /// The smallest rank whose error is at most this.
    pub fn rank_for(&self, error: f64) -> usize {
        let full = self.spectrum.full_rank();
        (0..full).find(|&r| self.error(r) <= error).unwrap_or(full)
    }

    /// The factors at a rank.
    pub fn plan(self, site: &Site, rank: usize) -> Plan {
        let (mut first, mut second) = self.spectrum.factors(rank, self.weight.view());
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
