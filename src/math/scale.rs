//! Columns of f32 in units of powers of two, by which nothing is rounded.

use super::vector::largest;

/// The exponent of a column of zeros.
pub const NONE: i16 = i16::MIN;

/// `2^exponent`, exactly, for exponents of f64.
pub(super) fn power(exponent: i16) -> f64 {
    f64::from_bits(((i64::from(exponent) + 1023) as u64) << 52)
}

/// Divides by the power of two that brings the largest size into `[1, 2)`, whose exponent is returned; [`NONE`] for a column of zeros.
#[inline(always)]
pub(super) fn normalize(column: &mut [f32]) -> i16 {
    let largest = largest(column);
    if largest == 0.0 {
        return NONE;
    }
    // Bits of f64: biased exponent, no mantissa. Every f32, subnormal or not, is a normal f64.
    let exponent = (f64::from(largest).to_bits() >> 52) as i16 - 1023;
    let scale = power(exponent);
    if (1e-30..1e30).contains(&scale) {
        let inverse = (1.0 / scale) as f32;
        column.iter_mut().for_each(|x| *x *= inverse);
    } else {
        column.iter_mut().for_each(|x| *x = (f64::from(*x) / scale) as f32);
    }
    exponent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_any_size_come_back_from_their_unit() {
        for size in [1e-45f32, 1e-38, 3e-7, 1.0, 1.99, 6e4, 3.4e38] {
            let column = [size, -size / 2.0, 0.0];
            let mut unit = column;
            let exponent = normalize(&mut unit);
            assert!((1.0..2.0).contains(&unit[0]), "{size}: {unit:?}");
            let back = unit.map(|x| (f64::from(x) * power(exponent)) as f32);
            assert_eq!(back, column);
        }
        assert_eq!(normalize(&mut [0.0, -0.0]), NONE);
    }
}
