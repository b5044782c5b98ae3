//! Codes and parameters of one weight.
//!
//! The grid that is best when inputs are uncorrelated comes first; where the second moment `G` of the input is known, codes
//! are rounded on it so that errors cancel (`math::rounding`), scales are fitted to the codes under `G`, codes rounded anew, as long as it
//! helps. Every row (every output) keeps the best that it saw. `G` is estimated from two halves of the samples and shrunk as far as they
//! disagree (`math::shrink`): few samples show correlations that are none. Where a constant bias can take up the mean error,
//! the covariance stands in for `G`.

use super::find::Weight;
use super::view::View;
use crate::analysis::stats::{Patch, Stats};
use crate::cache::{Key, Objects};
use crate::ir::Model;
use crate::math::affine::IntKind;
use crate::math::gram::Gram;
use crate::math::grid::{Form, Grid};
use crate::math::rounding::{Codes, Rounding, energies, permute, stretches};
use crate::math::shrink::{Shrunk, UNKNOWN, believed, for_half, intensity};
use crate::passes::Context;
use anyhow::{Context as _, Result};
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use std::borrow::Cow;
use std::sync::Arc;

/// The λ of moments, in units of that which is best for them as a whole (`math::shrink`).
const TIMES: f64 = 2.0;

/// How weights are stored.
#[derive(Clone, Copy, Debug)]
pub struct Scheme {
    /// Signed codes: S8 or S4.
    pub kind: IntKind,
    /// Weights that share a scale; 0: all of an output.
    pub block: usize,
    /// Zero points.
    pub zeros: bool,
    /// Scales may be negative.
    pub negative: bool,
}

impl Scheme {
    /// The first default operator set that can dequantize it.
    pub fn opset(self) -> i64 {
        match self.block == 0 && self.kind == IntKind::S8 {
            true => 13,
            false => 21,
        }
    }
}

/// A weight in integers.
pub struct Fitted {
    /// Of the codes.
    pub kind: IntKind,
    /// rows × columns of the view.
    pub codes: Array2<i8>,
    /// Parameters.
    pub grid: Grid,
    /// What its bias must gain so that outputs keep their mean; empty when the bias is not to change.
    pub shift: Vec<f32>,
    /// Signal to noise of the products, dB; of the weight itself where nothing was measured.
    pub sqnr: f64,
}

/// Second moments over two halves of the samples; the second half may be empty.
pub struct Data {
    halves: [Stats; 2],
    objects: Option<Arc<Objects>>,
}

/// What of the data codes are rounded by.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    halves: [&'a Stats; 2],
    /// The first half alone; the other only says how far it is to be believed.
    first: bool,
    /// What was rounded before, within a search.
    objects: Option<&'a Objects>,
}

impl<'a> Seen<'a> {
    /// All that two halves of the samples say.
    pub fn of(halves: [&'a Stats; 2]) -> Seen<'a> {
        Seen {
            halves,
            first: false,
            objects: None,
        }
    }
}

impl Data {
    /// Measures the inputs of weights; `None` when there is nothing to measure, or no real data to measure with.
    ///
    /// # Errors
    /// When the engine cannot run the model, or a sample fails.
    pub fn measure<'w>(
        model: &Model,
        weights: impl IntoIterator<Item = &'w Weight>,
        cx: &Context,
    ) -> Result<Option<Data>> {
        let mut weights = weights.into_iter().peekable();
        if cx.samples.synthetic() || weights.peek().is_none() {
            return Ok(None);
        }
        let wanted = weights.flat_map(|w| w.measures(model));
        Ok(Some(Data {
            halves: cx.halves(model, wanted)?,
            objects: cx.objects.cloned(),
        }))
    }

    /// All samples.
    pub fn all(&self) -> Seen<'_> {
        Seen {
            objects: self.objects.as_deref(),
            ..Seen::of(self.halves.each_ref())
        }
    }

    /// The first half.
    pub fn half(&self) -> Seen<'_> {
        Seen {
            first: true,
            ..self.all()
        }
    }
}

/// What is known of the inputs of a weight: moments for each group of rows.
struct Known {
    moments: Vec<Shrunk>,
    /// A bias can take up the mean error.
    movable: bool,
}

