//! `Transpose∘Transpose` and `Slice∘Slice`.
//!
//! * `out[i] = in[perm[i]]` twice is one permutation `i ↦ inner[outer[i]]`.
//! * Slices of different axes do not see each other: one `Slice` cuts all of them.

use super::numbers::list;
use super::work::Work;
use crate::ir::{Attr, NodeId, Tensor, Use};

pub(super) fn transpose(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is(id, "Transpose") {
        return None;
    }
    let inner = w.model.input_producer(id, 0)?;
    if !w.is(inner, "Transpose") {
        return None;
    }
    let x = w.model.node(inner).input(0)?;
    let given = |id: NodeId| w.model.node(id).ints("perm").map(<[i64]>::to_vec);
    let rank = given(id).or(given(inner)).map(|p| p.len()).or(w.facts.rank(x))?;
    let perm = |id: NodeId| {
        let p = given(id).unwrap_or((0..rank as i64).rev().collect());
        let p: Option<Vec<usize>> = p
            .iter()
            .map(|&p| usize::try_from(p).ok().filter(|p| *p < rank))
            .collect();
        p.filter(|p| p.len() == rank)
    };
    let (first, second) = (perm(inner)?, perm(id)?);
    let both: Vec<i64> = second.iter().map(|&i| first[i] as i64).collect();
    if both.iter().enumerate().all(|(i, &p)| p == i as i64) && w.bypass(id, x).is_some() {
        return Some("undoes the Transpose before it: both removed".into());
    }
    w.model.set_input(id, 0, Some(x));
    w.model.node_mut(id).set_attr(Attr::ints("perm", both));
    Some("merged with the Transpose before it".into())
}

/// One cut: axis, start, end, step.
pub(super) type Cut = (i64, i64, i64, i64);

pub(super) fn slice(w: &mut Work, id: NodeId) -> Option<String> {
    let inner = w.is(id, "Slice").then(|| w.same_graph_producer(id, 0)).flatten()?;
    if !w.is(inner, "Slice") || !read_by_slices_only(w, inner) {
        return None;
    }
    let (x, mut all) = (w.model.node(inner).input(0)?, cuts(w, inner)?);
    let second = cuts(w, id)?;
    if second.iter().any(|c| all.iter().any(|d| d.0 == c.0)) {
        return None;
    }
    all.extend(second);
    all.sort_unstable();
    let column = |f: fn(&Cut) -> i64| all.iter().map(f).collect::<Vec<i64>>();
    let (axes, starts, ends, steps) = (column(|c| c.0), column(|c| c.1), column(|c| c.2), column(|c| c.3));
    if w.opset(id) < 10 {
        w.model.set_input(id, 0, Some(x));
        let n = w.model.node_mut(id);
        n.set_attr(Attr::ints("axes", axes));
        n.set_attr(Attr::ints("starts", starts));
        n.set_attr(Attr::ints("ends", ends));
        return Some("merged with the Slice before it".into());
    }
    let graph = w.model.node(id).graph();
    let wide = w.facts.dtype(w.model.node(id).input(1)?) == Some(crate::ir::DType::Int64);
    let typed = |x: &[i64]| match wide {
        true => Some(list(x)),
        false => {
            let narrow: Result<Vec<i32>, _> = x.iter().map(|&x| i32::try_from(x)).collect();
            narrow.ok().map(|x| Tensor::new(&[x.len()], x))
        }
    };
    let unit = steps.iter().all(|&s| s == 1);
    let tensors = [typed(&starts)?, typed(&ends)?, typed(&axes)?, typed(&steps)?];
    let mut inputs = vec![Some(x)];
    for (name, t) in ["starts", "ends", "axes", "steps"].iter().zip(tensors) {
        if *name != "steps" || !unit {
            inputs.push(Some(w.add_const(graph, name, t)));
        }
    }
    w.model.set_inputs(id, inputs);
    Some("merged with the Slice before it".into())
}

/// Then the inner one goes once all its readers are merged.
fn read_by_slices_only(w: &Work, id: NodeId) -> bool {
    let Some(out) = w.model.node(id).output(0) else {
        return false;
    };
    let graph = w.model.node(id).graph();
    w.model.value(out).uses().iter().all(|u| match *u {
        Use::Node(n, 0) => w.is(n, "Slice") && w.model.node(n).graph() == graph && disjoint(w, id, n),
        _ => false,
    })
}

fn disjoint(w: &Work, a: NodeId, b: NodeId) -> bool {
    match (cuts(w, a), cuts(w, b)) {
        (Some(a), Some(b)) => !b.iter().any(|c| a.iter().any(|d| d.0 == c.0)),
        _ => false,
    }
}

/// The cuts of a `Slice` with constant parameters; axes counted from the front.
pub(super) fn cuts(w: &Work, id: NodeId) -> Option<Vec<Cut>> {
    let n = w.model.node(id);
    let old = w.opset(id) < 10;
    let part = |slot: usize, name: &str| match old {
        true => n.ints(name).map(<[i64]>::to_vec),
        false => w.ints_input(id, slot),
    };
    let absent = |slot: usize, name: &str| match old {
        true => n.attr(name).is_none(),
        false => n.input(slot).is_none(),
    };
    let (starts, ends) = (part(1, "starts")?, part(2, "ends")?);
    let count = starts.len();
    let axes = match absent(3, "axes") {
        true => (0..count as i64).collect(),
        false => part(3, "axes")?,
    };
    let steps = match old || n.input(4).is_none() {
        true => vec![1; count],
        false => part(4, "steps")?,
    };
    if ends.len() != count || axes.len() != count || steps.len() != count {
        return None;
    }
    let rank = n.input(0).and_then(|x| w.facts.rank(x));
    let front = |a: i64| if a < 0 { rank.map(|r| a + r as i64) } else { Some(a) };
    (0..count)
        .map(|i| Some((front(axes[i])?, starts[i], ends[i], steps[i])))
        .collect()
}
