//! The best map of rank `r` under data: `Ŵ = argmin E‖W x − Ŵ x‖²` over all `Ŵ` of rank `r`.
//!
//! With `G = E[x xᵀ]` and any root `G = R Rᵀ`, the error is `‖(W − Ŵ) R‖²_F`, so by Eckart and Young (1936) the best `Ŵ R`
//! is `U_r U_rᵀ W R`, where `U` holds the left singular vectors of `W R`. These are the eigenvectors of
//! `M = W R Rᵀ Wᵀ = W G Wᵀ`: no root and no inverse of `G` is needed, and `Ŵ = U_r (U_rᵀ W)`, a layer `U_rᵀ W` (r × in)
//! followed by a layer `U_r` (out × r). What is lost at rank `r` is the sum of the eigenvalues that are left out.
//! (The idea as in Chen et al. 2021, *DRONE*; Zhang et al. 2016, *Accelerating very deep CNNs*, without their inverses.)
//!
//! With a bias: `E‖W x − Ŵ x − c‖²` is least for `c = (W − Ŵ) μ`, and what remains is `tr((W−Ŵ) C (W−Ŵ)ᵀ)` with the
//! covariance `C = G − μ μᵀ`. So `G` is replaced by `C` and the bias grows by `c`. As `C ⪯ G`, each eigenvalue of `W C Wᵀ`
//! is at most that of `W G Wᵀ`, and so is the error at every rank: never worse.

use anyhow::{Result, ensure};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, s};

use super::decompose::{matmul, sym_eigen, thin_svd};
use super::gram;

/// How the output power of a map `W` (out × in) is spread over orthogonal output directions.
#[derive(Clone, Debug)]
pub struct Spectrum {
    /// Output power along each direction, `min(out, in)` numbers, descending, never negative; units of the output squared.
    pub values: Array1<f64>,
    /// The directions, `out × min(out, in)`, orthonormal columns.
    pub vectors: Array2<f64>,
    /// `tails[r]` is the sum of `values[r..]`, added from the small end.
    tails: Vec<f64>,
}

impl Spectrum {
    /// The spectrum of `w` (out × in) for inputs of mean second moment `g` (in × in; `None`: the identity, plain SVD).
    ///
    /// An error for shapes that do not fit and for entries that are not finite. `g` should be positive semidefinite;
    /// small negative eigenvalues, as rounding leaves them, count as zero.
    pub fn new(w: ArrayView2<f64>, g: Option<ArrayView2<f64>>) -> Result<Spectrum> {
        let (out, inputs) = w.dim();
        if let Some(g) = g {
            ensure!(
                g.dim() == (inputs, inputs),
                "Spectrum: {:?} against {:?}",
                w.dim(),
                g.dim()
            );
        }
        let rank = out.min(inputs);
        // An eigenproblem of order `out`, or one of order `in` for the root and a thin SVD: the latter pays when in is small.
        let (values, vectors) = if 2 * inputs <= out {
            let svd = match g {
                Some(g) => thin_svd(matmul(w, root(g)?.view()).view())?,
                None => thin_svd(w)?,
            };
            (svd.s.mapv(|s| s * s), svd.u)
        } else {
            let m = match g {
                Some(g) => matmul(matmul(w, g).view(), w.t()),
                None => matmul(w, w.t()),
            };
            let (values, vectors) = sym_eigen(m.view())?;
            (
                values.slice(s![..rank]).to_owned(),
                vectors.slice(s![.., ..rank]).to_owned(),
            )
        };
        let values = values.mapv_into(|x| x.max(0.0));
        let mut tails = vec![0.0; rank + 1];
        for r in (0..rank).rev() {
            tails[r] = tails[r + 1] + values[r];
        }
        ensure!(
            tails[0].is_finite(),
            "Spectrum: the output power of a {out}×{inputs} map overflows"
        );
        Ok(Spectrum { values, vectors, tails })
    }

