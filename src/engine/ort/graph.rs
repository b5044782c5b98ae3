//! The copy of a model that ONNX Runtime gets: the wanted outputs, what they need, and the weights beside it.
//!
//! Weights are not serialised: they are named as external data and handed over as values, so that models of any size load
//! without a second copy in memory.

use super::value::{Lent, has_bytes};
use crate::engine::wanted::needed;
use crate::ir::Tensor;
use crate::pb;
use anyhow::{Context, Result, ensure};
use prost::Message;
use std::collections::BTreeSet;

/// Smaller initializers stay in the message.
const LENT_FROM: usize = 4096;
/// Where protobuf messages end.
const MESSAGE: usize = i32::MAX as usize;

/// A message, and what is not in it.
pub struct Ready {
    /// The model.
    pub proto: Vec<u8>,
    /// Initializers by name.
    pub weights: Vec<(String, Lent)>,
    /// The names of its inputs.
    pub inputs: Vec<String>,
}

/// Makes these values the outputs, drops what they do not need, and takes the weights out.
///
/// # Errors
/// When what is left is too large for a message.
pub fn ready(mut model: pb::ModelProto, outputs: &[String]) -> Result<Ready> {
    model.training_info.clear();
    let graph = model.graph.as_mut().context("no graph")?;
    let declared = std::mem::take(&mut graph.output);
    let output = |name: &String| {
        let known = declared.iter().find(|o| o.name() == name);
        known.cloned().unwrap_or_else(|| pb::ValueInfoProto {
            name: Some(name.clone()),
            ..Default::default()
        })
    };
    graph.output = outputs.iter().map(output).collect();
    if declared.iter().any(|o| !outputs.iter().any(|n| n == o.name())) {
        prune(graph);
    }
    let weights = lend(graph)?;
    let inputs = graph.input.iter().map(|i| i.name().to_owned()).collect();
    ensure!(
        model.encoded_len() <= MESSAGE,
        "the model is larger than 2 GiB even without its weights"
    );
    Ok(Ready {
        proto: model.encode_to_vec(),
        weights,
        inputs,
    })
}

fn prune(graph: &mut pb::GraphProto) {
    let outputs = graph.output.iter().map(|o| o.name().to_owned());
    let (keep, needed) = needed(&graph.node, outputs.collect());
    let mut keep = keep.into_iter();
    graph.node.retain(|_| keep.next().unwrap_or(true));
    graph.input.retain(|i| needed.contains(i.name()));
    graph.initializer.retain(|t| needed.contains(t.name()));
    graph
        .sparse_initializer
        .retain(|t| t.values.as_ref().is_some_and(|v| needed.contains(v.name())));
    let made: BTreeSet<&str> = graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    graph
        .value_info
        .retain(|i| made.contains(i.name()) || needed.contains(i.name()));
}

/// Takes the data of large initializers out of the message.
fn lend(graph: &mut pb::GraphProto) -> Result<Vec<(String, Lent)>> {
    // A caller may override an initializer that is an input, too.
    let public: BTreeSet<String> = graph.input.iter().map(|i| i.name().to_owned()).collect();
    let mut lent = Vec::new();
    for t in &mut graph.initializer {
        let large = t.raw_data.as_ref().is_some_and(|d| d.len() >= LENT_FROM);
        if !large || public.contains(t.name()) {
            continue;
        }
        let name = t.name().to_owned();
        let tensor = Tensor::from_proto(t.clone(), None).with_context(|| format!("initializer {name}"))?;
        if !has_bytes(tensor.dtype()) {
            continue;
        }
        let entry = |key: &str, value: String| pb::StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value),
        };
        t.raw_data = None;
        t.data_location = Some(pb::tensor_proto::DataLocation::External as i32);
        t.external_data = vec![
            entry("location", "handed-over".into()),
            entry("offset", "0".into()),
            entry("length", tensor.byte_len().to_string()),
        ];
        lent.push((name, Lent::new(&tensor)?));
    }
    Ok(lent)
}
