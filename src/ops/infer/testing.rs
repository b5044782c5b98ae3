//! A short notation for the unit tests of this room: facts as text, rules called by name.

use super::{Call, Dim, Elem, Fact, Rule, rule, show};
use crate::ir::{Attr, DType, Model, Op};
use crate::pb;

/// A float tensor: `"N, 3, ?"`; `""` is a scalar.
pub fn f(dims: &str) -> Fact {
    typed(DType::Float, dims)
}

/// A tensor of this type.
pub fn typed(dtype: DType, dims: &str) -> Fact {
    let dim = |d: &str| match d.trim() {
        "?" => Dim::Unknown,
        d => d.parse().map_or_else(|_| Dim::Symbol(d.to_owned()), Dim::Known),
    };
    let shape = if dims.is_empty() {
        vec![]
    } else {
        dims.split(',').map(dim).collect()
    };
    Fact::new(Some(dtype), Some(shape))
}

/// A known list of `int64`.
pub fn ints(v: &[i64]) -> Fact {
    Fact::list(v.iter().map(|&i| Elem::Int(i)).collect())
}

/// A known scalar `int64`.
pub fn int(i: i64) -> Fact {
    Fact::of(DType::Int64, &[]).with_elems(Some(vec![Elem::Int(i)]))
}

/// A known list of floats.
pub fn floats(v: &[f64]) -> Fact {
    Fact::of(DType::Float, &[v.len()]).with_elems(Some(v.iter().map(|&x| Elem::Float(x)).collect()))
}

/// The facts that a rule gives; the message of its error.
pub fn facts(op: &str, opset: i64, attrs: Vec<Attr>, inputs: &[Fact]) -> Result<Vec<Fact>, String> {
    let (domain, name) = op.split_once("::").unwrap_or(("", op));
    let graph = Model::new(pb::ModelProto::default()).main_id();
    let op = Op {
        domain: domain.to_owned(),
        name: name.to_owned(),
    };
    let mut node = Model::bare_node(graph, op, pb::NodeProto::default());
    node.attrs = attrs;
    // A fact of which nothing is known stands for an input left out.
    let inputs = inputs.iter().map(|f| Some(f).filter(|f| !f.is_unknown())).collect();
    match rule(domain, name) {
        Some(Rule::Plain(f)) => f(&Call {
            node: &node,
            opset,
            inputs,
        })
        .map_err(|e| e.to_string()),
        _ => panic!("{name} has no plain rule"),
    }
}

/// The first output's dimensions as text, `"any"` when not even their number is known; or the error.
pub fn dims(op: &str, opset: i64, attrs: Vec<Attr>, inputs: &[Fact]) -> String {
    match facts(op, opset, attrs, inputs) {
        Ok(f) => f
            .first()
            .and_then(|f| f.shape.as_deref())
            .map_or("any".to_owned(), show),
        Err(e) => format!("error: {e}"),
    }
}

/// The first output's elements as text.
pub fn elems(op: &str, opset: i64, attrs: Vec<Attr>, inputs: &[Fact]) -> String {
    let facts = facts(op, opset, attrs, inputs).expect("no contradiction");
    let show = |e: &Elem| match e {
        Elem::Int(i) => i.to_string(),
        Elem::Float(x) => format!("{x:?}"),
        Elem::Symbol(s) => s.clone(),
        Elem::Unknown => "?".to_owned(),
    };
    match &facts[0].elems {
        Some(e) => e.iter().map(show).collect::<Vec<String>>().join(" "),
        None => "none".to_owned(),
    }
}
