//! ONNX Runtime as second engine, beside tract. The library comes from the virtual environment of the interop tests; where
//! there is none, that is said loudly.

use crate::interop::{python, target};
use crate::tool::{arg, fixture, floats, model_with, node, onnxzip, port};
use onnxzip::data::{Dataset, Sample};
use onnxzip::engine::Engine;
use onnxzip::engine::eval::evaluate;
use onnxzip::engine::ort::Ort;
use onnxzip::engine::tract::Tract;
use onnxzip::ir::{DType, Model, Origin, Tensor, ValueId};
use onnxzip::{onnx, pb};
use prost::Message;
use serde_json::Value;
use std::path::PathBuf;

/// The folder that the library is in, when it could be installed.
fn folder() -> Option<PathBuf> {
    python()?;
    Some(target().join("venv"))
}

fn ort() -> Option<Ort> {
    Some(Ort::open(Some(&folder()?)).expect("pip's library loads"))
}

/// Every value of the main graph that a node computes.
fn computed(model: &Model) -> Vec<ValueId> {
    let main = model.main_id();
    let values = model.values().filter(|(_, v)| v.graph() == main);
    values
        .filter(|(_, v)| matches!(v.origin(), Origin::Node(..)))
        .map(|(id, _)| id)
        .collect()
}

/// The largest difference, in parts of the largest number.
fn apart(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!((a.dtype(), a.dims()), (b.dtype(), b.dims()));
    let (a, b) = (a.to_f32().expect("numbers"), b.to_f32().expect("numbers"));
    let most = a.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    a.iter().zip(&*b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs())) / most
}

#[test]
fn onnx_runtime_and_tract_give_the_same_values() {
    let Some(ort) = ort() else { return };
    assert!(ort.name().starts_with("ONNX Runtime 1."), "{}", ort.name());
    for name in ["digits_mlp", "digits_cnn", "digits_masked"] {
        let model = onnx::read(&fixture(&format!("{name}.onnx"))).expect("a model");
        let data = Dataset::open(&fixture("digits.npz"), &model).expect("data");
        let like = data.get(0).expect("a sample");
        let outputs: Vec<ValueId> = model.main().outputs().iter().map(|p| p.value).collect();
        for wanted in [outputs, computed(&model)] {
            let [a, b] = [&ort as &dyn Engine, &Tract].map(|e| e.load(&model, &wanted, &like).expect("it runs"));
            for i in 0..8 {
                let sample = data.get(i).expect("a sample");
                let (x, y) = (a.run(&sample).expect("a run"), b.run(&sample).expect("a run"));
                assert_eq!((x.len(), y.len()), (wanted.len(), wanted.len()));
                for ((x, y), v) in x.iter().zip(&y).zip(&wanted) {
                    let d = apart(x, y);
                    assert!(d < 1e-5, "{name}, sample {i}, {}: {d}", model.value(*v).name);
                }
            }
        }
    }
}

#[test]
fn threads_share_a_session_of_onnx_runtime() {
    let Some(ort) = ort() else { return };
    let path = fixture("digits_cnn.onnx");
    let model = onnx::read(&path).expect("a model");
    let data = Dataset::open(&fixture("digits.npz"), &model).expect("data");
    let session = ort.load_file(&path, &data.get(0).expect("a sample")).expect("it runs");
    let run = |i: usize| -> Vec<u8> {
        let y = session.run(&data.get(i).expect("a sample")).expect("a run");
        y[0].raw().into_owned()
    };
    let alone: Vec<Vec<u8>> = (0..32).map(run).collect();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..32).map(run).collect::<Vec<_>>()))
            .collect();
        for thread in all {
            assert!(thread.join().expect("no panic") == alone, "runs disturb each other");
        }
    });
}

