//! What is known of the inputs of readers, and readers fitted to the inputs that are left.
//!
//! Moments are measured over two halves of the samples: what was fitted on the first can be tried on the second. A k×k Conv is fitted to whole windows where that is affordable,
//! else every tap by the same factors. The mean is kept through the bias, where there can be one.

use super::Context;
use super::fold::{Shift, takes_shift};
use super::units::Reader;
use crate::analysis::readers::{Reach, Readers};
use crate::analysis::sites::site;
use crate::analysis::stats::{Detail, Measure, Stats};
use crate::ir::{Model, NodeId, Tensor, ValueId};
use crate::math::channels::{Refit, Surgeon, bias_shift, power, refit};
use crate::math::decompose::{add_product, matmul};
use crate::math::metric::Metric;
use crate::math::shrink::powers;
use crate::ops::ties::{Dot, constant};
use anyhow::{Context as _, Result};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, ArrayViewD, Axis, IxDyn};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};

/// Relative to the mean variance of the channels: what is below this is noise of the sample.
const DAMPING: f64 = 0.01;
/// Of wider inputs not all columns are looked at when it is decided which channels go.
const WIDE: usize = 1280;
/// Bytes of moments that are kept ready.
const CACHE: usize = 256 << 20;

/// Which samples something is fitted to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The first half.
    Half,
    /// All of them.
    All,
}

/// Second moments of the inputs of all readers over either half of the samples.
pub struct Moments {
    halves: [Stats; 2],
    /// What was made of them, by the reader's output; bounded by [`CACHE`].
    made: Mutex<Made>,
}

type Made = BTreeMap<(ValueId, Part), Option<Arc<Known>>>;

/// What is known of a reader's input.
struct Known {
    /// The map as it was.
    map: Array2<f64>,
    /// The same where errors of its outputs count as what reads those next makes of them, if that is known; made when it is asked for.
    judged: OnceLock<Option<Array2<f64>>>,
    /// The power of its output.
    power: f64,
    mean: Array1<f64>,
    /// Around the mean where the bias can take it up, else around zero.
    second: Array2<f64>,
    centered: bool,
    /// From how many rows.
    rows: u64,
}

impl Moments {
    /// Runs the model over the samples.
    ///
    /// # Errors
    /// As [`Context::stats`].
    pub fn measured(model: &Model, cx: &Context, readers: &BTreeMap<NodeId, Option<Reader>>) -> Result<Moments> {
        let moment = |r: &Reader| r.patch.clone().map(|p| (r.input, Measure::Gram(p, Detail::Fine)));
        Ok(Moments {
            halves: cx.halves(model, readers.values().flatten().filter_map(moment))?,
            made: Mutex::default(),
        })
    }

    /// What is known of a reader; `None` when it is only cut.
    fn known(&self, model: &Model, (id, r): (NodeId, &Reader), part: Part) -> Result<Option<Arc<Known>>> {
        let made = || self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(known) = made().get(&(r.out, part)) {
            return Ok(known.clone());
        }
        let known = self.make(model, (id, r), part)?.map(Arc::new);
        let mut made = made();
        let kept: usize = made.values().flatten().map(|k| k.second.len() * 8).sum();
        if kept + known.as_ref().map_or(0, |k| k.second.len() * 8) <= CACHE {
            made.insert((r.out, part), known.clone());
        }
        Ok(known)
    }

    fn make(&self, model: &Model, (id, r): (NodeId, &Reader), part: Part) -> Result<Option<Known>> {
        let Some(patch) = &r.patch else { return Ok(None) };
        let of = |s: &'_ Stats| {
            s.gram(r.input, patch)
                .and_then(|g| g.first())
                .filter(|g| g.n > 0)
                .cloned()
        };
        let (Some(one), other) = (of(&self.halves[0]), of(&self.halves[1])) else {
            return Ok(None);
        };
        let sums = match (part, other) {
            (Part::All, Some(other)) => {
                let mut all = one;
                all.merge(&other)?;
                all
            }
            (_, _) => one,
        };
        let map = constant(model, r.weight).and_then(|t| matrix(&t, r));
        let Some(map) = map.filter(|m| m.ncols() == sums.dim()) else {
            return Ok(None);
        };
        let centered = takes_shift(model, id, &r.dot);
        let second = if centered { sums.covariance() } else { sums.moment() };
        if !second.diag().iter().any(|x| *x > 0.0) {
            return Ok(None);
        }
        Ok(Some(Known {
            judged: OnceLock::new(),
            power: power(map.view(), second.view()),
            map,
            mean: sums.mean(),
            centered,
            second,
            rows: sums.n,
        }))
    }
}

impl Known {
    /// The map after the metric of its outputs; as it is where nobody knows what reads them.
    ///
    /// # Errors
    /// When the eigenproblem fails.
    fn judged(&self, model: &Model, id: NodeId) -> Result<&Array2<f64>> {
        let judged = match self.judged.get() {
            Some(judged) => judged,
            None => {
                let metric = self.metric(model, id)?;
                self.judged.get_or_init(|| metric.map(|m| m.apply(&self.map)))
            }
        };
        Ok(judged.as_ref().unwrap_or(&self.map))
    }

