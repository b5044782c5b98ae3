//! The copy of a model that tract gets, made in two steps: [`Job::new`] takes the model apart once, [`ready`] finishes a
//! flat graph for a sample.
//!
//! * Only what the wanted values need is kept; they are its outputs. Declared types of inner values and outputs are
//!   dropped: claims that a rewrite made obsolete would be believed.
//! * Inputs have the dimensions of the sample.
//! * float16 and bfloat16 become float, and values that are declared so are rounded to it after each operator; every tensor is raw data (tract reads typed unsigned data from the wrong field).
//! * Operators of ONNX Runtime's own that are several of ONNX's are spelled out.
//! * Operators that tract reads otherwise than ONNX means them are amended ([`super::amend`]).

use super::graph::{Flat, output, plain_node};
use super::{amend, dequantize, ops};
use crate::data::Sample;
use crate::engine::wanted::{Give, Wanted};
use crate::ir::{DType, Model, Tensor, ValueId};
use crate::onnx;
use crate::ops::fused;
use crate::ops::types::{self, Types};
use crate::pb;
use anyhow::{Context, Result, bail};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// What a session has to do.
pub struct Job {
    /// What to give for each wanted value.
    pub give: Vec<Give>,
    /// The names of the values to compute.
    pub names: Vec<String>,
    /// Their declared types.
    pub dtypes: Vec<Option<DType>>,
    /// The graph that computes them; `None` when there are none.
    pub flat: Option<Flat>,
}

impl Job {
    /// Takes the model apart.
    pub fn new(model: &Model, wanted: &[ValueId], like: &Sample) -> Result<Job> {
        let Wanted {
            give,
            names,
            values,
            mut copy,
        } = Wanted::new(model, wanted, like, false)?;
        let dtypes = values.iter().map(|v| declared_dtype(model, *v)).collect();
        let mut flat = None;
        if !names.is_empty() {
            // What contradicts itself, tract will name.
            let facts = |copy: &Model| Ok(InFloats(types::infer_sample(copy, like).unwrap_or_default()));
            fused::spell_out_for_engine(&mut copy, facts)?;
            let mut f = Flat::new(onnx::encode(&copy)?)?;
            f.tensors.retain(|name, _| !like.contains_key(name));
            f.graph.input.retain(|i| !f.tensors.contains_key(i.name()));
            set_outputs(&mut f, names.iter());
            flat = Some(f);
        }
        Ok(Job {
            give,
            names,
            dtypes,
            flat,
        })
    }
}

/// What is known of values: tract computes in f32.
struct InFloats(Types);

impl fused::Facts for InFloats {
    fn rank(&self, v: ValueId) -> Option<usize> {
        self.0.rank(v)
    }
    fn width(&self, v: ValueId) -> Option<usize> {
        fused::Facts::width(&self.0, v)
    }
    fn dtype(&self, _: ValueId) -> Option<DType> {
        Some(DType::Float)
    }
}

fn declared_dtype(model: &Model, v: ValueId) -> Option<DType> {
    match model.declared_type(v)?.value.as_ref()? {
        pb::type_proto::Value::TensorType(t) => DType::try_from(t.elem_type()).ok().filter(|d| *d != DType::Undefined),
        _ => None,
    }
}

/// Makes these values the outputs, and drops what they do not need.
pub fn set_outputs<'a>(flat: &mut Flat, names: impl Iterator<Item = &'a String>) {
    flat.graph.output = names.map(|name| output(name)).collect();
    flat.prune();
}

/// An input of the copy.
pub struct Input {
    /// The public name.
    pub name: String,
    /// The type that is computed with.
    pub dtype: DType,
    /// The dimensions of the sample.
    pub dims: Vec<usize>,
}

/// A graph ready for tract.
pub struct Ready {
    /// In the order of the copy's inputs.
    pub inputs: Vec<Input>,
    /// The message without the initializers of the main graph.
    pub proto: Vec<u8>,
    /// These initializers.
    pub tensors: Vec<(String, Tensor)>,
}

