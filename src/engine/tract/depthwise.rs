//! Convolutions in which every channel has a filter of its own.
//!
//! In a MobileNet those of tract take a quarter of the time, border by border and row by row. Here a plane is copied between borders of
//! zeros, parted by stride: phase `(a, b)` holds `x[r·s + a, c·s + b]`. Then a tap of the filter is a shift, and rows can be taken
//! for one long vector: `y[t] = b + Σ k·phase[t + shift]`. At the end of each row numbers come out that belong nowhere; they are left there.

use crate::math::vector::widest;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat};
use tract_onnx::tract_hir::internal::*;

/// Numbers that are computed at a time: as many as registers hold.
const LANES: usize = 64;

/// Along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Axis {
    input: usize,
    output: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    before: usize,
}

impl Axis {
    /// The phase of a tap, and how far it is shifted there.
    fn tap(&self, k: usize) -> (usize, usize) {
        let at = k * self.dilation;
        (at % self.stride, at / self.stride)
    }

    /// Numbers of a phase: as many as outputs, and those that taps reach beyond.
    fn len(&self) -> usize {
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

/// A depthwise convolution of planes of f32, channels before places. Inputs: `[…, C, H, W]`, weight `[C, 1, h, w]`, bias `[C]` or one number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct DepthWise {
    channels: usize,
    rows: Axis,
    columns: Axis,
    shape: TVec<usize>,
}

/// Puts it in the place of tract's where it can be.
///
/// # Errors
/// When the model is not sound.
pub fn replace(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes().len() {
        let node = model.node(id);
        let Some(conv) = node.op_as::<Conv>() else { continue };
        let op = DepthWise::of(conv, &model.node_input_facts(id)?, &node.outputs[0].fact);
        if let Some(op) = op {
            model.node_mut(id).op = Box::new(op);
        }
    }
    Ok(())
}

impl DepthWise {
    fn of(conv: &Conv, facts: &[&TypedFact], output: &TypedFact) -> Option<DepthWise> {
        let (pool, [x, kernel, bias]) = (&conv.pool_spec, facts) else {
            return None;
        };
        let channels = pool.input_channels;
        let each = conv.group == channels && conv.group == pool.output_channels && channels > 1;
        let floats = conv.q_params.is_none() && facts.iter().all(|f| f.datum_type == f32::datum_type());
        let (x, shape) = (x.shape.as_concrete()?, output.shape.as_concrete()?);
        let (filter, kernel) = (&pool.kernel_shape, kernel.shape.as_concrete()?);
        let plain = kernel[..2] == [channels, 1] && kernel[2..] == filter[..] && conv.kernel_fmt == KernelFormat::OIHW;
        let bias = [1, channels].contains(&bias.shape.volume().to_usize().ok()?);
        let places = (1..=2).contains(&filter.len()) && x.len() > filter.len();
        if !(each && floats && plain && bias && places) || pool.data_format.c_is_last() {
            return None;
        }
        let inputs = &x[x.len() - filter.len()..];
        let (dilations, strides) = (pool.dilations(), pool.strides());
        let computed = pool.padding.compute(inputs, filter, &dilations, &strides);
        let axis = |i: usize| Axis {
            input: inputs[i],
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
        let op = DepthWise {
            channels,
            rows,
            columns,
            shape: shape.into(),
        };
        (right && some && op.fits()).then_some(op)
    }

    /// Whether the phases are not much larger than the planes: strides, pads and dilations come from a file, and may be anything.
    fn fits(&self) -> bool {
        const TIMES: u128 = 8;
        let all = |of: &dyn Fn(&Axis) -> u128| of(&self.rows).saturating_mul(of(&self.columns));
        let phases = all(&|a| {
            let beyond = (a.kernel as u128 - 1) * a.dilation as u128 / a.stride as u128;
            (a.output as u128 + beyond).saturating_mul(a.stride as u128)
        });
        let planes = all(&|a| a.input as u128) + all(&|a| a.output as u128);
        phases <= TIMES * (planes + LANES as u128) && self.rows.stride.saturating_mul(self.columns.stride) <= LANES
    }

    /// For every tap of the filter where it reads: from the beginning of all phases.
    fn taps(&self, phase: usize) -> Vec<usize> {
        let of = |i: usize| {
            let (row, column) = (
                self.rows.tap(i / self.columns.kernel),
                self.columns.tap(i % self.columns.kernel),
            );
            (row.0 * self.columns.stride + column.0) * phase + row.1 * self.columns.len() + column.1
        };
        (0..self.rows.kernel * self.columns.kernel).map(of).collect()
    }

    /// Copies a plane to where its numbers lie in the phases; what is outside stays.
    fn part(&self, plane: &[f32], phases: &mut [f32], phase: usize) {
        let (stride, width) = (self.columns.stride, self.columns.len());
        for a in 0..self.rows.stride {
            let (rows, first) = self.rows.inside(a);
            for b in 0..stride {
                let (columns, left) = self.columns.inside(b);
                let start = (a * stride + b) * phase;
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

    fn planes(&self, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let (width, outputs) = (self.columns.len(), self.rows.output * self.columns.output);
        let long = (self.rows.output * width).next_multiple_of(LANES);
        let phase = self.rows.len() * width + LANES; // the last numbers are computed from what lies behind, and left
        let taps = self.taps(phase);
        let mut phases = vec![0.0f32; phase * self.rows.stride * self.columns.stride + long];
        let mut sums = vec![0.0f32; long];
        let inputs = self.rows.input * self.columns.input;
        for (i, (plane, y)) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)).enumerate() {
            let channel = i % self.channels;
            self.part(plane, &mut phases, phase);
            let filter = &weight[channel * taps.len()..][..taps.len()];
            widest!(filtered(
                &phases,
                (&taps, filter),
                bias[channel % bias.len()],
                &mut sums
            ));
            for (row, sums) in y.chunks_exact_mut(self.columns.output).zip(sums.chunks(width)) {
                row.copy_from_slice(&sums[..row.len()]);
            }
        }
    }
}

/// `y[t] = b + Σ k·x[t + tap]`
#[inline(always)]
fn filtered(x: &[f32], (taps, filter): (&[usize], &[f32]), bias: f32, y: &mut [f32]) {
    let (parts, _) = y.as_chunks_mut::<LANES>();
    for (i, part) in parts.iter_mut().enumerate() {
        let mut sums = [bias; LANES];
        for (tap, k) in taps.iter().zip(filter) {
            let Some(x) = x[tap + i * LANES..].first_chunk::<LANES>() else {
                return; // there is room for all taps
            };
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += k * x;
            }
        }
        *part = sums;
    }
}

impl Op for DepthWise {
    fn name(&self) -> StaticName {
        "OwnDepthWise".into()
    }
    op_as_typed_op!();
}

impl TypedOp for DepthWise {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].datum_type.fact(&self.shape)))
    }
    as_op!();
}

