//! ONNX Runtime (<https://onnxruntime.ai>) as a second engine: a library of the user's, loaded at run time. The only place
//! that names it.
//!
//! It gets the model as it is, with all its optimizations on, and one thread for each sample; wanted inner values become
//! outputs, which may keep it from fusing what lies around them. It runs what tract does not: 4-bit weights, blocked
//! DequantizeLinear, `com.microsoft` operators, loops, sequences inside.

mod graph;
mod library;
mod value;

use super::wanted::{Give, Wanted, gather, input};
use super::{Engine, NotRun, Session};
use crate::data::Sample;
use crate::ir::{Model, Tensor, ValueId};
use crate::onnx;
use anyhow::{Context, Result, anyhow, bail};
use library::{Library, library};
use ort::logging::LogLevel;
use ort::session::Session as Loaded;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::ValueType;
use std::ffi::CString;
use std::path::Path;
use value::Lent;

/// ONNX Runtime as an [`Engine`].
#[derive(Clone, Copy)]
pub struct Ort {
    library: &'static Library,
    threads: usize,
}

impl Ort {
    /// Loads the library from a file or folder, else from where `ORT_DYLIB_PATH` says, else from the active Python
    /// environment. A process has one.
    ///
    /// # Errors
    /// When there is none, or it is older than 1.24.
    pub fn open(path: Option<&Path>) -> Result<Ort> {
        let library = library(path)?;
        Ok(Ort { library, threads: 1 })
    }

    /// So many threads for one sample, instead of one.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Ort {
        Ort { threads, ..self }
    }

    fn builder(&self) -> Result<SessionBuilder> {
        let builder = Loaded::builder(&self.library.environment)?;
        let builder = builder.with_log_level(LogLevel::Fatal).map_err(text)?;
        let builder = builder
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(text)?;
        let builder = builder.with_intra_threads(self.threads).map_err(text)?;
        builder.with_inter_threads(1).map_err(text)
    }

    fn running(&self, model: &Model, wanted: &[ValueId], like: &Sample) -> Result<Running> {
        let Wanted { give, names, copy, .. } = Wanted::new(model, wanted, like, true)?;
        if names.is_empty() {
            return Running::new(None, &[], &[], give);
        }
        let ready = graph::ready(onnx::encode(&copy)?, &names)?;
        let mut builder = self.builder()?;
        for (name, weight) in &ready.weights {
            builder = builder.with_external_initializer(name, weight.value()).map_err(text)?;
        }
        let session = builder.commit_from_memory(&ready.proto)?;
        only_tensors(&session)?;
        let fed: Vec<String> = ready.inputs.into_iter().filter(|i| like.contains_key(i)).collect();
        let mut running = Running::new(Some(session), &fed, &names, give)?;
        running._weights = ready.weights.into_iter().map(|(_, w)| w).collect();
        Ok(running)
    }

    fn running_file(&self, path: &Path, like: &Sample) -> Result<Running> {
        let session = self.builder()?.commit_from_file(path)?;
        only_tensors(&session)?;
        let names = |all: &[ort::value::Outlet]| all.iter().map(|o| o.name().to_owned()).collect::<Vec<_>>();
        let (inputs, outputs) = (names(session.inputs()), names(session.outputs()));
        let fed: Vec<String> = inputs.into_iter().filter(|i| like.contains_key(i)).collect();
        let give = (0..outputs.len()).map(Give::Computed).collect();
        Running::new(Some(session), &fed, &outputs, give)
    }
}

impl Engine for Ort {
    fn name(&self) -> String {
        format!("ONNX Runtime {}", self.library.version)
    }

    fn load(&self, model: &Model, wanted: &[ValueId], like: &Sample) -> Result<Box<dyn Session>, NotRun> {
        let running = self.running(model, wanted, like).map_err(|e| NotRun(short(&e)))?;
        Ok(Box::new(running))
    }

