//! What `sparsify` sets to zero, keeps and says, on the small MNIST network of the fixtures.

use crate::tool::{arg, fixture, onnxzip};
use ::onnxzip::ir::{Model, Tensor};
use ::onnxzip::onnx;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Runs passes on a fixture; the report and the result.
fn run(dir: &Path, passes: &str) -> (Value, PathBuf) {
    let (out, json) = (dir.join("out.onnx"), dir.join("report.json"));
    let ran = onnxzip([
        "optimize".to_owned(),
        "--keep".into(),
        "--passes".into(),
        passes.into(),
        "--calib".into(),
        arg(&fixture("digits.npz")),
        "--json".into(),
        arg(&json),
        arg(&fixture("digits_mlp.onnx")),
        arg(&out),
    ]);
    assert!(matches!(ran.code, Some(0 | 1)), "{passes}: {}", ran.err);
    let text = std::fs::read_to_string(&json).expect("a report");
    (serde_json::from_str(&text).expect("JSON"), out)
}

fn sqnr(report: &Value) -> f64 {
    report["gaps"][0]["sqnr_db"].as_f64().expect("a number")
}

fn notes(report: &Value) -> String {
    report["passes"].to_string()
}

/// The weight matrices of the result.
fn weights(path: &Path) -> Vec<(String, Tensor)> {
    let model: Model = onnx::read(path).expect("a model");
    let matrices = model
        .values()
        .filter_map(|(_, v)| Some((v.name.clone(), v.tensor()?.clone())));
    matrices.filter(|(_, t)| t.dims().len() == 2).collect()
}

fn zeros(t: &Tensor) -> f64 {
    let x = t.floats().expect("floats");
    x.iter().filter(|x| **x == 0.0).count() as f64 / x.len() as f64
}

#[test]
fn compensation_beats_wanda_and_magnitude_at_equal_zeros() {
    let dir = tempfile::tempdir().expect("a folder");
    let of = |method: &str| {
        let (report, out) = run(dir.path(), &format!("sparsify(sparsity=0.8,method={method})"));
        for (name, t) in weights(&out) {
            let part = zeros(&t);
            assert!((part - 0.8).abs() < 0.02, "{method}: {name} has {part}");
        }
        sqnr(&report)
    };
    let (obs, wanda, magnitude) = (of("obs"), of("wanda"), of("magnitude"));
    assert!(obs > magnitude + 2.0 && obs > wanda + 2.0, "{obs} {wanda} {magnitude}");
}

#[test]
fn a_pattern_holds_in_every_row_and_global_scope_spares_what_is_dear() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_, out) = run(dir.path(), "sparsify(sparsity=0.5,pattern=2:4)");
    for (name, t) in weights(&out) {
        let x = t.floats().expect("floats");
        let fits = |g: &[f32]| g.iter().filter(|x| **x != 0.0).count() <= 2;
        assert!(x.chunks(4).all(fits), "{name}");
    }
    let (layer, _) = run(dir.path(), "sparsify(sparsity=0.8)");
    let (global, out) = run(dir.path(), "sparsify(sparsity=0.8,scope=global)");
    assert!(sqnr(&global) > sqnr(&layer), "{} {}", sqnr(&global), sqnr(&layer));
    let parts: Vec<f64> = weights(&out).iter().map(|(_, t)| zeros(t)).collect();
    assert!(parts[0] > parts[3] + 0.2, "the last layer is dear: {parts:?}");
}

#[test]
fn zeros_go_until_the_outputs_err_by_what_is_allowed_and_the_table_says_what_that_saves() {
    let dir = tempfile::tempdir().expect("a folder");
    let (report, out) = run(dir.path(), "sparsify(error=0.01)");
    // Half of the samples chose; what all of them made errs less.
    let got = sqnr(&report);
    assert!((18.5..33.0).contains(&got), "{got} dB for 20");
    let widest = weights(&out)
        .into_iter()
        .max_by_key(|(_, t)| t.len())
        .expect("a weight");
    assert!(zeros(&widest.1) > 0.6, "{}", zeros(&widest.1));
    let (more, _) = run(dir.path(), "sparsify(error=0.1)");
    assert!(sqnr(&more) < got - 4.0, "{} after {got}", sqnr(&more));
    for part in [
        "weights remain; predicted error",
        "deflate to",
        "all weights:",
        "on samples that had no part",
    ] {
        assert!(notes(&report).contains(part), "{part}: {}", notes(&report));
    }
}

#[test]
fn sparse_initializers_save_bytes_and_are_read_by_all_commands() {
    let dir = tempfile::tempdir().expect("a folder");
    let (dense, out) = run(dir.path(), "sparsify(sparsity=0.9)");
    let large = std::fs::metadata(&out).expect("written").len();
    let (sparse, out) = run(dir.path(), "sparsify(sparsity=0.9,format=sparse)");
    let small = std::fs::metadata(&out).expect("written").len();
    assert!(small < large / 2, "{large} → {small}");
    assert_eq!(sqnr(&dense), sqnr(&sparse));
    onnxzip(["inspect".to_owned(), arg(&out)]).ok();
    let again = dir.path().join("again.onnx");
    onnxzip(["optimize".to_owned(), arg(&out), arg(&again)]).ok();
    assert!(std::fs::metadata(&again).expect("written").len() < large / 2);
}

#[test]
fn zeros_stay_zeros_in_int8() {
    let dir = tempfile::tempdir().expect("a folder");
    let (_, out) = run(dir.path(), "sparsify(sparsity=0.8),int8(prefer=size)");
    let model = onnx::read(&out).expect("a model");
    let codes = model
        .values()
        .filter_map(|(_, v)| v.tensor())
        .find(|t| t.dims() == [512, 784] || t.dims() == [784, 512]);
    let codes = codes.expect("a weight");
    let part = codes.raw().iter().filter(|c| **c == 0).count() as f64 / codes.len() as f64;
    assert!(part >= 0.79, "{part}");
}

#[test]
fn bad_options_are_refused_with_a_way_out() {
    for bad in [
        "sparsity=1",
        "sparsity=-0.1",
        "error=0",
        "pattern=4:4",
        "pattern=x",
        "block=0",
        "pattern=2:4,block=4",
        "method=luck",
    ] {
        assert!(
            ::onnxzip::passes::parse_list(&format!("sparsify({bad})")).is_err(),
            "{bad}"
        );
    }
}
