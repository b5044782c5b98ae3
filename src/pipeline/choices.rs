//! Models that choose inside, opened there: what the original chose is given to both, so that they can be compared.
//!
//! The queries of a detection transformer are the best of thousands of places. On the least noise two of them change places in the order, and with them all that
//! the network behind computes of them: outputs then err by all that they hold, although nothing is lost. So the indices become inputs of the model
//! (what the original chose, sample by sample) and outputs (compared by the scores that they are chosen by), passes and verdict see that model, and the result
//! is closed again. How much of what the closed result chooses by itself the original chose as well is measured at the end.

use crate::analysis::chosen;
use crate::data::{Dataset, Sample, Samples};
use crate::engine::{Engine, NotRun};
use crate::ir::{DType, Model, Port, Tensor, Use, ValueId};
use crate::parallel::in_order;
use crate::progress::Progress;
use crate::verify::{OutputGap, Verdict};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// When less than this part of what is chosen is the same, a comparison under the original's choice says nothing of what the result will do.
const LEAST: f64 = 0.5;

/// The names of a choice at the opened model's ends.
struct Choice {
    input: String,
    output: String,
    /// The output is there for this alone.
    added: bool,
}

/// A model and its samples, opened.
pub struct Opened {
    /// The model, whose choices are inputs.
    pub model: Model,
    /// The samples, with what the model chose.
    pub data: Dataset,
    choices: Vec<Choice>,
}

impl Opened {
    /// Opens a model; `None` where it does not choose inside, where it chooses more of one sample than of another, or where the engine does not run it.
    ///
    /// # Errors
    /// When a sample cannot be read, or fails.
    pub fn of(
        model: &Model,
        data: &Dataset,
        (engine, threads): (&dyn Engine, usize),
        progress: &dyn Progress,
    ) -> Result<Option<Opened>> {
        let chosen = chosen::inside(model);
        if chosen.is_empty() {
            return Ok(None);
        }
        let Some(Ok(session)) = data.get(0).ok().map(|like| engine.load(model, &chosen, &like)) else {
            return Ok(None);
        };
        let (opened, choices) = open(model, &chosen);
        let (all, mut more) = (data.all(), Vec::with_capacity(data.len()));
        progress.start("choices", all.len());
        let run = |i: usize| session.run(&all.get(i)?);
        let keep = |_, found: Vec<Tensor>| {
            let names = choices.iter().map(|c| c.input.clone());
            more.push(names.zip(found).collect::<Sample>());
            progress.advance(1);
            Ok(())
        };
        in_order(all.len(), threads, run, keep).context("what the model chooses inside")?;
        progress.finish();
        // An engine plans for inputs of one size.
        let sizes = |s: &Sample| s.values().map(|t| t.dims().to_vec()).collect::<Vec<_>>();
        if more.iter().any(|s| sizes(s) != sizes(&more[0])) {
            return Ok(None);
        }
        Ok(Some(Opened {
            data: data.with(more, &opened),
            model: opened,
            choices,
        }))
    }

    /// Opens a model that was made of the same original; `None` where it does not choose as often.
    pub fn like(&self, other: &Model) -> Option<Model> {
        let chosen = chosen::inside(other);
        let same = |name: &String, v: &ValueId| *name == other.value(*v).name;
        let names: Vec<&String> = self.choices.iter().map(|c| &c.output).collect();
        let found: Vec<ValueId> = names
            .iter()
            .filter_map(|n| chosen.iter().find(|v| same(n, v)).copied())
            .collect();
        let found = if found.len() == names.len() { found } else { chosen };
        if found.len() != self.choices.len() {
            return None;
        }
        let mut model = other.clone();
        for (v, choice) in found.into_iter().zip(&self.choices) {
            give(&mut model, v, choice);
        }
        Some(model)
    }

