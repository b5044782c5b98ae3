//! Layers whose inputs are too wide for a second moment: what is known of their outputs instead.
//!
//! Directions and errors of a pair need nothing but `M = W G Wᵀ`, and that is the covariance of the outputs (out × out), which a
//! run over the samples measures as it is; the bias moves only the mean. `M` is pulled to what white inputs of the same power would
//! give, `T = W Wᵀ tr M / tr W Wᵀ`, by the λ that two halves of the samples tell (`math::shrink`, with `T` for the diagonal):
//! `1 − ⟨A − T, B − T⟩ / ‖(A + B)/2 − T‖²`. Forms that part the window need `G` itself, so here there are none of them.

use super::known::{Known, TIMES, outer};
use super::{MAX_INPUTS, width};
use crate::analysis::sites::Site;
use crate::analysis::stats::{Patch, Stats};
use crate::ir::{Model, ValueId};
use crate::math::decompose::matmul;
use crate::math::gram::Gram;
use crate::math::shrink::{UNKNOWN, for_half};
use anyhow::Result;
use ndarray::{Array1, Array2};

/// True when a site's inputs are too wide to be measured.
pub fn is_wide(site: &Site) -> bool {
    width(site) > MAX_INPUTS[usize::from(site.taps() > 1)]
}

/// Where a site is measured: the value, its rows, and their length.
pub fn measured_at(model: &Model, site: &Site) -> (ValueId, Patch, usize) {
    match model.node(site.node).output(0).filter(|_| is_wide(site)) {
        Some(y) => (y, Patch::Axis(site.layout.output_axis), site.outputs()),
        None => (site.input, site.patch.clone(), width(site)),
    }
}

/// What the outputs of a site tell; `None` when they were not measured.
///
/// # Errors
/// When the weight cannot be read.
pub fn known(stats: &[Stats; 2], model: &Model, site: &Site, centered: bool) -> Result<Option<Known>> {
    let (value, patch, dim) = measured_at(model, site);
    let of = |s: &'_ Stats| -> Option<Gram> {
        let gram = s.gram(value, &patch)?.first()?;
        (gram.dim() == dim && gram.n > 0).then(|| gram.clone())
    };
    let scale = f64::from(site.layout.scale);
    let bias = match site.bias.filter(|b| b.node == site.node) {
        Some(_) => site.bias_values(model),
        None => Some(vec![0.0; dim]),
    };
    let (Some(bias), true) = (bias, scale != 0.0) else {
        return Ok(None);
    };
    let bias: Array1<f64> = bias.iter().map(|b| f64::from(*b)).collect();
    let halves: Vec<Half> = stats
        .iter()
        .filter_map(of)
        .map(|g| Half {
            rows: g.n,
            mean: (g.mean() - &bias) / scale,
            covariance: g.covariance() / (scale * scale),
        })
        .collect();
    let w = site.matrix(model)?.mapv(f64::from);
    let samples = stats[0].samples + stats[1].samples;
    Ok(joined(&halves, &matmul(w.view(), w.t()), samples, centered))
}

/// One half of the samples.
struct Half {
    rows: u64,
    mean: Array1<f64>,
    covariance: Array2<f64>,
}

/// From one half or two, and `white`, the covariance for white inputs.
fn joined(halves: &[Half], white: &Array2<f64>, samples: usize, centered: bool) -> Option<Known> {
    let (one, other) = (halves.first()?, halves.last()?);
    let rows: u64 = halves.iter().map(|h| h.rows).sum();
    let part = |h: &Half| h.rows as f64 / rows as f64;
    let mean = halves
        .iter()
        .fold(Array1::zeros(white.nrows()), |m, h| m + &h.mean * part(h));
    let mut all = Array2::zeros(white.dim());
    for half in halves {
        all.scaled_add(part(half), &half.covariance);
        outer(&mut all, &(&half.mean - &mean), part(half));
    }
    let power = white.diag().sum();
    let target = white * if power > 0.0 { all.diag().sum() / power } else { 0.0 };
    let intensity = match halves.len() {
        1 => UNKNOWN,
        _ => (TIMES * disagreement(&one.covariance, &other.covariance, &target)).clamp(0.0, 1.0),
    };
    let pulled = |c: &Array2<f64>, by: f64| c * (1.0 - by) + &target * by;
    let moment = |mut c: Array2<f64>, mean: &Array1<f64>| {
        if !centered {
            outer(&mut c, mean, 1.0);
        }
        c
    };
    let evidence = (samples as f64 * rows as f64).sqrt();
    let mut spread = other.covariance.clone();
    outer(&mut spread, &(&other.mean - &one.mean), 1.0);
    let spread = pulled(&spread, 1.0 / (1.0 + evidence));
    Some(Known {
        all: moment(pulled(&all, intensity), &mean),
        half: moment(pulled(&one.covariance, for_half(intensity)), &one.mean),
        half_mean: one.mean.clone(),
        mean,
        outputs: true,
        apart: (!centered).then(|| moment(spread.clone(), &other.mean)),
        spread,
    })
}

/// `1 − ⟨A − T, B − T⟩ / ‖(A + B)/2 − T‖²`; 0 when both are `T`.
fn disagreement(a: &Array2<f64>, b: &Array2<f64>, target: &Array2<f64>) -> f64 {
    let (mut common, mut whole) = (0.0, 0.0);
    for ((a, b), t) in a.iter().zip(b).zip(target) {
        common += (a - t) * (b - t);
        whole += ((a + b) / 2.0 - t).powi(2);
    }
    if whole > 0.0 { 1.0 - common / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn half(covariance: Array2<f64>, mean: Array1<f64>) -> Half {
        Half {
            rows: 100,
            mean,
            covariance,
        }
    }

    #[test]
    fn halves_that_agree_are_believed_and_halves_that_do_not_are_pulled_to_white_inputs() {
        let (a, b) = (array![[2.0, 1.9], [1.9, 2.0]], array![[2.0, -1.9], [-1.9, 2.0]]);
        let zero = || Array1::zeros(2);
        let same = joined(
            &[half(a.clone(), zero()), half(a.clone(), zero())],
            &Array2::eye(2),
            100,
            true,
        );
        assert!((same.expect("halves").all - &a).iter().all(|d| d.abs() < 1e-12));
        let other = joined(&[half(a, zero()), half(b, zero())], &Array2::eye(2), 100, true).expect("halves");
        assert!(
            (other.all - Array2::<f64>::eye(2) * 2.0)
                .iter()
                .all(|d| d.abs() < 1e-12)
        );
        assert!(joined(&[], &Array2::eye(2), 0, true).is_none());
    }

    #[test]
    fn means_of_halves_that_differ_are_part_of_the_covariance() {
        let c = Array2::<f64>::eye(1);
        let halves = [half(c.clone(), array![1.0]), half(c.clone(), array![3.0])];
        let known = joined(&halves, &c, 100, true).expect("halves");
        assert!((known.mean[0] - 2.0).abs() < 1e-12);
        assert!((known.all[[0, 0]] - 2.0).abs() < 1e-12);
    }
}
