//! Dense decompositions: ndarray in, ndarray out, `faer` inside, always in f64.
//!
//! - `A = V Λ Vᵀ` (symmetric), `A = U Σ Vᵀ` (thin): tridiagonal/bidiagonal reduction, then divide and conquer.
//! - Range finder: `Q = orth((A Aᵀ)^q A Ω)` for a random `Ω`, so that `A ≈ Q Qᵀ A`, with an orthonormalization after each
//!   product (Halko, Martinsson, Tropp 2011, *Finding structure with randomness*, algorithm 4.4).
//! - `(G + δ·mean(diag G)·I) X = B` by Cholesky; δ grows tenfold until the factorization succeeds.
//!
//! faer is told to run sequentially: its parallel reductions are cut by thread count, and the bits would follow. Products
//! run on all threads by panels of rows whose height is fixed. Inputs are scaled by a power of two (exact) before an
//! iteration, so 1e200 or 1e-200 neither overflow nor vanish when squared.

use std::borrow::Cow;

use super::cholesky::cholesky;
use anyhow::{Result, ensure};
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::linalg::{cholesky::llt, evd, householder, matmul::matmul as faer_matmul, qr, svd};
use faer::traits::ComplexField;
use faer::{Accum, Conj, Mat, MatMut, MatRef, Par, Spec};
use ndarray::{Array1, Array2, ArrayView2};
use rayon::prelude::*;

/// Rows of the result that one task computes: a constant, so that no bit depends on the number of threads.
const PANEL: usize = 256;
/// Largest damping that [`solve_spd`] tries, relative to the mean of the diagonal.
const MAX_DAMPING: f64 = 1.0;

/// Thin singular value decomposition of an `m × n` matrix, `k = min(m, n)`: `A = u · diag(s) · vt`.
#[derive(Clone, Debug)]
pub struct Svd {
    /// `m × k`, orthonormal columns.
    pub u: Array2<f64>,
    /// `k` singular values, descending, never negative.
    pub s: Array1<f64>,
    /// `k × n`, orthonormal rows.
    pub vt: Array2<f64>,
}

/// Matrix product `a (m × k) · b (k × n)` in f64, any strides. Panics when the inner sizes differ, as `ndarray`'s does.
pub fn matmul(a: ArrayView2<f64>, b: ArrayView2<f64>) -> Array2<f64> {
    product(a, b)
}

/// Adds `factor · a (m × k) · b (k × n)` to `sum (m × n)` where it lies, any strides of `a` and `b`. Panics when sizes differ or `sum` is
/// not row-major.
pub fn add_product(sum: &mut Array2<f64>, factor: f64, a: ArrayView2<f64>, b: ArrayView2<f64>) {
    into(sum, Accum::Add, factor, (a, b));
}

/// Matrix product `a (m × k) · b (k × n)` in f32, any strides. Panics when the inner sizes differ, as `ndarray`'s does.
pub fn matmul_f32(a: ArrayView2<f32>, b: ArrayView2<f32>) -> Array2<f32> {
    product(a, b)
}

/// How a matrix lies in a slice: row by row, or column by column, and how far apart those are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Rows, so far apart.
    Rows(usize),
    /// Columns, so far apart.
    Columns(usize),
}

impl Layout {
    /// Of a matrix whose rows and columns are so far apart; one of them must be 1.
    pub fn of(rows: usize, columns: usize) -> Layout {
        match columns {
            1 => Layout::Rows(rows),
            _ => Layout::Columns(columns),
        }
    }

    fn matrix(self, slice: &[f32], rows: usize, columns: usize) -> MatRef<'_, f32> {
        let span = |outer: usize, step: usize, inner: usize| &slice[..(outer - 1) * step + inner];
        match self {
            Layout::Rows(step) => {
                MatRef::from_row_major_slice_with_stride(span(rows, step, columns), rows, columns, step)
            }
            Layout::Columns(step) => {
                MatRef::from_column_major_slice_with_stride(span(columns, step, rows), rows, columns, step)
            }
        }
    }
}

