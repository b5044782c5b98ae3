//! The engine inside the binary: tract (<https://github.com/sonos/tract>). The only place that names it.
//!
//! tract gets a copy of the model, prepared by `prepare`: the wanted values are its outputs, and what tract lacks or
//! computes wrongly is replaced by something of the same meaning. One optimized plan serves all threads; each run has a
//! state of its own, and tract starts no threads.
//!
//! float16 and bfloat16 are computed in f32: outputs that the model declares as such are rounded on the way out.
//! tract keeps a copy of the weights of its own, so a session costs about twice the weights while it is made, and once after.

mod branches;
mod convert;
mod dequantize;
mod graph;
mod nbits;
mod ops;
mod prepare;
mod shadow;

use super::wanted::{self, gather};
use super::{Engine, NotRun, Session};
use crate::data::Sample;
use crate::ir::{Model, Tensor, ValueId};
use crate::parallel::panic_text;
use anyhow::{Context, Result, anyhow, ensure};
use branches::Choice;
use graph::Flat;
use prepare::{Input, Job, Ready};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Once};
use tract_onnx::prelude::{Framework, InferenceModelExt, TValue, TVec, TypedSimplePlan};
use tract_onnx::tract_hir::internal::InferenceFact;

/// tract as an [`Engine`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Tract;

impl Engine for Tract {
    fn name(&self) -> String {
        "tract 0.23.9".to_owned()
    }

    fn load(&self, model: &Model, wanted: &[ValueId], like: &Sample) -> Result<Box<dyn Session>, NotRun> {
        let load = || Running::new(Job::new(model, wanted, like)?, like);
        let running = quietly(load).map_err(|e| NotRun(short(&e)))?;
        Ok(Box::new(running))
    }
}

/// A model that tract has compiled.
struct Running {
    job: Job,
    /// One for every combination of branches seen; empty when nothing needs computing.
    plans: Mutex<Vec<Arc<Plan>>>,
}

impl Running {
    fn new(mut job: Job, like: &Sample) -> Result<Running> {
        let mut plans = Vec::new();
        if let Some(flat) = job.flat.take() {
            let plan = Plan::for_sample(flat.clone(), &job.names, like)?;
            if !plan.choices.is_empty() {
                job.flat = Some(flat);
            }
            plans.push(Arc::new(plan));
        }
        Ok(Running {
            job,
            plans: Mutex::new(plans),
        })
    }

    fn compute(&self, sample: &Sample) -> Result<Vec<TValue>> {
        let plans = self.plans.lock().map_or_else(|e| e.into_inner().clone(), |p| p.clone());
        for plan in &plans {
            match (plan.compute(sample), &self.job.flat) {
                (Ok(Some(values)), _) => return Ok(values),
                (Err(e), None) => return Err(e),
                _ => {} // the branches of another sample
            }
        }
        let Some(flat) = &self.job.flat else {
            return Ok(Vec::new());
        };
        let plan = Arc::new(Plan::for_sample(flat.clone(), &self.job.names, sample)?);
        let values = plan.compute(sample)?.context("an If takes another branch each time")?;
        self.plans.lock().unwrap_or_else(|e| e.into_inner()).push(plan);
        Ok(values)
    }
}

impl Session for Running {
    fn run(&self, sample: &Sample) -> Result<Vec<Tensor>> {
        let run = || {
            let values = self.compute(sample)?;
            let typed = values.into_iter().zip(&self.job.dtypes);
            typed.map(|(v, dtype)| convert::from_tract(v, *dtype)).collect()
        };
        let computed: Vec<Tensor> = quietly(run).map_err(|e| anyhow!("tract: {}", short(&e)))?;
        gather(&self.job.give, &computed, sample)
    }
}

/// A compiled graph.
struct Plan {
    plan: Arc<TypedSimplePlan>,
    inputs: Vec<Input>,
    wanted: usize,
    /// Its last outputs are conditions of `If`s, and the plan is right when they have these values.
    choices: Vec<Choice>,
}

