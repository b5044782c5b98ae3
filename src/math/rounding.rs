//! Rounding of weights so that the errors cancel in the output, under the second moment of the input.
//!
//! With `e = w − ŵ` the mean squared error of `w·x` is `eᵀ G e`, `G = E[x xᵀ]`, or `eᵀ C e` with the covariance `C` when a
//! bias takes up the mean `e·E[x]`. With `G = L Lᵀ` it is `Σ_j (L_jj e_j + Σ_{k>j} L_kj e_k)²`. Rounding from the last weight to
//! the first, each to the code nearest to `w_j + Σ_{k>j} L_kj e_k / L_jj`, makes every term as small as the grid allows
//! (Babai 1986, nearest plane). It is the same as GPTQ (Frantar et al. 2022), which is optimal brain surgery with a fixed
//! order, and needs no inverse. Weights of the largest moment are rounded first, while there are others to make up for them.

use anyhow::{Result, ensure};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use std::ops::Range;

use super::affine::{IntKind, round_half_even};
use super::cholesky::cholesky;
use super::grid::Grid;
use super::vector::widest;

/// Rows of weights that are rounded together by one task.
const ROWS: usize = 64;
/// Places of the factor after whose rounding the others feel the errors, in one product of matrices.
const PLACES: usize = 48;
/// Added to the diagonal, relative to its mean: what the data do not tell (GPTQ's choice).
const DAMPING: f64 = 0.01;

/// The factor of one second moment, to round any number of rows with it.
pub struct Rounding {
    /// Which weight each place of the factor is.
    order: Vec<usize>,
    /// `L` of the moment divided by `mean`.
    factor: Factor,
    /// The moment's diagonal.
    diagonal: Vec<f64>,
    /// The mean of the moment's diagonal.
    mean: f64,
    /// What was added to the diagonal of the moment divided by `mean`.
    damping: f64,
}

/// In maps of which so much is exactly zero, zeros were meant and stay.
const SPARSE: f64 = 0.25;

/// Rows of codes, and what their errors cost.
pub struct Codes {
    /// rows × dim.
    pub codes: Array2<i8>,
    /// `eᵀ G e` of every row, `e = w − ŵ`.
    pub energies: Vec<f64>,
}

impl Rounding {
    /// Factors a symmetric positive semidefinite `dim × dim` matrix; `None` when it is zero, or not usable.
    pub fn new(second: ArrayView2<f64>) -> Option<Rounding> {
        Rounding::of(|| second.as_standard_layout().into_owned())
    }

