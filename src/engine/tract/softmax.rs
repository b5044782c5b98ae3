//! Softmax, `yᵢ = exp(xᵢ − max x) / Σⱼ exp(xⱼ − max x)`.
//!
//! tract's walks an axis that is not the last number by number, and calls the C library for every exponential: a third of the time of an edge
//! detector. Here columns are taken side by side, and exponentials by vectors.

use super::kernel::Kernel;
use crate::math::vector::widest;
use tract_onnx::tract_core::ops::nn::{Softmax, SoftmaxKind};
use tract_onnx::tract_hir::internal::*;

/// So many columns are taken side by side at most, that they stay in the cache from one pass over them to the next.
const COLUMNS: usize = 512;

/// Softmax over one axis, or several side by side. Input: f32 of the same dimensions as the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// How many numbers are summed,
    length: usize,
    /// and how many lie between one and the next.
    step: usize,
    shape: TVec<usize>,
}

impl Columns {
    /// That of an operator of tract's, if it is one.
    pub fn of(op: &Softmax, input: &TypedFact) -> Option<Columns> {
        let shape = input.shape.as_concrete()?;
        let (first, last) = (*op.axes.iter().min()?, *op.axes.iter().max()?);
        let together = last < shape.len() && last - first + 1 == op.axes.len();
        let plain = op.kind == SoftmaxKind::Softmax && input.datum_type == f32::datum_type();
        let product = |dims: &[usize]| dims.iter().product::<usize>();
        (together && plain && product(shape) > 0).then(|| Columns {
            length: product(&shape[first..=last]),
            step: product(&shape[last + 1..]),
            shape: shape.into(),
        })
    }
}

impl Kernel for Columns {
    const NAME: &'static str = "Softmax by columns";

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn compute(&self, inputs: &[&[f32]], out: &mut [f32]) -> TractResult<()> {
        let [x] = inputs else { bail!("{} inputs", inputs.len()) };
        let block = self.length * self.step;
        ensure!(
            x.len() == out.len() && x.len().is_multiple_of(block),
            "{} numbers",
            x.len()
        );
        let mut scratch = [
            vec![0.0f32; self.step.min(COLUMNS)],
            vec![0.0f32; self.step.min(COLUMNS)],
        ];
        for (x, y) in x.chunks_exact(block).zip(out.chunks_exact_mut(block)) {
            widest!(match self.step {
                1 => row(x, y),
                step => {
                    for from in (0..step).step_by(COLUMNS) {
                        columns(x, y, (from, step), &mut scratch);
                    }
                }
            });
        }
        Ok(())
    }
}

/// One row. Its sum is taken in eight strands.
#[inline(always)]
fn row(x: &[f32], y: &mut [f32]) {
    let most = x
        .iter()
        .fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most });
    y.iter_mut().zip(x).for_each(|(y, x)| *y = exp(x - most));
    let (parts, rest) = y.as_chunks::<8>();
    let mut strands = [0.0f32; 8];
    for part in parts {
        strands.iter_mut().zip(part).for_each(|(s, y)| *s += y);
    }
    let sum = strands.iter().sum::<f32>() + rest.iter().sum::<f32>();
    y.iter_mut().for_each(|y| *y /= sum);
}

/// The columns from one on, as many as the scratch holds; `step` numbers are a row of all.
#[inline(always)]
fn columns(x: &[f32], y: &mut [f32], (from, step): (usize, usize), [most, sums]: &mut [Vec<f32>; 2]) {
    let width = most.len().min(step - from);
    let (most, sums) = (&mut most[..width], &mut sums[..width]);
    most.fill(f32::NEG_INFINITY);
    sums.fill(0.0);
    for x in x.chunks_exact(step) {
        for (most, &x) in most.iter_mut().zip(&x[from..from + width]) {
            *most = if x > *most { x } else { *most };
        }
    }
    for (x, y) in x.chunks_exact(step).zip(y.chunks_exact_mut(step)) {
        let (x, y) = (&x[from..from + width], &mut y[from..from + width]);
        for ((y, x), (most, sum)) in y.iter_mut().zip(x).zip(most.iter().zip(sums.iter_mut())) {
            *y = exp(x - most);
            *sum += *y;
        }
    }
    for y in y.chunks_exact_mut(step) {
        y[from..from + width]
            .iter_mut()
            .zip(sums.iter())
            .for_each(|(y, sum)| *y /= sum);
    }
}

/// `eˣ` of a number that is not positive, to two units in the last place; what would be less than 1e-37 is 0. The power of two is the integer next to `x/ln 2`
/// (adding 1.5·2²³ leaves it in the low bits), the rest a polynomial of degree 6 (that of Cephes, `expf`).
#[inline(always)]
fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    const LEAST: f32 = -85.0;
    let within = if x < LEAST { LEAST } else { x };
    let shifted = within * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = within - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let p = p.iter().fold(1.987_569_1e-4, |sum, c| sum * r + c);
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x < LEAST { 0.0 } else { (p * r * r + r + 1.0) * power }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_right_to_two_units_in_the_last_place() {
        for i in 0..850_000 {
            let x = -(i as f32) * 1e-4;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 2.5e-7, "{x}: {error}");
        }
        assert_eq!([exp(0.0), exp(-90.0), exp(f32::NEG_INFINITY)], [1.0, 0.0, 0.0]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn any_axis_sums_to_one_as_the_definition_has_it() {
        for (dims, axes) in [
            (&[2usize, 7, 3][..], &[1usize][..]),
            (&[3, 21], &[1]),
            (&[2, 5, 700], &[1]),
            (&[4, 3, 5, 2], &[1, 2]),
            (&[6, 1], &[0]),
        ] {
            let n: usize = dims.iter().product();
            let x: Vec<f32> = (0..n).map(|i| (i * 7919 % 1013) as f32 * 0.03 - 9.0).collect();
            let op = Softmax {
                axes: axes.into(),
                ..Softmax::default()
            };
            let kernel = Columns::of(&op, &f32::fact(dims)).expect("one of ours");
            let mut y = vec![0.0; n];
            kernel.compute(&[&x], &mut y).expect("computes");
            let (length, step) = (kernel.length, kernel.step);
            for (k, &got) in y.iter().enumerate() {
                let first = k / (length * step) * length * step + k % step;
                let sum: f64 = (0..length).map(|i| f64::from(x[first + i * step] - x[k]).exp()).sum();
                assert!((f64::from(got) - 1.0 / sum).abs() < 1e-6, "{dims:?} {axes:?} {k}");
            }
        }
    }

    #[test]
    fn masked_rows_and_numbers_that_are_lost_come_out_as_they_do_elsewhere() {
        let all = |x: &[f32]| {
            let mut y = vec![0.0; x.len()];
            row(x, &mut y);
            y
        };
        assert_eq!(all(&[f32::NEG_INFINITY, 3.0, 3.0]), [0.0, 0.5, 0.5]);
        assert!(all(&[f32::NAN, 1.0]).iter().all(|y| y.is_nan()));
        assert!(all(&[f32::NEG_INFINITY; 2]).iter().all(|y| y.is_nan()));
    }
}