    /// Closes a result, and gives the values that it chooses.
    ///
    /// # Errors
    /// When an end is not there any more.
    pub fn close(&self, model: &mut Model) -> Result<Vec<ValueId>> {
        let main = model.main_id();
        let mut all = Vec::new();
        for Choice { input, output, added } in &self.choices {
            let lost = || format!("what is chosen at {output} is lost; please report it");
            let slot = |ports: &[Port], name: &str| ports.iter().position(|p| p.name() == name);
            let (from, to) = (slot(model.main().inputs(), input), slot(model.main().outputs(), output));
            let (from, to) = (from.with_context(lost)?, to.with_context(lost)?);
            let (given, chosen) = (model.main().inputs()[from].value, model.main().outputs()[to].value);
            model.replace_uses(given, chosen);
            model.remove_input(main, from);
            if *added {
                model.remove_output(main, to);
            }
            all.push(chosen);
        }
        Ok(all)
    }

    /// Lets a closed result choose by itself, on samples of the data that were opened; writes to what was measured what part of it the original chose as
    /// well, and gives the verdict with that.
    ///
    /// # Errors
    /// [`NotRun`] (in the chain) when the engine cannot run it; otherwise when a sample fails.
    pub fn judge(
        &self,
        result: (&Model, &[ValueId]),
        held: &Samples,
        engine: (&dyn Engine, usize),
        (verdict, gaps): (Verdict, &mut [OutputGap]),
    ) -> Result<Verdict> {
        let same = self.same(result, held, engine)?;
        Ok(self.weighed(verdict, gaps, &same))
    }

    /// What part of what a closed model chooses the original chose as well, for every choice.
    fn same(
        &self,
        (model, chosen): (&Model, &[ValueId]),
        held: &Samples,
        (engine, threads): (&dyn Engine, usize),
    ) -> Result<Vec<f64>> {
        let plain = |i: usize| -> Result<(Sample, Vec<Tensor>)> {
            let mut sample = held.get(i)?;
            let given = self.choices.iter().map(|c| sample.remove(&c.input));
            let given: Option<Vec<Tensor>> = given.collect();
            Ok((sample, given.context("samples that were not opened")?))
        };
        let session = engine.load(model, chosen, &plain(0)?.0);
        let session = session.map_err(|NotRun(why)| anyhow::Error::new(NotRun(format!("the result: {why}"))))?;
        let ones: Vec<One> = chosen.iter().map(|v| one(model, *v)).collect();
        let mut counts = vec![(0, 0); chosen.len()];
        let run = |i: usize| {
            let (sample, given) = plain(i)?;
            Ok((given, session.run(&sample)?))
        };
        let count = |_, (given, found): (Vec<Tensor>, Vec<Tensor>)| {
            for (k, count) in counts.iter_mut().enumerate() {
                let (both, all) = common(&given[k], &found[k], ones[k]);
                (count.0, count.1) = (count.0 + both, count.1 + all);
            }
            Ok(())
        };
        in_order(held.len(), threads, run, count)?;
        let part = |(both, all): (usize, usize)| if all == 0 { 1.0 } else { both as f64 / all as f64 };
        Ok(counts.into_iter().map(part).collect())
    }

    /// Writes these parts to what was measured, and gives the verdict with them.
    fn weighed(&self, verdict: Verdict, gaps: &mut [OutputGap], same: &[f64]) -> Verdict {
        for (Choice { output, added, .. }, same) in self.choices.iter().zip(same) {
            if let Some(g) = gaps.iter_mut().find(|g| g.name == *output && !g.inner) {
                (g.same_choice, g.inner) = (Some(*same), *added);
            }
        }
        let least = self.choices.iter().zip(same).min_by(|a, b| a.1.total_cmp(b.1));
        match (verdict, least) {
            (Verdict::Same | Verdict::Within, Some((choice, same))) if *same < LEAST => Verdict::Outside(format!(
                "of what is chosen at {:?} inside the model, only {:.0} % is the same",
                choice.output,
                100.0 * same
            )),
            (verdict, _) => verdict,
        }
    }
}

