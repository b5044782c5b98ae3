//! Runs of a model that changes from front to back: each begins where the last one ended.
//!
//! What is computed before the first layer that may still change stays what it is. The values that pass there are kept for every sample, and take the
//! part of inputs in the next run. So a run for every layer of a network costs, all together, about one run.

use super::checkpoints::{behind, counts, spans};
use crate::data::{Sample, Samples};
use crate::engine::{Engine, Session};
use crate::ir::{DType, Model, NodeId, Tensor, ValueId};
use crate::parallel::in_order;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// Bytes that are kept at most, of all samples.
const KEPT: usize = 64 << 20;

/// How far a model has been run, and what passes there.
#[derive(Default)]
pub struct Onward {
    /// Before this node.
    before: Option<NodeId>,
    /// The values, by name: what is inserted into the model may have another number in the next run.
    names: Vec<String>,
    /// Their tensors; nothing of samples that were not run so far.
    kept: Vec<Option<Vec<Tensor>>>,
}

/// A place in a model: before this node, what passes.
struct Place {
    before: NodeId,
    values: Vec<ValueId>,
}

/// A session, and what the inputs are called that are not the model's.
struct Run {
    session: Box<dyn Session>,
    names: Vec<String>,
}

impl Onward {
    /// Runs the model, as it is by now, over the first `n` samples: `work` gets the number of a sample and the values that are `wanted`.
    /// `rest` are the nodes that may change after this run; before them all stays as it is.
    ///
    /// # Errors
    /// When a sample fails, and those of `work` and `fold`. [`crate::engine::NotRun`] is in the chain when the engine does not run the model.
    pub fn run<T: Send>(
        &mut self,
        (model, wanted, rest): (&Model, &[ValueId], &[NodeId]),
        (samples, n): (&Samples, usize),
        (engine, threads): (&dyn Engine, usize),
        work: impl Fn(usize, &[Tensor]) -> Result<T> + Sync,
        mut fold: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        self.kept.resize_with(samples.len(), || None);
        let mut place = self.place(model, rest);
        let all: Vec<ValueId> = wanted
            .iter()
            .chain(place.iter().flat_map(|p| &p.values))
            .copied()
            .collect();
        let late = self.late(model, &all, samples, engine)?;
        let known = |i: usize| self.kept[i].as_ref().filter(|_| late.is_some());
        // Those that have come so far go on, too: a later run may want them.
        let far = self.kept.iter().take_while(|k| k.is_some()).count();
        let count = n.max(far);
        let early = match (0..count).find(|i| known(*i).is_none()) {
            Some(i) => Some(engine.load(model, &all, &samples.get(i)?)?),
            None => None,
        };
        let mut passing: Vec<Option<Vec<Tensor>>> = Vec::with_capacity(count);
        in_order(
            count,
            threads,
            |i| {
                let sample = samples.get(i)?;
                let mut values = match (known(i), &late) {
                    (Some(kept), Some(late)) => late.session.run(&with(sample, &late.names, kept))?,
                    _ => early.as_ref().context("a session")?.run(&sample)?,
                };
                let passing = values.split_off(wanted.len());
                let result = (i < n).then(|| work(i, &values)).transpose()?;
                Ok((result, passing))
            },
            |_, (result, values)| {
                let floats = values.iter().all(|t| t.dtype() == DType::Float);
                let bytes = count * values.iter().map(Tensor::byte_len).sum::<usize>();
                if !floats || bytes > KEPT {
                    // Integers tell shapes, and shapes that come in as inputs are not known when the engine plans.
                    place = None;
                }
                passing.push(place.is_some().then_some(values));
                result.map_or(Ok(()), &mut fold)
            },
        )?;
        if let Some(place) = place {
            self.before = Some(place.before);
            self.names = place.values.iter().map(|v| model.value(*v).name.clone()).collect();
            self.kept = passing;
            self.kept.resize_with(samples.len(), || None);
        }
        Ok(())
    }

