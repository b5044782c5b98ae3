//! Units: an operator that could run in integers, together with the `Relu`s and `Clip`s behind it that saturation replaces.

use super::target::{Codes, Target};
use super::time::{CALL, DEQUANTIZE, Kernel, POOLED, Shape, Work};
use crate::analysis::sites::{Site, site};
use crate::ir::{DType, Model, Node, NodeId, Tensor, Use, ValueId};
use crate::ops::quant::{Role, clip_limits, data_inputs, role};
use crate::ops::types::infer;
use crate::passes::{Names, tables};
use anyhow::Result;
use std::collections::BTreeMap;

/// An operator that the target could run in integers.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The operator.
    pub node: NodeId,
    /// What it does to scales.
    pub role: Role,
    /// Its weight.
    pub site: Option<Site>,
    /// Data inputs that vary: slot and value.
    pub inputs: Vec<(usize, ValueId)>,
    /// Data inputs that are constants.
    pub consts: Vec<(usize, ValueId)>,
    /// What it gives out, after its clips.
    pub results: Vec<ValueId>,
    /// The `Relu`s and `Clip`s that saturation can replace, first to last; only behind a single result.
    pub clips: Vec<NodeId>,
    /// The limits of the clips, here or further down a chain of operators that keep the scale, and of gates that read its result.
    pub limits: (f32, f32),
    /// It may give out floats.
    pub free_output: bool,
    /// It becomes one kernel with an operator that has a weight, which feeds it floats.
    pub joined: bool,
    /// The Add behind it, and the slot of a vector there that is to become a row when floats are given out ([`super::addend`]).
    pub addend: Option<(NodeId, usize)>,
    /// How long it takes.
    pub kernel: Kernel,
    /// The taps of a pool's windows; 0 elsewhere.
    pub window: usize,
    /// What the activation behind it takes when it runs in integers, in nanoseconds for each element: in floating point they are one kernel.
    pub activation: f64,
}

impl Unit {
    /// True when it has a weight.
    pub fn is_weighted(&self) -> bool {
        self.site.is_some()
    }

    /// Its results matter between these ends only.
    pub fn limit(&mut self, ends: Option<(f32, f32)>) {
        if let Some((low, high)) = ends {
            self.limits = (self.limits.0.max(low), self.limits.1.min(high));
        }
    }

    /// Nanoseconds for one sample, in floating point and in integers; `elements` counts those of a value.
    pub fn nanoseconds(&self, elements: &BTreeMap<ValueId, u64>) -> (f64, f64) {
        let count = |v: &ValueId| elements.get(v).copied().unwrap_or(0) as f64;
        let out: f64 = self.results.iter().map(count).sum();
        let input = self.inputs.iter().map(|i| count(&i.1)).sum();
        let mut work = Work {
            out,
            input,
            ..Work::default()
        };
        let mut shape = Shape::Plain;
        if let Some(site) = &self.site {
            let (groups, taps) = (site.layout.groups, site.taps());
            let columns = site.inputs() / groups * taps;
            let positions = out / site.outputs().max(1) as f64;
            work.macs = out * columns as f64;
            work.gathered = positions * (columns * groups) as f64;
            work.blocked = work.macs;
            match self.kernel {
                Kernel::Conv => {
                    shape = Shape::of_conv(site.inputs(), site.outputs(), groups);
                    let (inputs, outputs) = shape.blocked(site.inputs(), site.outputs());
                    work.blocked *= (inputs * outputs) as f64 / (site.inputs() * site.outputs()).max(1) as f64;
                }
                _ if positions < 2.0 => shape = Shape::Vector,
                _ => {}
            }
            let row = site.dims().last().copied().unwrap_or(1);
            work.pieces = positions * shape.pieces(taps, row, groups) as f64;
        }
        let times = self.kernel.times(shape);
        let call = if self.activation > 0.0 { CALL } else { 0.0 };
        let weight = self.site.as_ref().filter(|_| self.is_stored());
        let again = weight.map_or(0.0, |s| CALL + DEQUANTIZE * s.dims().iter().product::<usize>() as f64);
        let (float, int) = times.of(&work);
        (float, int + self.activation * out + call + again)
    }

