//! First and second moments of a stream of rows `x` (one row: the input of a layer at one position).
//!
//! `n = Σ 1`, `s = Σ x`, `S = Σ x xᵀ`; then the mean is `μ = s/n`, the mean second moment `G = S/n`, the covariance
//! `C = G − μ μᵀ`. All three sums add up over shards. `G` is what optimal brain surgeon (Hassibi, Stork 1993), GPTQ
//! (Frantar et al. 2022) and data-aware low rank need to know of the data.
//!
//! Products are formed over blocks of 1,024 rows and summed in f32: an entry `S_ij` is wrong by a few `1e-6 · √(S_ii S_jj)` at worst,
//! half of which the products are. Each column of a block is first divided by a power of two (exact) that makes its largest
//! entry about 1, so 1e30 does not overflow and 1e-30 does not vanish when multiplied; sums are kept relative to such powers, one for every
//! column.

use anyhow::{Result, ensure};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Zip, s};
use rayon::prelude::*;
use std::sync::Arc;

use super::block::Block;
use super::decompose::transposed;
pub use super::scale::NONE;
use super::scale::{normalize, power};
use super::vector::{all_finite, sum_of, widest};

/// Rows that are multiplied at once, before they are added to the sums.
pub const ROWS: usize = 1024;
/// Rows of `S` that one task computes: a constant, so that no bit depends on the number of threads.
const BAND: usize = 96;
/// Columns may grow by `2^ROOM` before their sums are scaled anew: far from overflow, and twice that is.
const ROOM: i16 = 20;

/// Running sums over rows of `dim` numbers.
#[derive(Clone, Debug)]
pub struct Gram {
    /// Rows summed so far.
    pub n: u64,
    /// Rows left out because they hold a NaN or an infinity.
    pub broken: u64,
    /// `Σ x`, `dim` numbers.
    pub sum: Array1<f64>,
    /// For every column the exponent of the power of two that its sums are relative to, or [`NONE`].
    exponents: Vec<i16>,
    /// The lower triangle of `Σ x xᵀ`, relative to two such powers, in bands of `BAND` rows (the last has fewer), each as wide as its last
    /// row is long.
    bands: Vec<Block>,
}

impl Gram {
    /// Empty sums over rows of `dim` numbers; see [`Gram::bytes`].
    pub fn new(dim: usize) -> Self {
        let bands = (0..dim).step_by(BAND).map(|start| {
            let end = dim.min(start + BAND);
            Block::zeros((end - start) * end)
        });
        Gram {
            n: 0,
            broken: 0,
            sum: Array1::zeros(dim),
            exponents: vec![NONE; dim],
            bands: bands.collect(),
        }
    }

    /// Bytes that the sums over rows of `dim` numbers take; `None` when that is no number.
    pub fn bytes(dim: usize) -> Option<usize> {
        dim.checked_add(BAND + 5)?
            .checked_mul(dim)?
            .checked_mul(2)?
            .checked_add(64)
    }

    /// The exponents of the powers of two that [`Gram::rows`] are relative to; [`NONE`] for a column of zeros.
    pub fn exponents(&self) -> &[i16] {
        &self.exponents
    }

    /// The rows of the lower triangle of `Σ x xᵀ`, each up to the end of its band or, with `cut`, up to the diagonal. Number `j` of row `i` is to
    /// be multiplied by `2^(e_i + e_j)`, `e` the exponents.
    pub fn rows(&self, cut: bool) -> impl Iterator<Item = &[f32]> {
        let widths = (0..self.dim()).map(move |i| widths(self.dim(), i, cut));
        widths.map(|(i, width, all)| &self.bands[i / BAND][i % BAND * all..][..width])
    }

    /// How long the rows that [`Gram::rows`] gives are.
    pub fn lengths(dim: usize, cut: bool) -> impl Iterator<Item = usize> {
        (0..dim).map(move |i| widths(dim, i, cut).1)
    }

