//! Grids of codes with a scale, and maybe a zero point, for every block of a row: `ŵ = s·(q − z)`.
//!
//! A block is a run of neighbouring weights of one row (of one output); a whole row is a block too. A row may consist of several
//! spans (the taps of a kernel) that no block crosses. The parameters of a block are those of least `Σ h (w − s (q − z))²`, `h` the mean squares of the inputs: among ranges shrunk towards zero from the one that holds all
//! weights, each with the zero points next to the nearest, and then once more with the scale that fits the codes found best
//! (`s = Σ h w k / Σ h k²`, `k = q − z`). The scale of a grid without zero points may be negative where that is allowed: −8 to 7 has one code
//! more below than above, and the largest weight may be on either side.

use super::affine::IntKind;
use super::affine::round_half_even;
use super::channel::best_scale_diag;
use super::decompose::{matmul, solve_spd};
use super::vector::widest;
use anyhow::{Result, ensure};
use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;
use std::ops::Range;

/// Rows whose scales are fitted together by one task.
const REFIT_ROWS: usize = 64;

/// What parameters a grid may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Signed kind with at most 8 bits.
    pub kind: IntKind,
    /// Weights that share a scale; a span at most.
    pub block: usize,
    /// Columns that blocks do not cross the ends of; a divisor of all.
    pub span: usize,
    /// Zero points besides 0.
    pub zeros: bool,
    /// Scales below 0. Without zero points only.
    pub negative: bool,
}

/// The parameters of all blocks of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// rows × blocks; never 0, finite.
    pub scales: Array2<f32>,
    /// rows × blocks; within the limits.
    pub zeros: Array2<i8>,
    /// Columns of a block; the last one of a span may have fewer.
    pub block: usize,
    /// Columns of a span.
    pub span: usize,
    /// The least and the largest code.
    pub limits: (i32, i32),
}

impl Grid {
    /// One scale for each row, zero point 0, codes up to ±qmax.
    pub fn of_rows(scales: &[f32], columns: usize, kind: IntKind) -> Grid {
        Grid {
            scales: Array2::from_shape_fn((scales.len(), 1), |(i, _)| scales[i]),
            zeros: Array2::zeros((scales.len(), 1)),
            block: columns.max(1),
            span: columns.max(1),
            limits: kind.symmetric_limits(),
        }
    }

    /// The best grid for `w` (rows × columns) when inputs are uncorrelated, with these mean squares (`None`: all alike).
    ///
    /// # Errors
    /// When a weight is not finite, or there are not as many mean squares as columns.
    pub fn best(w: ArrayView2<f32>, form: Form, importance: Option<&[f64]>) -> Result<Grid> {
        ensure!(
            form.kind.signed() && form.kind.qmax() <= 127 && form.block > 0 && form.span > 0,
            "codes of {:?} in blocks of {}",
            form.kind,
            form.block
        );
        ensure!(
            w.ncols().is_multiple_of(form.span),
            "{} columns in spans of {}",
            w.ncols(),
            form.span
        );
        ensure!(w.iter().all(|x| x.is_finite()), "a weight is not finite");
        ensure!(
            importance.is_none_or(|h| h.len() == w.ncols()),
            "not as many mean squares as columns"
        );
        let w = w.as_standard_layout();
        let (span, block) = (form.span, form.block.min(form.span));
        let each = span.div_ceil(block);
        let blocks = w.ncols() / span * each;
        let rows: Vec<_> = w.rows().into_iter().collect();
        let row = |row: &ndarray::ArrayView1<f32>| -> Result<Vec<(f32, i8)>> {
            let row = row.as_slice().unwrap_or_default();
            let part = |i: usize| {
                let (start, end) = (i / each * span, i % each * block);
                start + end..start + span.min(end + block)
            };
            (0..blocks)
                .map(|i| best_block(&row[part(i)], importance.map(|h| &h[part(i)]), form))
                .collect()
        };
        let found: Vec<(f32, i8)> = rows.par_iter().map(row).collect::<Result<Vec<_>>>()?.concat();
        let shape = (w.nrows(), blocks);
        Ok(Grid {
            scales: Array2::from_shape_vec(shape, found.iter().map(|f| f.0).collect())?,
            zeros: Array2::from_shape_vec(shape, found.iter().map(|f| f.1).collect())?,
            block,
            span,
            limits: form.limits(),
        })
    }

