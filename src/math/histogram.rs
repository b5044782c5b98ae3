//! Histogram of a stream of f32 over a range that is not known beforehand, in bounded memory.
//!
//! Bins have the width `2^e`. Bin `i ≥ 0` holds `[i·2^e, (i+1)·2^e)`; bin `−1−i` holds its mirror image, so zero is always an
//! edge and `x` and `−x` fall into mirrored bins. When a value falls outside, `e` grows and bins merge in pairs
//! (`i → ⌊i/2⌋`); `e` is always the least for which zero and all values seen fit into 2,048 bins. Hence every field is a
//! function of the *set* of values alone: neither order, nor blocks, nor merging of shards changes a bit of it.
//!
//! Between 1,024 and 2,048 bins cover the range from the least to the largest value, zero included (a quantized range must
//! hold zero anyway). One value of 1e30 among ordinary ones therefore leaves these in two bins: look at
//! `Histogram::resolution` before trusting a percentile. Exact zeros are counted apart, since they quantize without error.

use super::vector::widest;

/// Number of bins.
pub const BINS: usize = 2048;
/// The least exponent of a bin width: its reciprocal is still a finite f32.
const MIN_EXPONENT: i32 = -120;
/// Values looked at together: first for their range, then for their bins.
const BLOCK: usize = 8192;

/// Least and largest value of a stream, NaN and infinities counted apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Least finite value, `+inf` when there is none.
    pub min: f32,
    /// Largest finite value, `-inf` when there is none.
    pub max: f32,
    /// Finite values.
    pub count: u64,
    /// NaN.
    pub nan: u64,
    /// Infinities of either sign.
    pub infinite: u64,
}

impl Default for Range {
    fn default() -> Self {
        Range {
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            count: 0,
            nan: 0,
            infinite: 0,
        }
    }
}

impl Range {
    /// Adds values, in any order.
    pub fn add(&mut self, values: &[f32]) {
        for block in values.chunks(BLOCK) {
            let scan = Scan::of(block).unwrap_or_else(|| {
                let finite = self.sift(block);
                Scan::of(&finite).unwrap_or_default()
            });
            self.take(&scan);
        }
    }

    /// Adds the values of another shard.
    pub fn merge(&mut self, other: &Range) {
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.count += other.count;
        self.nan += other.nan;
        self.infinite += other.infinite;
    }

    /// `(min, max)`, or `None` when no finite value was seen.
    pub fn minmax(&self) -> Option<(f32, f32)> {
        (self.count > 0).then_some((self.min, self.max))
    }

    fn take(&mut self, scan: &Scan) {
        self.min = self.min.min(scan.min);
        self.max = self.max.max(scan.max);
        self.count += scan.count;
    }

    /// Counts what is not finite and returns the rest.
    fn sift(&mut self, values: &[f32]) -> Vec<f32> {
        self.nan += values.iter().filter(|x| x.is_nan()).count() as u64;
        self.infinite += values.iter().filter(|x| x.is_infinite()).count() as u64;
        values.iter().copied().filter(|x| x.is_finite()).collect()
    }
}

/// What one pass over a block of finite values tells.
struct Scan {
    min: f32,
    max: f32,
    count: u64,
}

impl Default for Scan {
    fn default() -> Self {
        Scan {
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            count: 0,
        }
    }
}

impl Scan {
    /// `None` when a value is not finite. Works on bits, since the vectorizer reorders minima of integers, not of floats:
    /// with the other bits of negative numbers turned over, f32 sort like i32, NaN and infinities at both ends.
    fn of(values: &[f32]) -> Option<Scan> {
        let turn = |bits: i32| bits ^ ((bits >> 31) & i32::MAX);
        let ends = |(min, max): (i32, i32), x: &f32| {
            let key = turn(x.to_bits() as i32);
            (min.min(key), max.max(key))
        };
        let (min, max) = widest!(values.iter().fold((i32::MAX, i32::MIN), ends));
        // `+ 0.0` turns −0 into 0, so that it makes no difference which of them came first.
        let back = |key: i32| f32::from_bits(turn(key) as u32) + 0.0;
        match values.is_empty() {
            true => Some(Scan::default()),
            false => (back(min).is_finite() && back(max).is_finite()).then(|| Scan {
                min: back(min),
                max: back(max),
                count: values.len() as u64,
            }),
        }
    }
}

/// The histogram: 16 KiB of counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// Range and numbers of all that was seen.
    pub range: Range,
    /// Exact zeros among the values in bins.
    pub zeros: u64,
    /// Values in bins.
    counted: u64,
    /// Bin width is `2^exponent`.
    exponent: i32,
    /// Bin `i` is kept at `i mod BINS`: bins in use always lie within a window of that length.
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        let counts = vec![0; BINS];
        Histogram {
            range: Range::default(),
            zeros: 0,
            counted: 0,
            exponent: MIN_EXPONENT,
            counts,
        }
    }
}

impl Histogram {
    /// Bytes that one takes, about.
    pub const BYTES: usize = BINS * size_of::<u64>();