/// Finishes a graph without local functions. `exact`: shapes are int64, not symbolic dimensions.
pub fn ready(mut flat: Flat, like: &Sample, exact: bool) -> Result<Ready> {
    dequantize::rewrite(&mut flat)?;
    amend::resize(&mut flat);
    amend::squeeze(&mut flat);
    amend::crop(&mut flat);
    amend::signals(&mut flat);
    amend::powers(&mut flat);
    let inputs = inputs_like(&mut flat.graph, like)?;
    flat.graph.node = amend::forward(std::mem::take(&mut flat.graph.node));
    round_narrow(&mut flat.graph);
    plain_graph(&mut flat.graph, exact)?;
    let inputs_and_tensors = flat
        .graph
        .input
        .iter()
        .map(|i| i.name())
        .chain(flat.tensors.keys().map(String::as_str));
    let taken = inputs_and_tensors.map(str::to_owned).collect();
    name_apart(&mut flat.graph.node, taken);
    let mut tensors = Vec::with_capacity(flat.tensors.len());
    for (name, t) in flat.tensors {
        let t = computed(&t).with_context(|| format!("initializer {name}"))?;
        tensors.push((name, t));
    }
    flat.rest.graph = Some(flat.graph);
    Ok(Ready {
        inputs,
        proto: flat.rest.encode_to_vec(),
        tensors,
    })
}

fn inputs_like(graph: &mut pb::GraphProto, like: &Sample) -> Result<Vec<Input>> {
    let one = |info: &mut pb::ValueInfoProto| {
        let name = info.name().to_owned();
        let t = like
            .get(&name)
            .with_context(|| format!("the sample has no input {name:?}"))?;
        let dtype = computed_dtype(t.dtype());
        info.r#type = Some(tensor_type(dtype, t.dims()));
        Ok(Input {
            name,
            dtype,
            dims: t.dims().to_vec(),
        })
    };
    graph.input.iter_mut().map(one).collect()
}

fn tensor_type(dtype: DType, dims: &[usize]) -> pb::TypeProto {
    use pb::tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |&d: &usize| Dimension {
        value: Some(Value::DimValue(d as i64)),
        ..Default::default()
    };
    pb::TypeProto {
        value: Some(pb::type_proto::Value::TensorType(pb::type_proto::Tensor {
            elem_type: Some(dtype as i32),
            shape: Some(pb::TensorShapeProto {
                dim: dims.iter().map(dim).collect(),
            }),
        })),
        ..Default::default()
    }
}

/// Rounds what operators give out to the narrow float type that it is declared to have.
fn round_narrow(graph: &mut pb::GraphProto) {
    let narrow = |v: &pb::ValueInfoProto| match v.r#type.as_ref()?.value.as_ref()? {
        pb::type_proto::Value::TensorType(t) => {
            let code = i64::from(t.elem_type());
            let dtype = DType::try_from(t.elem_type()).ok()?;
            matches!(dtype, DType::Float16 | DType::Bfloat16).then(|| (v.name().to_owned(), code))
        }
        _ => None,
    };
    let declared: BTreeMap<String, i64> = graph.value_info.iter().filter_map(narrow).collect();
    if declared.is_empty() {
        return;
    }
    let mut out = Vec::with_capacity(graph.node.len() * 2);
    for mut n in std::mem::take(&mut graph.node) {
        let exact = matches!(n.domain(), "" | "ai.onnx") && crate::ops::half::is_exact(n.op_type());
        let mut after = Vec::new();
        for o in n.output.iter_mut().filter(|_| !exact) {
            if let Some(&code) = declared.get(o.as_str()) {
                let raw = format!("{o}/not rounded");
                let mut round = plain_node(ops::ROUND, &format!("{o}/rounded"), vec![raw.clone()], vec![o.clone()]);
                round.attribute = vec![crate::ir::Attr::int("code", code).proto];
                after.push(round);
                *o = raw;
            }
        }
        out.push(n);
        out.extend(after);
    }
    graph.node = out;
}

/// Gives every node a name of its own, which tract insists on and ONNX does not.
fn name_apart(nodes: &mut [pb::NodeProto], mut taken: BTreeSet<String>) {
    for n in nodes {
        let base = match n.name() {
            "" => n.output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default(),
            name => name.to_owned(),
        };
        let mut name = base.clone();
        let mut number = taken.len();
        while !taken.insert(name.clone()) {
            name = format!("{base}#{number}");
            number += 1;
        }
        n.name = Some(name);
    }
}

fn computed_dtype(dtype: DType) -> DType {
    match dtype {
        DType::Float16 | DType::Bfloat16 => DType::Float,
        other => other,
    }
}

