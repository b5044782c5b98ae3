//! Rounding of weights so that the errors cancel in the output, under the second moment of the input.
//!
//! With `e = w − ŵ` the mean squared error of `w·x` is `eᵀ G e`, `G = E[x xᵀ]`, or `eᵀ C e` with the covariance `C` when a
//! bias takes up the mean `e·E[x]`. With `G = L Lᵀ` it is `Σ_j (L_jj e_j + Σ_{k>j} L_kj e_k)²`. Rounding from the last weight to
//! the first, each to the code nearest to `w_j + Σ_{k>j} L_kj e_k / L_jj`, makes every term as small as the grid allows
//! (Babai 1986, nearest plane). It is the same as GPTQ (Frantar et al. 2022), which is optimal brain surgery with a fixed
//! order, and needs no inverse. Weights of the largest moment are rounded first, while there are others to make up for them.

use anyhow::{Result, ensure};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::{Mat, Par, Spec};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

use super::affine::{IntKind, round_half_even};

/// Rows of weights that are rounded together, so that the factor is read once for all of them.
const TOGETHER: usize = 16;
/// Added to the diagonal, relative to its mean: what the data do not tell (GPTQ's choice).
const DAMPING: f64 = 0.01;

/// The factor of one second moment, to round any number of rows with it.
pub struct Rounding {
    /// Which weight each place of the factor is.
    order: Vec<usize>,
    /// `L`; column `j` holds what weight `j` feels of those rounded before.
    factor: Mat<f64>,
}

impl Rounding {
    /// Factors a symmetric positive semidefinite `dim × dim` matrix; `None` when it is zero, or not usable.
    pub fn new(second: ArrayView2<f64>) -> Option<Rounding> {
        let n = second.nrows();
        let diagonal = second.diag().to_owned();
        let mean = diagonal.sum() / n.max(1) as f64;
        if n != second.ncols() || !(mean.is_finite() && mean > 0.0) || second.iter().any(|x| !x.is_finite()) {
            return None;
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| diagonal[a].total_cmp(&diagonal[b]).then(a.cmp(&b)));
        let mut delta = DAMPING;
        while delta <= 1.0 {
            let mut factor = Mat::from_fn(n, n, |i, j| {
                (second[[order[i], order[j]]] + if i == j { delta * mean } else { 0.0 }) / mean
            });
            let params = Spec::default();
            let need = llt::factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, params);
            let mut memory = MemBuffer::new(need);
            let stack = MemStack::new(&mut memory);
            if llt::factor::cholesky_in_place(factor.as_mut(), Default::default(), Par::Seq, stack, params).is_ok() {
                return Some(Rounding { order, factor });
            }
            delta *= 10.0;
        }
        None
    }

    /// Codes of `w` (rows × dim), row `i` with `scales[i]`, zero point 0 and codes up to ±qmax of `kind`.
    ///
    /// # Errors
    /// When sizes do not fit, a weight is not finite, or the kind does not fit into int8.
    pub fn codes(&self, w: ArrayView2<f32>, scales: &[f32], kind: IntKind) -> Result<Array2<i8>> {
        let n = self.order.len();
        ensure!(w.ncols() == n, "{} weights in a row, a moment of {n}", w.ncols());
        ensure!(w.nrows() == scales.len(), "{} rows, {} scales", w.nrows(), scales.len());
        ensure!(kind.signed() && kind.qmax() <= 127, "{kind:?} does not fit into int8");
        ensure!(w.iter().all(|x| x.is_finite()), "a weight is not finite");
        let blocks: Vec<usize> = (0..w.nrows()).step_by(TOGETHER).collect();
        let parts: Vec<Vec<i8>> = blocks
            .par_iter()
            .map(|&first| self.block(w, scales, first, (w.nrows() - first).min(TOGETHER), kind))
            .collect();
        let all: Vec<i8> = parts.into_iter().flatten().collect();
        Ok(Array2::from_shape_vec(w.dim(), all)?)
    }

    /// Rounds `rows` rows from `first` on; gives their codes row by row.
    fn block(&self, w: ArrayView2<f32>, scales: &[f32], first: usize, rows: usize, kind: IntKind) -> Vec<i8> {
        let n = self.order.len();
        let (low, high) = kind.symmetric_limits();
        let mut codes = vec![0i8; rows * n];
        let mut errors = vec![[0.0f64; TOGETHER]; n];
        for j in (0..n).rev() {
            let column = self.factor.col_as_slice(j);
            let mut felt = [0.0f64; TOGETHER];
            for (l, e) in column[j + 1..].iter().zip(&errors[j + 1..]) {
                (0..TOGETHER).for_each(|r| felt[r] += l * e[r]);
            }
            for r in 0..rows {
                let (weight, scale) = (f64::from(w[[first + r, self.order[j]]]), f64::from(scales[first + r]));
                let target = (weight + felt[r] / column[j]) / scale;
                let code = round_half_even(target.clamp(f64::from(low), f64::from(high)) as f32);
                codes[r * n + self.order[j]] = code as i8;
                errors[j][r] = weight - scale * f64::from(code);
            }
        }
        codes
    }
}