    /// What errors of its outputs count; `None` when no reader of them is known, or a line of the map is not an output.
    fn metric(&self, model: &Model, id: NodeId) -> Result<Option<Metric>> {
        let Some(Ok(site)) = site(model, id) else {
            return Ok(None);
        };
        let readers = Readers::of(model, &site, Reach::Found).filter(|_| site.outputs() == self.map.nrows());
        let Some(readers) = readers else { return Ok(None) };
        let (map, scale) = (&self.map, f64::from(site.layout.scale));
        let mut mean = map.dot(&self.mean) * scale;
        if let Some(bias) = site.bias_values(model) {
            mean.zip_mut_with(&ArrayView1::from(&bias[..]), |mean, b| *mean += f64::from(*b));
        }
        let mut covariance = Cow::Borrowed(&self.second);
        if !self.centered {
            add_product(covariance.to_mut(), -1.0, column(&self.mean), column(&self.mean).t());
        }
        let square = scale * scale;
        let whole = || matmul(matmul(map.view(), covariance.view()).view(), map.t()) * square;
        let each = || Array1::from_vec(powers(map.view(), covariance.view())) * square;
        readers.judge(&mean, whole, each)
    }
}

fn column(v: &Array1<f64>) -> ArrayView2<'_, f64> {
    v.view().insert_axis(Axis(1))
}

/// One reader under the knife.
pub struct Patient {
    /// Which.
    pub id: NodeId,
    /// Its map.
    pub surgeon: Surgeon,
    /// Column of the reader → column of the map, when it is looked at.
    place: Vec<Option<usize>>,
    taps: usize,
}

impl Patient {
    /// A reader with all its inputs; `None` when it is only cut. `units` are channels that go together: of very wide inputs only a part
    /// of the columns of each is looked at, spread evenly.
    ///
    /// # Errors
    /// When numbers are not finite.
    pub fn open(
        model: &Model,
        (id, r): (NodeId, &Reader),
        (moments, part): (&Moments, Part),
        units: &[&[usize]],
    ) -> Result<Option<Patient>> {
        let Some(known) = moments.known(model, (id, r), part)? else {
            return Ok(None);
        };
        let map = known.judged(model, id)?;
        let n = map.ncols();
        let step = n.div_ceil(WIDE).max(1);
        let mut looked = vec![true; n];
        for unit in units {
            let thin = unit.len().div_ceil(step) > 1;
            columns(unit, r.taps)
                .into_iter()
                .enumerate()
                .filter(|(k, _)| thin && k % step != 0)
                .for_each(|(_, c)| {
                    if let Some(l) = looked.get_mut(c) {
                        *l = false;
                    }
                });
        }
        let kept: Vec<usize> = (0..n).filter(|j| looked[*j]).collect();
        let mut place = vec![None; n];
        kept.iter().enumerate().for_each(|(k, j)| place[*j] = Some(k));
        let surgeon = match kept.len() == n {
            true => Surgeon::new(map.clone(), (known.second.view(), known.rows), DAMPING),
            false => {
                let second = known.second.select(Axis(0), &kept).select(Axis(1), &kept);
                Surgeon::new(map.select(Axis(1), &kept), (second.view(), known.rows), DAMPING)
            }
        };
        Ok(Some(Patient {
            id,
            surgeon: surgeon.with_context(|| format!("prune: refitting {}", model.label(id)))?,
            place,
            taps: r.taps,
        }))
    }

    /// The columns of these channels, as far as they are looked at.
    pub fn columns(&self, channels: &[usize]) -> Vec<usize> {
        let place = |c: usize| self.place.get(c).copied().flatten();
        columns(channels, self.taps).into_iter().filter_map(place).collect()
    }
}

fn columns(channels: &[usize], taps: usize) -> Vec<usize> {
    channels.iter().flat_map(|c| c * taps..(c + 1) * taps).collect()
}

/// A reader that has lost inputs; its weight has the old shape, with zeros where inputs are gone.
#[derive(Clone)]
pub struct Fitted {
    /// Which.
    pub id: NodeId,
    /// The constant that changes.
    pub weight: ValueId,
    /// What it becomes.
    pub tensor: Tensor,
    /// By how much the sum of every row grows.
    pub shift: Option<Vec<f64>>,
    /// In parts of the output's power, when it was refitted.
    pub lost: Option<f64>,
}

