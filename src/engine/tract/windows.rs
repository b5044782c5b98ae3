//! Convolutions as products of matrices.
//!
//! For some rows of the result at a time, what all taps of the filters read is laid out as a matrix, `channels · taps` by places
//! (Chellapilla, Puri, Simard 2006, *High performance convolutional neural networks for document processing*: "im2col"), copied row by row from
//! phases (see [`super::phases`]). The filters, as they lie in the file, are the other matrix.

use super::kernel::Kernel;
use super::phases::Windows;
use super::tail::Tail;
use crate::math::decompose::{Layout, multiply_f32};
use std::cell::RefCell;
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_hir::internal::*;

/// With fewer filters, tract's are as fast: each number is copied for too few products.
const FILTERS: usize = 2;
/// Numbers that are laid out at a time: what a core's own cache holds,
const MOST: usize = 1 << 18;
/// but so many places in any case,
const LEAST: usize = 96;
/// if they are not more than this: how wide a plane is, a file says.
const LARGEST: u128 = 1 << 24;

/// A convolution of planes of f32, channels before places. Inputs as of [`Windows::of`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    groups: usize,
    /// Channels that a filter reads.
    inputs: usize,
    /// Filters of a group.
    outputs: usize,
    windows: Windows,
    tail: Tail,
    shape: TVec<usize>,
}

impl Columns {
    /// That of a convolution, where it is faster.
    pub fn of(conv: &Conv, windows: Windows, tail: Tail, shape: &[usize]) -> Option<Columns> {
        let groups = conv.group;
        let op = Columns {
            groups,
            inputs: conv.pool_spec.input_channels / groups,
            outputs: conv.pool_spec.output_channels / groups,
            windows,
            tail,
            shape: shape.into(),
        };
        let places = windows.columns.output.max(LEAST.min(windows.made())) as u128;
        let fits = op.depth() as u128 * places <= LARGEST;
        (op.outputs >= FILTERS && op.inputs > 0 && fits).then_some(op)
    }

    fn depth(&self) -> usize {
        self.inputs * self.windows.rows.kernel * self.windows.columns.kernel
    }

    fn planes(&self, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32], scratch: &mut Scratch) {
        let (windows, depth) = (&self.windows, self.depth());
        let (rows, columns, made) = (windows.rows.output, windows.columns.output, windows.made());
        let apart = windows.phase();
        let taps = windows.taps(apart);
        let band = (MOST / (depth * columns)).max(LEAST.div_ceil(columns)).min(rows);
        scratch.phases.clear();
        scratch.phases.resize(self.inputs * windows.phases() * apart, 0.0);
        scratch.matrix.resize(depth * band * columns, 0.0);
        let groups = x.chunks_exact(self.inputs * windows.read());
        for (group, (x, y)) in groups.zip(y.chunks_exact_mut(self.outputs * made)).enumerate() {
            let first = group % self.groups * self.outputs;
            let weight = &weight[first * depth..][..self.outputs * depth];
            for (plane, phases) in x
                .chunks_exact(windows.read())
                .zip(scratch.phases.chunks_exact_mut(windows.phases() * apart))
            {
                windows.part(plane, phases, apart);
            }
            for start in (0..rows).step_by(band) {
                let part = start..rows.min(start + band);
                let places = part.len() * columns;
                self.lay_out(scratch, &taps, part);
                let matrix = (&scratch.matrix[..depth * places], Layout::Rows(places));
                let y = &mut y[start * columns..];
                multiply_f32(
                    y,
                    made,
                    (weight, Layout::Rows(depth)),
                    matrix,
                    [self.outputs, depth, places],
                );
                for (m, y) in y.chunks_mut(made).enumerate().take(self.outputs) {
                    self.tail.of_all(&mut y[..places], bias[(first + m) % bias.len()]);
                }
            }
        }
    }

    /// What every tap of every channel reads for some rows of the result.
    fn lay_out(&self, scratch: &mut Scratch, taps: &[usize], rows: std::ops::Range<usize>) {
        let (width, columns) = (self.windows.columns.len(), self.windows.columns.output);
        let places = rows.len() * columns;
        let phases = scratch
            .phases
            .chunks_exact(self.windows.phases() * self.windows.phase());
        let all = phases.flat_map(|phases| taps.iter().map(|tap| &phases[tap + rows.start * width..]));
        for (from, to) in all.zip(scratch.matrix.chunks_exact_mut(places)) {
            match width == columns {
                true => to.copy_from_slice(&from[..places]),
                false => {
                    let each = from.chunks(width).zip(to.chunks_exact_mut(columns));
                    each.for_each(|(from, to)| to.copy_from_slice(&from[..columns]));
                }
            }
        }
    }
}

/// What is worked on.
#[derive(Default)]
struct Scratch {
    phases: Vec<f32>,
    matrix: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Kernel for Columns {
    const NAME: &'static str = "OwnColumns";

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn compute(&self, inputs: &[&[f32]], out: &mut [f32]) -> TractResult<()> {
        let [x, weight, bias] = inputs else {
            bail!("{} inputs", inputs.len())
        };
        SCRATCH.with_borrow_mut(|scratch| self.planes(x, weight, bias, out, scratch));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::phases;
    use super::*;

    #[test]
    fn all_windows_give_what_plain_loops_give() {
        let ramp = |n: usize, step: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * step).sin()).collect() };
        phases::each(|windows| {
            let (groups, inputs, outputs, images) = (2, 3, 4, 2);
            let (all, taps) = (groups * outputs, windows.rows.kernel * windows.columns.kernel);
            let op = Columns {
                groups,
                inputs,
                outputs,
                windows,
                tail: Tail::NONE,
                shape: tvec!(images, all, windows.rows.output, windows.columns.output),
            };
            let x = ramp(images * groups * inputs * windows.read(), 0.37);
            let (weight, bias) = (ramp(all * inputs * taps, 0.77), ramp(all, 1.3));
            let mut y = vec![f32::NAN; images * all * windows.made()];
            // What another convolution left.
            let mut scratch = Scratch {
                phases: vec![9.0; 1000],
                matrix: vec![9.0; 1000],
            };
            op.planes(&x, &weight, &bias, &mut y, &mut scratch);
            for (k, y) in y.iter().enumerate() {
                let (place, plane) = (k % windows.made(), k / windows.made());
                let (m, place) = (
                    plane % all,
                    (place / windows.columns.output, place % windows.columns.output),
                );
                let group = plane / outputs;
                let sum: f32 = (0..inputs * taps)
                    .map(|i| {
                        let plane = &x[(group * inputs + i / taps) * windows.read()..][..windows.read()];
                        let tap = (i % taps / windows.columns.kernel, i % taps % windows.columns.kernel);
                        weight[m * inputs * taps + i] * windows.at(plane, place, tap)
                    })
                    .sum();
                assert!((y - sum - bias[m]).abs() < 1e-4, "{y} {} at {k}: {op:?}", sum + bias[m]);
            }
        });
    }
}