/// `eᵀ G e` of every row `e` of `errors` (rows × dim).
///
/// # Panics
/// When the sizes do not fit.
pub fn energies(errors: ArrayView2<f32>, second: ArrayView2<f64>) -> Vec<f64> {
    assert_eq!(errors.ncols(), second.nrows(), "a row for the moment");
    let rows: Vec<usize> = (0..errors.nrows()).step_by(TOGETHER).collect();
    let parts: Vec<Vec<f64>> = rows
        .par_iter()
        .map(|&first| {
            let part = errors.slice(ndarray::s![first..errors.nrows().min(first + TOGETHER), ..]);
            let part = part.mapv(f64::from);
            let product = part.dot(&second);
            let each = part.rows().into_iter().zip(product.rows());
            each.map(|(e, p)| e.iter().zip(p).map(|(a, b)| a * b).sum::<f64>().max(0.0))
                .collect()
        })
        .collect();
    parts.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::super::channel::{channel_scales, dequantize_per_channel, quantize_per_channel};
    use super::*;

    fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
        let mut state = seed;
        Array2::from_shape_fn((rows, cols), |_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / 8388608.0 - 1.0
        })
    }

    /// A moment with strong correlations: few directions carry most.
    fn moment(n: usize) -> Array2<f64> {
        let mix = random(n, n, 7).mapv(f64::from);
        let x = random(400, n, 8).mapv(f64::from);
        let x = x.dot(&mix) + 0.5;
        x.t().dot(&x) / 400.0
    }

    #[test]
    fn errors_that_cancel_are_smaller_than_errors_of_nearest() {
        let (w, g) = (random(20, 40, 3), moment(40));
        let scales = channel_scales(w.view(), IntKind::S4).expect("finite");
        let of = |codes: &Array2<i8>| {
            let back = dequantize_per_channel(codes.view(), &scales).expect("as many scales");
            energies((&w - &back).view(), g.view()).iter().sum::<f64>()
        };
        let nearest = of(&quantize_per_channel(w.view(), &scales, IntKind::S4).expect("finite"));
        let rounding = Rounding::new(g.view()).expect("a moment");
        let better = of(&rounding.codes(w.view(), &scales, IntKind::S4).expect("fits"));
        assert!(better < 0.5 * nearest, "{better} against {nearest}");
    }

    #[test]
    fn without_correlation_it_is_rounding_to_nearest() {
        let w = random(5, 12, 9);
        let scales = channel_scales(w.view(), IntKind::S8).expect("finite");
        let codes = Rounding::new(Array2::eye(12).view())
            .expect("the identity")
            .codes(w.view(), &scales, IntKind::S8);
        let nearest = quantize_per_channel(w.view(), &scales, IntKind::S8).expect("finite");
        assert_eq!(codes.expect("fits"), nearest);
    }

    #[test]
    fn useless_moments_are_refused() {
        assert!(Rounding::new(Array2::zeros((3, 3)).view()).is_none());
        assert!(Rounding::new(Array2::from_elem((2, 2), f64::NAN).view()).is_none());
        assert!(Rounding::new(Array2::from_elem((2, 2), 1e300).view()).is_some());
        let ones = Array2::from_elem((3, 3), 2.0);
        assert!(Rounding::new(ones.view()).is_some(), "a moment of rank one");
    }
}
