//! Channels that reach equally far where a depthwise convolution reads them.
//!
//! Codes of an activation have one scale, set by the channel that reaches farthest. A depthwise convolution multiplies each channel by
//! weights of its own, and large weights stand where a channel is small: what is noise before is amplified to as much as the
//! signal. The layer that makes the channels can multiply them by factors `s_c` (rows of its weight, and its bias), which the depthwise weight
//! divides by; neither has coarser codes for it, since both have a scale for each of these channels. With `r_c` the reach of channel c,
//! `R` that of all, and `s_c = R/r_c`, noise at the results falls from `Σ ‖w_c‖²` to `Σ ‖w_c‖²/s_c²` for the same range. This is
//! cross-layer equalization (Nagel et al. 2019, *Data-Free Quantization Through Weight Equalization and Bias
//! Correction*), where it costs nothing.
//!
//! Between the two, Relu, LeakyRelu and pools let factors pass; a constant that is added is multiplied as well; and
//! `x·HardSigmoid(x)` becomes `(s·x)·HardSigmoid((s·x)·(1/s))`, one product more.

use super::gates;
use crate::analysis::sites::{Site, site};
use crate::ir::{Attr, DType, Model, NodeId, Tensor, Use, ValueId};
use crate::parallel::in_order;
use crate::passes::Context;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// Samples whose reach is looked at.
const SAMPLES: usize = 16;
/// Noise must fall to this part, 3 dB.
const WORTH: f64 = 0.5;
/// Channels become at most so many times as large: what is smaller does not count.
const LARGEST: f32 = 256.0;

/// The ends of a value all of which matters.
const EVERYWHERE: (f32, f32) = (f32::NEG_INFINITY, f32::INFINITY);

/// A model whose channels reach equally far, and the ends of values of which only a part matters.
pub struct Equalized {
    /// It computes the same.
    pub model: Model,
    /// See [`gates::ends`]; a product stands before the gate now.
    pub ends: BTreeMap<ValueId, (f32, f32)>,
    /// How many layers were equalized.
    pub layers: usize,
}

/// What factors pass on their way.
enum Step {
    /// Nothing is to be done.
    Through,
    /// The input of this node that is a constant.
    Shift(NodeId, usize),
    /// A HardSigmoid that reads the value which it is multiplied with.
    Gate(NodeId),
    /// A HardSwish.
    Swish(NodeId),
}

/// A layer, and the depthwise convolutions that read it.
struct Pair {
    maker: Site,
    steps: Vec<Step>,
    /// The layer's output and what the steps make of it, with the ends of what matters.
    values: Vec<(ValueId, (f32, f32))>,
    readers: Vec<Site>,
}

/// How far each channel of a value reaches down and up.
type Reach = Vec<(f32, f32)>;

/// The model with equal channels; `None` where that would not be worth it.
///
/// # Errors
/// When a sample fails.
pub fn equalized(model: &Model, order: &[NodeId], cx: &Context) -> Result<Option<Equalized>> {
    let pairs: Vec<Pair> = order.iter().filter_map(|n| Pair::at(model, *n)).collect();
    if pairs.is_empty() {
        return Ok(None);
    }
    let reaches = reaches(model, &pairs, cx)?;
    let mut equal = Equalized {
        model: model.clone(),
        ends: BTreeMap::new(),
        layers: 0,
    };
    for pair in &pairs {
        let Some(factors) = pair.factors(model, &reaches)? else {
            continue;
        };
        pair.apply(&mut equal.model, &factors)?;
        equal.layers += 1;
        for (v, (low, high)) in &pair.values {
            if *low > f32::NEG_INFINITY {
                let each = reaches[v].iter().zip(&factors).map(|(r, s)| r.0.max(*low) * s);
                equal.ends.insert(*v, (each.fold(0.0, f32::min), *high));
            }
        }
    }
    Ok((equal.layers > 0).then_some(equal))
}

fn reaches(model: &Model, pairs: &[Pair], cx: &Context) -> Result<BTreeMap<ValueId, Reach>> {
    let values: Vec<ValueId> = pairs.iter().flat_map(|p| p.values.iter().map(|v| v.0)).collect();
    let samples = cx.samples.deciding().spread(SAMPLES);
    let session = cx.engine.load(model, &values, &samples.get(0)?)?;
    let run = |i: usize| {
        let mut all = vec![Reach::new(); values.len()];
        session.visit(&samples.get(i)?, &mut |k, t| {
            all[k] = reach(&t).with_context(|| format!("{} is no map of channels", model.value(values[k]).name))?;
            Ok(())
        })?;
        Ok(all)
    };
    let mut found: BTreeMap<ValueId, Reach> = BTreeMap::new();
    in_order(samples.len(), cx.threads, run, |_, all| {
        for (v, reach) in values.iter().zip(all) {
            let known = found.entry(*v).or_insert_with(|| vec![(0.0, 0.0); reach.len()]);
            let both = known.iter_mut().zip(reach);
            both.for_each(|(k, r)| *k = (k.0.min(r.0), k.1.max(r.1)));
        }
        Ok(())
    })?;
    Ok(found)
}

