//! Rounding of f32 to the numbers that float16 and bfloat16 have, half to even, in a way that compilers make vector loops of.
//!
//! A float16 keeps 10 bits after the leading one, a bfloat16 7: the lower 13 (16) bits of an f32 are rounded away by adding half of
//! their range, minus one unless the last bit kept is odd. Below 2⁻¹⁴ the numbers of float16 are multiples of 2⁻²⁴, which is the
//! spacing of f32 just above ½: adding ½ and taking it away rounds. From 65,520 on it is infinity.

/// The float16 nearest to `x`.
pub fn float16(x: f32) -> f32 {
    let size = x.abs();
    let bits = size.to_bits();
    let normal = f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff);
    let small = (size + 0.5) - 0.5;
    let near = if size < 6.103_515_6e-5 { small } else { normal };
    let all = if size >= 65_520.0 { f32::INFINITY } else { near };
    if x.is_nan() { x } else { all.copysign(x) }
}

/// The bfloat16 nearest to `x`.
pub fn bfloat16(x: f32) -> f32 {
    let bits = x.abs().to_bits();
    let near = f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & !0xffff);
    if x.is_nan() { x } else { near.copysign(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_number_is_rounded_as_the_types_do_it() {
        let mut all: Vec<u32> = (0..=u32::MAX / 9973).map(|i| i * 9973).collect();
        for near in [
            0.0f32,
            5.9604645e-8,
            2.980_232_2e-8,
            6.103_515_6e-5,
            1.0,
            2049.0,
            65_504.0,
            65_519.99,
            65_520.0,
            3.39e38,
        ] {
            all.extend((near.to_bits().saturating_sub(9)..near.to_bits() + 9).flat_map(|b| [b, b | 1 << 31]));
        }
        all.extend([
            f32::INFINITY.to_bits(),
            f32::NEG_INFINITY.to_bits(),
            f32::MAX.to_bits(),
            1,
        ]);
        for x in all.into_iter().map(f32::from_bits) {
            let (half, brain) = (half::f16::from_f32(x).to_f32(), half::bf16::from_f32(x).to_f32());
            if x.is_nan() {
                assert!(float16(x).is_nan() && bfloat16(x).is_nan());
            } else {
                assert_eq!(
                    (float16(x).to_bits(), bfloat16(x).to_bits()),
                    (half.to_bits(), brain.to_bits()),
                    "{x:e}"
                );
            }
        }
    }
}
