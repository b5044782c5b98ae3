//! All integration tests in one binary: tract is linked once.
mod proto;
mod prune;
mod roundtrip;
