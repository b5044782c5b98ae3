//! All integration tests in one binary: tract is linked once.

mod docs;
mod layers;
mod lowrank;
mod proto;
mod roundtrip;
