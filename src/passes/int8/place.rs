//! Which units run in integers, and hence which values are quantized.
//!
//! Every value that is made on one side and read on the other costs a conversion; every unit costs its time in integers or
//! in floating point (`time`). The cheapest choice for all units together is a minimum cut. So a Q/DQ pair around an operator that
//! gains little between two float neighbours is never placed, a chain of cheap operators between two convolutions stays in
//! integers, and a convolution between operators without an integer form becomes one only where it gains more than the
//! conversions cost. Bytes count too: a little time is given for a weight that is four times smaller ([`Prefer`]).

use super::cut::{INFINITE, Network, SINK, SOURCE};
use super::time::{CALL, DEQUANTIZE, Kernel, QUANTIZE, REORDER, REORDERED, REQUANTIZE};
use super::units::{Unit, Units};
use crate::ir::{Model, NodeId, Use, ValueId};
use crate::ops::quant::Role;
use std::collections::{BTreeMap, BTreeSet};

/// What to do with an operator that would be slower in integers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Prefer {
    /// Leave it in floating point.
    Speed,
    /// Store its weight in 8 bits all the same.
    Size,
}

/// A network that runs in integers from end to end is worth so much of its time in floating point: what remains in floats there takes a runtime for both.
const WHOLE: f64 = 0.07;

/// A network that takes no more nanoseconds than these in floating point runs in integers, as far as it has weights,
const TINY: f64 = 100_000.0;
/// where that takes no more than these longer.
const UNNOTICED: f64 = 5_000.0;

/// A region of integers gains at least so much of what it takes in floating point,
const WORTH: f64 = 0.15;
/// and of what the network takes: a single layer near an output may err more than all others.
const NOTICED: f64 = 0.003;

/// Nanoseconds for one sample that a saved byte is worth: a fifth of what reading it once costs.
const BYTE: f64 = 0.02;

/// Operators that a runtime computes in the layout of the convolutions beside them.
const MAPS: &[&str] = &[
    "Conv",
    "Add",
    "Mul",
    "Concat",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "BatchNormalization",
    "Resize",
    "Upsample",
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
];

/// An operator takes much longer in integers when it takes more than so many times as long.
const SLOW: f64 = 2.0;

/// What runs in integers.
pub struct Placement {
    /// For every unit, whether it does.
    pub integer: Vec<bool>,
    /// The values that are quantized.
    pub quantized: BTreeSet<ValueId>,
}

/// Chooses; `elements` counts the elements of a value, for values that are float tensors (others cannot be quantized).
/// `timed`: the time model tells how long the target takes.
pub fn choose(
    model: &Model,
    units: &Units,
    elements: &BTreeMap<ValueId, u64>,
    (prefer, timed): (Prefer, bool),
) -> Placement {
    let with = |forced| fastest(model, units, elements, forced);
    let integer = match prefer {
        _ if !timed => connected(model, units, units.all.iter().map(|u| can_run(u, elements)).collect()),
        Prefer::Size => with(weighted(units, prefer)),
        Prefer::Speed => {
            let cost = |integer: &[bool]| cost(model, units, elements, integer);
            let float = cost(&vec![false; units.all.len()]).time;
            let worth = |integer| worthwhile(model, units, elements, integer, NOTICED * float);
            let chosen = worth(with(BTreeSet::new()));
            let all = with(weighted(units, prefer));
            let tiny = float <= TINY;
            let all = if tiny { all } else { worth(all) };
            let (some, every) = (cost(&chosen), cost(&all));
            let whole = every.conversions <= some.conversions && every.time <= float;
            let within = |more: f64| every.time <= some.time + more;
            match tiny && within(UNNOTICED) || whole && within(WHOLE * float) {
                true => all,
                false => chosen,
            }
        }
    };
    let quantized = quantized(model, units, &integer);
    Placement { integer, quantized }
}