/// The model with these values as inputs and outputs.
fn open(model: &Model, chosen: &[ValueId]) -> (Model, Vec<Choice>) {
    let mut model = model.clone();
    let mut choices = Vec::with_capacity(chosen.len());
    for &v in chosen {
        let name = model.value(v).name.clone();
        let port = model.main().outputs().iter().find(|p| p.value == v);
        let (added, output) = (port.is_none(), port.map_or(name.clone(), |p| p.name().to_owned()));
        let input = model.fresh_name(&format!("{name}_given"));
        let choice = Choice { input, output, added };
        give(&mut model, v, &choice);
        choices.push(choice);
    }
    (model, choices)
}

/// What reads a value reads an input; the value is an output.
fn give(model: &mut Model, v: ValueId, choice: &Choice) {
    let main = model.main_id();
    let given = model.add_input(main, Model::elem_info(choice.input.clone(), DType::Int64));
    model.replace_uses_where(v, given, |u| !matches!(u, Use::Output(g, _) if *g == main));
    if choice.added {
        let info = Model::elem_info(choice.output.clone(), DType::Int64);
        model.add_output(main, info, v);
    }
}

/// What is one choice among indices.
#[derive(Clone, Copy)]
enum One {
    /// An index, wherever along this axis it stands.
    Along(i64),
    /// A row of indices, wherever it stands.
    Row,
    /// An index at its place.
    There,
}

fn one(model: &Model, chosen: ValueId) -> One {
    match model.value(chosen).producer().map(|id| model.node(id)) {
        Some(n) if n.is("TopK") => One::Along(n.int_or("axis", -1)),
        Some(n) if n.is("NonMaxSuppression") => One::Row,
        _ => One::There,
    }
}

/// How many choices two tensors of indices have in common, and how many there are in the larger.
fn common(a: &Tensor, b: &Tensor, one: One) -> (usize, usize) {
    let counted = |t: &Tensor| {
        let (dims, ints) = (t.dims(), t.ints().unwrap_or_default());
        let last = dims.last().map_or(1, |d| (*d).max(1));
        // A choice is so many numbers, and its group goes on for so many places, so many numbers apart.
        let (size, along, behind) = match one {
            One::Row => (last, ints.len().max(1), 1),
            One::There => (1, 1, ints.len().max(1)),
            One::Along(axis) => {
                let axis = if axis < 0 { axis + dims.len() as i64 } else { axis } as usize;
                let behind = dims.iter().skip(axis.saturating_add(1)).product::<usize>().max(1);
                (1, dims.get(axis).map_or(1, |d| (*d).max(1)), behind)
            }
        };
        let group = |i: usize| i / (along * behind) * behind + i % behind;
        let mut all: BTreeMap<(usize, Vec<i64>), usize> = BTreeMap::new();
        for (i, row) in ints.chunks(size).enumerate() {
            *all.entry((group(i), row.to_vec())).or_default() += 1;
        }
        (all, ints.len() / size)
    };
    let ((a, n), (b, m)) = (counted(a), counted(b));
    let both = a.iter().map(|(k, n)| b.get(k).map_or(0, |m| *n.min(m)));
    (both.sum(), n.max(m))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_counted_wherever_their_order_does_not_matter() {
        let of = |dims: &[usize], x: Vec<i64>| Tensor::new(dims, x);
        let (a, b) = (of(&[2, 3], vec![1, 2, 3, 4, 5, 6]), of(&[2, 3], vec![3, 1, 9, 1, 5, 6]));
        assert_eq!(common(&a, &b, One::Along(-1)), (4, 6), "two in each row, in any order");
        assert_eq!(common(&a, &b, One::Along(1)), (4, 6));
        assert_eq!(common(&a, &b, One::Along(0)), (3, 6), "one in each column");
        assert_eq!(common(&a, &b, One::There), (2, 6));
        let (some, more) = (of(&[1, 3], vec![0, 1, 7]), of(&[3, 3], vec![0, 0, 7, 0, 1, 7, 0, 1, 7]));
        assert_eq!(
            common(&some, &more, One::Row),
            (1, 3),
            "a row counts as often as it is there"
        );
        assert_eq!(common(&of(&[0, 3], vec![]), &of(&[0, 3], vec![]), One::Row), (0, 0));
    }
}
