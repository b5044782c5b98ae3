//! The strongest directions of `P = W C Wᵀ` without forming it, for large layers of which few directions are needed.
//!
//! Block subspace iteration `Q ← orth(P Q)` from a random block, then the eigenproblem of `Qᵀ P Q` (Rayleigh, Ritz; Halko,
//! Martinsson, Tropp 2011, *Finding structure with randomness*). `P X` is `W (C (Wᵀ X))`: three thin products. What lies
//! outside of `Q` is estimated by random probes, `tr((I−QQᵀ) P (I−QQᵀ)) = E zᵀ(I−QQᵀ) P (I−QQᵀ)z` (Meyer et al. 2021,
//! *Hutch++*). Products are made in f32: spectra are wanted to a few parts in a thousand, and all factors end as f32.
//!
//! Costs `6·n²` operations for every column of the block and every step, against `4·n³` to form `P` and about as much
//! again, on one thread, for its eigenvectors.

use anyhow::{Result, ensure};
use ndarray::{Array1, Array2, ArrayView2, Axis, concatenate};

use super::decompose::{matmul, matmul_f32, nearly_normal, orthonormal, sym_eigen};

/// Probes of what lies outside of a subspace: its power is known to some 10 % then, less where it is spread evenly.
const PROBES: usize = 32;

/// A map `W` (out × in), ready for products with `W C Wᵀ`.
pub struct Map {
    w: Array2<f32>,
    turned: Array2<f32>,
    scale: f64,
}

/// A covariance in f32, of entries of size 1 at most.
pub struct Power {
    c: Array2<f32>,
    scale: f64,
}

impl Power {
    /// An error when an entry is not finite.
    pub fn new(c: ArrayView2<f64>) -> Result<Power> {
        let (c, scale) = single(c)?;
        Ok(Power { c, scale })
    }
}

/// Divided by its largest size, which is returned (1 for zeros).
fn single(a: ArrayView2<f64>) -> Result<(Array2<f32>, f64)> {
    let largest = a.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    ensure!(
        a.iter().all(|x| x.is_finite()),
        "a {:?} matrix has an entry that is not finite",
        a.dim()
    );
    let scale = if largest > 0.0 { largest } else { 1.0 };
    Ok((a.mapv(|x| (x / scale) as f32), scale))
}

/// The strongest directions of a power `W C Wᵀ`.
pub struct Leading {
    /// Power along each, descending, never negative.
    pub values: Array1<f64>,
    /// out × block, orthonormal columns.
    pub basis: Array2<f32>,
    /// `P · basis`, in units of its own.
    image: Array2<f32>,
}

impl Map {
    /// An error when an entry is not finite.
    pub fn new(w: ArrayView2<f64>) -> Result<Map> {
        let (w, scale) = single(w)?;
        let turned = w.t().as_standard_layout().into_owned();
        Ok(Map { w, turned, scale })
    }

    fn unit(&self, power: &Power) -> f64 {
        self.scale * self.scale * power.scale
    }

    fn apply(&self, power: &Power, x: &Array2<f32>) -> Array2<f32> {
        let inner = matmul_f32(self.turned.view(), x.view());
        matmul_f32(self.w.view(), matmul_f32(power.c.view(), inner.view()).view())
    }

    /// A random block of `columns` (at most out) to start from; the same seed gives the same bits.
    pub fn start(&self, columns: usize, seed: u64) -> Array2<f32> {
        let mut state = seed;
        let columns = columns.min(self.w.nrows());
        Array2::from_shape_simple_fn((self.w.nrows(), columns), || nearly_normal(&mut state) as f32)
    }

    /// `steps` products with `W C Wᵀ`, and one more for the eigenproblem in the subspace. Two are enough from a random
    /// start, one from a good one.
    ///
    /// # Errors
    /// When the eigenproblem fails.
    pub fn leading(&self, power: &Power, start: Array2<f32>, steps: usize) -> Result<Leading> {
        let mut basis = start;
        for _ in 0..steps {
            basis = orth(self.apply(power, &basis));
        }
        self.within(power, basis)
    }

    /// More directions: those that were found take part with what the power made of them, which was computed anyway, new ones
    /// with one step from a random start.
    ///
    /// # Errors
    /// When the eigenproblem fails.
    pub fn widened(&self, power: &Power, found: Leading, columns: usize, seed: u64) -> Result<Leading> {
        let more = columns.min(self.w.nrows()).saturating_sub(found.basis.ncols());
        let new = self.apply(power, &self.start(more, seed));
        let both = concatenate(Axis(1), &[found.image.view(), new.view()])?;
        self.within(power, orth(both))
    }

    /// The eigenproblem in the space of `basis`.
    fn within(&self, power: &Power, basis: Array2<f32>) -> Result<Leading> {
        let image = self.apply(power, &basis);
        let small = matmul_f32(basis.t(), image.view()).mapv(f64::from);
        let small = (&small + &small.t()) * 0.5;
        let (values, turn) = sym_eigen(small.view())?;
        let turn = turn.mapv(|x| x as f32);
        Ok(Leading {
            values: values.mapv(|x| x.max(0.0) * self.unit(power)),
            basis: matmul_f32(basis.view(), turn.view()),
            image: matmul_f32(image.view(), turn.view()),
        })
    }

