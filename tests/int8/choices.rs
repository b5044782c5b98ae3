//! Models that choose inside, as detection transformers choose their queries.

use super::{Dataset, Model, Tensor, count, input, model, node, output, sqnr, weight};
use crate::tool::onnxzip;
use onnxzip::ir::Attr;
use onnxzip::onnx;
use std::path::Path;

const PLACES: usize = 64;
const WIDTH: usize = 32;
const QUERIES: usize = 12;

/// The rows of `x·w1` with the largest scores, times `w2`.
fn queries() -> Model {
    let mut m = model(17);
    let x = input(&mut m, &[PLACES, WIDTH]);
    let w1 = weight(&mut m, "w1", &[WIDTH, WIDTH], 3);
    let h = node(&mut m, "MatMul", "encode", &[x, w1], "h", vec![]);
    let axes = vec![Attr::ints("axes", vec![1]), Attr::int("keepdims", 0)];
    let scores = node(&mut m, "ReduceMax", "best", &[h], "scores", axes);
    let k = m.add_const(m.main_id(), "k", Tensor::new(&[1], vec![QUERIES as i64]));
    let top = m.add_node(
        m.main_id(),
        "pick",
        "TopK",
        &[Some(scores), Some(k)],
        &["best_scores", "picked"],
        vec![],
    );
    let rows = node(&mut m, "Gather", "gather", &[h, top.1[1]], "rows", vec![]);
    let w2 = weight(&mut m, "w2", &[WIDTH, 8 * WIDTH], 4);
    let y = node(&mut m, "MatMul", "decode", &[rows, w2], "y", vec![]);
    output(&mut m, y, &[QUERIES, 8 * WIDTH]);
    m
}

fn write(m: &Model, path: &Path) {
    let staged = onnx::write(m, path, onnx::WriteOptions::default()).expect("written");
    staged.commit().expect("in place");
}

#[test]
fn what_is_chosen_inside_is_given_to_both_and_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a name").to_owned();
    let original = queries();
    write(&original, Path::new(&path("in.onnx")));
    let args = ["optimize", "--passes", "int8(prefer=size)", "--json"];
    let args = args.map(str::to_owned).into_iter();
    let said = onnxzip(args.chain([path("r.json"), path("in.onnx"), path("out.onnx")])).ok();
    assert!(
        said.contains("chosen inside") && said.contains("is chosen from it"),
        "{said}"
    );
    let made = onnx::read(Path::new(&path("out.onnx"))).expect("a model");
    let names = |m: &Model| {
        let ports = m.main().inputs().iter().chain(m.main().outputs());
        ports.map(|p| p.name().to_owned()).collect::<Vec<String>>()
    };
    assert_eq!(names(&made), names(&original), "it is closed again");
    assert!(count(&made, "QuantizeLinear") > 0 && count(&made, "TopK") == 1);
    assert!(
        sqnr(&original, &made) < 10.0,
        "queries change places, and what is computed of them"
    );
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path("r.json")).expect("a report")).expect("JSON");
    let gaps = json["gaps"].as_array().expect("gaps").iter();
    let same: Vec<f64> = gaps.filter_map(|g| g["same_choice"].as_f64()).collect();
    assert!(same.len() == 1 && same[0] > 0.6, "{same:?}");
    // What is in the result's file is all that `verify` needs, with names or without.
    let short = ["optimize", "--names", "short", "--passes", "int8(prefer=size)"].map(str::to_owned);
    onnxzip(short.into_iter().chain([path("in.onnx"), path("short.onnx")])).ok();
    for result in ["out.onnx", "short.onnx"] {
        let said = onnxzip(["verify".to_owned(), path("in.onnx"), path(result)]).ok();
        assert!(said.contains("chosen inside"), "{said}");
    }
}

#[test]
fn a_result_that_chooses_something_else_does_not_leave() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a name").to_owned();
    let original = queries();
    write(&original, Path::new(&path("a.onnx")));
    let mut other = original.clone();
    // The scores alone are others: what is computed of the original's choice is the same.
    let (best, _) = other.nodes().find(|(_, n)| n.is("ReduceMax")).expect("it is there");
    let scores = other.node(best).output(0).expect("an output");
    let noise = weight(&mut other, "noise", &[PLACES], 5);
    let loud = other.add_const(other.main_id(), "loud", Tensor::scalar(0.2f32));
    let noise = node(&mut other, "Mul", "louder", &[noise, loud], "noise_out", vec![]);
    let sum = node(&mut other, "Add", "sum", &[scores, noise], "sum_out", vec![]);
    let (pick, _) = other.nodes().find(|(_, n)| n.is("TopK")).expect("it is there");
    other.set_input(pick, 0, Some(sum));
    let verify = |b: &str| onnxzip(["verify".to_owned(), path("a.onnx"), path(b)]);
    write(&other, Path::new(&path("little.onnx")));
    verify("little.onnx").ok();
    let ten = Tensor::scalar(30.0f32);
    other.set_const(loud, ten);
    write(&other, Path::new(&path("much.onnx")));
    let ran = verify("much.onnx");
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    let equal = ran.out.lines().find(|l| l.starts_with("y ")).expect("its output");
    assert!(equal.contains("equal") && ran.out.contains("scores"), "{}", ran.out);
}

#[test]
fn statistics_of_shards_and_searches_know_what_is_chosen() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("a name").to_owned();
    let original = queries();
    write(&original, Path::new(&path("in.onnx")));
    let data = Dataset::synthetic(&original, 5, 24).all();
    let all: Vec<f32> = (0..24)
        .flat_map(|i| {
            data.get(i).expect("a sample")["x"]
                .floats()
                .expect("floats")
                .into_owned()
        })
        .collect();
    crate::calibrate::npz(Path::new(&path("x.npz")), "x", &[24, PLACES, WIDTH], &all);
    let run = |args: &[&str]| onnxzip(args.iter().map(|s| (*s).to_owned())).ok();
    let (input, calib) = (path("in.onnx"), path("x.npz"));
    run(&[
        "optimize",
        "--passes",
        "int8",
        "--calib",
        &calib,
        &input,
        &path("whole.onnx"),
    ]);
    let shards = ["1/2", "2/2"].map(|shard| {
        let file = path(&format!("{}.stats", &shard[..1]));
        run(&[
            "calibrate",
            "--passes",
            "int8",
            "--calib",
            &calib,
            "--shard",
            shard,
            &input,
            "-o",
            &file,
        ]);
        file
    });
    let stats = [
        "optimize", "--passes", "int8", "--calib", &calib, "--stats", &shards[0], &shards[1],
    ];
    run(&[&stats[..], &["--", &input, &path("parts.onnx")]].concat());
    let bytes = |name: &str| std::fs::read(path(name)).expect("a file");
    assert_eq!(bytes("whole.onnx"), bytes("parts.onnx"));
    let said = run(&[
        "optimize",
        "--budget",
        "sqnr:15dB",
        "--calib",
        &calib,
        &input,
        &path("small.onnx"),
    ]);
    assert!(said.contains("chosen inside"), "{said}");
    assert!(bytes("small.onnx").len() < bytes("in.onnx").len() / 3, "{said}");
}
