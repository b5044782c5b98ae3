//! All integration tests in one binary: tract is linked once.

mod cli;
mod docs;
mod hostile;
mod interop;
mod layers;
mod proto;
mod roundtrip;
mod tool;
