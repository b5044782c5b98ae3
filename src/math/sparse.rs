//! Which weights of a linear map become zero, and what the others take over, under the second moment G of its input.
//!
//! Setting weight j of a row to zero and refitting the others costs `w_j² / (G⁻¹)_jj` (optimal brain surgeon, Hassibi and Stork 1993).
//! Rows are independent: with a support S the best weights are `w_S = (G_SS)⁻¹ (G w)_S`. So weights go in a few steps; at each,
//! those of the whole map that cost least, told anew for every row's own support, and rows are refitted against the map
//! as it was. That needs a factorization for each row and step, `|S|³`. Where it is too dear, columns are decided one after the other
//! instead, in blocks, with the Cholesky factor `G = L Lᵀ` of all rows (SparseGPT, Frantar and Alistarh 2023; in the form of
//! [`crate::math::rounding`]): setting w_j to zero costs `(L_jj w_j + Σ_{k>j} L_kj e_k)²`, keeping it lets it make up for the errors e so far.

use super::decompose::{Triangle, inverse_spd, matmul};
use anyhow::{Result, ensure};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};
use rayon::prelude::*;

/// Added to the diagonal, relative to its mean: what the data do not tell.
const DAMPING: f64 = 0.01;
/// Steps from dense to sparse, when they can be afforded.
const STEPS: usize = 4;
/// Columns that are decided at once.
const BLOCK: usize = 64;

/// How zeros lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// Anywhere.
    Free,
    /// At most `.0` weights of every `.1` columns in a row are not zero.
    Of(usize, usize),
}

/// The second moment with its damping, and what it costs to lose an input.
pub struct Moment {
    second: Array2<f64>,
    inverse: Array1<f64>,
}

impl Moment {
    /// For a symmetric positive semidefinite `n × n` matrix.
    ///
    /// # Errors
    /// When it is not that, or zero.
    pub fn new(mut second: Array2<f64>) -> Result<Moment> {
        let n = second.nrows();
        let mean = second.diag().sum() / n.max(1) as f64;
        ensure!(
            mean > 0.0 && mean.is_finite(),
            "a moment of {n} inputs is zero or not finite"
        );
        second.diag_mut().iter_mut().for_each(|x| *x += DAMPING * mean);
        let inverse = inverse_spd(second.view(), 0.0)?.diag().to_owned();
        Ok(Moment { second, inverse })
    }

    /// `tr(E G Eᵀ)`.
    pub fn power(&self, e: ArrayView2<f64>) -> f64 {
        (&matmul(e, self.second.view()) * &e).sum()
    }

    /// What each weight costs when it alone goes and the others make up for it.
    pub fn costs(&self, w: ArrayView2<f64>) -> Array2<f64> {
        let mut costs = w.mapv(|x| x * x);
        costs.rows_mut().into_iter().for_each(|mut r| r /= &self.inverse);
        costs
    }

    /// `|w|·‖x‖`, squared (Wanda, Sun et al. 2023).
    pub fn products(&self, w: ArrayView2<f64>) -> Array2<f64> {
        let mut products = w.mapv(|x| x * x);
        products
            .rows_mut()
            .into_iter()
            .for_each(|mut r| r *= &self.second.diag());
        products
    }

