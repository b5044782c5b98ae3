//! How far test values are from reference values: the measures of a `Gap`, summed over any number of samples.
//!
//! `SQNR = 10 log₁₀(Σ r² / Σ (r − t)²)` dB; `cosine = Σ r t / √(Σ r² Σ t²)`; the largest `|r − t|`. All in f64.
//!
//! A pair that is not finite is *matching* when both are NaN or both the same infinity: it counts as equal and enters no
//! sum. Every other such pair is *broken*: a value was lost, and no finite number says how badly, so that the measures of
//! a gap with a broken pair are those of an infinite error.

use anyhow::{Result, ensure};

/// Sums over pairs of values, from which all measures follow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gap {
    /// Pairs, of any kind.
    pub count: u64,
    /// Pairs that are not finite and match.
    pub matching: u64,
    /// Pairs that are not finite and do not match.
    pub broken: u64,
    max: f64,
    reference: f64,
    reference_squared: f64,
    test_squared: f64,
    product: f64,
    error_squared: f64,
}

impl Gap {
    /// No pairs yet.
    pub fn new() -> Self {
        Gap::default()
    }

    /// Adds the pairs of two slices; an error when their lengths differ.
    ///
    /// Sums run in the order of the values: their last bits depend on how samples are cut, not on threads.
    pub fn add(&mut self, reference: &[f32], test: &[f32]) -> Result<()> {
        let (n, m) = (reference.len(), test.len());
        ensure!(n == m, "{n} reference values against {m}");
        // Short blocks: the partial sums of each are added up, which also keeps rounding errors small.
        for (r, t) in reference.chunks(1024).zip(test.chunks(1024)) {
            self.add_block(r, t);
        }
        Ok(())
    }

    fn add_block(&mut self, reference: &[f32], test: &[f32]) {
        const STRANDS: usize = 4;
        let mut sums = [[0.0f64; STRANDS]; 6];
        for (i, (&r, &t)) in reference.iter().zip(test).enumerate() {
            if !(r.is_finite() && t.is_finite()) {
                let equal = r == t || (r.is_nan() && t.is_nan());
                self.matching += u64::from(equal);
                self.broken += u64::from(!equal);
                continue;
            }
            let (r, t, k) = (f64::from(r), f64::from(t), i % STRANDS);
            let error = r - t;
            sums[0][k] = sums[0][k].max(error.abs());
            sums[1][k] += r;
            sums[2][k] += r * r;
            sums[3][k] += t * t;
            sums[4][k] += r * t;
            sums[5][k] += error * error;
        }
        let [max, sums @ ..] = sums;
        let [reference_sum, reference_squared, test_squared, product, error_squared] =
            sums.map(|strands| strands.iter().sum::<f64>());
        self.count += reference.len() as u64;
        self.max = max.into_iter().fold(self.max, f64::max);
        self.reference += reference_sum;
        self.reference_squared += reference_squared;
        self.test_squared += test_squared;
        self.product += product;
        self.error_squared += error_squared;
    }

    /// Adds the pairs of another shard.
    pub fn merge(&mut self, other: &Gap) {
        self.count += other.count;
        self.matching += other.matching;
        self.broken += other.broken;
        self.max = self.max.max(other.max);
        self.reference += other.reference;
        self.reference_squared += other.reference_squared;
        self.test_squared += other.test_squared;
        self.product += other.product;
        self.error_squared += other.error_squared;
    }

    /// Finite pairs.
    pub fn finite(&self) -> u64 {
        self.count - self.matching - self.broken
    }

    /// Whether every pair is equal, matching infinities and NaN included (−0 equals 0).
    pub fn is_equal(&self) -> bool {
        self.broken == 0 && self.max == 0.0
    }

    /// The largest `|r − t|`, in units of the values; infinite when a pair is broken, 0 when there are no pairs.
    pub fn max_abs(&self) -> f64 {
        if self.broken > 0 { f64::INFINITY } else { self.max }
    }

    /// Root of the mean of `(r − t)²` over finite pairs; infinite when a pair is broken, 0 when there are no pairs.
    pub fn rms(&self) -> f64 {
        if self.broken > 0 {
            f64::INFINITY
        } else {
            self.mean(self.error_squared).sqrt()
        }
    }

    /// Signal to noise in dB: +inf when all pairs are equal, −inf when a pair is broken or a reference of zeros is missed.
    pub fn sqnr_db(&self) -> f64 {
        if self.is_equal() {
            return f64::INFINITY;
        }
        if self.broken > 0 {
            return f64::NEG_INFINITY;
        }
        10.0 * (self.reference_squared / self.error_squared).log10()
    }

