//! Where a trial may begin: values of the model as it was, kept for the samples on which layers are tried one by one.
//!
//! What comes before the first change of a changed model gives what it gave, and need not be run again. The main graph is cut
//! at a few places, where few values pass; the values that pass are kept, and take the part of inputs for what comes behind.

use crate::data::Sample;
use crate::engine::Engine;
use crate::ir::{DType, Model, NodeId, Tensor, Use, ValueId};
use crate::parallel::in_order;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Into so many stretches the graph is cut at most.
const STRETCHES: usize = 8;
/// Bytes that are kept at most, of all samples.
const KEPT: usize = 64 << 20;

/// The values that pass some places of a model.
pub struct Checkpoints {
    model: Model,
    /// In their order.
    cuts: Vec<Cut>,
}

/// A place in the order of the nodes.
struct Cut {
    /// Before this node.
    at: usize,
    /// What passes.
    values: Vec<ValueId>,
    /// Their tensors, for every sample.
    kept: Vec<Vec<Tensor>>,
}

/// A changed model without what comes before its first change.
pub struct Late<'a> {
    /// Its inputs are those of the model, and the values that pass.
    pub model: Model,
    names: Vec<String>,
    cut: &'a Cut,
}

impl Late<'_> {
    /// The inputs for a sample of this number.
    pub fn sample(&self, number: usize, sample: &Sample) -> Sample {
        let passing = self.names.iter().cloned().zip(self.cut.kept[number].iter().cloned());
        sample.clone().into_iter().chain(passing).collect()
    }
}

impl Checkpoints {
    /// Runs the model over the samples, of which there is one at least; `None` where there is nothing to keep.
    ///
    /// # Errors
    /// When the engine does not run the model, or a sample fails.
    pub fn new(model: &Model, samples: &[Sample], engine: &dyn Engine, threads: usize) -> Result<Option<Checkpoints>> {
        let first = samples.first().context("no sample")?;
        let mut cuts = places(model, model.main().nodes());
        let values = |cuts: &[Cut]| -> Vec<ValueId> {
            let all: BTreeSet<ValueId> = cuts.iter().flat_map(|c| c.values.iter().copied()).collect();
            all.into_iter().collect()
        };
        let all = values(&cuts);
        let mut session = engine.load(model, &all, first)?;
        let looked_at = session.run(first)?;
        let known: BTreeMap<ValueId, &Tensor> = all.iter().copied().zip(&looked_at).collect();
        // Integers tell shapes, and shapes that come in as inputs are not known when the engine plans.
        cuts.retain(|c| c.values.iter().all(|v| known[v].dtype() == DType::Float));
        let bytes = |v: &ValueId| known[v].byte_len() * samples.len();
        while values(&cuts).iter().map(bytes).sum::<usize>() > KEPT {
            let heaviest = (0..cuts.len()).max_by_key(|k| cuts[*k].values.iter().map(bytes).sum::<usize>());
            if let Some(k) = heaviest {
                cuts.remove(k);
            }
        }
        let rest = values(&cuts);
        if rest.is_empty() {
            return Ok(None);
        }
        let mut keep = |known: &BTreeMap<ValueId, &Tensor>| {
            for cut in &mut cuts {
                cut.kept.push(cut.values.iter().map(|v| known[v].clone()).collect());
            }
        };
        keep(&known);
        if rest != all {
            session = engine.load(model, &rest, first)?;
        }
        in_order(
            samples.len() - 1,
            threads,
            |i| session.run(&samples[i + 1]),
            |_, tensors| {
                keep(&rest.iter().copied().zip(&tensors).collect());
                Ok(())
            },
        )?;
        let model = model.clone();
        Ok(Some(Checkpoints { model, cuts }))
    }