    /// What it takes more in integers, nanoseconds for one sample, where what lays out its input does not run in integers.
    pub fn apart(&self, elements: &BTreeMap<ValueId, u64>) -> f64 {
        let out = self.results.iter().filter_map(|v| elements.get(v)).sum::<u64>();
        POOLED * self.window as f64 * out as f64
    }

    /// True when its weight is stored in integers, but nothing is computed in them.
    pub fn is_stored(&self) -> bool {
        matches!(self.kernel, Kernel::Stored)
    }

    /// Bytes that are saved when its weight is stored in integers.
    pub fn saved_bytes(&self) -> f64 {
        self.site
            .as_ref()
            .map_or(0.0, |s| 3.0 * s.dims().iter().product::<usize>() as f64)
    }
}

/// The units of the main graph in an order of execution, and why other operators with weights are none.
pub struct Units {
    /// The units.
    pub all: Vec<Unit>,
    /// Which unit gives out a value.
    pub producer: BTreeMap<ValueId, usize>,
    /// Which unit a node is.
    pub of_node: BTreeMap<NodeId, usize>,
    /// Operators with weights that stay in floating point, with the reason.
    pub refused: Vec<(NodeId, String)>,
}

/// Finds the units; `order` is the order of execution of the main graph, `skip` names nodes that the user wants left alone.
///
/// # Errors
/// When the model's dimensions contradict each other.
pub fn find(model: &Model, order: &[NodeId], target: &Target, skip: &Names) -> Result<Units> {
    let mut units = Units {
        all: Vec::new(),
        producer: BTreeMap::new(),
        of_node: BTreeMap::new(),
        refused: Vec::new(),
    };
    for &node in order {
        let found = match skip.has(&model.label(node)) {
            true => Err("left alone as asked (skip)".to_owned()),
            false => unit(model, node, target),
        };
        match found {
            Ok(Some(unit)) => units.push(unit),
            Ok(None) => {}
            Err(why) if matches!(role(model, node), Some(Role::Weighted { .. } | Role::Product)) => {
                units.refused.push((node, why));
            }
            Err(_) => {}
        }
    }
    for i in (0..units.all.len()).filter(|_| target.results) {
        units.absorb(model, i);
    }
    for unit in units.all.iter_mut().filter(|u| u.results.len() == 1) {
        unit.limit(super::gates::ends(model, unit.results[0]));
    }
    for i in 0..units.all.len() {
        units.swallow(model, i, target);
    }
    for i in (0..units.all.len()).filter(|_| target.joins_add) {
        units.join_add(model, i);
    }
    if target.joins_vectors {
        let types = infer(model)?;
        units.all.iter_mut().for_each(|u| super::addend::look(model, &types, u));
    }
    Ok(units)
}

fn unit(model: &Model, node: NodeId, target: &Target) -> Result<Option<Unit>, String> {
    let n = model.node(node);
    let Some(role) = role(model, node) else { return Ok(None) };
    if role == Role::Clip {
        return Ok(None);
    }
    if role == Role::Product {
        return Err("a product of two activations stays in floating point".into());
    }
    let row = target.row(model, node)?;
    if target.timed && super::gates::feeds_gate(model, node) {
        return Err("what reads it, a gate, takes floats".to_owned());
    }
    if target.timed && super::gates::in_gelu(model, node) {
        return Err("a part of a Gelu, which the runtime computes at once".to_owned());
    }
    if tables::is_scaling(model, node) {
        return Err("rows of a table in integers become floats here".to_owned());
    }
    let site = match role {
        Role::Weighted { weight, .. } => Some(integer_site(model, node, weight)?),
        _ => None,
    };
    let outputs = n.outputs().iter().flatten().copied();
    let results: Vec<ValueId> = outputs.collect();
    let (consts, inputs): (Vec<_>, Vec<_>) = data_inputs(model, node)
        .into_iter()
        .partition(|(_, v)| model.constant(*v).is_some());
    if inputs.is_empty() || results.is_empty() {
        return Ok(None);
    }
    let factor = n.is("Mul") || n.is("Div");
    if !consts
        .iter()
        .all(|(_, v)| model.constant(*v).is_some_and(|t| fits_codes(t, factor, target.codes)))
    {
        return Err("a constant that it reads would be too wrong in 8 bits".to_owned());
    }
    let swallowed = results.len() == 1
        && model
            .only_use(results[0])
            .is_some_and(|(next, _)| target.swallows(&n.op.name, model, next));
    Ok(Some(Unit {
        node,
        role,
        site,
        inputs,
        consts,
        results,
        clips: Vec::new(),
        limits: (f32::NEG_INFINITY, f32::INFINITY),
        free_output: row.free_output && !swallowed,
        joined: false,
        addend: None,
        kernel: row.kernel,
        window: if n.is("MaxPool") { window(n) } else { 0 },
        activation: 0.0,
    }))
}

