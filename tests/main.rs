//! All integration tests in one binary: tract is linked once.
mod proto;
mod roundtrip;
mod simplify;
