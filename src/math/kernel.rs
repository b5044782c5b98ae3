//! A convolution kernel as a chain of smaller kernels, under the second moment of its windows.
//!
//! A window `x` (channels × taps) is parted into blocks of equal length, one for each *outer* tap: single taps with all
//! channels, or columns of taps. One small matrix `V` (r × block) projects every block, `z = (I ⊗ V) x`; this is a convolution of its own, 1×1 or
//! k×1. What follows is a convolution `K` over the outer taps, the least-squares map from `z` to the output:
//!
//! `K = W G Zᵀ (Z G Zᵀ)⁻¹`, `Z = I ⊗ V`.
//!
//! `V` is the best projection for `Σ_b W_bᵀ W_b` under the mean second moment of the blocks, as if blocks were independent
//! (they are not; `K` makes good for that). The rows of `V` are sorted, so that a smaller r takes the first ones, and `Z G Zᵀ` for
//! it is a part of the larger one. Single taps: 1×1 then k×k (the input half of Tucker-2; Kim et al. 2016). Columns: k×1 then
//! 1×k (Jaderberg, Vedaldi, Zisserman 2014). [`Projection::outputs`] parts `K` once more by its output directions, `K = U (Uᵀ K)`:
//! 1×1, k×k, 1×1, which is Tucker-2.

use anyhow::Result;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use super::decompose::{matmul, solve_spd, sym_eigen};

/// Damping of the least squares, relative to the mean power of the features.
const DAMPING: f64 = 1e-8;

/// How windows are parted: `order[outer · unit + i]` is the column, in the kernel's order, of entry `i` of block `outer`.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// Number of blocks.
    pub outer: usize,
    /// Entries of a block.
    pub unit: usize,
    order: Vec<usize>,
}

impl Blocks {
    /// A block for every tap, of all channels.
    pub fn taps(channels: usize, taps: usize) -> Blocks {
        Blocks {
            outer: taps,
            unit: channels,
            order: (0..taps).flat_map(|t| (0..channels).map(move |c| c * taps + t)).collect(),
        }
    }

    /// A block for every tap along the second axis: all channels and all taps along the first.
    pub fn columns(channels: usize, kernel: [usize; 2]) -> Blocks {
        let [rows, cols] = kernel;
        let block = move |w| (0..channels * rows).map(move |i| i * cols + w);
        Blocks {
            outer: cols,
            unit: channels * rows,
            order: (0..cols).flat_map(block).collect(),
        }
    }

    /// Columns of a kernel matrix (any × outer·unit), block after block.
    fn of(&self, w: ArrayView2<f64>) -> Array2<f64> {
        w.select(Axis(1), &self.order)
    }

    fn square(&self, g: ArrayView2<f64>) -> Array2<f64> {
        let rows = self.order.iter();
        let mut out = Array2::zeros(g.dim());
        for (mut row, &from) in out.rows_mut().into_iter().zip(rows) {
            let from = g.row(from);
            row.iter_mut().zip(&self.order).for_each(|(x, &i)| *x = from[i]);
        }
        out
    }
}

/// Second moments of the features `z` (rows: block after block, `most` each), with themselves and with the output.
pub struct Features {
    inner: Array2<f64>,
    output: Array2<f64>,
    /// `tr(W G Wᵀ)`.
    total: f64,
}

/// A kernel (out × outer·unit) with its projection.
pub struct Projection {
    blocks: Blocks,
    w: Array2<f64>,
    /// most × unit.
    v: Array2<f64>,
}

impl Projection {
    /// The projection for a kernel `w` (out × in) and windows of second moment `g` (in × in), of rank `most` at most.
    ///
    /// # Errors
    /// When an entry is not finite.
    pub fn new(w: ArrayView2<f64>, g: ArrayView2<f64>, blocks: &Blocks, most: usize) -> Result<Projection> {
        let w = blocks.of(w);
        let (unit, most) = (blocks.unit, most.min(blocks.unit));
        let (mut mean, mut weight) = (Array2::<f64>::zeros((unit, unit)), Array2::<f64>::zeros((unit, unit)));
        for b in 0..blocks.outer {
            let at = &blocks.order[b * unit..(b + 1) * unit];
            for (mut row, &i) in mean.rows_mut().into_iter().zip(at) {
                let from = g.row(i);
                row.iter_mut().zip(at).for_each(|(x, &j)| *x += from[j]);
            }
            let part = w.slice(s![.., b * unit..(b + 1) * unit]);
            weight += &matmul(part.t(), part);
        }
        mean /= blocks.outer as f64;
        // Σ V = Qᵀ Rᵀ S with mean = R Rᵀ, S = Σ W_bᵀ W_b and Rᵀ S R = Q Σ² Qᵀ.
        let (values, vectors) = sym_eigen(mean.view())?;
        let root = vectors * values.mapv(|x| x.max(0.0).sqrt());
        let onto = matmul(root.t(), weight.view());
        let (_, q) = sym_eigen(matmul(onto.view(), root.view()).view())?;
        let mut v = matmul(q.slice(s![.., ..most]).t(), onto.view());
        // Features of power 1, so that no channel of the inner activation drowns.
        let powers = super::shrink::powers(v.view(), mean.view());
        for (mut row, power) in v.rows_mut().into_iter().zip(powers) {
            if power > 0.0 {
                row /= power.sqrt();
            }
        }
        Ok(Projection {
            blocks: blocks.clone(),
            w,
            v,
        })
    }