    /// An empty histogram.
    pub fn new() -> Self {
        Histogram::default()
    }

    /// The histogram of a stream of which only `some` values are looked at, and the range of all.
    pub fn of_some(some: &[f32], range: Range) -> Self {
        let mut h = Histogram::new();
        h.add(some);
        let exponent = exponent_for(h.exponent, range.min.min(h.range.min), range.max.max(h.range.max));
        if exponent > h.exponent {
            h.widen(exponent);
        }
        h.range = range;
        h
    }

    /// Adds values; NaN and infinities are counted in `range` and touch nothing else.
    pub fn add(&mut self, values: &[f32]) {
        for part in values.chunks(1 << 30) {
            let mut tally = vec![[0u32; BINS]; if part.len() < 4096 { 0 } else { 4 }];
            for block in part.chunks(BLOCK) {
                match Scan::of(block) {
                    Some(scan) => self.add_finite(block, &scan, &mut tally),
                    None => {
                        let finite = self.range.sift(block);
                        let scan = Scan::of(&finite).unwrap_or_default();
                        self.add_finite(&finite, &scan, &mut tally);
                    }
                }
            }
            self.flush(&mut tally);
        }
    }

    fn add_finite(&mut self, values: &[f32], scan: &Scan, tally: &mut [[u32; BINS]]) {
        if values.is_empty() {
            return;
        }
        let exponent = exponent_for(
            self.exponent,
            self.range.min.min(scan.min),
            self.range.max.max(scan.max),
        );
        if exponent > self.exponent {
            self.flush(tally);
            self.widen(exponent);
        }
        self.range.take(scan);
        self.counted += scan.count;
        let inverse = power_of_two(-self.exponent);
        let (parts, rest) = values.as_chunks::<64>();
        // Places first, counts after: the former is a vector loop, and four tallies take turns in the latter, since in a run
        // of equal values each increment would wait for the one before.
        widest!({
            self.zeros += u64::from(values.iter().map(|&x| u32::from(x == 0.0)).sum::<u32>());
            let places = parts.iter().map(|part| part.map(|x| place(x, inverse)));
            match <&mut [[u32; BINS]; 4]>::try_from(tally) {
                Ok(tally) => {
                    for places in places {
                        for group in places.as_chunks::<4>().0 {
                            (0..4).for_each(|i| tally[i][group[i] as usize % BINS] += 1);
                        }
                    }
                }
                Err(_) => {
                    for places in places {
                        places.iter().for_each(|&place| self.counts[place as usize] += 1);
                    }
                }
            }
        });
        rest.iter().for_each(|&x| self.counts[place(x, inverse) as usize] += 1);
    }

    fn flush(&mut self, tally: &mut [[u32; BINS]]) {
        for strand in tally {
            self.counts
                .iter_mut()
                .zip(strand)
                .for_each(|(sum, n)| *sum += u64::from(std::mem::take(n)));
        }
    }

    /// Makes bins `2^exponent` wide.
    fn widen(&mut self, exponent: i32) {
        let (first, counts) = self.bins();
        self.counts.fill(0);
        self.put(first, &counts, exponent - self.exponent);
        self.exponent = exponent;
    }

    /// Adds bins that are `2^steps` times narrower than these.
    fn put(&mut self, first: i32, counts: &[u64], steps: i32) {
        for (i, &n) in (first..).zip(counts) {
            self.counts[(i >> steps.min(31)) as usize & (BINS - 1)] += n;
        }
    }

    /// Adds the values of another shard.
    pub fn merge(&mut self, other: &Histogram) {
        let (min, max) = (self.range.min.min(other.range.min), self.range.max.max(other.range.max));
        let exponent = exponent_for(self.exponent.max(other.exponent), min, max);
        if exponent > self.exponent {
            self.widen(exponent);
        }
        let (first, counts) = other.bins();
        self.put(first, &counts, self.exponent - other.exponent);
        self.range.merge(&other.range);
        self.zeros += other.zeros;
        self.counted += other.counted;
    }

    /// The same values, cut off at these ends (`low ≤ 0 ≤ high`).
    pub fn clamped(&self, (low, high): (f32, f32)) -> Histogram {
        let mut h = self.clone();
        let Some((min, max)) = self.range.minmax().filter(|(min, max)| *min < low || high < *max) else {
            return h;
        };
        (h.range.min, h.range.max) = (min.clamp(low, high), max.clamp(low, high));
        h.counts.fill(0);
        let inverse = power_of_two(-self.exponent);
        let (lowest, highest) = (
            index(low.max(min).min(0.0), inverse),
            index(high.min(max).max(0.0), inverse),
        );
        let (first, counts) = self.bins();
        for (i, n) in (first..).zip(counts) {
            h.counts[i.clamp(lowest, highest) as usize & (BINS - 1)] += n;
            if i < 0 && low == 0.0 || i >= 0 && high == 0.0 {
                h.zeros += n;
            }
        }
        if high == 0.0 {
            h.zeros -= self.zeros; // these were among the bins
        }
        h
    }

