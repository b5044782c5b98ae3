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
//! it is a leading block of the larger one, and so is its Cholesky factor. Single taps: 1×1 then k×k (the input half of Tucker-2; Kim et al. 2016). Columns: k×1 then
//! 1×k (Jaderberg, Vedaldi, Zisserman 2014). `Projection::outputs` parts `K` once more by its output directions, `K = U (Uᵀ K)`:
//! 1×1, k×k, 1×1, which is Tucker-2.

use anyhow::Result;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use super::decompose::{Triangle, add_product, matmul, sym_eigen};

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
            order: (0..taps)
                .flat_map(|t| (0..channels).map(move |c| c * taps + t))
                .collect(),
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

/// Second moments of the features `z` (feature by feature, for each its blocks), with themselves and with the output.
pub struct Features {
    inner: Array2<f64>,
    output: Array2<f64>,
    /// `tr(W G Wᵀ)`.
    total: f64,
}

/// Least squares of the output on features: one factorization serves every number of features.
pub struct Solver {
    triangle: Triangle,
    halfway: Array2<f64>,
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
            add_product(&mut weight, 1.0, part.t(), part);
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
        // Row `i · outer + b`: feature i of block b.
        let mut left = Array2::zeros((outer * most, outer * unit));
        for b in 0..outer {
            let part = matmul(self.v.view(), g.slice(s![b * unit..(b + 1) * unit, ..]));
            left.slice_mut(s![b..;outer, ..]).assign(&part);
        }
        let mut inner = Array2::zeros((outer * most, outer * most));
        for b in 0..outer {
            let part = matmul(left.slice(s![.., b * unit..(b + 1) * unit]), self.v.t());
            inner.slice_mut(s![.., b..;outer]).assign(&part);
        }
        Features {
            inner: (&inner + &inner.t()) * 0.5,
            output: matmul(left.view(), self.w.t()),
            total: super::subspace::total(self.w.view(), g.view()),
        }
    }

    fn length(&self, rank: usize) -> usize {
        rank.min(self.v.nrows()) * self.blocks.outer
    }

    /// Prepares [`Projection::core`].
    ///
    /// # Errors
    /// When the features' second moment is far from positive semidefinite.
    pub fn solver(&self, on: &Features) -> Result<Solver> {
        let triangle = Triangle::new(on.inner.view(), DAMPING)?;
        Ok(Solver {
            halfway: triangle.forward(on.output.view()),
            triangle,
        })
    }

    /// The best `K` (out × rank·outer) on the first `rank` features.
    pub fn core(&self, solver: &Solver, rank: usize) -> Array2<f64> {
        let n = self.length(rank);
        solver.triangle.back(solver.halfway.view(), n).reversed_axes()
    }

    /// What a core loses, `E‖W x − K z‖²`, under the second moment that `on` was made with.
    pub fn lost(&self, on: &Features, core: &Array2<f64>) -> f64 {
        let n = core.ncols();
        let image = matmul(core.view(), on.inner.slice(s![..n, ..n]));
        on.total - 2.0 * (core * &on.output.slice(s![..n, ..]).t()).sum() + (&image * core).sum()
    }

    /// The output directions of a core under data, strongest first (out × out), and their powers.
    ///
    /// # Errors
    /// When the eigenproblem fails.
    pub fn outputs(&self, on: &Features, core: &Array2<f64>) -> Result<(Array1<f64>, Array2<f64>)> {
        let n = core.ncols();
        let image = matmul(core.view(), on.inner.slice(s![..n, ..n]));
        sym_eigen(matmul(image.view(), core.t()).view())
    }

    /// What is lost when only the first `s` output directions are kept, for all `s` from 0.
    pub fn lost_by_outputs(&self, on: &Features, core: &Array2<f64>, directions: &Array2<f64>) -> Vec<f64> {
        let n = core.ncols();
        let turned = matmul(directions.t(), core.view());
        let wanted = matmul(directions.t(), on.output.slice(s![..n, ..]).t());
        let image = matmul(turned.view(), on.inner.slice(s![..n, ..n]));
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

    /// `K Z x` for one window `x`, in the kernel's order: what the chain makes of the mean input.
    pub fn output_of(&self, core: &Array2<f64>, rank: usize, x: &Array1<f64>) -> Array1<f64> {
        let first = self.first(rank);
        let (outer, unit) = (self.blocks.outer, self.blocks.unit);
        let mut z = Array1::zeros(first.nrows() * outer);
        for b in 0..outer {
            let at = &self.blocks.order[b * unit..(b + 1) * unit];
            z.slice_mut(s![b..;outer]).assign(&first.dot(&x.select(Axis(0), at)));
        }
        core.dot(&z)
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
                let core = p.core(&p.solver(&on).expect("solvable"), rank);
                let lost = p.lost(&on, &core);
                let d = &w - &composed(&p, &core, rank);
                let direct = (d.dot(&g) * &d).sum();
                assert!((lost - direct).abs() < 1e-6 * on.total, "{lost} {direct}");
                assert!(lost <= before * 1.0001 + 1e-9);
                before = lost;
                let (_, u) = p.outputs(&on, &core).expect("finite");
                let curve = p.lost_by_outputs(&on, &core, &u);
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
        let core = p.core(&p.solver(&on).expect("solvable"), rank);
        assert!(p.lost(&on, &core) < 1e-6 * on.total);
        let (first, second) = (p.first(rank), &core);
        assert_eq!((first.dim(), second.dim()), ((rank, channels * 3), (out, rank * 3)));
        for (o, i) in [(0, 0), (3, 17), (5, 35)] {
            let (row, col) = (i / 3, i % 3);
            let made: f64 = (0..rank).map(|r| second[[o, r * 3 + col]] * first[[r, row]]).sum();
            assert!((made - w[[o, i]]).abs() < 1e-4, "{made} {}", w[[o, i]]);
        }
    }
}