    /// The same of a matrix that is made when it is needed, and again where it is far from positive definite: it is not kept.
    pub fn of(second: impl Fn() -> Array2<f64>) -> Option<Rounding> {
        let mut damping = DAMPING;
        while damping <= 1.0 {
            let mut matrix = second();
            let n = matrix.nrows();
            let diagonal = matrix.diag().to_vec();
            let mean = diagonal.iter().sum::<f64>() / n.max(1) as f64;
            if n != matrix.ncols() || !(mean.is_finite() && mean > 0.0) || matrix.iter().any(|x| !x.is_finite()) {
                return None;
            }
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&a, &b| diagonal[a].total_cmp(&diagonal[b]).then(a.cmp(&b)));
            permute(&mut matrix, &order);
            matrix.mapv_inplace(|x| x / mean);
            matrix.diag_mut().iter_mut().for_each(|x| *x += damping);
            // It is symmetric: its rows are its columns.
            let columns = MatMut::from_column_major_slice_mut(matrix.as_slice_mut()?, n, n);
            if cholesky(columns) {
                return Some(Rounding {
                    order,
                    factor: Factor::of(matrix),
                    diagonal,
                    mean,
                    damping,
                });
            }
            damping *= 10.0;
        }
        None
    }

    /// The diagonal of the moment.
    pub fn diagonal(&self) -> &[f64] {
        &self.diagonal
    }

    /// `eᵀ G e` of every row `e` of `errors` (rows × dim), by the factor: `‖Lᵀ e‖² − δ‖e‖²`.
    ///
    /// # Panics
    /// When the sizes do not fit.
    pub fn energies(&self, errors: ArrayView2<f32>) -> Vec<f64> {
        let n = self.order.len();
        assert_eq!(errors.ncols(), n, "a row for the moment");
        let firsts: Vec<usize> = (0..errors.nrows()).step_by(ROWS).collect();
        let task = |&first: &usize| {
            let part = errors.slice(ndarray::s![first..errors.nrows().min(first + ROWS), ..]);
            let part = Mat::from_fn(part.nrows(), n, |r, j| part[[r, self.order[j]]]);
            let mut product = Mat::<f32>::zeros(part.nrows(), n);
            matmul(
                product.as_mut(),
                Accum::Replace,
                part.as_ref(),
                self.factor.view(),
                1.0,
                Par::Seq,
            );
            let square = |m: &Mat<f32>, r: usize| (0..n).map(|j| f64::from(m[(r, j)]).powi(2)).sum::<f64>();
            let of = |r| self.mean * (square(&product, r) - self.damping * square(&part, r)).max(0.0);
            (0..part.nrows()).map(of).collect()
        };
        let parts: Vec<Vec<f64>> = firsts.par_iter().map(task).collect();
        parts.concat()
    }

    /// Codes of some `rows` of `w` (rows × dim), row `i` with `scales[i]`, zero point 0 and codes up to ±qmax of `kind`.
    ///
    /// # Errors
    /// When sizes do not fit, a weight is not finite, or the kind does not fit into int8.
    pub fn codes(&self, w: ArrayView2<f32>, scales: &[f32], kind: IntKind, rows: &[usize]) -> Result<Codes> {
        ensure!(w.nrows() == scales.len(), "{} rows, {} scales", w.nrows(), scales.len());
        ensure!(kind.signed() && kind.qmax() <= 127, "{kind:?} does not fit into int8");
        self.on_grid(w, &Grid::of_rows(scales, w.ncols(), kind), rows)
    }

    /// Codes of some `rows` of `w` (rows × dim) on a grid, in this order.
    ///
    /// # Errors
    /// When sizes do not fit, or a weight is not finite.
    pub fn on_grid(&self, w: ArrayView2<f32>, grid: &Grid, rows: &[usize]) -> Result<Codes> {
        let n = self.order.len();
        ensure!(w.ncols() == n, "{} weights in a row, a moment of {n}", w.ncols());
        let parameters = (w.nrows(), grid.blocks(n));
        ensure!(
            grid.scales.dim() == parameters && grid.zeros.dim() == parameters,
            "{:?} parameters, not {parameters:?}",
            grid.scales.dim()
        );
        ensure!(w.iter().all(|x| x.is_finite()), "a weight is not finite");
        let zeros = w.iter().filter(|x| **x == 0.0).count();
        let keep_zeros = zeros as f64 >= SPARSE * w.len() as f64;
        let parts = rows.par_chunks(ROWS).map(|rows| self.task(w, grid, rows, keep_zeros));
        let parts: Vec<(Vec<i8>, Vec<f64>)> = parts.collect();
        let (codes, energies): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        Ok(Codes {
            codes: Array2::from_shape_vec((rows.len(), n), codes.concat())?,
            energies: energies.concat(),
        })
    }

    /// Codes of rows, one after the other, and energies. Places are rounded from the last to the first in blocks; what is rounded within a
    /// block is felt at once, and by all places before the block when it is done.
    fn task(&self, w: ArrayView2<f32>, grid: &Grid, of: &[usize], keep_zeros: bool) -> (Vec<i8>, Vec<f64>) {
        let (n, rows) = (self.order.len(), of.len());
        let (low, high) = (grid.limits.0 as f32, grid.limits.1 as f32);
        let mut codes = vec![0i8; rows * n];
        let mut energies = vec![0.0f64; rows];
        // Column `j` of each: one number for every row.
        let mut felt = Mat::<f32>::zeros(rows, n);
        let mut errors = Mat::<f32>::zeros(rows, n);
        for end in (1..=n).rev().step_by(PLACES) {
            let start = end.saturating_sub(PLACES);
            for j in (start..end).rev() {
                let column = self.factor.column(j);
                let mut feels = felt.col_as_slice(j).to_vec();
                widest!(feel(&mut feels, &errors, j + 1..end, column));
                let block = grid.block_of(self.order[j]);
                let own = errors.col_as_slice_mut(j);
                for (r, (error, felt)) in own.iter_mut().zip(&feels).enumerate() {
                    let weight = w[[of[r], self.order[j]]];
                    let (scale, zero) = grid.of_block(of[r], block);
                    let target = (weight + felt / column[j]) / scale;
                    let steps = match keep_zeros && weight == 0.0 {
                        true => 0.0,
                        false => round_half_even(target.clamp(low - zero, high - zero)),
                    };
                    codes[r * n + self.order[j]] = (steps + zero) as i8;
                    *error = weight - scale * steps;
                    let term = f64::from(column[j] * *error + felt);
                    energies[r] += term * term - self.damping * f64::from(*error).powi(2);
                }
            }
            matmul(
                felt.subcols_mut(0, start),
                Accum::Add,
                errors.subcols(start, end - start),
                self.factor.view().submatrix(start, 0, end - start, start),
                1.0,
                Par::Seq,
            );
        }
        energies.iter_mut().for_each(|e| *e = (*e * self.mean).max(0.0));
        (codes, energies)
    }
}

