//! Which units run in integers, and hence which values are quantized.
//!
//! Every value that is made on one side and read on the other costs one conversion of its elements; every unit that runs in
//! integers saves something. Operators with weights always run in integers, what is no unit never does; the rest is a
//! minimum cut. A Q/DQ pair around an operator that gains little between two float neighbours is thus never placed, and a chain
//! of cheap operators between two convolutions always stays in integers.

use super::cut::{INFINITE, Network, SINK, SOURCE};
use super::units::{Unit, Units};
use crate::ir::{Model, ValueId};
use crate::ops::quant::Role;
use std::collections::{BTreeMap, BTreeSet};

/// What runs in integers.
pub struct Placement {
    /// For every unit, whether it does.
    pub integer: Vec<bool>,
    /// The values that are quantized.
    pub quantized: BTreeSet<ValueId>,
}

/// Chooses; `elements` counts the elements of a value, for values that are float tensors (others cannot be quantized).
pub fn choose(model: &Model, units: &Units, elements: &BTreeMap<ValueId, u64>) -> Placement {
    let integer = connected(model, units, cut(model, units, elements));
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

fn cut(model: &Model, units: &Units, elements: &BTreeMap<ValueId, u64>) -> Vec<bool> {
    let mut net = Network::new();
    let nodes: Vec<usize> = units.all.iter().map(|_| net.node()).collect();
    let cost = |v: &ValueId| elements.get(v).map(|n| 16 * (n + 1));
    for (i, u) in units.all.iter().enumerate() {
        if !can_run(u, elements) {
            net.edge(nodes[i], SINK, INFINITE);
        } else if u.is_weighted() {
            net.edge(SOURCE, nodes[i], INFINITE);
        } else {
            let out: u64 = u.results.iter().filter_map(cost).sum();
            net.edge(SOURCE, nodes[i], (out as f64 * u.gain) as u64);
        }
    }
    let values: BTreeSet<ValueId> = candidates(model, units);
    for v in values {
        let Some(cost) = cost(&v) else { continue };
        let (readers, others) = units.readers(model, v);
        let mut readers: Vec<usize> = readers.into_iter().map(|r| nodes[r]).collect();
        if others {
            readers.push(SINK);
        }
        let producer = units.producer.get(&v);
        let (all_out, some_in) = (net.node(), net.node());
        readers.iter().for_each(|&r| {
            net.edge(all_out, r, INFINITE);
            net.edge(r, some_in, INFINITE);
        });
        match producer {
            Some(&p) if units.all[p].free_output => net.edge(some_in, all_out, cost),
            Some(&p) => {
                net.edge(nodes[p], all_out, cost);
                net.edge(some_in, nodes[p], cost);
            }
            None => net.edge(some_in, SINK, cost),
        }
    }
    let side = net.source_side();
    units.all.iter().zip(&nodes).map(|(u, &n)| side[n] && can_run(u, elements)).collect()
}

/// All that an integer kernel reads can be quantized, and what it gives out, unless it may give out floats.
fn can_run(u: &Unit, elements: &BTreeMap<ValueId, u64>) -> bool {
    let has = |v: &ValueId| elements.contains_key(v);
    u.inputs.iter().all(|x| has(&x.1)) && (u.free_output || u.results.iter().all(has))
}

/// Of the units that run in integers, those that hang together with one that has a weight.
fn connected(model: &Model, units: &Units, integer: Vec<bool>) -> Vec<bool> {
    let mut reached: Vec<bool> = units.all.iter().zip(&integer).map(|(u, i)| *i && u.is_weighted()).collect();
    let mut queue: Vec<usize> = (0..reached.len()).filter(|&i| reached[i]).collect();
    while let Some(i) = queue.pop() {
        let u = &units.all[i];
        let before = u.inputs.iter().filter_map(|(_, v)| units.producer.get(v).copied());
        let after = u.results.iter().flat_map(|&v| units.readers(model, v).0);
        for next in before.chain(after) {
            if integer[next] && !reached[next] {
                reached[next] = true;
                queue.push(next);
            }
        }
    }
    reached
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