/// `y = Identity(x)` for one element type.
fn identity(dtype: DType) -> Model {
    let mut ports = [port("x", &[2, 3]), port("y", &[2, 3])];
    for p in &mut ports {
        if let Some(pb::type_proto::Value::TensorType(t)) = p.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            t.elem_type = Some(dtype as i32);
        }
    }
    let [x, y] = ports;
    let proto = model_with(vec![node("Identity", &["x"], &["y"])], vec![], x, y);
    onnx::from_bytes(proto.encode_to_vec().into(), &onnx::External::below(None)).expect("a model")
}

#[test]
fn every_type_goes_through_onnx_runtime_as_it_is() {
    use DType::*;
    let Some(ort) = ort() else { return };
    let widths = [
        (Float, 4),
        (Double, 8),
        (Float16, 2),
        (Bfloat16, 2),
        (Int8, 1),
        (Int16, 2),
        (Int32, 4),
        (Int64, 8),
        (Uint8, 1),
        (Uint16, 2),
        (Uint32, 4),
        (Uint64, 8),
        (Bool, 1),
        (String, 0),
    ];
    for (dtype, width) in widths {
        let bytes: Vec<u8> = (0..6 * width)
            .map(|i| if dtype == Bool { i as u8 % 2 } else { i as u8 })
            .collect();
        let words = ["a", "", "drei", "ü", "5", "six"].map(|w| w.as_bytes().to_vec().into());
        let x = match dtype {
            String => Tensor::from_proto(
                pb::TensorProto {
                    dims: vec![2, 3],
                    data_type: Some(String as i32),
                    string_data: words.to_vec(),
                    ..Default::default()
                },
                None,
            ),
            _ => Tensor::from_raw(dtype, &[2, 3], bytes.into()),
        };
        let x = x.expect("a tensor");
        let model = identity(dtype);
        let sample: Sample = [("x".to_owned(), x.clone())].into();
        let wanted = [model.main().outputs()[0].value];
        let session = ort
            .load(&model, &wanted, &sample)
            .unwrap_or_else(|e| panic!("{dtype:?}: {e}"));
        let y = session.run(&sample).expect("a run");
        assert!(y[0].same_data(&x), "{dtype:?}: {:?}", y[0]);
    }
}

/// `x[1,4] · w[4,4] + b`, of which `b` is computed from constants; weights large enough to be handed over.
fn with_constants() -> Model {
    let w: Vec<f32> = (0..4 * 2048).map(|i| (i % 7) as f32 - 3.0).collect();
    let weights = vec![
        floats("w", &[4, 2048], &w),
        floats("one", &[1], &[1.0]),
        floats("two", &[1], &[2.0]),
    ];
    let mut nodes = vec![
        node("MatMul", &["x", "w"], &["product"]),
        node("Add", &["one", "two"], &["b"]),
        node("Add", &["product", "b"], &["y"]),
    ];
    // ONNX Runtime refuses two nodes of one name.
    nodes[2].name = None;
    let proto = model_with(nodes, weights, port("x", &[1, 4]), port("y", &[1, 2048]));
    onnx::from_bytes(proto.encode_to_vec().into(), &onnx::External::below(None)).expect("a model")
}

#[test]
fn constants_are_folded_and_weights_handed_over() {
    let Some(ort) = ort() else { return };
    let model = with_constants();
    let find = |name: &str| model.values().find(|(_, v)| v.name == name).expect("a value").0;
    let (b, w) = (find("b"), find("w"));
    let got = evaluate(&ort, &model, &[b, w]).expect("constant");
    assert_eq!(got[0].floats().expect("floats")[..], [3.0]);
    assert_eq!(got[1].dims(), [4, 2048]);
    assert!(evaluate(&ort, &model, &[find("y")]).is_err(), "it depends on x");
    let sample: Sample = [("x".to_owned(), Tensor::new(&[1, 4], vec![1f32, 0.0, 2.0, 0.0]))].into();
    let session = ort.load(&model, &[find("y"), find("x"), w], &sample).expect("it runs");
    let y = session.run(&sample).expect("a run");
    let weights = got[1].floats().expect("floats");
    for (i, y) in y[0].floats().expect("floats").iter().enumerate() {
        assert_eq!(*y, weights[i] + 2.0 * weights[2 * 2048 + i] + 3.0);
    }
    assert!(y[1].same_data(&sample["x"]) && y[2].same_data(&got[1]));
}

