//! Which range to quantize, chosen from a `Histogram`: all of it, all but a few percent, the one of least squared error,
//! or the one of least Kullback-Leibler divergence.
//!
//! **Squared error.** With steps of `s`, `u = x/s`, and `n = clamp(round(u))` the nearest code, the antiderivative of the
//! squared error `(u − n)²` is `F(u) = n/12 + (u − n)³/3`, continuous also where the codes end. A bin `[a, b]`, taken as uniform,
//! contributes `s² (F(b/s) − F(a/s)) / ((b − a)/s)` per value: exact, no sampling. Exact zeros have no error.
//!
//! **KL divergence** (Migacz 2017, *8-bit inference with TensorRT*): for a window of bins, `P` is its counts with all that
//! is outside added to the end bins; `Q` is what remains when the window alone is merged into as many levels as there are
//! codes, each level spread evenly over its bins that are not empty. The window of least `KL(P‖Q)` is chosen. There, the
//! window is `[0, T]` of absolute values; here it is `[L, H]` around zero. First both sides shrink in proportion, then each by
//! itself. Exact zeros are left out, as Migacz leaves out the first bin.

use super::affine::{Affine, IntKind};
use super::histogram::Histogram;

/// Ranges tried in one direction.
const TRIES: i32 = 128;
/// Each range tried is this much of the one before: the last is 2 % of the first.
const SHRINK: f64 = 0.97;

impl Histogram {
    /// Least and largest value; `None` when nothing was seen (as with all choosers here).
    pub fn minmax(&self) -> Option<(f32, f32)> {
        self.range.minmax()
    }

    /// The range that leaves out half of `100 − percent` percent of the values on each side: 99.99 is a usual choice.
    pub fn percentile_range(&self, percent: f64) -> Option<(f32, f32)> {
        let tail = (100.0 - percent) / 2.0;
        Some((self.percentile(tail)?, self.percentile(100.0 - tail)?))
    }

    /// The range, zero included, of the least mean squared error when quantized to `kind` with [`Affine::asymmetric`], among
    /// ranges that shrink in proportion and then by one side, twice. Never worse than [`Histogram::minmax`].
    pub fn mse_range(&self, kind: IntKind) -> Option<(f32, f32)> {
        let (min, max) = self.minmax()?;
        let (parts, count) = (self.parts(), self.count());
        let full = (min.min(0.0), max.max(0.0));
        let mut best = full;
        let mut least = mean_error(&parts, count, best, kind);
        // What is cut off grows as the range shrinks: where that alone is too much, it is for all that follow.
        let mut shrink = |best: &mut (f32, f32), narrower: &dyn Fn((f32, f32), f32) -> (f32, f32)| {
            for i in 0..TRIES {
                let range = narrower(*best, SHRINK.powi(i) as f32);
                if cut_off(&parts, range) / count.max(1) as f64 > least {
                    break;
                }
                let error = mean_error(&parts, count, range, kind);
                if error < least {
                    (*best, least) = (range, error);
                }
            }
        };
        shrink(&mut best, &|_, f| (full.0 * f, full.1 * f));
        for _ in 0..2 {
            shrink(&mut best, &|best, f| (best.0, full.1 * f));
            shrink(&mut best, &|best, f| (full.0 * f, best.1));
        }
        Some(best)
    }

    /// Mean of `(x − x̂)²` over the values seen, if quantized to `kind` with `Affine::asymmetric` of this range; in units of the
    /// values squared, estimated as above. 0 when nothing was seen, infinite for a range that cannot be quantized.
    pub fn expected_error(&self, range: (f32, f32), kind: IntKind) -> f64 {
        mean_error(&self.parts(), self.count(), range, kind)
    }

    /// The same for given parameters, symmetric ones for example.
    pub fn expected_error_of(&self, affine: &Affine) -> f64 {
        mean_error_of(&self.parts(), self.count(), affine)
    }

    /// Mean of the squares of the values seen, as if bins were uniform; 0 when nothing was seen.
    pub fn mean_square(&self) -> f64 {
        let one = |(a, b, n): (f64, f64, f64)| n * (a * a + a * b + b * b) / 3.0;
        self.parts().into_iter().map(one).sum::<f64>() / self.count().max(1) as f64
    }

    /// Bins that are not empty: lower edge, upper edge, count; edges are cut to the values seen, zeros are left out.
    fn parts(&self) -> Vec<(f64, f64, f64)> {
        let Some((min, max)) = self.minmax() else {
            return Vec::new();
        };
        let (first, counts) = self.bins();
        let (width, min, max) = (self.resolution(), f64::from(min), f64::from(max));
        let parts = (first..).zip(counts).map(|(i, n)| {
            let (low, high) = (f64::from(i) * width, f64::from(i + 1) * width);
            let n = if i == 0 { n - self.zeros } else { n };
            (low.max(min.min(high)), high.min(max.max(low)), n as f64)
        });
        parts.filter(|part| part.2 > 0.0).collect()
    }

