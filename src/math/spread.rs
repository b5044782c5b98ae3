//! How a value is distributed, with samples kept apart by their peaks.
//!
//! Few samples may drive a network to values far beyond those of all others: a channel that hardly ever fires is
//! stretched by its normalization, and answers one picture in five hundred with fifty times what is usual. A range that holds
//! such values leaves few codes for all else, and a squared error over all numbers does not tell, since these samples
//! dominate it. So an error counts by its share of the sample that it is in: the *relative error* of a range is the mean over
//! samples of noise power over signal power, at most 1 each (a lost sample cannot be lost twice).
//!
//! Samples whose largest magnitudes have the same binary exponent share one histogram; those far below the highest peak share
//! the lowest. Counts are exact in any order, as are those of histograms, and so is the class of a sample.

use super::affine::IntKind;
use super::histogram::Histogram;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Octaves below the highest peak that are told apart.
const DEPTH: i32 = 5;
/// The part of all samples that may be left out for their peaks.
const RARE: f64 = 0.02;

/// Samples whose peaks lie in the same octave.
#[derive(Clone, Debug, Default, PartialEq)]
struct Class {
    samples: u64,
    values: Histogram,
}

/// Histograms of a value, by the peaks of samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread {
    classes: BTreeMap<i32, Class>,
}

/// The octave of a magnitude; that of the least normal number for what is smaller.
fn octave(x: f32) -> i32 {
    (x.to_bits() >> 23 & 0xff) as i32 - 127
}

impl Spread {
    /// One sample.
    pub fn of(values: Histogram) -> Spread {
        let (min, max) = values.minmax().unwrap_or_default();
        let one = Class { samples: 1, values };
        Spread {
            classes: BTreeMap::from([(octave(max.max(-min)), one)]),
        }
    }

    /// Bytes that it takes, about.
    pub fn bytes(&self) -> usize {
        self.classes.len() * Histogram::BYTES
    }

    /// Adds other samples.
    pub fn merge(&mut self, other: &Spread) {
        for (key, class) in &other.classes {
            self.put(*key, class);
        }
        let Some((&highest, _)) = self.classes.last_key_value() else {
            return;
        };
        let kept = self.classes.split_off(&(highest - DEPTH));
        let low = std::mem::replace(&mut self.classes, kept);
        low.values().for_each(|class| self.put(highest - DEPTH, class));
    }

    fn put(&mut self, key: i32, class: &Class) {
        let own = self.classes.entry(key).or_default();
        own.samples += class.samples;
        own.values.merge(&class.values);
    }

    /// The values of all samples.
    pub fn all(&self) -> Cow<'_, Histogram> {
        match self.classes.len() {
            1 => Cow::Borrowed(&self.classes.values().next().expect("one").values),
            _ => Cow::Owned(merged(self.classes.values())),
        }
    }

    /// The values of all samples but those of the highest peaks, two in a hundred at most; `None` where that leaves none out.
    pub fn usual(&self) -> Option<Histogram> {
        let total: u64 = self.classes.values().map(|c| c.samples).sum();
        let mut left_out = 0;
        let rare = |class: &&Class| {
            left_out += class.samples;
            left_out as f64 <= RARE * total as f64
        };
        let rare = self.classes.values().rev().take_while(rare).count();
        (rare > 0).then(|| merged(self.classes.values().take(self.classes.len() - rare)))
    }

    /// The same values, cut off at these ends (`low ≤ 0 ≤ high`).
    pub fn clamped(&self, ends: (f32, f32)) -> Spread {
        let one = |c: &Class| Class {
            samples: c.samples,
            values: c.values.clamped(ends),
        };
        let classes = self.classes.iter().map(|(key, c)| (*key, one(c)));
        Spread {
            classes: classes.collect(),
        }
    }

    /// The mean over samples of noise power over signal power, at most 1 each, if quantized to `kind` with this range.
    pub fn relative_error(&self, range: (f32, f32), kind: IntKind) -> f64 {
        let mut samples = 0;
        let one = |class: &Class| {
            samples += class.samples;
            let (noise, power) = (class.values.expected_error(range, kind), class.values.mean_square());
            let lost = if power > 0.0 { (noise / power).min(1.0) } else { 0.0 };
            class.samples as f64 * lost
        };
        let sum: f64 = self.classes.values().map(one).sum();
        sum / samples.max(1) as f64
    }

    /// What makes it up: the number of each class, its samples, and their values; see [`Spread::from_parts`].
    pub fn parts(&self) -> impl ExactSizeIterator<Item = (i32, u64, &Histogram)> {
        self.classes.iter().map(|(key, c)| (*key, c.samples, &c.values))
    }

    /// Of its [`Spread::parts`]; `None` when no samples have such.
    pub fn from_parts(parts: impl IntoIterator<Item = (i32, u64, Histogram)>) -> Option<Spread> {
        let mut spread = Spread::default();
        for (key, samples, values) in parts {
            let new = spread.classes.insert(key, Class { samples, values }).is_none();
            if !new || samples == 0 || !(octave(0.0)..=octave(f32::MAX)).contains(&key) {
                return None;
            }
        }
        let mut keys = spread.classes.keys();
        let deep = keys.next().zip(keys.next_back()).is_some_and(|(a, b)| b - a > DEPTH);
        (!deep).then_some(spread)
    }
}