#[test]
fn what_onnx_runtime_cannot_run_is_said_and_not_fatal() {
    let Some(ort) = ort() else { return };
    let proto = model_with(
        vec![node("NoSuchOperator", &["x"], &["y"])],
        vec![],
        port("x", &[1, 4]),
        port("y", &[1, 4]),
    );
    let model = onnx::from_bytes(proto.encode_to_vec().into(), &onnx::External::below(None)).expect("a model");
    let sample: Sample = [("x".to_owned(), Tensor::new(&[1, 4], vec![0f32; 4]))].into();
    let why = ort.load(&model, &[model.main().outputs()[0].value], &sample).err();
    let why = why.expect("there is no such operator").0;
    assert!(why.contains("NoSuchOperator"), "{why}");
}

#[test]
fn a_missing_library_is_named_with_the_way_out_and_ends_with_code_2() {
    let (model, nowhere) = (arg(&fixture("digits_mlp.onnx")), "/nowhere/libonnxruntime.so.1.99.0");
    let calib = arg(&fixture("digits.npz"));
    let folder = tempfile::tempdir().expect("a folder");
    let out = arg(&folder.path().join("out.onnx"));
    let common = ["--engine", "ort", "--engine-lib", nowhere, "--calib", &calib];
    for rest in [
        vec!["verify", &model, &model],
        vec!["bench", &model, &model],
        vec!["optimize", &model, &out],
    ] {
        let ran = onnxzip(rest.iter().take(1).chain(&common).chain(&rest[1..]));
        assert_eq!(ran.code, Some(2), "{rest:?}: {}{}", ran.out, ran.err);
        for word in [nowhere, "--engine-lib", "pip install onnxruntime"] {
            assert!(ran.err.contains(word), "{word}: {}", ran.err);
        }
    }
    let ran = onnxzip(["verify", "--engine-lib", nowhere, &model, &model]);
    assert_eq!(ran.code, Some(2), "tract needs no library: {}", ran.err);
}

#[test]
fn four_bits_are_verified_by_onnx_runtime_itself() {
    let Some(lib) = folder() else { return };
    let (model, calib) = (arg(&fixture("digits_mlp.onnx")), arg(&fixture("digits.npz")));
    let folder = tempfile::tempdir().expect("a folder");
    let out = arg(&folder.path().join("out.onnx"));
    let engine = ["--engine", "ort", "--engine-lib", &arg(&lib)].map(str::to_owned);
    for pass in ["weights(bits=4)", "weights(bits=4,form=matmulnbits)"] {
        let rest = [
            "--passes",
            pass,
            "--calib",
            &calib,
            "--budget",
            "sqnr:12dB",
            &model,
            &out,
        ]
        .map(str::to_owned);
        let said = onnxzip(["optimize".to_owned()].iter().chain(&engine).chain(&rest)).ok();
        assert!(said.contains("run by ONNX Runtime"), "{pass}: {said}");
        let rest = ["--calib", &calib, "--budget", "sqnr:12dB", &model, &out].map(str::to_owned);
        let said = onnxzip(["verify".to_owned()].iter().chain(&engine).chain(&rest)).ok();
        assert!(said.contains("OK: within budget"), "{pass}: {said}");
        let rest = ["--calib", &calib, "--budget", "sqnr:60dB", &model, &out].map(str::to_owned);
        let ran = onnxzip(["verify".to_owned()].iter().chain(&engine).chain(&rest));
        assert_eq!(ran.code, Some(1), "{pass}: 4 bits are not 60 dB: {}", ran.out);
    }
}

