//! Constants of a layer in integers: weights with one symmetric scale per output channel, biases in int32.
//!
//! Weights: `q = clamp(round_half_even(w / s_w))` in f32, codes ±qmax (−128 is not used, as in TFLite's specification).
//! Scale search: among 101 scales `f · absmax / qmax`, `f` from 1 to 0.2, the one of least `Σ h_i (w_i − s q_i)²`; where it is near the end, once
//! more from there. With
//! `h = diag G`, the mean squares of the inputs, this is the output error when inputs are uncorrelated.
//!
//! Biases: `q = round_half_even(b / (s_x s_w))`, no zero point. A channel whose weights are nearly zero has a tiny `s_w`,
//! and its bias would leave int32. ONNX Runtime enlarges the weight scale then (pull requests 22020 and 25278):
//! `s_x s_w ≥ 1.0001 · 2|b| / (2³² − 2)`. Weights must be quantized with the enlarged scale.

use anyhow::{Result, ensure};
use ndarray::{Array2, ArrayView2, Zip};
use rayon::prelude::*;

use super::affine::{Affine, IntKind, all_finite, round_half_even};
use super::vector::widest;

/// Scales tried beside the one of the largest weight.
const TRIES: u32 = 100;
/// The smallest scale tried, relative to that of the largest weight.
const SMALLEST: f64 = 0.2;

/// The symmetric scale of each row of `w` (channels × weights of one), from its largest size; 1 for a row of zeros.
/// An error when a weight is not finite.
pub fn channel_scales(w: ArrayView2<f32>, kind: IntKind) -> Result<Vec<f32>> {
    w.rows().into_iter().map(|row| scale_of(row.iter(), kind)).collect()
}

/// For each row of `w` (channels × weights of one) the scale of [`best_scale_diag`], all with the same importance.
pub fn best_channel_scales(w: ArrayView2<f32>, importance: Option<&[f64]>, kind: IntKind) -> Result<Vec<f32>> {
    let w = w.as_standard_layout();
    let rows: Vec<_> = w.rows().into_iter().collect();
    let best = |row: &ndarray::ArrayView1<f32>| best_scale_diag(row.as_slice().unwrap_or_default(), importance, kind);
    rows.par_iter().map(best).collect()
}

/// The symmetric scale of least weighted squared error for one row; of equals the larger.
///
/// `importance` (as long as the row, not negative, finite; `None`: all 1) weighs the squared errors. An error when a weight is
/// not finite, or the importance is not as said.
pub fn best_scale_diag(row: &[f32], importance: Option<&[f64]>, kind: IntKind) -> Result<f32> {
    if let Some(h) = importance {
        ensure!(h.len() == row.len(), "{} weights, {} importances", row.len(), h.len());
        let bad = h.iter().find(|h| !(h.is_finite() && **h >= 0.0));
        ensure!(bad.is_none(), "an importance is {}", bad.unwrap_or(&0.0));
    }
    let squared_error = |scale, enough| widest!(squared_error(row, importance, scale, kind, enough));
    let mut best = scale_of(row.iter(), kind)?;
    let mut least = squared_error(best, f64::INFINITY);
    loop {
        let first = best;
        for i in 1..=TRIES {
            let factor = 1.0 - (1.0 - SMALLEST) * f64::from(i) / f64::from(TRIES);
            let scale = (f64::from(first) * factor) as f32;
            if scale < f32::MIN_POSITIVE || least == 0.0 {
                return Ok(best);
            }
            // What is cut off grows as the scale shrinks: where that alone is too much, it is for all that follow.
            if i % 4 == 1 && cut_off(row, importance, scale, kind) > least {
                return Ok(best);
            }
            let error = squared_error(scale, least);
            if error < least {
                (best, least) = (scale, error);
            }
        }
        // Weights of inputs that hardly ever move may be hundreds of times as large as the others.
        if f64::from(best) > 2.0 * SMALLEST * f64::from(first) {
            return Ok(best);
        }
    }
}

