//! `Constant` nodes become initializers of the graph that they stand in, under the same name.
//!
//! Not in the body of a function, which has no initializers; not where the value is a graph output, which only a node
//! can make; not for sparse values.

use super::work::Work;
use crate::ir::{Node, NodeId, Tensor};
use crate::pb;

pub(super) fn to_initializer(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is(id, "Constant") || w.model.graph(w.model.node(id).graph()).function.is_some() {
        return None;
    }
    let out = w.model.node(id).output(0)?;
    if w.model.value(out).is_output() {
        return None;
    }
    let tensor = tensor_of(w.model.node(id))?;
    let (graph, name) = (w.model.node(id).graph(), w.model.value(out).name.clone());
    let new = w.model.add_const(graph, &name, tensor);
    w.model.replace_uses(out, new);
    w.model.erase(id);
    Some("made an initializer".into())
}

/// What a `Constant` node gives.
pub(super) fn tensor_of(n: &Node) -> Option<Tensor> {
    let attr = n.attrs.first()?;
    let p = &attr.proto;
    let strings = |dims: &[i64], data: Vec<bytes::Bytes>| {
        let proto = pb::TensorProto {
            dims: dims.to_vec(),
            data_type: Some(pb::tensor_proto::DataType::String as i32),
            string_data: data,
            ..Default::default()
        };
        Tensor::from_proto(proto, None).ok()
    };
    Some(match attr.name() {
        "value" => {
            let mut t = p.t.clone()?;
            t.name = None;
            Tensor::from_proto(t, None).ok()?
        }
        "value_float" => Tensor::scalar(p.f?),
        "value_int" => Tensor::scalar(p.i?),
        "value_floats" => Tensor::new(&[p.floats.len()], p.floats.clone()),
        "value_ints" => Tensor::new(&[p.ints.len()], p.ints.clone()),
        "value_string" => strings(&[], vec![p.s.clone()?])?,
        "value_strings" => strings(&[p.strings.len() as i64], p.strings.clone())?,
        _ => return None,
    })
}