/// Whether a constant may be stored in 8 bits with one scale: an addend is then no more wrong than the sum, a factor multiplies
/// its error.
fn fits_codes(t: &Tensor, factor: bool, codes: Codes) -> bool {
    /// Of a factor, 40 dB.
    const MOST: f64 = 1e-4;
    let Some(floats) = t.floats().filter(|f| !f.is_empty() && t.dtype() == DType::Float) else {
        return false;
    };
    let Ok(affine) = super::emit::of_constant(&floats, codes) else {
        return false;
    };
    let power = |f: &dyn Fn(f32) -> f32| floats.iter().map(|&x| f64::from(f(x)).powi(2)).sum::<f64>();
    let error = power(&|x| x - affine.round_trip(x));
    !factor || error <= MOST * power(&|x| x)
}

/// The taps of a pool's window.
fn window(pool: &Node) -> usize {
    let sides = pool.ints("kernel_shape").unwrap_or_default();
    sides
        .iter()
        .map(|s| usize::try_from(*s).unwrap_or(0))
        .fold(1, usize::saturating_mul)
}

/// The node's weight as a site, when weight and bias can be stored in integers.
fn integer_site(model: &Model, node: NodeId, weight: usize) -> Result<Site, String> {
    let site = match site(model, node) {
        Some(Ok(site)) if site.slot == weight => site,
        Some(Err(why)) => return Err(why.to_owned()),
        _ => return Err("its weight is not constant".to_owned()),
    };
    let finite = |v: ValueId, what: &str| match model.constant(v).and_then(|t| t.floats()) {
        Some(x) if x.iter().all(|x| x.is_finite()) => Ok(()),
        Some(_) => Err(format!("its {what} is not finite")),
        None => Err(format!("its {what} is not float32")),
    };
    finite(site.weight, "weight")?;
    if let Some(bias) = site.bias.filter(|b| b.node == node) {
        finite(bias.value, "bias")?;
        if site.bias_values(model).is_none_or(|b| b.len() != site.outputs()) {
            return Err("its bias is not one number for each output channel".to_owned());
        }
    }
    Ok(site)
}

impl Units {
    fn push(&mut self, unit: Unit) {
        let i = self.all.len();
        self.of_node.insert(unit.node, i);
        for &v in &unit.results {
            self.producer.insert(v, i);
        }
        self.all.push(unit);
    }

    /// Lets unit `i` take the clips behind it, when its codes (or, for an operator that keeps the scale, those of the
    /// operator that the scale comes from) can end where the clip does: the scale must have no other reader.
    fn absorb(&mut self, model: &Model, i: usize) {
        while let [result] = self.all[i].results[..] {
            let Some((clip, 0)) = model.only_use(result) else {
                return;
            };
            let Some((low, high)) = clip_limits(model, clip) else {
                return;
            };
            let after = model.node(clip).output(0);
            let (Some(after), true) = (after, low <= 0.0 && 0.0 <= high) else {
                return;
            };
            if model.node(clip).graph() != model.main_id() {
                return;
            }
            let Some(sources) = self.sources(model, i) else { return };
            for u in sources {
                let limits = &mut self.all[u].limits;
                *limits = (limits.0.max(low), limits.1.min(high));
            }
            self.producer.remove(&result);
            self.producer.insert(after, i);
            self.all[i].clips.push(clip);
            self.all[i].results = vec![after];
            // Codes end where the clip does; floats do not.
            self.all[i].free_output = false;
        }
    }

