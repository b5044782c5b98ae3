//! Which weights there are: constants that multiply activations, and how blocks may lie in them.

use super::view::View;
use crate::analysis::sites::{Site, sites};
use crate::analysis::stats::{Detail, Measure, Patch};
use crate::ir::{DType, Model, NodeId, Use, ValueId};
use std::collections::BTreeMap;

/// A weight, and the nodes that multiply with it.
pub struct Weight {
    /// The constant.
    pub value: ValueId,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// Who multiplies with it, first to last; not empty.
    pub nodes: Vec<NodeId>,
    /// Of them, those whose products are understood. All have the same layout.
    pub sites: Vec<Site>,
    /// Of recurrent layers, what they multiply with the weight at the steps: their inputs, or the states before and after them.
    pub steps: Vec<ValueId>,
    /// That is known of every layer.
    pub stepped: bool,
    /// One row for each number of `axis`.
    pub channels: View,
    /// The axis that counts outputs.
    pub axis: usize,
    /// Rows cut into blocks; `None` where blocks would be shorter than the smallest one that is worth it.
    pub blocked: Option<View>,
}

impl Weight {
    /// The numbers in it.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether all numbers in it are finite floats.
    pub fn is_finite(&self, model: &Model) -> bool {
        let floats = model.constant(self.value).and_then(|t| t.floats());
        floats.is_some_and(|f| f.iter().all(|x| x.is_finite()))
    }

    /// The moments that tell how errors of the weight come out: one for every site, or step, in the main graph.
    pub fn measures(&self, model: &Model) -> Vec<(ValueId, Measure)> {
        /// Beyond this many inputs the moment costs more than the model itself.
        const MOST: usize = 2304;
        let main = model.main_id();
        let inside = |s: &&Site| model.node(s.node).graph() == main && model.value(s.input).graph() == main;
        let usable = |s: &&Site| {
            let columns = s.inputs() / s.layout.groups * s.taps();
            columns <= MOST && !s.is_transposed()
        };
        let sites = self.sites.iter().filter(inside).filter(usable);
        let sites = sites.map(|s| (s.input, s.patch.clone()));
        let outer = |v: &&ValueId| model.value(**v).graph() == main && self.dims.last().is_some_and(|n| *n <= MOST);
        let steps = self.steps.iter().filter(|_| self.stepped).filter(outer);
        let steps = steps.map(|v| (*v, Patch::LAST));
        let all = sites.chain(steps);
        all.map(|(v, patch)| (v, Measure::Gram(patch, Detail::Fine))).collect()
    }
}

/// All weights of the model, in the order of the nodes that read them, and what was left out, with the reason.
pub fn weights(model: &Model) -> (Vec<Weight>, Vec<(NodeId, &'static str)>) {
    let mut all: BTreeMap<ValueId, Weight> = BTreeMap::new();
    let mut refused = Vec::new();
    let mut order = Vec::new();
    let found = sites(model).into_iter().map(of_site).chain(recurrent(model));
    let mut found: Vec<Weight> = found.collect();
    found.sort_by_key(|w| w.nodes[0]);
    for w in found {
        let node = w.nodes[0];
        if model.constant(w.value).is_none_or(|t| t.dtype() != DType::Float) {
            refused.push((node, "its weight is not float32"));
            continue;
        }
        if model.value(w.value).uses().iter().any(|u| matches!(u, Use::Output(..))) {
            refused.push((node, "its weight is an output of the model as well"));
            continue;
        }
        match all.get_mut(&w.value) {
            None => {
                order.push(w.value);
                all.insert(w.value, w);
            }
            Some(first) if first.channels == w.channels && first.blocked == w.blocked => {
                first.nodes.push(node);
                first.sites.extend(w.sites);
                first.steps.extend(w.steps);
                first.stepped &= w.stepped;
            }
            // Read in two ways (as a matrix and as its transpose): the first one's scales serve both.
            Some(first) => {
                first.nodes.push(node);
                first.sites.clear();
                first.stepped = false;
            }
        }
    }
    (order.into_iter().filter_map(|v| all.remove(&v)).collect(), refused)
}

fn of_site(site: Site) -> Weight {
    let dims = site.dims().to_vec();
    let axis = site.layout.out_axis;
    let others: Vec<usize> = (0..dims.len()).filter(|a| *a != axis).collect();
    let transposed = site.is_transposed();
    // Taps outside, channels inside: blocks run along the channels, as DequantizeLinear has it.
    let columns: Vec<usize> = match site.layout.window {
        Some(_) => (2..dims.len()).chain([1]).collect(),
        None => vec![site.layout.in_axis],
    };
    Weight {
        value: site.weight,
        nodes: vec![site.node],
        channels: View {
            rows: vec![axis],
            columns: others,
        },
        axis,
        blocked: (!transposed).then(|| View {
            rows: vec![axis],
            columns,
        }),
        dims,
        sites: vec![site],
        steps: Vec::new(),
        stepped: true,
    }
}

/// W and R of LSTM, GRU and RNN: `[directions, gates · hidden, inputs]`.
fn recurrent(model: &Model) -> Vec<Weight> {
    let mut all = Vec::new();
    for (id, n) in model.nodes() {
        if !(n.is("LSTM") || n.is("GRU") || n.is("RNN")) || n.has_attr_refs() {
            continue;
        }
        // The output is the state after a step, which the next one multiplies; the first one multiplies the state that is given.
        let states = [n.input(5), n.output(0)];
        let weights = [(n.input(1), [n.input(0), None]), (n.input(2), states)];
        for (value, steps) in weights.into_iter().filter_map(|(value, steps)| Some((value?, steps))) {
            let steps = steps.into_iter().flatten().filter(|v| model.constant(*v).is_none());
            let steps: Vec<ValueId> = steps.collect();
            let Some(t) = model.constant(value).filter(|t| t.dims().len() == 3 && !t.is_empty()) else {
                continue;
            };
            all.push(Weight {
                value,
                dims: t.dims().to_vec(),
                nodes: vec![id],
                sites: Vec::new(),
                stepped: !steps.is_empty(),
                steps,
                channels: View {
                    rows: vec![1],
                    columns: vec![0, 2],
                },
                axis: 1,
                blocked: Some(View {
                    rows: vec![0, 1],
                    columns: vec![2],
                }),
            });
        }
    }
    all
}
