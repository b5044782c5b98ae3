//! An `If` whose condition is constant is the branch that it takes.

use super::work::Work;
use crate::ir::{NodeId, SubGraphs};

pub(super) fn inline_constant_if(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is(id, "If") {
        return None;
    }
    let cond = match w.ints_input(id, 0)?[..] {
        [c] => c != 0,
        _ => return None,
    };
    let name = if cond { "then_branch" } else { "else_branch" };
    let attr = w.model.node(id).attr(name)?;
    let &SubGraphs::One(body) = &attr.graphs else {
        return None;
    };
    let outer = w.model.node(id).graph();
    let g = w.model.graph(body);
    let fits = g.outputs().len() == w.model.node(id).outputs().len() && g.inputs().is_empty();
    let in_function = w.model.graph(outer).function.is_some() && !g.consts().is_empty();
    if !fits || in_function || !g.rest.sparse_initializer.is_empty() || !g.rest.quantization_annotation.is_empty() {
        return None;
    }
    w.model.inline_body(body);
    let pairs: Vec<_> = w.model.node(id).outputs().to_vec();
    let inner: Vec<_> = w.model.graph(body).outputs().iter().map(|p| p.value).collect();
    for (out, value) in pairs.into_iter().zip(inner) {
        if let Some(out) = out {
            w.model.replace_uses(out, value);
        }
    }
    w.model.erase(id);
    Some(format!("its condition is constant: {name} inlined"))
}
