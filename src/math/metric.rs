//! What an error of each output counts: as much as what reads the outputs next makes of it, where that is known.
//!
//! The error of a layer `E‖R (W − Ŵ) x‖²` is least for the directions of `R W`, whatever the invertible `R` (out × out); so a
//! metric `H = Rᵀ R` at the output costs nothing but a product. Of readers `z = K s(y)` with an activation in between, the
//! error is `eᵀ diag(s') Kᵀ K diag(s') e` to first order: `H = (KᵀK) ∘ E[s' s'ᵀ]` ([`crate::analysis::readers`]).
//! Directions that no reader sees are free, and so are outputs that an activation cuts off.
//! (Output-side second moments, as in the Kronecker-factored curvature of Martens, Grosse 2015; here from weights, without gradients.)
//!
//! Where readers are not known, outputs are told apart by their loudness alone.

use super::decompose::{matmul, sym_eigen};
use anyhow::Result;
use ndarray::{Array1, Array2, ArrayView2, Axis, Zip};

/// How far a metric is pulled to its diagonal: it is an estimate, and holds to first order only. Between a tenth and a
/// third, results differ by 0.3 dB (measured on a dense network).
const PULL: f64 = 0.1;
/// An output that no reader sees counts as this part of the mean output.
const LEAST: f64 = 1e-3;

/// A change of the output's coordinates after which errors are plain squares.
pub enum Metric {
    /// Every output is divided by its own number.
    Each(Array1<f64>),
    /// All of them are mixed.
    Mixed {
        /// out × out, symmetric.
        root: Array2<f64>,
        /// Its inverse.
        inverse: Array2<f64>,
    },
}

impl Metric {
    /// `R m` (out × any).
    pub fn apply(&self, m: &Array2<f64>) -> Array2<f64> {
        match self {
            Metric::Each(units) => m / &units.view().insert_axis(Axis(1)),
            Metric::Mixed { root, .. } => matmul(root.view(), m.view()),
        }
    }

    /// `R⁻¹ m` (out × any).
    pub fn undo(&self, m: &Array2<f64>) -> Array2<f64> {
        match self {
            Metric::Each(units) => m * &units.view().insert_axis(Axis(1)),
            Metric::Mixed { inverse, .. } => matmul(inverse.view(), m.view()),
        }
    }

    /// What is divided by the root of its standard deviation, from the variances of outputs.
    ///
    /// With plain squares, an output of huge variance (transformers have such channels: one of 384 with 98 % of all variance
    /// was seen, before a normalization) hides that all others are lost. Divided by the full deviation, outputs that hardly move
    /// would count as much as any. Half-way is within 0.5 dB of plain squares where no output stands out. Outputs below a
    /// ten-thousandth of the mean variance count as if they had that.
    pub fn of_loudness(variances: &[f64]) -> Metric {
        let mean = variances.iter().sum::<f64>() / variances.len().max(1) as f64;
        if !(mean > 0.0 && mean.is_finite()) {
            return Metric::Each(Array1::ones(variances.len()));
        }
        Metric::Each(variances.iter().map(|v| (v / mean).max(1e-4).powf(0.25)).collect())
    }

    /// The metric `h` (out × out, positive semidefinite), pulled to its diagonal; `None` when it says nothing.
    ///
    /// # Errors
    /// When the eigenproblem fails.
    pub fn of(h: ArrayView2<f64>) -> Result<Option<Metric>> {
        let n = h.nrows();
        let mean = h.diag().sum() / n.max(1) as f64;
        if !(mean > 0.0 && mean.is_finite()) {
            return Ok(None);
        }
        let mut pulled = h.mapv(|x| (1.0 - PULL) * x / mean);
        pulled
            .diag_mut()
            .zip_mut_with(&h.diag(), |p, x| *p += PULL * x / mean + LEAST);
        let (values, vectors) = sym_eigen(pulled.view())?;
        let power = |by: f64| {
            let scaled = &vectors * &values.mapv(|x| x.max(LEAST).powf(by));
            matmul(scaled.view(), vectors.t())
        };
        Ok(Some(Metric::Mixed {
            root: power(0.5),
            inverse: power(-0.5),
        }))
    }

