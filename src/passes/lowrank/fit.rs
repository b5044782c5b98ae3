//! One layer as two: its spectrum under the data, the rank for an error, the factors.

use super::known::{Known, Mean};
use super::ladder::{Chain, Covers, Cut, Layer};
use crate::analysis::readers::{Reach, Readers};
use crate::analysis::sites::Site;
use crate::ir::Model;
use crate::math::decompose::matmul;
use crate::math::lowrank::Spectrum;
use crate::math::metric::Metric;
use crate::math::shrink::powers;
use crate::math::subspace::{Map, Power, total};
use anyhow::Result;
use ndarray::{Array1, Array2, Axis, s};
use std::borrow::Cow;

/// Layers of a higher order than this have only their strongest directions computed.
const WHOLE: usize = 1024;
/// How many directions are computed first; twice as many, until the error is met.
const BLOCK: usize = 256;

/// A site's weight, and the measure of error at its output.
pub struct Weight {
    /// out × in, without the site's scale.
    pub matrix: Array2<f64>,
    /// What errors of its outputs count.
    pub metric: Metric,
    /// `matrix`, after the metric.
    pub scaled: Array2<f64>,
    /// The bias as it is, when it may change.
    pub bias: Option<Vec<f32>>,
    scale: f64,
}

/// What is added to the outputs of a site, when that may change, to take up a mean error; a MatMul without an Add after it has no place for it.
pub fn free_bias(model: &Model, site: &Site) -> Option<Vec<f32>> {
    let place = site.bias.is_some() || !model.node(site.node).is("MatMul");
    site.bias_values(model).filter(|_| place)
}

impl Weight {
    /// Reads a site's weight.
    ///
    /// # Errors
    /// When it is no float tensor any more.
    pub fn new(model: &Model, site: &Site, known: Option<&Known>, centered: bool) -> Result<Weight> {
        let matrix = site.matrix(model)?.mapv(f64::from);
        let metric = match known {
            Some(k) => metric(model, site, &matrix, k)?,
            None => Metric::Each(Array1::ones(matrix.nrows())),
        };
        Ok(Weight {
            bias: site.bias_values(model).filter(|_| centered && known.is_some()),
            scale: f64::from(site.layout.scale),
            ..Weight::with(matrix, metric)
        })
    }

    /// A map without a bias, of which nobody knows who reads it.
    pub fn of(matrix: Array2<f64>, known: Option<&Known>) -> Weight {
        let metric = match known {
            Some(k) => Metric::of_loudness(&variances(&matrix, k)),
            None => Metric::Each(Array1::ones(matrix.nrows())),
        };
        Weight::with(matrix, metric)
    }

    fn with(matrix: Array2<f64>, metric: Metric) -> Weight {
        Weight {
            scaled: metric.apply(&matrix),
            metric,
            bias: None,
            scale: 1.0,
            matrix,
        }
    }

    /// What multiplies the vectors whose second moments are known: the weight, or nothing where those are its outputs.
    fn seen(&self, known: &Known) -> Cow<'_, Array2<f64>> {
        match known.outputs {
            true => Cow::Owned(self.metric.apply(&Array2::eye(self.matrix.nrows()))),
            false => Cow::Borrowed(&self.scaled),
        }
    }

    /// The bias after the output's mean has lost `shift`.
    pub fn shifted(&self, shift: &Array1<f64>) -> Option<Vec<f32>> {
        let shifted = |bias: &Vec<f32>| {
            let pairs = bias.iter().zip(shift);
            pairs.map(|(&b, s)| (f64::from(b) + self.scale * s) as f32).collect()
        };
        self.bias.as_ref().map(shifted)
    }
}

/// What errors of a site's outputs count: as its readers say, or by their loudness.
fn metric(model: &Model, site: &Site, w: &Array2<f64>, known: &Known) -> Result<Metric> {
    let loudness = || Metric::of_loudness(&variances(w, known));
    let Some(readers) = Readers::of(model, site, Reach::All) else {
        return Ok(loudness());
    };
    let scale = f64::from(site.layout.scale);
    let mut mean = known.output_mean(w) * scale;
    if let Some(bias) = site.bias_values(model) {
        mean += &bias.iter().map(|b| f64::from(*b)).collect::<Array1<f64>>();
    }
    let square = scale * scale;
    let each = || Array1::from_vec(variances(w, known)) * square;
    let metric = readers.judge(&mean, || known.output(w) * square, each)?;
    Ok(metric.unwrap_or_else(loudness))
}