    /// What the features do under another second moment of the windows.
    pub fn features(&self, g: ArrayView2<f64>) -> Features {
        let g = self.blocks.square(g);
        let (outer, unit, most) = (self.blocks.outer, self.blocks.unit, self.v.nrows());
        let mut left = Array2::zeros((outer * most, outer * unit));
        for b in 0..outer {
            let part = matmul(self.v.view(), g.slice(s![b * unit..(b + 1) * unit, ..]));
            left.slice_mut(s![b * most..(b + 1) * most, ..]).assign(&part);
        }
        let mut inner = Array2::zeros((outer * most, outer * most));
        for b in 0..outer {
            let part = matmul(left.slice(s![.., b * unit..(b + 1) * unit]), self.v.t());
            inner.slice_mut(s![.., b * most..(b + 1) * most]).assign(&part);
        }
        Features {
            inner: (&inner + &inner.t()) * 0.5,
            output: matmul(left.view(), self.w.t()),
            total: super::subspace::total(self.w.view(), g.view()),
        }
    }

    fn chosen(&self, rank: usize) -> Vec<usize> {
        let most = self.v.nrows();
        (0..self.blocks.outer)
            .flat_map(|b| (0..rank.min(most)).map(move |i| b * most + i))
            .collect()
    }

    /// The best `K` (out × outer·rank, block after block) on the first `rank` features.
    ///
    /// # Errors
    /// When the features' second moment is far from positive semidefinite.
    pub fn core(&self, on: &Features, rank: usize) -> Result<Array2<f64>> {
        let at = self.chosen(rank);
        let inner = on.inner.select(Axis(0), &at).select(Axis(1), &at);
        let output = on.output.select(Axis(0), &at);
        if inner.diag().iter().all(|&x| x <= 0.0) {
            return Ok(Array2::zeros((self.w.nrows(), at.len())));
        }
        Ok(solve_spd(inner.view(), output.view(), DAMPING)?.reversed_axes())
    }

    /// What a core loses, `E‖W x − K z‖²`, under the second moment that `on` was made with.
    pub fn lost(&self, on: &Features, core: &Array2<f64>, rank: usize) -> f64 {
        let (cross, square) = self.terms(on, core.view(), rank);
        on.total - 2.0 * cross.sum() + square.sum()
    }

    /// `⟨k, X⟩` and `k H kᵀ` for every row of a core whose rows are outputs.
    fn terms(&self, on: &Features, core: ArrayView2<f64>, rank: usize) -> (Array1<f64>, Array1<f64>) {
        let at = self.chosen(rank);
        let inner = on.inner.select(Axis(0), &at).select(Axis(1), &at);
        let output = on.output.select(Axis(0), &at);
        let image = matmul(core, inner.view());
        ((&core * &output.t()).sum_axis(Axis(1)), (&image * &core).sum_axis(Axis(1)))
    }

    /// The output directions of a core under data, strongest first (out × out), and their powers.
    ///
    /// # Errors
    /// When the eigenproblem fails.
    pub fn outputs(&self, on: &Features, core: &Array2<f64>, rank: usize) -> Result<(Array1<f64>, Array2<f64>)> {
        let at = self.chosen(rank);
        let inner = on.inner.select(Axis(0), &at).select(Axis(1), &at);
        let square = matmul(matmul(core.view(), inner.view()).view(), core.t());
        sym_eigen(square.view())
    }

    /// What is lost when only the first `s` output directions are kept, for all `s` from 0.
    pub fn lost_by_outputs(&self, on: &Features, core: &Array2<f64>, directions: &Array2<f64>, rank: usize) -> Vec<f64> {
        let at = self.chosen(rank);
        let inner = on.inner.select(Axis(0), &at).select(Axis(1), &at);
        let output = on.output.select(Axis(0), &at);
        let turned = matmul(directions.t(), core.view());
        let wanted = matmul(directions.t(), output.t());
        let image = matmul(turned.view(), inner.view());
        let cross = (&turned * &wanted).sum_axis(Axis(1));
        let square = (&image * &turned).sum_axis(Axis(1));
        let mut lost = vec![on.total];
        for (c, q) in cross.iter().zip(&square) {
            lost.push(lost[lost.len() - 1] - 2.0 * c + q);
        }
        lost
    }

