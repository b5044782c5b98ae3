//! Weights and biases in integers.
//!
//! `ŵ = s_w[channel]·q`, `q` in ±127, and `b̂ = s_x·s_w[channel]·q` in int32, so that products and bias add up in one
//! accumulator. Trained nets have dead channels, weights near zero with a bias that still counts: their tiny `s_w` would
//! push the bias out of int32, so `s_w` is enlarged until the bias takes at most half of int32 (the rest is room for the sum).
//! Codes are rounded so that errors cancel at the output (`math::rounding`), under the covariance of the input where the bias
//! can take up the mean error `(W − Ŵ) E[x]`, and under its second moment where it cannot.
//! A channel of zeros has no scale of its own; it takes the smallest one of the others. Rows of the matrix are channels, but for ConvTranspose, where all
//! taps of a channel share its scale, the largest of theirs.

use super::seen::Moments;
use crate::analysis::sites::Site;
use crate::cache::{Key, Objects};
use crate::ir::{Model, Tensor};
use crate::math::affine::IntKind;
use crate::math::channel::{
    best_channel_scales, bias_safe_scales, bias_scales, channel_scales, dequantize_per_channel,
};
use crate::math::channel::{quantize_bias, quantize_per_channel};
use crate::math::rounding::{Codes, Rounding, stretches};
use crate::passes::planes;
use anyhow::{Context as _, Result};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;
use std::ops::Range;

/// How often scales are fitted to codes of few bits.
const REFITS: usize = 3;

/// How weights are stored.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scheme {
    /// S8, S7 for CPUs whose sums of two products saturate, or fewer bits, whose codes are multiples in 8 bits ([`planes::step`]).
    pub kind: IntKind,
    /// One scale for each output channel.
    pub per_channel: bool,
    /// How codes are chosen.
    pub rounding: Choice,
}

/// How the codes of a weight are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The scale of the largest weight, the nearest code.
    Nearest,
    /// What makes the least error at the output, under the second moment of the input.
    Data,
}

/// A weight in integers.
#[derive(Clone)]
pub struct Weight {
    /// int8, with the dimensions of the original.
    pub codes: Tensor,
    /// What codes are stored as.
    pub kind: IntKind,
    /// One for each channel, or one for all.
    pub scales: Vec<f32>,
    /// What the bias must gain so that outputs keep their mean; empty when nothing was measured.
    pub shift: Vec<f32>,
    /// Signal to noise of the products, caused by the weight alone, dB; of the weight itself where nothing was measured.
    pub sqnr: f64,
}

/// What is known of the sites that read a weight when it is quantized.
pub struct Known<'a> {
    /// What will be added to the products, the largest of all sites.
    pub bias: &'a [f32],
    /// The bias can be changed.
    pub movable: bool,
    /// The scale of the activation, the smallest of all sites.
    pub input_scale: f32,
    /// Moments of the inputs.
    pub moments: &'a Moments<'a>,
    /// What was rounded before, within a search.
    pub objects: Option<&'a Objects>,
}

/// A weight's rows, rounded.
struct Rounded {
    best: Rows,
    /// Signal to noise of the products, dB.
    sqnr: f64,
}

/// Codes with a scale for each row, and how wrong each row is.
struct Rows {
    scales: Vec<f32>,
    codes: Array2<i8>,
    wrong: Vec<f64>,
}

/// Quantizes the weight that sites read in the same way: one for each, which differ in [`Weight::shift`] only.
///
/// # Errors
/// When there is no site, or the weight or the bias is not finite.
pub fn quantize(model: &Model, sites: &[&Site], known: &Known, scheme: Scheme) -> Result<Vec<Weight>> {
    let site = sites.first().context("a site")?;
    let mut w = site.matrix(model)?;
    w.mapv_inplace(|x| x * site.layout.scale);
    let channels: Vec<usize> = (0..w.nrows()).map(|row| site.output(row).1).collect();
    let made = || {
        let task = Task::new(site, (&w, &channels), known, scheme);
        let best = task.best()?;
        let [signal, noise] = [&task.powers(w.view(), &task.rows()), &best.wrong].map(|p| p.iter().sum::<f64>());
        let sqnr = 10.0 * (signal / noise).log10();
        Ok(Rounded { best, sqnr })
    };
    let rounded = Objects::get_in(known.objects, || known.key(site, &w, scheme), Rounded::bytes, made)?;
    let Rounded { best, sqnr } = &*rounded;
    let error = &w - &dequantize_per_channel(best.codes.view(), &best.scales)?;
    let step = planes::step(scheme.kind);
    let codes = site.tensor_of(model, best.codes.mapv(|q| step * f32::from(q)).view())?;
    let scales: Vec<f32> = best.scales.iter().map(|s| s / step).collect();
    let weight = Weight {
        codes: to_i8(&codes)?,
        kind: scheme.kind,
        scales: if scheme.per_channel {
            of_channels(site, &channels, &scales)
        } else {
            scales[..1].to_vec()
        },
        shift: Vec::new(),
        sqnr: *sqnr,
    };
    let each = (0..sites.len()).map(|i| Weight {
        shift: match known.movable {
            true => shift(site, error.view(), known.moments.means(i)),
            false => Vec::new(),
        },
        ..weight.clone()
    });
    Ok(each.collect())
}