fn merged<'a>(classes: impl Iterator<Item = &'a Class>) -> Histogram {
    let mut all = Histogram::new();
    classes.for_each(|c| all.merge(&c.values));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::hash::splitmix;

    fn sample(n: usize, seed: u64, size: f32) -> Vec<f32> {
        let number = |i| (splitmix(seed << 32 | i) >> 40) as f32 / 16777216.0 - 0.5;
        (0..n as u64).map(|i| number(i) * size).collect()
    }

    fn of(values: &[f32]) -> Spread {
        let mut h = Histogram::new();
        h.add(values);
        Spread::of(h)
    }

    fn sum<'a>(all: impl Iterator<Item = &'a Vec<f32>>) -> Spread {
        let mut spread = Spread::default();
        all.for_each(|x| spread.merge(&of(x)));
        spread
    }

    /// One sample in a hundred is sixty times as large.
    fn with_outliers() -> Vec<Vec<f32>> {
        let size = |i| if i % 100 == 37 { 60.0 } else { 1.0 };
        (0..200).map(|i| sample(500, i, size(i))).collect()
    }

    #[test]
    fn neither_order_nor_shards_change_anything() {
        let sizes = [1e-9, 3.0, 0.0, 70.0, 1.0, 1e5, 0.3, 2e-3, 9.0];
        let samples: Vec<Vec<f32>> = (0..9).map(|i| sample(100, i as u64, sizes[i])).collect();
        let forth = sum(samples.iter());
        assert_eq!(forth, sum(samples.iter().rev()));
        let mut halves = sum(samples[5..].iter());
        halves.merge(&sum(samples[..5].iter()));
        assert_eq!(forth, halves);
        let mut all = Histogram::new();
        samples.iter().for_each(|x| all.add(x));
        assert_eq!(*forth.all(), all);
        assert!(forth.parts().len() <= DEPTH as usize + 1);
        let parts = forth.parts().map(|(k, n, h)| (k, n, h.clone()));
        assert_eq!(Spread::from_parts(parts).as_ref(), Some(&forth));
    }

    #[test]
    fn samples_that_are_all_alike_leave_none_out() {
        let samples: Vec<Vec<f32>> = (0..200).map(|i| sample(500, i, 1.0)).collect();
        let spread = sum(samples.iter());
        assert_eq!(spread.usual(), None);
        let range = spread.all().minmax().expect("values");
        let h = spread.all();
        let absolute = h.expected_error(range, IntKind::U8) / h.mean_square();
        let relative = spread.relative_error(range, IntKind::U8);
        assert!((relative / absolute - 1.0).abs() < 0.01, "{relative} {absolute}");
    }

    #[test]
    fn rare_peaks_are_left_out_and_frequent_ones_are_not() {
        let samples = with_outliers();
        let usual = sum(samples.iter()).usual().expect("two stand out");
        let (low, high) = usual.minmax().expect("values");
        assert!((-0.5..-0.49).contains(&low) && (0.49..0.5).contains(&high));
        assert_eq!(usual.count(), 198 * 500);
        // Two of twenty are no exception.
        assert_eq!(sum(samples[20..40].iter()).usual(), None);
    }

    #[test]
    fn the_relative_error_is_the_mean_of_those_of_samples() {
        let samples = with_outliers();
        let spread = sum(samples.iter());
        for range in [(-0.5, 0.5), (-30.0, 30.0)] {
            let affine = super::super::affine::Affine::asymmetric(range.0, range.1, IntKind::U8).expect("finite");
            let one = |x: &Vec<f32>| {
                let noise: f64 = x.iter().map(|&v| f64::from(v - affine.round_trip(v)).powi(2)).sum();
                let power: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
                (noise / power).min(1.0)
            };
            let want = samples.iter().map(one).sum::<f64>() / 200.0;
            let got = spread.relative_error(range, IntKind::U8);
            assert!((got / want - 1.0).abs() < 0.05, "{range:?}: {got} {want}");
        }
    }
}
