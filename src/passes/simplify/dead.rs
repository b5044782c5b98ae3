//! What no output needs: nodes, initializers, optional outputs, functions, operator sets; and what says nothing: declared
//! types of initializers and ports, which repeat what stands there, and the same type declared twice.

use super::work::Work;
use crate::data::{Sample, Samples};
use crate::ir::{GraphId, Info, Model, NodeId, Origin, ValueId};
use crate::onnx::default_domain;
use crate::pb::{FunctionProto, ValueInfoProto};
use std::collections::BTreeSet;

/// Operators with outputs that may be left out, and from which one on.
const OPTIONAL_OUTPUTS: &[(&str, usize)] = &[
    ("Dropout", 1),
    ("MaxPool", 1),
    ("LayerNormalization", 1),
    ("LSTM", 0),
    ("GRU", 0),
    ("RNN", 0),
    ("Unique", 1),
];

pub(super) fn remove(w: &mut Work) -> Vec<(String, String)> {
    let mut done = Vec::new();
    nodes(w, &mut done);
    optional_outputs(w, &mut done);
    constants(w, &mut done);
    functions(w.model, &mut done);
    operator_sets(w.model, &mut done);
    declared_types(w.model);
    done
}

fn nodes(w: &mut Work, done: &mut Vec<(String, String)>) {
    let mut queue = w.model.node_ids(); // the latest are popped first: usually readers before producers
    while let Some(id) = queue.pop() {
        if !w.model.is_alive(id) || !is_unused(w.model, id) {
            continue;
        }
        done.push((w.model.label(id), "no output needs it: removed".into()));
        let feeds = producers(w.model, id);
        w.model.erase(id);
        queue.extend(feeds);
    }
}

fn is_unused(m: &Model, id: NodeId) -> bool {
    m.node(id)
        .outputs()
        .iter()
        .flatten()
        .all(|v| m.value(*v).uses().is_empty())
}

/// The nodes that a node and its bodies read from.
fn producers(m: &Model, id: NodeId) -> Vec<NodeId> {
    let mut all = Vec::new();
    let mut walk = vec![id];
    while let Some(n) = walk.pop() {
        let node = m.node(n);
        all.extend(node.inputs().iter().flatten().filter_map(|v| m.value(*v).producer()));
        for g in node.sub_graphs() {
            all.extend(m.graph(g).outputs().iter().filter_map(|p| m.value(p.value).producer()));
            walk.extend(m.graph(g).nodes());
        }
    }
    all
}

fn optional_outputs(w: &mut Work, done: &mut Vec<(String, String)>) {
    for id in w.model.node_ids() {
        if !w.may_touch(id) {
            continue;
        }
        let n = w.model.node(id);
        let Some((_, from)) = OPTIONAL_OUTPUTS.iter().find(|(op, _)| n.op.name == *op) else {
            continue;
        };
        let unused: Vec<usize> = n
            .outputs()
            .iter()
            .enumerate()
            .skip(*from)
            .filter(|(_, v)| v.is_some_and(|v| w.model.value(v).uses().is_empty()))
            .map(|(slot, _)| slot)
            .collect();
        for slot in unused {
            done.push((w.model.label(id), format!("output {slot} is not used: left out")));
            w.model.drop_output(id, slot);
        }
    }
}

fn constants(w: &mut Work, done: &mut Vec<(String, String)>) {
    let unused: Vec<ValueId> = w
        .model
        .values()
        .filter(|(id, v)| v.origin() == Origin::Const && v.uses().is_empty() && !w.is_pinned(*id))
        .map(|(id, _)| id)
        .collect();
    for v in unused {
        done.push((w.model.value(v).name.clone(), "no node reads it: removed".into()));
        w.model.erase_const(v);
    }
}

/// Functions that neither the main graph nor a function in use calls.
fn functions(m: &mut Model, done: &mut Vec<(String, String)>) {
    if m.functions().is_empty() {
        return;
    }
    type Call = (String, String);
    let calls = |m: &Model, root: GraphId| -> BTreeSet<Call> {
        let mut all = BTreeSet::new();
        let mut graphs = vec![root];
        while let Some(g) = graphs.pop() {
            for &n in m.graph(g).nodes() {
                let node = m.node(n);
                all.insert((node.op.domain.clone(), node.op.name.clone()));
                graphs.extend(node.sub_graphs());
            }
        }
        all
    };
    let mut needed = calls(m, m.main_id());
    loop {
        let before = needed.len();
        for &f in m.functions() {
            let Some(proto) = &m.graph(f).function else { continue };
            let name = (default_domain(proto.domain()).to_owned(), proto.name().to_owned());
            if needed.contains(&name) {
                needed.extend(calls(m, f));
            }
        }
        if needed.len() == before {
            break;
        }
    }
    let is_needed = |f: &FunctionProto| needed.contains(&(default_domain(f.domain()).to_owned(), f.name().to_owned()));
    let gone = m.functions().iter().filter_map(|f| m.graph(*f).function.as_ref());
    let gone = gone.filter(|f| !is_needed(f)).map(|f| f.name().to_owned());
    done.extend(gone.map(|f| (f, "nothing calls this function: removed".into())));
    m.retain_functions(is_needed);
}