/// `out (m × n) = a (m × k) · b (k × n)` in f32 on this thread, rows of the result `step` apart; none may be empty. Panics when sizes
/// differ.
pub fn multiply_f32(out: &mut [f32], step: usize, a: (&[f32], Layout), b: (&[f32], Layout), [m, k, n]: [usize; 3]) {
    let (a, b) = (a.1.matrix(a.0, m, k), b.1.matrix(b.0, k, n));
    // faer 0.24.4 takes rows for columns in `from_row_major_slice_with_stride_mut`, and writes beyond the slice.
    let out = MatMut::from_column_major_slice_with_stride_mut(&mut out[..(m - 1) * step + n], n, m, step);
    faer_matmul(out.transpose_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
}

fn product<T: ComplexField + Copy>(a: ArrayView2<T>, b: ArrayView2<T>) -> Array2<T> {
    let mut out = Array2::from_elem((a.nrows(), b.ncols()), T::zero_impl());
    into(&mut out, Accum::Replace, T::one_impl(), (a, b));
    out
}

fn into<T: ComplexField + Copy>(out: &mut Array2<T>, how: Accum, factor: T, (a, b): (ArrayView2<T>, ArrayView2<T>)) {
    let ((m, k), n) = (a.dim(), b.ncols());
    assert_eq!(k, b.nrows(), "matmul: {m}×{k} times {}×{n}", b.nrows());
    assert_eq!((m, n), out.dim(), "matmul: a sum of other dimensions");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    // With a row-major result, faer is 2 to 3 times as fast when the left side is row-major too.
    let left = row_major(a);
    let left = MatRef::from_row_major_slice(&left, m, k);
    let (right, by_columns) = match b.reversed_axes().to_slice() {
        Some(data) => (Cow::Borrowed(data), true),
        None => (row_major(b), false),
    };
    let right = match by_columns {
        true => MatRef::from_column_major_slice(&right, k, n),
        false => MatRef::from_row_major_slice(&right, k, n),
    };
    let panels = out.as_slice_mut().expect("row-major").par_chunks_mut(PANEL * n);
    panels.enumerate().for_each(|(i, panel)| {
        let rows = panel.len() / n;
        let panel = MatMut::from_row_major_slice_mut(panel, rows, n);
        let left = left.subrows(i * PANEL, rows);
        faer_matmul(panel, how, left, right, factor, Par::Seq);
    });
}

/// The entries row by row: borrowed when they lie so, else copied.
fn row_major<T: Copy>(a: ArrayView2<T>) -> Cow<[T]> {
    match (a.to_slice(), a.reversed_axes().to_slice()) {
        (Some(data), _) => Cow::Borrowed(data),
        (None, Some(data)) => Cow::Owned(transposed(data, a.ncols(), a.nrows())),
        (None, None) => Cow::Owned(a.iter().copied().collect()),
    }
}

/// The transpose (`cols × rows`, row-major) of a row-major `rows × cols` matrix: 16 rows are read side by side, and each
/// column of them written in one piece.
pub(super) fn transposed<T: Copy>(data: &[T], rows: usize, cols: usize) -> Vec<T> {
    const SIDE: usize = 16;
    let mut out = data.to_vec();
    for (i, band) in data.chunks((SIDE * cols).max(1)).enumerate() {
        if band.len() == SIDE * cols {
            let lines: [&[T]; SIDE] = std::array::from_fn(|r| &band[r * cols..][..cols]);
            for c in 0..cols {
                let column: [T; SIDE] = std::array::from_fn(|r| lines[r][c]);
                out[c * rows + i * SIDE..][..SIDE].copy_from_slice(&column);
            }
        } else {
            for (r, line) in band.chunks(cols).enumerate() {
                line.iter()
                    .enumerate()
                    .for_each(|(c, &x)| out[c * rows + i * SIDE + r] = x);
            }
        }
    }
    out
}

/// The power of two by which the entries are divided to be at most 1 in size; `None` when one is not finite.
fn scale_of(a: ArrayView2<f64>) -> Option<f64> {
    let mut largest = 0.0f64;
    for &x in a {
        if !x.is_finite() {
            return None;
        }
        largest = largest.max(x.abs());
    }
    Some(power_of_two_above(largest))
}

/// A copy divided by [`scale_of`], and that scale.
fn scaled(a: ArrayView2<f64>) -> Option<(Mat<f64>, f64)> {
    let scale = scale_of(a)?;
    let (half, rest) = split(scale);
    Some((
        Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[[i, j]] * half * rest),
        scale,
    ))
}