    /// The range, cut to the values seen, of the least divergence for the codes of `kind`; of equals the wider. All of it when
    /// there are no more bins than codes.
    pub fn kl_range(&self, kind: IntKind) -> Option<(f32, f32)> {
        let (min, max) = self.minmax()?;
        let (first, mut counts) = self.bins();
        let levels = kind.steps() as usize + 1;
        let (zero, bins) = (first.unsigned_abs() as usize, counts.len());
        if zero < bins {
            counts[zero] -= self.zeros;
        }
        if bins <= levels || counts.iter().all(|&n| n == 0) {
            return Some((min, max));
        }
        let divergence = Divergence::new(counts.iter().map(|&n| n as f64).collect());
        let mut best = (0, bins);
        let mut least = divergence.of(best, levels);
        let mut attempt = |best: &mut (usize, usize), window: (usize, usize)| {
            let fits = window.1 - window.0 >= levels && window.0 <= zero && window.1 >= zero;
            if fits && window != *best {
                let d = divergence.of(window, levels);
                if d < least {
                    (*best, least) = (window, d);
                }
            }
        };
        // Bins left of zero and right of it that stay, of as many.
        let keep = |side: usize, i: i32| (side as f64 * f64::from(TRIES - i) / f64::from(TRIES)).round() as usize;
        let (left, right) = (zero, bins - zero);
        for i in 1..TRIES {
            attempt(&mut best, (left - keep(left, i), zero + keep(right, i)));
        }
        for i in 0..TRIES {
            let window = (best.0, zero + keep(right, i));
            attempt(&mut best, window);
        }
        for i in 0..TRIES {
            let window = (left - keep(left, i), best.1);
            attempt(&mut best, window);
        }
        let edge = |i: usize| ((i as f64 - zero as f64) * self.resolution()) as f32;
        Some((edge(best.0).max(min), edge(best.1).min(max)))
    }
}

fn mean_error(parts: &[(f64, f64, f64)], count: u64, (min, max): (f32, f32), kind: IntKind) -> f64 {
    match Affine::asymmetric(min, max, kind) {
        Ok(affine) => mean_error_of(parts, count, &affine),
        Err(_) => f64::INFINITY,
    }
}

fn mean_error_of(parts: &[(f64, f64, f64)], count: u64, affine: &Affine) -> f64 {
    let (qmin, qmax) = affine.kind.limits();
    let zero = f64::from(affine.zero_point);
    let (low, high) = (f64::from(qmin) - zero, f64::from(qmax) - zero);
    let step = f64::from(affine.scale);
    // Adding this leaves no bits for a fraction: the sum is rounded, half to even, without a call to the C library. Ranges
    // that would need more than 2^51 steps are cut to that, far beyond the last code.
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    const FAR: f64 = 2_251_799_813_685_248.0;
    let nearest = |u: f64| ((u.clamp(-FAR, FAR) + WHOLE) - WHOLE).clamp(low, high);
    let integral = |u: f64| {
        let n = nearest(u);
        n / 12.0 + (u - n) * (u - n) * (u - n) / 3.0
    };
    // Bins mostly touch: the end of one is where the next begins.
    let mut last = (f64::NAN, 0.0);
    let mut sum = 0.0;
    for &(a, b, n) in parts {
        let (a, b) = (a / step, b / step);
        // Narrow bins: the difference of integrals would cancel.
        if b - a < 1e-4 {
            let middle = (a + b) / 2.0;
            sum += n * (middle - nearest(middle)).powi(2);
            continue;
        }
        let begin = if last.0 == a { last.1 } else { integral(a) };
        last = (b, integral(b));
        sum += n * (last.1 - begin) / (b - a);
    }
    sum * step * step / count.max(1) as f64
}

/// A lower bound of the squared errors of values outside of a range, from the inner edges of their bins.
fn cut_off(parts: &[(f64, f64, f64)], (low, high): (f32, f32)) -> f64 {
    let (low, high) = (f64::from(low), f64::from(high));
    let one = |&(a, b, n): &(f64, f64, f64)| n * (low - b).max(a - high).max(0.0).powi(2);
    parts.iter().map(one).sum()
}

/// Running sums over bins, from which the divergence of any window follows without looking at its bins.
struct Divergence {
    counts: Vec<f64>,
    /// `[k]` of the first `k` bins: values, `n ln n`, bins that are not empty.
    sums: Vec<[f64; 3]>,
}

