//! Sums of a run of samples as bytes, and back.
//!
//! Numbers are little-endian. Of a second moment the lower triangle is kept, as it is in memory. A file may hold anything: every length is
//! compared with what is there before memory is taken, and numbers that no sums have are refused.

use crate::analysis::stats::fold::{Mean, Means, Sums};
use crate::analysis::stats::moments::Moments;
use crate::math::gram::{self, Gram};
use crate::math::histogram::{Histogram, Range};
use crate::math::spread::Spread;
use anyhow::{Context, Result, bail, ensure};
use ndarray::Array1;

/// Counts above this are of no run that anybody had the time for; so many of them add up without overflow.
const MOST: u64 = 1 << 56;

/// The bytes of sums.
pub fn write(sums: &Sums) -> Vec<u8> {
    let mut out = Vec::new();
    match sums {
        Sums::None => out.push(0),
        Sums::Range(r) => {
            out.push(1);
            range(&mut out, r);
        }
        Sums::Histogram(s) => {
            out.push(2);
            let classes = s.parts();
            out.extend((classes.len() as u32).to_le_bytes());
            for (octave, samples, h) in classes {
                out.extend(octave.to_le_bytes());
                out.extend(samples.to_le_bytes());
                histogram(&mut out, h);
            }
        }
        Sums::Mean(m) => {
            out.push(3);
            let Mean { sums, counts } = m.all.clone().unwrap_or_default();
            out.extend((sums.len() as u32).to_le_bytes());
            out.extend(sums.iter().flat_map(|x| x.to_le_bytes()));
            out.extend(counts.iter().flat_map(|n| n.to_le_bytes()));
        }
        Sums::Grams(m) => {
            out.push(4);
            let dim = m.grams().first().map_or(0, Gram::dim);
            out.extend((m.grams().len() as u32).to_le_bytes());
            out.extend((dim as u32).to_le_bytes());
            m.grams().iter().for_each(|g| gram(&mut out, g));
        }
    }
    out
}

fn histogram(out: &mut Vec<u8>, h: &Histogram) {
    range(out, &h.range);
    let (exponent, zeros, counts) = h.fields();
    out.extend(exponent.to_le_bytes());
    out.extend(zeros.to_le_bytes());
    out.extend((counts.len() as u32).to_le_bytes());
    counts.iter().for_each(|n| short(out, *n));
}

fn range(out: &mut Vec<u8>, r: &Range) {
    out.extend(r.min.to_le_bytes());
    out.extend(r.max.to_le_bytes());
    [r.count, r.nan, r.infinite]
        .iter()
        .for_each(|n| out.extend(n.to_le_bytes()));
}