/// The smallest power of two that is at least `x` and representable; 1 for zero.
fn power_of_two_above(x: f64) -> f64 {
    match x {
        0.0 => 1.0,
        x => x.log2().ceil().clamp(-1022.0, 1023.0).exp2(),
    }
}

/// Two factors whose product is `1 / scale`: the reciprocal of the smallest numbers overflows.
fn split(scale: f64) -> (f64, f64) {
    let half = (-scale.log2() / 2.0).trunc().exp2();
    (half, 1.0 / (scale * half))
}

fn to_array(a: MatRef<f64>) -> Array2<f64> {
    Array2::from_shape_fn(a.shape(), |(i, j)| a[(i, j)])
}

/// Eigenvalues (`n`, descending) and eigenvectors (`n × n`, as columns) of a symmetric `n × n` matrix.
///
/// Only the lower triangle is read. An error when the matrix is not square, not finite, or the iteration fails.
pub fn sym_eigen(a: ArrayView2<f64>) -> Result<(Array1<f64>, Array2<f64>)> {
    let n = a.nrows();
    ensure!(n == a.ncols(), "sym_eigen: a {n}×{} matrix is not square", a.ncols());
    if n == 0 {
        return Ok((Array1::zeros(0), Array2::zeros((0, 0))));
    }
    let Some((work, scale)) = scaled(a) else {
        anyhow::bail!("sym_eigen: the {n}×{n} matrix has an entry that is not finite")
    };
    let (mut values, mut vectors) = (Mat::zeros(n, 1), Mat::zeros(n, n));
    let params = Spec::default();
    let need = evd::self_adjoint_evd_scratch::<f64>(n, evd::ComputeEigenvectors::Yes, Par::Seq, params);
    evd::self_adjoint_evd(
        work.as_ref(),
        values.col_mut(0).as_diagonal_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(need)),
        params,
    )
    .map_err(|e| anyhow::anyhow!("sym_eigen: {n}×{n}: {e:?}"))?;
    // faer sorts ascending.
    let values = (0..n).map(|i| values[(n - 1 - i, 0)] * scale).collect();
    Ok((values, Array2::from_shape_fn((n, n), |(i, j)| vectors[(i, n - 1 - j)])))
}

/// Thin SVD of an `m × n` matrix; an error when an entry is not finite or the iteration fails.
pub fn thin_svd(a: ArrayView2<f64>) -> Result<Svd> {
    let (m, n) = a.dim();
    let k = m.min(n);
    if k == 0 {
        let (u, s, vt) = (Array2::zeros((m, 0)), Array1::zeros(0), Array2::zeros((0, n)));
        return Ok(Svd { u, s, vt });
    }
    let Some((work, scale)) = scaled(a) else {
        anyhow::bail!("thin_svd: the {m}×{n} matrix has an entry that is not finite")
    };
    let (mut s, mut u, mut v) = (Mat::zeros(k, 1), Mat::zeros(m, k), Mat::zeros(n, k));
    let (thin, params) = (svd::ComputeSvdVectors::Thin, Spec::default());
    let need = svd::svd_scratch::<f64>(m, n, thin, thin, Par::Seq, params);
    svd::svd(
        work.as_ref(),
        s.col_mut(0).as_diagonal_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(need)),
        params,
    )
    .map_err(|e| anyhow::anyhow!("thin_svd: {m}×{n}: {e:?}"))?;
    let s = (0..k).map(|i| (s[(i, 0)] * scale).max(0.0)).collect();
    Ok(Svd {
        u: to_array(u.as_ref()),
        s,
        vt: to_array(v.transpose()),
    })
}