impl Known<'_> {
    /// Tells all that a weight (as a matrix) is rounded by.
    fn key(&self, site: &Site, w: &Array2<f32>, scheme: Scheme) -> Key {
        let way = (
            site.dims(),
            site.layout.out_axis,
            site.layout.groups,
            site.is_transposed(),
        );
        let key =
            Key::new("weight in integers", "").text(&format!("{scheme:?} {way:?} {:?} {}", w.dim(), self.movable));
        let key = key.numbers(w.as_standard_layout().as_slice().unwrap_or_default());
        self.moments.key(key.numbers(self.bias).numbers(&[self.input_scale]))
    }
}

impl Rounded {
    fn bytes(&self) -> usize {
        self.best.codes.len() + 12 * self.best.wrong.len()
    }
}

impl Rows {
    fn new(scales: Vec<f32>, Codes { codes, energies }: Codes) -> Rows {
        Rows {
            scales,
            codes,
            wrong: energies,
        }
    }

    /// Takes over channels (given that of each row) that are better by other scales, and gives their rows. `found` are the codes of some `rows`, which are all
    /// those of their channels.
    fn improve(&mut self, rows: &[usize], scales: &[f32], found: &Codes, channels: &[usize]) -> Vec<usize> {
        let mut gained = vec![0.0; channels.len()];
        for (k, &i) in rows.iter().enumerate() {
            gained[channels[i]] += self.wrong[i] - found.energies[k];
        }
        let places = (0..rows.len()).filter(|&k| gained[channels[rows[k]]] > 0.0);
        let places: Vec<usize> = places.collect();
        for &k in &places {
            let i = rows[k];
            self.wrong[i] = found.energies[k];
            self.scales[i] = scales[i];
            self.codes.row_mut(i).assign(&found.codes.row(k));
        }
        places.into_iter().map(|k| rows[k]).collect()
    }
}

struct Task<'a> {
    site: &'a Site,
    w: &'a Array2<f32>,
    /// One for each group; none when nothing was measured, or nothing is asked. A group whose input is always zero has nothing to go by.
    roundings: Vec<Option<Rounding>>,
    known: &'a Known<'a>,
    scheme: Scheme,
    /// The channel of each row.
    channels: &'a [usize],
}

