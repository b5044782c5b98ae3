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
    /// −4 to 3.
    S3,
    /// −8 to 7.
    S4,
    /// −16 to 15.
    S5,
    /// −32 to 31.
    S6,
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
            IntKind::S3 => (-4, 3),
            IntKind::S4 => (-8, 7),
            IntKind::S5 => (-16, 15),
            IntKind::S6 => (-32, 31),
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

    /// Bits that a code is stored in.
    pub fn bits(self) -> u32 {
        match self {
            IntKind::S3 => 3,
            IntKind::U4 | IntKind::S4 => 4,
            IntKind::S5 => 5,
            IntKind::S6 => 6,
            IntKind::U7 | IntKind::S7 | IntKind::U8 | IntKind::S8 => 8,
            IntKind::U16 | IntKind::S16 => 16,
            IntKind::S32 => 32,
        }
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
        ensure!(
            min.is_finite() && max.is_finite(),
            "cannot quantize the range {min} to {max}"
        );
        ensure!(min <= max, "the range {min} to {max} is empty");
        let (min, max) = (f64::from(min.min(0.0)), f64::from(max.max(0.0)));
        let scale = (max - min) / kind.steps();
        if scale < f64::from(f32::MIN_POSITIVE) {
            return Ok(Affine {
                scale: 1.0,
                zero_point: 0,
                kind,
            });
        }
        let (qmin, qmax) = (f64::from(kind.qmin()), f64::from(kind.qmax()));
        let zero_point = (qmin - min / scale).round_ties_even().clamp(qmin, qmax) as i32;
        Ok(Affine {
            scale: scale as f32,
            zero_point,
            kind,
        })
    }

    /// Parameters for values in `[−absmax, absmax]`: zero point 0 for signed kinds (int8: codes ±127), the middle, 128 for
    /// uint8, for unsigned ones. An error when `absmax` is negative or not finite.
    pub fn symmetric(absmax: f32, kind: IntKind) -> Result<Affine> {
        ensure!(
            absmax.is_finite() && absmax >= 0.0,
            "cannot quantize the range ±{absmax}"
        );
        let (qmin, qmax) = kind.symmetric_limits();
        let (qmin, qmax) = (f64::from(qmin), f64::from(qmax));
        let scale = 2.0 * f64::from(absmax) / (qmax - qmin);
        let scale = if scale < f64::from(f32::MIN_POSITIVE) {
            1.0
        } else {
            scale as f32
        };
        Ok(Affine {
            scale,
            zero_point: ((qmin + qmax) / 2.0).round_ties_even() as i32,
            kind,
        })
    }

    /// The values that the least and the largest code stand for.
    pub fn range(&self) -> (f32, f32) {
        (self.dequantize(self.kind.qmin()), self.dequantize(self.kind.qmax()))
    }

    /// The code of `x`, saturated; infinities saturate too, NaN gives the least code.
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

    fn codes<T>(&self, values: &[f32], narrow: impl Fn(i32) -> T, (low, high): (i32, i32)) -> Result<Vec<T>> {
        let (qmin, qmax) = self.kind.limits();
        ensure!(
            low <= qmin && qmax <= high,
            "{:?} does not fit into {low}..{high}",
            self.kind
        );
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
#[inline(always)]
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
        // Printed by compute_scale_zp of onnxruntime 1.31.1: min, max, kind, bits of the scale, zero point.
        let cases: [(f32, f32, IntKind, u32, i32); 28] = [
            (-1.0, 1.0, U8, 0x3c008081, 128),
            (-1.0, 1.0, S8, 0x3c008081, 0),
            (0.0, 6.0, U8, 0x3cc0c0c1, 0),
            (0.0, 6.0, S8, 0x3cc0c0c1, -128),
            (-0.3, 2.7, U8, 0x3c40c0c1, 26),
            (-0.3, 2.7, S8, 0x3c40c0c1, -102),
            (0.5, 3.0, U8, 0x3c40c0c1, 0),
            (0.5, 3.0, S8, 0x3c40c0c1, -128),
            (-4.0, -1.0, U8, 0x3c808081, 255),
            (-4.0, -1.0, S8, 0x3c808081, 127),
            (-0.1, 0.0, U8, 0x39cd9a67, 255),
            (-0.1, 0.0, S8, 0x39cd9a67, 127),
            (0.0, 0.0, U8, 0x3f800000, 0),
            (0.0, 0.0, S8, 0x3f800000, 0),
            (-3e+38, 3e+38, U8, 0x7be2947a, 128),
            (-3e+38, 3e+38, S8, 0x7be2947a, 0),
            (-1e+30, 1.0, U8, 0x6d4abd88, 255),
            (-1e+30, 1.0, S8, 0x6d4abd88, 127),
            (-2.5, 0.5, U8, 0x3c40c0c1, 212),
            (-2.5, 0.5, S8, 0x3c40c0c1, 84),
            (-2.5, 0.5, U16, 0x384000c0, 54612),
            (-2.5, 0.5, S16, 0x384000c0, 21844),
            (-0.731_058_6, 0.99, U8, 0x3bdd28cf, 108),
            (-0.731_058_6, 0.99, S8, 0x3bdd28cf, -20),
            (-0.731_058_6, 0.99, U16, 0x37dc4c82, 27837),
            (-0.731_058_6, 0.99, S16, 0x37dc4c82, -4931),
            (0.0, 1e-36, U8, 0x3f800000, 0),
            (0.0, 1e-36, S8, 0x3f800000, 0),
        ];
        for (min, max, kind, scale, zero_point) in cases {
            let affine = Affine::asymmetric(min, max, kind).expect("finite");
            let got = (affine.scale.to_bits(), affine.zero_point);
            assert_eq!(got, (scale, zero_point), "{min} {max} {kind:?}");
        }
    }

    #[test]
    fn symmetric_parameters_are_those_of_onnx_runtime() {
        let cases: [(f32, IntKind, u32, i32); 14] = [
            (1.0, U8, 0x3c008081, 128),
            (1.0, S8, 0x3c010204, 0),
            (0.1, U8, 0x3a4d9a67, 128),
            (0.1, S8, 0x3a4e69a0, 0),
            (0.0, S8, 0x3f800000, 0),
            (1e-41, S8, 0x3f800000, 0),
            (3e+38, U8, 0x7be2947a, 128),
            (3e+38, S8, 0x7be378d8, 0),
            (2.7182817, U8, 0x3caea6fb, 128),
            (2.7182817, S8, 0x3caf5702, 0),
            (2.7182817, U16, 0x38adf902, 32768),
            (2.7182817, S16, 0x38adf9b0, 0),
            (1e-30, U8, 0x0a22e545, 128),
            (1e-30, S8, 0x0a238973, 0),
        ];
        for (absmax, kind, scale, zero_point) in cases {
            let affine = Affine::symmetric(absmax, kind).expect("finite");
            assert_eq!(
                (affine.scale.to_bits(), affine.zero_point),
                (scale, zero_point),
                "{absmax}"
            );
        }
        assert_eq!(Affine::symmetric(0.0, U8).expect("finite").zero_point, 128);
        let one = |kind| Affine::symmetric(1.0, kind).expect("finite").scale;
        assert_eq!((one(S8), one(S7), one(S4)), (1.0 / 127.0, 1.0 / 63.0, 1.0 / 7.0));
    }

    #[test]
    fn rounding_is_half_to_even_and_saturates() {
        let affine = Affine {
            scale: 0.5,
            zero_point: 10,
            kind: U8,
        };
        let values = [0.0, -0.0, 0.25, 0.75, 1.25, -0.25, -0.75, 1e30, -1e30, f32::MAX, 1e-45];
        let codes = affine.quantize_u8(&values).expect("finite");
        assert_eq!(codes, [10, 10, 10, 12, 12, 10, 8, 255, 0, 255, 10]);
        let affine = Affine {
            scale: 2.0,
            zero_point: 0,
            kind: S8,
        };
        let codes = affine.quantize_i8(&[1.0, 3.0, 5.0, -1.0, -3.0, 300.0, -300.0]);
        assert_eq!(codes.expect("finite"), [0, 2, 2, 0, -2, 127, -128]);
        for x in [-4194303.5f32, -2.5, -0.5, 0.49999997, 0.5, 1.5, 2.5, 12345.5, 2000000.5] {
            assert_eq!(round_half_even(x), x.round_ties_even(), "{x}");
        }
        let codes = Affine {
            scale: 1.0,
            zero_point: 0,
            kind: S32,
        }
        .quantize_i32(&[2.5, 1e30, -1e30]);
        assert_eq!(codes.expect("finite"), [2, i32::MAX, i32::MIN]);
    }

    #[test]
    fn zero_is_exact_and_nothing_in_range_moves_more_than_half_a_step() {
        for kind in KINDS.into_iter().filter(|&kind| kind != S32) {
            for (min, max) in [(-1.0, 3.0), (0.0, 6.0), (2.0, 5.0), (-7.0, -2.0), (-1e-20, 1e-20)] {
                let affine = Affine::asymmetric(min, max, kind).expect("finite");
                assert_eq!(affine.round_trip(0.0), 0.0);
                let (low, high) = affine.range();
                for i in 0..=1000 {
                    let x = min.min(0.0) + (max.max(0.0) - min.min(0.0)) * i as f32 / 1000.0;
                    let inside = x.clamp(low, high);
                    let moved = (affine.round_trip(x) - inside).abs();
                    assert!(
                        moved <= affine.scale * 0.501 + x.abs() * 3e-7,
                        "{kind:?} {min} {max} {x}"
                    );
                    assert!((x - inside).abs() <= affine.scale * 0.51);
                }
            }
        }
    }

    #[test]
    fn codes_survive_the_way_there_and_back() {
        for kind in KINDS.into_iter().filter(|&kind| kind != S32) {
            let affine = Affine::asymmetric(-0.7, 1.9, kind).expect("finite");
            let codes: Vec<i32> = (kind.qmin()..=kind.qmax()).collect();
            let values = affine.dequantize_all(&codes);
            assert_eq!(affine.quantize_i32(&values).expect("finite"), codes);
        }
        let affine = Affine::asymmetric(-1.0, 1.0, U8).expect("finite");
        assert_eq!(affine.dequantize_all(&[128u8, 255]), [0.0, 127.0 * affine.scale]);
    }

    #[test]
    fn what_cannot_be_quantized_is_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(Affine::asymmetric(bad, 1.0, U8).is_err());
            assert!(Affine::asymmetric(-1.0, bad, U8).is_err());
            assert!(Affine::symmetric(bad, S8).is_err());
            let affine = Affine::symmetric(1.0, S8).expect("finite");
            let message = affine.quantize_i8(&[0.0, bad]).expect_err("not finite").to_string();
            assert!(message.contains("value 1 of 2"), "{message}");
        }
        assert!(Affine::asymmetric(1.0, -1.0, U8).is_err());
        assert!(Affine::symmetric(-1.0, S8).is_err());
        let affine = Affine::symmetric(1.0, S8).expect("finite");
        assert!(affine.quantize_u8(&[0.0]).is_err());
        assert!(Affine { kind: U8, ..affine }.quantize_i8(&[0.0]).is_err());
        assert!(affine.quantize_i8(&[]).expect("empty").is_empty());
    }
}
