//! What a file declares of its values, as facts.

use super::infer::{Dim, Fact, show};
use crate::ir::{DType, Model, ValueId};
use crate::pb;
use anyhow::{Context, Result, ensure};
use pb::tensor_shape_proto::dimension::Value as DimValue;
use std::collections::BTreeMap;

/// What the names of dimensions stand for, given the dimensions of some inputs. A name with two meanings has none.
pub(super) fn bind(model: &Model, inputs: &BTreeMap<String, Fact>) -> Result<BTreeMap<String, Dim>> {
    let mut names: BTreeMap<String, Dim> = BTreeMap::new();
    let ports = model.main().inputs();
    for (name, given) in inputs {
        let port = ports.iter().find(|p| p.name() == name);
        let port = port.with_context(|| format!("the model has no input called {name}"))?;
        let (Some(declared), Some(dims)) = (declared(port.info.r#type.as_ref()).shape, given.dims()) else {
            continue;
        };
        let fits = declared.len() == dims.len() && !declared.iter().zip(&dims).any(|(d, n)| d.differs(&Dim::Known(*n)));
        ensure!(
            fits,
            "input {name} is declared {}, but is given {dims:?}",
            show(&declared)
        );
        for (d, n) in declared.into_iter().zip(dims) {
            if let Dim::Symbol(s) = d {
                let n = Dim::Known(n);
                let old = names.entry(s).or_insert_with(|| n.clone());
                *old = old.or(&n);
            }
        }
    }
    Ok(names)
}

/// The type that a file declares. Dimensions of 0 or less, and names that writers use for "any", are unknown.
fn declared(t: Option<&pb::TypeProto>) -> Fact {
    use pb::type_proto::Value;
    match t.and_then(|t| t.value.as_ref()) {
        Some(Value::TensorType(t)) => {
            let dtype = DType::try_from(t.elem_type()).ok().filter(|d| *d != DType::Undefined);
            let dim = |d: &pb::tensor_shape_proto::Dimension| match &d.value {
                Some(DimValue::DimValue(n)) if *n > 0 => usize::try_from(*n).map_or(Dim::Unknown, Dim::Known),
                Some(DimValue::DimParam(s)) if !matches!(s.as_str(), "" | "?" | "None" | "unk" | "-1") => {
                    Dim::Symbol(s.clone())
                }
                _ => Dim::Unknown,
            };
            Fact::new(dtype, t.shape.as_ref().map(|s| s.dim.iter().map(dim).collect()))
        }
        Some(Value::SequenceType(s)) => Fact::container(declared(s.elem_type.as_deref())),
        Some(Value::OptionalType(o)) => Fact::container(declared(o.elem_type.as_deref())),
        _ => Fact::default(),
    }
}

/// The declared types of all values, with the names of dimensions replaced by what they stand for. Names mean the same in
/// the whole main graph; in a body they may change with every iteration, and are dropped.
pub(super) fn claims(model: &Model, names: &BTreeMap<String, Dim>, size: usize) -> Vec<Option<Fact>> {
    let mut all: Vec<Option<Fact>> = vec![None; size];
    for g in model.live_graphs() {
        let graph = model.graph(g);
        let ports = graph
            .inputs()
            .iter()
            .chain(graph.outputs())
            .map(|p| (Some(p.value), &p.info));
        let infos = graph.infos.iter().map(|i| (i.value, &i.info));
        for (v, info) in ports.chain(infos) {
            let Some(v) = v.filter(|v| {
                let value = model.value(*v);
                value.is_alive() && value.graph() == g && !value.is_retyped()
            }) else {
                continue;
            };
            if all[v.index()].is_some() || info.r#type.is_none() {
                continue;
            }
            let mut fact = declared(info.r#type.as_ref());
            for d in fact.shape.iter_mut().flatten() {
                if let Dim::Symbol(s) = d {
                    *d = match names.get(s) {
                        _ if g != model.main_id() => Dim::Unknown,
                        Some(n) => n.clone(),
                        None => continue,
                    };
                }
            }
            all[v.index()] = Some(fact);
        }
    }
    all
}

pub(super) fn sparse(model: &Model, v: ValueId) -> Fact {
    let value = model.value(v);
    let all = &model.graph(value.graph()).rest.sparse_initializer;
    let named = |s: &&pb::SparseTensorProto| s.values.as_ref().is_some_and(|t| t.name() == value.name);
    let Some(s) = all.iter().find(named) else {
        return Fact::default();
    };
    let dtype = s.values.as_ref().and_then(|t| DType::try_from(t.data_type()).ok());
    let dims = s
        .dims
        .iter()
        .map(|&d| usize::try_from(d).map_or(Dim::Unknown, Dim::Known))
        .collect();
    Fact::new(dtype, Some(dims))
}
