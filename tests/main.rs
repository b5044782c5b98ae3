//! All integration tests in one binary: tract is linked once.
mod infer;
mod proto;
mod prune;
mod roundtrip;