    /// True when [`Gram::rows`] up to the diagonal tell everything, bit by bit.
    pub fn is_symmetric(&self) -> bool {
        self.rows(false).enumerate().all(|(i, row)| {
            let band = &self.bands[i / BAND];
            (i + 1..row.len()).all(|j| row[j].to_bits() == band[j % BAND * row.len() + i].to_bits())
        })
    }

    /// Sums over `n` rows, of which `broken` more were left out, given their exponents, and their rows as [`Gram::rows`] gives them; `None` when
    /// those are too few.
    pub fn of(
        (n, broken): (u64, u64),
        sum: Array1<f64>,
        exponents: Vec<i16>,
        cut: bool,
        mut numbers: impl Iterator<Item = f32>,
    ) -> Option<Gram> {
        if exponents.len() != sum.len() {
            return None;
        }
        let mut gram = Gram::new(sum.len());
        for (i, width, all) in (0..sum.len()).map(|i| widths(sum.len(), i, cut)) {
            for j in 0..width {
                let (x, band, start) = (numbers.next()?, &mut gram.bands[i / BAND], i / BAND * BAND);
                band[(i - start) * all + j] = x;
                if cut && j >= start {
                    band[(j - start) * all + i] = x;
                }
            }
        }
        (gram.n, gram.broken, gram.sum, gram.exponents) = (n, broken, sum, exponents);
        Some(gram)
    }

    /// Numbers in a row.
    pub fn dim(&self) -> usize {
        self.sum.len()
    }

    /// Adds rows (`n × dim`). A row with a NaN or an infinity is left out and counted in `broken`.
    ///
    /// An error when the rows have another length. The sums depend on how rows are divided among calls in their last bits
    /// (blocks start anew with each call), never on the number of threads.
    pub fn add_rows(&mut self, rows: ArrayView2<f32>) -> Result<()> {
        let dim = self.dim();
        ensure!(rows.ncols() == dim, "Gram: rows of {} numbers, not {dim}", rows.ncols());
        for block in rows.axis_chunks_iter(Axis(0), ROWS) {
            let whole = block.as_slice().filter(|data| all_finite(data));
            let turned = match whole {
                Some(data) => transposed(data, block.nrows(), dim),
                None => {
                    let mut data = Vec::with_capacity(block.len());
                    for row in block.rows().into_iter().filter(|row| finite_row(row)) {
                        data.extend(row);
                    }
                    // A row of no numbers is finite, and the division below must not be by zero.
                    let rows = data.len().checked_div(dim).unwrap_or(block.nrows());
                    self.broken += (block.nrows() - rows) as u64;
                    transposed(&data, rows, dim)
                }
            };
            self.begin();
            self.n += turned.len().checked_div(dim).unwrap_or(block.nrows()) as u64;
            self.add_block(turned);
        }
        Ok(())
    }

    /// Writes to the sums before anything is added: Linux maps all zeros that were only read to one page, and to take each 4 kB
    /// of them out of it again interrupts every core.
    fn begin(&mut self) {
        if self.n == 0 {
            self.bands.par_iter_mut().for_each(|band| band.fill(0.0));
        }
    }

    /// Adds a block of finite rows, given by columns (`dim × rows`).
    fn add_block(&mut self, mut columns: Vec<f32>) {
        let dim = self.dim();
        if columns.is_empty() {
            return;
        }
        let rows = columns.len() / dim;
        let mut exponents = vec![NONE; dim];
        columns
            .par_chunks_mut(rows)
            .zip(&mut exponents)
            .zip(self.sum.as_slice_mut().expect("own"))
            .with_min_len(16)
            .for_each(|((column, exponent), sum)| {
                (*sum, *exponent) = widest!((*sum + sum_of(column, |x| x), normalize(column)));
            });
        let scales = self.make_room(&exponents);
        let all = MatRef::from_row_major_slice(&columns, dim, rows);
        self.bands.par_iter_mut().enumerate().for_each(|(i, band)| {
            let start = i * BAND;
            let width = dim.min(start + BAND);
            let height = width - start;
            let mut product = vec![0.0f32; height * width];
            matmul(
                MatMut::from_row_major_slice_mut(&mut product, height, width),
                Accum::Replace,
                all.subrows(start, height),
                all.subrows(0, width).transpose(),
                1.0,
                Par::Seq,
            );
            widest!({
                for (r, (row, product)) in band.chunks_mut(width).zip(product.chunks(width)).enumerate() {
                    add(row, product, scales[start + r], &scales);
                }
            });
        });
    }

