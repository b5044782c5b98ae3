//! Quantization: parameters and codes with the numerics of ONNX Runtime.
//!
//! `x ≈ scale · (q − zero_point)`, `q = clamp(round_half_even(x / scale) + zero_point)`; the division is done in f32, as
//! `QuantizeLinear` does it. Parameters as in ONNX Runtime's `quant_utils.compute_scale_zp` (read in 1.31): the range is
//! widened to hold zero, `scale = (max − min) / (qmax − qmin)` in f64 and then rounded to f32, `zero_point =
//! round_half_even(qmin − min/scale)`; a scale below the smallest normal f32 becomes 1.
//!
//! Departures: the zero point of a symmetric unsigned kind stays in the middle even for an all-zero channel (there it is 0
//! in ONNX Runtime, which its own QLinearConv refuses beside channels of 128); 4-bit symmetric is ±7, not −8..7 with a
//! saturated top; NaN and infinities among constants are errors, not codes.

use anyhow::{Result, bail, ensure};

/// Kinds of integers that codes may have: their limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IntKind {
    /// 0 to 15.
    U4,
    /// −8 to 7.
    S4,
    /// 0 to 127, kept in 8 bits: sums of two products with 8 bits do not saturate int16 on CPUs without VNNI.
    U7,
    /// −63 to 63, kept in 8 bits, for the same reason.
    S7,
    /// 0 to 255.
    U8,
    /// −128 to 127.
    S8,
    /// 0 to 65,535.
    U16,
    /// −32,768 to 32,767.
    S16,
    /// All of i32: biases.
    S32,
}

impl IntKind {
    /// The least and the largest code.
    pub fn limits(self) -> (i32, i32) {
        match self {
            IntKind::U4 => (0, 15),
            IntKind::S4 => (-8, 7),
            IntKind::U7 => (0, 127),
            IntKind::S7 => (-63, 63),
            IntKind::U8 => (0, 255),
            IntKind::S8 => (-128, 127),
            IntKind::U16 => (0, 65_535),
            IntKind::S16 => (-32_768, 32_767),
            IntKind::S32 => (i32::MIN, i32::MAX),
        }
    }

    /// The least code.
    pub fn qmin(self) -> i32 {
        self.limits().0
    }

    /// The largest code.
    pub fn qmax(self) -> i32 {
        self.limits().1
    }

    /// The limits of symmetric codes: for signed kinds `(−qmax, qmax)`, so that −128 · −128 never occurs.
    pub fn symmetric_limits(self) -> (i32, i32) {
        match self.limits() {
            (0, qmax) => (0, qmax),
            (_, qmax) => (-qmax, qmax),
        }
    }

    /// Steps between the least and the largest code.
    pub fn steps(self) -> f64 {
        f64::from(self.qmax()) - f64::from(self.qmin())
    }

    /// Whether codes may be negative.
    pub fn signed(self) -> bool {
        self.qmin() < 0
    }
}

/// How real numbers and codes correspond: `x = scale · (q − zero_point)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Distance between neighbouring codes, in units of the values; a positive normal f32.
    pub scale: f32,
    /// The code of 0.
    pub zero_point: i32,
    /// Which codes there are.
    pub kind: IntKind,
}

impl Affine {
    /// Parameters for values in `[min, max]`, widened to hold zero; an error when a bound is not finite or they are crossed.
    pub fn asymmetric(min: f32, max: f32, kind: IntKind) -> Result<Affine> {
        ensure!(min.is_finite() && max.is_finite(), "cannot quantize the range {min} to {max}");
        ensure!(min <= max, "the range {min} to {max} is empty");
        let (min, max) = (f64::from(min.min(0.0)), f64::from(max.max(0.0)));
        let scale = (max - min) / kind.steps();
        if scale < f64::from(f32::MIN_POSITIVE) {
            return Ok(Affine { scale: 1.0, zero_point: 0, kind });
        }
        let (qmin, qmax) = (f64::from(kind.qmin()), f64::from(kind.qmax()));
        let zero_point = (qmin - min / scale).round_ties_even().clamp(qmin, qmax) as i32;
        Ok(Affine { scale: scale as f32, zero_point, kind })
    }