    /// Noise power over signal power: 0 when all pairs are equal, infinite when a pair is broken, `None` when nothing was compared.
    pub fn noise(&self) -> Option<f64> {
        match (self.count, self.broken) {
            (0, 0) => None,
            (_, 0) => Some(10f64.powf(-self.sqnr_db() / 10.0)),
            _ => Some(f64::INFINITY),
        }
    }

    /// The same, of a signal whose root mean square is taken to be `least` at least.
    pub fn noise_above(&self, least: f64) -> Option<f64> {
        let signal = self.reference_squared.max(least * least * self.count as f64);
        match (self.count, self.broken) {
            (0, 0) => None,
            (_, 0) => Some(self.error_squared / signal),
            _ => Some(f64::INFINITY),
        }
    }

    /// `Σ r²` and `Σ (r − t)²` over finite pairs.
    pub fn powers(&self) -> (f64, f64) {
        (self.reference_squared, self.error_squared)
    }

    /// Cosine of the angle between reference and test, all samples taken as one vector: 1 when all pairs are equal, 0 when a
    /// pair is broken or only one of the two is zero.
    pub fn cosine(&self) -> f64 {
        if self.is_equal() {
            return 1.0;
        }
        let sizes = self.reference_squared.sqrt() * self.test_squared.sqrt();
        if self.broken > 0 || sizes == 0.0 {
            0.0
        } else {
            (self.product / sizes).clamp(-1.0, 1.0)
        }
    }

    /// Standard deviation of the finite reference values. A comparison with next to none is vacuous.
    pub fn reference_deviation(&self) -> f64 {
        let mean = self.mean(self.reference);
        (self.mean(self.reference_squared) - mean * mean).max(0.0).sqrt()
    }

    fn mean(&self, sum: f64) -> f64 {
        sum / self.finite().max(1) as f64
    }
}