    /// The map with `keep` weights of the whole, or with a pattern, the others set to zero at the least cost that is known.
    /// Factorizations of rows may take about `most` multiply-adds.
    ///
    /// # Errors
    /// When numbers are not finite or shapes do not fit.
    pub fn thinned(&self, w: ArrayView2<f64>, keep: usize, pattern: Pattern, most: f64) -> Result<Array2<f64>> {
        ensure!(
            w.ncols() == self.second.nrows(),
            "{:?} against {:?}",
            w.dim(),
            self.second.dim()
        );
        let (rows, n) = (w.nrows() as f64, w.ncols() as f64);
        let part = match pattern {
            Pattern::Free => keep as f64 / (rows * n).max(1.0),
            Pattern::Of(a, b) => a as f64 / b as f64,
        };
        let work = |steps: usize| -> f64 {
            let at = |t: usize| (part.powf(t as f64 / steps as f64) * n).powi(3) * rows * 0.7;
            (1..=steps).map(at).sum()
        };
        let steps = (1..=STEPS).rev().find(|s| work(*s) <= most);
        match (pattern, steps) {
            (Pattern::Free, Some(steps)) => self.in_steps(w, keep, steps),
            (_, steps) => {
                let thin = self.in_order(w, keep, pattern)?;
                match steps {
                    Some(_) => self.refitted(w, &thin.mapv(|x| x != 0.0)).map(|(w, _)| w),
                    None => Ok(thin),
                }
            }
        }
    }

    fn in_steps(&self, w: ArrayView2<f64>, keep: usize, steps: usize) -> Result<Array2<f64>> {
        let whole = w.len() as f64;
        let part = keep as f64 / whole.max(1.0);
        let mut costs = self.costs(w);
        let mut thin = w.to_owned();
        for t in 1..=steps {
            let count = if t == steps {
                keep
            } else {
                (part.powf(t as f64 / steps as f64) * whole) as usize
            };
            let mask = largest(&costs, count);
            let (new, inverse) = self.refitted(w, &mask)?;
            thin = new;
            costs = ndarray::Zip::from(&thin)
                .and(&inverse)
                .map_collect(|x, i| if *i > 0.0 { x * x / i } else { 0.0 });
        }
        Ok(thin)
    }

    /// Every row refitted to its support, and the diagonals of the inverses there; zeros elsewhere.
    ///
    /// # Errors
    /// When numbers are not finite.
    pub fn refitted(&self, w: ArrayView2<f64>, mask: &Array2<bool>) -> Result<(Array2<f64>, Array2<f64>)> {
        let target = matmul(w, self.second.view());
        let rows: Vec<usize> = (0..w.nrows()).collect();
        let fit = |&i: &usize| self.refitted_row(target.row(i), mask.row(i));
        let all: Result<Vec<(Array1<f64>, Array1<f64>)>> = rows.par_iter().map(fit).collect();
        let mut out = (Array2::zeros(w.dim()), Array2::zeros(w.dim()));
        for (i, (row, inverse)) in all?.into_iter().enumerate() {
            out.0.row_mut(i).assign(&row);
            out.1.row_mut(i).assign(&inverse);
        }
        Ok(out)
    }

    fn refitted_row(&self, target: ArrayView1<f64>, mask: ArrayView1<bool>) -> Result<(Array1<f64>, Array1<f64>)> {
        let support: Vec<usize> = mask.iter().enumerate().filter(|(_, m)| **m).map(|(j, _)| j).collect();
        let mut out = (Array1::zeros(mask.len()), Array1::zeros(mask.len()));
        if support.is_empty() {
            return Ok(out);
        }
        let inner = Array2::from_shape_fn((support.len(), support.len()), |(a, b)| {
            self.second[[support[a], support[b]]]
        });
        let triangle = Triangle::new(inner.view(), 0.0)?;
        let right = target.select(Axis(0), &support).insert_axis(Axis(1));
        let y = triangle.forward(right.view());
        let x = triangle.back(y.view(), support.len());
        let inverse = triangle.forward(Array2::eye(support.len()).view());
        for (k, &j) in support.iter().enumerate() {
            ensure!(x[[k, 0]].is_finite(), "a refitted weight is not finite");
            out.0[j] = x[[k, 0]];
            out.1[j] = inverse.column(k).dot(&inverse.column(k));
        }
        Ok(out)
    }