/// Fits codes to a weight, seen as the matrix of `view`.
///
/// # Errors
/// When the weight is not finite.
pub fn fit(model: &Model, w: &Weight, view: &View, scheme: Scheme, data: Option<Seen>) -> Result<Fitted> {
    let tensor = model.constant(w.value).context("a constant")?;
    let floats = tensor.floats().context("float32")?;
    let matrix = view.matrix(&w.dims, &floats)?;
    let known = data.and_then(|d| known(model, w, d));
    let natural: Vec<usize> = (0..w.dims.len()).filter(|a| *a != w.axis).collect();
    let order = view.order(&natural, &w.dims);
    let span = match scheme.block {
        0 => matrix.ncols(),
        _ => view.span(&w.dims).1,
    };
    let form = Form {
        kind: scheme.kind,
        block: if scheme.block == 0 { span } else { scheme.block },
        span,
        zeros: scheme.zeros,
        negative: scheme.negative,
    };
    let Some(known) = known else {
        let grid = Grid::best(matrix.view(), form, None)?;
        let codes = grid.nearest(matrix.view());
        let power = |m: &Array2<f32>| m.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let sqnr = decibels(power(&matrix), power(&(&matrix - &grid.values(codes.view()))));
        return Ok(Fitted {
            kind: scheme.kind,
            codes,
            grid,
            shift: Vec::new(),
            sqnr,
        });
    };
    let rows = matrix.nrows() / known.moments.len().max(1);
    let (mut parts, mut signal, mut noise, mut shift) = (Vec::new(), 0.0, 0.0, Vec::new());
    for (g, moments) in known.moments.into_iter().enumerate() {
        let mean = known.movable.then(|| moments.mean.clone());
        let mut second = if known.movable {
            moments.covariance
        } else {
            moments.into_moment()
        };
        second = repeated(second, matrix.ncols());
        permute(&mut second, &order);
        let part = matrix.slice(s![g * rows..(g + 1) * rows, ..]);
        let made = || data_aware(part, form, second.view());
        let objects = data.and_then(|d| d.objects);
        let rows = Objects::get_in(objects, || key(part, form, second.view()), Rows::bytes, made)?;
        signal += rows.powers.iter().sum::<f64>();
        noise += rows.wrong.iter().sum::<f64>();
        if let Some(mean) = mean {
            let error = &part - &rows.grid.values(rows.codes.view());
            shift.extend(
                error
                    .rows()
                    .into_iter()
                    .map(|r| r.iter().zip(&order).map(|(e, &i)| f64::from(*e) * mean[i]).sum::<f64>() as f32),
            );
        }
        parts.push(rows);
    }
    if signal == 0.0 {
        return fit(model, w, view, scheme, None); // inputs are always zero on the data
    }
    let (codes, grid) = joined(&parts)?;
    Ok(Fitted {
        kind: scheme.kind,
        codes,
        grid,
        shift,
        sqnr: decibels(signal, noise),
    })
}

fn decibels(signal: f64, noise: f64) -> f64 {
    10.0 * (signal / noise).log10()
}

/// The moments of a weight: those of its sites added up, when their rows mean the same.
fn known(model: &Model, w: &Weight, data: Seen) -> Option<Known> {
    let mut halves: [Option<Cow<[Gram]>>; 2] = [None, None];
    for (sums, stats) in halves.iter_mut().zip(data.halves).filter(|(_, s)| s.samples > 0) {
        // Of a transposed convolution it is that of the channels alone, which its taps share.
        let sites = w
            .sites
            .iter()
            .map(|s| (!s.is_transposed()).then_some((s.input, &s.patch)));
        let steps = w.steps.iter().map(|v| w.stepped.then_some((*v, &Patch::LAST)));
        for read in sites.chain(steps) {
            let (input, patch) = read?;
            let grams = stats.gram(input, patch)?;
            match sums {
                None => *sums = Some(Cow::Borrowed(grams)),
                Some(sums) if sums.len() == grams.len() => {
                    for (sum, g) in sums.to_mut().iter_mut().zip(grams) {
                        sum.merge(g).ok()?;
                    }
                }
                Some(_) => return None,
            }
        }
    }
    let [one, other] = halves;
    let one = one?;
    let both = |(i, one): (usize, &Gram)| {
        let other = other.as_ref().map(|o| &o[i]);
        match data.first {
            true => {
                let all = other.map_or(Ok(UNKNOWN), |o| intensity(TIMES, one, o))?;
                Ok(Shrunk::new(one, for_half(all)))
            }
            false => believed(TIMES, one, other),
        }
    };
    let all: Result<Vec<Shrunk>> = one.iter().enumerate().map(both).collect();
    let all = Some(all.ok()?);
    let [site] = &w.sites[..] else {
        return Some(Known {
            moments: all?,
            movable: false,
        });
    };
    let movable = w.nodes.len() == 1
        && !site.shared
        && site
            .bias
            .is_some_and(|b| model.constant(b.value).is_some() && b.scale == 1.0)
        && site.owns_bias(model)
        && site.bias_values(model).is_some_and(|b| b.len() == site.outputs())
        && site
            .bias
            .and_then(|b| model.constant(b.value))
            .is_some_and(|t| t.len() == site.outputs());
    Some(Known { moments: all?, movable })
}

/// A moment of so many columns: those of a recurrent layer hold its directions, each of which multiplies the same and adds to a sum of its own.
fn repeated(second: Array2<f64>, columns: usize) -> Array2<f64> {
    let n = second.nrows();
    if n == columns {
        return second;
    }
    let mut all = Array2::zeros((columns, columns));
    for start in (0..columns).step_by(n.max(1)).filter(|start| start + n <= columns) {
        all.slice_mut(s![start..start + n, start..start + n]).assign(&second);
    }
    all
}

