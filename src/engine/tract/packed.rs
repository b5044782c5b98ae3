//! Codes that operators put together from constants, computed once, before tract sees the graph.
//!
//! Weights in few bits are stored so. tract itself folds small constants only: it would put large ones together again in every run, and pack
//! the matrix anew for every product.

use super::convert::from_tract;
use super::graph::Flat;
use super::plan::Plan;
use super::quietly;
use crate::data::Sample;
use crate::ir::Tensor;
use crate::pb;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Puts in the place of codes that are unpacked from constants what they are. What tract cannot compute alone stays as it is.
pub fn compute(flat: &mut Flat) {
    let names: Vec<String> = unpacked(flat).into_iter().collect();
    if names.is_empty() {
        return;
    }
    if let Ok(values) = quietly(|| computed(flat, &names)) {
        let made = |n: &pb::NodeProto| n.output.iter().any(|o| names.contains(o));
        flat.graph.node.retain(|n| !made(n));
        flat.tensors.extend(names.into_iter().zip(values));
        flat.prune();
    }
}

/// What other operators read of that which is computed from constants alone, and from bits that are shifted.
fn unpacked(flat: &Flat) -> BTreeSet<String> {
    let outputs: BTreeSet<&str> = flat.graph.output.iter().map(|o| o.name()).collect();
    // Whether a constant was shifted on the way.
    let mut constant: BTreeMap<&str, bool> = flat.tensors.keys().map(|name| (name.as_str(), false)).collect();
    let mut unpacked = BTreeSet::new();
    for n in &flat.graph.node {
        let inputs: Vec<&str> = n.input.iter().map(String::as_str).filter(|v| !v.is_empty()).collect();
        let plain = matches!(n.domain(), "" | "ai.onnx") && PURE.contains(&n.op_type());
        let [output] = &n.output[..] else { continue };
        let known = inputs
            .iter()
            .map(|v| constant.get(v).copied())
            .collect::<Option<Vec<bool>>>();
        match known.filter(|_| plain && !outputs.contains(output.as_str())) {
            Some(shifted) => {
                let shifted = n.op_type() == "BitShift" || shifted.contains(&true);
                constant.insert(output, shifted);
            }
            None => {
                let shifted = inputs.iter().filter(|v| constant.get(*v) == Some(&true));
                unpacked.extend(shifted.map(|v| (*v).to_owned()));
            }
        }
    }
    unpacked
}

/// What codes are put together by.
const PURE: [&str; 5] = ["Add", "BitShift", "Cast", "Reshape", "Transpose"];

fn computed(flat: &Flat, names: &[String]) -> Result<Vec<Tensor>> {
    let plan = Plan::for_sample(flat.clone(), names, &Sample::new())?;
    let values = plan.compute(&Sample::new())?.context("no branches")?;
    values.into_iter().map(|v| from_tract(v, None)).collect()
}