/// The part of [`squared_error`] that comes from weights beyond the largest code.
fn cut_off(row: &[f32], importance: Option<&[f64]>, scale: f32, kind: IntKind) -> f64 {
    let end = scale * limits(kind).1;
    let beyond = row.iter().enumerate().filter(|(_, x)| x.abs() > end);
    beyond
        .map(|(i, x)| importance.map_or(1.0, |h| h[i]) * f64::from(x.abs() - end).powi(2))
        .sum()
}

/// `Σ h (w − s q)²` in f64, four strands; may stop as soon as it is above `enough`.
#[inline(always)]
fn squared_error(row: &[f32], importance: Option<&[f64]>, scale: f32, kind: IntKind, enough: f64) -> f64 {
    const PART: usize = 256;
    let (low, high) = limits(kind);
    let mut sum = 0.0;
    for (i, part) in row.chunks(PART).enumerate() {
        let error = |x: f32| f64::from(x - scale * round_half_even((x / scale).max(low).min(high)));
        let mut strands = [0.0f64; 4];
        match importance.map(|h| &h[i * PART..]) {
            Some(h) => part.iter().zip(h).enumerate().for_each(|(k, (&x, h))| {
                strands[k % 4] += h * error(x) * error(x);
            }),
            None => part.iter().enumerate().for_each(|(k, &x)| {
                strands[k % 4] += error(x) * error(x);
            }),
        }
        sum += strands.iter().sum::<f64>();
        if sum > enough {
            break;
        }
    }
    sum
}

fn scale_of<'a>(row: impl Iterator<Item = &'a f32>, kind: IntKind) -> Result<f32> {
    let mut absmax = 0.0f32;
    for &x in row {
        ensure!(x.is_finite(), "a weight is {x}: it cannot be quantized");
        absmax = absmax.max(x.abs());
    }
    Ok(Affine::symmetric(absmax, kind)?.scale)
}

fn limits(kind: IntKind) -> (f32, f32) {
    let (low, high) = kind.symmetric_limits();
    (low as f32, high as f32)
}

/// Codes of `w` (channels × weights of one), row `i` with `scales[i]` and zero point 0, saturated at `±qmax`.
///
/// An error when the kind is not signed with at most 8 bits, there are not as many scales as rows, a scale is not a positive
/// normal number, or a weight is not finite.
pub fn quantize_per_channel(w: ArrayView2<f32>, scales: &[f32], kind: IntKind) -> Result<Array2<i8>> {
    ensure!(
        kind.signed() && kind.qmax() <= 127,
        "{kind:?} weights do not fit into int8"
    );
    ensure!(
        w.nrows() == scales.len(),
        "{} channels, {} scales",
        w.nrows(),
        scales.len()
    );
    scales.iter().try_for_each(|&s| usable(s))?;
    let (low, high) = limits(kind);
    let mut codes = Array2::zeros(w.dim());
    for ((row, mut codes), &scale) in w.rows().into_iter().zip(codes.rows_mut()).zip(scales) {
        let mut finite = true;
        Zip::from(&mut codes).and(&row).for_each(|code: &mut i8, &x| {
            finite &= x.is_finite();
            *code = round_half_even((x / scale).max(low).min(high)) as i8;
        });
        ensure!(finite, "a weight is not finite: it cannot be quantized");
    }
    Ok(codes)
}

/// The values of codes as [`quantize_per_channel`] gives them: `scales[i] · codes[i, j]`.
///
/// An error when there are not as many scales as rows.
pub fn dequantize_per_channel(codes: ArrayView2<i8>, scales: &[f32]) -> Result<Array2<f32>> {
    ensure!(
        codes.nrows() == scales.len(),
        "{} rows, {} scales",
        codes.nrows(),
        scales.len()
    );
    let mut values = codes.mapv(f32::from);
    let rows = values.rows_mut().into_iter().zip(scales);
    rows.for_each(|(mut row, scale)| row *= *scale);
    Ok(values)
}