/// Seven bits a byte, the low ones first; the top bit says that more follow.
fn short(out: &mut Vec<u8>, mut n: u64) {
    while n >= 128 {
        out.push(n as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Rows of a moment end at the diagonal, or with their band.
const CUT: u8 = 0;
const BANDS: u8 = 1;

fn gram(out: &mut Vec<u8>, g: &Gram) {
    out.extend(g.n.to_le_bytes());
    out.extend(g.broken.to_le_bytes());
    out.extend(g.sum.iter().flat_map(|x| x.to_le_bytes()));
    let cut = g.is_symmetric();
    out.push(if cut { CUT } else { BANDS });
    out.extend(g.exponents().iter().flat_map(|e| e.to_le_bytes()));
    g.rows(cut).flatten().for_each(|x| out.extend(x.to_le_bytes()));
}

/// The exponents of all floats lie in here.
const EXPONENTS: std::ops::RangeInclusive<i16> = -149..=127;

/// The sums that bytes stand for.
///
/// # Errors
/// When they stand for none.
pub fn read(bytes: &[u8]) -> Result<Sums> {
    let mut from = Bytes(bytes);
    let sums = match from.number::<1>()?[0] {
        0 => Sums::None,
        1 => Sums::Range(from.range()?),
        2 => Sums::Histogram(from.spread()?),
        3 => Sums::Mean(Means::of(from.mean()?)),
        4 => Sums::Grams(from.moments()?),
        kind => bail!("there is no measure of kind {kind}"),
    };
    ensure!(from.0.is_empty(), "{} bytes too many", from.0.len());
    Ok(sums)
}

/// What has not been read yet.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// So many bytes.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n).context("it is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    /// The bytes of a number.
    pub fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        let taken = self.take(N)?;
        Ok(std::array::from_fn(|i| taken[i]))
    }

    fn u32(&mut self) -> Result<usize> {
        Ok(u32::from_le_bytes(self.number()?) as usize)
    }

    fn count(&mut self) -> Result<u64> {
        let n = u64::from_le_bytes(self.number()?);
        ensure!(n < MOST, "a count of {n}");
        Ok(n)
    }

    fn floats(&mut self, n: usize) -> Result<Vec<f64>> {
        let (all, _) = self.take(n.checked_mul(8).context("too long")?)?.as_chunks::<8>();
        let all: Vec<f64> = all.iter().map(|b| f64::from_le_bytes(*b)).collect();
        ensure!(all.iter().all(|x| x.is_finite()), "a sum is not finite");
        Ok(all)
    }

    fn range(&mut self) -> Result<Range> {
        let (min, max) = (f32::from_le_bytes(self.number()?), f32::from_le_bytes(self.number()?));
        let (count, nan, infinite) = (self.count()?, self.count()?, self.count()?);
        let sound = match count {
            0 => min == f32::INFINITY && max == f32::NEG_INFINITY,
            _ => min.is_finite() && max.is_finite() && min <= max,
        };
        ensure!(sound, "a range from {min} to {max}");
        Ok(Range {
            min,
            max,
            count,
            nan,
            infinite,
        })
    }

    fn short(&mut self) -> Result<u64> {
        let mut n = 0;
        for shift in (0..56).step_by(7) {
            let [byte] = self.number()?;
            n |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(n);
            }
        }
        bail!("a count is too large")
    }

    fn spread(&mut self) -> Result<Spread> {
        let classes = self.u32()?;
        ensure!(classes <= self.0.len(), "it is cut short");
        let class = |_| Ok((i32::from_le_bytes(self.number()?), self.count()?, self.histogram()?));
        let classes = (0..classes).map(class).collect::<Result<Vec<_>>>()?;
        Spread::from_parts(classes).context("no samples have such peaks")
    }

    fn histogram(&mut self) -> Result<Histogram> {
        let range = self.range()?;
        let exponent = i32::from_le_bytes(self.number()?);
        let zeros = self.count()?;
        let bins = self.u32()?;
        ensure!(bins <= self.0.len(), "it is cut short");
        let counts = (0..bins).map(|_| self.short()).collect::<Result<Vec<u64>>>()?;
        Histogram::of(range, exponent, zeros, &counts).context("no histogram has such bins")
    }

    fn mean(&mut self) -> Result<Mean> {
        let length = self.u32()?;
        let sums = self.floats(length)?;
        let counts = (0..length).map(|_| self.count()).collect::<Result<_>>()?;
        Ok(Mean { sums, counts })
    }

    fn moments(&mut self) -> Result<Moments> {
        let (groups, dim) = (self.u32()?, self.u32()?);
        ensure!(groups <= self.0.len() / 17, "it is cut short");
        Ok(Moments::of((0..groups).map(|_| self.gram(dim)).collect::<Result<_>>()?))
    }

    fn gram(&mut self, dim: usize) -> Result<Gram> {
        let (n, broken) = (self.count()?, self.count()?);
        let sum = Array1::from(self.floats(dim)?);
        let cut = match self.number()? {
            [CUT] => true,
            [BANDS] => false,
            [kind] => bail!("there is no kind {kind} of moments"),
        };
        let exponents = self.take(dim.checked_mul(2).context("too long")?)?.as_chunks::<2>().0;
        let exponents: Vec<i16> = exponents.iter().map(|b| i16::from_le_bytes(*b)).collect();
        let known = |e: &i16| *e == gram::NONE || EXPONENTS.contains(e);
        ensure!(exponents.iter().all(known), "an exponent is out of range");
        // Row by row: a triangle is half of a square, and no moment is larger than its bytes times two.
        let least = dim.checked_mul(dim + 1).context("too long")? / 2;
        ensure!(least <= self.0.len() / 4, "it is cut short");
        let all = Gram::lengths(dim, cut).sum::<usize>();
        let (all, _) = self.take(all.checked_mul(4).context("too long")?)?.as_chunks::<4>();
        let numbers = all.iter().map(|b| f32::from_le_bytes(*b));
        let gram = Gram::of((n, broken), sum, exponents, cut, numbers).context("it is cut short")?;
        ensure!(gram.rows(true).flatten().all(|x| x.is_finite()), "a sum is not finite");
        Ok(gram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::stats::rows::Rows;

    fn moments(dim: usize, groups: usize, rows: usize, size: f32) -> Moments {
        let numbers = groups * rows * dim;
        let data = (0..numbers)
            .map(|i| ((i * 7919 % 1013) as f32 - 400.0) * size)
            .collect();
        let rows = Rows { dim, groups, data };
        let mut m = Moments::new(&rows);
        m.add(&rows).expect("fits");
        m.end().expect("ends");
        m
    }

    fn bits(m: &Moments) -> Vec<u64> {
        let of = |g: &Gram| {
            let entries: Vec<f64> = g.second().into_iter().chain(g.sum.iter().copied()).collect();
            entries
                .into_iter()
                .map(f64::to_bits)
                .chain([g.n, g.broken])
                .collect::<Vec<_>>()
        };
        m.grams().iter().flat_map(of).collect()
    }

    #[test]
    fn moments_come_back_bit_by_bit() {
        for (dim, groups, rows, size) in [
            (1, 3, 5, 1.0),
            (9, 4, 3, 1e-3),
            (100, 1, 60, 1e-12),
            (200, 2, 150, 3e7),
            (40, 1, 500, 0.1), // several products in a run
            (7, 2, 5, 0.0),
        ] {
            let m = moments(dim, groups, rows, size);
            let bytes = write(&Sums::Grams(moments(dim, groups, rows, size)));
            let Ok(Sums::Grams(back)) = read(&bytes) else {
                panic!("moments")
            };
            assert_eq!(bits(&m), bits(&back), "{dim}");
            let bands: usize = Gram::lengths(dim, false).sum();
            let most = groups * (4 * bands + 10 * dim + 17) + 9;
            assert!(bytes.len() <= most, "{dim}: {} {most}", bytes.len());
        }
    }

    #[test]
    fn ranges_histograms_and_means_come_back() {
        let values: Vec<f32> = (0..9000).map(|i| (i as f32 - 2000.0) * 0.37).collect();
        let all = {
            let mut h = Histogram::new();
            h.add(&values);
            h
        };
        let mut spread = Spread::default();
        for h in [
            Histogram::new(),
            all.clone(),
            Histogram::of_some(&values[..100], all.range),
        ] {
            let Ok(Sums::Range(range)) = read(&write(&Sums::Range(h.range))) else {
                panic!("a range")
            };
            assert_eq!(range, h.range);
            spread.merge(&Spread::of(h));
            let Ok(Sums::Histogram(back)) = read(&write(&Sums::Histogram(spread.clone()))) else {
                panic!("histograms")
            };
            assert_eq!(spread, back);
        }
        let mean = Mean {
            sums: vec![1.5, -2.0],
            counts: vec![3, 0],
        };
        let Ok(Sums::Mean(back)) = read(&write(&Sums::Mean(Means::of(mean)))) else {
            panic!("means")
        };
        assert_eq!(back.mean(), [0.5, 0.0]);
    }

    #[test]
    fn cut_or_changed_bytes_are_errors_or_other_sums_and_never_a_panic() {
        let mut h = Histogram::new();
        h.add(&[-1.0, 0.0, 2.5, 3.0]);
        let all = [
            write(&Sums::Grams(moments(9, 2, 4, 1.0))),
            write(&Sums::Grams(moments(9, 2, 40, 1.0))),
            write(&Sums::Histogram(Spread::of(h))),
            write(&Sums::Mean(Means::of(Mean {
                sums: vec![1.0],
                counts: vec![1],
            }))),
        ];
        for bytes in all {
            for end in 0..bytes.len() {
                assert!(read(&bytes[..end]).is_err(), "{end}");
            }
            for at in 0..bytes.len() {
                for to in [0, 1, 127, 255, bytes[at].wrapping_add(1)] {
                    let mut bad = bytes.clone();
                    bad[at] = to;
                    let _ = read(&bad);
                }
            }
        }
    }
}
