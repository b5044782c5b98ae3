//! A k×k convolution as a chain of smaller ones: the form that saves most at a given error.
//!
//! * channel: k×k to r channels, then 1×1 (the pair of [`fit`](super::fit), of windows instead of rows);
//! * input: 1×1 to r channels, then k×k;
//! * Tucker-2: 1×1 to r, k×k from r to s, 1×1;
//! * spatial: k×1 to r, then 1×k.

use super::fit::{Fit, Weight, balance};
use super::known::Known;
use super::ladder::{Chain, Covers, Cut, Layer};
use crate::analysis::sites::Site;
use crate::math::kernel::{Blocks, Features, Projection, Solver};
use crate::math::subspace::total;
use anyhow::Result;
use ndarray::{Array1, Array2, Axis, s};
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;

/// The sizes of a convolution that costs depend on.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Output channels.
    pub out: usize,
    /// Input channels.
    pub channels: usize,
    /// Kernel sizes.
    pub kernel: Vec<usize>,
    /// Input positions for every output position, along each axis.
    pub strides: Vec<usize>,
}

/// Weights and multiply-adds, as parts of those of the whole layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Weights.
    pub params: f64,
    /// Multiply-adds.
    pub macs: f64,
}

/// A way to part a layer, with its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// To `.0` channels with the whole kernel, then 1×1; dense layers: two of rank `.0`.
    Pair(usize),
    /// 1×1 to `.0` channels, then the kernel.
    Input(usize),
    /// 1×1 to `.0`, kernel to `.1`, 1×1.
    Tucker(usize, usize),
    /// k×1 to `.0` channels, then 1×k.
    Spatial(usize),
}

impl Shape {
    /// The shape of a site; a dense layer is a convolution without spatial axes.
    pub fn of(site: &Site) -> Shape {
        let window = site.layout.window.as_ref();
        Shape {
            out: site.outputs(),
            channels: site.inputs(),
            kernel: window.map_or(vec![], |w| w.kernel.clone()),
            strides: window.map_or(vec![], |w| w.strides.clone()),
        }
    }

    fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// What a form costs.
    pub fn cost(&self, form: Form) -> Cost {
        let (out, channels, taps) = (self.out as f64, self.channels as f64, self.taps() as f64);
        let whole = out * channels * taps;
        let (params, macs) = match form {
            Form::Pair(r) => {
                let n = r as f64 * (channels * taps + out);
                (n, n)
            }
            Form::Input(r) => self.three(r, None),
            Form::Tucker(r, s) => self.three(r, Some(s)),
            Form::Spatial(r) => {
                let (first, second) = (
                    r as f64 * channels * self.kernel[0] as f64,
                    r as f64 * out * self.kernel[1] as f64,
                );
                (first + second, first * self.strides[1] as f64 + second)
            }
        };
        Cost {
            params: params / whole,
            macs: macs / whole,
        }
    }

    fn three(&self, r: usize, s: Option<usize>) -> (f64, f64) {
        let first = r as f64 * self.channels as f64;
        let rest = match s {
            None => (r * self.taps()) as f64 * self.out as f64,
            Some(s) => (r * self.taps()) as f64 * s as f64 + s as f64 * self.out as f64,
        };
        let positions: usize = self.strides.iter().product();
        (first + rest, first * positions as f64 + rest)
    }

    /// The largest multiple of `step` (at most `limit`) at which a form is cheap enough; 0 when there is none.
    pub fn largest(
        &self,
        step: usize,
        limit: usize,
        cheap: impl Fn(Cost) -> bool,
        form: impl Fn(usize) -> Form,
    ) -> usize {
        let fits = |r: &usize| cheap(self.cost(form(*r)));
        (1..=limit / step)
            .map(|i| i * step)
            .take_while(fits)
            .last()
            .unwrap_or(0)
    }
}

impl Form {
    /// In words.
    pub fn words(&self) -> String {
        match self {
            Form::Pair(r) => format!("rank {r}"),
            Form::Input(r) => format!("1×1 to {r}, then the kernel"),
            Form::Tucker(r, s) => format!("Tucker-2 of ranks {r} and {s}"),
            Form::Spatial(r) => format!("k×1 then 1×k, rank {r}"),
        }
    }
}

