//! All integration tests in one binary: tract is linked once.

mod cli;
mod docs;
mod hostile;
mod infer;
mod interop;
mod int8;
mod layers;
mod lowrank;
mod proto;
mod prune;
mod roundtrip;
mod simplify;
mod tool;
