//! Convolutions with windows of 3×3 that move by one, with fewer products.
//!
//! Minimal filtering F(4×4, 3×3) (Lavin, Gray 2016, *Fast algorithms for convolutional neural networks*): a tile of 6×6 inputs `d`
//! and a filter `g` give 4×4 outputs `Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`, by 36 products instead of 144 for a pair of channels. Summed over channels these
//! are 36 products of matrices, `outputs × inputs` by `inputs × tiles`.
//!
//! Numbers of all tiles lie side by side, so that the small transforms are sums of vectors: rows and columns of the input are taken apart by their
//! places in a tile. In f32 results differ from those of plain sums by about one part in a million.

use super::kernel::Kernel;
use super::phases::Windows;
use super::tail::Tail;
use crate::math::decompose::{Layout, multiply_f32};
use crate::math::vector::widest;
use std::cell::RefCell;
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_hir::internal::*;

/// Outputs of a tile, each way.
const TILE: usize = 4;
/// Inputs of a tile, each way.
const SIDE: usize = 6;
/// Numbers of a tile.
const ALL: usize = SIDE * SIDE;
/// With fewer channels the transforms take longer than the products that are saved.
const CHANNELS: usize = 24;
/// In smaller planes too much of the tiles lies outside.
const PLACES: usize = 12;
/// Transformed numbers that are worked on at a time: about what a core's own cache holds,
const MOST: usize = 1 << 19;
/// but so many tiles in any case,
const LEAST: usize = 48;
/// if they are not more than this: how wide a plane is, a file says.
const LARGEST: u128 = 1 << 24;

/// A convolution of planes of f32, channels before places. Inputs: `[…, C, H, W]`, and a bias of `[M]` or of one number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Winograd {
    inputs: usize,
    outputs: usize,
    windows: Windows,
    /// `G g Gᵀ`: 36 × outputs × inputs.
    filters: Arc<Tensor>,
    tail: Tail,
    shape: TVec<usize>,
}

impl Winograd {
    /// That of a convolution, where it is faster.
    ///
    /// # Errors
    /// When the filter does not lie in memory.
    pub fn of(
        conv: &Conv,
        filter: &Tensor,
        (windows, tail): (Windows, Tail),
        shape: &[usize],
    ) -> TractResult<Option<Winograd>> {
        let (inputs, outputs) = (conv.pool_spec.input_channels, conv.pool_spec.output_channels);
        let axes = [windows.rows, windows.columns];
        let usual = axes.iter().all(|a| (a.kernel, a.stride, a.dilation) == (3, 1, 1));
        let many = conv.group == 1 && inputs.min(outputs) >= CHANNELS;
        let large = axes.iter().all(|a| a.output >= PLACES);
        let columns = windows.columns.output.div_ceil(TILE).max(LEAST) as u128;
        let fits = ALL as u128 * (inputs as u128 + outputs as u128) * columns <= LARGEST;
        if !(usual && many && large && fits) {
            return Ok(None);
        }
        let filter = filter.try_as_plain_ram()?;
        Ok(Some(Winograd {
            inputs,
            outputs,
            windows,
            filters: Arc::new(transformed(filter.as_slice::<f32>()?, outputs * inputs)?),
            tail,
            shape: shape.into(),
        }))
    }

    fn planes(&self, x: &[f32], bias: &[f32], y: &mut [f32]) {
        let (each, made) = (self.inputs * self.windows.read(), self.windows.made());
        let [rows, columns] = [self.windows.rows, self.windows.columns].map(|a| a.output.div_ceil(TILE));
        let most = MOST / (ALL * (self.inputs + self.outputs) * columns);
        let band = most.max(LEAST.div_ceil(columns)).min(rows);
        for (x, y) in x.chunks_exact(each).zip(y.chunks_exact_mut(self.outputs * made)) {
            for first in (0..rows).step_by(band) {
                let tiles = Tiles {
                    first,
                    rows: band.min(rows - first),
                    columns,
                };
                SCRATCH.with_borrow_mut(|s| self.band(x, bias, y, &tiles, s));
            }
        }
    }