/// The reach of each channel of `[N, C, …]`, zero included.
fn reach(t: &Tensor) -> Option<Reach> {
    let (&[_, channels, ref map @ ..], data) = (t.dims(), t.floats()?) else {
        return None;
    };
    let mut all = vec![(0f32, 0f32); channels];
    let size: usize = map.iter().product();
    for (i, part) in data.chunks_exact(size.max(1)).enumerate() {
        let known = &mut all[i % channels.max(1)];
        *known = part.iter().fold(*known, |(low, high), x| (low.min(*x), high.max(*x)));
    }
    Some(all)
}

impl Pair {
    fn at(model: &Model, node: NodeId) -> Option<Pair> {
        let owned = |s: &Site| !s.shared && s.slot == 1 && s.layout.window.as_ref().is_some_and(|w| !w.transposed);
        let maker = site(model, node)?.ok().filter(owned)?;
        maker.bias_values(model)?;
        if model.constant(maker.weight)?.dtype() != DType::Float {
            return None;
        }
        let mut pair = Pair {
            values: Vec::new(),
            steps: Vec::new(),
            readers: Vec::new(),
            maker,
        };
        let mut v = model.node(node).output(0)?;
        /// Longer chains are not met.
        const STEPS: usize = 4;
        for _ in 0..STEPS {
            let readers = model.value(v).uses().iter().map(|u| depthwise(model, u));
            if let Some(readers) = readers.collect::<Option<Vec<Site>>>() {
                pair.values.push((v, EVERYWHERE));
                pair.readers = readers;
                return (!pair.readers.is_empty()).then_some(pair);
            }
            let (step, next) = pair.step(model, v)?;
            match step {
                Step::Through => {}
                _ => pair.values.push((v, gates::ends(model, v).unwrap_or(EVERYWHERE))),
            }
            pair.steps.push(step);
            v = next;
        }
        None
    }

    fn step(&self, model: &Model, v: ValueId) -> Option<(Step, ValueId)> {
        let nodes: Option<Vec<NodeId>> = model
            .value(v)
            .uses()
            .iter()
            .map(|u| match u {
                Use::Node(n, _) if is_plain(model, *n) => Some(*n),
                _ => None,
            })
            .collect();
        let out = |n: NodeId| model.node(n).output(0);
        match nodes?[..] {
            [n] => {
                let step = match model.node(n).op.name.as_str() {
                    "Relu" | "LeakyRelu" | "MaxPool" | "AveragePool" | "Identity" => Step::Through,
                    "HardSwish" => Step::Swish(n),
                    "Add" => Step::Shift(n, self.constant(model, n)?),
                    _ => return None,
                };
                let alone = model.node(n).outputs().iter().skip(1).all(Option::is_none);
                alone.then_some((step, out(n)?))
            }
            [a, b] if a != b => {
                let gate = [a, b].into_iter().find(|n| model.node(*n).is("HardSigmoid"))?;
                let product = if gate == a { b } else { a };
                let closed = model.only_use(out(gate)?)?.0 == product && model.node(product).is("Mul");
                closed.then_some((Step::Gate(gate), out(product)?))
            }
            _ => None,
        }
    }

    /// The input of an Add that is a constant: one number, or one for each channel.
    fn constant(&self, model: &Model, add: NodeId) -> Option<usize> {
        let slot = (0..2).find(|s| model.constant_input(add, *s).is_some())?;
        let t = model.constant_input(add, slot)?;
        let from_end = self.maker.dims().len() - 1;
        let varies = |i: usize| t.dims()[i] != 1 && t.dims().len() - i != from_end;
        let fits = t.dims().len() <= from_end + 1 && !(0..t.dims().len()).any(varies);
        (fits && model.opset_of(add) >= 7 && [1, self.maker.outputs()].contains(&t.len()) && t.floats().is_some())
            .then_some(slot)
    }

    /// The factors; `None` where they would gain too little, or a channel reaches nowhere near a number.
    fn factors(&self, model: &Model, reaches: &BTreeMap<ValueId, Reach>) -> Result<Option<Vec<f32>>> {
        let channels = self.maker.outputs();
        let mut reach = vec![0f32; channels];
        for (v, (low, _)) in &self.values {
            let known = reaches.get(v).filter(|r| r.len() == channels);
            let known = known.with_context(|| format!("{} has other channels", model.value(*v).name))?;
            let each = reach.iter_mut().zip(known);
            each.for_each(|(r, k)| *r = r.max(k.1).max(-k.0.max(*low)));
        }
        let all = reach.iter().copied().fold(0.0, f32::max);
        if !(all > 0.0 && all.is_finite()) {
            return Ok(None);
        }
        let factors: Vec<f32> = reach.iter().map(|r| (all / r).min(LARGEST)).collect();
        let (mut before, mut after) = (0.0, 0.0);
        for reader in &self.readers {
            let weight = reader.matrix(model)?;
            let each = weight.nrows() / channels;
            for (o, row) in weight.outer_iter().enumerate() {
                let power: f64 = row.iter().map(|w| f64::from(*w).powi(2)).sum();
                before += power;
                after += power / f64::from(factors[o / each]).powi(2);
            }
        }
        Ok((after < WORTH * before).then_some(factors))
    }

