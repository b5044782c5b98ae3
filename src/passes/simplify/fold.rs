//! Constant folding: what depends on constants only, or on shapes that are known, is computed here and now.
//!
//! A file must not grow by it: a result is kept when it is at most [`SLACK`] bytes larger than the constants that only
//! this computation reads. Nodes that cut a constant into pieces (the gates of an LSTM) count together.

use super::numbers::is_finite;
use super::work::Work;
use super::{direct, moved};
use crate::engine::{Engine, eval::evaluate};
use crate::ir::{DType, Model, NodeId, Origin, Tensor, Use, ValueId, bits};
use crate::ops::infer::product;
use crate::pb;
use std::collections::BTreeSet;

/// A result may be so much larger than what it replaces; the node that goes takes some of it.
const SLACK: usize = 1024;
/// Constants that feed each other are computed layer by layer, at most so many layers in a round.
const MAX_LAYERS: usize = 32;
/// The engine gets nodes with at most so many bytes of inputs and outputs at once: it holds each of them several times.
const ENGINE_UP_TO: usize = 48 << 20;
/// Larger integer results are weights, not shapes.
const MAX_INTS: usize = 128;

/// Values whose integers inference found become constants.
pub(super) fn known_integers(w: &mut Work) -> Vec<(String, String)> {
    let mut done = Vec::new();
    for id in w.model.node_ids() {
        if !w.model.is_alive(id) || !foldable(w, id) {
            continue;
        }
        let outs: Vec<ValueId> = w.model.node(id).outputs().iter().flatten().copied().collect();
        for v in outs {
            let Some(t) = known(w, v) else { continue };
            if w.model.value(v).uses().is_empty() {
                continue;
            }
            let label = w.model.label(id);
            w.make_const(v, t);
            done.push((label, "its value is known: made a constant".into()));
        }
    }
    done
}

fn foldable(w: &Work, id: NodeId) -> bool {
    let n = w.model.node(id);
    w.may_touch(id) && n.op.name != "Constant" && n.sub_graphs().next().is_none() && can_be_constant(w, id)
}

fn known(w: &Work, v: ValueId) -> Option<Tensor> {
    let fact = w.facts.get(v);
    let dims = fact.dims()?;
    let ints = fact.ints()?;
    if product(fact.shape.as_deref()?)? != ints.len() || ints.len() > MAX_INTS {
        return None;
    }
    match fact.dtype? {
        DType::Int64 => Some(Tensor::new(&dims, ints)),
        DType::Int32 => {
            let narrow: Result<Vec<i32>, _> = ints.iter().map(|&x| i32::try_from(x)).collect();
            Some(Tensor::new(&dims, narrow.ok()?))
        }
        DType::Bool => {
            let bytes: Vec<u8> = ints.iter().map(|&x| u8::from(x != 0)).collect();
            Tensor::from_raw(DType::Bool, &dims, bytes.into()).ok()
        }
        _ => None,
    }
}

/// Operators that only move elements: right in every type.
const MOVES: &[&str] = &[
    "Concat",
    "ConstantOfShape",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
];
/// Operators that compute. Engines differ on NaN, infinities and empty tensors: those are left to the runtime.
const COMPUTES: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "Cast",
    "Ceil",
    "Clip",
    "Cos",
    "Div",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gemm",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Log",
    "MatMul",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pow",
    "Range",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "Relu",
    "Sigmoid",
    "Sin",
    "Sqrt",
    "Sub",
    "Tanh",
    "Xor",
];