    /// Some rows of tiles.
    fn band(&self, x: &[f32], bias: &[f32], y: &mut [f32], tiles: &Tiles, scratch: &mut Scratch) {
        let (n, filters) = (tiles.len(), self.filters.try_as_plain_ram());
        let Some(filters) = filters.ok().and_then(|f| f.as_slice::<f32>().ok()) else {
            return; // they are floats
        };
        let (inputs, outputs) = (self.inputs * n, self.outputs * n);
        scratch.resize(ALL * inputs, ALL * outputs, tiles);
        for (c, x) in x.chunks_exact(self.windows.read()).enumerate() {
            self.part(x, tiles, &mut scratch.parted, &mut scratch.padded);
            widest!(inward(tiles, scratch, (c * n, inputs)));
        }
        let pairs = self.inputs * self.outputs;
        for k in 0..ALL {
            multiply_f32(
                &mut scratch.products[k * outputs..][..outputs],
                n,
                (&filters[k * pairs..][..pairs], Layout::Rows(self.inputs)),
                (&scratch.inputs[k * inputs..][..inputs], Layout::Rows(n)),
                [self.outputs, self.inputs, n],
            );
        }
        for (m, y) in y.chunks_exact_mut(self.windows.made()).enumerate() {
            widest!(outward(n, scratch, (m * n, outputs)));
            self.write(&scratch.tiles, bias[m % bias.len()], tiles, y);
        }
    }

    /// Takes a plane apart: column `4j + c` of row `4r + i` lies at `r, j` of part `c, i`; columns 4 and 5 of a tile are the first ones of the next.
    fn part(&self, x: &[f32], tiles: &Tiles, parted: &mut [f32], padded: &mut [f32]) {
        let Windows { rows, columns } = self.windows;
        let (height, width, above) = (rows.input, columns.input, rows.before);
        let left = columns.before.min(padded.len());
        let inside = width.min(padded.len() - left);
        let part = tiles.part();
        padded.fill(0.0);
        for (row, at) in (0..TILE * (tiles.rows + 1)).map(|row| (row, TILE * tiles.first + row)) {
            let place = row % TILE * part + row / TILE * tiles.columns;
            let mut lanes = parts::<SIDE>(parted, TILE * part).map(|lane| &mut lane[place..][..tiles.columns]);
            match at.checked_sub(above).filter(|at| *at < height) {
                Some(at) => {
                    padded[left..][..inside].copy_from_slice(&x[at * width..][..inside]);
                    widest!(apart(padded, &mut lanes));
                }
                None => lanes.iter_mut().for_each(|lane| lane.fill(0.0)),
            }
        }
    }

    /// Puts the outputs of tiles where they belong; those outside are left.
    fn write(&self, made: &[f32], bias: f32, tiles: &Tiles, y: &mut [f32]) {
        let (height, width) = (self.windows.rows.output, self.windows.columns.output);
        for (a, of_row) in made.chunks_exact(TILE * tiles.len()).enumerate() {
            for r in 0..tiles.rows {
                let at = TILE * (tiles.first + r) + a;
                if at < height {
                    let lane = |b: usize| &of_row[b * tiles.len() + r * tiles.columns..][..tiles.columns];
                    let (lanes, y) = ([0, 1, 2, 3].map(lane), &mut y[at * width..][..width]);
                    widest!(together(lanes, y, |x| self.tail.of(x + bias)));
                }
            }
        }
    }
}

/// A row by the places of its numbers in a tile.
#[inline(always)]
fn apart(row: &[f32], lanes: &mut [&mut [f32]; SIDE]) {
    let (tiles, _) = row.as_chunks::<TILE>();
    let [a, b, c, d, e, f] = lanes;
    let n = a.len();
    let (a, b, c, d) = (&mut a[..n], &mut b[..n], &mut c[..n], &mut d[..n]);
    for (j, tile) in tiles[..n].iter().enumerate() {
        (a[j], b[j], c[j], d[j]) = (tile[0], tile[1], tile[2], tile[3]);
    }
    e[..n - 1].copy_from_slice(&a[1..]);
    f[..n - 1].copy_from_slice(&b[1..]);
    (e[n - 1], f[n - 1]) = (tiles[n][0], tiles[n][1]);
}

/// A row of what tiles have at each of its places.
#[inline(always)]
fn together(lanes: [&[f32]; TILE], row: &mut [f32], f: impl Fn(f32) -> f32) {
    let (tiles, rest) = row.as_chunks_mut::<TILE>();
    let n = tiles.len();
    let [a, b, c, d] = lanes.map(|lane| &lane[..n]);
    for (j, tile) in tiles.iter_mut().enumerate() {
        *tile = [f(a[j]), f(b[j]), f(c[j]), f(d[j])];
    }
    rest.iter_mut().zip(lanes).for_each(|(x, lane)| *x = f(lane[n]));
}

/// Rows of tiles.
struct Tiles {
    first: usize,
    rows: usize,
    columns: usize,
}

impl Tiles {
    fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Numbers of a part of a plane: the last tiles reach into the row behind them.
    fn part(&self) -> usize {
        (self.rows + 1) * self.columns
    }
}

