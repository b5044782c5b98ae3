//! What reads a layer's outputs next: the weights that they meet, through activations and what else acts on channels alone.
//!
//! From the output on, values are followed through elementwise operators, pooling and flattening, until sites of layers read them.
//! A residual sum hands errors on as they are. What anything else makes of them (a concatenation, an output of the model) is not known.
//! Only the measure of errors rests on this: where it is rough (padding, taps that see the same position), nothing breaks.

use super::sites::{Site, site};
use crate::ir::{Model, Node, NodeId, Use, ValueId};
use crate::math::decompose::add_product;
use crate::math::metric::{Metric, passing, passing_each};
use anyhow::Result;
use ndarray::{Array1, Array2, Axis, concatenate, s};
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
/// Sums and products, with constants, too; sums first.
const PAIRS: &[&str] = &["Add", "Sub", "Mul", "Div"];
/// Not many more numbers of a reader's weight than this are looked at: 64 MB.
const ENTRIES: usize = 8 << 20;
/// More outputs are judged each alone: a metric of 1,536 took 2 s, and the network with three of them was no better for it.
const WHOLE: usize = 1024;
/// Errors of neighbouring positions have this part in common, which a window with many taps adds up: `Σ KₜᵀKₜ` and
/// `(Σ Kₜ)ᵀ(Σ Kₜ)` count half each. Low rank (kernels of 64 taps: 12.3 dB instead of 11.3; 3×3: up to 0.4 dB) is better for it;
/// what pruning refits errs differently from position to position, and is up to 0.3 dB worse.
const COMMON: f64 = 0.5;
/// Values that are followed.
const FOLLOWED: usize = 32;

/// Which readers are enough to judge by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All, before any sum with values from elsewhere: good where errors of whole layers are weighed. What reads a
    /// residual stream says little of that (a ResNet-50 of the same size lost 2 dB by it).
    All,
    /// Those that are found, behind residual sums, too: good where outputs of one layer are weighed.
    Found,
}

/// The weights that read a layer's outputs, as one metric.
pub struct Readers {
    /// Rows of `K`, of all readers, one below the other: any × out.
    rows: Vec<Array2<f64>>,
    /// True when an activation cuts outputs off before they are read.
    cut: bool,
}

impl Readers {
    /// The readers of a site; `None` when too few are known.
    pub fn of(model: &Model, from: &Site, reach: Reach) -> Option<Readers> {
        let out = from.outputs();
        let mut walk = Walk {
            model,
            out,
            spatial: from.layout.output_axis == 1,
            factor: Array1::ones(out),
            cut: false,
            reach,
            mixed: false,
            flat: false,
            sites: Vec::new(),
        };
        walk.follow(model.node(from.bias.map_or(from.node, |b| b.node)).output(0)?)?;
        let rows = walk
            .sites
            .iter()
            .map(|site| walk.weights(site))
            .collect::<Option<_>>()?;
        Some(Readers { rows, cut: walk.cut })
    }

    /// What errors of the outputs count, from their mean, and their covariance or variances as they are needed; `None` when nothing is
    /// told apart.
    ///
    /// # Errors
    /// When the eigenproblem fails.
    pub fn judge(
        &self,
        mean: &Array1<f64>,
        covariance: impl FnOnce() -> Array2<f64>,
        variances: impl FnOnce() -> Array1<f64>,
    ) -> Result<Option<Metric>> {
        match mean.len() > WHOLE {
            true => Ok(Metric::of_diagonal(&self.each(mean, &variances()))),
            false => Metric::of(self.metric(mean, &covariance()).view()),
        }
    }

