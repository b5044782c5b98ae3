//! Operators with sub-graphs: If, Loop, Scan, SequenceMap.
//!
//! A body is inferred with facts that hold in every iteration: what a loop carries is the fact of its start joined with
//! the fact of what one iteration gives, and joined again until it stays (a dimension can only become unknown, and what
//! does not stay at the second try is unknown altogether).

use super::InferBodies;
use super::call::{Call, axis_of};
use super::fact::{Dim, Elem, Fact};
use crate::ir::{DType, GraphId, SubGraphs};
use anyhow::Result;

pub(super) const TABLE: &[(&str, InferBodies)] = &[
    ("If", if_ as InferBodies),
    ("Loop", loop_),
    ("Scan", scan),
    ("SequenceMap", sequence_map),
];

/// Infers a body for given facts of its inputs.
pub trait Bodies {
    /// The facts of the body's outputs.
    ///
    /// # Errors
    /// When the body is certainly illegal, and is certainly run.
    fn body(&mut self, graph: GraphId, inputs: &[Fact]) -> Result<Vec<Fact>>;
}

fn graph(c: &Call, name: &str) -> Option<GraphId> {
    match c.node.attr(name)?.graphs {
        SubGraphs::One(g) => Some(g),
        _ => None,
    }
}

/// Both branches; what holds in both, or the facts of the one that a known condition takes.
fn if_(c: &Call, bodies: &mut dyn Bodies) -> Result<Vec<Fact>> {
    let mut branch = |name: &str| match graph(c, name) {
        Some(g) => bodies.body(g, &[]),
        None => Ok(vec![]),
    };
    let (yes, no) = (branch("then_branch")?, branch("else_branch")?);
    Ok(match c.int(0) {
        Some(0) => no,
        Some(_) => yes,
        None => yes.iter().zip(&no).map(|(a, b)| a.or(b)).collect(),
    })
}

/// The facts that hold of carried values before and after any iteration, and the outputs of the body under them.
fn carried(
    graph: GraphId,
    first: Vec<Fact>,
    bodies: &mut dyn Bodies,
    inputs: impl Fn(&[Fact]) -> Vec<Fact>,
    skip: usize,
) -> Result<(Vec<Fact>, Vec<Fact>)> {
    let mut state = first;
    for round in 0..3 {
        let out = bodies.body(graph, &inputs(&state))?;
        let mut stays = true;
        for (i, s) in state.iter_mut().enumerate() {
            let after = out.get(i + skip).cloned().unwrap_or_default();
            let mut next = s.or(&after);
            if next != *s {
                stays = false;
                if round > 0 {
                    next = Fact::default();
                }
                *s = next;
            }
        }
        if stays {
            return Ok((state, out));
        }
    }
    let out = bodies.body(graph, &inputs(&vec![Fact::default(); state.len()]))?;
    Ok((vec![Fact::default(); state.len()], out))
}

/// M, cond, carried… ; the body: iteration, cond, carried… → cond, carried…, scanned….
fn loop_(c: &Call, bodies: &mut dyn Bodies) -> Result<Vec<Fact>> {
    let Some(g) = graph(c, "body") else { return Ok(vec![]) };
    let n = c.inputs.len().saturating_sub(2);
    let first: Vec<Fact> = (0..n).map(|i| c.fact(i + 2).cloned().unwrap_or_default()).collect();
    let going = Fact::of(DType::Bool, &[]).with_elems(Some(vec![Elem::Int(1)])); // inside, the condition holds
    let inputs = |state: &[Fact]| {
        let mut all = vec![Fact::of(DType::Int64, &[]), going.clone()];
        all.extend_from_slice(state);
        all
    };
    let (state, out) = carried(g, first, bodies, inputs, 1)?;
    let mut facts = state;
    // How many iterations are run is known only when nothing can end the loop early.
    let on = |f: Option<&Fact>| f.and_then(Fact::ints).is_some_and(|c| c == [1]);
    let endless = (!c.has(1) || on(c.fact(1))) && on(out.first());
    let count = match c.int(0) {
        Some(n) if endless => Elem::Int(n.max(0)).dim(),
        _ => Dim::Unknown,
    };
    facts.extend(out.iter().skip(n + 1).map(|f| stacked(f, count.clone(), 0)));
    Ok(facts)
}

fn stacked(f: &Fact, count: Dim, axis: i64) -> Fact {
    let shape = f.shape.as_ref().and_then(|s| {
        let mut s = s.clone();
        s.insert(axis_of(axis, s.len() + 1).ok()?, count);
        Some(s)
    });
    Fact::new(f.dtype, shape)
}

/// Carried values and scanned inputs, of which the body sees one slice (opset 8 had a batch axis and lengths before
/// them, and is left unknown).
fn scan(c: &Call, bodies: &mut dyn Bodies) -> Result<Vec<Fact>> {
    let (Some(g), true) = (graph(c, "body"), c.opset >= 9) else {
        return Ok(vec![]);
    };
    let scanned = usize::try_from(c.int_or("num_scan_inputs", 0)).unwrap_or(0);
    let Some(n) = c.inputs.len().checked_sub(scanned) else {
        return Ok(vec![]);
    };
    let at = |name: &str, i: usize| c.node.ints(name).and_then(|a| a.get(i).copied()).unwrap_or(0);
    let mut length = Dim::Unknown;
    let mut slices = Vec::new();
    for i in 0..scanned {
        let mut f = c.like(n + i);
        if let Some(s) = &mut f.shape {
            let axis = axis_of(at("scan_input_axes", i), s.len())?;
            length = length.and(&s.remove(axis));
        }
        slices.push(f);
    }
    let first: Vec<Fact> = (0..n).map(|i| c.fact(i).cloned().unwrap_or_default()).collect();
    let (state, out) = carried(g, first, bodies, |s| [s, &slices].concat(), 0)?;
    let mut facts = state;
    let stack = |(i, f)| stacked(f, length.clone(), at("scan_output_axes", i));
    facts.extend(out.iter().skip(n).enumerate().map(stack));
    Ok(facts)
}

/// The body for every element of the first sequence; further sequences are walked along, tensors are passed as they are.
fn sequence_map(c: &Call, bodies: &mut dyn Bodies) -> Result<Vec<Fact>> {
    let Some(g) = graph(c, "body") else { return Ok(vec![]) };
    let inputs: Vec<Fact> = (0..c.inputs.len())
        .map(|i| {
            c.fact(i)
                .map_or_else(Fact::default, |f| f.holds.as_deref().unwrap_or(f).clone())
        })
        .collect();
    Ok(bodies.body(g, &inputs)?.into_iter().map(Fact::container).collect())
}