    /// The rest of a changed model behind the last cut before its first change; `None` where it has to be run as a whole, or
    /// for more samples than values were kept of.
    pub fn late(&self, changed: &Model, samples: usize) -> Option<Late<'_>> {
        let order = self.model.main().nodes().iter();
        let same = order.take_while(|id| self.is_same(changed, **id)).count();
        let cut = self.cuts.iter().rfind(|c| c.at <= same && samples <= c.kept.len())?;
        let (model, inputs) = behind(changed, &cut.values);
        let names = inputs.iter().map(|v| model.value(*v).name.clone()).collect();
        Some(Late { model, names, cut })
    }

    /// Whether a node computes what it did, from the same inputs. Of nodes with sub-graphs this is not asked.
    fn is_same(&self, changed: &Model, id: NodeId) -> bool {
        if !changed.is_alive(id) {
            return false;
        }
        let (was, is) = (self.model.node(id), changed.node(id));
        let tensor = |v: &ValueId| match (self.model.value(*v).tensor(), changed.value(*v).tensor()) {
            (Some(a), Some(b)) => a.is(b),
            (a, b) => a.is_none() && b.is_none(),
        };
        was.sub_graphs().next().is_none()
            && was.op == is.op
            && was.inputs() == is.inputs()
            && was.outputs() == is.outputs()
            && was.attrs.iter().map(|a| &a.proto).eq(is.attrs.iter().map(|a| &a.proto))
            && was.inputs().iter().flatten().all(tensor)
    }
}

/// A model that reads inputs in the place of these values, which are floats; and those inputs.
pub fn behind(model: &Model, values: &[ValueId]) -> (Model, Vec<ValueId>) {
    let mut model = model.clone();
    let main = model.main_id();
    let mut inputs = Vec::with_capacity(values.len());
    for v in values {
        let name = model.fresh_name("checkpoint");
        let input = model.add_input(main, Model::elem_info(name, DType::Float));
        model.replace_uses(*v, input);
        inputs.push(input);
    }
    (model, inputs)
}

/// Between as many layers with weights each, where fewest values pass.
fn places(model: &Model, order: &[NodeId]) -> Vec<Cut> {
    let spans = spans(model, order);
    let counts = counts(&spans, order.len());
    let has_weight = |id: &NodeId| {
        let inputs = model.node(*id).inputs().iter().flatten();
        let mut tensors = inputs.filter_map(|v| model.constant(*v));
        tensors.any(|t| t.dims().len() > 1)
    };
    let layers: Vec<usize> = (0..order.len()).filter(|i| has_weight(&order[*i])).collect();
    let stretch = layers.len().div_ceil(STRETCHES).max(1);
    // Up to the first layer of a stretch; anywhere behind the layer before it is as good.
    let ends = (stretch..layers.len()).step_by(stretch);
    let best = |k: usize| (layers[k - 1] + 1..=layers[k]).min_by_key(|at| (counts[*at], layers[k] - at));
    let cut = |at: usize| Cut {
        at,
        values: spans.iter().filter(|s| s.passes(at)).map(|s| s.value).collect(),
        kept: Vec::new(),
    };
    let all = ends.filter_map(best).map(cut);
    all.filter(|c| !c.values.is_empty()).collect()
}

/// Where a computed value is made and last read, by number of node.
pub struct Span {
    /// Which.
    pub value: ValueId,
    made: usize,
    last: usize,
}

impl Span {
    /// Made before a node, and read by it or later.
    pub fn passes(&self, at: usize) -> bool {
        self.made < at && at <= self.last
    }
}

/// The spans of all values that the nodes make, which are in an order of execution.
pub fn spans(model: &Model, order: &[NodeId]) -> Vec<Span> {
    let position: BTreeMap<NodeId, usize> = order.iter().enumerate().map(|(i, id)| (*id, i)).collect();
    // A node in a sub-graph reads where the node of the main graph stands that it is in.
    let reader = |mut id: NodeId| loop {
        match position.get(&id) {
            Some(at) => return Some(*at),
            None => id = model.graph(model.node(id).graph()).parent()?,
        }
    };
    let last = |v: ValueId| {
        let uses = model.value(v).uses().iter().map(|u| match u {
            Use::Node(id, _) => reader(*id).unwrap_or(order.len()),
            Use::Output(..) => order.len(),
        });
        uses.max()
    };
    let of = |(made, id): (usize, &NodeId)| {
        let outputs = model.node(*id).outputs().iter().flatten();
        let spans = outputs.filter_map(move |v| {
            Some(Span {
                value: *v,
                made,
                last: last(*v)?,
            })
        });
        spans.collect::<Vec<Span>>()
    };
    order.iter().enumerate().flat_map(of).collect()
}

/// How many values pass each of so many nodes.
pub fn counts(spans: &[Span], nodes: usize) -> Vec<usize> {
    let mut steps = vec![0isize; nodes + 2];
    for s in spans.iter().filter(|s| s.made < s.last) {
        steps[s.made + 1] += 1;
        steps[s.last + 1] -= 1;
    }
    let sums = steps.iter().scan(0isize, |sum, step| {
        *sum += step;
        Some(sum.unsigned_abs())
    });
    sums.collect()
}