    /// Columns from the last to the first, in blocks of whole groups.
    fn in_order(&self, w: ArrayView2<f64>, keep: usize, pattern: Pattern) -> Result<Array2<f64>> {
        let n = w.ncols();
        let l = Triangle::new(self.second.view(), 0.0)?.lower();
        let costs = self.costs(w);
        let first = largest(&costs, keep);
        let width = match pattern {
            Pattern::Free => BLOCK,
            Pattern::Of(_, m) => m * (BLOCK / m).max(1),
        };
        let mut thin = w.to_owned();
        let mut errors = Array2::<f64>::zeros(w.dim());
        let mut felt = Array2::<f64>::zeros(w.dim());
        for start in (0..n).step_by(width).rev() {
            let end = n.min(start + width);
            // As many stay in this block as the first look at the whole map said.
            let stay = first.slice(s![.., start..end]).iter().filter(|m| **m).count();
            let aim =
                |thin: &Array2<f64>, felt: &Array2<f64>, i: usize, j: usize| thin[[i, j]] + felt[[i, j]] / l[[j, j]];
            let now = Array2::from_shape_fn((w.nrows(), end - start), |(i, k)| {
                let j = start + k;
                // What it would cost now, on the scale of `costs`: others of the block may still make up for it.
                aim(&thin, &felt, i, j).powi(2) / self.inverse[j]
            });
            let mask = match pattern {
                Pattern::Free => largest(&now, stay),
                Pattern::Of(a, b) => of_groups(&now, a, b),
            };
            for j in (start..end).rev() {
                for i in 0..w.nrows() {
                    let new = if mask[[i, j - start]] {
                        aim(&thin, &felt, i, j)
                    } else {
                        0.0
                    };
                    let error = w[[i, j]] - new;
                    thin[[i, j]] = new;
                    errors[[i, j]] = error;
                    for k in start..j {
                        felt[[i, k]] += l[[j, k]] * error;
                    }
                }
            }
            let share = matmul(errors.slice(s![.., start..end]), l.slice(s![start..end, ..start]));
            let mut before = felt.slice_mut(s![.., ..start]);
            before += &share;
        }
        Ok(thin)
    }
}

/// The places of the `count` largest numbers; of equal ones the first.
pub fn largest(x: &Array2<f64>, count: usize) -> Array2<bool> {
    let mut mask = Array2::from_elem(x.dim(), false);
    let mut order: Vec<usize> = (0..x.len()).collect();
    let flat: Vec<f64> = x.iter().copied().collect();
    let count = count.min(order.len());
    let by = |a: &usize, b: &usize| flat[*b].total_cmp(&flat[*a]).then(a.cmp(b));
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count - 1, by);
    }
    let columns = x.ncols().max(1);
    order[..count]
        .iter()
        .for_each(|&k| mask[[k / columns, k % columns]] = true);
    mask
}

/// The places of about `count` numbers, in the blocks of `width` numbers of a row that are largest on average.
pub fn blocks(x: &Array2<f64>, count: usize, width: usize) -> Array2<bool> {
    let per_row = x.ncols().div_ceil(width.max(1));
    let mean = |(i, k): (usize, usize)| {
        let part = x.slice(s![i, k * width..x.ncols().min((k + 1) * width)]);
        part.sum() / part.len().max(1) as f64
    };
    let chosen = largest(
        &Array2::from_shape_fn((x.nrows(), per_row), mean),
        count.div_ceil(width.max(1)),
    );
    Array2::from_shape_fn(x.dim(), |(i, j)| chosen[[i, j / width]])
}

/// In every row the `count` largest.
pub fn largest_of_rows(x: &Array2<f64>, count: usize) -> Array2<bool> {
    let mut mask = Array2::from_elem(x.dim(), false);
    for (i, row) in x.rows().into_iter().enumerate() {
        let one = largest(&row.to_owned().insert_axis(Axis(0)), count);
        mask.row_mut(i).assign(&one.row(0));
    }
    mask
}