    /// As [`Metric::of`] for the diagonal alone.
    pub fn of_diagonal(h: &Array1<f64>) -> Option<Metric> {
        let mean = h.sum() / h.len().max(1) as f64;
        (mean > 0.0 && mean.is_finite()).then(|| Metric::Each(h.mapv(|x| (x.max(0.0) / mean + LEAST).powf(-0.5))))
    }
}

/// `E[s' s'ᵀ]` of rectified outputs: the probabilities that two of them pass, for normal outputs of this mean and
/// covariance, to first order of their correlation.
pub fn passing(mean: &Array1<f64>, covariance: &Array2<f64>) -> Array2<f64> {
    let sd = covariance.diag().mapv(|x| x.max(0.0).sqrt());
    let at = heights(mean, &sd);
    let (pass, density) = (
        at.mapv(normal),
        at.mapv(|a| (-a * a / 2.0).exp() / std::f64::consts::TAU.sqrt()),
    );
    let mut both = Array2::from_shape_fn(covariance.dim(), |(i, j)| {
        let size = sd[i] * sd[j];
        let correlation = if size > 0.0 { covariance[[i, j]] / size } else { 0.0 };
        pass[i] * pass[j] + correlation * density[i] * density[j]
    });
    both.diag_mut().assign(&pass);
    both
}

/// The diagonal of [`passing`].
pub fn passing_each(mean: &Array1<f64>, variances: &Array1<f64>) -> Array1<f64> {
    heights(mean, &variances.mapv(|x| x.max(0.0).sqrt())).mapv(normal)
}

/// Means in standard deviations, eight at most.
fn heights(mean: &Array1<f64>, sd: &Array1<f64>) -> Array1<f64> {
    Zip::from(mean).and(sd).map_collect(|&m, &s| match s > 0.0 {
        true => (m / s).clamp(-8.0, 8.0),
        false if m > 0.0 => 8.0,
        false => -8.0,
    })
}

/// The standard normal distribution function, within 1e-7 (Abramowitz, Stegun 7.1.26).
fn normal(x: f64) -> f64 {
    let a = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let sum = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    let upper = 0.5 * sum * (-a * a).exp();
    if x > 0.0 { 1.0 - upper } else { upper }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn a_metric_and_its_inverse_cancel() {
        let h = array![[4.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]];
        let m = array![[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]];
        let all = [
            Metric::of(h.view()).expect("finite").expect("a metric"),
            Metric::of_diagonal(&h.diag().to_owned()).expect("a metric"),
            Metric::of_loudness(&[1.0, 100.0, 0.0]),
        ];
        for metric in all {
            let back = metric.undo(&metric.apply(&m));
            assert!((back - &m).iter().all(|d| d.abs() < 1e-9));
        }
        assert!(Metric::of(Array2::zeros((2, 2)).view()).expect("zeros").is_none());
        assert!(Metric::of_diagonal(&array![f64::NAN, 1.0]).is_none());
    }

    #[test]
    fn errors_count_as_the_metric_says() {
        let h = array![[4.0, 1.0], [1.0, 2.0]];
        let metric = Metric::of(h.view()).expect("finite").expect("a metric");
        let e = array![[1.0], [-1.0]];
        let got = metric.apply(&e).mapv(|x| x * x).sum();
        // Divided by the mean of the diagonal, 3; pulled by a tenth.
        let wanted = (4.0 + 2.0 - 2.0 * 0.9) / 3.0 + 2.0 * LEAST;
        assert!((got - wanted).abs() < 1e-12, "{got} {wanted}");
    }

    #[test]
    fn what_is_always_cut_off_does_not_pass() {
        let covariance = array![[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 0.0]];
        let p = passing(&array![-9.0, 0.0, 3.0], &covariance);
        assert_eq!(
            passing_each(&array![-9.0, 0.0, 3.0], &covariance.diag().to_owned()),
            p.diag()
        );
        assert!(p[[0, 0]] < 1e-6 && p[[0, 1]].abs() < 1e-6);
        assert!((p[[1, 1]] - 0.5).abs() < 1e-6 && (p[[2, 2]] - 1.0).abs() < 1e-6);
        assert!((p[[1, 2]] - 0.5).abs() < 1e-6);
    }
}