/// The noise of typical samples relative to their signal, of the powers of signal and noise of each: samples louder than the median
/// are turned down to it. A few loud ones, which may err by less, would stand for all else, and others may have none of them. `None` without signal.
pub fn typical_noise(powers: &[(f64, f64)]) -> Option<f64> {
    let mut signals: Vec<f64> = powers.iter().map(|p| p.0).collect();
    signals.sort_by(f64::total_cmp);
    let median = *signals.get(signals.len() / 2)?;
    let weight = |signal: f64| if signal > median { median / signal } else { 1.0 };
    let sum = |of: fn(&(f64, f64)) -> f64| powers.iter().map(|p| weight(p.0) * of(p)).sum::<f64>();
    let (signal, noise) = (sum(|p| p.0), sum(|p| p.1));
    (signal > 0.0).then(|| noise / signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loud_sample_does_not_stand_for_all() {
        let alike = [(1.0, 0.01), (1.0, 0.02), (1.0, 0.03)];
        assert!((typical_noise(&alike).expect("some") - 0.02).abs() < 1e-12);
        let loud = [(1.0, 0.01), (100.0, 0.01), (1.0, 0.03)];
        // Turned down by 100, its noise, too.
        assert!((typical_noise(&loud).expect("some") - 0.0401 / 3.0).abs() < 1e-12);
        assert_eq!((typical_noise(&[]), typical_noise(&[(0.0, 0.1)])), (None, None));
    }

    fn gap(reference: &[f32], test: &[f32]) -> Gap {
        let mut gap = Gap::new();
        gap.add(reference, test).expect("same length");
        gap
    }

    fn wave(n: usize, phase: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37 + phase).sin()).collect()
    }

    #[test]
    fn measures_match_their_definitions() {
        let (r, t) = (wave(5000, 0.0), wave(5000, 0.01));
        let g = gap(&r, &t);
        let pairs = || r.iter().zip(&t).map(|(&r, &t)| (f64::from(r), f64::from(t)));
        let signal: f64 = pairs().map(|(r, _)| r * r).sum();
        let noise: f64 = pairs().map(|(r, t)| (r - t).powi(2)).sum();
        let other: f64 = pairs().map(|(_, t)| t * t).sum();
        let dot: f64 = pairs().map(|(r, t)| r * t).sum();
        let max = pairs().map(|(r, t)| (r - t).abs()).fold(0.0, f64::max);
        assert_eq!(g.max_abs(), max);
        assert!((g.sqnr_db() - 10.0 * (signal / noise).log10()).abs() < 1e-9);
        assert!((g.cosine() - dot / (signal * other).sqrt()).abs() < 1e-12);
        assert!((g.rms() - (noise / 5000.0).sqrt()).abs() < 1e-12);
        assert!((g.reference_deviation() - 0.5f64.sqrt()).abs() < 0.01);
        assert_eq!((g.count, g.finite(), g.broken), (5000, 5000, 0));
        // A tenth of the signal is 20 dB.
        assert!((gap(&[10.0, -10.0], &[9.0, -9.0]).sqnr_db() - 20.0).abs() < 1e-12);
    }

    #[test]
    fn equal_values_have_no_gap() {
        for values in [vec![], vec![0.0], vec![-3.5; 2000], vec![1e-45, 3e38]] {
            let g = gap(&values, &values);
            assert!(g.is_equal());
            assert_eq!(
                (g.max_abs(), g.rms(), g.sqnr_db(), g.cosine()),
                (0.0, 0.0, f64::INFINITY, 1.0)
            );
        }
        assert!(gap(&[0.0], &[-0.0]).is_equal());
    }

    #[test]
    fn a_missed_zero_reference_is_an_infinite_error_in_db() {
        let g = gap(&[0.0, 0.0], &[0.0, 1e-3]);
        assert_eq!((g.sqnr_db(), g.cosine()), (f64::NEG_INFINITY, 0.0));
        let g = gap(&[0.0, 2.0], &[0.0, 0.0]);
        assert_eq!((g.sqnr_db(), g.cosine(), g.max_abs()), (0.0, 0.0, 2.0));
        let g = gap(&[1.0, 2.0], &[-1.0, -2.0]);
        assert!((g.cosine() + 1.0).abs() < 1e-15);
    }

    #[test]
    fn matching_infinities_and_nan_are_equal_and_enter_no_sum() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let g = gap(&[1.0, inf, -inf, nan, 2.0], &[1.0, inf, -inf, -nan, 2.5]);
        assert_eq!((g.matching, g.broken, g.finite()), (3, 0, 2));
        assert_eq!(
            (g.max_abs(), g.sqnr_db()),
            (0.5, gap(&[1.0, 2.0], &[1.0, 2.5]).sqnr_db())
        );
        assert!(gap(&[inf, nan], &[inf, nan]).is_equal());
    }

    #[test]
    fn every_other_pair_that_is_not_finite_is_broken() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for (r, t) in [(inf, -inf), (inf, 1.0), (1.0, -inf), (nan, 1.0), (1.0, nan), (nan, inf)] {
            let g = gap(&[1.0, r], &[1.0, t]);
            assert_eq!(g.broken, 1);
            assert!(!g.is_equal());
            assert_eq!((g.max_abs(), g.rms()), (f64::INFINITY, f64::INFINITY));
            assert_eq!((g.sqnr_db(), g.cosine()), (f64::NEG_INFINITY, 0.0));
        }
    }

    #[test]
    fn huge_and_tiny_values_are_measured() {
        let g = gap(&[3e38, -3e38], &[-3e38, 3e38]);
        assert!((g.sqnr_db() + 20.0 * 2f64.log10()).abs() < 1e-9 && (g.cosine() + 1.0).abs() < 1e-12);
        let g = gap(&[1e-45, 0.0], &[0.0, 0.0]);
        assert!(g.max_abs() > 0.0 && !g.is_equal() && g.sqnr_db() == 0.0);
        let g = gap(&[1e30, 1.0], &[1e30, 2.0]);
        assert!(g.sqnr_db() > 590.0 && g.cosine() == 1.0 && g.max_abs() == 1.0);
    }

    #[test]
    fn shards_add_up_and_lengths_must_agree() {
        let (r, mut t) = (wave(3000, 0.0), wave(3000, 0.2));
        t[100] = f32::NAN;
        let whole = gap(&r, &t);
        let mut merged = Gap::new();
        for (r, t) in r.chunks(700).zip(t.chunks(700)) {
            merged.merge(&gap(r, t));
        }
        assert_eq!((merged.count, merged.broken, merged.max), (3000, 1, whole.max));
        assert!((merged.product - whole.product).abs() < 1e-9);
        assert!((merged.error_squared - whole.error_squared).abs() < 1e-9);
        assert!(Gap::new().add(&[1.0], &[]).is_err());
    }
}
