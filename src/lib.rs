//! **onnxzip** is `wasm-opt` for neural networks: ONNX in, smaller and faster ONNX out, never an output that was not
//! compared with the original.
//!
//! ```text
//!  in.onnx ─mmap→ pb::ModelProto ─onnx::decode→ ir::Model
//!                                     │ passes, in the order given; ir::check after each
//!                                     │   read: ops, analysis, math      write: the edit methods of ir::Model
//!  out.onnx ←rename← temporary file ←onnx::encode─┘
//!     └→ verify (original, result, held-back samples, engine) → gaps → verdict → report → exit code
//! ```
//!
//! Two verbs carry everything: *rewrite a clone of the model* (weights are shared, a clone costs next to nothing) and
//! *run it on an engine*. Calibration exposes inner values as outputs of a clone and runs it.
//!
//! # Which room to enter
//!
//! | room | what is in it |
//! |---|---|
//! | [`ir`] | the model as an arena of graphs, nodes and values; the only code that changes edges |
//! | [`onnx`] | files: decoding, encoding, external data, raising the opset |
//! | [`ops`] | what is known of operators, one table a facet |
//! | [`analysis`] | what is known of a model: statistics on data, shapes, cost |
//! | [`math`] | numbers in, numbers out: decompositions, moments, histograms, quantization arithmetic |
//! | [`calibrate`] | statistics that were measured elsewhere, in files; shards |
//! | [`cache`] | numbers that were measured in earlier runs |
//! | [`passes`] | the rewrites. A new one is a file and a line in its table |
//! | [`pipeline`] | the main job: read, rewrite, verify, put into place |
//! | [`search`] | which passes, how strong: the smallest result within a budget |
//! | [`engine`] | running models (tract; ONNX Runtime when a library is given) |
//! | [`data`] | samples |
//! | [`verify`] | gaps, budget, verdict |
//! | [`recipe`] | `onnxzip.toml`: what a run is asked for, in one file |
//! | [`report`] | the account of a run, as text, JSON, Markdown and HTML; what an earlier one holds it to |
//! | [`cli`] | the command line |
//!
//! # Example
//!
//! ```
//! use onnxzip::{data::Dataset, engine::tract::Tract, onnx, passes, pipeline, progress::Silent};
//! # fn main() -> anyhow::Result<()> {
//! let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
//! let mut model = onnx::read(&folder.join("digits_mlp.onnx"))?;
//! let data = Dataset::open(&folder.join("digits.npz"), &model)?;
//! let options = pipeline::Options::new(passes::parse_list("prune,lowrank,int8")?);
//! let report = pipeline::rewrite(&mut model, &data, &options, &Tract, &Silent)?;
//! assert!(report.may_leave(), "{:?}", report.verdict);
//! let bytes = onnx::to_bytes(&model)?;
//! # assert!(bytes.len() < 800_000, "{}", bytes.len());
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

pub mod analysis;
pub mod cache;
pub mod calibrate;
pub mod cli;
pub mod data;
pub mod engine;
pub mod ir;
pub mod math;
pub mod onnx;
pub mod ops;
pub mod parallel;
pub mod passes;
pub mod pb;
pub mod pipeline;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod search;
pub mod verify;