/// The variance of every output; roughly (as if inputs were independent) where an exact one would cost more than all else.
fn variances(w: &Array2<f64>, known: &Known) -> Vec<f64> {
    if known.outputs {
        return known.all.diag().to_vec();
    }
    if w.nrows().min(w.ncols()) > WHOLE {
        let each = known.all.diag().to_owned();
        return w.mapv(|x| x * x).dot(&each).to_vec();
    }
    powers(w.view(), known.all.view())
}

/// Directions of the output, strongest first.
struct Directions {
    /// out × k, orthonormal.
    basis: Array2<f64>,
    values: Array1<f64>,
}

/// The spectrum of a weight, and what is lost at every rank.
pub struct Fit {
    all: Directions,
    half: Option<Directions>,
    /// Error of the output at every rank from 0 as far as it is known, relative to its variance; not rising.
    errors: Vec<f64>,
}

impl Fit {
    /// The spectrum of a site's weight for inputs as measured, or (`None`) for white noise, as far as rank `most`; only as
    /// far as `error` needs where all of it would be dear.
    ///
    /// # Errors
    /// When numbers are not finite or overflow.
    pub fn new(weight: &Weight, known: Option<&Known>, most: usize, error: f64, seed: u64) -> Result<Fit> {
        let order = match known {
            Some(k) if k.outputs => weight.scaled.nrows(),
            _ => weight.scaled.nrows().min(weight.scaled.ncols()),
        };
        match known {
            Some(k) if order > WHOLE => Fit::leading(weight, k, most, error, seed),
            Some(k) => Fit::whole(weight, k),
            None => {
                let spectrum = Spectrum::new(weight.scaled.view(), None)?;
                Ok(Fit {
                    errors: (0..=spectrum.full_rank()).map(|r| spectrum.error(r)).collect(),
                    all: Directions::of(spectrum),
                    half: None,
                })
            }
        }
    }

    fn whole(weight: &Weight, known: &Known) -> Result<Fit> {
        let seen = weight.seen(known);
        let w = seen.view();
        let half = Spectrum::new(w, Some(known.half.view()))?;
        let full = half.full_rank();
        let (first, _) = half.factors(full, w);
        let kept = powers(first.view(), known.unseen().view());
        // What lies outside of all chosen directions is lost at every rank. The rest is added from the small end.
        let outside = total(w, known.unseen().view()) - kept.iter().sum::<f64>();
        let errors = errors(&kept, outside, total(w, known.spread.view()));
        Ok(Fit {
            all: Directions::of(Spectrum::new(w, Some(known.all.view()))?),
            half: Some(Directions::of(half)),
            errors,
        })
    }

    /// As [`Fit::whole`], for large layers.
    fn leading(weight: &Weight, known: &Known, most: usize, error: f64, seed: u64) -> Result<Fit> {
        let map = Map::new(weight.seen(known).view())?;
        let (half, unseen) = (Power::new(known.half.view())?, Power::new(known.unseen().view())?);
        let spread = Power::new(known.spread.view())?;
        let mut block = BLOCK;
        let mut found = map.leading(&half, map.start(block, seed), 2)?;
        let errors = loop {
            let kept = map.along(&unseen, &found.basis);
            let outside = map.outside(&unseen, &found.basis, seed ^ 1);
            let power =
                map.along(&spread, &found.basis).iter().sum::<f64>() + map.outside(&spread, &found.basis, seed ^ 1);
            let errors = errors(&kept, outside, power);
            let weakest = kept.iter().rev().take(8).sum::<f64>() / 8.0;
            // Directions that are not known yet are at most as strong as the weakest that is.
            let hopeless = outside - most.saturating_sub(block) as f64 * weakest > error * power;
            if errors.last().is_some_and(|&e| e <= error) || block >= most || hopeless {
                break errors;
            }
            block = (2 * block).min(most.max(block + 1));
            found = map.widened(&half, found, block, seed ^ block as u64)?;
        };
        let enough = errors.iter().position(|&e| e <= error).unwrap_or(block) + 64;
        let start = found.basis.slice(s![.., ..enough.min(found.basis.ncols())]).to_owned();
        let all = map.leading(&Power::new(known.all.view())?, start, 1)?;
        let double = |basis: &Array2<f32>| basis.mapv(f64::from);
        Ok(Fit {
            all: Directions {
                basis: double(&all.basis),
                values: all.values,
            },
            half: Some(Directions {
                basis: double(&found.basis),
                values: found.values,
            }),
            errors,
        })
    }

