//! Common sub-expressions: nodes with the same operator, attributes and inputs give the same values, so one is enough.
//!
//! A node in a body is the same as one in a graph around it: that one reads the same values, which are there before the
//! control-flow node runs. Random operators, operators with sub-graphs and operators of other domains are left alone.

use super::work::Work;
use crate::ir::{GraphId, NodeId, ValueId};
use crate::ops::is_random;
use prost::Message;
use std::collections::HashMap;

/// Besides the random ones: operators that may not be a function of their inputs in training, or that other rules treat.
const IMPURE: &[&str] = &["Dropout", "Constant"];
const COMMUTATIVE: &[&str] = &[
    "Add",
    "Mul",
    "And",
    "Or",
    "Xor",
    "Equal",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
];

#[derive(PartialEq, Eq, Hash)]
struct Key {
    op: String,
    attrs: Vec<Vec<u8>>,
    inputs: Vec<Option<ValueId>>,
}

pub(super) fn share(w: &mut Work) -> Vec<(String, String)> {
    let mut seen: HashMap<Key, Vec<NodeId>> = HashMap::new();
    let mut done = Vec::new();
    for g in w.model.live_graphs() {
        let Ok(order) = w.model.topological(g) else { continue };
        for id in order {
            let Some(key) = key_of(w, id) else { continue };
            let known = seen.entry(key).or_default();
            let same = known.iter().copied().find(|k| can_merge(w, *k, id));
            match same {
                Some(first) => {
                    let label = w.model.label(id);
                    merge(w, first, id);
                    done.push((label, format!("computes the same as {}: shared", w.model.label(first))));
                }
                None => known.push(id),
            }
        }
    }
    done
}

fn key_of(w: &Work, id: NodeId) -> Option<Key> {
    let n = w.model.node(id);
    if !w.may_touch(id) || is_random(n) || IMPURE.contains(&n.op.name.as_str()) || n.sub_graphs().next().is_some() {
        return None;
    }
    let mut attrs: Vec<Vec<u8>> = n
        .attrs
        .iter()
        .map(|a| {
            let mut p = a.proto.clone();
            p.doc_string = None;
            p.encode_to_vec()
        })
        .collect();
    attrs.sort_unstable();
    let mut inputs = n.inputs().to_vec();
    if COMMUTATIVE.contains(&n.op.name.as_str()) {
        inputs.sort_unstable();
    }
    Some(Key {
        op: n.op.name.clone(),
        attrs,
        inputs,
    })
}

/// `first` must be visible from `second`, give all that it gives, and be able to stand behind its graph outputs.
fn can_merge(w: &Work, first: NodeId, second: NodeId) -> bool {
    if !w.model.is_alive(first) {
        return false;
    }
    let (a, b): (&_, &_) = (w.model.node(first), w.model.node(second));
    let visible = |from: GraphId, to: GraphId| w.model.in_scope(from, to);
    visible(a.graph(), b.graph())
        && w.opset(first) == w.opset(second)
        && a.outputs().len() == b.outputs().len()
        && a.outputs().iter().zip(b.outputs()).all(|(x, y)| match (x, y) {
            (_, None) => true,
            (Some(x), Some(y)) => w.can_stand_for(*y, *x),
            (None, Some(_)) => false,
        })
}

fn merge(w: &mut Work, first: NodeId, second: NodeId) {
    let pairs: Vec<(Option<ValueId>, Option<ValueId>)> = {
        let (a, b) = (w.model.node(first).outputs(), w.model.node(second).outputs());
        a.iter().copied().zip(b.iter().copied()).collect()
    };
    for (a, b) in pairs {
        if let (Some(a), Some(b)) = (a, b) {
            w.model.replace_uses(b, a);
        }
    }
    w.model.erase(second);
}