    /// The spectrum of `w` around the mean output, for a layer whose bias may change: uses `g − mean meanᵀ`.
    ///
    /// Relative errors are then relative to the output's variance. The bias must grow by [`bias_shift`].
    pub fn centered(w: ArrayView2<f64>, g: ArrayView2<f64>, mean: ArrayView1<f64>) -> Result<Spectrum> {
        ensure!(
            g.dim() == (mean.len(), mean.len()),
            "Spectrum: {:?}, {}",
            g.dim(),
            mean.len()
        );
        Spectrum::new(w, Some(gram::centered(g.to_owned(), mean).view()))
    }

    /// The highest rank there is: `min(out, in)`.
    pub fn full_rank(&self) -> usize {
        self.values.len()
    }

    /// Output power, `tr(W G Wᵀ)`.
    pub fn total(&self) -> f64 {
        self.tails[0]
    }

    /// What is lost at this rank, `E‖W x − Ŵ x‖²`, in units of the output squared.
    pub fn residual(&self, rank: usize) -> f64 {
        self.tails[rank.min(self.full_rank())]
    }

    /// What is lost at this rank, relative to the output power: 1 at rank 0, 0 at full rank; 0 when there is no power.
    pub fn error(&self, rank: usize) -> f64 {
        match self.total() {
            0.0 => 0.0,
            total => self.residual(rank) / total,
        }
    }

    /// The smallest rank whose relative error is at most this; 0 when even no map at all would do.
    pub fn rank_for(&self, max_relative_error: f64) -> usize {
        (0..self.full_rank())
            .find(|&rank| self.error(rank) <= max_relative_error)
            .unwrap_or(self.full_rank())
    }

    /// The two layers that replace `w`: first `U_rᵀ W` (r × in), second `U_r` (out × r); `r` is cut at full rank.
    ///
    /// Panics when `w` is not the map the spectrum was made of, by its number of rows.
    pub fn factors(&self, rank: usize, w: ArrayView2<f64>) -> (Array2<f64>, Array2<f64>) {
        let second = self.vectors.slice(s![.., ..rank.min(self.full_rank())]);
        (matmul(second.t(), w), second.to_owned())
    }
}

/// By how much the bias must grow so that the mean output stays: `(W − second·first) μ`, `out` numbers.
///
/// Panics when the shapes do not fit: `w` out × in, `first` r × in, `second` out × r, `mean` in.
pub fn bias_shift(
    w: ArrayView2<f64>,
    first: ArrayView2<f64>,
    second: ArrayView2<f64>,
    mean: ArrayView1<f64>,
) -> Array1<f64> {
    w.dot(&mean) - second.dot(&first.dot(&mean))
}

/// Relative output error of any replacement of `w` (both out × in): `tr(D G Dᵀ) / tr(W G Wᵀ)` with `D = W − Ŵ`.
///
/// `g` (in × in) is the mean second moment, `None` the identity. 0 when both are zero, infinite when only the latter is.
/// Panics when the shapes do not fit.
pub fn relative_error(w: ArrayView2<f64>, replacement: ArrayView2<f64>, g: Option<ArrayView2<f64>>) -> f64 {
    let lost = power((&w - &replacement).view(), g);
    match power(w, g) {
        0.0 if lost == 0.0 => 0.0,
        total => lost / total,
    }
}

/// `tr(A G Aᵀ)`, cut at zero.
fn power(a: ArrayView2<f64>, g: Option<ArrayView2<f64>>) -> f64 {
    let product = match g {
        Some(g) => matmul(a, g),
        None => a.to_owned(),
    };
    product.iter().zip(a).map(|(x, y)| x * y).sum::<f64>().max(0.0)
}

