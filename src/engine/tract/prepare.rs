//! The copy of a model that tract gets.
//!
//! * Only what the wanted values need is kept; they are its outputs. Declared types of inner values and outputs are
//!   dropped: claims that a rewrite made obsolete would be believed.
//! * Inputs have the dimensions of the sample.
//! * float16 and bfloat16 become float; every tensor is raw data (tract reads typed unsigned data from the wrong field).

use crate::data::Sample;
use crate::ir::{DType, Model, Origin, Tensor, ValueId};
use crate::onnx;
use crate::pb;
use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// How a wanted value is come by.
pub enum Give {
    /// Output number so many of the plan.
    Computed(usize),
    /// The sample holds it.
    Input(String),
    /// It is the same in every run.
    Const(Tensor),
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

/// A model ready for tract.
pub struct Prepared {
    /// In the order of the copy's inputs.
    pub inputs: Vec<Input>,
    /// The declared types of the copy's outputs.
    pub outputs: Vec<Option<DType>>,
    /// What to give for each wanted value.
    pub give: Vec<Give>,
    /// The message without the initializers of the main graph.
    pub proto: Vec<u8>,
    /// These initializers.
    pub tensors: Vec<(String, Tensor)>,
}

/// Makes the copy.
pub fn prepare(model: &Model, wanted: &[ValueId], like: &Sample) -> Result<Prepared> {
    let mut copy = model.clone();
    let mut slots: BTreeMap<ValueId, usize> = BTreeMap::new();
    let mut outputs = Vec::new();
    let mut names = Vec::new();
    let mut give = Vec::new();
    for &v in wanted {
        let value = model.value(v);
        ensure!(
            value.graph() == model.main_id() && value.is_alive(),
            "{} is no value of the main graph",
            value.name
        );
        give.push(match (value.origin(), value.tensor()) {
            (Origin::Input, _) if like.contains_key(&value.name) => Give::Input(value.name.clone()),
            (Origin::Input | Origin::Const, Some(t)) => Give::Const(t.clone()),
            (Origin::Input, None) => bail!("the sample has no input {:?}", value.name),
            (Origin::Sparse, _) => bail!("{} is a sparse initializer, which tract lacks", value.name),
            (Origin::Const, None) => bail!("initializer {} has no data", value.name),
            (Origin::Node(..), _) => Give::Computed(*slots.entry(v).or_insert_with(|| {
                let name = copy.fresh_name(&format!("wanted_{}", outputs.len()));
                let info = pb::ValueInfoProto {
                    name: Some(name.clone()),
                    ..Default::default()
                };
                let main = copy.main_id();
                copy.add_output(main, info, v);
                outputs.push(declared_dtype(model, v));
                names.push(name);
                outputs.len() - 1
            })),
        });
    }
    if outputs.is_empty() {
        return Ok(Prepared {
            inputs: Vec::new(),
            outputs,
            give,
            proto: Vec::new(),
            tensors: Vec::new(),
        });
    }
    let mut proto = onnx::encode(&copy)?;
    drop(copy);
    let mut graph = proto.graph.take().context("no graph")?;
    graph.output.retain(|o| names.iter().any(|n| n == o.name()));
    prune(&mut graph);
    let inputs = feed_by(&mut graph, like)?;
    let mut tensors = Vec::new();
    for t in std::mem::take(&mut graph.initializer) {
        let name = t.name().to_owned();
        let t = Tensor::from_proto(t, None).with_context(|| format!("initializer {name}"))?;
        tensors.push((name, as_computed(&t)?));
    }
    plain_graph(&mut graph)?;
    proto.functions.clear();
    proto.metadata_props.clear();
    proto.graph = Some(graph);
    Ok(Prepared {
        inputs,
        outputs,
        give,
        proto: proto.encode_to_vec(),
        tensors,
    })
}

fn declared_dtype(model: &Model, v: ValueId) -> Option<DType> {
    match model.declared_type(v)?.value.as_ref()? {
        pb::type_proto::Value::TensorType(t) => DType::try_from(t.elem_type()).ok().filter(|d| *d != DType::Undefined),
        _ => None,
    }
}

/// Drops the nodes and initializers of the main graph that no output needs.
fn prune(graph: &mut pb::GraphProto) {
    let maker: HashMap<&str, usize> = graph
        .node
        .iter()
        .enumerate()
        .flat_map(|(i, n)| n.output.iter().map(move |o| (o.as_str(), i)))
        .collect();
    let mut needed: BTreeSet<String> = graph.output.iter().map(|o| o.name().to_owned()).collect();
    let mut queue: Vec<String> = needed.iter().cloned().collect();
    let mut kept = vec![false; graph.node.len()];
    while let Some(name) = queue.pop() {
        let Some(&i) = maker.get(name.as_str()) else { continue };
        if std::mem::replace(&mut kept[i], true) {
            continue;
        }
        let mut reads = Vec::new();
        read_by(&graph.node[i], &mut reads);
        queue.extend(
            reads
                .into_iter()
                .filter(|r| needed.insert((*r).to_owned()))
                .map(str::to_owned),
        );
    }
    let mut keep = kept.into_iter();
    graph.node.retain(|_| keep.next().unwrap_or(true));
    graph.initializer.retain(|t| needed.contains(t.name()));
    let has_tensor: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    graph
        .input
        .retain(|i| needed.contains(i.name()) || has_tensor.contains(i.name()));
    graph
        .sparse_initializer
        .retain(|t| t.values.as_ref().is_some_and(|v| needed.contains(v.name())));
}

/// Every name that a node or its sub-graphs read (a few too many, when a sub-graph makes a value of its own).
fn read_by<'a>(node: &'a pb::NodeProto, out: &mut Vec<&'a str>) {
    out.extend(node.input.iter().map(String::as_str).filter(|n| !n.is_empty()));
    for g in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
        out.extend(g.output.iter().map(|o| o.name()));
        g.node.iter().for_each(|n| read_by(n, out));
    }
}