/// Nodes that read constants only are run by the engine. `refused` remembers those that cannot be, or would make the file larger.
pub(super) fn computed(w: &mut Work, engine: &dyn Engine, refused: &mut BTreeSet<NodeId>) -> Vec<(String, String)> {
    let mut done = Vec::new();
    for _ in 0..MAX_LAYERS {
        let layer: Vec<NodeId> = w
            .model
            .node_ids()
            .into_iter()
            .filter(|id| !refused.contains(id) && reads_constants_only(w, *id) && is_small_enough(w, *id))
            .collect();
        if layer.is_empty() {
            break;
        }
        let results = results(w, engine, &layer);
        for (id, tensors) in layer.into_iter().zip(results) {
            let outs: Vec<Option<ValueId>> = w.model.node(id).outputs().to_vec();
            let moves = MOVES.contains(&w.model.node(id).op.name.as_str());
            let sound = |t: &[Tensor]| agree(w, &outs, t) && (moves || t.iter().all(is_finite));
            let fits = tensors.as_deref().is_some_and(sound);
            let (Some(tensors), true) = (tensors, fits) else {
                refused.insert(id);
                continue;
            };
            let label = w.model.label(id);
            let mut tensors = tensors.into_iter();
            for v in outs.into_iter().flatten() {
                let Some(t) = tensors.next() else { break };
                w.make_const(v, t);
            }
            done.push((label, "reads constants only: computed".into()));
        }
    }
    done
}

fn reads_constants_only(w: &Work, id: NodeId) -> bool {
    let n = w.model.node(id);
    let op = n.op.name.as_str();
    let moves = MOVES.contains(&op);
    if !foldable(w, id) || !moves && !COMPUTES.contains(&op) {
        return false;
    }
    let known = |v: ValueId| {
        let Some(t) = w.constant(v) else { return false };
        use DType::*;
        let plain = matches!(t.dtype(), Float | Double | Int64 | Int32 | Int8 | Uint8 | Bool);
        match moves {
            true => plain || t.dtype() == Float16,
            false => plain && !t.is_empty() && is_finite(&t),
        }
    };
    n.inputs().iter().flatten().all(|v| known(*v)) && !n.inputs().is_empty()
}

/// Where the value is a graph output it takes a `Constant` node, which had floats only before opset 9.
fn can_be_constant(w: &Work, id: NodeId) -> bool {
    let float = |v: ValueId| {
        let dtype = w.facts.dtype(v);
        matches!(dtype, Some(DType::Float | DType::Double | DType::Float16))
    };
    let mut outs = w.model.node(id).outputs().iter().flatten();
    w.opset(id) >= 9 || outs.all(|&v| float(v) || !w.model.value(v).is_output())
}

/// The bound on growth. Sizes come from inference, so that nothing large is ever computed in vain.
fn is_small_enough(w: &Work, id: NodeId) -> bool {
    let Some(result) = result_bytes(w, id) else {
        return false;
    };
    let inputs = w.model.node(id).inputs().iter().flatten();
    let freed: usize = inputs.clone().map(|v| freed(w, *v)).sum();
    result <= freed.saturating_add(SLACK) || inputs.clone().any(|v| is_cut_up(w, *v))
}

/// Whether all who read a constant move pieces of it elsewhere, and the pieces are no larger together.
fn is_cut_up(w: &Work, v: ValueId) -> bool {
    /// More readers than this are no pieces of a weight.
    const MOST: usize = 16;
    let value = w.model.value(v);
    let private = value.uses().len() <= MOST && !w.is_pinned(v) && value.origin() != Origin::Input;
    let Some(t) = w.constant(v).filter(|_| private) else {
        return false;
    };
    let mut pieces = 0usize;
    for reader in value.uses() {
        let Use::Node(id, _) = *reader else { return false };
        let moves = MOVES.contains(&w.model.node(id).op.name.as_str()) && reads_constants_only(w, id);
        let Some(bytes) = result_bytes(w, id).filter(|_| moves) else {
            return false;
        };
        pieces = pieces.saturating_add(bytes);
    }
    pieces <= t.byte_len().saturating_add(SLACK)
}

fn result_bytes(w: &Work, id: NodeId) -> Option<usize> {
    let mut all = 0usize;
    for &v in w.model.node(id).outputs().iter().flatten() {
        let fact = w.facts.get(v);
        let elements = product(fact.shape.as_deref()?)?;
        all = all.checked_add(elements.checked_mul(bits(fact.dtype?)?)? / 8)?;
    }
    Some(all)
}

fn freed(w: &Work, v: ValueId) -> usize {
    let value = w.model.value(v);
    let private = value.uses().len() == 1 && !w.is_pinned(v) && value.origin() != Origin::Input;
    match (private, w.constant(v)) {
        (true, Some(t)) => t.byte_len(),
        _ => 0,
    }
}

