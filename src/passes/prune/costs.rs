//! What units cost: weights and multiply-adds, one by one and together.
//!
//! A contraction's cost is a product of lengths; of each of its axes that can lose units a part stays, so what is left of it is
//! `cost · Π (1 − gone/length)`: layers that lose on both sides are not counted twice.

use crate::analysis::cost::cost;
use crate::analysis::groups::Groups;
use crate::data::Samples;
use crate::ir::{Model, NodeId};
use crate::ops::ties::{Dot, constant};
use crate::ops::types::{Types, infer, infer_sample};
use std::collections::{BTreeMap, BTreeSet};

/// Parts of a whole model.
#[derive(Clone, Copy, Default)]
pub struct Share {
    /// Of its weights.
    pub weights: f64,
    /// Of its multiply-adds.
    pub macs: f64,
}

/// The contractions of a model.
pub struct Costs {
    products: Vec<Product>,
    /// Multiply-adds of one sample.
    pub macs: f64,
    weights: f64,
}

struct Product {
    node: NodeId,
    weights: f64,
    macs: f64,
    /// The units along every axis.
    axes: Vec<Vec<usize>>,
}

impl Costs {
    /// Counts; dimensions that the file leaves open are those of the first sample.
    pub fn new(model: &Model, groups: &Groups, samples: &Samples) -> Costs {
        let sample = samples.get(0).ok();
        let types = sample.and_then(|s| infer_sample(model, &s).ok());
        let types = types.or_else(|| infer(model).ok()).unwrap_or_default();
        let known = counted(model, &types);
        let mut costs = Costs {
            products: Vec::new(),
            macs: known.values().sum(),
            weights: 0.0,
        };
        for (id, flow) in &groups.flows {
            let lengths = |d: &Dot| weights(model, *id, d).unwrap_or(0.0);
            let all: f64 = flow.dots.iter().map(lengths).sum();
            // A product of two computed values has a contraction for either of them, and is one.
            let dots = flow.dots.iter().filter(|d| all == 0.0 || lengths(d) > 0.0);
            for dot in dots.take(if all == 0.0 { 1 } else { usize::MAX }) {
                let weights = lengths(dot);
                let part = if all > 0.0 { weights / all } else { 1.0 };
                let macs = known.get(id).map(|m| m * part);
                costs.weights += weights;
                costs.products.push(Product {
                    node: *id,
                    weights,
                    macs: macs.unwrap_or_else(|| roughly(model, groups, *id, dot, weights)),
                    axes: axes(model, groups, *id, dot),
                });
            }
        }
        costs.macs = costs.macs.max(costs.products.iter().map(|p| p.macs).sum());
        costs
    }

    /// What taking one more unit saves when these are gone.
    pub fn shares(&self, gone: &BTreeSet<usize>) -> BTreeMap<usize, Share> {
        let mut shares: BTreeMap<usize, Share> = BTreeMap::new();
        for p in &self.products {
            let left: Vec<f64> = p.axes.iter().map(|a| stays(a, gone)).collect();
            for (k, axis) in p.axes.iter().enumerate() {
                let others: f64 = left
                    .iter()
                    .enumerate()
                    .filter(|(j, _)| *j != k)
                    .map(|(_, x)| x)
                    .product();
                let part = |x: f64, all: f64| others * x / all.max(1.0) / axis.len().max(1) as f64;
                for unit in axis {
                    let share = shares.entry(*unit).or_default();
                    share.weights += part(p.weights, self.weights);
                    share.macs += part(p.macs, self.macs);
                }
            }
        }
        shares
    }

    /// What is saved when all of these units go, and these nodes as a whole.
    pub fn saved(&self, gone: &BTreeSet<usize>, dead: &BTreeSet<NodeId>) -> Share {
        let mut saved = Share::default();
        for p in &self.products {
            let lost = match dead.contains(&p.node) {
                true => 1.0,
                false => 1.0 - p.axes.iter().map(|a| stays(a, gone)).product::<f64>(),
            };
            saved.weights += lost * p.weights / self.weights.max(1.0);
            saved.macs += lost * p.macs / self.macs.max(1.0);
        }
        saved
    }
}

/// The part of an axis that is left.
fn stays(axis: &[usize], gone: &BTreeSet<usize>) -> f64 {
    let left = axis.iter().filter(|u| !gone.contains(u)).count();
    left as f64 / axis.len().max(1) as f64
}

fn counted(model: &Model, types: &Types) -> BTreeMap<NodeId, f64> {
    let nodes = cost(model, types).nodes.into_iter();
    nodes.filter_map(|n| Some((n.node, n.macs? as f64))).collect()
}

/// The numbers in the constant of a contraction.
fn weights(model: &Model, id: NodeId, dot: &Dot) -> Option<f64> {
    let v = model.node(id).input(dot.weight.0)?;
    Some(constant(model, v)?.len() as f64)
}

/// Multiply-adds where they could not be counted: dimensions that are not known are 1.
fn roughly(model: &Model, groups: &Groups, id: NodeId, dot: &Dot, weights: f64) -> f64 {
    let dims = model
        .node(id)
        .output(0)
        .and_then(|v| groups.dims(v))
        .unwrap_or_default();
    let others = dims.iter().enumerate().filter(|(a, _)| *a != dot.out);
    others.map(|(_, d)| d.known().unwrap_or(1) as f64).product::<f64>() * weights
}

/// The units along the axes whose lengths are factors of a contraction's cost.
fn axes(model: &Model, groups: &Groups, id: NodeId, dot: &Dot) -> Vec<Vec<usize>> {
    let node = model.node(id);
    let Some(weight) = node.input(dot.weight.0) else {
        return Vec::new();
    };
    let mut places: Vec<_> = vec![(weight, dot.weight.1)];
    match (constant(model, weight).is_some(), node.output(0)) {
        (false, Some(out)) => places.extend((0..groups.dims(out).map_or(0, |d| d.len())).map(|a| (out, a))),
        _ => places.push((weight, dot.row)),
    }
    let units = |(v, a)| {
        let (start, len) = groups.axis(v, a)?;
        Some((start..start + len).map(|e| groups.unit(e)).collect())
    };
    places.into_iter().filter_map(units).collect()
}
