//! `If`: tract wants both branches to have the same shapes, and analyses the one that is not taken as well.
//!
//! So the branches that one sample takes are spliced into the graph, outermost first. The conditions become outputs: a run
//! that gives other conditions was made with the wrong plan, and another plan is made for it.

use super::graph::{Flat, label};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;

/// A condition, and what it was.
pub type Choice = (String, bool);

/// Computes the conditions with these names.
pub type Evaluate<'a> = dyn Fn(&Flat, &[String]) -> Result<Vec<bool>> + 'a;

/// Splices the branches of every `If` of the main graph. `evaluate` computes conditions, given the graph and their names.
/// Conditions that are constants are not among the choices; the others are added to the outputs.
pub fn resolve(flat: &mut Flat, evaluate: &Evaluate) -> Result<Vec<Choice>> {
    let mut choices: Vec<Choice> = Vec::new();
    let mut number = 0;
    loop {
        let ready = ready(flat);
        if ready.is_empty() {
            return Ok(choices);
        }
        let mut asked: Vec<String> = Vec::new();
        for (_, cond) in &ready {
            if !flat.tensors.contains_key(cond) && !asked.contains(cond) && !choices.iter().any(|c| c.0 == *cond) {
                asked.push(cond.clone());
            }
        }
        if !asked.is_empty() {
            let found = evaluate(flat, &asked).context("the condition of an If")?;
            ensure!(found.len() == asked.len(), "a condition was not computed");
            let output = |n: &String| crate::pb::ValueInfoProto {
                name: Some(n.clone()),
                ..Default::default()
            };
            flat.graph.output.extend(asked.iter().map(output));
            choices.extend(asked.into_iter().zip(found));
        }
        for (at, cond) in ready.into_iter().rev() {
            let taken = match flat.tensors.get(&cond) {
                Some(t) => {
                    t.ints()
                        .and_then(|i| i.first().copied())
                        .context("condition of an If")?
                        != 0
                }
                None => choices.iter().find(|c| c.0 == cond).context("condition of an If")?.1,
            };
            number += 1;
            splice(flat, at, taken, number)?;
        }
        flat.prune();
    }
}

/// The `If` nodes whose conditions depend on no other `If`, and their conditions.
fn ready(flat: &Flat) -> Vec<(usize, String)> {
    let mut after: BTreeSet<&str> = BTreeSet::new();
    let mut ready = Vec::new();
    for (i, n) in flat.graph.node.iter().enumerate() {
        let is_if = n.op_type() == "If" && matches!(n.domain(), "" | "ai.onnx");
        let cond = n.input.first().map_or("", String::as_str);
        if is_if && !after.contains(cond) {
            ready.push((i, cond.to_owned()));
        }
        if is_if || n.input.iter().any(|v| after.contains(v.as_str())) {
            after.extend(n.output.iter().map(String::as_str));
        }
    }
    ready
}

fn splice(flat: &mut Flat, at: usize, taken: bool, number: usize) -> Result<()> {
    let node = &flat.graph.node[at];
    let branch = if taken { "then_branch" } else { "else_branch" };
    let named = label(node);
    let body = node
        .attribute
        .iter()
        .find(|a| a.name() == branch)
        .and_then(|a| a.g.clone());
    let body = body.with_context(|| format!("{named} has no {branch}"))?;
    flat.splice(at, body, &format!("if{number}/")).context(named)
}