/// What the engine gave must have the type and dimensions that inference promised.
fn agree(w: &Work, outs: &[Option<ValueId>], tensors: &[Tensor]) -> bool {
    let outs: Vec<ValueId> = outs.iter().flatten().copied().collect();
    outs.len() == tensors.len()
        && outs.iter().zip(tensors).all(|(v, t)| {
            let fact = w.facts.get(*v);
            fact.dtype == Some(t.dtype()) && fact.dims().as_deref() == Some(t.dims())
        })
}

/// The outputs of each node. What only moves elements is done in place, whatever its size, and what is small too; the rest
/// goes to the engine, which copies what it reads, in batches of bounded size.
fn results(w: &Work, engine: &dyn Engine, layer: &[NodeId]) -> Vec<Option<Vec<Tensor>>> {
    let here = |id: &NodeId| Some(vec![moved::value(w, *id).or_else(|| direct::value(w, *id))?]);
    let mut all: Vec<Option<Vec<Tensor>>> = layer.iter().map(here).collect();
    let open: Vec<usize> = (0..layer.len()).filter(|i| all[*i].is_none()).collect();
    let mut batch: Vec<usize> = Vec::new();
    let mut held = 0;
    let mut flush = |batch: &mut Vec<usize>| {
        let nodes: Vec<NodeId> = batch.iter().map(|i| layer[*i]).collect();
        for (i, result) in batch.drain(..).zip(run(w, engine, &nodes)) {
            all[i] = result.map(|tensors| tensors.into_iter().map(Tensor::kept).collect());
        }
    };
    for i in open {
        let n = w.model.node(layer[i]);
        let inputs = n
            .inputs()
            .iter()
            .flatten()
            .filter_map(|v| w.constant(*v))
            .map(|t| t.byte_len())
            .sum::<usize>();
        let bytes = inputs.saturating_add(result_bytes(w, layer[i]).unwrap_or(usize::MAX));
        if bytes > ENGINE_UP_TO {
            continue;
        }
        if held + bytes > ENGINE_UP_TO {
            flush(&mut batch);
            held = 0;
        }
        held += bytes;
        batch.push(i);
    }
    if !batch.is_empty() {
        flush(&mut batch);
    }
    all
}

/// The outputs of each node; all in one run, or one by one when that fails.
fn run(w: &Work, engine: &dyn Engine, layer: &[NodeId]) -> Vec<Option<Vec<Tensor>>> {
    if let Some(all) = run_together(w, engine, layer) {
        return all.into_iter().map(Some).collect();
    }
    let one = |id: &NodeId| run_together(w, engine, std::slice::from_ref(id))?.pop();
    layer.iter().map(one).collect()
}

/// Copies the nodes into a model of their own, where they read initializers: they may stand in any graph.
fn run_together(w: &Work, engine: &dyn Engine, layer: &[NodeId]) -> Option<Vec<Vec<Tensor>>> {
    let opset = w.opset(*layer.first()?);
    let import = pb::OperatorSetIdProto {
        domain: Some(String::new()),
        version: Some(opset),
    };
    let mut small = Model::new(pb::ModelProto {
        ir_version: Some(8),
        opset_import: vec![import],
        ..Default::default()
    });
    let main = small.main_id();
    let mut wanted = Vec::new();
    for &id in layer {
        if w.opset(id) != opset {
            return None;
        }
        let n = w.model.node(id);
        let mut inputs = Vec::new();
        for v in n.inputs() {
            inputs.push(match v {
                None => None,
                Some(v) => {
                    let name = small.fresh_name("c");
                    Some(small.add_const(main, &name, w.constant(*v)?))
                }
            });
        }
        let names: Vec<String> = n.outputs().iter().flatten().map(|_| "y".to_owned()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (_, outs) = small.add_node(main, "", &n.op.name, &inputs, &names, n.attrs.clone());
        wanted.extend(outs);
    }
    let mut all = evaluate(engine, &small, &wanted).ok()?.into_iter();
    let count = |id: &NodeId| w.model.node(*id).outputs().iter().flatten().count();
    Some(layer.iter().map(|id| all.by_ref().take(count(id)).collect()).collect())
}
