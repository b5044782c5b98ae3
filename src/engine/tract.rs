//! The engine inside the binary: tract (<https://github.com/sonos/tract>). The only place that names it.
//!
//! tract gets a copy of the model, prepared by `prepare`: the wanted values are its outputs, and what tract lacks or
//! computes wrongly is replaced by something of the same meaning. One optimized plan serves all threads; each run has a
//! state of its own, and tract starts no threads.
//!
//! float16 and bfloat16 are computed in f32: outputs that the model declares as such are rounded on the way out.
//! tract keeps a copy of the weights of its own, so a session costs about twice the weights while it is made, and once after.

mod prepare;

use super::{Engine, NotRun, Session};
use crate::data::Sample;
use crate::ir::{DType, Model, Tensor, ValueId};
use crate::parallel::panic_text;
use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use prepare::{Give, Prepared};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Once};
use tract_onnx::prelude::{
    DatumType, Framework, InferenceModelExt, IntoTValue, TValue, Tensor as TractTensor, TypedModel, TypedSimplePlan,
};
use tract_onnx::tract_hir::internal::InferenceFact;

/// tract as an [`Engine`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Tract;

impl Engine for Tract {
    fn name(&self) -> String {
        "tract 0.23.9".to_owned()
    }

    fn load(&self, model: &Model, wanted: &[ValueId], like: &Sample) -> Result<Box<dyn Session>, NotRun> {
        let load = || -> Result<Running> {
            let prepared = prepare::prepare(model, wanted, like)?;
            Running::new(prepared)
        };
        let running = quietly(load).map_err(|e| NotRun(short(&e)))?;
        Ok(Box::new(running))
    }
}

/// A model that tract has compiled.
struct Running {
    /// `None` when nothing that is wanted needs computing.
    plan: Option<Arc<TypedSimplePlan>>,
    inputs: Vec<prepare::Input>,
    /// What the plan's outputs are in the original.
    outputs: Vec<Option<DType>>,
    give: Vec<Give>,
}

impl Running {
    fn new(prepared: Prepared) -> Result<Running> {
        let Prepared {
            inputs,
            outputs,
            give,
            proto,
            tensors,
        } = prepared;
        let plan = if outputs.is_empty() {
            None
        } else {
            Some(compile(&proto, tensors, &inputs)?)
        };
        Ok(Running {
            plan,
            inputs,
            outputs,
            give,
        })
    }

    fn compute(&self, sample: &Sample) -> Result<Vec<Tensor>> {
        let Some(plan) = &self.plan else { return Ok(Vec::new()) };
        let feeds = self.inputs.iter().map(|input| feed(input, sample));
        let feeds = feeds.collect::<Result<Vec<_>>>()?;
        let results = plan.run(feeds.into_iter().collect())?;
        ensure!(
            results.len() == self.outputs.len(),
            "tract gave {} values, not {}",
            results.len(),
            self.outputs.len()
        );
        let pairs = results.into_iter().zip(&self.outputs);
        pairs.map(|(t, dtype)| from_tract(t, *dtype)).collect()
    }
}

impl Session for Running {
    fn run(&self, sample: &Sample) -> Result<Vec<Tensor>> {
        let computed = quietly(|| self.compute(sample)).map_err(|e| anyhow!("tract: {}", short(&e)))?;
        let give = |g: &Give| match g {
            Give::Computed(i) => computed.get(*i).cloned().context("tract gave too few values"),
            Give::Input(name) => Ok(sample_input(sample, name)?.clone()),
            Give::Const(t) => Ok(t.clone()),
        };
        self.give.iter().map(give).collect()
    }
}

fn compile(proto: &[u8], tensors: Vec<(String, Tensor)>, inputs: &[prepare::Input]) -> Result<Arc<TypedSimplePlan>> {
    let onnx = tract_onnx::onnx()
        .with_ignore_value_info(true)
        .with_ignore_output_shapes(true);
    let mut proto = onnx.proto_model_for_read(&mut &*proto)?;
    let graph = proto.graph.as_mut().context("no graph")?;
    for (name, t) in tensors {
        graph.initializer.push(tract_onnx::pb::TensorProto {
            name,
            dims: t.dims().iter().map(|&d| d as i64).collect(),
            data_type: t.dtype() as i32,
            raw_data: t.raw().into_owned(),
            ..Default::default()
        });
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
    for (i, (source, input)) in sources.iter().zip(inputs).enumerate() {
        let name = &model.node(source.node).name;
        ensure!(*name == input.name, "tract sees input {name:?}, not {:?}", input.name);
        let dtype = datum_type(input.dtype)?;
        model.set_input_fact(i, InferenceFact::dt_shape(dtype, &input.dims))?;
    }
    let model: TypedModel = model.into_optimized()?;
    Ok(TypedSimplePlan::new(model)?)
}

fn sample_input<'a>(sample: &'a Sample, name: &str) -> Result<&'a Tensor> {
    sample
        .get(name)
        .with_context(|| format!("the sample has no input {name:?}"))
}