/// `R = V Λ^½` with `R Rᵀ = G`, for a positive semidefinite `G`.
fn root(g: ArrayView2<f64>) -> Result<Array2<f64>> {
    let (values, vectors) = sym_eigen(g)?;
    Ok(vectors * values.mapv(|x| x.max(0.0).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nalgebra::DMatrix;

    fn random(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
        let mut state = seed;
        Array2::from_shape_simple_fn((rows, cols), || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        })
    }

    /// Correlated samples (n × dim) around a mean that is not zero.
    fn samples(n: usize, dim: usize, seed: u64) -> Array2<f64> {
        random(n, dim, seed).dot(&random(dim, dim, seed + 1)) + &random(1, dim, seed + 2) * 3.0
    }

    fn moments(x: &Array2<f64>) -> (Array2<f64>, Array1<f64>) {
        (
            x.t().dot(x) / x.nrows() as f64,
            x.mean_axis(ndarray::Axis(0)).expect("rows"),
        )
    }

    /// Mean squared length of the rows.
    fn mean_square(rows: &Array2<f64>) -> f64 {
        rows.iter().map(|x| x * x).sum::<f64>() / rows.nrows() as f64
    }

    #[test]
    fn the_predicted_error_is_the_measured_error_at_every_rank() {
        for (out, inputs) in [(7, 5), (5, 7), (20, 6), (6, 20), (1, 4), (4, 1)] {
            let x = samples(60, inputs, 1);
            let (g, _) = moments(&x);
            let w = random(out, inputs, 9);
            let spectrum = Spectrum::new(w.view(), Some(g.view())).expect("finite");
            let y = x.dot(&w.t());
            assert!((spectrum.total() / mean_square(&y) - 1.0).abs() < 1e-9);
            for rank in 0..=out.min(inputs) {
                let (first, second) = spectrum.factors(rank, w.view());
                assert_eq!((first.dim(), second.dim()), ((rank, inputs), (out, rank)));
                let lost = mean_square(&(&y - &x.dot(&first.t()).dot(&second.t())));
                let predicted = spectrum.error(rank);
                assert!(
                    (predicted - lost / mean_square(&y)).abs() < 1e-9,
                    "{out} {inputs} {rank}"
                );
                let direct = relative_error(w.view(), second.dot(&first).view(), Some(g.view()));
                assert!((predicted - direct).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn no_factorization_of_the_same_rank_is_better() {
        let (out, inputs, rank) = (9, 12, 3);
        let (g, _) = moments(&samples(80, inputs, 4));
        let w = random(out, inputs, 5);
        let spectrum = Spectrum::new(w.view(), Some(g.view())).expect("finite");
        let (first, second) = spectrum.factors(rank, w.view());
        let best = relative_error(w.view(), second.dot(&first).view(), Some(g.view()));
        for seed in 0..50 {
            let first = &first + &(random(rank, inputs, seed) * 0.01);
            let second = &second + &(random(out, rank, seed + 99) * 0.01);
            let moved = relative_error(w.view(), second.dot(&first).view(), Some(g.view()));
            assert!(moved >= best);
        }
        let plain = Spectrum::new(w.view(), None).expect("finite");
        let (first, second) = plain.factors(rank, w.view());
        assert!(relative_error(w.view(), second.dot(&first).view(), Some(g.view())) >= best);
    }

    #[test]
    fn without_data_it_is_the_svd_of_nalgebra() {
        for (out, inputs) in [(8, 8), (30, 9), (9, 30)] {
            let w = random(out, inputs, 3);
            let oracle = DMatrix::from_fn(out, inputs, |i, j| w[[i, j]]);
            let mut expected: Vec<f64> = oracle.singular_values().iter().map(|s| s * s).collect();
            expected.sort_by(|a, b| b.total_cmp(a));
            let spectrum = Spectrum::new(w.view(), None).expect("finite");
            assert_eq!(spectrum.full_rank(), expected.len());
            for (got, expected) in spectrum.values.iter().zip(&expected) {
                assert!((got - expected).abs() < 1e-9 * spectrum.total());
            }
        }
    }

    #[test]
    fn both_routes_agree() {
        // Tall enough for the SVD of `W R`; beside it, the eigenvalues of `W G Wᵀ`.
        let (out, inputs) = (24, 12);
        let (g, _) = moments(&samples(50, inputs, 6));
        let w = random(out, inputs, 7);
        let tall = Spectrum::new(w.view(), Some(g.view())).expect("finite");
        let (values, _) = sym_eigen(matmul(matmul(w.view(), g.view()).view(), w.t()).view()).expect("finite");
        for (a, b) in tall.values.iter().zip(&values) {
            assert!((a - b).abs() < 1e-9 * tall.total());
        }
        let orthonormal = tall.vectors.t().dot(&tall.vectors);
        assert!(
            (orthonormal - Array2::<f64>::eye(inputs))
                .iter()
                .all(|x| x.abs() < 1e-10)
        );
    }

    #[test]
    fn a_bias_is_never_worse_and_keeps_the_mean() {
        for (out, inputs) in [(6, 10), (22, 9)] {
            let x = samples(70, inputs, 8);
            let (g, mean) = moments(&x);
            let w = random(out, inputs, 2);
            let plain = Spectrum::new(w.view(), Some(g.view())).expect("finite");
            let centered = Spectrum::centered(w.view(), g.view(), mean.view()).expect("finite");
            let y = x.dot(&w.t());
            for rank in 0..=plain.full_rank() {
                assert!(centered.residual(rank) <= plain.residual(rank) + 1e-9 * plain.total());
                let (first, second) = centered.factors(rank, w.view());
                let shift = bias_shift(w.view(), first.view(), second.view(), mean.view());
                let lost = mean_square(&(&y - &x.dot(&first.t()).dot(&second.t()) - &shift));
                assert!((lost - centered.residual(rank)).abs() < 1e-9 * plain.total());
            }
            assert!(centered.residual(1) < 0.9 * plain.residual(1));
        }
    }

    #[test]
    fn the_rank_for_an_error_is_the_smallest() {
        let spectrum = Spectrum::new(random(10, 14, 1).view(), None).expect("finite");
        for limit in [1.0, 0.5, 0.1, 0.01, 1e-9, 0.0] {
            let rank = spectrum.rank_for(limit);
            assert!(spectrum.error(rank) <= limit);
            assert!(rank == 0 || spectrum.error(rank - 1) > limit);
        }
        assert_eq!(spectrum.rank_for(-1.0), 10);
        assert_eq!(spectrum.rank_for(f64::NAN), 10);
        assert_eq!(
            (spectrum.error(0), spectrum.error(10), spectrum.error(99)),
            (1.0, 0.0, 0.0)
        );
    }

    #[test]
    fn zeros_one_element_low_rank_and_bad_input_are_answered() {
        let zero = Spectrum::new(Array2::zeros((3, 4)).view(), None).expect("finite");
        assert_eq!((zero.error(0), zero.rank_for(0.0)), (0.0, 0));
        let one = Spectrum::new(Array2::from_elem((1, 1), -2.0).view(), None).expect("finite");
        assert_eq!((one.values[0], one.rank_for(0.1)), (4.0, 1));
        let empty = Spectrum::new(Array2::zeros((0, 4)).view(), None).expect("empty");
        assert_eq!((empty.full_rank(), empty.rank_for(0.0)), (0, 0));
        // Inputs that live on a line: rank 1 is enough, whatever the map.
        let line = random(1, 5, 1);
        let g = line.t().dot(&line);
        for out in [4, 20] {
            let spectrum = Spectrum::new(random(out, 5, 2).view(), Some(g.view())).expect("finite");
            assert_eq!(spectrum.rank_for(1e-12), 1);
        }
        let huge = Array2::from_elem((3, 3), 1e30);
        assert_eq!(Spectrum::new(huge.view(), None).expect("finite").rank_for(1e-12), 1);
        assert!(Spectrum::new((&huge * 1e270).view(), None).is_err());
        let mut bad = Array2::ones((3, 3));
        bad[[0, 1]] = f64::NAN;
        assert!(Spectrum::new(bad.view(), None).is_err());
        assert!(Spectrum::new(Array2::ones((9, 3)).view(), Some(bad.view())).is_err());
        assert!(Spectrum::new(Array2::ones((2, 4)).view(), Some(bad.view())).is_err());
        assert_eq!(relative_error(huge.view(), huge.view(), None), 0.0);
        let nothing = Array2::zeros((3, 3));
        assert_eq!(relative_error(nothing.view(), nothing.view(), None), 0.0);
        assert_eq!(relative_error(nothing.view(), huge.view(), None), f64::INFINITY);
    }
}