/// A small model for tests.
#[cfg(all(test, feature = "tract"))]
pub mod testing {
    use super::*;
    use crate::engine::testing::Builder;

    pub fn ramp(dims: &[usize], step: f32) -> Tensor {
        let n: usize = dims.iter().product();
        Tensor::new(dims, (0..n).map(|i| (i as f32 * step).sin()).collect())
    }

    /// `h₀ = x`, `hᵢ₊₁ = Relu(hᵢ wᵢ) + hᵢ`, four layers; the weights, and the output.
    pub fn residual() -> (Builder, Vec<ValueId>, ValueId) {
        let mut b = Builder::new(13);
        let mut h = b.input("x", DType::Float, &[1, 3]);
        let mut weights = Vec::new();
        for i in 0..4 {
            let w = b.constant(&format!("w{i}"), ramp(&[3, 3], 0.3 + i as f32));
            let y = b.op("MatMul", &[h, w], vec![]);
            let y = b.op("Relu", &[y], vec![]);
            h = b.op("Add", &[y, h], vec![]);
            weights.push(w);
        }
        b.model.expose(&[h]);
        (b, weights, h)
    }
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::testing::{ramp, residual};
    use super::*;
    use crate::engine::testing::Builder;
    use crate::engine::tract::Tract;

    fn samples() -> Vec<Sample> {
        let one = |i: usize| [("x".to_owned(), ramp(&[1, 3], 1.0 + i as f32))].into_iter().collect();
        (0..3).map(one).collect()
    }

    /// The output for a sample.
    fn run(model: &Model, sample: &Sample) -> Vec<f32> {
        let out = model.main().outputs()[0].value;
        let session = Tract.load(model, &[out], sample).expect("it loads");
        session.run(sample).expect("it runs")[0]
            .floats()
            .expect("floats")
            .into_owned()
    }

    #[test]
    fn what_comes_before_a_change_is_not_run_again_and_outputs_are_the_same() {
        let (b, weights, _) = residual();
        let (model, samples) = (&b.model, samples());
        let made = Checkpoints::new(model, &samples, &Tract, 2).expect("it runs");
        let made = made.expect("something is kept");
        let firsts: Vec<Option<usize>> = weights
            .iter()
            .map(|w| {
                let mut changed = model.clone();
                changed.set_const(*w, ramp(&[3, 3], 0.7));
                let late = made.late(&changed, samples.len())?;
                for (i, sample) in samples.iter().enumerate() {
                    assert_eq!(
                        run(&late.model, &late.sample(i, sample)),
                        run(&changed, sample),
                        "{w:?}"
                    );
                }
                assert!(
                    made.late(&changed, samples.len() + 1).is_none(),
                    "of so many nothing is kept"
                );
                Some(late.cut.at)
            })
            .collect();
        assert_eq!(firsts, [None, Some(3), Some(6), Some(9)]);
    }

    #[test]
    fn other_nodes_and_other_inputs_are_changes_too() {
        let (b, weights, out) = residual();
        let samples = samples();
        let made = Checkpoints::new(&b.model, &samples, &Tract, 1)
            .expect("it runs")
            .expect("kept");
        let relu = b.model.main().nodes()[4];
        let at = |model: &Model| made.late(model, 1).map(|late| late.cut.at);
        let mut other = b.model.clone();
        other.node_mut(relu).op.name = "Neg".into();
        assert_eq!(at(&other), Some(3));
        let mut other = b.model.clone();
        let last = other.value(out).producer().expect("a node");
        other.set_input(last, 1, Some(weights[0]));
        assert_eq!(at(&other), Some(9), "what is read is known by its number");
        assert_eq!(at(&b.model), Some(9), "nothing changed: behind the last cut");
    }

    #[test]
    fn integers_are_not_kept() {
        let mut b = Builder::new(13);
        let x = b.input("x", DType::Float, &[1, 3]);
        let w = b.constant("w", ramp(&[3, 3], 0.3));
        let shape = b.op("Shape", &[x], vec![]);
        let y = b.op("MatMul", &[x, w], vec![]);
        let y = b.op("MatMul", &[y, w], vec![]);
        let y = b.op("Reshape", &[y, shape], vec![]);
        b.model.expose(&[y]);
        let made = Checkpoints::new(&b.model, &samples(), &Tract, 1).expect("it runs");
        assert!(made.is_none());
    }
}