impl Plan {
    /// Compiles for the shapes of a sample, and the branches that it takes.
    fn for_sample(mut flat: Flat, names: &[String], sample: &Sample) -> Result<Plan> {
        let choices = branches::resolve(&mut flat, &|flat, conditions| {
            let mut flat = flat.clone();
            prepare::set_outputs(&mut flat, conditions.iter());
            let found = Plan::new(flat, conditions.len(), Vec::new(), sample)?.compute(sample)?;
            let found = found.unwrap_or_default().into_iter();
            found.map(|v| v.cast_to_scalar::<bool>()).collect()
        })?;
        prepare::set_outputs(&mut flat, names.iter().chain(choices.iter().map(|c| &c.0)));
        Plan::new(flat, names.len(), choices, sample)
    }

    fn new(flat: Flat, wanted: usize, choices: Vec<Choice>, sample: &Sample) -> Result<Plan> {
        let compile = |exact| -> Result<(Arc<TypedSimplePlan>, Vec<Input>)> {
            let ready = prepare::ready(flat.clone(), sample, exact)?;
            compile(ready)
        };
        // Shapes that depend on data have no int64 value before the run: there tract's symbolic dimensions serve.
        let (plan, inputs) = quietly(|| compile(true)).or_else(|e| quietly(|| compile(false)).map_err(|_| e))?;
        Ok(Plan {
            plan,
            inputs,
            wanted,
            choices,
        })
    }

    /// The wanted values; `None` when the sample takes other branches.
    fn compute(&self, sample: &Sample) -> Result<Option<Vec<TValue>>> {
        let feeds = self.inputs.iter().map(|input| feed(input, sample));
        let mut values = self.plan.run(feeds.collect::<Result<TVec<_>>>()?)?.into_vec();
        ensure!(
            values.len() == self.wanted + self.choices.len(),
            "tract gave {} values, not {}",
            values.len(),
            self.wanted + self.choices.len()
        );
        let conditions = values.split_off(self.wanted);
        for (v, (_, was)) in conditions.iter().zip(&self.choices) {
            if v.cast_to_scalar::<bool>()? != *was {
                return Ok(None);
            }
        }
        Ok(Some(values))
    }
}

fn compile(ready: Ready) -> Result<(Arc<TypedSimplePlan>, Vec<Input>)> {
    let mut onnx = tract_onnx::onnx()
        .with_ignore_value_info(true)
        .with_ignore_output_shapes(true);
    ops::register(&mut onnx);
    let Ready { inputs, proto, tensors } = ready;
    let mut proto = onnx.proto_model_for_read(&mut &*proto)?;
    let graph = proto.graph.as_mut().context("no graph")?;
    lacking(graph, &onnx)?;
    for (name, t) in tensors {
        graph.initializer.push(convert::to_proto(name, &t)?);
    }
    let parsed = onnx.parse(&proto, None)?;
    drop(proto);
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
    // Rewrites of products whose axes are all 1 fail in tract 0.23.9; as it was written, the graph is slower, and right.
    let plan = typed.clone().into_optimized().and_then(TypedSimplePlan::new);
    Ok((plan.or_else(|_| TypedSimplePlan::new(typed))?, inputs))
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

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Calls into tract: a panic there becomes an error, and is not printed.
fn quietly<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.with(Cell::get) {
                before(info);
            }
        }));
    });
    let outer = QUIET.with(|q| q.replace(true));
    let result = catch_unwind(AssertUnwindSafe(f));
    QUIET.with(|q| q.set(outer));
    result.unwrap_or_else(|p| Err(anyhow!("panicked: {}", panic_text(&*p))))
}

/// An error's chain in one short line.
fn short(e: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in e.chain() {
        let text = cause.to_string();
        let line = text.lines().next().unwrap_or_default().trim().to_owned();
        if !line.is_empty() && !parts.iter().any(|p| p.contains(&line)) {
            parts.push(line);
        }
    }
    super::one_line(&parts)
}

#[cfg(test)]
mod tests;
