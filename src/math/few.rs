//! Systems with a second moment from fewer rows than it has dimensions.
//!
//! A moment from r rows has rank r at most, so `G ≈ L Lᵀ` with L (n × r) by a Cholesky factorization that takes the largest diagonal first
//! and stops after r steps (what is left is rounding of the sums). With `D = δ·mean(diag G)`, Woodbury's identity gives
//! `(L Lᵀ + D I)⁻¹ = (I − L (D I + Lᵀ L)⁻¹ Lᵀ) / D`. Cost: n·r² for the factor, n·r·m for a solution of m columns, n²·r for the inverse,
//! instead of n³.

use super::decompose::{inverse_spd, matmul, solve_spd};
use anyhow::{Result, ensure};
use ndarray::{Array2, ArrayView2, Axis};

/// With so many times more dimensions than rows the detour pays.
const FEWER: usize = 3;

/// `(G + δ·mean(diag G)·I) X = B` as [`solve_spd`], for a moment from `rows` rows.
///
/// # Errors
/// As [`solve_spd`].
pub fn solve(g: ArrayView2<f64>, b: ArrayView2<f64>, damping: f64, rows: u64) -> Result<Array2<f64>> {
    match Thin::new(g, damping, rows)? {
        Some(thin) => Ok(thin.times(b)),
        None => solve_spd(g, b, damping),
    }
}

/// `(G + δ·mean(diag G)·I)⁻¹`, for a moment from `rows` rows.
///
/// # Errors
/// As [`inverse_spd`].
pub fn inverse(g: ArrayView2<f64>, damping: f64, rows: u64) -> Result<Array2<f64>> {
    match Thin::new(g, damping, rows)? {
        Some(thin) => Ok(thin.inverse()),
        None => inverse_spd(g, damping),
    }
}

struct Thin {
    /// n × r.
    factor: Array2<f64>,
    /// `(D I + Lᵀ L)⁻¹`.
    core: Array2<f64>,
    damping: f64,
}

impl Thin {
    /// `None` when there are too many rows, or nothing is added to the diagonal.
    fn new(g: ArrayView2<f64>, damping: f64, rows: u64) -> Result<Option<Thin>> {
        let n = g.nrows();
        let mean = g.diag().sum() / n.max(1) as f64;
        let rank = usize::try_from(rows).unwrap_or(usize::MAX);
        if rank.saturating_mul(FEWER) > n || damping < 1e-6 || mean <= 0.0 {
            return Ok(None);
        }
        ensure!(
            n == g.ncols() && mean.is_finite(),
            "a moment of {:?} is not usable",
            g.dim()
        );
        let factor = factor(g, rank, 1e-6 * mean);
        let damping = damping * mean;
        let mut inner = matmul(factor.t(), factor.view());
        inner.diag_mut().iter_mut().for_each(|x| *x += damping);
        Ok(Some(Thin {
            core: inverse_spd(inner.view(), 0.0)?,
            factor,
            damping,
        }))
    }

    fn times(&self, b: ArrayView2<f64>) -> Array2<f64> {
        let inner = matmul(self.core.view(), matmul(self.factor.t(), b).view());
        (&b - &matmul(self.factor.view(), inner.view())) / self.damping
    }

    fn inverse(&self) -> Array2<f64> {
        let left = matmul(self.factor.view(), self.core.view());
        let mut out = matmul(left.view(), self.factor.t());
        out.mapv_inplace(|x| -x / self.damping);
        out.diag_mut().iter_mut().for_each(|x| *x += 1.0 / self.damping);
        out
    }
}

/// L of `G ≈ L Lᵀ`, of `rank` columns at most, until no diagonal entry above `least` is left.
fn factor(g: ArrayView2<f64>, rank: usize, least: f64) -> Array2<f64> {
    let n = g.nrows();
    let mut left = g.diag().to_owned();
    let mut columns = Array2::<f64>::zeros((rank.min(n), n));
    let mut used = 0;
    for k in 0..rank.min(n) {
        let largest = (0..n).max_by(|a, b| left[*a].total_cmp(&left[*b]).then(b.cmp(a)));
        let Some(p) = largest.filter(|p| left[*p] > least) else {
            break;
        };
        let mut column = g.row(p).to_owned();
        for j in 0..k {
            let at = columns[[j, p]];
            column.scaled_add(-at, &columns.row(j));
        }
        column /= left[p].sqrt();
        left.zip_mut_with(&column, |l, c| *l -= c * c);
        left[p] = 0.0;
        columns.row_mut(k).assign(&column);
        used = k + 1;
    }
    columns.slice_axis(Axis(0), (..used).into()).reversed_axes().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_give_the_same_solution_on_the_short_way() {
        let mut state = 9u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        let x = Array2::from_shape_simple_fn((7, 40), &mut next);
        let b = Array2::from_shape_simple_fn((40, 3), &mut next);
        let g = x.t().dot(&x);
        let close =
            |a: &Array2<f64>, b: &Array2<f64>| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6 * b.abs().max(1.0));
        let (short, long) = (solve(g.view(), b.view(), 0.01, 7), solve_spd(g.view(), b.view(), 0.01));
        assert!(close(&short.expect("solved"), &long.expect("solved")));
        let (short, long) = (inverse(g.view(), 0.01, 7), inverse_spd(g.view(), 0.01));
        assert!(close(&short.expect("inverted"), &long.expect("inverted")));
    }
}