/// Values that units read or give out and that hang together with an operator with a weight: those worth measuring.
pub fn candidates(model: &Model, units: &Units) -> BTreeSet<ValueId> {
    let near = connected(model, units, vec![true; units.all.len()]);
    let chosen = units.all.iter().zip(near).filter(|(_, near)| *near);
    chosen
        .flat_map(|(u, _)| u.inputs.iter().map(|i| i.1).chain(u.results.iter().copied()))
        .collect()
}

/// The units with a weight that are in integers wherever that takes no more time: where a weight is only stored, the size alone is a reason.
fn weighted(units: &Units, prefer: Prefer) -> BTreeSet<usize> {
    let wanted = |u: &Unit| u.is_weighted() && (prefer == Prefer::Size || !u.is_stored());
    (0..units.all.len()).filter(|i| wanted(&units.all[*i])).collect()
}

/// What a choice has to heed.
#[derive(Clone, Default)]
struct Rules {
    /// Units that run in integers in any case, if they can.
    forced: BTreeSet<usize>,
    /// Units that do when what makes their input does,
    after: BTreeSet<usize>,
    /// or when what reads their results does.
    before: BTreeSet<usize>,
}

/// The choice that takes least time where some units run in integers in any case.
///
/// No operator with a weight stays in floating point between codes: a runtime that meets one stores its weight in integers itself, with one scale for
/// all of it (ONNX Runtime since 1.21, `WeightBiasQuantization`). It runs in integers, too, or, where that takes much longer, codes end before it or
/// begin behind it.
fn fastest(model: &Model, units: &Units, elements: &BTreeMap<ValueId, u64>, forced: BTreeSet<usize>) -> Vec<bool> {
    let mut rules = Rules {
        forced,
        ..Rules::default()
    };
    let chosen = |rules: &Rules| connected(model, units, cut(model, units, elements, rules));
    let price = |rules: &Rules| price(model, units, elements, &chosen(rules));
    loop {
        let integer = chosen(&rules);
        let between = |i: &usize| {
            let u = &units.all[*i];
            let coded = |near: Vec<usize>| near.into_iter().any(|p| integer[p]);
            let codes = coded(makers(units, u)) && coded(readers(model, units, u));
            codes && u.is_weighted() && !integer[*i] && can_run(u, elements)
        };
        let (slow, more): (Vec<usize>, Vec<usize>) = (0..units.all.len())
            .filter(between)
            .partition(|i| is_slow(&units.all[*i], elements));
        match (slow.first(), more.is_empty()) {
            (None, true) => return integer,
            (Some(&i), true) => {
                let mut all = [rules.clone(), rules.clone(), rules];
                all[0].forced.insert(i);
                all[1].after.insert(i);
                all[2].before.insert(i);
                let costs = all.each_ref().map(price);
                let least = (0..all.len()).min_by(|a, b| costs[*a].total_cmp(&costs[*b]));
                rules = all[least.unwrap_or_default()].clone();
            }
            _ => rules.forced.extend(more),
        }
    }
}

/// The choice without the regions that gain little: errors for next to nothing, or, by what [`fastest`] forced, even a loss.
fn worthwhile(
    model: &Model,
    units: &Units,
    elements: &BTreeMap<ValueId, u64>,
    mut integer: Vec<bool>,
    noticed: f64,
) -> Vec<bool> {
    for region in regions(model, units, &integer) {
        let mut without = integer.clone();
        region.iter().for_each(|&i| without[i] = false);
        let own: f64 = region.iter().map(|&i| units.all[i].nanoseconds(elements).0).sum();
        let price = |choice: &[bool]| price(model, units, elements, choice);
        if price(&without) < price(&integer) + (WORTH * own).max(noticed) {
            integer = without;
        }
    }
    integer
}

/// The units that make what a unit reads, also before operators that keep codes as they are: a runtime moves pairs past these (ONNX Runtime:
/// `QDQPropagationTransformer`), and then stands before the unit what stood before them.
fn makers(units: &Units, unit: &Unit) -> Vec<usize> {
    let made = |u: &Unit| {
        u.inputs
            .iter()
            .filter_map(|(_, v)| units.producer.get(v).copied())
            .collect()
    };
    through(units, unit, made)
}