    /// What is lost at this rank, relative to the variance of the output.
    pub fn error(&self, rank: usize) -> f64 {
        self.errors.get(rank).or(self.errors.last()).copied().unwrap_or(0.0)
    }

    /// What is lost at the ranks from 1 as far as that is known.
    pub fn known_errors(&self) -> &[f64] {
        let known = self.errors.len().min(self.all.values.len() + 1);
        self.errors.get(1..known).unwrap_or(&[])
    }

    /// The smallest rank whose error is at most this, among those that are known.
    pub fn rank_for(&self, error: f64) -> Option<usize> {
        let known = self.all.values.len();
        self.errors.iter().take(known + 1).position(|&e| e <= error)
    }

    /// The two layers at every one of these ranks: made from all samples, and from the first half.
    pub fn chains(&self, weight: &Weight, known: Option<&Known>, ranks: &[usize]) -> Vec<(Chain, Option<Chain>)> {
        let most = ranks.iter().copied().max().unwrap_or(0);
        let all = self.all.pairs(weight, known.map(|k| k.shift(&k.mean)), most, ranks);
        let Some(half) = &self.half else {
            return all.into_iter().map(|chain| (chain, None)).collect();
        };
        let trials = half.pairs(weight, known.map(|k| k.shift(&k.half_mean)), most, ranks);
        all.into_iter().zip(trials.into_iter().map(Some)).collect()
    }
}

/// Errors relative to `power` by rank, from what every direction keeps and what lies outside of them all.
fn errors(kept: &[f64], outside: f64, power: f64) -> Vec<f64> {
    let relative = |lost: f64| if lost > 0.0 { lost / power } else { 0.0 };
    let mut lost = outside.max(0.0);
    let mut errors = vec![relative(lost)];
    for k in kept.iter().rev() {
        lost += k;
        errors.push(relative(lost));
    }
    errors.reverse();
    errors
}

impl Directions {
    fn of(spectrum: Spectrum) -> Directions {
        Directions {
            basis: spectrum.vectors,
            values: spectrum.values,
        }
    }

    fn pairs(&self, weight: &Weight, mean: Option<Mean>, most: usize, ranks: &[usize]) -> Vec<Chain> {
        let mut second = self.basis.slice(s![.., ..most.min(self.basis.ncols())]).to_owned();
        let mut first = matmul(second.t(), weight.scaled.view());
        let inner = match mean {
            Some(Mean::Outputs(y)) => second
                .t()
                .dot(&weight.metric.apply(&y.clone().insert_axis(Axis(1))).column(0)),
            Some(Mean::Inputs(x)) => first.dot(x),
            None => Array1::zeros(first.nrows()),
        };
        second = weight.metric.undo(&second);
        let whole = mean.map(|m| match m {
            Mean::Outputs(y) => y.clone(),
            Mean::Inputs(x) => weight.matrix.dot(x),
        });
        let shift = |rank: usize| {
            let kept = second.slice(s![.., ..rank]).dot(&inner.slice(s![..rank]));
            weight.shifted(&(whole.as_ref()? - &kept))
        };
        let biases: Vec<Option<Vec<f32>>> = ranks.iter().map(|&r| shift(r.min(first.nrows()))).collect();
        balance(&self.values, &mut first, &mut second);
        let (first, second) = (
            Cut::whole(first.mapv(|x| x as f32)),
            Cut::whole(second.mapv(|x| x as f32)),
        );
        let known = first.view().nrows();
        let pairs = ranks.iter().zip(biases).map(|(&rank, bias)| Chain {
            layers: vec![
                Layer {
                    weight: first.rows(rank.min(known)),
                    covers: Covers::Everything,
                },
                Layer {
                    weight: second.cols(rank.min(known)),
                    covers: Covers::Nothing,
                },
            ],
            bias,
        });
        pairs.collect()
    }
}

