//! All integration tests in one binary: tract is linked once.

mod docs;
mod infer;
mod int8;
mod layers;
mod proto;
mod roundtrip;
mod simplify;
