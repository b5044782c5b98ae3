//! Weights and biases in integers.
//!
//! `ŵ = s_w[channel]·q`, `q` in ±127, and `b̂ = s_x·s_w[channel]·q` in int32, so that products and bias add up in one
//! accumulator. Trained nets have dead channels, weights near zero with a bias that still counts: their tiny `s_w` would
//! push the bias out of int32, so `s_w` is enlarged until the bias takes at most half of int32 (the rest is room for the sum).
//! A channel of zeros has no scale of its own; it takes the smallest one of the others.

use crate::analysis::sites::Site;
use crate::ir::{Model, Tensor};
use crate::math::affine::IntKind;
use crate::math::channel::{best_channel_scales, bias_safe_scales, bias_scales, channel_scales, dequantize_per_channel};
use crate::math::channel::{quantize_bias, quantize_per_channel};
use anyhow::{Context as _, Result};
use ndarray::{Array2, ArrayView2};

/// How weights are stored.
#[derive(Clone, Copy, Debug)]
pub struct Scheme {
    /// S8, or S7 for CPUs whose sums of two products saturate.
    pub kind: IntKind,
    /// One scale for each output channel.
    pub per_channel: bool,
    /// Choose each scale by least squared error.
    pub search: bool,
}

/// A weight in integers.
pub struct Weight {
    /// int8, with the dimensions of the original.
    pub codes: Tensor,
    /// One for each channel, or one for all.
    pub scales: Vec<f32>,
    /// `W − Ŵ`, rows are outputs.
    pub error: Array2<f32>,
    /// Signal to noise of the weights alone, dB.
    pub sqnr: f64,
}

/// Quantizes the weight of a site whose activation has the scale `input_scale`; `bias` are the numbers that will be added.
///
/// # Errors
/// When the weight or the bias is not finite.
pub fn quantize(model: &Model, site: &Site, bias: &[f32], input_scale: f32, scheme: Scheme) -> Result<Weight> {
    let mut w = site.matrix(model)?;
    w.mapv_inplace(|x| x * site.layout.scale);
    let flat = match scheme.per_channel {
        true => w.clone(),
        false => Array2::from_shape_vec((1, w.len()), w.iter().copied().collect())?,
    };
    let mut scales = match scheme.search {
        true => best_channel_scales(flat.view(), None, scheme.kind)?,
        false => channel_scales(flat.view(), scheme.kind)?,
    };
    fill_empty(flat.view(), &mut scales);
    let twice: Vec<f32> = bias.iter().map(|b| 2.0 * b).collect();
    let scales = bias_safe_scales(&twice, input_scale, &scales)?;
    let codes = quantize_per_channel(flat.view(), &scales, scheme.kind)?;
    let back = dequantize_per_channel(codes.view(), &scales)?.into_shape_with_order(w.dim())?;
    let error = &w - &back;
    let power = |m: &Array2<f32>| m.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    let sqnr = 10.0 * (power(&w) / power(&error)).log10();
    let codes = codes.mapv(f32::from).into_shape_with_order(w.dim())?;
    Ok(Weight {
        codes: to_i8(&site.tensor_of(model, codes.view())?)?,
        scales,
        error,
        sqnr,
    })
}

/// Rows of zeros take the smallest scale of the others.
fn fill_empty(w: ArrayView2<f32>, scales: &mut [f32]) {
    let empty: Vec<bool> = w.rows().into_iter().map(|r| r.iter().all(|x| *x == 0.0)).collect();
    let least = scales.iter().zip(&empty).filter(|(_, e)| !**e).map(|(s, _)| *s);
    let least = least.fold(f32::INFINITY, f32::min);
    let least = if least.is_finite() { least } else { 1.0 / 127.0 };
    scales.iter_mut().zip(empty).filter(|(_, e)| *e).for_each(|(s, _)| *s = least);
}

fn to_i8(codes: &Tensor) -> Result<Tensor> {
    let floats = codes.floats().context("codes are floats here")?;
    Ok(Tensor::new(codes.dims(), floats.iter().map(|&q| q as i8).collect()))
}

/// A bias in int32: codes and scales.
///
/// # Errors
/// When a bias is not finite, or does not fit because the weight's scales were not made for it.
pub fn quantize_bias_for(bias: &[f32], input_scale: f32, weight: &Weight) -> Result<(Vec<i32>, Vec<f32>)> {
    let codes = quantize_bias(bias, input_scale, &weight.scales)?;
    Ok((codes, bias_scales(input_scale, &weight.scales)))
}
