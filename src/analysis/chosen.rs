//! Outputs that are chosen from other values: the best boxes of a detector (TopK, NonMaxSuppression), the best class (ArgMax). What was chosen, and in
//! which order, turns on the least noise, and rows that have changed places err by all that they hold; so what they were chosen from is compared in their place.

use crate::ir::{Model, Node, NodeId, ValueId};
use crate::ops::saturates;
use std::collections::BTreeSet;

/// Operators that choose: what comes out depends on an order, or on a threshold.
const CHOOSE: &[&str] = &[
    "ArgMax",
    "ArgMin",
    "Hardmax",
    "NonMaxSuppression",
    "NonZero",
    "TopK",
    "Unique",
];

/// Of these, those that give out indices, and at which output.
const INDICES: &[(&str, usize)] = &[("ArgMax", 0), ("ArgMin", 0), ("NonMaxSuppression", 0), ("TopK", 1)];

/// Operators that compute with weights: what stands behind a choice and before the output then is a network of its own.
const WEIGHTED: &[&str] = &[
    "Conv",
    "ConvTranspose",
    "Einsum",
    "GRU",
    "Gemm",
    "LSTM",
    "MatMul",
    "RNN",
];

/// What an output is chosen from, in the order in which the operators behind read it; `None` where it is not chosen, or by more than a choice.
pub fn from(model: &Model, output: ValueId) -> Option<Vec<ValueId>> {
    let chooses = |id: NodeId| chooses(model, id);
    let cone = cone(model, output);
    if !cone.iter().any(|id| chooses(*id)) {
        return None;
    }
    let order = model.topological(model.main_id()).ok()?;
    let mut chosen: BTreeSet<ValueId> = BTreeSet::new();
    let mut sources = Vec::new();
    for id in order.into_iter().filter(|id| cone.contains(id)) {
        let node = model.node(id);
        let inputs: Vec<ValueId> = node.inputs().iter().flatten().copied().collect();
        if !chooses(id) && !inputs.iter().any(|v| chosen.contains(v)) {
            continue;
        }
        if is_network(model, node) {
            return None;
        }
        for &v in &inputs {
            let made_by = |op: &str| model.value(v).producer().is_some_and(|p| model.node(p).is(op));
            let known = model.constant(v).is_some() || made_by("Constant") || made_by("Shape");
            let varies = !known && !chosen.contains(&v);
            if varies && !sources.contains(&v) {
                sources.push(v);
            }
        }
        chosen.extend(node.outputs().iter().flatten());
    }
    (chosen.contains(&output) && !sources.is_empty()).then_some(sources)
}

/// What is chosen inside a model, in an order of execution: the indices that TopK, ArgMax, ArgMin or NonMaxSuppression give where a network computes the scores,
/// and another network, on the way to an output, reads what they name. The queries of a detection transformer are chosen so, and the experts of a mixture.
pub fn inside(model: &Model) -> Vec<ValueId> {
    let order = model.topological(model.main_id()).unwrap_or_default();
    let network = |id: &NodeId| is_network(model, model.node(*id));
    let indices = |id: NodeId| {
        let (_, slot) = INDICES.iter().find(|(op, _)| model.node(id).is(op))?;
        model.node(id).output(*slot)
    };
    let all = order.into_iter().filter_map(indices);
    all.filter(|v| cone(model, *v).iter().any(network) && fed(model, *v).iter().any(network))
        .collect()
}

/// The nodes of the main graph that compute with a value.
fn fed(model: &Model, v: ValueId) -> BTreeSet<NodeId> {
    let (mut fed, mut open) = (BTreeSet::new(), vec![v]);
    while let Some(v) = open.pop() {
        for reader in model.value(v).uses() {
            let main = model.reader_in(model.main_id(), *reader);
            if let Some(id) = main.filter(|id| fed.insert(*id)) {
                open.extend(model.node(id).outputs().iter().flatten());
            }
        }
    }
    fed
}

/// Which of `theirs` each of `ours` is: the same one where there is one, else the next in order; `None` when they are not as many.
pub fn matched<T>(ours: &[T], theirs: &[T], same: impl Fn(&T, &T) -> bool) -> Option<Vec<usize>> {
    let find = |x: &T| theirs.iter().position(|y| same(x, y));
    let found: Vec<Option<usize>> = ours.iter().map(find).collect();
    let taken: BTreeSet<usize> = found.iter().flatten().copied().collect();
    let mut left = (0..theirs.len()).filter(|i| !taken.contains(i));
    let all: Option<Vec<usize>> = found.into_iter().map(|i| i.or_else(|| left.next())).collect();
    all.filter(|_| ours.len() == theirs.len())
}

/// Whether a value holds scores between 0 and 1, which Sigmoid, Softmax or the like has made.
pub fn are_scores(model: &Model, v: ValueId) -> bool {
    super::parts::made_by(model, v).is_some_and(|id| saturates(model.node(id)))
}

/// Whether a node chooses. The largest values alone, which TopK gives in their order, change no more than what they are of.
fn chooses(model: &Model, id: NodeId) -> bool {
    let node = model.node(id);
    let indices = || node.output(1).is_some_and(|v| !model.value(v).uses().is_empty());
    CHOOSE.iter().any(|op| node.is(op)) && (!node.is("TopK") || indices())
}