/// One projection with its features over both halves and over all.
struct Way {
    projection: [Projection; 2],
    half: Features,
    unseen: Features,
    solver: Solver,
    most: usize,
    spatial: bool,
    /// What is lost at ranks that were tried.
    tried: RefCell<BTreeMap<usize, f64>>,
    all: OnceCell<(Features, Solver)>,
}

/// Every way to part a convolution.
pub struct Ways<'a> {
    shape: Shape,
    weight: &'a Weight,
    known: &'a Known,
    ways: Vec<Way>,
    power: f64,
    step: usize,
}

impl<'a> Ways<'a> {
    /// Prepares the ways that can be cheap enough.
    ///
    /// # Errors
    /// When numbers are not finite.
    pub fn new(
        site: &Site,
        weight: &'a Weight,
        known: &'a Known,
        step: usize,
        cheap: impl Fn(Cost) -> bool,
    ) -> Result<Ways<'a>> {
        let shape = Shape::of(site);
        let mut ways = Vec::new();
        let w = weight.scaled.view();
        let mut add = |blocks: Blocks, most: usize, spatial: bool| -> Result<()> {
            if most == 0 {
                return Ok(());
            }
            let make = |g: &Array2<f64>| Projection::new(w, g.view(), &blocks, most);
            let projection = [make(&known.all)?, make(&known.half)?];
            let half = projection[1].features(known.half.view());
            ways.push(Way {
                solver: projection[1].solver(&half)?,
                half,
                unseen: projection[1].features(known.unseen().view()),
                projection,
                most,
                spatial,
                tried: RefCell::default(),
                all: OnceCell::new(),
            });
            Ok(())
        };
        // Tucker-2 may use larger input ranks than the input form alone: outputs save as well.
        let channels = shape.channels;
        let inputs = shape.largest(step, channels * 3 / 4, &cheap, |r| Form::Tucker(r, step));
        add(Blocks::taps(channels, shape.taps()), inputs, false)?;
        if let &[rows, cols] = shape.kernel.as_slice()
            && rows > 1
            && cols > 1
        {
            let most = shape.largest(step, channels * rows, &cheap, Form::Spatial);
            add(Blocks::columns(channels, [rows, cols]), most, true)?;
        }
        Ok(Ways {
            power: total(w, known.spread.view()),
            shape,
            weight,
            known,
            ways,
            step,
        })
    }

    /// The cheapest form whose error on unseen samples is at most this, with that error.
    ///
    /// # Errors
    /// When a least-squares problem cannot be solved.
    pub fn best(&self, error: f64, cheap: impl Fn(Cost) -> bool) -> Result<Option<(Form, f64)>> {
        let mut best: Option<(f64, Form, f64)> = None;
        let mut offer = |form: Form, error: f64| {
            let cost = self.shape.cost(form);
            let price = cost.params * cost.macs;
            if cheap(cost) && best.as_ref().is_none_or(|b| price < b.0) {
                best = Some((price, form, error));
            }
        };
        for way in &self.ways {
            let parts: &[f64] = if way.spatial { &[1.0] } else { &[1.0, 0.6, 0.3] };
            for &part in parts {
                let Some((rank, alone)) = self.smallest(way, error * part) else {
                    continue;
                };
                if way.spatial {
                    offer(Form::Spatial(rank), alone);
                    continue;
                }
                if part == 1.0 {
                    offer(Form::Input(rank), alone);
                    continue;
                }
                let p = &way.projection[1];
                let core = p.core(&way.solver, rank);
                let (_, u) = p.outputs(&way.half, &core)?;
                let curve = p.lost_by_outputs(&way.unseen, &core, &u);
                let enough = (1..self.shape.out / self.step).map(|i| i * self.step);
                let enough = enough.into_iter().find(|&s| curve[s].max(0.0) / self.power <= error);
                if let Some(s) = enough {
                    offer(Form::Tucker(rank, s), curve[s].max(0.0) / self.power);
                }
            }
        }
        Ok(best.map(|(_, form, error)| (form, error)))
    }

    /// The smallest rank of a projection for an error, by bisection, and its error.
    fn smallest(&self, way: &Way, error: f64) -> Option<(usize, f64)> {
        let p = &way.projection[1];
        let lost = |i: usize| {
            let rank = i * self.step;
            let known = way.tried.borrow().get(&rank).copied();
            known.unwrap_or_else(|| {
                let lost = p.lost(&way.unseen, &p.core(&way.solver, rank)).max(0.0) / self.power;
                way.tried.borrow_mut().insert(rank, lost);
                lost
            })
        };
        let (mut low, mut high) = (0, way.most / self.step);
        let worst = lost(high);
        if worst.is_nan() || worst > error {
            return None;
        }
        while high - low > 1 {
            let middle = (low + high) / 2;
            if lost(middle) <= error {
                high = middle;
            } else {
                low = middle;
            }
        }
        Some((high * self.step, lost(high)))
    }

    /// The chain of a form (no pair), made from all samples, and from the first half.
    ///
    /// # Errors
    /// As [`Ways::best`].
    pub fn chains(&self, form: Form) -> Result<Option<[Chain; 2]>> {
        let spatial = matches!(form, Form::Spatial(_));
        let Some(way) = self.ways.iter().find(|w| w.spatial == spatial) else {
            return Ok(None);
        };
        let [p, half] = &way.projection;
        if way.all.get().is_none() {
            let all = p.features(self.known.all.view());
            let solver = p.solver(&all)?;
            let _ = way.all.set((all, solver));
        }
        let Some((all, solver)) = way.all.get() else {
            return Ok(None);
        };
        Ok(Some([
            self.chain(p, all, solver, form, &self.known.mean)?,
            self.chain(half, &way.half, &way.solver, form, &self.known.half_mean)?,
        ]))
    }

    fn chain(&self, p: &Projection, on: &Features, solver: &Solver, form: Form, mean: &Array1<f64>) -> Result<Chain> {
        let (rank, outputs, covers) = match form {
            Form::Pair(r) | Form::Input(r) => (r, None, [Covers::Nothing, Covers::Everything]),
            Form::Tucker(r, s) => (r, Some(s), [Covers::Nothing, Covers::Everything]),
            Form::Spatial(r) => (r, None, [Covers::Axis(0), Covers::Axis(1)]),
        };
        let mut core = p.core(solver, rank);
        let mut last = None;
        let mut made = p.output_of(&core, rank, mean);
        if let Some(s) = outputs {
            let (values, u) = p.outputs(on, &core)?;
            let mut u = u.slice(s![.., ..s]).to_owned();
            core = u.t().dot(&core);
            made = u.dot(&p.output_of(&core, rank, mean));
            balance(&values, &mut core, &mut u);
            last = Some(u);
        }
        let metric = &self.weight.metric;
        let made = metric.undo(&made.insert_axis(Axis(1)));
        let shift = self.weight.matrix.dot(mean) - made.column(0);
        match &mut last {
            Some(u) => *u = metric.undo(u),
            None => core = metric.undo(&core),
        }
        let layer = |m: Array2<f64>, covers: Covers| Layer {
            weight: Cut::whole(m.mapv(|x| x as f32)),
            covers,
        };
        let mut layers = vec![layer(p.first(rank), covers[0]), layer(core, covers[1])];
        layers.extend(last.map(|u| layer(u, Covers::Nothing)));
        Ok(Chain {
            layers,
            bias: self.weight.shifted(&shift),
        })
    }
}

/// The better of a pair and the other forms at an error, with the error that is predicted.
///
/// # Errors
/// As [`Ways::best`].
pub fn choose(
    shape: &Shape,
    fit: &Fit,
    ways: Option<&Ways>,
    error: f64,
    round: impl Fn(usize) -> usize,
    cheap: impl Fn(Cost) -> bool,
) -> Result<Option<(Form, f64)>> {
    let pair = fit.rank_for(error).map(|r| Form::Pair(round(r.max(1))));
    let pair = pair.filter(|f| cheap(shape.cost(*f)));
    let other = match ways {
        Some(w) => w.best(error, &cheap)?,
        None => None,
    };
    let price = |f: &Form| {
        let c = shape.cost(*f);
        c.params * c.macs
    };
    Ok(match (pair, other) {
        (Some(p @ Form::Pair(r)), Some((o, _))) if price(&p) <= price(&o) => Some((p, fit.error(r))),
        (_, Some(other)) => Some(other),
        (Some(p @ Form::Pair(r)), None) => Some((p, fit.error(r))),
        _ => None,
    })
}