/// What the errors of places are felt as, by the factor's column: a number for each row.
#[inline(always)]
fn feel(feels: &mut [f32], errors: &Mat<f32>, places: Range<usize>, column: &[f32]) {
    for k in places {
        let others = errors.col_as_slice(k);
        feels.iter_mut().zip(others).for_each(|(f, e)| *f += column[k] * e);
    }
}

/// A lower factor, zeros above the diagonal, column by column; column `j` holds what weight `j` feels of those rounded before.
struct Factor {
    n: usize,
    /// f32, two in a number: where the f64 were of which they are made.
    pairs: Vec<f64>,
}

impl Factor {
    /// Of a matrix whose rows are the columns of the factor, whatever is above its diagonal.
    fn of(matrix: Array2<f64>) -> Factor {
        let n = matrix.nrows();
        let (mut pairs, _) = matrix.into_raw_vec_and_offset();
        for k in 0..n * n {
            let x = if k % n < k / n { 0.0 } else { pairs[k] as f32 };
            // Number `k` takes half the place of number `k / 2`, which was read before, or is `k`.
            bytemuck::cast_slice_mut(&mut pairs)[k] = x;
        }
        pairs.truncate((n * n).div_ceil(2));
        pairs.shrink_to_fit();
        Factor { n, pairs }
    }

    fn numbers(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.pairs)[..self.n * self.n]
    }

    fn column(&self, j: usize) -> &[f32] {
        &self.numbers()[j * self.n..][..self.n]
    }

    fn view(&self) -> MatRef<'_, f32> {
        MatRef::from_column_major_slice(self.numbers(), self.n, self.n)
    }
}

/// By what the scales of rows of codes are to be multiplied, given `‖w‖²`, `‖ŵ‖²` and `‖w − ŵ‖²` of every row in the norm of the products: of `‖w − t·ŵ‖²` the
/// least is at `t = ⟨w, ŵ⟩/‖ŵ‖² = (‖w‖² + ‖ŵ‖² − ‖w − ŵ‖²)/2‖ŵ‖²`; 1 where that is no use.
pub fn stretches(powers: &[f64], own: &[f64], wrong: &[f64]) -> Vec<f32> {
    let all = powers.iter().zip(own).zip(wrong);
    let each = all.map(|((power, own), wrong)| (power + own - wrong) / (2.0 * own));
    each.map(|t| if t.is_finite() && t > 0.0 { t as f32 } else { 1.0 })
        .collect()
}