/// The nodes of the main graph that a value is computed by.
fn cone(model: &Model, output: ValueId) -> BTreeSet<NodeId> {
    let (mut cone, mut open) = (BTreeSet::new(), vec![output]);
    while let Some(v) = open.pop() {
        let Some(id) = model.value(v).producer() else { continue };
        if cone.insert(id) {
            open.extend(model.node(id).inputs().iter().flatten());
        }
    }
    cone
}

fn is_network(model: &Model, node: &Node) -> bool {
    /// A constant of more elements is a table.
    const FEW: usize = 1024;
    let known = node.op.domain.is_empty();
    let table = node.inputs().iter().flatten().any(|v| {
        let floats = model.constant(*v).filter(|t| t.reals().is_some());
        node.is("Gather") && floats.is_some_and(|t| t.len() > FEW)
    });
    !known || table || WEIGHTED.iter().any(|op| node.is(op)) || node.sub_graphs().next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::Builder;
    use crate::ir::{Attr, DType, Tensor};

    /// `x` → Sigmoid → ReduceMax → TopK; the rows of `x` that it names are the output.
    fn detector(weight: bool) -> (Builder, [ValueId; 4]) {
        let mut b = Builder::new(17);
        let x = b.input("x", DType::Float, &[1, 8, 3]);
        let boxes = b.op("Neg", &[x], vec![]);
        let scores = b.op("Sigmoid", &[x], vec![]);
        let best = b.op(
            "ReduceMax",
            &[scores],
            vec![Attr::ints("axes", vec![-1]), Attr::int("keepdims", 1)],
        );
        let k = b.constant("k", Tensor::new(&[1], vec![4i64]));
        let top = b.ops("TopK", &[Some(best), Some(k)], 2, vec![Attr::int("axis", 1)]);
        let tiles = b.constant("tiles", Tensor::new(&[3], vec![1i64, 1, 3]));
        let at = b.op("Tile", &[top[1], tiles], vec![]);
        let mut rows = b.op("GatherElements", &[boxes, at], vec![Attr::int("axis", 1)]);
        if weight {
            let w = b.constant("w", Tensor::new(&[3, 3], vec![1f32; 9]));
            rows = b.op("MatMul", &[rows, w], vec![]);
        }
        let y = b.op("Concat", &[rows, top[0]], vec![Attr::int("axis", 2)]);
        (b, [boxes, scores, best, y])
    }

    #[test]
    fn what_top_k_reads_and_what_is_gathered_by_it_is_what_rows_are_chosen_from() {
        let (b, [boxes, scores, best, y]) = detector(false);
        assert_eq!(from(&b.model, y), Some(vec![best, boxes]));
        assert_eq!(from(&b.model, scores), None, "nothing is chosen there");
        assert!(!are_scores(&b.model, boxes) && are_scores(&b.model, scores));
    }

    #[test]
    fn a_network_behind_a_choice_is_not_looked_past() {
        let (b, [.., y]) = detector(true);
        assert_eq!(from(&b.model, y), None);
    }

    /// The number of values that are chosen between two products, or in front of one only, or behind one only.
    fn chosen_inside(before: bool, behind: bool, values: bool) -> usize {
        let mut b = Builder::new(17);
        let mut x = b.input("x", DType::Float, &[8, 3]);
        let w = b.constant("w", Tensor::new(&[3, 3], vec![1f32; 9]));
        if before {
            x = b.op("MatMul", &[x, w], vec![]);
        }
        let axes = vec![Attr::ints("axes", vec![-1]), Attr::int("keepdims", 0)];
        let best = b.op("ReduceMax", &[x], axes);
        let k = b.constant("k", Tensor::new(&[1], vec![4i64]));
        let top = b.ops("TopK", &[Some(best), Some(k)], 2, vec![]);
        let mut y = match values {
            true => b.op("Unsqueeze", &[top[0], k], vec![]),
            false => b.op("Gather", &[x, top[1]], vec![]),
        };
        if behind {
            y = b.op("MatMul", &[y, w], vec![]);
        }
        let main = b.model.main_id();
        b.model.add_output(main, Model::elem_info("y".into(), DType::Float), y);
        inside(&b.model).len()
    }

    #[test]
    fn only_indices_between_networks_are_chosen_inside() {
        assert_eq!(chosen_inside(true, true, false), 1);
        assert_eq!(
            chosen_inside(false, true, false),
            0,
            "no noise turns the order of an input"
        );
        assert_eq!(chosen_inside(true, false, false), 0, "an output that is chosen");
        assert_eq!(chosen_inside(true, true, true), 0, "the largest values change little");
    }

    #[test]
    fn how_many_are_chosen_is_no_source_wherever_it_stands() {
        let (mut b, [boxes, _, best, y]) = detector(false);
        let (top, _) = b.model.nodes().find(|(_, n)| n.is("TopK")).expect("it is there");
        let proto = Tensor::new(&[1], vec![4i64]).to_inline_proto();
        let k = b.op("Constant", &[], vec![Attr::tensor("value", proto)]);
        b.model.set_input(top, 1, Some(k));
        assert_eq!(from(&b.model, y), Some(vec![best, boxes]));
    }

    #[test]
    fn the_same_come_together_and_the_rest_in_order() {
        let same = |a: &i32, b: &i32| a == b;
        assert_eq!(matched(&[1, 2, 3], &[2, 7, 8], same), Some(vec![1, 0, 2]));
        assert_eq!(matched(&[1], &[1, 2], same), None);
    }
}
