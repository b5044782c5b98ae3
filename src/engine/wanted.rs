//! How the wanted values of a model are come by, for every engine in the same way: those that nodes compute become outputs
//! of a copy, the others are at hand.

use super::Each;
use crate::data::Sample;
use crate::ir::{Model, Origin, Tensor, ValueId};
use crate::pb;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};

/// How a wanted value is come by.
pub enum Give {
    /// Output number so many of the computation.
    Computed(usize),
    /// The sample holds it.
    Input(String),
    /// It is the same in every run.
    Const(Tensor),
}

/// A model with the values that have to be computed as outputs, behind its own ones.
pub struct Wanted {
    /// What to give for each wanted value.
    pub give: Vec<Give>,
    /// The names of the values to compute: outputs of the copy.
    pub names: Vec<String>,
    /// The values themselves.
    pub values: Vec<ValueId>,
    /// The copy.
    pub copy: Model,
}

impl Wanted {
    /// Sorts the wanted values. With `public` a value behind an output of the model keeps that output's name, so that
    /// whoever wants just the outputs gets the model as it is.
    ///
    /// # Errors
    /// When one is no value of the main graph, or an input that the sample lacks.
    pub fn new(model: &Model, wanted: &[ValueId], like: &Sample, public: bool) -> Result<Wanted> {
        let mut copy = model.clone();
        let mut slots: BTreeMap<ValueId, usize> = BTreeMap::new();
        let (mut names, mut values, mut give) = (Vec::new(), Vec::new(), Vec::new());
        for &v in wanted {
            let value = model.value(v);
            ensure!(
                value.graph() == model.main_id() && value.is_alive(),
                "{} is no value of the main graph",
                value.name
            );
            give.push(match (value.origin(), value.tensor()) {
                (Origin::Input, _) if like.contains_key(&value.name) => Give::Input(value.name.clone()),
                (Origin::Input | Origin::Const, Some(t)) => Give::Const(t.clone()),
                (Origin::Input, None) => bail!("the sample has no input {:?}", value.name),
                (Origin::Const, None) => bail!("initializer {} has no data", value.name),
                (Origin::Node(..) | Origin::Sparse, _) => Give::Computed(*slots.entry(v).or_insert_with(|| {
                    let port = model.main().outputs().iter().find(|p| public && p.value == v);
                    names.push(port.map_or_else(|| exposed(&mut copy, v, names.len()), |p| p.name().to_owned()));
                    values.push(v);
                    names.len() - 1
                })),
            });
        }
        Ok(Wanted {
            give,
            names,
            values,
            copy,
        })
    }
}

/// Makes a value an output; gives the output's name.
fn exposed(copy: &mut Model, v: ValueId, number: usize) -> String {
    let name = copy.fresh_name(&format!("wanted_{number}"));
    let info = pb::ValueInfoProto {
        name: Some(name.clone()),
        ..Default::default()
    };
    let main = copy.main_id();
    copy.add_output(main, info, v);
    name
}

/// Which nodes of a graph (in order of execution) its outputs need, and the names of everything that is read on the way.
pub fn needed(nodes: &[pb::NodeProto], outputs: BTreeSet<String>) -> (Vec<bool>, BTreeSet<String>) {
    let mut needed = outputs;
    let mut keep = vec![false; nodes.len()];
    for (i, n) in nodes.iter().enumerate().rev() {
        if n.output.iter().any(|o| needed.contains(o)) {
            keep[i] = true;
            let mut reads = Vec::new();
            read_by(n, &mut reads);
            needed.extend(reads.into_iter().map(str::to_owned));
        }
    }
    (keep, needed)
}

/// Every name that a node or its sub-graphs read (a few too many, when a sub-graph makes a value of its own).
pub fn read_by<'a>(node: &'a pb::NodeProto, out: &mut Vec<&'a str>) {
    out.extend(node.input.iter().map(String::as_str).filter(|n| !n.is_empty()));
    for g in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
        out.extend(g.output.iter().map(|o| o.name()));
        g.node.iter().for_each(|n| read_by(n, out));
    }
}

/// The wanted values in their order, from what was computed and what the sample holds.
///
/// # Errors
/// When fewer were computed than are wanted, or the sample lacks an input.
pub fn gather(give: &[Give], computed: &[Tensor], sample: &Sample) -> Result<Vec<Tensor>> {
    let one = |g: &Give| match g {
        Give::Computed(i) => computed.get(*i).cloned().context("the engine gave too few values"),
        Give::Input(name) => Ok(input(sample, name)?.clone()),
        Give::Const(t) => Ok(t.clone()),
    };
    give.iter().map(one).collect()
}

/// For each computed value its numbers among the wanted ones.
pub fn places(give: &[Give]) -> BTreeMap<usize, Vec<usize>> {
    let mut places: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, g) in give.iter().enumerate() {
        if let Give::Computed(k) = g {
            places.entry(*k).or_default().push(i);
        }
    }
    places
}

/// Hands over the wanted values that need no computing.
///
/// # Errors
/// When the sample lacks an input, and those of `each`.
pub fn at_hand(give: &[Give], sample: &Sample, each: &mut Each) -> Result<()> {
    for (i, g) in give.iter().enumerate() {
        match g {
            Give::Computed(_) => {}
            Give::Input(name) => each(i, input(sample, name)?.clone())?,
            Give::Const(t) => each(i, t.clone())?,
        }
    }
    Ok(())
}

/// An input of a sample.
///
/// # Errors
/// When it is missing.
pub fn input<'a>(sample: &'a Sample, name: &str) -> Result<&'a Tensor> {
    sample
        .get(name)
        .with_context(|| format!("the sample has no input {name:?}"))
}