    /// Accounts for the activation behind a convolution, which takes no time of its own where both are in floating point.
    fn swallow(&mut self, model: &Model, i: usize, target: &Target) {
        let unit = &self.all[i];
        let ([result], Kernel::Conv) = (&unit.results[..], unit.kernel) else {
            return;
        };
        let uses = model.value(*result).uses();
        let op = match *uses {
            [Use::Node(n, _)] if model.node(n).op.domain.is_empty() => model.node(n).op.name.as_str(),
            [Use::Node(..), Use::Node(..)] if super::gates::ends(model, *result).is_some() => "HardSwish",
            _ => return,
        };
        let Some((_, each)) = target.activations.iter().find(|a| a.0 == op) else {
            return;
        };
        if let [Use::Node(n, _)] = uses
            && let Some(&after) = self.of_node.get(n)
        {
            self.all[after].kernel = self.all[after].kernel.less(*each);
        }
        self.all[i].activation = *each;
    }

    /// Lets an Add take the operand as a float that an operator with a weight makes for it alone: the two become one kernel.
    fn join_add(&mut self, model: &Model, i: usize) {
        if !model.node(self.all[i].node).is("Add") {
            return;
        }
        let made = |v: &ValueId| self.producer.get(v).is_some_and(|&p| self.all[p].is_weighted());
        let joined = |(_, v): &(usize, ValueId)| made(v) && model.only_use(*v).is_some();
        let joined = self.all[i].inputs.iter().position(joined);
        match joined {
            Some(k) => drop(self.all[i].inputs.remove(k)),
            None => self.all[i].inputs.clear(),
        }
        self.all[i].joined = joined.is_some();
    }

    /// The units from `i` back to the one that sets its scale; `None` when no unit sets it, or someone else reads between.
    fn sources(&self, model: &Model, i: usize) -> Option<Vec<usize>> {
        let mut all = vec![i];
        let mut at = i;
        while self.all[at].role == Role::Same {
            let &[(_, input)] = &self.all[at].inputs[..] else {
                return None;
            };
            let before = *self.producer.get(&input)?;
            if self.all[before].results.len() != 1 || model.only_use(input).is_none() {
                return None;
            }
            all.push(before);
            at = before;
        }
        Some(all)
    }

    /// The unit that makes the first data input of another.
    fn maker(&self, unit: &Unit) -> Option<usize> {
        self.producer.get(&unit.inputs.first()?.1).copied()
    }

    /// What lays out the first data input of a unit, from what is just before it to the operator with a weight that begins it: operators on single
    /// elements and pools keep the layout. `None` where no such operator is found.
    pub fn laid_out_by(&self, unit: &Unit) -> Option<Vec<usize>> {
        let mut way = vec![self.maker(unit)?];
        while let Some(u) = way.last().map(|i| &self.all[*i]).filter(|u| !u.is_weighted()) {
            way.push(self.maker(u).filter(|i| !way.contains(i))?);
        }
        Some(way)
    }

    /// Who reads a value: units (each once, in order), and how many others. Readers of its shape do not count.
    pub fn readers(&self, model: &Model, v: ValueId) -> (Vec<usize>, usize) {
        let (mut units, mut others) = (Vec::new(), 0);
        for u in model.value(v).uses() {
            let unit = match *u {
                Use::Node(n, _) if is_shape(model, n) => continue,
                Use::Node(n, slot) => self.of_node.get(&n).filter(|i| self.reads(**i, slot, v)),
                Use::Output(..) => None,
            };
            match unit {
                Some(&i) => units.push(i),
                None => others += 1,
            }
        }
        units.sort_unstable();
        units.dedup();
        (units, others)
    }

    fn reads(&self, unit: usize, slot: usize, v: ValueId) -> bool {
        self.all[unit].inputs.contains(&(slot, v))
    }
}

/// True for operators that look only at the dimensions, which codes have too.
pub fn is_shape(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    n.is("Shape") || n.is("Size")
}