/// What is worked on.
#[derive(Default)]
struct Scratch {
    /// A row between zeros.
    padded: Vec<f32>,
    /// 6 columns × 4 rows × places.
    parted: Vec<f32>,
    /// The same with transformed columns; then six or four times the places.
    columns: Vec<f32>,
    some: Vec<f32>,
    /// 36 × inputs × tiles.
    inputs: Vec<f32>,
    /// 36 × outputs × tiles.
    products: Vec<f32>,
    /// 4 × 4 × tiles.
    tiles: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Scratch {
    fn resize(&mut self, inputs: usize, products: usize, tiles: &Tiles) {
        self.padded.resize(TILE * (tiles.columns + 1), 0.0);
        self.parted.resize(SIDE * TILE * tiles.part(), 0.0);
        self.columns.resize(SIDE * TILE * tiles.part(), 0.0);
        self.some.resize(SIDE * tiles.len(), 0.0);
        self.inputs.resize(inputs, 0.0);
        self.products.resize(products, 0.0);
        self.tiles.resize(TILE * TILE * tiles.len(), 0.0);
    }
}

/// `Bᵀ d B` of one channel, whose numbers begin at `start` of each of 36 matrices of `size` numbers.
#[inline(always)]
fn inward(tiles: &Tiles, s: &mut Scratch, (start, size): (usize, usize)) {
    let (n, part) = (tiles.len(), tiles.part());
    let column = |c: usize| &s.parted[c * TILE * part..][..TILE * part];
    six([0, 1, 2, 3, 4, 5].map(column), &mut s.columns);
    for k in 0..SIDE {
        // Rows 4 and 5 of a tile are the first ones of the tile below.
        let row = |i: usize| &s.columns[(k * TILE + i % TILE) * part + i / TILE * tiles.columns..][..n];
        six([0, 1, 2, 3, 4, 5].map(row), &mut s.some);
        for (i, from) in s.some.chunks_exact(n).enumerate() {
            s.inputs[(i * SIDE + k) * size + start..][..n].copy_from_slice(from);
        }
    }
}

/// `Aᵀ P A` of one channel.
#[inline(always)]
fn outward(n: usize, s: &mut Scratch, (start, size): (usize, usize)) {
    for k in 0..SIDE {
        let row = |i: usize| &s.products[(i * SIDE + k) * size + start..][..n];
        four([0, 1, 2, 3, 4, 5].map(row), &mut s.some[..TILE * n]);
        for (a, from) in s.some.chunks_exact(n).take(TILE).enumerate() {
            s.columns[(a * SIDE + k) * n..][..n].copy_from_slice(from);
        }
    }
    for (a, to) in s.tiles.chunks_exact_mut(TILE * n).enumerate() {
        let column = |k: usize| &s.columns[(a * SIDE + k) * n..][..n];
        four([0, 1, 2, 3, 4, 5].map(column), to);
    }
}

/// `Bᵀ d` of vectors; results one behind the other.
#[inline(always)]
fn six(d: [&[f32]; SIDE], out: &mut [f32]) {
    let n = d[0].len();
    let (d, o) = (d.map(|d| &d[..n]), parts::<SIDE>(out, n));
    for j in 0..n {
        o[0][j] = 4.0 * d[0][j] - 5.0 * d[2][j] + d[4][j];
        let (even, odd) = (d[4][j] - 4.0 * d[2][j], d[3][j] - 4.0 * d[1][j]);
        (o[1][j], o[2][j]) = (even + odd, even - odd);
        let (even, odd) = (d[4][j] - d[2][j], 2.0 * (d[3][j] - d[1][j]));
        (o[3][j], o[4][j]) = (even + odd, even - odd);
        o[5][j] = 4.0 * d[1][j] - 5.0 * d[3][j] + d[5][j];
    }
}

/// `Aᵀ p` of vectors; results one behind the other.
#[inline(always)]
fn four(p: [&[f32]; SIDE], out: &mut [f32]) {
    let n = p[0].len();
    let (p, o) = (p.map(|p| &p[..n]), parts::<TILE>(out, n));
    for j in 0..n {
        let (sum, difference) = (p[1][j] + p[2][j], p[1][j] - p[2][j]);
        let (far, apart) = (p[3][j] + p[4][j], p[3][j] - p[4][j]);
        o[0][j] = p[0][j] + sum + far;
        o[1][j] = difference + 2.0 * apart;
        o[2][j] = sum + 4.0 * far;
        o[3][j] = difference + 8.0 * apart + p[5][j];
    }
}

/// The first vectors of `n` numbers each.
#[inline(always)]
fn parts<const N: usize>(out: &mut [f32], n: usize) -> [&mut [f32]; N] {
    let mut all = out.chunks_exact_mut(n.max(1));
    std::array::from_fn(|_| all.next().unwrap_or_default())
}

/// `G g Gᵀ` of filters of 3×3: 36 × filters.
fn transformed(filters: &[f32], count: usize) -> TractResult<Tensor> {
    const G: [[f64; 3]; SIDE] = [
        [1.0 / 4.0, 0.0, 0.0],
        [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
        [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
        [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
        [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
        [0.0, 0.0, 1.0],
    ];
    const AT_A_TIME: usize = 32;
    let mut all = vec![0.0f32; ALL * count];
    let mut g = [[0.0f64; AT_A_TIME]; 9];
    let (mut rows, mut out) = ([[0.0f64; AT_A_TIME]; 3 * SIDE], [[0.0f32; AT_A_TIME]; ALL]);
    for (part, filters) in filters.as_chunks::<9>().0.chunks(AT_A_TIME).enumerate() {
        for (j, filter) in filters.iter().enumerate() {
            (0..9).for_each(|t| g[t][j] = f64::from(filter[t]));
        }
        widest!({
            for (k, row) in rows.iter_mut().enumerate() {
                let (of, column) = (G[k / 3], k % 3);
                (0..AT_A_TIME)
                    .for_each(|j| row[j] = of[0] * g[column][j] + of[1] * g[3 + column][j] + of[2] * g[6 + column][j]);
            }
            for (k, out) in out.iter_mut().enumerate() {
                let (row, of) = (&rows[k / SIDE * 3..], G[k % SIDE]);
                (0..AT_A_TIME)
                    .for_each(|j| out[j] = (of[0] * row[0][j] + of[1] * row[1][j] + of[2] * row[2][j]) as f32);
            }
        });
        for (k, out) in out.iter().enumerate() {
            all[k * count + part * AT_A_TIME..][..filters.len()].copy_from_slice(&out[..filters.len()]);
        }
    }
    Tensor::from_shape(&[ALL, count], &all)
}

impl Kernel for Winograd {
    const NAME: &'static str = "OwnWinograd";

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn compute(&self, inputs: &[&[f32]], out: &mut [f32]) -> TractResult<()> {
        let [x, bias] = inputs else {
            bail!("{} inputs", inputs.len())
        };
        self.planes(x, bias, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::phases::axis;
    use super::*;

    fn ramp(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin()).collect()
    }

    #[test]
    fn tiles_give_what_plain_sums_give() {
        for (size, pads) in [
            ([12, 13], [0, 0, 2, 2]),
            ([17, 30], [1, 1, 1, 1]),
            ([9, 70], [2, 0, 5, 1]),
            ([40, 4], [0, 6, 0, 5]),
        ] {
            let (inputs, outputs, images) = (5, 3, 2);
            let result = [size[0] + pads[0] + pads[2] - 2, size[1] + pads[1] + pads[3] - 2];
            let filters = ramp(9 * inputs * outputs, 0.77);
            let w = Winograd {
                inputs,
                outputs,
                windows: Windows {
                    rows: axis(size[0], 3, 1, 1, [pads[0], pads[2]]),
                    columns: axis(size[1], 3, 1, 1, [pads[1], pads[3]]),
                },
                filters: Arc::new(transformed(&filters, inputs * outputs).expect("36")),
                tail: Tail::NONE,
                shape: tvec!(images, outputs, result[0], result[1]),
            };
            let x = ramp(images * inputs * size[0] * size[1], 0.31);
            let bias = [0.5, -1.0, 2.0];
            let mut y = vec![f32::NAN; images * outputs * result[0] * result[1]];
            w.planes(&x, &bias, &mut y);
            let at = |image: usize, c: usize, r: usize, q: usize| -> f32 {
                let place = |p: usize, before: usize, size: usize| p.checked_sub(before).filter(|p| *p < size);
                match (place(r, pads[0], size[0]), place(q, pads[1], size[1])) {
                    (Some(r), Some(q)) => x[((image * inputs + c) * size[0] + r) * size[1] + q],
                    _ => 0.0,
                }
            };
            for (k, y) in y.iter().enumerate() {
                let (q, rest) = (k % result[1], k / result[1]);
                let (r, rest) = (rest % result[0], rest / result[0]);
                let (m, image) = (rest % outputs, rest / outputs);
                let taps = (0..inputs).flat_map(|c| (0..9).map(move |t| (c, t)));
                let sum: f32 = taps
                    .map(|(c, t)| filters[(m * inputs + c) * 9 + t] * at(image, c, r + t / 3, q + t % 3))
                    .sum();
                // Sums of 45 products, each of them one at most.
                let wrong = (y - sum - bias[m]).abs();
                assert!(wrong < 1e-4, "{size:?} {pads:?} at {r}, {q}: {y} {}", sum + bias[m]);
            }
        }
    }
}