impl EvalOp for DepthWise {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let [x, weight, bias] = &inputs[..] else {
            bail!("{} inputs", inputs.len())
        };
        let mut y = Tensor::zero::<f32>(&self.shape)?;
        let (x, weight, bias) = (
            x.try_as_plain_ram()?,
            weight.try_as_plain_ram()?,
            bias.try_as_plain_ram()?,
        );
        self.planes(
            x.as_slice::<f32>()?,
            weight.as_slice::<f32>()?,
            bias.as_slice::<f32>()?,
            y.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?,
        );
        Ok(tvec!(y.into_tvalue()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One output after the other.
    fn plainly(d: &DepthWise, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let (h, w) = (d.rows, d.columns);
        let mut y = Vec::new();
        for (i, plane) in x.chunks_exact(h.input * w.input).enumerate() {
            let c = i % d.channels;
            for (r, q) in (0..h.output).flat_map(|r| (0..w.output).map(move |q| (r, q))) {
                let mut sum = bias[c % bias.len()];
                for (a, b) in (0..h.kernel).flat_map(|a| (0..w.kernel).map(move |b| (a, b))) {
                    let at = |axis: &Axis, place: usize, k: usize| {
                        let at = (place * axis.stride + k * axis.dilation).checked_sub(axis.before);
                        at.filter(|at| *at < axis.input)
                    };
                    if let (Some(r), Some(q)) = (at(&h, r, a), at(&w, q, b)) {
                        sum += weight[(c * h.kernel + a) * w.kernel + b] * plane[r * w.input + q];
                    }
                }
                y.push(sum);
            }
        }
        y
    }

    fn axis(input: usize, kernel: usize, stride: usize, dilation: usize, [before, after]: [usize; 2]) -> Axis {
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

    #[test]
    fn what_would_take_much_more_memory_than_its_planes_is_left_to_tract() {
        let fits = |rows: Axis| {
            let columns = axis(14, 3, 1, 1, [1, 1]);
            DepthWise {
                channels: 2,
                rows,
                columns,
                shape: tvec!(1, 2, rows.output, columns.output),
            }
            .fits()
        };
        assert!(fits(axis(14, 3, 1, 1, [1, 1])) && fits(axis(14, 5, 2, 1, [2, 2])) && fits(axis(7, 5, 1, 2, [4, 4])));
        assert!(!fits(axis(1, 1, 1 << 40, 1, [0, 0])));
        assert!(!fits(axis(1, 2, 1, 1 << 40, [1 << 39, 1 << 39])));
    }

    #[test]
    fn all_windows_give_what_plain_loops_give() {
        let mut cases = 0;
        for (input, kernel) in [(1, 1), (7, 3), (14, 5), (33, 3), (112, 3), (9, 2), (5, 7)] {
            for (stride, dilation) in [(1, 1), (2, 1), (3, 1), (1, 2), (2, 3)] {
                for pads in [[0, 0], [1, 1], [0, 1], [3, 2], [6, 6]] {
                    if (kernel - 1) * dilation + 1 > input + pads[0] + pads[1] {
                        continue;
                    }
                    let rows = axis(input, kernel, stride, dilation, pads);
                    let columns = axis(input + 2, kernel.min(3), stride.min(2), 1, [pads[1], pads[0]]);
                    let d = DepthWise {
                        channels: 3,
                        rows,
                        columns,
                        shape: tvec!(2, 3, rows.output, columns.output),
                    };
                    let ramp = |n: usize| -> Vec<f32> { (0..n).map(|i| (i as f32 * 0.37).sin()).collect() };
                    let x = ramp(6 * rows.input * columns.input);
                    let weight = ramp(3 * rows.kernel * columns.kernel + 5)[5..].to_vec();
                    let mut y = vec![f32::NAN; 6 * rows.output * columns.output];
                    d.planes(&x, &weight, &[0.5, -1.0, 2.0], &mut y);
                    for (a, b) in y.iter().zip(plainly(&d, &x, &weight, &[0.5, -1.0, 2.0])) {
                        assert!((a - b).abs() < 1e-4, "{a} {b}: {d:?}");
                    }
                    cases += 1;
                }
            }
        }
        assert!(cases > 100, "{cases}");
    }
}