/// Operator sets of domains that no node and no function uses. The default domain stays.
fn operator_sets(m: &mut Model, done: &mut Vec<(String, String)>) {
    let mut used: BTreeSet<String> = m.nodes().map(|(_, n)| n.op.domain.clone()).collect();
    for &f in m.functions() {
        if let Some(p) = &m.graph(f).function {
            used.insert(default_domain(p.domain()).to_owned());
        }
    }
    used.insert(String::new());
    if !m
        .rest
        .opset_import
        .iter()
        .any(|o| used.contains(default_domain(o.domain())))
    {
        return; // a model must import one
    }
    let keep = |domain: &str| used.contains(default_domain(domain));
    m.rest.opset_import.retain(|o| {
        let keep = keep(o.domain());
        if !keep {
            done.push((o.domain().to_owned(), "no node is of this operator set: removed".into()));
        }
        keep
    });
}

/// Below IR version 4 every initializer was listed as an input, though no caller could give it. From 4 on they are plain.
pub(super) fn default_inputs(m: &mut Model) {
    if m.rest.ir_version() >= 4 {
        return;
    }
    let graphs = m.live_graphs();
    let main = m.main_id();
    let in_bodies = graphs.iter().any(|&g| {
        let inputs = m.graph(g).inputs().iter();
        g != main && inputs.into_iter().any(|p| m.value(p.value).tensor().is_some())
    });
    if in_bodies {
        return;
    }
    m.raise_ir(4);
}

/// Exporters for IR version 3 went on to list every initializer as an input when that had come to mean that callers may override it
/// (PyTorch: `keep_initializers_as_inputs`). Nobody does, and as long as weights may change nothing can be folded or quantized: where
/// all are listed, a matrix or a kernel among them, and the samples give none, they become constants. Gives their number.
pub(super) fn exporters_inputs(m: &mut Model, samples: &Samples) -> usize {
    let main = m.main_id();
    let inputs = m.graph(main).inputs().iter().map(|p| p.value);
    let listed: Vec<ValueId> = inputs.filter(|v| m.value(*v).tensor().is_some()).collect();
    let other = m
        .values()
        .any(|(_, v)| v.graph() == main && v.origin() == Origin::Const && v.tensor().is_some());
    let weight = |v: &ValueId| m.value(*v).tensor().is_some_and(|t| t.dims().len() > 1);
    let given = |s: &Sample| listed.iter().any(|v| s.contains_key(&m.value(*v).name));
    if other || listed.len() < 2 || !listed.iter().any(weight) || samples.get(0).is_ok_and(|s| given(&s)) {
        return 0;
    }
    m.inputs_with_defaults_to_consts(main);
    listed.len()
}

fn declared_types(m: &mut Model) {
    for g in m.live_graphs() {
        let graph = m.graph(g);
        let ports: BTreeSet<ValueId> = graph
            .inputs()
            .iter()
            .chain(graph.outputs())
            .filter(|p| p.info.r#type.is_some())
            .map(|p| p.value)
            .collect();
        let says_nothing = |v: ValueId| {
            let value = m.value(v);
            !value.is_alive() || value.tensor().is_some() && value.origin() == Origin::Const || ports.contains(&v)
        };
        let mut seen = BTreeSet::new();
        let mut keep = |i: &Info| i.value.is_none_or(|v| !says_nothing(v) && seen.insert(v)) || has_words(&i.info);
        let keep: Vec<bool> = graph.infos.iter().map(&mut keep).collect();
        let mut keep = keep.into_iter();
        m.graph_mut(g).infos.retain(|_| keep.next().unwrap_or(true));
    }
}

/// A text or metadata that a person or a tool has put there.
fn has_words(info: &ValueInfoProto) -> bool {
    !info.doc_string().is_empty() || !info.metadata_props.is_empty()
}