impl<'a> Task<'a> {
    fn new(
        site: &'a Site,
        (w, channels): (&'a Array2<f32>, &'a [usize]),
        known: &'a Known<'a>,
        scheme: Scheme,
    ) -> Task<'a> {
        let groups = match scheme.rounding {
            Choice::Data => known.moments.groups(),
            Choice::Nearest => 0,
        };
        let of = |g: usize| Rounding::of(|| known.moments.matrix(g, known.movable));
        Task {
            site,
            w,
            roundings: (0..groups).into_par_iter().map(of).collect(),
            known,
            scheme,
            channels,
        }
    }

    /// All rows.
    fn rows(&self) -> Vec<usize> {
        (0..self.w.nrows()).collect()
    }

    /// The best codes of all ways to choose them, row by row when each has a scale of its own.
    fn best(&self) -> Result<Rows> {
        let widest = self.safe(self.widest()?)?;
        if self.roundings.is_empty() {
            let narrow = self.scheme.kind.bits() < 8 && self.scheme.per_channel;
            return match narrow {
                true => self.nearest(self.safe(best_channel_scales(self.w.view(), None, self.scheme.kind)?)?),
                false => self.nearest(widest),
            };
        }
        let mut rows = self.rows();
        let codes = self.rounded(&widest, &rows)?;
        let mut best = Rows::new(widest, codes);
        if self.scheme.per_channel {
            let narrow = self.safe(self.narrow()?)?;
            best.improve(&rows, &narrow, &self.rounded(&narrow, &rows)?, self.channels);
        }
        if self.scheme.per_channel && self.scheme.kind.bits() < 8 {
            let signal = self.powers(self.w.view(), &rows);
            for _ in 0..REFITS {
                // A channel that this did not help would be fitted in the same way once more.
                let fitted = self.safe(self.refitted(&best, &signal, &rows)?)?;
                rows = best.improve(&rows, &fitted, &self.rounded(&fitted, &rows)?, self.channels);
                if rows.is_empty() {
                    break;
                }
            }
        }
        Ok(best)
    }

    /// The scales that serve the codes of some rows best; those of the others as they are.
    fn refitted(&self, best: &Rows, signal: &[f64], rows: &[usize]) -> Result<Vec<f32>> {
        fn pick<T: Copy>(all: &[T], rows: &[usize]) -> Vec<T> {
            rows.iter().map(|&i| all[i]).collect()
        }
        let codes = best.codes.select(Axis(0), rows);
        let numbers = dequantize_per_channel(codes.view(), &pick(&best.scales, rows))?;
        let own = self.powers(numbers.view(), rows);
        let mut scales = best.scales.clone();
        let all = stretches(&pick(signal, rows), &own, &pick(&best.wrong, rows));
        rows.iter().zip(all).for_each(|(&i, t)| scales[i] *= t);
        Ok(scales)
    }

    /// Scales of the largest weights.
    fn widest(&self) -> Result<Vec<f32>> {
        let mut scales = match self.scheme.per_channel {
            true => channel_scales(self.w.view(), self.scheme.kind)?,
            false => {
                let all = Array2::from_shape_vec((1, self.w.len()), self.w.iter().copied().collect())?;
                vec![channel_scales(all.view(), self.scheme.kind)?[0]; self.w.nrows()]
            }
        };
        fill_empty(self.w.view(), &mut scales);
        Ok(scales)
    }

    /// Scales of the least error when inputs were uncorrelated.
    fn narrow(&self) -> Result<Vec<f32>> {
        let mut scales = Vec::new();
        for (g, rounding) in self.roundings.iter().enumerate() {
            let nothing = vec![0.0; if rounding.is_some() { 0 } else { self.w.ncols() }];
            let importance = rounding.as_ref().map_or(&nothing[..], Rounding::diagonal);
            let rows = self.w.slice(ndarray::s![self.site.rows(g), ..]);
            scales.extend(best_channel_scales(rows, Some(importance), self.scheme.kind)?);
        }
        fill_empty(self.w.view(), &mut scales);
        Ok(scales)
    }

    /// Scales with which the bias takes at most half of int32, the same for all rows of a channel.
    fn safe(&self, scales: Vec<f32>) -> Result<Vec<f32>> {
        let bias = |row: usize| self.known.bias.get(self.site.output(row).0);
        let twice = (0..scales.len()).map(|row| bias(row).map(|b| 2.0 * b));
        let twice: Vec<f32> = twice.collect::<Option<_>>().context("a bias for each output")?;
        let input = self.known.input_scale / planes::step(self.scheme.kind);
        if self.scheme.per_channel {
            let each = of_channels(self.site, self.channels, &bias_safe_scales(&twice, input, &scales)?);
            return Ok(self.channels.iter().map(|&c| each[c]).collect());
        }
        let one = bias_safe_scales(&twice, input, &scales[..1])?;
        Ok(vec![one[0]; scales.len()])
    }

    fn nearest(&self, scales: Vec<f32>) -> Result<Rows> {
        let codes = quantize_per_channel(self.w.view(), &scales, self.scheme.kind)?;
        let error = self.w - &dequantize_per_channel(codes.view(), &scales)?;
        let wrong = self.powers(error.view(), &self.rows());
        Ok(Rows { scales, codes, wrong })
    }

    /// Where the rows of each group stand among some rows, which are in order.
    fn places(&self, rows: &[usize]) -> Vec<Range<usize>> {
        let before = |end: usize| rows.partition_point(|row| *row < end);
        let of = |g: usize| self.site.rows(g);
        (0..self.roundings.len())
            .map(|g| before(of(g).start)..before(of(g).end))
            .collect()
    }

    /// Codes of some rows. A group whose input is always zero has no factor: any code will do, the nearest is taken.
    fn rounded(&self, scales: &[f32], rows: &[usize]) -> Result<Codes> {
        let part = |((g, rounding), place): ((usize, &Option<Rounding>), Range<usize>)| {
            let all = self.site.rows(g);
            let own: Vec<usize> = rows[place].iter().map(|row| row - all.start).collect();
            let (part, scales) = (self.w.slice(ndarray::s![all.clone(), ..]), &scales[all]);
            match rounding {
                Some(r) => r.codes(part, scales, self.scheme.kind, &own),
                None => Ok(Codes {
                    codes: quantize_per_channel(part, scales, self.scheme.kind)?.select(Axis(0), &own),
                    energies: vec![0.0; own.len()],
                }),
            }
        };
        let all = self.roundings.par_iter().enumerate().zip(self.places(rows));
        let parts: Vec<Codes> = all.map(part).collect::<Result<_>>()?;
        let codes: Vec<_> = parts.iter().map(|p| p.codes.view()).collect();
        Ok(Codes {
            codes: ndarray::concatenate(Axis(0), &codes)?,
            energies: parts.into_iter().flat_map(|p| p.energies).collect(),
        })
    }

    /// The mean square of the products of `numbers`, which stand for some rows; of the numbers where nothing was measured.
    fn powers(&self, numbers: ArrayView2<f32>, rows: &[usize]) -> Vec<f64> {
        if self.roundings.is_empty() {
            let square = |r: ArrayView1<f32>| r.iter().map(|x| f64::from(*x).powi(2)).sum();
            return numbers.rows().into_iter().map(square).collect();
        }
        let each = self.roundings.iter().zip(self.places(rows));
        each.flat_map(|(rounding, place)| match rounding {
            Some(r) => r.energies(numbers.slice(ndarray::s![place, ..])),
            None => vec![0.0; place.len()],
        })
        .collect()
    }
}