/// Parts each direction's power evenly between the factors. With all of it in the first, the inner activation has
/// channels of very different ranges, and one scale for all of them (int8) drowns the weak ones; with all of it in the second the same
/// happens to its weights.
pub fn balance(values: &Array1<f64>, first: &mut Array2<f64>, second: &mut Array2<f64>) {
    let strongest = values.first().copied().unwrap_or(0.0);
    if strongest <= 0.0 {
        return;
    }
    for (i, &value) in values.iter().take(first.nrows()).enumerate() {
        let factor = (value / strongest).max(1e-12).powf(0.25);
        first.index_axis_mut(Axis(0), i).mapv_inplace(|x| x / factor);
        second.index_axis_mut(Axis(1), i).mapv_inplace(|x| x * factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::gram::Gram;
    use std::time::Instant;

    fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
        let mut state = seed;
        Array2::from_shape_simple_fn((rows, cols), || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / 8388608.0 - 1.0
        })
    }

    /// Rows whose power falls with the direction, as those of trained networks do.
    fn rows(n: usize, dim: usize, inner: usize, seed: u64) -> Array2<f32> {
        let mut x = random(n, inner, seed);
        for (i, mut column) in x.columns_mut().into_iter().enumerate() {
            column *= (1.0 + i as f32).powf(-0.8);
        }
        crate::math::decompose::matmul_f32(x.view(), random(inner, dim, 77).view()) + random(n, dim, seed + 9) * 0.02
    }

    fn known(n: usize, dim: usize) -> Known {
        let halves = [1, 2].map(|seed| {
            let mut gram = Gram::new(dim);
            gram.add_rows(rows(n / 2, dim, dim / 2, seed).view()).expect("fits");
            gram
        });
        Known::new(&halves[0], Some(&halves[1]), n, &Array1::ones(dim), true).expect("fits")
    }

    fn weight(out: usize, inputs: usize, known: &Known) -> Weight {
        Weight::of(random(out, inputs, 5).mapv(f64::from), Some(known))
    }

    #[test]
    fn the_strongest_directions_tell_the_same_errors_as_all_of_them() {
        let known = known(1200, 300);
        let weight = weight(320, 300, &known);
        let whole = Fit::whole(&weight, &known).expect("finite");
        let leading = Fit::leading(&weight, &known, 256, 0.05, 3).expect("finite");
        for error in [0.3, 0.1, 0.05] {
            let (a, b) = (
                whole.rank_for(error).expect("a rank"),
                leading.rank_for(error).expect("a rank"),
            );
            assert!(a.abs_diff(b) <= 1 + a / 20, "{a} {b}");
        }
        let chains = |fit: &Fit| fit.chains(&weight, Some(&known), &[40]).remove(0).0;
        let product = |c: Chain| {
            c.layers[1]
                .weight
                .view()
                .dot(&c.layers[0].weight.view())
                .mapv(f64::from)
        };
        let lost = |m: Array2<f64>| {
            let d = weight.metric.apply(&(&weight.matrix - &m));
            total(d.view(), known.all.view())
        };
        let (a, b) = (lost(product(chains(&whole))), lost(product(chains(&leading))));
        assert!((b / a - 1.0).abs() < 0.05, "{a} {b}");
    }

    #[test]
    #[ignore = "timing: 3 s on two cores are wanted for the last line"]
    fn a_weight_of_4096_by_4096() {
        let known = known(8192, 4096);
        let weight = weight(4096, 4096, &known);
        let start = Instant::now();
        let fit = Fit::new(&weight, Some(&known), 1843, 0.05, 3).expect("finite");
        let rank = fit.rank_for(0.05).expect("a rank");
        let found = start.elapsed();
        let chains = fit.chains(&weight, Some(&known), &[rank]);
        eprintln!(
            "rank {rank}: spectrum {found:?}, all {:?}, {}",
            start.elapsed(),
            chains.len()
        );
    }
}