    /// The grid of some rows.
    pub fn of(&self, rows: &[usize]) -> Grid {
        Grid {
            scales: self.scales.select(Axis(0), rows),
            zeros: self.zeros.select(Axis(0), rows),
            ..*self
        }
    }

    /// The nearest codes.
    pub fn nearest(&self, w: ArrayView2<f32>) -> Array2<i8> {
        Array2::from_shape_fn(w.dim(), |(i, j)| {
            let (s, z) = self.at(i, j);
            self.code(w[[i, j]] / s, z)
        })
    }

    /// The values of codes.
    pub fn values(&self, codes: ArrayView2<i8>) -> Array2<f32> {
        let blocks: Vec<usize> = (0..codes.ncols()).map(|j| self.block_of(j)).collect();
        let mut values = codes.mapv(f32::from);
        for (i, mut row) in values.rows_mut().into_iter().enumerate() {
            row.iter_mut().zip(&blocks).for_each(|(x, &block)| {
                let (s, z) = self.of_block(i, block);
                *x = (*x - z) * s;
            });
        }
        values
    }

    /// This grid with the scales of least `eᵀ G e`, `e = w − s (q − z)`, of every row, for given codes: the normal equations of all scales of
    /// a row, `(Kᵀ G K) s = Kᵀ G w`, column `b` of `K` being `q − z` within block `b` and 0 elsewhere.
    ///
    /// # Errors
    /// When sizes do not fit.
    pub fn refit(&self, w: ArrayView2<f32>, codes: ArrayView2<i8>, second: ArrayView2<f64>) -> Result<Grid> {
        let (rows, n) = w.dim();
        ensure!(
            codes.dim() == w.dim() && second.dim() == (n, n),
            "a moment of {:?} for {n} columns",
            second.dim()
        );
        let firsts: Vec<usize> = (0..rows).step_by(REFIT_ROWS).collect();
        let task = |&first: &usize| self.fitted(w, codes, second, first..rows.min(first + REFIT_ROWS));
        let parts: Vec<Array2<f64>> = firsts.par_iter().map(task).collect();
        let mut grid = self.clone();
        for (part, &first) in parts.iter().zip(&firsts) {
            for ((i, b), &new) in part.indexed_iter() {
                let (old, new) = (&mut grid.scales[[first + i, b]], new as f32);
                if usable(new.abs()) && new.signum() == old.signum() {
                    *old = new;
                }
            }
        }
        Ok(grid)
    }

    /// The best scales of some rows; 0 where there are none.
    fn fitted(
        &self,
        w: ArrayView2<f32>,
        codes: ArrayView2<i8>,
        second: ArrayView2<f64>,
        at: Range<usize>,
    ) -> Array2<f64> {
        let (n, blocks) = (w.ncols(), self.scales.ncols());
        let mut ends = vec![0; blocks];
        (0..n).for_each(|j| ends[self.block_of(j)] = j + 1);
        let part = |b: usize| if b == 0 { 0 } else { ends[b - 1] }..ends[b];
        let steps = Array2::from_shape_fn((n, at.len()), |(j, i)| {
            f64::from(codes[[at.start + i, j]]) - f64::from(self.at(at.start + i, j).1)
        });
        let wanted = matmul(second, w.slice(s![at.clone(), ..]).t().mapv(f64::from).view());
        let mut left = vec![Array2::<f64>::zeros((blocks, blocks)); at.len()];
        let mut right = vec![Array2::<f64>::zeros((blocks, 1)); at.len()];
        for b in 0..blocks {
            let product = matmul(second.slice(s![.., part(b)]), steps.slice(s![part(b), ..]));
            for j in 0..n {
                let other = self.block_of(j);
                for (i, left) in left.iter_mut().enumerate() {
                    left[[other, b]] += steps[[j, i]] * product[[j, i]];
                }
            }
            for j in part(b) {
                for (i, right) in right.iter_mut().enumerate() {
                    right[[b, 0]] += steps[[j, i]] * wanted[[j, i]];
                }
            }
        }
        let mut all = Array2::zeros((at.len(), blocks));
        for (i, (left, right)) in left.iter().zip(&right).enumerate() {
            if let Ok(found) = solve_spd(left.view(), right.view(), 1e-6) {
                all.row_mut(i).assign(&found.column(0));
            }
        }
        all
    }

    /// Scale and zero point of an element.
    pub fn at(&self, row: usize, column: usize) -> (f32, f32) {
        self.of_block(row, self.block_of(column))
    }

