//! onnxzip
#![warn(missing_docs)]

pub mod analysis;
pub mod data;
pub mod engine;
pub mod ir;
pub mod math;
pub mod onnx;
pub mod ops;
pub mod parallel;
pub mod passes;
pub mod pb;
pub mod progress;
