//! `proto/onnx.rs` is what prost makes of `proto/onnx.proto`.

use std::path::Path;

/// Compiles the schema with protox (no `protoc` needed) and compares with the checked-in file; `BLESS=1` rewrites it.
#[test]
fn generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(["onnx.proto"], [root.join("proto")]).expect("the schema compiles");
    let out = tempfile::tempdir().expect("a temporary folder");
    prost_build::Config::new()
        .bytes(["."])
        .out_dir(out.path())
        .compile_fds(files)
        .expect("prost generates code");
    let made = std::fs::read_to_string(out.path().join("onnx.rs")).expect("generated file");
    let kept = root.join("proto/onnx.rs");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&kept, &made).expect("written");
    }
    let kept = std::fs::read_to_string(kept).unwrap_or_default();
    assert!(made == kept, "proto/onnx.rs is stale: run with BLESS=1");
}