/// Tells all that [`data_aware`] depends on.
fn key(w: ArrayView2<f32>, form: Form, second: ArrayView2<f64>) -> Key {
    let (w, second) = (w.as_standard_layout(), second.as_standard_layout());
    let key = Key::new("rows on a grid", "").text(&format!("{form:?} {:?}", w.dim()));
    key.numbers(w.as_slice().unwrap_or_default())
        .numbers(second.as_slice().unwrap_or_default())
}

/// Rows with parameters, and how wrong each is.
struct Rows {
    codes: Array2<i8>,
    grid: Grid,
    wrong: Vec<f64>,
    /// Of the products of the weights.
    powers: Vec<f64>,
}

impl Rows {
    fn bytes(&self) -> usize {
        self.codes.len() + 5 * self.grid.scales.len() + 16 * self.wrong.len()
    }

    /// The grid with the scales that serve the codes of some rows best.
    fn rescaled(&self, w: ArrayView2<f32>, rows: &[usize], seen: (&Rounding, ArrayView2<f64>)) -> Result<Grid> {
        let (old, codes) = (self.grid.of(rows), self.codes.select(Axis(0), rows));
        let new = match old.blocks(w.ncols()) {
            1 => {
                let pick = |all: &[f64]| rows.iter().map(|&i| all[i]).collect::<Vec<_>>();
                let own = seen.0.energies(old.values(codes.view()).view());
                let all = Array1::from(stretches(&pick(&self.powers), &own, &pick(&self.wrong)));
                old.scales * all.insert_axis(Axis(1))
            }
            _ => old.refit(w.select(Axis(0), rows).view(), codes.view(), seen.1)?.scales,
        };
        let mut grid = self.grid.clone();
        let pairs = rows.iter().zip(new.rows());
        pairs.for_each(|(&i, scales)| grid.scales.row_mut(i).assign(&scales));
        Ok(grid)
    }

    /// Takes over those of some `rows` that are better on another grid, and gives them.
    fn improve(&mut self, rows: &[usize], grid: &Grid, found: &Codes) -> Vec<usize> {
        let places = (0..rows.len()).filter(|&k| found.energies[k] < self.wrong[rows[k]]);
        let places: Vec<usize> = places.collect();
        for &k in &places {
            let i = rows[k];
            self.wrong[i] = found.energies[k];
            self.codes.row_mut(i).assign(&found.codes.row(k));
            self.grid.scales.row_mut(i).assign(&grid.scales.row(i));
            self.grid.zeros.row_mut(i).assign(&grid.zeros.row(i));
        }
        places.into_iter().map(|k| rows[k]).collect()
    }
}

/// The best rows.
fn data_aware(w: ArrayView2<f32>, form: Form, second: ArrayView2<f64>) -> Result<Rows> {
    /// How often scales are fitted to codes.
    const REFITS: usize = 3;
    let importance = second.diag().to_vec();
    let grid = Grid::best(w, form, Some(&importance))?;
    let Some(rounding) = Rounding::new(second) else {
        let codes = grid.nearest(w);
        let wrong = energies((&w - &grid.values(codes.view())).view(), second);
        return Ok(Rows {
            codes,
            grid,
            wrong,
            powers: energies(w, second),
        });
    };
    let mut rows: Vec<usize> = (0..w.nrows()).collect();
    let Codes { codes, energies } = rounding.on_grid(w, &grid, &rows)?;
    let mut best = Rows {
        codes,
        grid,
        wrong: energies,
        powers: rounding.energies(w),
    };
    let plain = Grid::best(w, form, None)?;
    best.improve(&rows, &plain, &rounding.on_grid(w, &plain, &rows)?);
    if form.kind.qmax() < 127 {
        for _ in 0..REFITS {
            // A row that this did not help would be fitted in the same way once more.
            let fitted = best.rescaled(w, &rows, (&rounding, second))?;
            rows = best.improve(&rows, &fitted, &rounding.on_grid(w, &fitted, &rows)?);
            if rows.is_empty() {
                break;
            }
        }
    }
    Ok(best)
}

fn joined(parts: &[Arc<Rows>]) -> Result<(Array2<i8>, Grid)> {
    let first = parts.first().context("a group")?;
    fn stack<T: Clone>(all: Vec<ArrayView2<T>>) -> Result<Array2<T>> {
        Ok(ndarray::concatenate(Axis(0), &all)?)
    }
    let grid = Grid {
        scales: stack(parts.iter().map(|p| p.grid.scales.view()).collect())?,
        zeros: stack(parts.iter().map(|p| p.grid.zeros.view()).collect())?,
        ..first.grid.clone()
    };
    Ok((stack(parts.iter().map(|p| p.codes.view()).collect())?, grid))
}