/// The units that read what a unit makes, also behind such operators.
fn readers(model: &Model, units: &Units, unit: &Unit) -> Vec<usize> {
    let read = |u: &Unit| u.results.iter().flat_map(|v| units.readers(model, *v).0).collect();
    through(units, unit, read)
}

/// The neighbours of a unit, and theirs where they keep codes as they are.
fn through(units: &Units, unit: &Unit, neighbours: impl Fn(&Unit) -> Vec<usize>) -> Vec<usize> {
    let mut all: Vec<usize> = Vec::new();
    let mut open = neighbours(unit);
    while let Some(i) = open.pop() {
        if all.contains(&i) {
            continue;
        }
        all.push(i);
        if units.all[i].role == Role::Same {
            open.extend(neighbours(&units.all[i]));
        }
    }
    all
}

/// Whether a sub-graph reads what a unit hands on, codes as they are. Such a unit runs in integers when what is before it does: past a float one
/// ONNX Runtime (to 1.32 at least) moves the DQ before it, and ends the process where it comes to a reader that has the value for no input of its own.
fn is_read_inside(model: &Model, units: &Units, unit: &Unit) -> bool {
    if unit.role != Role::Same {
        return false;
    }
    let main = model.main_id();
    let inside = |v: &ValueId| model.readers(*v).iter().any(|n| model.node(*n).graph() != main);
    let hands_on = |u: &Unit| u.role == Role::Same && u.results.iter().any(inside);
    let behind = || readers(model, units, unit).into_iter();
    hands_on(unit) || behind().any(|i| hands_on(&units.all[i]))
}

/// The cheapest choice.
fn cut(model: &Model, units: &Units, elements: &BTreeMap<ValueId, u64>, rules: &Rules) -> Vec<bool> {
    let mut net = Network::new();
    let nodes: Vec<usize> = units.all.iter().map(|_| net.node()).collect();
    for (i, u) in units.all.iter().enumerate() {
        if !can_run(u, elements) {
            net.edge(nodes[i], SINK, INFINITE);
        } else if rules.forced.contains(&i) {
            net.edge(SOURCE, nodes[i], INFINITE);
        } else {
            let gain = kernel_gain(u, elements);
            if gain > 0.0 {
                net.edge(SOURCE, nodes[i], capacity(gain));
            } else {
                net.edge(nodes[i], SINK, capacity(-gain));
                // Between a DQ and a Q a runtime takes its integer kernel, however slow: to stay float, it needs a float input.
                if !u.is_weighted() && is_slow(u, elements) {
                    let before = u.inputs.iter().filter_map(|(_, v)| units.producer.get(v));
                    before.for_each(|&p| net.edge(nodes[p], nodes[i], INFINITE));
                }
            }
        }
    }
    for (i, u) in units.all.iter().enumerate().filter(|(_, u)| u.window > 0) {
        // Channels come last in codes behind an integer convolution only, not behind a float one with integers after it.
        let begins = units.laid_out_by(u).and_then(|way| way.last().copied());
        let begins = begins.map_or(SINK, |p| nodes[p]);
        net.edge(nodes[i], begins, capacity(u.apart(elements)));
        // A runtime moves a Q behind it before it (ONNX Runtime: `QDQPropagationTransformer`).
        let read = u.results.iter().flat_map(|&v| units.readers(model, v).0);
        read.for_each(|r| net.edge(nodes[r], nodes[i], INFINITE));
    }
    for (i, u) in units
        .all
        .iter()
        .enumerate()
        .filter(|(_, u)| is_read_inside(model, units, u))
    {
        let before = u.inputs.iter().filter_map(|(_, v)| units.producer.get(v));
        before.for_each(|&p| net.edge(nodes[p], nodes[i], INFINITE));
    }
    for &i in &rules.after {
        let made = makers(units, &units.all[i]);
        made.into_iter().for_each(|p| net.edge(nodes[p], nodes[i], INFINITE));
    }
    for &i in &rules.before {
        let read = readers(model, units, &units.all[i]);
        read.into_iter().for_each(|r| net.edge(nodes[r], nodes[i], INFINITE));
    }
    let values: BTreeSet<ValueId> = candidates(model, units);
    for v in values {
        let Some(&n) = elements.get(&v) else { continue };
        let (readers, others) = units.readers(model, v);
        let [q, dq] = conversions(model, units, v, &readers, n).map(capacity);
        // Joined to the source as soon as one reader is an integer.
        let some_in = net.node();
        let readers: Vec<usize> = readers.into_iter().map(|r| nodes[r]).collect();
        readers.iter().for_each(|&r| net.edge(r, some_in, INFINITE));
        let coded = match units.producer.get(&v) {
            Some(&p) if units.all[p].free_output => {
                let own = capacity(REQUANTIZE * n as f64);
                net.edge(some_in, SINK, own);
                net.edge(some_in, nodes[p], q - own);
                some_in
            }
            Some(&p) => {
                net.edge(some_in, nodes[p], q);
                nodes[p]
            }
            None => {
                net.edge(some_in, SINK, q);
                continue;
            }
        };
        // Each reader in floats has a DQ of its own (ONNX Runtime: `EnsureUniqueDQForNodeUnit`).
        readers.iter().for_each(|&r| net.edge(coded, r, dq));
        net.edge(coded, SINK, dq * others as u64);
    }
    let side = net.source_side();
    units
        .all
        .iter()
        .zip(&nodes)
        .map(|(u, &n)| side[n] && can_run(u, elements))
        .collect()
}

