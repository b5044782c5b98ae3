//! All integration tests in one binary: tract is linked once.

mod docs;
mod layers;
mod proto;
mod roundtrip;