    /// The place to keep values at next: behind the last one, up to the first node that may change, where fewest pass.
    fn place(&self, model: &Model, rest: &[NodeId]) -> Option<Place> {
        let order = model.topological(model.main_id()).ok()?;
        let at: BTreeMap<NodeId, usize> = order.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        let last = self.before.map_or(Some(0), |id| at.get(&id).copied())?;
        let first = rest.iter().filter_map(|id| at.get(id)).min().copied()?;
        let spans = spans(model, &order);
        let counts = counts(&spans, order.len());
        let best = (last + 1..=first).min_by_key(|at| (counts[*at], first - at))?;
        let values = spans.iter().filter(|s| s.passes(best)).map(|s| s.value);
        Some(Place {
            before: order[best],
            values: values.collect(),
        })
        .filter(|p| !p.values.is_empty())
    }

    /// A session that begins where values are kept; `None` where it cannot.
    fn late(&self, model: &Model, wanted: &[ValueId], samples: &Samples, engine: &dyn Engine) -> Result<Option<Run>> {
        let Some((i, kept)) = self.kept.iter().enumerate().find_map(|(i, k)| Some((i, k.as_ref()?))) else {
            return Ok(None);
        };
        let by_name: BTreeMap<&str, ValueId> = model.values().map(|(id, v)| (v.name.as_str(), id)).collect();
        let values: Option<Vec<ValueId>> = self.names.iter().map(|n| by_name.get(n.as_str()).copied()).collect();
        let Some(values) = values else { return Ok(None) };
        let (late, inputs) = behind(model, &values);
        let there: BTreeMap<ValueId, ValueId> = values.into_iter().zip(inputs.iter().copied()).collect();
        let wanted: Vec<ValueId> = wanted.iter().map(|v| *there.get(v).unwrap_or(v)).collect();
        let names: Vec<String> = inputs.iter().map(|v| late.value(*v).name.clone()).collect();
        let like = with(samples.get(i)?, &names, kept);
        // What another engine cannot run from the middle runs from the beginning.
        let session = engine.load(&late, &wanted, &like).ok();
        Ok(session.map(|session| Run { session, names }))
    }
}

/// A sample with tensors for other inputs.
fn with(mut sample: Sample, names: &[String], kept: &[Tensor]) -> Sample {
    sample.extend(names.iter().cloned().zip(kept.iter().cloned()));
    sample
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::super::checkpoints::testing::{ramp, residual};
    use super::*;
    use crate::data::Dataset;
    use crate::engine::tract::Tract;
    use crate::ir::Use;

    #[test]
    fn runs_that_begin_where_the_last_one_ended_give_the_same() {
        let (b, weights, out) = residual();
        let mut model = b.model.clone();
        let all = Dataset::synthetic(&model, 3, 6);
        let samples = all.all();
        let reader = |w: &ValueId| match model.value(*w).uses() {
            [Use::Node(id, _)] => *id,
            other => panic!("{other:?}"),
        };
        let layers: Vec<NodeId> = weights.iter().map(reader).collect();
        let mut onward = Onward::default();
        let mut places = Vec::new();
        for (k, w) in weights.iter().enumerate() {
            let product = model.node(layers[k]).output(0).expect("a product");
            // The last layers see more samples than the first ones.
            let n = if k < 2 { 3 } else { samples.len() };
            let run = |onward: &mut Onward| {
                let mut seen: Vec<Vec<Tensor>> = Vec::new();
                onward
                    .run(
                        (&model, &[product, out], &layers[k..]),
                        (&samples, n),
                        (&Tract, 2),
                        |i, values| Ok((i, values.to_vec())),
                        |(i, values)| {
                            assert_eq!(i, seen.len());
                            seen.push(values);
                            Ok(())
                        },
                    )
                    .expect("it runs");
                seen
            };
            let (late, whole) = (run(&mut onward), run(&mut Onward::default()));
            assert_eq!(late.len(), n);
            for (a, b) in late.iter().flatten().zip(whole.iter().flatten()) {
                assert_eq!(a.floats(), b.floats(), "layer {k}");
            }
            places.push((onward.before, onward.kept.iter().flatten().count()));
            model.set_const(*w, ramp(&[3, 3], 0.9 + k as f32));
        }
        let nodes = b.model.main().nodes();
        let behind = [(None, 0), (Some(nodes[3]), 3), (Some(nodes[6]), 6), (Some(nodes[9]), 6)];
        assert_eq!(places, behind);
    }
}