    fn load_file(&self, path: &Path, like: &Sample) -> Result<Box<dyn Session>, NotRun> {
        let running = self.running_file(path, like).map_err(|e| NotRun(short(&e)))?;
        Ok(Box::new(running))
    }
}

/// A model that ONNX Runtime has loaded.
struct Running {
    /// None when nothing needs computing. Dropped before the weights that it reads.
    session: Option<Loaded>,
    _weights: Vec<Lent>,
    inputs: Vec<(String, CString)>,
    outputs: Vec<CString>,
    give: Vec<Give>,
}

impl Running {
    fn new(session: Option<Loaded>, inputs: &[String], outputs: &[String], give: Vec<Give>) -> Result<Running> {
        let c = |name: &String| CString::new(name.as_str()).with_context(|| format!("name {name:?}"));
        Ok(Running {
            session,
            _weights: Vec::new(),
            inputs: inputs.iter().map(|n| Ok((n.clone(), c(n)?))).collect::<Result<_>>()?,
            outputs: outputs.iter().map(c).collect::<Result<_>>()?,
            give,
        })
    }
}

impl Session for Running {
    fn run(&self, sample: &Sample) -> Result<Vec<Tensor>> {
        let Some(session) = &self.session else {
            return gather(&self.give, &[], sample);
        };
        let feed = |(name, c): (&str, _)| {
            let lent = Lent::new(input(sample, name)?).with_context(|| format!("input {name:?}"))?;
            Ok((c, lent))
        };
        let inputs = self.inputs.iter().map(|(name, c)| (name.as_str(), c));
        let feeds: Vec<(&CString, Lent)> = inputs.map(feed).collect::<Result<_>>()?;
        let computed =
            value::run(session, &feeds, &self.outputs).map_err(|e| anyhow!("ONNX Runtime: {}", short(&e)))?;
        gather(&self.give, &computed, sample)
    }
}

/// Samples are tensors, and so is what is compared.
fn only_tensors(session: &Loaded) -> Result<()> {
    for (what, all) in [("input", session.inputs()), ("output", session.outputs())] {
        if let Some(o) = all.iter().find(|o| !matches!(o.dtype(), ValueType::Tensor { .. })) {
            bail!("{what} {:?} is a {}, not a tensor", o.name(), o.dtype());
        }
    }
    Ok(())
}

/// The text of an error whose builder nobody wants back.
fn text<R>(e: ort::Error<R>) -> anyhow::Error {
    anyhow!("{}", e.message())
}

/// What ONNX Runtime says, without the line of its source and the function that it puts before: `/…/model.cc:191
/// onnxruntime::Model::Model(onnx::ModelProto&&, …) Unsupported model IR version`.
fn without_place(text: &str) -> &str {
    let place = text.split_once(".cc:").or_else(|| text.split_once(".h:"));
    let Some((_, rest)) = place.filter(|_| text.starts_with('/')) else {
        return text;
    };
    let mut open = 0;
    let end = rest.char_indices().find(|&(_, c)| {
        open += i32::from(c == '(') - i32::from(c == ')');
        c == ')' && open == 0
    });
    let said = end.map_or("", |(at, _)| rest[at + 1..].trim_start());
    if said.is_empty() { text } else { said }
}

/// An error's chain in one line.
fn short(e: &anyhow::Error) -> String {
    let line = |c: &(dyn std::error::Error + 'static)| without_place(&c.to_string()).replace(['\n', '\r'], " ");
    let parts: Vec<String> = e.chain().map(line).collect();
    super::one_line(&parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_in_the_source_is_left_out() {
        let text = "/onnxruntime_src/core/graph/model.cc:191 onnxruntime::Model::Model(onnx::ModelProto&&, \
                    const std::map<int, f(int)>&) Unsupported model IR version: 14";
        assert_eq!(without_place(text), "Unsupported model IR version: 14");
        for text in ["Missing Input: x", "/x/model.cc:1 f(", "/x/y.h:3"] {
            assert_eq!(without_place(text), text);
        }
    }
}