    /// Adds the sums of another shard; an error when its rows have another length.
    pub fn merge(&mut self, other: &Gram) -> Result<()> {
        ensure!(
            self.dim() == other.dim(),
            "Gram: {} against {}",
            self.dim(),
            other.dim()
        );
        self.begin();
        self.n += other.n;
        self.broken += other.broken;
        self.sum += &other.sum;
        let scales = self.make_room(&other.exponents);
        for (i, (sums, others)) in self.bands.iter_mut().zip(&other.bands).enumerate() {
            let width = scales.len().min((i + 1) * BAND);
            for (r, (row, others)) in sums.chunks_mut(width).zip(others.chunks(width)).enumerate() {
                widest!(add(row, others, scales[i * BAND + r], &scales));
            }
        }
        Ok(())
    }

    /// Takes exponents over where there are none, and scales columns anew that are far smaller than what is to be added. Gives for every column
    /// what of sums with these exponents is to be multiplied by.
    fn make_room(&mut self, exponents: &[i16]) -> Vec<f32> {
        let mut smaller = vec![1.0f32; exponents.len()];
        for ((own, &new), smaller) in self.exponents.iter_mut().zip(exponents).zip(&mut smaller) {
            if *own == NONE {
                *own = new;
            } else if new > own.saturating_add(ROOM) {
                *smaller = power(*own - new) as f32;
                *own = new;
            }
        }
        if smaller.iter().any(|s| *s != 1.0) {
            for (i, band) in self.bands.iter_mut().enumerate() {
                let width = smaller.len().min((i + 1) * BAND);
                for (r, row) in band.chunks_mut(width).enumerate() {
                    let own = smaller[i * BAND + r];
                    row.iter_mut().zip(&smaller).for_each(|(x, other)| *x *= own * other);
                }
            }
        }
        let scale = |(own, new): (&i16, &i16)| if *new == NONE { 1.0 } else { power(new - own) as f32 };
        self.exponents.iter().zip(exponents).map(scale).collect()
    }

    /// `Σ x xᵀ` (`dim × dim`), exactly symmetric.
    pub fn second(&self) -> Array2<f64> {
        let (dim, scales) = (self.dim(), self.scales());
        let mut full = Array2::zeros((dim, dim));
        for (i, band) in self.bands.iter().enumerate() {
            let start = i * BAND;
            let width = dim.min(start + BAND);
            for (r, numbers) in band.chunks(width.max(1)).enumerate() {
                let scaled = numbers
                    .iter()
                    .zip(&scales)
                    .map(|(x, s)| f64::from(*x) * (scales[start + r] * s));
                let mut row = full.row_mut(start + r);
                row.iter_mut().zip(scaled).for_each(|(to, x)| *to = x);
            }
            // A square at a time: a whole column would miss the cache at every row.
            for left in (0..width).step_by(BAND) {
                let columns = left..width.min(left + BAND);
                let square = full.slice(s![start..width, columns.clone()]).to_owned();
                full.slice_mut(s![columns, start..width]).assign(&square.t());
            }
        }
        full
    }

    /// Mean second moment `G = Σ x xᵀ / n` (`dim × dim`), exactly symmetric; zero when there are no rows.
    pub fn moment(&self) -> Array2<f64> {
        self.second() / self.count()
    }

    /// Mean row (`dim` numbers); zero when there are no rows.
    pub fn mean(&self) -> Array1<f64> {
        &self.sum / self.count()
    }

    /// Covariance `G − μ μᵀ` (`dim × dim`, divided by `n`, not `n − 1`), exactly symmetric, diagonal never negative.
    ///
    /// Where the mean is far larger than the spread, the difference keeps only the digits that f32 products leave.
    pub fn covariance(&self) -> Array2<f64> {
        centered(self.moment(), self.mean().view())
    }