fn feed(input: &prepare::Input, sample: &Sample) -> Result<TValue> {
    let t = sample_input(sample, &input.name)?;
    ensure!(
        t.dims() == input.dims,
        "input {:?} has dimensions {:?}, but the session was made for {:?}; give samples of one shape",
        input.name,
        t.dims(),
        input.dims
    );
    to_tract(t, input.dtype).with_context(|| format!("input {:?}", input.name))
}

fn to_tract(t: &Tensor, dtype: DType) -> Result<TValue> {
    let t = prepare::as_computed(t)?;
    ensure!(
        t.dtype() == dtype,
        "is {}, not {}",
        t.dtype().as_str_name(),
        dtype.as_str_name()
    );
    let dt = datum_type(dtype)?;
    let raw = t.raw();
    let raw: &[u8] = &raw;
    if dtype == DType::Bool {
        let flags: Vec<bool> = raw.iter().map(|b| *b != 0).collect();
        return Ok(TractTensor::from_shape(t.dims(), &flags)?.into_tvalue());
    }
    let mut out = TractTensor::zero_dt(dt, t.dims())?;
    ensure!(
        out.as_bytes().len() == raw.len(),
        "has a size that does not fit its dimensions"
    );
    out.as_bytes_mut().copy_from_slice(raw);
    Ok(out.into_tvalue())
}

fn datum_type(dtype: DType) -> Result<DatumType> {
    Ok(match dtype {
        DType::Float => DatumType::F32,
        DType::Double => DatumType::F64,
        DType::Int64 => DatumType::I64,
        DType::Int32 => DatumType::I32,
        DType::Int16 => DatumType::I16,
        DType::Int8 => DatumType::I8,
        DType::Uint64 => DatumType::U64,
        DType::Uint32 => DatumType::U32,
        DType::Uint16 => DatumType::U16,
        DType::Uint8 => DatumType::U8,
        DType::Bool => DatumType::Bool,
        other => bail!("tract has no type {}", other.as_str_name()),
    })
}

struct Held(TValue);
impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A tract tensor as one of ours, of type `want` where it is known and tract used another integer or float type.
fn from_tract(t: TValue, want: Option<DType>) -> Result<Tensor> {
    let natural = match t.datum_type().unquantized() {
        DatumType::F16 => return from_tract(cast(&t, DatumType::F32)?, want),
        DatumType::TDim => return from_tract(cast(&t, DatumType::I64)?, want),
        DatumType::F32 => DType::Float,
        DatumType::F64 => DType::Double,
        DatumType::I64 => DType::Int64,
        DatumType::I32 => DType::Int32,
        DatumType::I16 => DType::Int16,
        DatumType::I8 => DType::Int8,
        DatumType::U64 => DType::Uint64,
        DatumType::U32 => DType::Uint32,
        DatumType::U16 => DType::Uint16,
        DatumType::U8 => DType::Uint8,
        DatumType::Bool => DType::Bool,
        other => bail!("tract gave a value of type {other:?}"),
    };
    if let Some(want) = want.filter(|w| *w != natural) {
        match (natural, want) {
            (DType::Float, DType::Float16 | DType::Bfloat16) => return rounded(&from_tract(t, None)?, want),
            (DType::Float, DType::Double) | (DType::Double, DType::Float) => {
                return from_tract(cast(&t, datum_type(want)?)?, None);
            }
            (DType::Float | DType::Double | DType::Bool, _) | (_, DType::Float | DType::Double | DType::Bool) => {}
            _ if datum_type(want).is_ok() => return from_tract(cast(&t, datum_type(want)?)?, None),
            _ => {}
        }
    }
    ensure!(t.is_plain_ram(), "tract gave a value that is no plain tensor");
    let dims = t.shape().to_vec();
    Tensor::from_raw(natural, &dims, Bytes::from_owner(Held(t)))
}

fn cast(t: &TValue, to: DatumType) -> Result<TValue> {
    Ok(t.cast_to_dt(to)?.into_owned().into_tvalue())
}

/// A float tensor rounded to a 16-bit type.
fn rounded(t: &Tensor, to: DType) -> Result<Tensor> {
    let x = t.floats().context("float data")?;
    Ok(match to {
        DType::Float16 => Tensor::new(t.dims(), x.iter().map(|&x| half::f16::from_f32(x)).collect()),
        _ => Tensor::new(t.dims(), x.iter().map(|&x| half::bf16::from_f32(x)).collect()),
    })
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
    let mut text = parts.join(": ");
    if let Some((at, _)) = text.char_indices().nth(400) {
        text.truncate(at);
        text.push('…');
    }
    text
}
