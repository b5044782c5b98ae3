//! What reads a layer's outputs next: the weights that they meet, through activations and what else acts on channels alone.
//!
//! From the output on, values are followed through elementwise operators, pooling and flattening, until sites of layers read them.
//! When anything else does (a residual sum, a normalization over channels, an output of the model), nothing is known.
//! Only the measure of errors rests on this: where it is rough (padding, taps that see the same position), nothing breaks.

use super::metric::{passing, passing_each};
use crate::analysis::sites::{Site, site};
use crate::ir::{Model, Node, NodeId, Use, ValueId};
use crate::math::decompose::add_product;
use ndarray::{Array1, Array2, s};
use std::collections::BTreeSet;

/// Operators of one value, or of several that all come from the same outputs, that leave channels where they are.
const ALONE: &[&str] = &[
    "Identity",
    "Dropout",
    "Tanh",
    "Sigmoid",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Pad",
    "Abs",
    "Sqrt",
];
/// Of these, those that cut off what is below zero, or nearly.
const CUT: &[&str] = &[
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Clip",
    "Elu",
    "Selu",
    "Celu",
    "Softplus",
    "HardSwish",
    "HardSigmoid",
    "Gelu",
    "Mish",
    "Erf",
];
/// Sums and products: with constants, too.
const PAIRS: &[&str] = &["Add", "Sub", "Mul", "Div"];
/// Not many more numbers of a reader's weight than this are looked at: 64 MB.
const ENTRIES: usize = 8 << 20;
/// Values that are followed.
const FOLLOWED: usize = 32;

/// The weights that read a layer's outputs, as one metric.
pub struct Readers {
    /// Rows of `K`, of all readers, one below the other: any × out.
    rows: Vec<Array2<f64>>,
    /// True when an activation cuts outputs off before they are read.
    cut: bool,
}

impl Readers {
    /// The readers of a site; `None` when they are not all known.
    pub fn of(model: &Model, from: &Site) -> Option<Readers> {
        let out = from.outputs();
        let mut walk = Walk {
            model,
            out,
            spatial: from.layout.output_axis == 1,
            factor: Array1::ones(out),
            cut: false,
            flat: false,
            sites: Vec::new(),
        };
        walk.follow(model.node(from.bias.map_or(from.node, |b| b.node)).output(0)?)?;
        let rows = walk.sites.iter().map(|site| walk.rows(site)).collect::<Option<_>>()?;
        Some(Readers { rows, cut: walk.cut })
    }

    /// The metric `Σ (KᵀK) ∘ E[s' s'ᵀ]`, for outputs of this mean and covariance.
    pub fn metric(&self, mean: &Array1<f64>, covariance: &Array2<f64>) -> Array2<f64> {
        let mut gram = Array2::zeros(covariance.dim());
        for rows in &self.rows {
            add_product(&mut gram, 1.0, rows.t(), rows.view());
        }
        if self.cut {
            gram *= &passing(mean, covariance);
        }
        gram
    }

    /// The diagonal of the metric.
    pub fn each(&self, mean: &Array1<f64>, variances: &Array1<f64>) -> Array1<f64> {
        let mut all = Array1::zeros(mean.len());
        for row in self.rows.iter().flat_map(|r| r.rows()) {
            all.zip_mut_with(&row, |sum, x| *sum += x * x);
        }
        if self.cut {
            all *= &passing_each(mean, variances);
        }
        all
    }
}

struct Walk<'m> {
    model: &'m Model,
    out: usize,
    /// Channels lie on axis 1, positions behind them.
    spatial: bool,
    /// By which channels were multiplied on the way.
    factor: Array1<f64>,
    cut: bool,
    /// Positions have become channels: each channel is a run of them.
    flat: bool,
    sites: Vec<Site>,
}

