//! How windows of a convolution lie in memory.
//!
//! A plane is copied between borders of zeros, parted by stride: phase `(a, b)` holds `x[r·s + a, c·s + b]`. Then what a tap of the filter
//! reads is the plane of a phase, shifted: for an output `(r, c)` it lies at `(r + i, c + j)`.

use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat};
use tract_onnx::tract_hir::internal::*;

/// Along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Axis {
    pub input: usize,
    pub output: usize,
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    /// Zeros before the first number.
    pub before: usize,
}

impl Axis {
    /// The phase of a tap, and how far it is shifted there.
    fn tap(&self, k: usize) -> (usize, usize) {
        let at = k * self.dilation;
        (at % self.stride, at / self.stride)
    }

    /// Numbers of a phase: as many as outputs, and those that taps reach beyond.
    pub fn len(&self) -> usize {
        self.output + (self.kernel - 1) * self.dilation / self.stride
    }

    /// Which places of a phase hold numbers of the input, and the input of the first.
    fn inside(&self, phase: usize) -> (std::ops::Range<usize>, usize) {
        let first = self.before.saturating_sub(phase).div_ceil(self.stride);
        let end = (self.input + self.before).saturating_sub(phase).div_ceil(self.stride);
        let end = end.min(self.len());
        (
            first.min(end)..end,
            (first * self.stride + phase).saturating_sub(self.before),
        )
    }
}

/// Windows of one or two axes; of one: rows are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Windows {
    pub rows: Axis,
    pub columns: Axis,
}

impl Windows {
    /// Those of a convolution of f32, channels before places, and the dimensions of its result. Its inputs are `[…, C, H, W]`, a weight
    /// `[M, C / groups, h, w]`, and a bias `[M]` or one number.
    pub fn of(conv: &Conv, facts: &[&TypedFact], output: &TypedFact) -> Option<(Windows, TVec<usize>)> {
        let (pool, [x, kernel, bias]) = (&conv.pool_spec, facts) else {
            return None;
        };
        let (inputs, outputs) = (pool.input_channels, pool.output_channels);
        let floats = conv.q_params.is_none() && facts.iter().all(|f| f.datum_type == f32::datum_type());
        let (x, shape) = (x.shape.as_concrete()?, output.shape.as_concrete()?);
        let (filter, kernel) = (&pool.kernel_shape, kernel.shape.as_concrete()?);
        let plain = kernel[..2] == [outputs, inputs / conv.group.max(1)]
            && kernel[2..] == filter[..]
            && conv.kernel_fmt == KernelFormat::OIHW;
        let bias = [1, outputs].contains(&bias.shape.volume().to_usize().ok()?);
        let places = (1..=2).contains(&filter.len()) && x.len() > filter.len();
        if !(floats && plain && bias && places) || pool.data_format.c_is_last() {
            return None;
        }
        let sizes = &x[x.len() - filter.len()..];
        let (dilations, strides) = (pool.dilations(), pool.strides());
        let computed = pool.padding.compute(sizes, filter, &dilations, &strides);
        let axis = |i: usize| Axis {
            input: sizes[i],
            output: computed[i].convoluted,
            kernel: filter[i],
            stride: strides[i],
            dilation: dilations[i],
            before: computed[i].pad_before,
        };
        let one = Axis {
            input: 1,
            output: 1,
            kernel: 1,
            stride: 1,
            dilation: 1,
            before: 0,
        };
        let last = filter.len() - 1;
        let (rows, columns) = (if last > 0 { axis(0) } else { one }, axis(last));
        let right = shape.ends_with(&computed.iter().map(|c| c.convoluted).collect::<Vec<_>>());
        let some = [rows, columns]
            .iter()
            .all(|a| a.kernel > 0 && a.input > 0 && a.output > 0 && a.stride > 0);
        let windows = Windows { rows, columns };
        (right && some && windows.fits()).then(|| (windows, shape.into()))
    }

    /// Whether the phases are not much larger than the planes: strides, pads and dilations come from a file, and may be anything.
    pub fn fits(&self) -> bool {
        const TIMES: u128 = 8;
        const MORE: u128 = 64;
        const STRIDES: usize = 64;
        let all = |of: &dyn Fn(&Axis) -> u128| of(&self.rows).saturating_mul(of(&self.columns));
        let phases = all(&|a| {
            let beyond = (a.kernel as u128 - 1) * a.dilation as u128 / a.stride as u128;
            (a.output as u128 + beyond).saturating_mul(a.stride as u128)
        });
        let planes = all(&|a| a.input as u128) + all(&|a| a.output as u128);
        phases <= TIMES * (planes + MORE) && self.rows.stride.saturating_mul(self.columns.stride) <= STRIDES
    }