    /// The power along every column of `basis`.
    pub fn along(&self, power: &Power, basis: &Array2<f32>) -> Vec<f64> {
        let rows = matmul_f32(basis.t(), self.w.view());
        let images = matmul_f32(rows.view(), power.c.view());
        let pairs = rows.rows().into_iter().zip(images.rows());
        let dot = |(a, b): (ndarray::ArrayView1<f32>, ndarray::ArrayView1<f32>)| {
            a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
        };
        pairs.map(|p| dot(p).max(0.0) * self.unit(power)).collect()
    }

    /// The power outside of the space of `basis` (orthonormal columns), estimated.
    pub fn outside(&self, power: &Power, basis: &Array2<f32>, seed: u64) -> f64 {
        let left = self.w.nrows().saturating_sub(basis.ncols());
        if left == 0 {
            return 0.0;
        }
        let mut z = self.start(PROBES, seed);
        let probes = z.ncols();
        z -= &matmul_f32(basis.view(), matmul_f32(basis.t(), z.view()).view());
        let image = self.apply(power, &z);
        let sum: f64 = z.iter().zip(&image).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        (sum / probes as f64).max(0.0) * self.unit(power)
    }

    /// Rows `basisᵀ W` (block × in), in f64: the first layer.
    pub fn rows(&self, basis: &Array2<f32>) -> Array2<f64> {
        matmul_f32(basis.t(), self.w.view()).mapv(|x| f64::from(x) * self.scale)
    }
}

fn orth(x: Array2<f32>) -> Array2<f32> {
    orthonormal(x.mapv(f64::from)).mapv(|x| x as f32)
}

/// `tr(W C Wᵀ)` for a map and a power, exactly, as `Σ (W C) ∘ W`.
pub fn total(w: ArrayView2<f64>, c: ArrayView2<f64>) -> f64 {
    let product = matmul(w, c);
    let rows = product.axis_iter(Axis(0)).zip(w.axis_iter(Axis(0)));
    rows.map(|(a, b)| a.dot(&b)).sum::<f64>().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nalgebra::{DMatrix, SymmetricEigen};

    fn random(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
        let mut state = seed;
        Array2::from_shape_simple_fn((rows, cols), || nearly_normal(&mut state))
    }

    /// A covariance with a spectrum that falls.
    fn falling(dim: usize, seed: u64) -> Array2<f64> {
        let mut x = random(2 * dim, dim, seed).dot(&random(dim, dim, seed + 1));
        for (i, mut column) in x.columns_mut().into_iter().enumerate() {
            column *= (-(i as f64) / 12.0).exp();
        }
        x.t().dot(&x) / (2 * dim) as f64
    }

    #[test]
    fn the_strongest_directions_are_those_of_nalgebra() {
        for (out, inputs) in [(90, 70), (70, 90), (200, 60)] {
            let (w, c) = (random(out, inputs, 1), falling(inputs, 2));
            let full = w.dot(&c).dot(&w.t());
            let oracle = SymmetricEigen::new(DMatrix::from_fn(out, out, |i, j| full[[i, j]]));
            let mut expected: Vec<f64> = oracle.eigenvalues.iter().copied().collect();
            expected.sort_by(|a, b| b.total_cmp(a));
            let (map, power) = (
                Map::new(w.view()).expect("finite"),
                Power::new(c.view()).expect("finite"),
            );
            let found = map.leading(&power, map.start(24, 7), 2).expect("converges");
            for (found, expected) in found.values.iter().zip(&expected).take(12) {
                assert!((found / expected - 1.0).abs() < 2e-3, "{found} {expected}");
            }
            let narrow = map.leading(&power, map.start(14, 7), 2).expect("converges");
            let before = narrow.values.clone();
            let wider = map.widened(&power, narrow, 24, 5).expect("converges");
            assert_eq!(wider.basis.ncols(), 24);
            assert!(wider.values.iter().zip(&before).all(|(w, n)| *w > n * (1.0 - 1e-5)));
            for (found, expected) in wider.values.iter().zip(&expected).take(10) {
                assert!((found / expected - 1.0).abs() < 1e-2, "{found} {expected}");
            }
            let along = map.along(&power, &found.basis);
            assert!(along.iter().zip(&found.values).all(|(a, b)| (a / b - 1.0).abs() < 1e-2));
            let rest = total(w.view(), c.view()) - along.iter().sum::<f64>();
            let guessed = map.outside(&power, &found.basis, 3);
            assert!((guessed / rest - 1.0).abs() < 0.5, "{guessed} {rest}");
            let gram = found.basis.t().dot(&found.basis) - Array2::<f32>::eye(24);
            assert!(gram.iter().all(|x| x.abs() < 1e-4));
        }
    }

    #[test]
    fn sizes_of_1e30_and_zeros_are_answered() {
        let (w, c) = (random(20, 20, 1) * 1e30, falling(20, 2) * 1e-40);
        let (map, power) = (
            Map::new(w.view()).expect("finite"),
            Power::new(c.view()).expect("finite"),
        );
        let found = map.leading(&power, map.start(20, 7), 1).expect("converges");
        assert!((found.values.sum() / total(w.view(), c.view()) - 1.0).abs() < 1e-3);
        assert_eq!(map.outside(&power, &found.basis, 1), 0.0);
        let nothing = Power::new(Array2::zeros((20, 20)).view()).expect("finite");
        assert_eq!(
            map.leading(&nothing, map.start(4, 7), 2)
                .expect("converges")
                .values
                .sum(),
            0.0
        );
        assert!(Map::new(Array2::from_elem((2, 2), f64::NAN).view()).is_err());
    }
}
