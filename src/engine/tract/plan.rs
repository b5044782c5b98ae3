//! A graph that tract has compiled, and how it is run: every wanted value is handed over when it is computed, and kept no
//! longer than the operators that read it need it. A network's inner values together are many times what it needs at
//! once.

use super::control::{self, Choice};
use super::graph::Flat;
use super::prepare::{self, Input, Ready};
use super::{convert, kernel, ops, quietly};
use crate::data::Sample;
use crate::engine::wanted;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tract_onnx::prelude::{Framework, InferenceModelExt, IntoTValue, TValue, TVec, TypedModel, TypedSimplePlan};
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::plan::eval;
use tract_onnx::tract_hir::internal::{InferenceFact, OutletId};

/// No value may take more bytes.
const LARGEST: u128 = 4 << 30;

/// A compiled graph.
pub struct Plan {
    compiled: Compiled,
    inputs: Vec<Input>,
    wanted: usize,
    /// What decides on the way through `If`s and `Loop`s, which is computed behind the wanted values; the plan is right when it has these values.
    choices: Vec<Choice>,
}

impl Plan {
    /// Compiles for the shapes of a sample, and the way that it takes through `If`s and `Loop`s.
    ///
    /// # Errors
    /// When tract does not take the graph.
    pub fn for_sample(mut flat: Flat, names: &[String], sample: &Sample) -> Result<Plan> {
        let choices = control::resolve(&mut flat, &|flat, conditions| {
            let mut flat = flat.clone();
            prepare::set_outputs(&mut flat, conditions.iter());
            let found = Plan::new(flat, conditions.len(), Vec::new(), sample)?.compute(sample)?;
            let found = found.unwrap_or_default().into_iter();
            found.map(|v| v.cast_to_scalar::<i64>()).collect()
        })?;
        prepare::set_outputs(&mut flat, names.iter().chain(choices.iter().map(|c| &c.0)));
        Plan::new(flat, names.len(), choices, sample)
    }

    fn new(flat: Flat, wanted: usize, choices: Vec<Choice>, sample: &Sample) -> Result<Plan> {
        let compile = |exact| -> Result<(Compiled, Vec<Input>)> {
            let ready = prepare::ready(flat.clone(), sample, exact)?;
            compile(ready)
        };
        // Shapes that depend on data have no int64 value before the run: there tract's symbolic dimensions serve.
        let (compiled, inputs) = quietly(|| compile(true)).or_else(|e| quietly(|| compile(false)).map_err(|_| e))?;
        Ok(Plan {
            compiled,
            inputs,
            wanted,
            choices,
        })
    }

    /// True when it is right for every sample of its dimensions, whatever way they take: what decides on it is the same for all.
    pub fn serves_all(&self) -> bool {
        let known = |k: usize| self.compiled.known.iter().any(|(other, _)| *other == k);
        (0..self.choices.len()).all(|k| known(self.wanted + k))
    }

    /// The names of the operators that run.
    #[cfg(test)]
    pub fn operators(&self) -> Vec<String> {
        let nodes = self.compiled.plan.model().nodes().iter();
        nodes.map(|n| n.op.name().into_owned()).collect()
    }

    /// The wanted values; `None` when the sample takes another way.
    ///
    /// # Errors
    /// When tract fails on the sample.
    pub fn compute(&self, sample: &Sample) -> Result<Option<Vec<TValue>>> {
        let mut values: Vec<Option<TValue>> = vec![None; self.wanted + self.choices.len()];
        self.run(sample, &mut |k, value| {
            *values.get_mut(k).context("tract gave too many values")? = Some(value);
            Ok(())
        })?;
        let all: Option<Vec<TValue>> = values.into_iter().collect();
        let mut values = all.context("tract gave too few values")?;
        let conditions = values.split_off(self.wanted);
        for (v, (_, was)) in conditions.iter().zip(&self.choices) {
            if v.cast_to_scalar::<i64>()? != *was {
                return Ok(None);
            }
        }
        Ok(Some(values))
    }

    /// Hands over every wanted value, then the conditions, by number, each as soon as it is computed.
    ///
    /// # Errors
    /// When tract fails on the sample, and those of `each`.
    pub fn run(&self, sample: &Sample, each: &mut dyn FnMut(usize, TValue) -> Result<()>) -> Result<()> {
        let Compiled { plan, made, known } = &self.compiled;
        for (k, value) in known {
            each(*k, value.clone())?;
        }
        let feeds = self.inputs.iter().map(|input| feed(input, sample));
        let feeds: TVec<TValue> = feeds.collect::<Result<_>>()?;
        plan.spawn()?
            .run_plan_with_eval(feeds, |cx, state, node, inputs| -> Result<TVec<TValue>> {
                let values = eval(cx, state, node, inputs)?;
                for (k, slot) in made.get(&node.id).into_iter().flatten() {
                    each(*k, values.get(*slot).context("tract gave too few values")?.clone())?;
                }
                Ok(values)
            })?;
        Ok(())
    }
}

struct Compiled {
    plan: Arc<TypedSimplePlan>,
    /// For a node, the numbers of the values that it computes, and which of its outputs each one is.
    made: BTreeMap<usize, Vec<(usize, usize)>>,
    /// Values that are the same in every run.
    known: Vec<(usize, TValue)>,
}