/// The tensor in the type that is computed with.
pub fn computed(t: &Tensor) -> Result<Tensor> {
    if computed_dtype(t.dtype()) == t.dtype() {
        return Ok(t.clone());
    }
    let floats = t.to_f32().context("float data")?.into_owned();
    Ok(Tensor::new(t.dims(), floats))
}

/// Drops declared types, and makes types and tensors in attributes those that are computed with; sub-graphs included.
fn plain_graph(graph: &mut pb::GraphProto, exact: bool) -> Result<()> {
    graph.value_info.clear();
    graph.quantization_annotation.clear();
    for o in &mut graph.output {
        o.r#type = None;
    }
    for t in &mut graph.initializer {
        plain_tensor(t)?;
    }
    for n in &mut graph.node {
        plain_node_of(n, exact).with_context(|| super::graph::label(n))?;
    }
    Ok(())
}

/// What tract 0.23.9 computes wrongly without a word; found with the node tests of ONNX.
fn wrong(n: &pb::NodeProto) -> Option<&'static str> {
    let attr = |name: &str| n.attribute.iter().find(|a| a.name() == name);
    let slope = || attr("alpha").and_then(|a| a.f).unwrap_or(1.0);
    let given = |i: usize| n.input.get(i).is_some_and(|v| !v.is_empty());
    match n.op_type() {
        "Celu" if slope() != 1.0 => Some("it forgets the factor alpha"),
        "Swish" if slope() != 1.0 => Some("it ignores alpha"),
        "SpaceToDepth" if attr("mode").is_some_and(|a| a.s.as_deref() != Some(b"DCR")) => Some("it ignores the mode"),
        "Attention" if given(4) && attr("is_causal").is_some_and(|a| a.i() != 0) => {
            Some("causal attention with a past is masked wrongly")
        }
        "Attention" if n.attribute.iter().any(|a| a.name().contains("window")) => Some("it ignores windows"),
        _ => None,
    }
}

fn plain_node_of(n: &mut pb::NodeProto, exact: bool) -> Result<()> {
    if let Some(why) = wrong(n) {
        bail!("tract would compute it wrongly: {why}");
    }
    n.doc_string = None;
    n.metadata_props.clear();
    if exact && matches!(n.domain(), "" | "ai.onnx") {
        let to_int64 = n
            .attribute
            .iter()
            .any(|a| a.name() == "to" && a.i == Some(DType::Int64 as i64));
        match n.op_type() {
            "Shape" => n.op_type = Some(ops::SHAPE.into()),
            "Size" => n.op_type = Some(ops::SIZE.into()),
            "Cast" if to_int64 => n.op_type = Some(ops::CAST64.into()),
            _ => {}
        }
    }
    amend::zeros(n);
    let names_type = ["Cast", "EyeLike", "RandomNormal", "RandomUniform"].contains(&n.op_type());
    for a in &mut n.attribute {
        if names_type && ["to", "dtype"].contains(&a.name()) {
            a.i = a.i.map(computed_code);
        }
        for t in a.t.iter_mut().chain(&mut a.tensors) {
            plain_tensor(t)?;
        }
        for g in a.g.iter_mut().chain(&mut a.graphs) {
            for i in &mut g.input {
                if let Some(pb::type_proto::Value::TensorType(t)) = i.r#type.as_mut().and_then(|t| t.value.as_mut()) {
                    t.elem_type = t.elem_type.map(|e| computed_code(i64::from(e)) as i32);
                }
            }
            g.node = amend::forward(std::mem::take(&mut g.node));
            plain_graph(g, exact)?;
        }
    }
    Ok(())
}

fn computed_code(code: i64) -> i64 {
    let known = i32::try_from(code).ok().and_then(|c| DType::try_from(c).ok());
    known.map_or(code, |d| computed_dtype(d) as i64)
}

fn plain_tensor(t: &mut pb::TensorProto) -> Result<()> {
    let name = t.name.clone();
    let old = Tensor::from_proto(std::mem::take(t), None)?;
    if old.dtype() == DType::String {
        *t = old.proto().clone();
        return Ok(());
    }
    let new = computed(&old)?;
    *t = pb::TensorProto {
        name,
        dims: new.dims().iter().map(|&d| d as i64).collect(),
        data_type: Some(new.dtype() as i32),
        raw_data: Some(new.raw().into_owned().into()),
        ..Default::default()
    };
    Ok(())
}