/// Gives inputs the dimensions of the sample. An input with a default is a constant, unless the sample overrides it.
fn feed_by(graph: &mut pb::GraphProto, like: &Sample) -> Result<Vec<Input>> {
    let fed = |name: &str| like.contains_key(name);
    graph.initializer.retain(|t| !fed(t.name()));
    let defaults: BTreeSet<String> = graph.initializer.iter().map(|t| t.name().to_owned()).collect();
    graph.input.retain(|i| !defaults.contains(i.name()));
    let mut inputs = Vec::new();
    for info in &mut graph.input {
        let name = info.name().to_owned();
        let t = like
            .get(&name)
            .with_context(|| format!("the sample has no input {name:?}"))?;
        let dtype = computed_dtype(t.dtype());
        info.r#type = Some(tensor_type(dtype, t.dims()));
        inputs.push(Input {
            name,
            dtype,
            dims: t.dims().to_vec(),
        });
    }
    Ok(inputs)
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

fn computed_dtype(dtype: DType) -> DType {
    match dtype {
        DType::Float16 | DType::Bfloat16 => DType::Float,
        other => other,
    }
}

/// The tensor in the type that is computed with.
pub fn as_computed(t: &Tensor) -> Result<Tensor> {
    if computed_dtype(t.dtype()) == t.dtype() {
        return Ok(t.clone());
    }
    let floats = t.to_f32().context("float data")?.into_owned();
    Ok(Tensor::new(t.dims(), floats))
}

/// Drops declared types, and makes types and tensors in attributes those that are computed with; sub-graphs included.
fn plain_graph(graph: &mut pb::GraphProto) -> Result<()> {
    graph.value_info.clear();
    graph.quantization_annotation.clear();
    for o in &mut graph.output {
        o.r#type = None;
    }
    for t in &mut graph.initializer {
        plain_tensor(t)?;
    }
    for n in &mut graph.node {
        n.doc_string = None;
        n.metadata_props.clear();
        let label = format!("{} {:?}", n.op_type(), n.name());
        let names_type = ["Cast", "EyeLike", "RandomNormal", "RandomUniform", "SequenceEmpty"].contains(&n.op_type());
        for a in &mut n.attribute {
            if names_type && ["to", "dtype"].contains(&a.name()) {
                a.i = a.i.map(|i| match DType::try_from(i as i32) {
                    Ok(d) => computed_dtype(d) as i64,
                    Err(_) => i,
                });
            }
            for t in a.t.iter_mut().chain(&mut a.tensors) {
                plain_tensor(t).with_context(|| label.clone())?;
            }
            for g in a.g.iter_mut().chain(&mut a.graphs) {
                for i in &mut g.input {
                    i.r#type = i.r#type.take().map(plain_type);
                }
                plain_graph(g)?;
            }
        }
    }
    Ok(())
}

fn plain_type(mut ty: pb::TypeProto) -> pb::TypeProto {
    if let Some(pb::type_proto::Value::TensorType(t)) = &mut ty.value {
        t.elem_type = t
            .elem_type
            .map(|e| DType::try_from(e).map_or(e, |d| computed_dtype(d) as i32));
    }
    ty
}

fn plain_tensor(t: &mut pb::TensorProto) -> Result<()> {
    let name = t.name.clone();
    let old = Tensor::from_proto(std::mem::take(t), None)?;
    if old.dtype() == DType::String {
        *t = old.proto().clone();
        return Ok(());
    }
    let new = as_computed(&old)?;
    *t = pb::TensorProto {
        name,
        dims: new.dims().iter().map(|&d| d as i64).collect(),
        data_type: Some(new.dtype() as i32),
        raw_data: Some(new.raw().into_owned().into()),
        ..Default::default()
    };
    Ok(())
}