    /// The exponent of the width, zeros, and counts as [`Histogram::bins`] gives them; see [`Histogram::of`].
    pub fn fields(&self) -> (i32, u64, Vec<u64>) {
        (self.exponent, self.zeros, self.bins().1)
    }

    /// A histogram of its [`Histogram::fields`]; `None` when no values have such.
    pub fn of(range: Range, exponent: i32, zeros: u64, counts: &[u64]) -> Option<Histogram> {
        let mut h = Histogram {
            range,
            zeros,
            exponent,
            ..Histogram::new()
        };
        let (min, max) = range.minmax().unwrap_or((0.0, 0.0));
        let sound = (MIN_EXPONENT..=-MIN_EXPONENT).contains(&exponent)
            && (range.count == 0 || min.is_finite() && max.is_finite() && min <= max)
            && exponent_for(MIN_EXPONENT, min, max) <= exponent;
        if !sound {
            return None;
        }
        let (first, empty) = h.bins();
        h.counted = counts.iter().try_fold(0u64, |sum, n| sum.checked_add(*n))?;
        let zero = usize::try_from(-i64::from(first)).ok().and_then(|at| counts.get(at));
        if empty.len() != counts.len() || zeros > zero.copied().unwrap_or(0) {
            return None;
        }
        h.put(first, counts, 0);
        Some(h)
    }

    /// Finite values in bins.
    pub fn count(&self) -> u64 {
        self.counted
    }

    /// Width of a bin, in units of the values.
    pub fn resolution(&self) -> f64 {
        2f64.powi(self.exponent)
    }

    /// The bins from the one of the least value (or of zero) to that of the largest (or of zero): the number `i` of the
    /// first, and counts. The bin of number `i` is `[i, i + 1)` times [`Histogram::resolution`], for negative `i` `(i, i + 1]`.
    /// Empty when nothing was seen.
    pub fn bins(&self) -> (i32, Vec<u64>) {
        let Some((min, max)) = self.range.minmax() else {
            return (0, Vec::new());
        };
        let inverse = power_of_two(-self.exponent);
        let (first, last) = (index(min.min(0.0), inverse), index(max.max(0.0), inverse));
        (
            first,
            (first..=last).map(|i| self.counts[i as usize & (BINS - 1)]).collect(),
        )
    }

    /// The value that `percent` (0 to 100) of the finite values do not exceed, linear within a bin; `None` when nothing was
    /// seen or `percent` is NaN. Wrong by at most one [`Histogram::resolution`].
    pub fn percentile(&self, percent: f64) -> Option<f32> {
        let (min, max) = self.range.minmax()?;
        if percent.is_nan() {
            return None;
        }
        let mut target = percent.clamp(0.0, 100.0) / 100.0 * self.count() as f64;
        let (first, counts) = self.bins();
        for (i, n) in (first..).zip(counts) {
            if i == 0 {
                if target <= self.zeros as f64 && self.zeros > 0 {
                    return Some(0.0);
                }
                target -= self.zeros as f64;
            }
            let n = (if i == 0 { n - self.zeros } else { n }) as f64;
            if target <= n && n > 0.0 {
                let x = (f64::from(i) + target / n) * self.resolution();
                return Some((x as f32).clamp(min, max));
            }
            target -= n;
        }
        Some(max)
    }
}

/// Number of the bin of `x`, given the reciprocal of the width: both exact, whatever `x` (mirrored, not floored).
fn index(x: f32, inverse: f32) -> i32 {
    let x = x + 0.0;
    ((x.abs() * inverse) as i32) ^ ((x.to_bits() as i32) >> 31)
}

/// Where the count of the bin of `x` is kept: `index` modulo [`BINS`], for an `x` within the range of the bins. Adding 2²³
/// rounds to a whole number whose low bits are in the mantissa; unlike `as`, which saturates, this is a vector instruction.
#[inline(always)]
fn place(x: f32, inverse: f32) -> u32 {
    const WHOLE: f32 = 8388608.0;
    let x = x + 0.0;
    let size = x.abs() * inverse;
    let rounded = size + WHOLE;
    let bin = rounded.to_bits() as i32 - i32::from(rounded - WHOLE > size);
    (bin ^ ((x.to_bits() as i32) >> 31)) as u32 % BINS as u32
}

/// The least exponent, not below `from`, for which zero, `min` and `max` fall into [`BINS`] adjacent bins.
fn exponent_for(from: i32, min: f32, max: f32) -> i32 {
    let (min, max) = (min.min(0.0), max.max(0.0));
    let mut exponent = from;
    while {
        let inverse = power_of_two(-exponent);
        // Saturating conversions: a width far too small gives a span far too large.
        i64::from(index(max, inverse)) - i64::from(index(min, inverse)) >= BINS as i64
    } {
        exponent += 1;
    }
    exponent
}

/// `2^exponent` for `|exponent| ≤ 126`, exactly.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

#[cfg(test)]
mod tests;