impl Divergence {
    fn new(counts: Vec<f64>) -> Self {
        let mut sums = vec![[0.0; 3]];
        let mut sum = [0.0; 3];
        for &n in &counts {
            sum = [sum[0] + n, sum[1] + entropy(n), sum[2] + f64::from(u8::from(n > 0.0))];
            sums.push(sum);
        }
        Divergence { counts, sums }
    }

    /// `KL(P‖Q)` in nats of a window of bins, two at least, merged into `levels`.
    fn of(&self, (start, end): (usize, usize), levels: usize) -> f64 {
        /// What an empty `Q` counts where `P` does not, in values: ONNX Runtime and MXNet take as much.
        const NEXT_TO_NOTHING: f64 = 1e-4;
        let between = |a: usize, b: usize, k: usize| self.sums[b][k] - self.sums[a][k];
        let bins = end - start;
        let total = self.sums[self.counts.len()][0];
        let mut p_log_p = between(start, end, 1);
        let mut q_total = 0.0;
        let mut p_log_q = 0.0;
        for level in 0..levels {
            let (a, b) = (start + level * bins / levels, start + (level + 1) * bins / levels);
            let inside = between(a, b, 0);
            let (mut p, mut used) = (inside, between(a, b, 2));
            // The end bins take what is outside.
            let ends = [
                (level == 0, start, self.sums[start][0]),
                (level + 1 == levels, end - 1, between(end, self.counts.len(), 0)),
            ];
            for (_, bin, outside) in ends.into_iter().filter(|end| end.0 && end.2 > 0.0) {
                let n = self.counts[bin];
                p += outside;
                p_log_p += entropy(n + outside) - entropy(n);
                used += f64::from(u8::from(n == 0.0));
            }
            if used > 0.0 {
                let q = (inside / used).max(NEXT_TO_NOTHING);
                p_log_q += p * q.ln();
                q_total += q * used;
            }
        }
        // Σ P/T ln((P/T) / (Q/T')), with both totals taken out of the sum.
        (p_log_p - p_log_q) / total + (q_total / total).ln()
    }
}

