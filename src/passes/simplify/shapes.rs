//! `value_info`: what inference knows of inner values, written into the file for viewers and runtimes that ask for it.

use super::facts::Facts;
use crate::ir::{Model, ValueId};
use crate::ops::infer::Dim;
use crate::pb::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use crate::pb::{TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
use anyhow::Result;
use std::collections::BTreeSet;

/// Declares every inner value of known type and rank; what was declared of it before, apart from texts, is replaced.
///
/// # Errors
/// When the shapes of the model certainly contradict each other.
pub(super) fn declare(model: &mut Model) -> Result<()> {
    let facts = Facts::of(model)?;
    for g in model.live_graphs() {
        if model.graph(g).function.is_some() {
            continue;
        }
        let outputs: BTreeSet<ValueId> = model.graph(g).outputs().iter().map(|p| p.value).collect();
        let Ok(order) = model.topological(g) else { continue };
        let values = order.iter().flat_map(|n| model.node(*n).outputs().iter().flatten());
        let known: Vec<(ValueId, TypeProto)> = values
            .filter(|v| !outputs.contains(v))
            .filter_map(|v| Some((*v, type_of(&facts, *v)?)))
            .collect();
        for (v, ty) in known {
            let old = model
                .graph(g)
                .infos
                .iter()
                .find(|i| i.value == Some(v))
                .map(|i| i.info.clone());
            let info = ValueInfoProto {
                name: Some(model.value(v).name.clone()),
                r#type: Some(ty),
                ..old.unwrap_or_default()
            };
            model.declare(v, info);
        }
    }
    Ok(())
}

fn type_of(facts: &Facts, v: ValueId) -> Option<TypeProto> {
    let (dtype, shape) = (facts.dtype(v)?, facts.shape(v)?);
    let dim = |d: &Dim| Dimension {
        value: match d {
            Dim::Known(n) => i64::try_from(*n).ok().map(DimValue::DimValue),
            Dim::Symbol(s) => Some(DimValue::DimParam(s.clone())),
            _ => None,
        },
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(dtype as i32),
        shape: Some(TensorShapeProto {
            dim: shape.iter().map(dim).collect(),
        }),
    };
    Some(TypeProto {
        value: Some(type_proto::Value::TensorType(tensor)),
        ..Default::default()
    })
}