/// In every row the `a` largest of every `b` in a row; fewer at the end of a row keep all they have up to `a`.
pub fn of_groups(x: &Array2<f64>, a: usize, b: usize) -> Array2<bool> {
    let mut mask = Array2::from_elem(x.dim(), false);
    for start in (0..x.ncols()).step_by(b.max(1)) {
        let end = x.ncols().min(start + b);
        let part = largest_of_rows(&x.slice(s![.., start..end]).to_owned(), a);
        mask.slice_mut(s![.., start..end]).assign(&part);
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(rows: usize, n: usize) -> (Array2<f64>, Array2<f64>) {
        let mut state = 3u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        let mix = Array2::from_shape_simple_fn((n, n), &mut next);
        let x = Array2::from_shape_simple_fn((4 * n, n), &mut next).dot(&mix);
        (Array2::from_shape_simple_fn((rows, n), &mut next), x.t().dot(&x))
    }

    #[test]
    fn compensated_zeros_beat_plain_ones_and_steps_beat_order() {
        let (w, g) = case(12, 96);
        let moment = Moment::new(g).expect("a moment");
        let keep = w.len() / 4;
        let whole = moment.power(w.view());
        let lost = |thin: &Array2<f64>| {
            assert_eq!(thin.iter().filter(|x| **x != 0.0).count(), keep);
            moment.power((&w - thin).view()) / whole
        };
        let cut = |mask: Array2<bool>| {
            ndarray::Zip::from(&w)
                .and(&mask)
                .map_collect(|x, m| if *m { *x } else { 0.0 })
        };
        let magnitude = lost(&cut(largest(&w.mapv(f64::abs), keep)));
        let order = lost(&moment.in_order(w.view(), keep, Pattern::Free).expect("finite"));
        let steps = lost(&moment.in_steps(w.view(), keep, 4).expect("finite"));
        assert!(steps < order && order < magnitude, "{steps} {order} {magnitude}");
    }

    #[test]
    fn patterns_hold_and_are_refitted() {
        let (w, g) = case(5, 18);
        let moment = Moment::new(g).expect("a moment");
        let thin = moment.thinned(w.view(), 0, Pattern::Of(2, 4), 1e9).expect("finite");
        for row in thin.rows() {
            for group in row.exact_chunks(4) {
                assert!(group.iter().filter(|x| **x != 0.0).count() <= 2);
            }
        }
        let cut = ndarray::Zip::from(&w)
            .and(&thin)
            .map_collect(|x, t| if *t != 0.0 { *x } else { 0.0 });
        assert!(moment.power((&w - &thin).view()) < moment.power((&w - &cut).view()));
    }

    #[test]
    fn the_refit_of_a_full_support_is_the_map_itself() {
        let (w, g) = case(3, 9);
        let moment = Moment::new(g).expect("a moment");
        let (same, _) = moment
            .refitted(w.view(), &Array2::from_elem(w.dim(), true))
            .expect("finite");
        assert!((&same - &w).iter().all(|d| d.abs() < 1e-9));
        let (none, _) = moment
            .refitted(w.view(), &Array2::from_elem(w.dim(), false))
            .expect("finite");
        assert!(none.iter().all(|x| *x == 0.0));
        assert!(Moment::new(Array2::zeros((3, 3))).is_err());
    }

    #[test]
    fn the_largest_are_chosen_and_of_equal_ones_the_first() {
        let x = ndarray::arr2(&[[1.0, 3.0, 3.0], [2.0, 0.0, 3.0]]);
        assert_eq!(
            largest(&x, 2),
            ndarray::arr2(&[[false, true, true], [false, false, false]])
        );
        assert_eq!(largest(&x, 9).iter().filter(|m| **m).count(), 6);
        assert_eq!(
            largest_of_rows(&x, 1),
            ndarray::arr2(&[[false, true, false], [false, false, true]])
        );
        assert_eq!(
            blocks(&x, 3, 2),
            ndarray::arr2(&[[false, false, true], [false, false, true]])
        );
        assert_eq!(
            of_groups(&x, 1, 2),
            ndarray::arr2(&[[false, true, true], [true, false, true]])
        );
    }
}