    /// The metric `Σ (KᵀK) ∘ E[s' s'ᵀ]`, for outputs of this mean and covariance.
    fn metric(&self, mean: &Array1<f64>, covariance: &Array2<f64>) -> Array2<f64> {
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
    fn each(&self, mean: &Array1<f64>, variances: &Array1<f64>) -> Array1<f64> {
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
    reach: Reach,
    /// What comes from elsewhere was added: what an activation cuts off now is not told by the outputs alone.
    mixed: bool,
    /// Positions have become channels: each channel is a run of them.
    flat: bool,
    sites: Vec<Site>,
}

/// What becomes of errors at a node.
enum Step {
    /// A layer reads them.
    Read(Box<Site>),
    /// They go on in this value.
    On(ValueId),
    /// Another value that it reads has not been seen, or comes from elsewhere.
    Wait,
    /// Nobody knows.
    Lost,
}

impl Walk<'_> {
    /// Follows a value to the layers that read it.
    fn follow(&mut self, start: ValueId) -> Option<()> {
        let mut seen = BTreeSet::from([start]);
        let mut done: BTreeSet<NodeId> = BTreeSet::new();
        while seen.len() <= FOLLOWED {
            let open = |v: &ValueId| self.model.value(*v).uses().iter().map(|u| (*v, *u)).collect::<Vec<_>>();
            let (mut next, mut waiting) = (Vec::new(), Vec::new());
            for (value, reader) in seen.iter().flat_map(open).collect::<Vec<_>>() {
                let (id, step) = match reader {
                    Use::Node(id, _) if done.contains(&id) => continue,
                    Use::Node(id, slot) => (Some(id), self.step(value, (id, slot), &seen)),
                    _ => (None, Step::Lost),
                };
                match step {
                    Step::Read(site) => self.sites.push(*site),
                    Step::On(value) => next.push(value),
                    Step::Lost if self.reach == Reach::All => return None,
                    Step::Lost => {}
                    Step::Wait => {
                        waiting.extend(id);
                        continue;
                    }
                }
                done.extend(id);
            }
            if next.is_empty() && !waiting.is_empty() && self.reach == Reach::All {
                return None;
            }
            if next.is_empty() {
                let sum = |id: &NodeId| PAIRS[..2].iter().any(|op| self.model.node(*id).is(op));
                let sums: Vec<NodeId> = waiting.into_iter().filter(sum).collect();
                self.mixed |= !sums.is_empty();
                next.extend(sums.iter().filter_map(|id| self.model.node(*id).output(0)));
                done.extend(sums);
            }
            if next.is_empty() {
                return (!self.sites.is_empty()).then_some(());
            }
            seen.extend(next);
        }
        (self.reach == Reach::Found && !self.sites.is_empty()).then_some(())
    }

    fn step(&mut self, value: ValueId, (id, slot): (NodeId, usize), seen: &BTreeSet<ValueId>) -> Step {
        let node = self.model.node(id);
        if node.graph() != self.model.main_id() {
            return Step::Lost;
        }
        if let Some(Ok(site)) = site(self.model, id) {
            let fits = site.input == value && site.input_slot == slot && self.fits(&site);
            return if fits { Step::Read(Box::new(site)) } else { Step::Lost };
        }
        if !self.ready(node, seen) {
            return Step::Wait;
        }
        let on = self.pass(node).and_then(|()| node.output(0));
        on.map_or(Step::Lost, Step::On)
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
            self.cut |= !self.mixed;
        } else if is(PAIRS) {
            let constant = |i: usize| self.model.constant(node.input(i)?)?.to_f32();
            let (a, b) = (constant(0), constant(1));
            if node.is("Mul") && a.is_none() && b.is_none() {
                self.cut |= !self.mixed; // x · sigmoid(x) and its like
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
        } else if node.is("LayerNormalization") && self.reach == Reach::Found && !self.spatial {
            let scale = self.model.constant(node.input(1)?)?.to_f32()?;
            self.scale(scale.iter().map(|x| f64::from(*x)).collect())?;
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

    /// Rows of a reader's weight: what it makes of every tap or position, and of what they have in common.
    fn weights(&self, site: &Site) -> Option<Array2<f64>> {
        let matrix = site.matrix(self.model).ok()?;
        let each = matrix.ncols() / self.out;
        if each == 0 || each * self.out != matrix.ncols() {
            return None;
        }
        let rows = self.rows(site, &matrix, each);
        if each == 1 || self.reach == Reach::Found {
            return Some(rows);
        }
        let scale = f64::from(site.layout.scale);
        let mut sums = Array2::zeros((matrix.nrows(), self.out));
        for (mut sum, taps) in sums.rows_mut().into_iter().zip(matrix.rows()) {
            for (k, &w) in taps.iter().enumerate() {
                sum[k / each] += scale * f64::from(w);
            }
            sum *= &self.factor;
        }
        Some(concatenate![
            Axis(0),
            rows * (1.0 - COMMON).sqrt(),
            sums * COMMON.sqrt()
        ])
    }

    /// Rows for every one of `each` taps or positions; some of them where there are many.
    fn rows(&self, site: &Site, matrix: &Array2<f32>, each: usize) -> Array2<f64> {
        let all = matrix.nrows() * each;
        let step = all.div_ceil((ENTRIES / self.out).max(64));
        let scale = f64::from(site.layout.scale) * (step as f64).sqrt();
        let mut rows = Array2::zeros((all.div_ceil(step), self.out));
        for (k, mut row) in rows.rows_mut().into_iter().enumerate() {
            let (o, t) = ((k * step) / each, (k * step) % each);
            row.zip_mut_with(&matrix.slice(s![o, t..;each]), |x, &w| *x = scale * f64::from(w));
            row *= &self.factor;
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Tensor;
    use crate::pb;

    fn empty() -> Model {
        Model::new(pb::ModelProto {
            ir_version: Some(8),
            opset_import: vec![pb::OperatorSetIdProto {
                version: Some(13),
                ..Default::default()
            }],
            ..Default::default()
        })
    }

    fn info(name: &str) -> pb::ValueInfoProto {
        pb::ValueInfoProto {
            name: Some(name.into()),
            ..Default::default()
        }
    }

    /// A weight of the numbers from −2 on.
    fn weight(model: &mut Model, name: &str, dims: &[usize]) -> ValueId {
        let data = (0..dims.iter().product()).map(|i| i as f32 - 2.0).collect();
        model.add_const(model.main_id(), name, Tensor::new(dims, data))
    }

    fn op(model: &mut Model, op: &str, name: &str, inputs: &[ValueId]) -> (NodeId, ValueId) {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        let main = model.main_id();
        let (node, out) = model.add_node(main, name, op, &inputs, &[&format!("{name}_out")], vec![]);
        (node, out[0])
    }

    fn first_site(model: Model, first: NodeId) -> (Model, Site) {
        let site = site(&model, first).expect("a site").expect("with a weight");
        (model, site)
    }

    /// `MatMul(f(MatMul(x, a)), b)` with `f` a Relu, before which `other` may be added; `side` reads the Relu, too.
    fn net(other: bool, side: Option<&str>, read: bool) -> (Model, Site) {
        let mut model = empty();
        let main = model.main_id();
        let x = model.add_input(main, info("x"));
        let [a, b, c] = [("a", [4, 3]), ("b", [3, 2]), ("c", [4, 3])].map(|(n, d)| weight(&mut model, n, &d));
        let (first, mut h) = op(&mut model, "MatMul", "first", &[x, a]);
        if other {
            let (_, z) = op(&mut model, "MatMul", "other", &[x, c]);
            (_, h) = op(&mut model, "Add", "sum", &[z, h]);
        }
        let (_, r) = op(&mut model, "Relu", "relu", &[h]);
        let reading = read.then(|| op(&mut model, "MatMul", "second", &[r, b]).1);
        let beside = side.map(|kind| op(&mut model, kind, "side", &[r]).1);
        for v in reading.into_iter().chain(beside) {
            let name = model.value(v).name.clone();
            model.add_output(main, info(&name), v);
        }
        first_site(model, first)
    }

    #[test]
    fn what_positions_have_in_common_is_added_up_by_a_window() {
        let mut model = empty();
        let main = model.main_id();
        let x = model.add_input(main, info("x"));
        let (a, b) = (
            weight(&mut model, "a", &[2, 3, 1, 1]),
            weight(&mut model, "b", &[1, 2, 1, 2]),
        );
        let (first, h) = op(&mut model, "Conv", "first", &[x, a]);
        let (_, y) = op(&mut model, "Conv", "second", &[h, b]);
        model.add_output(main, info("second_out"), y);
        let (model, first) = first_site(model, first);
        let rows = |reach| Readers::of(&model, &first, reach).expect("one reader").rows.remove(0);
        // Taps of channel 0: −2, −1; of channel 1: 0, 1.
        assert_eq!(rows(Reach::Found), ndarray::array![[-2.0, 0.0], [-1.0, 1.0]]);
        let half = 0.5f64.sqrt();
        let wanted = ndarray::array![[-2.0, 0.0], [-1.0, 1.0], [-3.0, 1.0]] * half;
        assert!((rows(Reach::All) - wanted).iter().all(|d| d.abs() < 1e-12));
    }

    #[test]
    fn readers_are_found_through_activations() {
        let (model, first) = net(false, None, true);
        let readers = Readers::of(&model, &first, Reach::All).expect("one reader");
        assert!(readers.cut);
        assert_eq!(readers.rows, [ndarray::array![[-2.0, 0.0, 2.0], [-1.0, 1.0, 3.0]]]);
    }

    #[test]
    fn sums_and_unknown_readers_count_only_where_some_are_enough() {
        for (other, side) in [(true, None), (false, Some("Softmax"))] {
            let (model, first) = net(other, side, true);
            assert!(Readers::of(&model, &first, Reach::All).is_none(), "{other} {side:?}");
            let readers = Readers::of(&model, &first, Reach::Found).expect("one reader");
            // What a Relu cuts off of a sum is not told by one of its parts.
            assert_eq!((readers.rows.len(), readers.cut), (1, !other));
        }
        let (model, first) = net(false, Some("Softmax"), false);
        assert!(Readers::of(&model, &first, Reach::Found).is_none());
    }
}
