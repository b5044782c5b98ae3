//! `fp32`, and what other passes make of models whose weights are in float16.

use super::integers::branches;
use super::*;
use crate::tool::{arg, onnxzip};

/// In float16 as a whole, inputs and outputs too.
fn narrow(mut m: Model) -> Model {
    run(&mut m, "fp16(keep_io=off,min=1)");
    m
}

fn types(m: &Model) -> Vec<DType> {
    let constants = m.values().filter_map(|(v, _)| m.constant(v));
    constants.map(|t| t.dtype()).collect()
}

#[test]
fn everything_is_float32_between_two_casts_and_ports_keep_their_types() {
    let original = narrow(dense());
    assert!(types(&original).iter().all(|d| *d == DType::Float16));
    let mut m = original.clone();
    run(&mut m, "fp32");
    assert!(types(&m).iter().all(|d| *d == DType::Float));
    let casts: Vec<i64> = m
        .nodes()
        .filter_map(|(_, n)| n.int("to").filter(|_| n.is("Cast")))
        .collect();
    assert_eq!(casts, [DType::Float as i64, DType::Float16 as i64]);
    let ports = |m: &Model| {
        let all = m.main().inputs().iter().chain(m.main().outputs());
        all.map(|p| p.info.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ports(&m), ports(&original));
    let gap = sqnr(&original, &m);
    assert!(gap > 55.0, "{gap} dB");
}

#[test]
fn casts_inside_are_gone_and_branches_are_float32_too() {
    let original = branches();
    let mut half = original.clone();
    run(&mut half, "fp16(only=weights)"); // a Cast behind each weight, those in branches too
    assert_eq!(count(&half, "Cast"), 3);
    let mut m = half.clone();
    run(&mut m, "fp32");
    assert_eq!(count(&m, "Cast"), 0);
    assert!(!types(&m).contains(&DType::Float16));
    let gap = sqnr(&half, &m);
    assert!(gap > 100.0, "the same numbers: {gap} dB");
    let notes = run(&mut m, "fp32");
    assert!(skipped(&notes, "there are no weights in float16"), "{notes:?}");
}

#[test]
fn an_operator_that_may_need_float16_keeps_the_model_as_it_is() {
    let mut m = narrow(dense());
    let node = m.nodes().find(|(_, n)| n.name() == "relu").expect("it is there").0;
    m.node_mut(node).set_op("org.example", "Relu");
    let notes = run(&mut m, "fp32");
    assert!(skipped(&notes, "of domain \"org.example\""), "{notes:?}");
    assert!(types(&m).iter().all(|d| *d == DType::Float16));
}

#[test]
fn passes_for_float32_take_float16_and_give_it_back_unless_they_store_less() {
    let folder = tempfile::tempdir().expect("a folder");
    let from = folder.path().join("half.onnx");
    std::fs::write(&from, onnx::to_bytes(&narrow(dense())).expect("bytes")).expect("written");
    for (passes, kind) in [("int8", DType::Int8), ("prune(ratio=0.2)", DType::Float16)] {
        let (to, json) = (folder.path().join("small.onnx"), folder.path().join("report.json"));
        let budget = ["--budget", "sqnr:1dB", "--json", &arg(&json)];
        let ran = onnxzip(
            ["optimize", "--passes", passes, &arg(&from), &arg(&to)]
                .into_iter()
                .chain(budget),
        );
        let out = ran.ok();
        let m = onnx::read(&to).expect("a model");
        let report: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&json).expect("a report")).expect("JSON");
        let ran: Vec<&str> = report["passes"]
            .as_array()
            .expect("passes")
            .iter()
            .filter_map(|p| p["pass"].as_str())
            .collect();
        let wanted: &[&str] = match kind {
            DType::Int8 => &["fp32", "simplify", passes],
            _ => &["fp32", "simplify", passes, "fp16"],
        };
        assert_eq!(ran, wanted);
        assert!(types(&m).contains(&kind), "{passes}: {out}");
        let large = m
            .values()
            .filter_map(|(v, _)| m.constant(v))
            .any(|t| t.dtype() == DType::Float && t.len() > 100);
        assert!(!large, "{passes}: no weight stays in float32");
    }
}

#[test]
fn errors_of_outputs_in_float16_are_seen() {
    let mut m = narrow(dense());
    run(&mut m, "fp32,prune(error=0.001)");
    let before = bytes(&narrow(dense()));
    assert!(bytes(&m) > before, "next to nothing may go: random weights all matter");
}