impl Fitted {
    /// A reader without these channels; refitted when something is known, else only cut.
    ///
    /// # Errors
    /// When numbers are not finite.
    pub fn new(
        model: &Model,
        (id, r): (NodeId, &Reader),
        gone: &BTreeSet<usize>,
        moments: Option<(&Moments, Part)>,
    ) -> Result<Option<Fitted>> {
        let Some(t) = constant(model, r.weight) else {
            return Ok(None);
        };
        let shifts = takes_shift(model, id, &r.dot);
        let known = match moments {
            Some((m, part)) => m.known(model, (id, r), part)?,
            None => None,
        };
        let Some(known) = known.filter(|k| k.map.ncols() % r.taps == 0) else {
            return Ok(cut(&t, &r.dot, gone).map(|tensor| Fitted {
                id,
                weight: r.weight,
                tensor,
                shift: None,
                lost: None,
            }));
        };
        let map = &known.map;
        let left: Vec<usize> = (0..map.ncols() / r.taps).filter(|c| !gone.contains(c)).collect();
        let fit = match left.is_empty() {
            true => Refit {
                weight: Array2::zeros(map.dim()),
                lost: 1.0,
            },
            false => refit(
                map.view(),
                (known.second.view(), known.rows, known.power),
                &columns(&left, r.taps),
                DAMPING,
            )
            .with_context(|| format!("prune: refitting {}", model.label(id)))?,
        };
        let shift = shifts.then(|| {
            let lines = bias_shift(map.view(), fit.weight.view(), known.mean.view());
            by_row(&lines, t.dims(), r)
        });
        Ok(rebuilt(&t, r, &fit.weight).map(|tensor| Fitted {
            id,
            weight: r.weight,
            tensor,
            shift,
            lost: Some(fit.lost),
        }))
    }

    /// The change of its bias.
    pub fn bias(&self, r: &Reader) -> Option<Shift> {
        let by_row = self.shift.clone()?;
        Some(Shift {
            node: self.id,
            dot: r.dot.clone(),
            out: r.out,
            by_row,
        })
    }
}

/// The sums of the lines that belong to the same row.
pub fn by_row(lines: &Array1<f64>, dims: &[usize], r: &Reader) -> Vec<f64> {
    let mut rows = vec![0.0; dims[r.dot.row]];
    for (line, x) in lines.iter().enumerate() {
        let row = if r.taps > 1 {
            line
        } else {
            row_of_line(dims, &r.dot, line)
        };
        rows[row] += x;
    }
    rows
}

/// A weight with zeros where channels are gone.
fn cut(t: &Tensor, dot: &Dot, gone: &BTreeSet<usize>) -> Option<Tensor> {
    let per_group = *t.dims().get(dot.weight.1)?;
    let gone: BTreeSet<usize> = gone.iter().map(|c| c % per_group.max(1)).collect();
    let mut raw = t.raw().into_owned();
    let width = raw.len() / t.len().max(1);
    super::facts::for_slices(t.dims(), dot.row, dot.weight.1, |_, j, at, n| {
        if gone.contains(&j) {
            raw[at * width..(at + n) * width].fill(0);
        }
    });
    Tensor::from_raw(t.dtype(), t.dims(), raw.into()).ok()
}

/// The axes of a weight with the contracted one last.
fn order(rank: usize, dot: &Dot) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rank).filter(|a| *a != dot.weight.1).collect();
    order.push(dot.weight.1);
    order
}

/// A weight as a matrix: a line for every output row, and, where taps are not told apart, every tap; a column for every number
/// of a row of the moment.
pub fn matrix(t: &Tensor, r: &Reader) -> Option<Array2<f64>> {
    let x = t.floats()?;
    if r.taps > 1 {
        let rows = *t.dims().first()?;
        let data = x.iter().map(|x| f64::from(*x)).collect();
        return Array2::from_shape_vec((rows, x.len() / rows.max(1)), data).ok();
    }
    let view = ArrayViewD::from_shape(IxDyn(t.dims()), &x).ok()?;
    let columns = *t.dims().get(r.dot.weight.1)?;
    let turned = view.permuted_axes(order(t.dims().len(), &r.dot));
    let data: Vec<f64> = turned.iter().map(|x| f64::from(*x)).collect();
    Array2::from_shape_vec((data.len() / columns.max(1), columns), data).ok()
}

/// The weight tensor of a matrix as [`matrix`] gives it.
pub fn rebuilt(t: &Tensor, r: &Reader, map: &Array2<f64>) -> Option<Tensor> {
    if map.len() != t.len() {
        return None;
    }
    if r.taps > 1 {
        return Some(Tensor::new(t.dims(), map.iter().map(|x| *x as f32).collect()));
    }
    let mut x = vec![0.0f32; t.len()];
    let view = ndarray::ArrayViewMutD::from_shape(IxDyn(t.dims()), &mut x).ok()?;
    let turned = view.permuted_axes(order(t.dims().len(), &r.dot));
    turned.into_iter().zip(map.iter()).for_each(|(w, m)| *w = *m as f32);
    Some(Tensor::new(t.dims(), x))
}

/// The output row of a line of [`matrix`].
fn row_of_line(dims: &[usize], dot: &Dot, line: usize) -> usize {
    let behind = (dot.row + 1..dims.len()).filter(|a| *a != dot.weight.1);
    let step: usize = behind.map(|a| dims[a]).product();
    line / step.max(1) % dims[dot.row]
}