/// One scale for each channel, given the channels and the scales of rows.
fn of_channels(site: &Site, channels: &[usize], rows: &[f32]) -> Vec<f32> {
    let mut largest = vec![0.0f32; site.dims()[site.layout.out_axis]];
    for (&c, &scale) in channels.iter().zip(rows) {
        largest[c] = largest[c].max(scale);
    }
    largest
}

/// `(W − Ŵ) E[x]`.
fn shift(site: &Site, error: ArrayView2<f32>, means: &[Array1<f64>]) -> Vec<f32> {
    let mut all = Vec::new();
    for (g, mean) in means.iter().enumerate() {
        let rows = error.slice(ndarray::s![site.rows(g), ..]);
        all.extend(
            rows.rows()
                .into_iter()
                .map(|r| r.iter().zip(mean).map(|(e, m)| f64::from(*e) * m).sum::<f64>() as f32),
        );
    }
    all
}

/// Rows of zeros take the smallest scale of the others.
fn fill_empty(w: ArrayView2<f32>, scales: &mut [f32]) {
    let empty: Vec<bool> = w.rows().into_iter().map(|r| r.iter().all(|x| *x == 0.0)).collect();
    let least = scales.iter().zip(&empty).filter(|(_, e)| !**e).map(|(s, _)| *s);
    let least = least.fold(f32::INFINITY, f32::min);
    let least = if least.is_finite() { least } else { 1.0 / 127.0 };
    scales
        .iter_mut()
        .zip(empty)
        .filter(|(_, e)| *e)
        .for_each(|(s, _)| *s = least);
}

fn to_i8(codes: &Tensor) -> Result<Tensor> {
    let floats = codes.floats().context("codes are floats here")?;
    Ok(Tensor::new(codes.dims(), floats.iter().map(|&q| q as i8).collect()))
}

/// A bias in int32: codes and scales.
///
/// # Errors
/// When a bias is not finite, or does not fit because the weight's scales were not made for it.
pub fn quantize_bias_for(bias: &[f32], input_scale: f32, weight: &Weight) -> Result<(Vec<i32>, Vec<f32>)> {
    // Groups of a ConvTranspose share scales.
    let scales = match weight.scales.len() {
        1 => weight.scales.clone(),
        n => (0..bias.len()).map(|i| weight.scales[i % n]).collect(),
    };
    let codes = quantize_bias(bias, input_scale, &scales)?;
    Ok((codes, bias_scales(input_scale, &scales)))
}