/// What a unit gains in integers, without conversions.
fn kernel_gain(u: &Unit, elements: &BTreeMap<ValueId, u64>) -> f64 {
    let (float, int) = u.nanoseconds(elements);
    float - int + BYTE * u.saved_bytes()
}

/// Whether a unit takes much longer in integers.
fn is_slow(u: &Unit, elements: &BTreeMap<ValueId, u64>) -> bool {
    let (float, int) = u.nanoseconds(elements);
    int > SLOW * float + CALL
}

/// What is lost when a unit does not run in integers, and conversions stand around it.
pub fn gain(u: &Unit, elements: &BTreeMap<ValueId, u64>) -> f64 {
    kernel_gain(u, elements).max(0.0) + CALL
}

/// What a choice takes for one sample.
struct Cost {
    /// Nanoseconds, conversions included.
    time: f64,
    /// How many conversions there are.
    conversions: usize,
}

fn cost(model: &Model, units: &Units, elements: &BTreeMap<ValueId, u64>, integer: &[bool]) -> Cost {
    let kernels = units.all.iter().zip(integer).map(|(u, &i)| {
        let (float, int) = u.nanoseconds(elements);
        let laid_out = || units.laid_out_by(u).is_some_and(|way| way.iter().all(|p| integer[*p]));
        match i {
            true if u.window > 0 && !laid_out() => int + u.apart(elements),
            true => int,
            false => float,
        }
    });
    let mut all = Cost {
        time: kernels.sum(),
        conversions: 0,
    };
    for v in candidates(model, units) {
        let Some(&n) = elements.get(&v) else { continue };
        let (readers, others) = units.readers(model, v);
        let maker = units.producer.get(&v).filter(|&&p| integer[p]);
        let free = maker.is_some_and(|&p| units.all[p].free_output);
        let read = readers.iter().any(|&r| integer[r]);
        let floats = others + readers.iter().filter(|&&r| !integer[r]).count();
        let [q, dq] = conversions(model, units, v, &readers, n);
        let (each, count) = match maker {
            Some(_) if read || !free => (dq, floats),
            None if read => (q, 1),
            _ => (0.0, 0),
        };
        let own = if free && read { REQUANTIZE * n as f64 } else { 0.0 };
        all.time += own + each * count as f64;
        all.conversions += count;
    }
    all
}

/// The time of a choice, less what its bytes are worth.
fn price(model: &Model, units: &Units, elements: &BTreeMap<ValueId, u64>, integer: &[bool]) -> f64 {
    let chosen = units.all.iter().zip(integer).filter(|(_, i)| **i);
    let saved: f64 = chosen.map(|(u, _)| u.saved_bytes()).sum();
    cost(model, units, elements, integer).time - BYTE * saved
}

