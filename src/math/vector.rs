//! Loops compiled for the vector instructions of the machine that runs them.
//!
//! The program is built for every x86-64, which has vectors of four f32 and no minimum of integers. The loops over all numbers
//! of all activations are worth more: `pulp` compiles them once more for AVX2 and picks at run time. Results are
//! the same bit for bit, since the compiler neither reorders sums of floats nor fuses products with sums.

/// Computes an expression with the widest vector instructions there are. Functions that it calls have to be
/// `#[inline(always)]` to gain.
macro_rules! widest {
    ($e:expr) => {{
        // What is called once only has no second body that the compiler might leave out of line.
        let once = Vec::<()>::new();
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                drop(once);
                $e
            },
        )
    }};
}
pub(crate) use widest;

/// True when no number is NaN or infinite.
pub fn all_finite(x: &[f32]) -> bool {
    // Without a branch within a part, so that it is a vector loop.
    widest!({
        x.chunks(1024)
            .all(|part| part.iter().fold(true, |all, x| all & x.is_finite()))
    })
}

/// How many numbers are NaN.
pub fn count_nan(x: &[f32]) -> u64 {
    let of = |part: &[f32]| u64::from(part.iter().map(|x| u32::from(x.is_nan())).sum::<u32>());
    widest!(x.chunks(1 << 20).map(of).sum())
}

/// The largest size of finite numbers; 0 for none. Without their signs, f32 sort like their bits.
#[inline(always)]
pub fn largest(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().fold(0, |most, x| most.max(x.to_bits() & i32::MAX as u32)))
}

/// Sum in f64, in eight strands: a fixed order that the compiler may still vectorize.
#[inline(always)]
pub fn sum_of(x: &[f32], term: impl Fn(f64) -> f64) -> f64 {
    let mut strands = [0.0f64; 8];
    let (parts, rest) = x.as_chunks::<8>();
    for part in parts {
        for (strand, &x) in strands.iter_mut().zip(part) {
            *strand += term(f64::from(x));
        }
    }
    strands.iter().sum::<f64>() + rest.iter().map(|&x| term(f64::from(x))).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_seen_wherever_it_lies() {
        let mut x = vec![1.0f32; 3000];
        assert!(all_finite(&x) && count_nan(&x) == 0 && all_finite(&[]));
        for (at, bad) in [(0, f32::NAN), (1500, f32::NEG_INFINITY), (2999, f32::NAN)] {
            x[at] = bad;
            assert!(!all_finite(&x[at..]));
        }
        assert_eq!(count_nan(&x), 2);
    }

    #[test]
    fn sizes_and_sums_are_those_of_plain_loops() {
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.7).sin() * 1e3 - 200.0).collect();
        let plain = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert_eq!((largest(&x), largest(&[]), largest(&[-0.0])), (plain, 0.0, 0.0));
        let sum: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((widest!(sum_of(&x, |x| x * x)) - sum).abs() < 1e-6 * sum);
        assert_eq!(sum_of(&x, |x| x), widest!(sum_of(&x, |x| x)));
    }
}