/// The scales of a bias: `input_scale · weight_scales[i]`, multiplied in f32 as ONNX Runtime does it.
pub fn bias_scales(input_scale: f32, weight_scales: &[f32]) -> Vec<f32> {
    weight_scales.iter().map(|&scale| input_scale * scale).collect()
}

/// Codes of a bias: `round_half_even(b_i / (input_scale · weight_scales[i]))`; one weight scale may serve all.
///
/// An error when counts do not fit, a number is not finite or not usable as a scale, or a code would leave int32: what
/// ONNX Runtime clips with a warning, and loses. [`bias_safe_scales`] prevents it.
pub fn quantize_bias(bias: &[f32], input_scale: f32, weight_scales: &[f32]) -> Result<Vec<i32>> {
    all_finite(bias)?;
    let scales = bias_scales(input_scale, weight_scales);
    scales.iter().try_for_each(|&s| usable(s))?;
    let scales = per_channel(&scales, bias.len())?;
    bias.iter()
        .zip(scales)
        .enumerate()
        .map(|(i, (&b, scale))| {
            let code = (f64::from(b) / f64::from(scale)).round_ties_even();
            let fits = code >= f64::from(i32::MIN) && code <= f64::from(i32::MAX);
            ensure!(fits, "bias {b} of channel {i} does not fit into int32 at scale {scale}");
            Ok(code as i32)
        })
        .collect()
}

/// Weight scales, enlarged where the bias would leave int32 otherwise (or where the product of scales is too small for f32).
///
/// As many as given: with one scale for all channels, the largest bias counts. Never smaller than given, and the given bits
/// where nothing is to do. An error when counts do not fit, or a number is not finite or not usable as a scale.
pub fn bias_safe_scales(bias: &[f32], input_scale: f32, weight_scales: &[f32]) -> Result<Vec<f32>> {
    const MARGIN: f64 = 1.0001;
    const CODES: f64 = 4_294_967_294.0;
    all_finite(bias)?;
    usable(input_scale)?;
    per_channel(weight_scales, bias.len())?;
    let absmax = bias.iter().fold(0.0f32, |m, b| m.max(b.abs()));
    let safe = weight_scales.iter().enumerate().map(|(i, &scale)| {
        usable(scale)?;
        let bias = if weight_scales.len() == 1 {
            absmax
        } else {
            bias[i].abs()
        };
        let least = MARGIN * (2.0 * f64::from(bias) / CODES).max(f64::from(f32::MIN_POSITIVE));
        let product = f64::from(input_scale) * f64::from(scale);
        let safe = if product < least {
            (least / f64::from(input_scale)) as f32
        } else {
            scale
        };
        ensure!(safe.is_finite(), "no weight scale makes the bias {bias} fit into int32");
        Ok(safe)
    });
    safe.collect()
}

fn usable(scale: f32) -> Result<()> {
    ensure!(
        scale.is_finite() && scale >= f32::MIN_POSITIVE,
        "{scale} is not usable as a scale"
    );
    Ok(())
}

