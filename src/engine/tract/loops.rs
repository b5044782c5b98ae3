//! `Loop`, written out: the body once for each time that it runs, one behind the other.
//!
//! Body `(i, condition, carried…) → (condition, carried…, collected…)`: what an iteration carries out, the next one carries in, and what it
//! adds to a collection is stacked in the end (Concat of Unsqueeze along a new first axis). Constants of the body are there once.
//!
//! How often it runs is known when nothing but the largest number of iterations ends it. Else some iterations are written out and their
//! conditions computed, then more. Beyond its end a body may fail: then fewer are tried.

use super::control::Way;
use super::graph::{Flat, plain_node, rename};
use crate::ir::{Attr, DType, Tensor};
use crate::pb;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use std::collections::HashMap;

/// So many iterations are written out at first, and each time so many times as many.
const FIRST: usize = 16;
const GROWTH: usize = 4;
/// A graph has no more nodes when a loop is written out: tract takes seconds to compile so many.
const MOST_NODES: usize = 5_000;

/// A loop, taken apart.
struct Loop {
    node: pb::NodeProto,
    body: pb::GraphProto,
    /// Values of the body that are the same in all iterations, with their names outside.
    constants: HashMap<String, String>,
    prefix: String,
}

/// Puts the iterations that the sample runs in place of a loop, whose number of iterations and first condition the way knows.
///
/// # Errors
/// When its conditions cannot be computed, or it runs too often.
pub fn unroll(flat: &mut Flat, at: usize, number: usize, way: &mut Way) -> Result<()> {
    let looped = Loop::take(flat, at, number)?;
    let [limit, condition] = [0, 1].map(|k| looped.node.input.get(k).filter(|v| !v.is_empty()).cloned());
    let known = |name: Option<String>, without: i64| -> Result<i64> {
        name.map_or(Ok(without), |name| Ok(way.values(flat, &[name])?[0]))
    };
    let (limit, starts) = (known(limit, i64::MAX)?, known(condition, 1)? != 0);
    let limit = usize::try_from(limit.max(0))?;
    let count = match starts && limit > 0 {
        true => looped.iterations(flat, at, limit, way)?,
        false => 0,
    };
    let conditions = looped.write(flat, at, count)?;
    // The limit ends it by itself.
    let decide = count.min(limit.saturating_sub(1));
    way.choose(flat, &conditions[..decide])?;
    Ok(())
}

impl Loop {
    /// The loop at a place; the constants of its body are moved out.
    fn take(flat: &mut Flat, at: usize, number: usize) -> Result<Loop> {
        let node = flat.graph.node[at].clone();
        let body = node.attribute.iter().find(|a| a.name() == "body");
        let mut body = body.and_then(|a| a.g.clone()).context("it has no body")?;
        let carried = node.input.len().saturating_sub(2);
        ensure!(node.input.len() >= 2, "it has no condition");
        ensure!(
            body.input.len() == carried + 2 && body.output.len() > carried && body.output.len() > node.output.len(),
            "its body has {} inputs and {} outputs",
            body.input.len(),
            body.output.len()
        );
        let prefix = format!("loop{number}");
        let constants = flat.move_constants(&mut body, &format!("{prefix}/constant/"))?;
        Ok(Loop {
            node,
            body,
            constants,
            prefix,
        })
    }

    /// How often it runs for the sample: once at least, and no more than `limit` times.
    fn iterations(&self, flat: &Flat, at: usize, limit: usize, way: &Way) -> Result<usize> {
        let left = MOST_NODES.saturating_sub(flat.graph.node.len());
        let affordable = left / self.body.node.len().max(1);
        let (mut sure, mut most) = (0, limit);
        let mut next = FIRST;
        loop {
            let n = next.min(most).min(affordable);
            ensure!(
                n > sure,
                "it runs more than {sure} times, too often to be written out for tract"
            );
            let mut tried = flat.clone();
            let conditions = self.write(&mut tried, at, n)?;
            match way.values(&tried, &conditions[..n.min(limit - 1)]) {
                Ok(values) => match values.iter().position(|v| *v == 0) {
                    Some(k) => return Ok(k + 1),
                    None if n == limit => return Ok(n),
                    None => (sure, next) = (n, n.saturating_mul(GROWTH)),
                },
                Err(e) if n == sure + 1 => return Err(e).context("the condition of another iteration"),
                Err(_) => (most, next) = (n - 1, sure.midpoint(n)),
            }
        }
    }