    /// Parameters for values in `[−absmax, absmax]`: zero point 0 for signed kinds (int8: codes ±127), the middle, 128 for
    /// uint8, for unsigned ones. An error when `absmax` is negative or not finite.
    pub fn symmetric(absmax: f32, kind: IntKind) -> Result<Affine> {
        ensure!(absmax.is_finite() && absmax >= 0.0, "cannot quantize the range ±{absmax}");
        let (qmin, qmax) = kind.symmetric_limits();
        let (qmin, qmax) = (f64::from(qmin), f64::from(qmax));
        let scale = 2.0 * f64::from(absmax) / (qmax - qmin);
        let scale = if scale < f64::from(f32::MIN_POSITIVE) { 1.0 } else { scale as f32 };
        Ok(Affine { scale, zero_point: ((qmin + qmax) / 2.0).round_ties_even() as i32, kind })
    }

    /// The values that the least and the largest code stand for.
    pub fn range(&self) -> (f32, f32) {
        (self.dequantize(self.kind.qmin()), self.dequantize(self.kind.qmax()))
    }

    /// The code of `x`, saturated; infinities saturate too, NaN gives the zero point.
    pub fn quantize(&self, x: f32) -> i32 {
        let (qmin, qmax) = self.kind.limits();
        if self.kind == IntKind::S32 {
            let code = f64::from(x / self.scale).round_ties_even() + f64::from(self.zero_point);
            return code as i32;
        }
        let (low, high) = ((qmin - self.zero_point) as f32, (qmax - self.zero_point) as f32);
        self.zero_point + round_half_even((x / self.scale).max(low).min(high)) as i32
    }

    /// The value of a code: `scale · (q − zero_point)`.
    pub fn dequantize(&self, code: i32) -> f32 {
        (i64::from(code) - i64::from(self.zero_point)) as f32 * self.scale
    }

    /// What `x` becomes when quantized and dequantized.
    pub fn round_trip(&self, x: f32) -> f32 {
        self.dequantize(self.quantize(x))
    }

    /// Codes of a slice; an error when a value is not finite or the kind does not fit into u8.
    pub fn quantize_u8(&self, values: &[f32]) -> Result<Vec<u8>> {
        self.codes(values, |code| code as u8, (0, 255))
    }

    /// Codes of a slice; an error when a value is not finite or the kind does not fit into i8.
    pub fn quantize_i8(&self, values: &[f32]) -> Result<Vec<i8>> {
        self.codes(values, |code| code as i8, (-128, 127))
    }

    /// Codes of a slice, of any kind; an error when a value is not finite.
    pub fn quantize_i32(&self, values: &[f32]) -> Result<Vec<i32>> {
        self.codes(values, |code| code, (i32::MIN, i32::MAX))
    }

    fn codes<T>(
        &self,
        values: &[f32],
        narrow: impl Fn(i32) -> T,
        (low, high): (i32, i32),
    ) -> Result<Vec<T>> {
        let (qmin, qmax) = self.kind.limits();
        ensure!(low <= qmin && qmax <= high, "{:?} does not fit into {low}..{high}", self.kind);
        all_finite(values)?;
        Ok(values.iter().map(|&x| narrow(self.quantize(x))).collect())
    }

    /// Values of a slice of codes of any integer type that fits into i32.
    pub fn dequantize_all<T: Copy + Into<i32>>(&self, codes: &[T]) -> Vec<f32> {
        codes.iter().map(|&code| self.dequantize(code.into())).collect()
    }
}

/// An error that names the first value that is not finite, and its place.
pub(super) fn all_finite(values: &[f32]) -> Result<()> {
    match values.iter().position(|x| !x.is_finite()) {
        Some(i) => bail!("value {i} of {} is {}: it cannot be quantized", values.len(), values[i]),
        None => Ok(()),
    }
}

/// Rounds to whole numbers, ties to even, for `|x| < 2²²`: adding 1.5·2²³ leaves no bits for the fraction. The same as
/// `f32::round_ties_even`, which is a call on CPUs without SSE 4.1, where this is a vector loop.
pub(super) fn round_half_even(x: f32) -> f32 {
    const WHOLE: f32 = 12_582_912.0;
    (x + WHOLE) - WHOLE
}

#[cfg(test)]
mod tests {
    use super::*;
    use IntKind::*;

    const KINDS: [IntKind; 9] = [U4, S4, U7, S7, U8, S8, U16, S16, S32];

    #[test]
    fn asymmetric_parameters_are_those_of_onnx_runtime() {
        // Printed by compute_scale_zp of onnxruntime 1.31.1.
        for (min, max, kind, scale, zero_point) in ORACLE_ASYMMETRIC {
            let affine = Affine::asymmetric(min, max, kind).expect("finite");
            assert_eq!((affine.scale.to_bits(), affine.zero_point), (scale, zero_point), "{min} {max} {kind:?}");
        }
    }
}
