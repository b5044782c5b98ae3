//! Cholesky factors `A = L Lᵀ` in place, on all threads.
//!
//! By blocks, looking ahead: the factor of a block on the diagonal, then what is below it, then what both take from the rest. The last two are done
//! for parts of a fixed size side by side, so no bit depends on the number of threads; in faer's own parallel factorization it does.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor;
use faer::linalg::{matmul::matmul, triangular_solve::solve_lower_triangular_in_place};
use faer::reborrow::{Reborrow, ReborrowMut};
use faer::{Accum, MatMut, Par, Spec};
use rayon::prelude::*;

/// Columns that are factored at once, and rows or columns that one task works on.
const BLOCK: usize = 128;

/// The lower factor of a symmetric matrix in its place; false when a pivot is not positive. What is above the diagonal means nothing afterwards.
pub(super) fn cholesky(mut a: MatMut<f64>) -> bool {
    let n = a.nrows();
    for start in (0..n).step_by(BLOCK) {
        let width = BLOCK.min(n - start);
        let rest = a.rb_mut().submatrix_mut(start, start, n - start, n - start);
        let (left, right) = rest.split_at_col_mut(width);
        let (mut corner, mut below) = left.split_at_row_mut(width);
        if !at_once(corner.rb_mut()) {
            return false;
        }
        // `B = A L⁻ᵀ`, that is `L Bᵀ = Aᵀ`.
        let (corner, turned) = (corner.rb(), below.rb_mut().transpose_mut());
        let parts = turned.par_col_chunks_mut(BLOCK);
        parts.for_each(|part| solve_lower_triangular_in_place(corner, part, Par::Seq));
        let (below, height) = (below.rb(), n - start - width);
        let parts = right.subrows_mut(width, height).par_col_chunks_mut(BLOCK);
        parts.enumerate().for_each(|(i, part)| {
            let first = i * BLOCK;
            let own = below.subrows(first, part.ncols());
            let (rows, part) = (height - first, part.subrows_mut(first, height - first));
            let lower = below.subrows(first, rows);
            matmul(part, Accum::Add, lower, own.transpose(), -1.0, Par::Seq);
        });
    }
    true
}

fn at_once(a: MatMut<f64>) -> bool {
    let params = Spec::default();
    let need = factor::cholesky_in_place_scratch::<f64>(a.nrows(), Par::Seq, params);
    let stack = &mut MemBuffer::new(need);
    factor::cholesky_in_place(a, Default::default(), Par::Seq, MemStack::new(stack), params).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::Mat;
    use nalgebra::DMatrix;

    /// `A = B Bᵀ + I`.
    fn definite(n: usize) -> Mat<f64> {
        let b = Mat::from_fn(n, n, |i, j| ((i * 31 + j * 17) as f64 * 0.37).sin());
        &b * b.transpose() + Mat::<f64>::identity(n, n)
    }

    #[test]
    fn the_factor_is_that_of_nalgebra() {
        for n in [0, 1, 5, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 7] {
            let mut a = definite(n);
            let oracle = DMatrix::from_fn(n, n, |i, j| a[(i, j)])
                .cholesky()
                .expect("definite")
                .l();
            assert!(cholesky(a.as_mut()), "{n}");
            for (i, j) in (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                let wrong = (a[(i, j)] - oracle[(i, j)]).abs();
                assert!(wrong < 1e-9, "{n}: {wrong} at {i}, {j}");
            }
        }
    }

    #[test]
    fn no_bit_depends_on_threads() {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("threads");
            let mut a = definite(2 * BLOCK + 50);
            assert!(pool.install(|| cholesky(a.as_mut())));
            a
        };
        assert_eq!(on(1), on(3));
    }

    #[test]
    fn a_pivot_that_is_not_positive_is_told_in_any_block() {
        for at in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 3] {
            let mut a = definite(2 * BLOCK + 4);
            a[(at, at)] = -1.0;
            assert!(!cholesky(a.as_mut()), "{at}");
        }
    }
}
