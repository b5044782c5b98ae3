//! What every layer costs, before and after.
//!
//! A layer is a node that has weights or multiply-adds. Layers of both models belong together by name. What a pass made
//! out of a layer has the layer's name, `_` and something more; scales and zero points belong to the layer that reads what
//! they quantize; what nothing of the original explains stands alone.

use super::PassRun;
use crate::analysis::cost::{Cost, cost};
use crate::ir::{Model, NodeId, Use};
use crate::ops::types::infer_for;
use crate::passes::NoteKind;
use serde::Serialize;
use std::collections::BTreeMap;

/// The cost of a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerSize {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Bytes of its constants in the original; 0 where it is new.
    pub bytes_before: u64,
    /// Bytes of its constants, and of what was made out of it, in the result.
    pub bytes_after: u64,
    /// Multiply-adds of one sample in the original, where dimensions are known.
    pub macs_before: Option<u64>,
    /// The same in the result.
    pub macs_after: Option<u64>,
    /// True when no node of this name, or made out of it, is in the result.
    pub gone: bool,
    /// The names of the passes that say they changed it, in their order.
    pub passes: Vec<String>,
}

/// The layers of the original, and then those of the result that are new, for inputs of these dimensions.
pub fn layer_sizes(original: &Model, changed: &Model, inputs: &BTreeMap<String, Vec<usize>>) -> Vec<LayerSize> {
    let costs = |model: &Model| -> Cost {
        infer_for(model, inputs)
            .map(|types| cost(model, &types))
            .unwrap_or_default()
    };
    let mut all: Vec<LayerSize> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for c in costs(original).nodes {
        let node = reader(original, c.node);
        let op = &original.node(node).op.name;
        let size = place(&mut all, &mut places, original.label(node), op);
        size.bytes_before += c.bytes;
        size.macs_before = sum(size.macs_before, c.macs);
        size.gone = true;
    }
    let known = places.clone();
    for c in costs(changed).nodes {
        let node = reader(changed, c.node);
        let label = changed.label(node);
        let name = maker(&known, &label).unwrap_or(label);
        let size = place(&mut all, &mut places, name, &changed.node(node).op.name);
        size.bytes_after += c.bytes;
        size.macs_after = sum(size.macs_after, c.macs);
        size.gone = false;
    }
    all
}

/// Puts down to every layer the passes that changed it, or what was made out of it.
pub fn credit(layers: &mut [LayerSize], runs: &[PassRun]) {
    let known: BTreeMap<String, usize> = layers.iter().enumerate().map(|(i, l)| (l.node.clone(), i)).collect();
    for run in runs {
        let name = run.pass.split('(').next().unwrap_or(&run.pass);
        for note in run.notes.iter().filter(|n| n.kind == NoteKind::Did) {
            let Some(layer) = maker(&known, &note.node).map(|node| known[&node]) else {
                continue;
            };
            let passes = &mut layers[layer].passes;
            if passes.last().is_none_or(|last| last != name) {
                passes.push(name.to_owned());
            }
        }
    }
}

/// Chains of Q/DQ nodes that are followed.
const LONGEST: usize = 8;

/// The node itself; of what only quantizes, the first node behind that does more, or, before an output, the one in front.
fn reader(model: &Model, node: NodeId) -> NodeId {
    let quantizes = |n: &NodeId| {
        let n = model.node(*n);
        n.is("QuantizeLinear") || n.is("DequantizeLinear")
    };
    let behind = |n: &NodeId| {
        let output = model.node(*n).outputs().iter().flatten().next().copied()?;
        let node = |u: &Use| if let Use::Node(n, _) = u { Some(*n) } else { None };
        model.value(output).uses().iter().find_map(node)
    };
    let before = |n: &NodeId| model.value(model.node(*n).input(0)?).producer();
    let more = |n: &NodeId| !quantizes(n);
    let walk = |next: &dyn Fn(&NodeId) -> Option<NodeId>| {
        std::iter::successors(Some(node), |n| next(n)).take(LONGEST).find(more)
    };
    walk(&behind).or_else(|| walk(&before)).unwrap_or(node)
}

fn place<'a>(
    all: &'a mut Vec<LayerSize>,
    places: &mut BTreeMap<String, usize>,
    node: String,
    op: &str,
) -> &'a mut LayerSize {
    let at = *places.entry(node.clone()).or_insert(all.len());
    if at == all.len() {
        all.push(LayerSize {
            node,
            op: op.to_owned(),
            bytes_before: 0,
            bytes_after: 0,
            macs_before: Some(0),
            macs_after: Some(0),
            gone: false,
            passes: Vec::new(),
        });
    }
    &mut all[at]
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a?.checked_add(b?)
}

/// The layer of the original with the longest name that this one's begins with.
fn maker(known: &BTreeMap<String, usize>, label: &str) -> Option<String> {
    if known.contains_key(label) {
        return Some(label.to_owned());
    }
    let ends = label.rmatch_indices('_').map(|(i, _)| &label[..i]);
    ends.into_iter()
        .find(|name| known.contains_key(*name))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::Note;

    #[test]
    fn passes_are_credited_to_the_layers_that_they_changed_and_to_no_others() {
        let layer = |node: &str| LayerSize {
            node: node.into(),
            op: "Gemm".into(),
            bytes_before: 1,
            bytes_after: 1,
            macs_before: None,
            macs_after: None,
            gone: false,
            passes: Vec::new(),
        };
        let run = |pass: &str, notes: &[(NoteKind, &str)]| PassRun {
            pass: pass.into(),
            changed: true,
            seconds: 0.0,
            notes: notes
                .iter()
                .map(|(kind, node)| Note {
                    kind: *kind,
                    node: (*node).into(),
                    what: String::new(),
                })
                .collect(),
            charts: Vec::new(),
        };
        let mut layers = [layer("a"), layer("a_b"), layer("c")];
        let did = NoteKind::Did;
        credit(
            &mut layers,
            &[
                run("lowrank(error=0.1)", &[(did, "a_b"), (NoteKind::Skip, "c"), (did, "")]),
                run("int8", &[(did, "a"), (did, "a_b_lr0"), (did, "a_b_lr1"), (did, "new")]),
            ],
        );
        let passes: Vec<String> = layers.iter().map(|l| l.passes.join(" ")).collect();
        assert_eq!(passes, ["int8", "lowrank int8", ""]);
    }

    #[test]
    fn what_a_pass_made_is_put_down_to_the_layer_of_the_longest_name() {
        let known: BTreeMap<String, usize> = ["conv", "conv_1"].iter().map(|n| (n.to_string(), 0)).collect();
        assert_eq!(maker(&known, "conv_1_lr0").as_deref(), Some("conv_1"));
        assert_eq!(maker(&known, "conv_2").as_deref(), Some("conv"));
        assert_eq!(maker(&known, "dense_lr0"), None);
        assert_eq!(maker(&known, "convolution"), None);
    }
}