/// Rows and columns of a square matrix in another order: number `i` is what number `order[i]` was.
///
/// # Panics
/// When the matrix does not lie row by row.
pub fn permute(matrix: &mut Array2<f64>, order: &[usize]) {
    let all = matrix.as_slice_mut().expect("row by row");
    if order.is_sorted() {
        return;
    }
    let mut row = vec![0.0; order.len()];
    all.par_chunks_mut(order.len()).for_each_init(
        || row.clone(),
        |row, of| {
            row.iter_mut().zip(order).for_each(|(x, &j)| *x = of[j]);
            of.copy_from_slice(row);
        },
    );
    let mut done = vec![false; order.len()];
    for start in 0..order.len() {
        if std::mem::replace(&mut done[start], true) || order[start] == start {
            continue;
        }
        // Along a cycle each row takes the place of the one before it.
        row.iter_mut().zip(matrix.row(start)).for_each(|(x, y)| *x = *y);
        let mut at = start;
        while order[at] != start {
            let (mut to, from) = matrix.multi_slice_mut((ndarray::s![at, ..], ndarray::s![order[at], ..]));
            to.assign(&from);
            at = order[at];
            done[at] = true;
        }
        matrix.row_mut(at).iter_mut().zip(&row).for_each(|(x, y)| *x = *y);
    }
}