    /// Scale and zero point of a block.
    pub fn of_block(&self, row: usize, block: usize) -> (f32, f32) {
        let at = [row, block];
        (self.scales[at], f32::from(self.zeros[at]))
    }

    /// The block that a column is in.
    pub fn block_of(&self, column: usize) -> usize {
        column / self.span * self.span.div_ceil(self.block) + column % self.span / self.block
    }

    /// How many blocks a row of so many columns has.
    pub fn blocks(&self, columns: usize) -> usize {
        columns / self.span * self.span.div_ceil(self.block)
    }

    /// The code nearest to `steps` from zero point `z`.
    pub fn code(&self, steps: f32, z: f32) -> i8 {
        (round_half_even(steps.clamp(self.limits.0 as f32 - z, self.limits.1 as f32 - z)) + z) as i8
    }
}

impl Form {
    /// With a zero point, or a scale of either sign, every code serves; else ±qmax.
    fn limits(self) -> (i32, i32) {
        match self.zeros || self.negative {
            true => self.kind.limits(),
            false => self.kind.symmetric_limits(),
        }
    }
}

fn best_block(row: &[f32], importance: Option<&[f64]>, form: Form) -> Result<(f32, i8)> {
    let (low, high) = row.iter().fold((0f32, 0f32), |(a, b), &x| (a.min(x), b.max(x)));
    if !form.zeros && !form.negative {
        return Ok((best_scale_diag(row, importance, form.kind)?, 0));
    }
    let most = low.abs().max(high);
    if most < f32::MIN_POSITIVE {
        return Ok((1.0, 0));
    }
    // Squares of what is at most 1 do not overflow.
    let row: Vec<f32> = row.iter().map(|x| x / most).collect();
    let h: Vec<f32> = relative(importance, row.len());
    let (qmin, qmax) = form.limits();
    let mut search = Search {
        row: &row,
        h: &h,
        limits: (qmin as f32, qmax as f32),
        best: (1.0, 0),
        least: f32::INFINITY,
    };
    if form.zeros {
        search.affine(low / most, high / most);
    } else {
        search.either_sign(1.0);
    }
    let (scale, zero) = (search.best.0 * most, search.best.1);
    Ok(if usable(scale.abs()) { (scale, zero) } else { (1.0, 0) })
}

/// The importance divided by its largest number, as f32; ones when nothing is known or all is zero.
fn relative(importance: Option<&[f64]>, n: usize) -> Vec<f32> {
    let most = importance.map_or(0.0, |h| h.iter().copied().fold(0.0, f64::max));
    match importance {
        Some(h) if most > 0.0 && most.is_finite() => h.iter().map(|x| (x / most) as f32).collect(),
        _ => vec![1.0; n],
    }
}

/// Ranges tried, as parts of the one that holds all weights.
const PARTS: [f32; 14] = [
    1.0, 0.98, 0.96, 0.94, 0.92, 0.89, 0.86, 0.83, 0.8, 0.76, 0.72, 0.68, 0.64, 0.6,
];

struct Search<'a> {
    row: &'a [f32],
    h: &'a [f32],
    limits: (f32, f32),
    best: (f32, i8),
    least: f32,
}

impl Search<'_> {
    fn affine(&mut self, low: f32, high: f32) {
        let steps = self.limits.1 - self.limits.0;
        for part in PARTS {
            let scale = (high / steps - low / steps) * part;
            if !usable(scale) {
                continue;
            }
            let middle = (self.limits.0 - low * part / scale).round();
            for z in [middle - 1.0, middle, middle + 1.0] {
                if z >= self.limits.0 && z <= self.limits.1 {
                    self.consider(scale, z as i8);
                }
            }
        }
        self.refit();
    }

    fn either_sign(&mut self, absmax: f32) {
        for part in PARTS {
            let scale = absmax / -self.limits.0 * part * 1.07;
            if usable(scale) {
                self.consider(scale, 0);
                self.consider(-scale, 0);
            }
        }
        self.refit();
    }

    fn consider(&mut self, scale: f32, zero: i8) {
        let error = self.error(scale, f32::from(zero));
        if error < self.least {
            (self.best, self.least) = ((scale, zero), error);
        }
    }

    fn error(&self, s: f32, z: f32) -> f32 {
        let limits = (self.limits.0 - z, self.limits.1 - z);
        widest!(error(self.row, self.h, s, limits))
    }

    /// The scale that fits the codes best, with codes anew.
    fn refit(&mut self) {
        for _ in 0..2 {
            let (s, zero) = self.best;
            let z = f32::from(zero);
            let (low, high) = (self.limits.0 - z, self.limits.1 - z);
            let (mut up, mut down) = (0f64, 0f64);
            for (&w, &h) in self.row.iter().zip(self.h) {
                let k = round_half_even((w / s).clamp(low, high));
                up += f64::from(h * w * k);
                down += f64::from(h * k * k);
            }
            let scale = (up / down) as f32;
            if usable(scale.abs()) && scale.signum() == s.signum() {
                self.consider(scale, zero);
            }
        }
    }
}