    /// Numbers of a plane that is read.
    pub fn read(&self) -> usize {
        self.rows.input * self.columns.input
    }

    /// Numbers of a plane that is made.
    pub fn made(&self) -> usize {
        self.rows.output * self.columns.output
    }

    /// Numbers of a phase.
    pub fn phase(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// How many phases there are.
    pub fn phases(&self) -> usize {
        self.rows.stride * self.columns.stride
    }

    /// For every tap of the filter where it reads, from the beginning of all phases, which are so far apart.
    pub fn taps(&self, apart: usize) -> Vec<usize> {
        let of = |i: usize| {
            let (row, column) = (
                self.rows.tap(i / self.columns.kernel),
                self.columns.tap(i % self.columns.kernel),
            );
            (row.0 * self.columns.stride + column.0) * apart + row.1 * self.columns.len() + column.1
        };
        (0..self.rows.kernel * self.columns.kernel).map(of).collect()
    }

    /// Copies a plane to where its numbers lie in the phases, which are so far apart; what is outside stays.
    pub fn part(&self, plane: &[f32], phases: &mut [f32], apart: usize) {
        let (stride, width) = (self.columns.stride, self.columns.len());
        for a in 0..self.rows.stride {
            let (rows, first) = self.rows.inside(a);
            for b in 0..stride {
                let (columns, left) = self.columns.inside(b);
                let start = (a * stride + b) * apart;
                for (k, r) in rows.clone().enumerate() {
                    let from = &plane[(first + k * self.rows.stride) * self.columns.input..][..self.columns.input];
                    let from = &from[left.min(from.len())..];
                    let to = &mut phases[start + r * width..][columns.clone()];
                    match stride {
                        1 => to.copy_from_slice(&from[..to.len()]),
                        _ => to
                            .iter_mut()
                            .zip(from.iter().step_by(stride))
                            .for_each(|(t, f)| *t = *f),
                    }
                }
            }
        }
    }
}

/// An axis for tests.
#[cfg(test)]
pub fn axis(input: usize, kernel: usize, stride: usize, dilation: usize, [before, after]: [usize; 2]) -> Axis {
    let reach = (kernel - 1) * dilation + 1;
    Axis {
        input,
        output: (input + before + after - reach) / stride + 1,
        kernel,
        stride,
        dilation,
        before,
    }
}

/// All windows worth a test: `f` gets rows and columns.
#[cfg(test)]
pub fn each(mut f: impl FnMut(Windows)) {
    let mut cases = 0;
    for (input, kernel) in [(1, 1), (7, 3), (14, 5), (33, 3), (112, 3), (9, 2), (5, 7)] {
        for (stride, dilation) in [(1, 1), (2, 1), (3, 1), (1, 2), (2, 3)] {
            for pads in [[0, 0], [1, 1], [0, 1], [3, 2], [6, 6]] {
                if (kernel - 1) * dilation + 1 > input + pads[0] + pads[1] {
                    continue;
                }
                let rows = axis(input, kernel, stride, dilation, pads);
                let columns = axis(input + 2, kernel.min(3), stride.min(2), 1, [pads[1], pads[0]]);
                f(Windows { rows, columns });
                cases += 1;
            }
        }
    }
    assert!(cases > 100, "{cases}");
}

#[cfg(test)]
impl Windows {
    /// What output `(r, c)` reads by tap `(i, j)`; 0 outside.
    pub fn at(&self, plane: &[f32], (r, c): (usize, usize), (i, j): (usize, usize)) -> f32 {
        let at = |axis: &Axis, place: usize, k: usize| {
            let at = (place * axis.stride + k * axis.dilation).checked_sub(axis.before);
            at.filter(|at| *at < axis.input)
        };
        match (at(&self.rows, r, i), at(&self.columns, c, j)) {
            (Some(r), Some(c)) => plane[r * self.columns.input + c],
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_take_much_more_memory_than_its_planes_is_left_to_tract() {
        let fits = |rows: Axis| {
            let columns = axis(14, 3, 1, 1, [1, 1]);
            Windows { rows, columns }.fits()
        };
        assert!(fits(axis(14, 3, 1, 1, [1, 1])) && fits(axis(14, 5, 2, 1, [2, 2])) && fits(axis(7, 5, 1, 2, [4, 4])));
        assert!(!fits(axis(1, 1, 1 << 40, 1, [0, 0])));
        assert!(!fits(axis(1, 2, 1, 1 << 40, [1 << 39, 1 << 39])));
    }
}