    /// The rows of [`Gram::covariance`], each up to the diagonal, without it.
    pub fn covariance_rows(&self) -> impl Iterator<Item = impl Iterator<Item = f64>> {
        let (n, known) = (self.count(), Arc::new((self.mean(), self.scales())));
        self.rows(true).enumerate().map(move |(i, row)| {
            let known = known.clone();
            let entry = move |(j, x): (usize, &f32)| {
                let (mean, scales) = &*known;
                f64::from(*x) * (scales[i] * scales[j]) / n - mean[i] * mean[j]
            };
            row[..i].iter().enumerate().map(entry)
        })
    }

    /// The powers of two that the columns are relative to.
    fn scales(&self) -> Vec<f64> {
        let exponent = |e: &i16| if *e == NONE { 0 } else { *e };
        self.exponents.iter().map(|e| power(exponent(e))).collect()
    }

    fn count(&self) -> f64 {
        self.n.max(1) as f64
    }
}

/// Row `i`, how long it is, and how long the rows of its band are.
fn widths(dim: usize, i: usize, cut: bool) -> (usize, usize, usize) {
    let all = dim.min(i / BAND * BAND + BAND);
    (i, if cut { i + 1 } else { all }, all)
}

/// `G − μ μᵀ`, diagonal cut at zero.
pub(super) fn centered(mut moment: Array2<f64>, mean: ArrayView1<f64>) -> Array2<f64> {
    Zip::from(moment.rows_mut())
        .and(&mean)
        .for_each(|mut row, &m| row.scaled_add(-m, &mean));
    moment.diag_mut().mapv_inplace(|x| x.max(0.0));
    moment
}

fn finite_row(row: &ArrayView1<f32>) -> bool {
    row.iter().all(|x| x.is_finite())
}