/// What a Q and a DQ of `n` elements take. Between operators on maps the layout changes as well; between one of these and any other it changes in either
/// form, and codes are a quarter of the bytes.
fn conversions(model: &Model, units: &Units, v: ValueId, readers: &[usize], n: u64) -> [f64; 2] {
    let mut around = readers.iter().chain(units.producer.get(&v));
    let convolved = around.any(|&u| matches!(units.all[u].kernel, Kernel::Conv));
    let mapped =
        |node: NodeId| model.node(node).op.domain.is_empty() && MAPS.contains(&model.node(node).op.name.as_str());
    let read = |u: &Use| matches!(u, Use::Node(n, _) if mapped(*n));
    let layout = match model.value(v).producer() {
        Some(node) if convolved => match (mapped(node), model.value(v).uses().iter().any(read)) {
            (true, true) => REORDER,
            (one, other) if one != other => -REORDERED,
            _ => 0.0,
        },
        _ => 0.0,
    };
    [QUANTIZE, DEQUANTIZE].map(|each| CALL + (each + layout) * n as f64)
}

fn capacity(nanoseconds: f64) -> u64 {
    (nanoseconds * 16.0).clamp(0.0, 1e15) as u64
}

/// All that an integer kernel reads can be quantized, and what it gives out, unless it may give out floats.
pub fn can_run(u: &Unit, elements: &BTreeMap<ValueId, u64>) -> bool {
    let has = |v: &ValueId| elements.contains_key(v);
    !u.inputs.is_empty() && u.inputs.iter().all(|x| has(&x.1)) && (u.free_output || u.results.iter().all(has))
}

/// Of the units that run in integers, those that hang together with one that has a weight.
fn connected(model: &Model, units: &Units, integer: Vec<bool>) -> Vec<bool> {
    let mut reached = vec![false; integer.len()];
    let anchored = |i: &usize| units.all[*i].is_weighted() || units.all[*i].joined;
    let all = regions(model, units, &integer);
    all.into_iter()
        .filter(|r| r.iter().any(anchored))
        .flatten()
        .for_each(|i| reached[i] = true);
    reached
}

/// The units that run in integers, those together that hang together.
fn regions(model: &Model, units: &Units, integer: &[bool]) -> Vec<Vec<usize>> {
    let mut open = integer.to_vec();
    let mut all = Vec::new();
    for first in 0..open.len() {
        if !std::mem::take(&mut open[first]) {
            continue;
        }
        let (mut region, mut at) = (vec![first], 0);
        while at < region.len() {
            let u = &units.all[region[at]];
            let before = u.inputs.iter().filter_map(|(_, v)| units.producer.get(v).copied());
            let after = u.results.iter().flat_map(|&v| units.readers(model, v).0);
            region.extend(before.chain(after).filter(|&next| std::mem::take(&mut open[next])));
            at += 1;
        }
        all.push(region);
    }
    all
}

fn quantized(model: &Model, units: &Units, integer: &[bool]) -> BTreeSet<ValueId> {
    let mut all = BTreeSet::new();
    for (i, u) in units.all.iter().enumerate().filter(|(i, _)| integer[*i]) {
        all.extend(u.inputs.iter().map(|x| x.1));
        let needed = |v: &ValueId| !u.free_output || units.readers(model, *v).0.iter().any(|&r| integer[r]);
        all.extend(units.all[i].results.iter().copied().filter(needed));
    }
    all
}

/// The value whose range each quantized value shares: itself, or the one that a chain of operators that keep the scale
/// began with.
pub fn scale_roots(units: &Units, placement: &Placement) -> BTreeMap<ValueId, ValueId> {
    let mut roots = BTreeMap::new();
    for &v in &placement.quantized {
        let mut root = v;
        while let Some(&p) = units.producer.get(&root) {
            let u = &units.all[p];
            match (&u.inputs[..], u.role == Role::Same && placement.integer[p]) {
                ([(_, input), ..], true) => root = *input,
                _ => break,
            }
        }
        roots.insert(v, root);
    }
    roots
}