impl Walk<'_> {
    fn follow(&mut self, start: ValueId) -> Option<()> {
        let mut seen = BTreeSet::from([start]);
        let mut done: BTreeSet<NodeId> = BTreeSet::new();
        loop {
            let open = seen
                .iter()
                .flat_map(|v| self.model.value(*v).uses().iter().map(move |u| (*v, *u)));
            let mut next = Vec::new();
            let mut waiting = false;
            for (value, reader) in open.collect::<Vec<_>>() {
                let Use::Node(id, slot) = reader else { return None };
                if done.contains(&id) {
                    continue;
                }
                let node = self.model.node(id);
                if node.graph() != self.model.main_id() {
                    return None;
                }
                if let Some(Ok(site)) = site(self.model, id) {
                    if site.input != value || site.input_slot != slot || !self.fits(&site) {
                        return None;
                    }
                    self.sites.push(site);
                    done.insert(id);
                } else if self.ready(node, &seen) {
                    self.pass(node)?;
                    next.push(node.output(0)?);
                    done.insert(id);
                } else {
                    waiting = true;
                }
            }
            if next.is_empty() {
                return (!waiting && !self.sites.is_empty()).then_some(());
            }
            seen.extend(next);
            if seen.len() > FOLLOWED {
                return None;
            }
        }
    }

    /// True when all that a node computes with is constant or comes from the outputs.
    fn ready(&self, node: &Node, seen: &BTreeSet<ValueId>) -> bool {
        let known = |v: &ValueId| seen.contains(v) || self.model.constant(*v).is_some();
        node.inputs().iter().flatten().all(known)
    }

    /// Goes through an operator, if channels stay where they are.
    fn pass(&mut self, node: &Node) -> Option<()> {
        let is = |names: &[&str]| names.iter().any(|n| node.is(n));
        if is(CUT) {
            self.cut = true;
        } else if is(PAIRS) {
            let constant = |i: usize| self.model.constant(node.input(i)?)?.to_f32();
            let (a, b) = (constant(0), constant(1));
            if node.is("Mul") && a.is_none() && b.is_none() {
                self.cut = true; // x · sigmoid(x) and its like
            }
            match b.or(a) {
                Some(c) if node.is("Mul") => self.scale(c.iter().map(|x| f64::from(*x)).collect())?,
                Some(c) if node.is("Div") => self.scale(c.iter().map(|x| 1.0 / f64::from(*x)).collect())?,
                _ => {}
            }
        } else if node.is("BatchNormalization") {
            let of = |i: usize| Some(self.model.constant(node.input(i)?)?.to_f32()?.to_vec());
            let (scale, variance) = (of(1)?, of(4)?);
            let epsilon = node.float("epsilon").unwrap_or(1e-5);
            let pairs = scale.iter().zip(&variance);
            self.scale(pairs.map(|(s, v)| f64::from(s / (v + epsilon).sqrt())).collect())?;
        } else if node.is("Flatten") || node.is("Reshape") {
            if !self.spatial || node.is("Flatten") && node.int_or("axis", 1) != 1 {
                return None;
            }
            self.flat = true;
        } else if !is(ALONE) {
            return None;
        }
        Some(())
    }

    fn scale(&mut self, by: Vec<f64>) -> Option<()> {
        match by.len() {
            1 => Some(()), // all alike
            n if n == self.out && !self.flat => {
                self.factor *= &Array1::from_vec(by);
                Some(())
            }
            _ => None,
        }
    }

    fn fits(&self, site: &Site) -> bool {
        let window = site.layout.window.as_ref();
        let inputs = site.inputs();
        let axis = match self.flat {
            true => site.layout.input_axis == -1,
            false => (site.layout.input_axis == 1) == self.spatial,
        };
        let length = inputs == self.out || self.flat && inputs.is_multiple_of(self.out);
        site.layout.groups == 1 && window.is_none_or(|w| !w.transposed) && axis && length
    }

    /// Rows of a reader's weight, for every tap or position; some of them where there are many.
    fn rows(&self, site: &Site) -> Option<Array2<f64>> {
        let matrix = site.matrix(self.model).ok()?;
        let each = matrix.ncols() / self.out;
        if each == 0 || each * self.out != matrix.ncols() {
            return None;
        }
        let all = matrix.nrows() * each;
        let step = all.div_ceil((ENTRIES / self.out).max(64));
        let scale = f64::from(site.layout.scale) * (step as f64).sqrt();
        let mut rows = Array2::zeros((all.div_ceil(step), self.out));
        for (k, mut row) in rows.rows_mut().into_iter().enumerate() {
            let (o, t) = ((k * step) / each, (k * step) % each);
            row.zip_mut_with(&matrix.slice(s![o, t..;each]), |x, &w| *x = scale * f64::from(w));
            row *= &self.factor;
        }
        Some(rows)
    }
}