/// Orthonormal basis (`m × min(rank, m, n)`) of nearly the dominant column space of an `m × n` matrix.
///
/// `power_iterations` of 2 are enough for spectra that decay slowly; ask for 5 to 10 columns more than needed.
/// The same `seed` gives the same bits. An error when an entry is not finite.
pub fn range_finder(a: ArrayView2<f64>, rank: usize, power_iterations: usize, seed: u64) -> Result<Array2<f64>> {
    let (m, n) = a.dim();
    let rank = rank.min(m).min(n);
    let Some(scale) = scale_of(a) else {
        anyhow::bail!("range_finder: the {m}×{n} matrix has an entry that is not finite")
    };
    if rank == 0 {
        return Ok(Array2::zeros((m, 0)));
    }
    let (half, rest) = split(scale);
    let a = a.mapv(|x| x * half * rest);
    let mut state = seed;
    let omega = Array2::from_shape_simple_fn((n, rank), || nearly_normal(&mut state));
    let mut basis = orthonormal(matmul(a.view(), omega.view()));
    if power_iterations > 0 {
        // Turned over once, not once for each product.
        let turned = row_major(a.t());
        let turned = ArrayView2::from_shape((n, m), &turned)?;
        for _ in 0..power_iterations {
            let dual = orthonormal(matmul(turned, basis.view()));
            basis = orthonormal(matmul(a.view(), dual.view()));
        }
    }
    Ok(basis)
}

/// Sum of four uniform 16-bit numbers of one splitmix64 step, centred, of variance 1: near enough to a normal number for
/// a random projection, and made of integers, so no platform's `ln` or `cos` shows in the bits.
pub(super) fn nearly_normal(state: &mut u64) -> f64 {
    let z = super::hash::next(state);
    let sum: u64 = (0..4).map(|lane| (z >> (16 * lane)) & 0xffff).sum();
    (sum as f64 - 2.0 * 65535.0) / 65536.0 * 3f64.sqrt()
}

/// The Q of a thin Householder QR: orthonormal whatever the rank of `a` (`m × n`, `m ≥ n`).
pub(super) fn orthonormal(a: Array2<f64>) -> Array2<f64> {
    let (m, n) = a.dim();
    let mut work = Mat::from_fn(m, n, |i, j| a[[i, j]]);
    let block = qr::no_pivoting::factor::recommended_block_size::<f64>(m, n);
    let mut coefficients = Mat::zeros(block, n);
    let params = Spec::default();
    let need = qr::no_pivoting::factor::qr_in_place_scratch::<f64>(m, n, block, Par::Seq, params);
    qr::no_pivoting::factor::qr_in_place(
        work.as_mut(),
        coefficients.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(need)),
        params,
    );
    let mut q = Mat::<f64>::identity(m, n);
    let need = householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(m, block, n);
    householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
        work.as_ref(),
        coefficients.as_ref(),
        Conj::No,
        q.as_mut(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(need)),
    );
    to_array(q.as_ref())
}

/// Solves `(G + δ·mean(diag G)·I) X = B` for a symmetric positive semidefinite `G (n × n)` and `B (n × m)`.
///
/// δ starts at `damping` and grows tenfold (from 1e-12 when it is zero) until the Cholesky factorization succeeds.
/// A zero `G` with a zero `B` gives zero. An error for shapes that do not fit, entries that are not finite, or when
/// δ = 1 (or `damping`, if larger) does not help: `G` is then far from positive semidefinite.
pub fn solve_spd(g: ArrayView2<f64>, b: ArrayView2<f64>, damping: f64) -> Result<Array2<f64>> {
    let (n, m) = (g.nrows(), b.ncols());
    ensure!(
        n == g.ncols() && n == b.nrows(),
        "solve_spd: {:?} against {:?}",
        g.dim(),
        b.dim()
    );
    ensure!(
        damping >= 0.0 && damping.is_finite(),
        "solve_spd: damping {damping} is not usable"
    );
    let (Some((g, g_scale)), Some((b, b_scale))) = (scaled(g), scaled(b)) else {
        anyhow::bail!("solve_spd: an entry of the {n}×{n} system is not finite")
    };
    if n == 0 || m == 0 || b.norm_max() == 0.0 {
        return Ok(Array2::zeros((n, m)));
    }
    let mean = (0..n).map(|i| g[(i, i)]).sum::<f64>() / n as f64;
    ensure!(mean > 0.0, "solve_spd: the {n}×{n} matrix has no positive diagonal");
    let mut delta = damping;
    while delta <= damping.max(MAX_DAMPING) * 1.0000001 {
        let mut factor = g.clone();
        (0..n).for_each(|i| factor[(i, i)] += delta * mean);
        if cholesky(factor.as_mut()) {
            let mut x = b.clone();
            llt::solve::solve_in_place(
                factor.as_ref(),
                x.as_mut(),
                Par::Seq,
                MemStack::new(&mut MemBuffer::new(llt::solve::solve_in_place_scratch::<f64>(
                    n,
                    m,
                    Par::Seq,
                ))),
            );
            let x = to_array(x.as_ref()) * (b_scale / g_scale);
            if x.iter().all(|x| x.is_finite()) {
                return Ok(x);
            }
        }
        delta = (delta * 10.0).max(1e-12);
    }
    anyhow::bail!("solve_spd: the {n}×{n} matrix is far from positive semidefinite")
}

