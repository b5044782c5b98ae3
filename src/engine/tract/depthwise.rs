//! Convolutions in which every channel has a filter of its own.
//!
//! In a MobileNet those of tract take a quarter of the time, border by border and row by row. Here a plane is copied between borders of
//! zeros, parted by stride (see [`super::phases`]). Then a tap of the filter is a shift, and rows can be taken
//! for one long vector: `y[t] = b + Σ k·phase[t + shift]`. At the end of each row numbers come out that belong nowhere; they are left there.

use super::kernel::Kernel;
use super::phases::Windows;
use super::tail::Tail;
use crate::math::vector::widest;
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_hir::internal::*;

/// Numbers that are computed at a time: as many as registers hold.
const LANES: usize = 64;

/// A depthwise convolution of planes of f32, channels before places. Inputs: `[…, C, H, W]`, weight `[C, 1, h, w]`, bias `[C]` or one number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DepthWise {
    channels: usize,
    windows: Windows,
    tail: Tail,
    shape: TVec<usize>,
}

impl DepthWise {
    /// That of a convolution, if it is one.
    pub fn of(conv: &Conv, windows: Windows, tail: Tail, shape: &[usize]) -> Option<DepthWise> {
        let channels = conv.pool_spec.input_channels;
        let each = conv.group == channels && conv.group == conv.pool_spec.output_channels && channels > 1;
        each.then(|| DepthWise {
            channels,
            windows,
            tail,
            shape: shape.into(),
        })
    }

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

impl Kernel for DepthWise {
    const NAME: &'static str = "OwnDepthWise";

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn compute(&self, inputs: &[&[f32]], out: &mut [f32]) -> TractResult<()> {
        let [x, weight, bias] = inputs else {
            bail!("{} inputs", inputs.len())
        };
        self.planes(x, weight, bias, out);
        Ok(())
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