/// One scale per channel: as given, or the only one repeated.
fn per_channel(scales: &[f32], channels: usize) -> Result<Vec<f32>> {
    match scales {
        [one] => Ok(vec![*one; channels]),
        _ => {
            ensure!(scales.len() == channels, "{channels} biases, {} scales", scales.len());
            Ok(scales.to_vec())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use IntKind::*;
    use ndarray::array;

    fn bell(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / 16777216.0 - 0.5
        };
        (0..n).map(|_| next() + next() + next() + next()).collect()
    }

    /// Weighted error of the codes that `quantize_per_channel` really gives.
    fn error(row: &[f32], h: &[f64], scale: f32, kind: IntKind) -> f64 {
        let w = ArrayView2::from_shape((1, row.len()), row).expect("one row");
        let codes = quantize_per_channel(w, &[scale], kind).expect("finite");
        let back = dequantize_per_channel(codes.view(), &[scale]).expect("one scale");
        row.iter()
            .zip(&back)
            .zip(h)
            .map(|((x, y), h)| h * f64::from(x - y).powi(2))
            .sum()
    }

    #[test]
    fn channels_are_quantized_by_themselves() {
        let w = array![[1.0f32, -0.5, 0.0], [0.0, 0.0, 0.0], [-2e-3, 1e-3, 2e-3]];
        let scales = channel_scales(w.view(), S8).expect("finite");
        assert_eq!(scales, [1.0 / 127.0, 1.0, 2e-3 / 127.0]);
        let codes = quantize_per_channel(w.view(), &scales, S8).expect("finite");
        assert_eq!(codes, array![[127, -64, 0], [0, 0, 0], [-127, 64, 127]]);
        let seven = channel_scales(w.view(), S7).expect("finite");
        let codes = quantize_per_channel(w.view(), &seven, S7).expect("finite");
        assert_eq!(codes.row(0).to_vec(), [63, -31, 0]);
        // A scale that is too small saturates at −127, never at −128.
        let codes = quantize_per_channel(w.view(), &[1e-3; 3], S8).expect("finite");
        assert_eq!(codes, array![[127, -127, 0], [0, 0, 0], [-2, 1, 2]]);
        assert_eq!(quantize_per_channel(w.t(), &[1e-3; 3], S8).expect("finite"), codes.t());
    }

    #[test]
    fn the_best_scale_is_the_least_of_all_tried_and_never_worse_than_absmax() {
        for (kind, seed) in [(S8, 1), (S7, 2), (S4, 3), (S4, 4)] {
            let mut row = bell(700, seed);
            row[13] = 4.0;
            let h: Vec<f64> = (0..700).map(|i| f64::from(i % 7)).collect();
            let widest = 4.0 / kind.qmax() as f32;
            for h in [None, Some(&h[..])] {
                let best = best_scale_diag(&row, h, kind).expect("finite");
                let ones = vec![1.0; 700];
                let measure = |scale| error(&row, h.unwrap_or(&ones), scale, kind);
                let least = (0..=TRIES)
                    .map(|i| measure((f64::from(widest) * (1.0 - 0.8 * f64::from(i) / 100.0)) as f32))
                    .fold(f64::INFINITY, f64::min);
                assert!(measure(best) <= least * 1.000001, "{kind:?}");
                assert!(measure(best) <= measure(widest));
            }
            assert!(best_scale_diag(&row, None, S4).expect("finite") < 0.8 * 4.0 / 7.0);
        }
    }

    #[test]
    fn importance_decides_which_weights_are_kept() {
        let mut row = bell(300, 5);
        row[0] = 10.0;
        let mut h = vec![1.0; 300];
        let even = best_scale_diag(&row, Some(&h), S4).expect("finite");
        h[0] = 1e9;
        assert_eq!(best_scale_diag(&row, Some(&h), S4).expect("finite"), 10.0 / 7.0);
        h[0] = 0.0;
        assert!(best_scale_diag(&row, Some(&h), S4).expect("finite") < even);
        // Nothing matters: a tie of all, so the largest.
        let nothing = best_scale_diag(&row, Some(&vec![0.0; 300]), S4).expect("finite");
        assert_eq!(nothing, 10.0 / 7.0);
    }

    #[test]
    fn edge_rows_have_a_scale() {
        assert_eq!(best_scale_diag(&[], None, S8).expect("empty"), 1.0);
        assert_eq!(best_scale_diag(&[0.0; 5], None, S8).expect("zeros"), 1.0);
        assert_eq!(best_scale_diag(&[-3.0], None, S8).expect("one"), 3.0 / 127.0);
        assert_eq!(best_scale_diag(&[1e-42; 3], None, S8).expect("subnormal"), 1.0);
        let tiny = best_scale_diag(&[2e-36, 1e-36], None, S8).expect("tiny");
        assert!(tiny >= f32::MIN_POSITIVE);
        let huge = best_scale_diag(&[1e30, 1.0, -3e38], None, S8).expect("huge");
        assert!(huge.is_finite() && huge > 1e36);
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(best_scale_diag(&[1.0, bad], None, S8).is_err());
            assert!(channel_scales(array![[1.0, bad]].view(), S8).is_err());
            assert!(quantize_per_channel(array![[1.0, bad]].view(), &[1.0], S8).is_err());
        }
        assert!(best_scale_diag(&[1.0], Some(&[f64::NAN]), S8).is_err());
        assert!(best_scale_diag(&[1.0], Some(&[-1.0]), S8).is_err());
        assert!(best_scale_diag(&[1.0], Some(&[]), S8).is_err());
        assert!(quantize_per_channel(array![[1.0]].view(), &[0.0], S8).is_err());
        assert!(quantize_per_channel(array![[1.0]].view(), &[1.0, 1.0], S8).is_err());
        assert!(quantize_per_channel(array![[1.0]].view(), &[1.0], U8).is_err());
    }

    #[test]
    fn scales_of_all_channels_do_not_depend_on_threads() {
        let w = Array2::from_shape_vec((40, 50), bell(2000, 9)).expect("40 × 50");
        let all = best_channel_scales(w.view(), None, S8).expect("finite");
        for (row, scale) in w.rows().into_iter().zip(&all) {
            assert_eq!(best_scale_diag(&row.to_vec(), None, S8).expect("finite"), *scale);
        }
        let turned = w.t().as_standard_layout().into_owned();
        assert_eq!(best_channel_scales(turned.t(), None, S8).expect("finite"), all);
    }

    #[test]
    fn biases_are_rounded_half_to_even_with_the_product_of_scales() {
        let codes = quantize_bias(&[0.25, 0.75, -0.25, 10.0, 0.0], 0.5, &[1.0; 5]).expect("fits");
        assert_eq!(codes, [0, 2, 0, 20, 0]);
        assert_eq!(quantize_bias(&[1.0, 2.0], 0.5, &[0.5]).expect("fits"), [4, 8]);
        assert_eq!(bias_scales(0.1, &[0.2, 0.3]), [0.1f32 * 0.2, 0.1 * 0.3]);
        assert!(quantize_bias(&[1.0, 2.0, 3.0], 0.5, &[0.5, 0.5]).is_err());
        assert!(quantize_bias(&[f32::NAN], 0.5, &[0.5]).is_err());
        assert!(quantize_bias(&[1.0], 1e-30, &[1e-30]).is_err());
    }

    #[test]
    fn a_bias_that_would_saturate_enlarges_the_weight_scale() {
        // The case of pull request 22020: bias 5 and −4.5, input scale 0.5, weight scale 7.843e-10.
        let (bias, given) = ([5.0, -4.5, 0.0, 1.0], [7.843e-10, 7.843e-10, 7.843e-10, 0.01]);
        assert!(quantize_bias(&bias, 0.5, &given).is_err());
        let safe = bias_safe_scales(&bias, 0.5, &given).expect("finite");
        assert_eq!(safe[2..], given[2..]);
        let codes = quantize_bias(&bias, 0.5, &safe).expect("fits");
        assert!((2_147_000_000..=2_147_483_647).contains(&codes[0]), "{codes:?}");
        for ((b, code), scale) in bias.iter().zip(&codes).zip(bias_scales(0.5, &safe)) {
            assert!((*b as f64 - *code as f64 * scale as f64).abs() <= scale as f64);
        }
        // adjust_single_weight_scale_if_needed of onnxruntime 1.31.1 gives the same bits.
        assert_eq!(safe[0].to_bits(), 0x31a0_0419);
        let one = bias_safe_scales(&bias, 0.5, &given[..1]).expect("finite");
        assert_eq!(one, safe[..1]);
        // A product of scales below f32 grows until it is a number.
        let safe = bias_safe_scales(&[0.0], 1e-20, &[1e-30]).expect("finite");
        assert_eq!(quantize_bias(&[0.0], 1e-20, &safe).expect("fits"), [0]);
        assert!(bias_safe_scales(&[f32::MAX], 1e-37, &[1.0]).is_err());
        assert!(bias_safe_scales(&[1.0, 2.0], 0.5, &[1.0, 1.0, 1.0]).is_err());
    }
}