/// `(G + δ·mean(diag G)·I)⁻¹` of a symmetric positive semidefinite `n × n` matrix, exactly symmetric; δ as in [`solve_spd`].
///
/// # Errors
/// As [`solve_spd`].
pub fn inverse_spd(g: ArrayView2<f64>, damping: f64) -> Result<Array2<f64>> {
    let n = g.nrows();
    let Triangle(factor) = Triangle::new(g, damping)?;
    let mut out = Mat::<f64>::zeros(n, n);
    let need = llt::inverse::inverse_scratch::<f64>(n, Par::Seq);
    llt::inverse::inverse(
        out.as_mut(),
        factor.as_ref(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(need)),
    );
    let inverse = Array2::from_shape_fn((n, n), |(i, j)| out[(i.max(j), i.min(j))]);
    ensure!(
        inverse.iter().all(|x| x.is_finite()),
        "the inverse of a {n}×{n} matrix is not finite"
    );
    Ok(inverse)
}

/// The Cholesky factor `L Lᵀ = G + δ·mean(diag G)·I`, of which every leading block is the factor of a leading block of `G`.
pub(super) struct Triangle(Mat<f64>);

impl Triangle {
    /// The factor of a symmetric positive semidefinite matrix; δ as in [`solve_spd`].
    pub(super) fn new(g: ArrayView2<f64>, damping: f64) -> Result<Triangle> {
        let n = g.nrows();
        let mean = g.diag().sum() / n.max(1) as f64;
        ensure!(
            n == g.ncols() && mean.is_finite(),
            "Triangle: a {:?} matrix is not usable",
            g.dim()
        );
        let mut delta = damping;
        while delta <= MAX_DAMPING {
            let mut factor = Mat::from_fn(n, n, |i, j| g[[i, j]]);
            (0..n).for_each(|i| factor[(i, i)] += (delta * mean).max(f64::MIN_POSITIVE));
            if cholesky(factor.as_mut()) {
                return Ok(Triangle(factor));
            }
            delta = (delta * 10.0).max(1e-12);
        }
        anyhow::bail!("the {n}×{n} matrix is far from positive semidefinite")
    }

    /// `L`, zeros above the diagonal.
    pub(super) fn lower(&self) -> Array2<f64> {
        let n = self.0.nrows();
        Array2::from_shape_fn((n, n), |(i, j)| if j <= i { self.0[(i, j)] } else { 0.0 })
    }

    /// `L⁻¹ b`.
    pub(super) fn forward(&self, b: ArrayView2<f64>) -> Array2<f64> {
        let mut x = Mat::from_fn(b.nrows(), b.ncols(), |i, j| b[[i, j]]);
        solve_lower_triangular_in_place(self.0.as_ref(), x.as_mut(), Par::Seq);
        to_array(x.as_ref())
    }

    /// `L_n⁻ᵀ y_n`, with the leading block of order n and the first n rows of y: with `y = L⁻¹ b` the solution of the leading
    /// system of order n.
    pub(super) fn back(&self, y: ArrayView2<f64>, n: usize) -> Array2<f64> {
        let mut x = Mat::from_fn(n, y.ncols(), |i, j| y[[i, j]]);
        let block = self.0.as_ref().get(..n, ..n);
        solve_upper_triangular_in_place(block.transpose(), x.as_mut(), Par::Seq);
        to_array(x.as_ref())
    }
}

#[cfg(test)]
mod tests;