/// `Σ h (w − s q)²`, `q` the steps nearest to `w / s` within limits; in sixteen strands.
#[inline(always)]
fn error(row: &[f32], h: &[f32], s: f32, (low, high): (f32, f32)) -> f32 {
    let inverse = 1.0 / s;
    let term = |w: f32, h: f32| {
        let e = w - s * round_half_even((w * inverse).clamp(low, high));
        h * e * e
    };
    let mut strands = [0f32; 16];
    let ((rows, row), (importances, h)) = (row.as_chunks::<16>(), h.as_chunks::<16>());
    for (w, h) in rows.iter().zip(importances) {
        for k in 0..16 {
            strands[k] += term(w[k], h[k]);
        }
    }
    for ((strand, w), h) in strands.iter_mut().zip(row).zip(h) {
        *strand += term(*w, *h);
    }
    strands.iter().sum()
}

fn usable(scale: f32) -> bool {
    scale.is_finite() && scale >= f32::MIN_POSITIVE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 40) as f32 / 8388608.0 - 1.0
            })
            .collect()
    }

    const FORM: Form = Form {
        kind: IntKind::S4,
        block: 32,
        span: 100,
        zeros: true,
        negative: false,
    };

    fn power(a: &Array2<f32>) -> f64 {
        a.iter().map(|x| f64::from(*x).powi(2)).sum()
    }

    fn error(w: &Array2<f32>, grid: &Grid) -> f64 {
        power(&(w - &grid.values(grid.nearest(w.view()).view()))) / power(w)
    }

    #[test]
    fn blocks_and_zero_points_make_errors_smaller() {
        let w = Array2::from_shape_fn((8, 100), |(i, j)| {
            let x = numbers(800, 3)[i * 100 + j];
            (x * x * x + 0.3) * (1.0 + (j / 20) as f32)
        });
        let of = |form| error(&w, &Grid::best(w.view(), form, None).expect("finite"));
        let zero = of(FORM);
        let sign = of(Form {
            zeros: false,
            negative: true,
            ..FORM
        });
        let plain = of(Form { zeros: false, ..FORM });
        let row = of(Form { block: 100, ..FORM });
        assert!(zero < sign && sign < plain && zero < row, "{zero} {sign} {plain} {row}");
    }

    #[test]
    fn odd_blocks_have_parameters_that_are_numbers() {
        let cases = [
            vec![0.0f32; 5],
            vec![1e-42; 5],
            vec![f32::MAX, f32::MIN, 1.0],
            vec![3.0],
            vec![-3.0],
            vec![1e30, 1.0, 1.0],
        ];
        for case in cases {
            let w = Array2::from_shape_vec((1, case.len()), case.clone()).expect("a row");
            for (zeros, negative) in [(true, false), (false, true), (false, false)] {
                let form = Form {
                    zeros,
                    negative,
                    block: 2,
                    span: case.len(),
                    ..FORM
                };
                let grid = Grid::best(w.view(), form, Some(&vec![0.0; case.len()])).expect("finite");
                assert!(grid.scales.iter().all(|s| s.is_normal()), "{case:?} {grid:?}");
                let back = grid.values(grid.nearest(w.view()).view());
                for (x, y) in w.iter().zip(&back) {
                    assert!((x - y).abs() <= x.abs() * 0.55 + 1e-37 || x.abs() < 1e30, "{x} {y}");
                }
            }
        }
        assert!(Grid::best(Array2::from_elem((1, 2), f32::NAN).view(), FORM, None).is_err());
    }

    #[test]
    fn weights_on_one_side_and_alone_are_exact() {
        let w = Array2::from_shape_vec((1, 3), vec![0.5f32, 0.5, 0.5]).expect("a row");
        assert!(
            error(
                &w,
                &Grid::best(w.view(), Form { span: 3, ..FORM }, None).expect("finite")
            ) < 1e-12
        );
    }
}