    fn apply(&self, model: &mut Model, factors: &[f32]) -> Result<()> {
        let scaled = |site: &Site, model: &Model, factor: &dyn Fn(usize) -> f32| {
            let mut weight = site.matrix(model)?;
            for (o, mut row) in weight.outer_iter_mut().enumerate() {
                row *= factor(o);
            }
            site.tensor_of(model, weight.view())
        };
        let maker = &self.maker;
        let weight = scaled(maker, model, &|o| factors[o])?;
        if let Some(bias) = maker.bias {
            let values = maker.bias_values(model).context("its bias is constant")?;
            let scaled = values.iter().zip(factors).map(|(b, s)| b * s).collect();
            put(model, (bias.node, bias.slot), &[factors.len()], scaled)?;
        }
        model.set_const(maker.weight, weight);
        for reader in &self.readers {
            let each = reader.outputs() / factors.len();
            let weight = scaled(reader, model, &|o| 1.0 / factors[o / each])?;
            model.set_const(reader.weight, weight);
        }
        self.carry(model, factors)
    }

    /// Lets what stands between pass the factors.
    fn carry(&self, model: &mut Model, factors: &[f32]) -> Result<()> {
        let mut along = vec![1; self.maker.dims().len()];
        along[1] = factors.len();
        for step in &self.steps {
            match *step {
                Step::Through => {}
                Step::Shift(add, slot) => {
                    let old = model
                        .constant_input(add, slot)
                        .and_then(Tensor::floats)
                        .context("a constant")?;
                    let old = |c: usize| if old.len() == 1 { old[0] } else { old[c] };
                    let shifts = factors.iter().enumerate().map(|(c, s)| s * old(c)).collect();
                    put(model, (add, slot), &along, shifts)?;
                }
                Step::Gate(gate) => {
                    let v = model.node(gate).input(0).context("a gate reads something")?;
                    let own = Pair::divided(model, v, &along, factors);
                    model.set_input(gate, 0, Some(own));
                }
                Step::Swish(node) => {
                    let v = model.node(node).input(0).context("a HardSwish reads something")?;
                    let own = Pair::divided(model, v, &along, factors);
                    let attrs = vec![Attr::float("alpha", 1.0 / 6.0), Attr::float("beta", 0.5)];
                    let name = format!("{}_gate", model.value(v).name);
                    let gate = append(model, "HardSigmoid", &name, &[Some(own)], attrs);
                    model.node_mut(node).op.name = "Mul".into();
                    model.set_inputs(node, vec![Some(v), Some(gate)]);
                }
            }
        }
        Ok(())
    }

    /// `v` as it was before it was multiplied.
    fn divided(model: &mut Model, v: ValueId, along: &[usize], factors: &[f32]) -> ValueId {
        let inverse = factors.iter().map(|s| 1.0 / s).collect();
        let name = model.fresh_name(&format!("{}_inverse", model.value(v).name));
        let inverse = model.add_const(model.main_id(), &name, Tensor::new(along, inverse));
        let name = format!("{}_divided", model.value(v).name);
        append(model, "Mul", &name, &[Some(v), Some(inverse)], Vec::new())
    }
}

/// Adds a node with one output of this name, or a like one.
fn append(model: &mut Model, op: &str, name: &str, inputs: &[Option<ValueId>], attrs: Vec<Attr>) -> ValueId {
    let name = model.fresh_name(name);
    model.add_node(model.main_id(), &name, op, inputs, &[&name], attrs).1[0]
}

/// Puts a constant of its own behind an input.
fn put(model: &mut Model, (node, slot): (NodeId, usize), dims: &[usize], data: Vec<f32>) -> Result<()> {
    let old = model.node(node).input(slot).context("there is an input")?;
    let name = model.fresh_name(&format!("{}_equalized", model.value(old).name));
    let new = model.add_const(model.main_id(), &name, Tensor::new(dims, data));
    model.set_input(node, slot, Some(new));
    Ok(())
}

/// An ONNX operator of the main graph.
fn is_plain(model: &Model, n: NodeId) -> bool {
    model.node(n).op.domain.is_empty() && model.node(n).graph() == model.main_id()
}

/// A depthwise convolution that nothing else shares its weight with, and reads the value as its data.
fn depthwise(model: &Model, u: &Use) -> Option<Site> {
    let Use::Node(n, 0) = *u else { return None };
    let site = site(model, n).filter(|_| is_plain(model, n))?.ok()?;
    let groups = site.layout.groups;
    let plain = site.layout.window.as_ref().is_some_and(|w| !w.transposed) && !site.shared;
    (plain && groups > 1 && site.inputs() == groups && site.outputs() % groups == 0).then_some(site)
}