/// `n ln n`, 0 for none.
fn entropy(n: f64) -> f64 {
    if n > 0.0 { n * n.ln() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use IntKind::*;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as f32 / 16777216.0 - 0.5
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    /// Roughly normal, of deviation 1.
    fn bell(n: usize, seed: u64) -> Vec<f32> {
        random(12 * n, seed).chunks(12).map(|part| part.iter().sum()).collect()
    }

    fn histogram(values: &[f32]) -> Histogram {
        let mut h = Histogram::new();
        h.add(values);
        h
    }

    /// Mean squared error by quantizing every value.
    fn measured(values: &[f32], affine: &Affine) -> f64 {
        let error = |&x: &f32| f64::from(x - affine.round_trip(x)).powi(2);
        values.iter().map(error).sum::<f64>() / values.len() as f64
    }

    #[test]
    fn the_expected_error_is_the_measured_one() {
        let values = bell(40_000, 1);
        let relu: Vec<f32> = values.iter().map(|x| x.max(0.0)).collect();
        for values in [&values, &relu] {
            let h = histogram(values);
            for range in [(-4.0, 4.0), (-1.0, 1.5), (0.0, 2.0), (-9.0, 30.0), (-0.2, 0.1)] {
                for kind in [U8, S8, S7, S4] {
                    let affine = Affine::asymmetric(range.0, range.1, kind).expect("finite");
                    let (expected, real) = (h.expected_error(range, kind), measured(values, &affine));
                    assert!(
                        (expected / real - 1.0).abs() < 0.05,
                        "{range:?} {kind:?}: {expected} {real}"
                    );
                    assert_eq!(expected, h.expected_error_of(&affine));
                }
            }
            let affine = Affine::symmetric(3.0, S8).expect("finite");
            assert!((h.expected_error_of(&affine) / measured(values, &affine) - 1.0).abs() < 0.05);
        }
        let uniform = histogram(&random(100_000, 2));
        let step = 1.0 / 255.0f64;
        assert!((uniform.expected_error((-0.5, 0.5), U8) / (step * step / 12.0) - 1.0).abs() < 0.01);
        assert_eq!(uniform.expected_error((f32::NAN, 1.0), U8), f64::INFINITY);
    }

    #[test]
    fn the_least_squares_range_is_never_worse_and_clips_a_long_tail() {
        let mut values = bell(50_000, 3);
        let h = histogram(&values);
        let best = h.mse_range(U8).expect("values");
        let all = h.minmax().expect("values");
        assert!(h.expected_error(best, U8) <= h.expected_error(all, U8));
        // At 4 bits the best symmetric clipping of a normal distribution is near 2.6 deviations (Banner et al. 2019).
        let four = h.mse_range(S4).expect("values");
        assert!(
            (2.1..3.1).contains(&-four.0) && (2.1..3.1).contains(&four.1),
            "{four:?}"
        );
        // One outlier: 8 bits can afford to keep it, 4 bits cannot.
        values.push(40.0);
        let h = histogram(&values);
        assert!(h.mse_range(U8).expect("values").1 > 35.0);
        let best = h.mse_range(U4).expect("values");
        assert!(best.1 < 10.0 && best.0 < -2.0, "{best:?}");
        let error = |(min, max)| measured(&values, &Affine::asymmetric(min, max, U4).expect("finite"));
        assert!(error(best) < 0.2 * error(h.minmax().expect("values")));
        // One side only: zero stays the other end.
        let relu: Vec<f32> = values.iter().map(|x| x.max(0.0)).collect();
        assert_eq!(histogram(&relu).mse_range(U8).expect("values").0, 0.0);
    }

    #[test]
    fn the_divergence_keeps_a_uniform_range_and_clips_outliers() {
        let uniform = histogram(&random(200_000, 4));
        let (low, high) = uniform.kl_range(U8).expect("values");
        assert!(low < -0.48 && high > 0.48, "{low} {high}");
        let mut values = bell(100_000, 5);
        values.extend([19.0, 25.0, 30.0]);
        let (low, high) = histogram(&values).kl_range(U8).expect("values");
        assert!(high < 15.0 && high > 2.0 && low < -2.0, "{low} {high}");
        let mirrored: Vec<f32> = values.iter().map(|x| -x).collect();
        let (low, high) = histogram(&mirrored).kl_range(U8).expect("values");
        assert!(low > -15.0 && low < -2.0 && high > 2.0, "{low} {high}");
        let relu: Vec<f32> = values.iter().map(|x| x.max(0.0)).collect();
        let (low, high) = histogram(&relu).kl_range(U8).expect("values");
        assert!(low == 0.0 && high < 15.0 && high > 2.0, "{low} {high}");
        // More codes than bins: nothing to merge.
        assert_eq!(histogram(&relu).kl_range(U16), Some((0.0, 30.0)));
    }

    #[test]
    fn the_divergence_is_the_sum_of_its_definition() {
        let counts = vec![3.0, 0.0, 5.0, 0.0, 2.0, 9.0, 1.0, 2.0, 4.0];
        // Bins 1 to 8 in two levels: P = 3 5 0 | 2 9 1 6, and Q = 5 | 14 over the bins that P uses.
        let p = [3.0, 5.0, 2.0, 9.0, 1.0, 6.0];
        let q = [2.5, 2.5, 3.5, 3.5, 3.5, 3.5];
        let (sum_p, sum_q): (f64, f64) = (p.iter().sum(), q.iter().sum());
        let kl = |(p, q): (&f64, &f64)| p / sum_p * (p / sum_p / (q / sum_q)).ln();
        let expected: f64 = p.iter().zip(&q).map(kl).sum();
        assert!((Divergence::new(counts).of((1, 8), 2) - expected).abs() < 1e-12);
    }

    #[test]
    fn percentile_ranges_leave_out_half_on_each_side() {
        let values: Vec<f32> = (0..10_000).map(|i| i as f32 - 5000.0).collect();
        let (low, high) = histogram(&values).percentile_range(99.0).expect("values");
        assert!(
            (low + 4950.0).abs() < 9.0 && (high - 4950.0).abs() < 9.0,
            "{low} {high}"
        );
        let h = histogram(&values);
        assert_eq!(h.percentile_range(100.0), h.minmax());
    }

    #[test]
    fn nothing_zeros_constants_and_outliers_have_ranges() {
        let choosers = |h: &Histogram| [h.minmax(), h.percentile_range(99.9), h.mse_range(U8), h.kl_range(S8)];
        assert_eq!(choosers(&Histogram::new()), [None; 4]);
        assert_eq!(Histogram::new().expected_error((0.0, 1.0), U8), 0.0);
        assert_eq!(choosers(&histogram(&[0.0; 50])), [Some((0.0, 0.0)); 4]);
        for x in [7.0, -7.0, 1e-42, 3e38, -1e30] {
            for range in choosers(&histogram(&[x; 50])).into_iter().flatten() {
                assert!(range.0.is_finite() && range.1.is_finite() && range.0 <= range.1);
            }
            let h = histogram(&[x; 50]);
            let best = h.mse_range(U8).expect("a value");
            let relative = h.expected_error(best, U8).sqrt() / f64::from(x.abs());
            assert!(relative < 1e-3 || x == 1e-42, "{x}: {best:?} {relative}");
        }
        let mut values = bell(5000, 6);
        values.extend([1e30, f32::NAN, f32::INFINITY]);
        for range in choosers(&histogram(&values)).into_iter().flatten() {
            assert!(range.0.is_finite() && range.1.is_finite() && range.0 <= range.1);
        }
    }
}