/// `eᵀ G e` of every row `e` of `errors` (rows × dim).
///
/// # Panics
/// When the sizes do not fit.
pub fn energies(errors: ArrayView2<f32>, second: ArrayView2<f64>) -> Vec<f64> {
    assert_eq!(errors.ncols(), second.nrows(), "a row for the moment");
    let second = second.as_standard_layout();
    let n = second.nrows();
    let second = MatRef::from_row_major_slice(second.as_slice().expect("standard layout"), n, n);
    let firsts: Vec<usize> = (0..errors.nrows()).step_by(ROWS).collect();
    let task = |&first: &usize| {
        let part = errors.slice(ndarray::s![first..errors.nrows().min(first + ROWS), ..]);
        let part = Mat::from_fn(n, part.nrows(), |i, r| f64::from(part[[r, i]]));
        let mut product = Mat::<f64>::zeros(n, part.ncols());
        matmul(product.as_mut(), Accum::Replace, second, part.as_ref(), 1.0, Par::Seq);
        let dot = |r| {
            part.col_as_slice(r)
                .iter()
                .zip(product.col_as_slice(r))
                .map(|(a, b)| a * b)
                .sum::<f64>()
        };
        (0..part.ncols()).map(|r| dot(r).max(0.0)).collect()
    };
    let parts: Vec<Vec<f64>> = firsts.par_iter().map(task).collect();
    parts.concat()
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

    /// Of all rows.
    fn codes(rounding: &Rounding, w: &Array2<f32>, scales: &[f32], kind: IntKind) -> Result<Codes> {
        let rows: Vec<usize> = (0..w.nrows()).collect();
        rounding.codes(w.view(), scales, kind, &rows)
    }

    #[test]
    fn some_rows_have_the_codes_that_they_have_among_all() {
        let (w, g) = (random(3 * ROWS, 100, 13), moment(100));
        let scales = channel_scales(w.view(), IntKind::S4).expect("finite");
        let rounding = Rounding::new(g.view()).expect("a moment");
        let all = codes(&rounding, &w, &scales, IntKind::S4).expect("fits");
        let rows: Vec<usize> = (0..w.nrows()).filter(|i| i % 5 < 2).collect();
        let some = rounding.codes(w.view(), &scales, IntKind::S4, &rows).expect("fits");
        assert_eq!(some.codes, all.codes.select(ndarray::Axis(0), &rows));
        let energies: Vec<f64> = rows.iter().map(|&i| all.energies[i]).collect();
        assert_eq!(some.energies, energies);
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
        let rounded = codes(&rounding, &w, &scales, IntKind::S4).expect("fits");
        let better = of(&rounded.codes);
        assert!(better < 0.5 * nearest, "{better} against {nearest}");
        let by_factor = |w: ArrayView2<f32>| rounding.energies(w).iter().sum::<f64>();
        let plain = energies(w.view(), g.view()).iter().sum::<f64>();
        assert!((by_factor(w.view()) / plain - 1.0).abs() < 1e-4, "{plain}");
        let told = rounded.energies.iter().sum::<f64>();
        assert!((told / better - 1.0).abs() < 1e-3, "{told} is said of {better}");
    }

    #[test]
    fn without_correlation_it_is_rounding_to_nearest() {
        let w = random(5, 12, 9);
        let scales = channel_scales(w.view(), IntKind::S8).expect("finite");
        let rounding = Rounding::new(Array2::eye(12).view()).expect("the identity");
        let nearest = quantize_per_channel(w.view(), &scales, IntKind::S8).expect("finite");
        assert_eq!(codes(&rounding, &w, &scales, IntKind::S8).expect("fits").codes, nearest);
    }

    #[test]
    fn blocks_change_nothing_but_the_last_bits() {
        // More rows and places than one block holds, beside the plain recursion.
        let (w, g) = (random(ROWS + 3, PLACES * 2 + 5, 11), moment(PLACES * 2 + 5));
        let scales = channel_scales(w.view(), IntKind::S8).expect("finite");
        let rounding = Rounding::new(g.view()).expect("a moment");
        let got = codes(&rounding, &w, &scales, IntKind::S8).expect("fits");
        let n = w.ncols();
        let mut same = 0;
        for r in 0..w.nrows() {
            let mut errors = vec![0.0f64; n];
            for j in (0..n).rev() {
                let felt: f64 = (j + 1..n)
                    .map(|k| f64::from(rounding.factor.view()[(k, j)]) * errors[k])
                    .sum();
                let (at, own) = (rounding.order[j], f64::from(rounding.factor.view()[(j, j)]));
                let code = ((f64::from(w[[r, at]]) + felt / own) / f64::from(scales[r])).clamp(-127.0, 127.0);
                let code = code.round_ties_even();
                errors[j] = f64::from(w[[r, at]]) - f64::from(scales[r]) * code;
                same += usize::from(code as i8 == got.codes[[r, at]]);
            }
        }
        assert!(same as f64 > 0.99 * w.len() as f64, "{same} of {}", w.len());
    }

    #[test]
    fn a_matrix_is_put_into_another_order() {
        let old = random(7, 7, 3).mapv(f64::from);
        for order in [[0, 1, 2, 3, 4, 5, 6], [3, 0, 1, 2, 6, 5, 4], [6, 5, 4, 3, 2, 1, 0]] {
            let mut new = old.clone();
            permute(&mut new, &order);
            let wanted = Array2::from_shape_fn((7, 7), |(i, j)| old[[order[i], order[j]]]);
            assert_eq!(new, wanted);
        }
    }

    #[test]
    fn the_layout_of_the_moment_in_memory_does_not_matter() {
        let (w, g) = (random(5, 40, 7), moment(40));
        let scales = channel_scales(w.view(), IntKind::S8).expect("finite");
        let by = |g: ArrayView2<f64>| {
            let rounding = Rounding::new(g).expect("a moment");
            codes(&rounding, &w, &scales, IntKind::S8).expect("fits").codes
        };
        assert_eq!(by(g.view()), by(g.t()));
        assert_ne!(by(g.view()), by(Array2::eye(40).view()));
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
