//! The ONNX messages, generated from `proto/onnx.proto` (a test regenerates and compares them).
#![allow(missing_docs, clippy::all, rustdoc::all)]

include!("../proto/onnx.rs");