    /// The first layer: rank × unit.
    pub fn first(&self, rank: usize) -> Array2<f64> {
        self.v.slice(s![..rank.min(self.v.nrows()), ..]).to_owned()
    }

    /// A core with its columns in a kernel's order: features, then taps.
    pub fn kernel(&self, core: &Array2<f64>, rank: usize) -> Array2<f64> {
        let rank = rank.min(self.v.nrows());
        let order: Vec<usize> = (0..rank)
            .flat_map(|i| (0..self.blocks.outer).map(move |b| b * rank + i))
            .collect();
        core.select(Axis(1), &order)
    }

    /// `K Z x` for one window `x`, in the kernel's order: what the chain makes of the mean input.
    pub fn output_of(&self, core: &Array2<f64>, rank: usize, x: &Array1<f64>) -> Array1<f64> {
        let first = self.first(rank);
        let mut z = Vec::with_capacity(core.ncols());
        for b in 0..self.blocks.outer {
            let at = &self.blocks.order[b * self.blocks.unit..(b + 1) * self.blocks.unit];
            z.extend(first.dot(&x.select(Axis(0), at)));
        }
        core.dot(&Array1::from_vec(z))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
        let mut state = seed;
        Array2::from_shape_simple_fn((rows, cols), || crate::math::decompose::nearly_normal(&mut state))
    }

    fn windows(n: usize, dim: usize, seed: u64) -> Array2<f64> {
        random(n, dim, seed).dot(&random(dim, dim, seed + 1))
    }

    /// The map of windows that a chain computes.
    fn composed(p: &Projection, core: &Array2<f64>, rank: usize) -> Array2<f64> {
        let dim = p.w.ncols();
        let mut all = Array2::zeros((core.nrows(), dim));
        for i in 0..dim {
            let mut x = Array1::zeros(dim);
            x[i] = 1.0;
            all.column_mut(i).assign(&p.output_of(core, rank, &x));
        }
        all
    }

    #[test]
    fn what_is_lost_is_what_the_composed_map_loses() {
        let (channels, out) = (5, 7);
        let x = windows(300, channels * 6, 1);
        let g = x.t().dot(&x) / 300.0;
        let w = random(out, channels * 6, 3);
        for blocks in [Blocks::taps(channels, 6), Blocks::columns(channels, [2, 3])] {
            let p = Projection::new(w.view(), g.view(), &blocks, 9).expect("finite");
            let on = p.features(g.view());
            let mut before = f64::INFINITY;
            for rank in 1..=blocks.unit.min(9) {
                let core = p.core(&on, rank).expect("solved");
                let lost = p.lost(&on, &core, rank);
                let d = &w - &composed(&p, &core, rank);
                let direct = (d.dot(&g) * &d).sum();
                assert!((lost - direct).abs() < 1e-6 * on.total, "{lost} {direct}");
                assert!(lost <= before * 1.0001 + 1e-9);
                before = lost;
                let (_, u) = p.outputs(&on, &core, rank).expect("finite");
                let curve = p.lost_by_outputs(&on, &core, &u, rank);
                assert!((curve[out] - lost).abs() < 1e-6 * on.total && curve[0] == on.total);
                let cut = u.slice(s![.., ..3]);
                let d = &w - &cut.dot(&cut.t()).dot(&composed(&p, &core, rank));
                assert!((curve[3] - (d.dot(&g) * &d).sum()).abs() < 1e-6 * on.total);
            }
            assert!(blocks.unit > 9 || before < 1e-6 * on.total);
        }
    }

    #[test]
    fn a_separable_kernel_is_found_exactly() {
        let (channels, out, rank) = (4, 6, 2);
        // W[o, c, h, w] = Σ_r U[o, w, r] V[r, c, h].
        let (u, v) = (random(out * 3, rank, 1), random(rank, channels * 3, 2));
        let product = u.dot(&v);
        let w = Array2::from_shape_fn((out, channels * 9), |(o, i)| product[[o * 3 + i % 3, i / 3]]);
        let x = windows(400, channels * 9, 5);
        let g = x.t().dot(&x) / 400.0;
        let p = Projection::new(w.view(), g.view(), &Blocks::columns(channels, [3, 3]), rank).expect("finite");
        let on = p.features(g.view());
        let core = p.core(&on, rank).expect("solved");
        assert!(p.lost(&on, &core, rank) < 1e-6 * on.total);
        let (first, second) = (p.first(rank), p.kernel(&core, rank));
        assert_eq!((first.dim(), second.dim()), ((rank, channels * 3), (out, rank * 3)));
        for (o, i) in [(0, 0), (3, 17), (5, 35)] {
            let (row, col) = (i / 3, i % 3);
            let made: f64 = (0..rank).map(|r| second[[o, r * 3 + col]] * first[[r, row]]).sum();
            assert!((made - w[[o, i]]).abs() < 1e-4, "{made} {}", w[[o, i]]);
        }
    }
}