/// `row += numbers · scale · scales`, number by number.
#[inline(always)]
fn add(row: &mut [f32], numbers: &[f32], scale: f32, scales: &[f32]) {
    for ((sum, &x), &other) in row.iter_mut().zip(numbers).zip(scales) {
        *sum += x * (scale * other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(n: usize, dim: usize, seed: u64) -> Array2<f32> {
        let mut state = seed;
        Array2::from_shape_simple_fn((n, dim), || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / 8388608.0 - 0.9
        })
    }

    fn direct(x: &Array2<f32>) -> Array2<f64> {
        let x = x.mapv(f64::from);
        x.t().dot(&x)
    }

    /// The largest error of an entry, relative to √(S_ii S_jj).
    fn error(got: &Array2<f64>, x: &Array2<f32>) -> f64 {
        let expected = direct(x);
        let size = expected.diag().mapv(f64::sqrt);
        let mut worst = 0.0f64;
        for ((i, j), &e) in expected.indexed_iter() {
            worst = worst.max((got[[i, j]] - e).abs() / (size[i] * size[j]).max(f64::MIN_POSITIVE));
        }
        worst
    }

    #[test]
    fn the_sums_match_a_direct_product() {
        for (n, dim) in [(1, 1), (5, 3), (511, 64), (513, 97), (1500, 200), (3, 300)] {
            let x = rows(n, dim, n as u64);
            let mut gram = Gram::new(dim);
            gram.add_rows(x.view()).expect("same length");
            let second = gram.second();
            assert_eq!((gram.n, gram.broken), (n as u64, 0));
            assert_eq!(second, second.t());
            assert!(error(&second, &x) < 1e-6, "{n} {dim}: {}", error(&second, &x));
            for (got, column) in gram.sum.iter().zip(x.columns()) {
                let expected: f64 = column.iter().map(|&x| f64::from(x)).sum();
                assert!((got - expected).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn mean_moment_and_covariance_follow_from_the_sums() {
        let x = rows(2000, 7, 3);
        let mut gram = Gram::new(7);
        gram.add_rows(x.view()).expect("same length");
        let wide = x.mapv(f64::from);
        let mean = wide.mean_axis(Axis(0)).expect("rows");
        let around = &wide - &mean;
        let covariance = around.t().dot(&around) / 2000.0;
        assert!((gram.mean() - &mean).iter().all(|d| d.abs() < 1e-12));
        assert!((gram.covariance() - &covariance).iter().all(|d| d.abs() < 1e-6));
        assert!((gram.moment() * 2000.0 - gram.second()).iter().all(|d| d.abs() < 1e-9));
        assert_eq!(gram.covariance(), gram.covariance().t());
        let empty = Gram::new(3);
        assert!(empty.mean().iter().chain(&empty.covariance()).all(|&x| x == 0.0));
    }

    #[test]
    fn shards_add_up_and_no_bit_depends_on_threads() {
        let x = rows(1300, 220, 5);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut gram = Gram::new(220);
            pool.expect("a small pool")
                .install(|| gram.add_rows(x.view()))
                .expect("same length");
            gram
        };
        let (one, three) = (run(1), run(3));
        assert_eq!((one.second(), &one.sum), (three.second(), &three.sum));
        let (mut left, mut right) = (Gram::new(220), Gram::new(220));
        left.add_rows(x.slice(s![..700, ..])).expect("same length");
        right.add_rows(x.slice(s![700.., ..])).expect("same length");
        left.merge(&right).expect("same length");
        assert_eq!(left.n, 1300);
        assert!(error(&left.second(), &x) < 1e-6);
        assert!(left.merge(&Gram::new(3)).is_err());
    }

    #[test]
    fn strided_rows_are_read_as_they_are() {
        let x = rows(40, 30, 6);
        let (mut a, mut b) = (Gram::new(20), Gram::new(20));
        a.add_rows(x.slice(s![.., ..20])).expect("same length");
        b.add_rows(x.slice(s![.., ..20]).as_standard_layout().view())
            .expect("same length");
        assert_eq!(a.second(), b.second());
        let mut by_columns = Gram::new(40);
        by_columns.add_rows(x.t()).expect("same length");
        assert!(error(&by_columns.second(), &x.t().as_standard_layout().to_owned()) < 1e-6);
    }

    #[test]
    fn a_row_that_is_not_finite_is_left_out_and_counted() {
        let clean = rows(600, 5, 7);
        let mut x = clean.clone();
        for (row, bad) in [(3, f32::NAN), (590, f32::INFINITY), (591, f32::NEG_INFINITY)] {
            x[[row, row % 5]] = bad;
        }
        let mut gram = Gram::new(5);
        gram.add_rows(x.view()).expect("same length");
        assert_eq!((gram.n, gram.broken), (597, 3));
        let kept: Vec<usize> = (0..600).filter(|i| ![3, 590, 591].contains(i)).collect();
        assert!(error(&gram.second(), &clean.select(Axis(0), &kept)) < 1e-6);
    }

    #[test]
    fn huge_and_tiny_columns_neither_overflow_nor_vanish() {
        let mut x = rows(700, 6, 8);
        for (column, size) in [1e30, 1e-30, 0.0, 1e-42, 3e38].into_iter().enumerate() {
            x.column_mut(column).mapv_inplace(|v| v * size);
        }
        let mut gram = Gram::new(6);
        gram.add_rows(x.view()).expect("same length");
        assert!(gram.second().iter().all(|x| x.is_finite()));
        assert!(error(&gram.second(), &x) < 5e-6, "{}", error(&gram.second(), &x));
        assert!(gram.second().row(2).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn rows_of_another_length_are_refused_and_empty_ones_answered() {
        assert!(Gram::new(3).add_rows(rows(2, 4, 1).view()).is_err());
        let mut gram = Gram::new(3);
        gram.add_rows(rows(0, 3, 1).view()).expect("no rows");
        assert_eq!((gram.n, gram.second()), (0, Array2::zeros((3, 3))));
        let mut gram = Gram::new(0);
        gram.add_rows(rows(4, 0, 1).view()).expect("no numbers");
        assert_eq!((gram.n, gram.broken), (4, 0));
    }
}