impl Compiled {
    /// The plan itself keeps only outputs that nothing reads.
    fn new(mut model: TypedModel) -> Result<Compiled> {
        let all = model.outputs.clone();
        let mut known = Vec::new();
        let mut made: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for (k, outlet) in all.iter().enumerate() {
            match model.node(outlet.node).op_as::<Const>() {
                Some(c) => known.push((k, c.val().clone().into_tvalue())),
                None => made.entry(outlet.node).or_default().push((k, outlet.slot)),
            }
        }
        let last = |o: &&OutletId| model.outlet_successors(**o).is_empty();
        let sinks: Vec<OutletId> = all.iter().filter(last).copied().collect();
        model.select_output_outlets(&sinks)?;
        let mut plan = TypedSimplePlan::new(model)?;
        let run: BTreeSet<usize> = plan.order_without_consts().iter().copied().collect();
        if !made.keys().all(|node| run.contains(node)) {
            plan = TypedSimplePlan::new(plan.model().clone().with_output_outlets(&all)?)?;
        }
        Ok(Compiled { plan, made, known })
    }
}

fn compile(ready: Ready) -> Result<(Compiled, Vec<Input>)> {
    let mut onnx = tract_onnx::onnx()
        .with_ignore_value_info(true)
        .with_ignore_output_shapes(true);
    ops::register(&mut onnx);
    let Ready { inputs, proto, tensors } = ready;
    let mut proto = onnx.proto_model_for_read(&mut &*proto)?;
    let graph = proto.graph.as_mut().context("no graph")?;
    lacking(graph, &onnx)?;
    let mut beside = convert::Beside::default();
    for (name, t) in tensors {
        graph.initializer.push(beside.message(name, t)?);
    }
    onnx.provider = Arc::new(beside);
    let parsed = onnx.parse(&proto, Some(convert::FOLDER))?;
    drop((proto, onnx));
    ensure!(
        parsed.unresolved_inputs.is_empty(),
        "no such value: {}",
        parsed.unresolved_inputs.join(", ")
    );
    let mut model = parsed.model;
    let sources = model.input_outlets()?.to_vec();
    ensure!(
        sources.len() == inputs.len(),
        "tract sees {} inputs, not {}",
        sources.len(),
        inputs.len()
    );
    for (i, (source, input)) in sources.iter().zip(&inputs).enumerate() {
        let name = &model.node(source.node).name;
        ensure!(*name == input.name, "tract sees input {name:?}, not {:?}", input.name);
        let dtype = convert::datum_type(input.dtype)?;
        model.set_input_fact(i, InferenceFact::dt_shape(dtype, &input.dims))?;
    }
    let typed = model.into_typed()?;
    affordable(&typed)?;
    // Rewrites of products whose axes are all 1 fail in tract 0.23.9; as it was written, the graph is slower, and right.
    let compiled = optimized(typed.clone()).and_then(Compiled::new);
    Ok((compiled.or_else(|_| Compiled::new(typed))?, inputs))
}

fn optimized(model: TypedModel) -> Result<TypedModel> {
    let mut model = model.into_decluttered()?;
    kernel::replace(&mut model)?;
    model.optimize()?;
    Ok(model)
}

/// Refuses a graph one of whose values would not fit the memory: its shapes may come from a file that is not to be trusted.
fn affordable(model: &TypedModel) -> Result<()> {
    for node in model.nodes() {
        for output in &node.outputs {
            let Some(dims) = output.fact.shape.as_concrete() else {
                continue;
            };
            let size = output.fact.datum_type.size_of() as u128;
            let bytes = dims.iter().try_fold(size, |n, d| n.checked_mul(*d as u128));
            let fits = bytes.is_some_and(|n| n <= LARGEST);
            ensure!(
                fits,
                "the output of node {:?} would have dimensions {dims:?}, more than {} GiB",
                node.name,
                LARGEST >> 30
            );
        }
    }
    Ok(())
}

/// Names the operators that tract does not have. It finds them by their names alone, whatever the domain.
fn lacking(graph: &tract_onnx::pb::GraphProto, onnx: &tract_onnx::Onnx) -> Result<()> {
    let mut lacking = BTreeSet::new();
    for n in &graph.node {
        let own = matches!(n.domain.as_str(), "" | "ai.onnx" | "ai.onnx.ml");
        let contributed = n.domain == "com.microsoft" && n.op_type != "Attention";
        if !(own || contributed) || !onnx.op_register.0.contains_key(&n.op_type) {
            let domain = if own { String::new() } else { format!("{}.", n.domain) };
            lacking.insert(format!("{domain}{} (node {:?})", n.op_type, n.name));
        }
    }
    let names: Vec<String> = lacking.into_iter().take(5).collect();
    ensure!(names.is_empty(), "tract has no operator {}", names.join(", "));
    Ok(())
}

fn feed(input: &Input, sample: &Sample) -> Result<TValue> {
    let t = wanted::input(sample, &input.name)?;
    ensure!(
        t.dims() == input.dims,
        "input {:?} has dimensions {:?}, but the session was made for {:?}; give samples of one shape",
        input.name,
        t.dims(),
        input.dims
    );
    convert::to_tract(t, input.dtype).with_context(|| format!("input {:?}", input.name))
}
