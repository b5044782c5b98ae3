//! `If` and `Loop`. Of an `If` tract wants both branches to have the same shapes, and analyses the one that is not taken as well; `Loop` it lacks.
//!
//! So the way of one sample is spliced into the graph, outermost first: the branches that it takes, and the body of a loop as often as
//! it runs. What decides on the way becomes outputs: a run that gives other decisions was made with the wrong plan, and another
//! plan is made for it.

use super::graph::{Flat, label, output};
use super::loops;
use crate::engine::wanted::read_by;
use crate::pb;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;

/// A value that decides (a condition, how often a loop runs at most), and what it was.
pub type Choice = (String, i64);

/// Computes the single numbers with these names.
pub type Evaluate<'a> = dyn Fn(&Flat, &[String]) -> Result<Vec<i64>> + 'a;

/// So many times it is asked what decides on the next ones, for which the graph is compiled each time.
const ROUNDS: usize = 64;

/// The way that a sample takes.
pub struct Way<'a> {
    choices: Vec<Choice>,
    evaluate: &'a Evaluate<'a>,
}

impl Way<'_> {
    /// What decides, as far as it is known.
    fn known(&self, flat: &Flat, name: &str) -> Option<i64> {
        match flat.tensors.get(name) {
            Some(t) => t.ints()?.first().copied(),
            None => self.choices.iter().find(|c| c.0 == name).map(|c| c.1),
        }
    }

    /// What the values with these names are for the sample.
    ///
    /// # Errors
    /// When the engine does not run what they are computed by.
    pub fn values(&self, flat: &Flat, names: &[String]) -> Result<Vec<i64>> {
        let unknown = names.iter().filter(|name| self.known(flat, name).is_none());
        let asked: Vec<String> = unknown.cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let found = match asked.is_empty() {
            true => Vec::new(),
            false => (self.evaluate)(flat, &asked)?,
        };
        ensure!(found.len() == asked.len(), "a condition was not computed");
        let value = |name: &String| {
            let asked = || asked.iter().position(|a| a == name).map(|k| found[k]);
            self.known(flat, name)
                .or_else(asked)
                .context("a condition is no number")
        };
        names.iter().map(value).collect()
    }

    /// The same, and they become outputs, where they are no constants: the way is theirs only as long as they stay what they are.
    ///
    /// # Errors
    /// As [`Way::values`].
    pub fn choose(&mut self, flat: &mut Flat, names: &[String]) -> Result<Vec<i64>> {
        let values = self.values(flat, names)?;
        for (name, value) in names.iter().zip(&values) {
            if self.known(flat, name).is_none() {
                flat.graph.output.push(output(name));
                self.choices.push((name.clone(), *value));
            }
        }
        Ok(values)
    }
}

/// Splices the way of a sample into the main graph. `evaluate` computes what decides, given the graph and the names. What decides and is no
/// constant is told, and added to the outputs.
///
/// # Errors
/// When a condition cannot be computed, or a loop runs too often.
pub fn resolve(flat: &mut Flat, evaluate: &Evaluate) -> Result<Vec<Choice>> {
    let choices = Vec::new();
    let mut way = Way { choices, evaluate };
    let mut number = 0;
    for _ in 0..ROUNDS {
        let ready = ready(flat);
        if ready.is_empty() {
            return Ok(way.choices);
        }
        let named = |at: &usize| label(&flat.graph.node[*at]);
        let which: Vec<String> = ready.iter().map(named).collect();
        let deciding: Vec<String> = ready.iter().flat_map(|at| deciding(&flat.graph.node[*at])).collect();
        way.choose(flat, &deciding)
            .with_context(|| format!("what decides on {}", which.join(", ")))?;
        for (at, named) in ready.into_iter().zip(which).rev() {
            number += 1;
            match is(&flat.graph.node[at], "If") {
                true => branch(flat, at, number, &way),
                false => loops::unroll(flat, at, number, &mut way),
            }
            .context(named)?;
        }
        flat.prune();
    }
    bail!("more than {ROUNDS} branches and loops depend on each other")
}

fn is(n: &pb::NodeProto, op: &str) -> bool {
    n.op_type() == op && matches!(n.domain(), "" | "ai.onnx")
}

/// What decides before it runs: the condition of an If, the largest number of iterations and the condition of a Loop.
fn deciding(n: &pb::NodeProto) -> Vec<String> {
    let first = if is(n, "If") { 1 } else { 2 };
    n.input.iter().take(first).filter(|v| !v.is_empty()).cloned().collect()
}

/// The `If` nodes whose conditions depend on no other `If` or `Loop`, and the `Loop` nodes nothing of which does.
fn ready(flat: &Flat) -> Vec<usize> {
    let mut after: BTreeSet<&str> = BTreeSet::new();
    let mut ready = Vec::new();
    for (i, n) in flat.graph.node.iter().enumerate() {
        let mut read = Vec::new();
        read_by(n, &mut read);
        let depends = read.iter().any(|v| after.contains(v));
        let waits = match is(n, "If") {
            true => n.input.iter().any(|v| after.contains(v.as_str())),
            false => depends,
        };
        let control = is(n, "If") || is(n, "Loop");
        if control && !waits {
            ready.push(i);
        }
        if control || depends {
            after.extend(n.output.iter().map(String::as_str));
        }
    }
    ready
}

fn branch(flat: &mut Flat, at: usize, number: usize, way: &Way) -> Result<()> {
    let node = &flat.graph.node[at];
    let condition = node.input.first().context("it has no condition")?;
    let taken = way.known(flat, condition).context("its condition is no number")? != 0;
    let branch = if taken { "then_branch" } else { "else_branch" };
    let body = node.attribute.iter().find(|a| a.name() == branch);
    let body = body.and_then(|a| a.g.clone());
    let body = body.with_context(|| format!("it has no {branch}"))?;
    flat.splice(at, body, &format!("if{number}/"))
}
