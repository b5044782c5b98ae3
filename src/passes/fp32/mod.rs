//! Float16 and bfloat16 become float32.
//!
//! Every constant, every value and every attribute that names such a type is changed at once, in all graphs, so that no Cast is needed but
//! at the inputs and outputs of the model, whose types are public.

use super::{Context, NoteKind, Part, Pass, PassInfo};
use crate::ir::{Attr, DType, Model, NodeId, Origin, Tensor, Use, ValueId};
use crate::ops::types::infer;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// The pass's row in the table.
pub const INFO: PassInfo = PassInfo {
    name: "fp32",
    summary: "float16 and bfloat16 become float32, for the passes behind it",
    doc: include_str!("doc.md"),
    lossy: true,
    part: Part::Aside,
    options: &[],
    build: |_| Ok(Box::new(Fp32)),
};

/// Attributes that name a type.
const TYPES: &[&str] = &["to", "dtype", "output_dtype", "output_datatype", "stash_type"];

struct Fp32;

/// The values in 16 bits, and their types.
type Half = BTreeMap<ValueId, DType>;

impl Pass for Fp32 {
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        if half_weights(model).is_none() {
            cx.leave("there are no weights in float16 or bfloat16");
            return Ok(());
        }
        let mut work = model.clone();
        if !work.functions().is_empty() {
            cx.leave("the model has functions of its own, which may need 16 bits: left as it is");
            return Ok(());
        }
        work.raise_ir(4); // weights need not be inputs any more, and inputs keep their types
        let types = infer(&work)?;
        let half = |v| Some((v, types.dtype(v).filter(|d| is_half(*d))?));
        let half: Half = work.values().filter_map(|(v, _)| half(v)).collect();
        if let Some((node, why)) = obstacle(&work, &half) {
            cx.skip(model, node, why);
            return Ok(());
        }
        let constants = half.keys().filter(|v| work.constant(**v).is_some()).count();
        widen(&mut work, &half)?;
        let floats = |v| half.contains_key(&v) || types.dtype(v) == Some(DType::Float);
        drop_idle_casts(&mut work, floats);
        let what = format!("{constants} constants in float32 now; graph inputs and outputs keep their types");
        cx.note(NoteKind::Did, String::new(), what);
        *model = work;
        Ok(())
    }
}

fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::Float16 | DType::Bfloat16)
}

/// The 16-bit type of the weights of a model; `None` when all are of other types.
pub fn half_weights(model: &Model) -> Option<DType> {
    /// Fewer elements are no weight.
    const LEAST: usize = 64;
    let weight = |v: ValueId| model.constant(v).filter(|t| t.len() >= LEAST && is_half(t.dtype()));
    model.values().find_map(|(v, _)| Some(weight(v)?.dtype()))
}

/// What keeps the model as it is: the node, and why.
fn obstacle(model: &Model, half: &Half) -> Option<(NodeId, String)> {
    const KNOWN: &[&str] = &["", "com.microsoft"];
    let touches = |n: &crate::ir::Node| {
        let all = n.inputs().iter().chain(n.outputs());
        all.flatten().any(|v| half.contains_key(v))
    };
    let unknown = |n: &crate::ir::Node| !KNOWN.contains(&&*n.op.domain) && touches(n);
    let (node, n) = model
        .nodes()
        .find(|(_, n)| unknown(n) || n.has_attr_refs() && touches(n))?;
    let what = "nobody knows whether it takes float32: the model keeps its 16-bit weights";
    Some((node, format!("{} of domain {:?}: {what}", n.op.name, n.op.domain)))
}

/// All these values become float32, but those at the ports of the main graph, which get Casts.
fn widen(model: &mut Model, half: &Half) -> Result<()> {
    for id in model.node_ids() {
        attributes(model, id)?;
    }
    for (&v, &dtype) in half {
        let (origin, main) = (model.value(v).origin(), model.main_id());
        if let Some(t) = model.value(v).tensor().filter(|_| origin != Origin::Input) {
            let floats = t.to_f32().context("a constant in 16 bits")?.into_owned();
            let wide = Tensor::new(t.dims(), floats);
            model.set_const(v, wide);
        }
        let value = model.value(v);
        let given = value
            .uses()
            .iter()
            .any(|u| matches!(u, Use::Output(g, _) if *g == main));
        match origin {
            Origin::Input if value.graph() == main => read_wide(model, v),
            _ if given => give_narrow(model, v, dtype),
            _ if model.declared_type(v).is_some() => model.declare_elem_type(v, DType::Float),
            _ => {}
        }
    }
    Ok(())
}

fn attributes(model: &mut Model, id: NodeId) -> Result<()> {
    let mut changed = Vec::new();
    for a in &model.node(id).attrs {
        let code = |code: i64| i32::try_from(code).is_ok_and(|c| DType::try_from(c).is_ok_and(is_half));
        if TYPES.contains(&a.name()) && a.proto.i.is_some_and(code) {
            changed.push(Attr::int(a.name(), DType::Float as i64));
        }
        if let Some(t) = a.proto.t.as_ref().filter(|t| code(t.data_type().into())) {
            let t = Tensor::from_proto(t.clone(), None)?;
            let floats = t.to_f32().context("a tensor in 16 bits")?.into_owned();
            changed.push(Attr::tensor(a.name(), Tensor::new(t.dims(), floats).to_inline_proto()));
        }
    }
    let node = model.node_mut(id);
    changed.into_iter().for_each(|a| node.set_attr(a));
    Ok(())
}

/// All nodes that read an input of the model read it in float32.
fn read_wide(model: &mut Model, input: ValueId) {
    if model.readers(input).is_empty() {
        return;
    }
    let wide = cast(model, input, DType::Float);
    let maker = model.value(wide).producer();
    let others = |u: &Use| matches!(u, Use::Node(n, _) if Some(*n) != maker);
    model.replace_uses_where(input, wide, others);
}

/// A value that the model gives out is float32 inside, and what it gives out keeps name and type.
fn give_narrow(model: &mut Model, v: ValueId, dtype: DType) {
    let main = model.main_id();
    let name = model.value(v).name.clone();
    let inner = model.fresh_name(&format!("{name}_float32"));
    let owns = model.main().outputs().iter().any(|p| p.value == v && p.name() == name);
    if owns {
        model.rename(v, inner);
    }
    let narrow = cast(model, v, dtype);
    if owns {
        model.rename(narrow, name);
    }
    model.replace_uses_where(v, narrow, |u| matches!(u, Use::Output(g, _) if *g == main));
    if model.declared_type(v).is_some() {
        model.declare_elem_type(v, DType::Float);
    }
}

fn cast(model: &mut Model, v: ValueId, to: DType) -> ValueId {
    let graph = model.value(v).graph();
    let name = model.fresh_name(&format!("{}_Cast", model.value(v).name));
    let to = vec![Attr::int("to", to as i64)];
    model.add_node(graph, &name, "Cast", &[Some(v)], &[&name], to).1[0]
}

/// Casts from float32 to float32 go, unless a graph gives out what they make.
fn drop_idle_casts(model: &mut Model, is_float: impl Fn(ValueId) -> bool) {
    for id in model.node_ids() {
        let n = model.node(id);
        let (Some(x), Some(y)) = (n.input(0).filter(|_| n.is("Cast")), n.output(0)) else {
            continue;
        };
        let port = model.value(x).origin() == Origin::Input && model.value(x).graph() == model.main_id();
        if !port && is_float(x) && n.int("to") == Some(DType::Float as i64) && !model.value(y).is_output() {
            model.replace_uses(y, x);
            model.erase(id);
        }
    }
}
