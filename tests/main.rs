//! All integration tests in one binary: tract is linked once.

mod calibrate;
mod cli;
mod docs;
mod hostile;
mod images;
mod infer;
mod int8;
mod interop;
mod large;
mod layers;
mod lowrank;
mod opset;
mod ort;
mod precision;
mod proto;
mod prune;
mod recipe;
mod report;
mod roundtrip;
mod search;
mod simplify;
mod sparsify;
mod tool;