    /// Writes so many iterations in place of the loop; gives the names of the conditions that they end with.
    fn write(&self, flat: &mut Flat, at: usize, count: usize) -> Result<Vec<String>> {
        let carried = self.body.input.len() - 2;
        let mut state: Vec<String> = self.node.input.iter().skip(1).cloned().collect();
        if state[0].is_empty() {
            state[0] = format!("{}#goes on", self.prefix);
            let yes = Tensor::from_raw(DType::Bool, &[], Bytes::from_static(&[1]))?;
            flat.tensors.insert(state[0].clone(), yes);
        }
        let mut collected = vec![Vec::new(); self.body.output.len() - 1 - carried];
        let (mut nodes, mut conditions) = (Vec::new(), Vec::new());
        for i in 0..count {
            let prefix = format!("{}/{i}/", self.prefix);
            let mut names = self.constants.clone();
            let number = format!("{}#{i}", self.prefix);
            flat.tensors.insert(number.clone(), Tensor::scalar(i as i64));
            for (inner, outer) in self.body.input.iter().zip(std::iter::once(&number).chain(&state)) {
                names.insert(inner.name().to_owned(), outer.clone());
            }
            for name in self.body.node.iter().flat_map(|n| &n.output).filter(|o| !o.is_empty()) {
                names.insert(name.clone(), format!("{prefix}{name}"));
            }
            nodes.extend(self.body.node.iter().cloned().map(|mut n| {
                rename(&mut n, &names);
                n
            }));
            let outer = |o: &pb::ValueInfoProto| names.get(o.name()).cloned().unwrap_or_else(|| o.name().to_owned());
            let mut given: Vec<String> = self.body.output.iter().map(outer).collect();
            let new = given.split_off(1 + carried);
            collected.iter_mut().zip(new).for_each(|(all, one)| all.push(one));
            conditions.push(given[0].clone());
            state = given;
        }
        let results = self.node.output.iter().zip(&state[1..]);
        let results = results.filter(|(to, _)| !to.is_empty());
        nodes.extend(results.map(|(to, from)| plain_node("Identity", to, vec![from.clone()], vec![to.clone()])));
        for (to, all) in self.node.output.iter().skip(carried).zip(collected) {
            if !to.is_empty() {
                stack(flat, all, to, &mut nodes);
            }
        }
        flat.graph.node.splice(at..=at, nodes);
        Ok(conditions)
    }
}

/// Stacks values along a new first axis. Of no value there are no dimensions, and nothing is made: who needs it, misses it.
fn stack(flat: &mut Flat, all: Vec<String>, to: &str, nodes: &mut Vec<pb::NodeProto>) {
    if all.is_empty() {
        return;
    }
    let axes = format!("{to}/axes");
    let attribute = flat.version() < 13;
    if !attribute {
        flat.tensors.insert(axes.clone(), Tensor::new(&[1], vec![0i64]));
    }
    let mut rows = Vec::with_capacity(all.len());
    for (i, from) in all.into_iter().enumerate() {
        let row = format!("{to}/{i}");
        let inputs = std::iter::once(from).chain((!attribute).then(|| axes.clone()));
        let mut wider = plain_node("Unsqueeze", &row, inputs.collect(), vec![row.clone()]);
        wider
            .attribute
            .extend(attribute.then(|| Attr::ints("axes", vec![0]).proto));
        nodes.push(wider);
        rows.push(row);
    }
    let mut concat = plain_node("Concat", to, rows, vec![to.to_owned()]);
    concat.attribute.push(Attr::int("axis", 0).proto);
    nodes.push(concat);
}
