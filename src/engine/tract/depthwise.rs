//! Convolutions in which every channel has a filter of its own.
//!
//! In a MobileNet those of tract take a quarter of the time, border by border and row by row. Here a plane is copied between borders of
//! zeros, parted by stride (see [`super::phases`]). Then a tap of the filter is a shift, and rows can be taken
//! for one long vector: `y[t] = b + Σ k·phase[t + shift]`. At the end of each row numbers come out that belong nowhere; they are left there.

use super::phases::Windows;
use super::tail::{self, Tail};
use crate::math::vector::widest;
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_hir::internal::*;

/// Numbers that are computed at a time: as many as registers hold.
const LANES: usize = 64;

/// A depthwise convolution of planes of f32, channels before places. Inputs: `[…, C, H, W]`, weight `[C, 1, h, w]`, bias `[C]` or one number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DepthWise {
    channels: usize,
    windows: Windows,
    tail: Tail,
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
        let channels = conv.pool_spec.input_channels;
        let each = conv.group == channels && conv.group == conv.pool_spec.output_channels && channels > 1;
        let windows = Windows::of(conv, &model.node_input_facts(id)?, &node.outputs[0].fact);
        if let Some((windows, shape)) = windows.filter(|_| each) {
            let (tail, last) = Tail::behind(model, id)?;
            let op = DepthWise {
                channels,
                windows,
                tail,
                shape,
            };
            tail::put(model, &node.inputs.clone(), op, last)?;
        }
    }
    Ok(())
}

impl DepthWise {
    fn planes(&self, x: &[f32], weight: &[f32], bias: &[f32], y: &mut [f32]) {
        let (windows, width) = (&self.windows, self.windows.columns.len());
        let long = (windows.rows.output * width).next_multiple_of(LANES);
        let apart = windows.phase() + LANES; // the last numbers are computed from what lies behind, and left
        let taps = windows.taps(apart);
        let mut phases = vec![0.0f32; apart * windows.phases() + long];
        let mut sums = vec![0.0f32; long];
        let planes = x.chunks_exact(windows.read()).zip(y.chunks_exact_mut(windows.made()));
        for (i, (plane, y)) in planes.enumerate() {
            let channel = i % self.channels;
            windows.part(plane, &mut phases, apart);
            let filter = &weight[channel * taps.len()..][..taps.len()];
            widest!(filtered(
                &phases,
                (&taps, filter),
                (bias[channel % bias.len()], self.tail),
                &mut sums
            ));
            for (row, sums) in y.chunks_exact_mut(windows.columns.output).zip(sums.chunks(width)) {
                row.copy_from_slice(&sums[..row.len()]);
            }
        }
    }
}

/// `y[t] = b + Σ k·x[t + tap]`, and what is done to it
#[inline(always)]
fn filtered(x: &[f32], (taps, filter): (&[usize], &[f32]), (bias, tail): (f32, Tail), y: &mut [f32]) {
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
        *part = sums.map(|x| tail.of(x));
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
    use super::super::phases;
    use super::*;

    #[test]
    fn all_windows_give_what_plain_loops_give() {
        phases::each(|windows| {
            let taps = windows.rows.kernel * windows.columns.kernel;
            let d = DepthWise {
                channels: 3,
                windows,
                tail: Tail::NONE,
                shape: tvec!(2, 3, windows.rows.output, windows.columns.output),
            };
            let ramp = |n: usize| -> Vec<f32> { (0..n).map(|i| (i as f32 * 0.37).sin()).collect() };
            let (x, bias) = (ramp(6 * windows.read()), [0.5, -1.0, 2.0]);
            let weight = ramp(3 * taps + 5)[5..].to_vec();
            let mut y = vec![f32::NAN; 6 * windows.made()];
            d.planes(&x, &weight, &bias, &mut y);
            for (k, y) in y.iter().enumerate() {
                let (place, plane) = (k % windows.made(), k / windows.made());
                let place = (place / windows.columns.output, place % windows.columns.output);
                let read = &x[plane * windows.read()..][..windows.read()];
                let products = (0..taps).map(|t| {
                    let tap = (t / windows.columns.kernel, t % windows.columns.kernel);
                    weight[plane % 3 * taps + t] * windows.at(read, place, tap)
                });
                let sum = bias[plane % 3] + products.sum::<f32>();
                assert!((y - sum).abs() < 1e-4, "{y} {sum}: {d:?}");
            }
        });
    }
}