#[test]
fn onnx_runtime_is_no_way_out_of_itself() {
    let Some(lib) = folder() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let place = |name: &str| folder.path().join(name);
    let mut foo = node("Foo", &["x"], &["h"]);
    foo.domain = Some("com.acme".into());
    let dense = node("MatMul", &["h", "w"], &["y"]);
    let weight = floats("w", &[4, 4], &[0.5; 16]);
    let model = model_with(vec![foo, dense], vec![weight], port("x", &[1, 4]), port("y", &[1, 4]));
    std::fs::write(place("in.onnx"), model.encode_to_vec()).expect("written");
    let recipe = "passes = \"int8\"\nengine = \"ort\"\ninput = \"in.onnx\"\noutput = \"out.onnx\"\n";
    std::fs::write(place("onnxzip.toml"), recipe).expect("written");
    let ran = onnxzip([
        "optimize",
        "--engine-lib",
        &arg(&lib),
        "--recipe",
        &arg(&place("onnxzip.toml")),
    ]);
    assert_eq!(ran.code, Some(3), "{}{}", ran.out, ran.err);
    assert!(
        ran.err.contains("Foo") && !ran.err.contains("--engine ort"),
        "{}",
        ran.err
    );
}

/// The figures that `bench --json` promises.
fn complete(speed: &Value, engine: &str, runs: u64) {
    let number = |path: &str| {
        speed
            .pointer(path)
            .and_then(Value::as_f64)
            .unwrap_or_else(|| panic!("{path}: {speed}"))
    };
    assert!(
        speed["engine"].as_str().is_some_and(|e| e.starts_with(engine)),
        "{speed}"
    );
    for side in ["before", "after"] {
        let at = |what: &str| number(&format!("/{side}/{what}"));
        assert!(at("median_ms") > 0.0 && at("median_ms") <= at("p90_ms") && at("p90_ms") <= at("p99_ms"));
        assert!(at("samples_per_s") > 0.0 && at("runs") >= runs as f64);
        if cfg!(target_os = "linux") {
            assert!((2e6..2e9).contains(&at("peak_bytes")), "{speed}");
        }
    }
    let (low, high) = (number("/interval/0"), number("/interval/1"));
    assert!(low <= number("/ratio") && number("/ratio") <= high, "{speed}");
}

#[test]
fn bench_on_onnx_runtime_says_all_of_it_in_text_and_json() {
    let Some(lib) = folder() else { return };
    let (a, b) = (arg(&fixture("digits_mlp.onnx")), arg(&fixture("digits_cnn.onnx")));
    let calib = arg(&fixture("digits.npz"));
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("bench.json");
    let engine = ["--engine", "ort", "--engine-lib", &arg(&lib), "--threads", "2"].map(str::to_owned);
    let rest = [
        "--sessions",
        "2",
        "--turns",
        "3",
        "--calib",
        &calib,
        "--json",
        &arg(&json),
    ]
    .map(str::to_owned);
    let said = onnxzip(["bench".to_owned()].iter().chain(&engine).chain(&rest).chain(&[a, b])).ok();
    for word in [
        "median",
        "p90",
        "p99",
        "samples/s",
        "peak memory",
        "MB",
        "95 % interval",
        "2 threads",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let text = std::fs::read_to_string(&json).expect("written");
    let speed: Value = serde_json::from_str(&text).expect("JSON");
    complete(&speed, "ONNX Runtime", 6);
    assert_eq!(speed["threads"], 2);
}

#[test]
fn a_result_that_is_not_fast_enough_is_refused() {
    let (model, calib) = (arg(&fixture("digits_cnn.onnx")), arg(&fixture("digits.npz")));
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (out, json) = (path("out.onnx"), path("report.json"));
    let run = |most: &str| {
        let [out, json] = [&out, &json].map(|p| arg(p));
        let args = [
            "optimize",
            "--max-latency",
            most,
            "--calib",
            &calib,
            "--json",
            &json,
            &model,
            &out,
        ];
        onnxzip(args)
    };
    let ran = run("1%");
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    assert!(
        ran.out.contains("of the original's time") && !out.exists(),
        "{}",
        ran.out
    );
    let said = run("5000%").ok();
    assert!(said.contains("latency") && said.contains("peak memory"), "{said}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).expect("written")).expect("JSON");
    complete(&report["speed"], "tract", 36);
}
