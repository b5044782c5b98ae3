//! `weights`, `dynamic` and `fp16` on small graphs with known answers.

use crate::tool::{floats, int, ints, longs, model_with, node, port, run_passes, with};

use onnxzip::data::{Dataset, Sample};
use onnxzip::engine::{Engine, tract::Tract};
use onnxzip::ir::{DType, Model};
use onnxzip::passes::{Note, NoteKind, parse_list};
use onnxzip::{onnx, pb};
use prost::Message;

mod half;
mod integers;
mod wide;

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / 8388608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn weight(name: &str, dims: &[i64], seed: u64) -> pb::TensorProto {
    floats(name, dims, &numbers(dims.iter().product::<i64>() as usize, seed))
}

fn read(proto: &pb::ModelProto) -> Model {
    onnx::from_bytes(proto.encode_to_vec().into(), &onnx::External::below(None)).expect("a model")
}

/// A named node.
fn named(name: &str, mut n: pb::NodeProto) -> pb::NodeProto {
    n.name = Some(name.into());
    n
}

/// `x [1, 40] → Gemm (transB) → Relu → MatMul → Add → y [1, 24]`.
fn dense() -> Model {
    let nodes = vec![
        named(
            "fc1",
            with(node("Gemm", &["x", "w1", "b1"], &["h"]), [int("transB", 1)]),
        ),
        named("relu", node("Relu", &["h"], &["r"])),
        named("fc2", node("MatMul", &["r", "w2"], &["p"])),
        named("add", node("Add", &["p", "b2"], &["y"])),
    ];
    let weights = vec![
        weight("w1", &[48, 40], 1),
        weight("b1", &[48], 2),
        weight("w2", &[48, 24], 3),
        weight("b2", &[24], 4),
    ];
    read(&model_with(nodes, weights, port("x", &[1, 40]), port("y", &[1, 24])))
}

fn run_on(m: &mut Model, list: &str, data: &Dataset) -> Vec<Note> {
    let notes = run_passes(m, list, data, 1);
    m.sweep();
    notes
}

/// Real data, as far as a pass can tell.
fn data(m: &Model) -> Dataset {
    let mut data = Dataset::synthetic(m, 3, 128);
    data.synthetic = false;
    data
}

fn run(m: &mut Model, list: &str) -> Vec<Note> {
    let data = data(m);
    run_on(m, list, &data)
}

fn count(m: &Model, op: &str) -> usize {
    m.nodes().filter(|(_, n)| n.op.name == op).count()
}

fn dtype(m: &Model, name: &str) -> DType {
    let v = m.values().find(|(_, v)| v.name == name);
    v.unwrap_or_else(|| panic!("there is no {name}"))
        .1
        .tensor()
        .expect("a constant")
        .dtype()
}

/// Signal to noise of all outputs, in dB, over a few samples.
fn sqnr(a: &Model, b: &Model) -> f64 {
    let data = Dataset::synthetic(a, 9, 16).all();
    let first = data.get(0).expect("a sample");
    let run = |m: &Model, s: &Sample| -> Vec<f32> {
        let wanted: Vec<_> = m.main().outputs().iter().map(|p| p.value).collect();
        let session = Tract
            .load(m, &wanted, &first)
            .unwrap_or_else(|e| panic!("tract: {}", e.0));
        let all = session.run(s).expect("it runs");
        all.iter()
            .flat_map(|t| t.to_f32().expect("numbers").into_owned())
            .collect()
    };
    let (mut signal, mut noise) = (0.0, 0.0);
    for i in 0..data.len() {
        let sample = data.get(i).expect("a sample");
        let (x, y) = (run(a, &sample), run(b, &sample));
        assert_eq!(x.len(), y.len());
        for (x, y) in x.iter().zip(y) {
            signal += f64::from(*x).powi(2);
            noise += f64::from(x - y).powi(2);
        }
    }
    10.0 * (signal / noise).log10()
}

fn bytes(m: &Model) -> usize {
    onnx::to_bytes(m).expect("it can be written").len()
}

fn skipped(notes: &[Note], what: &str) -> bool {
    notes.iter().any(|n| n.kind == NoteKind::Skip && n.what.contains(what))
}

const ALL: &[&str] = &[
    "weights",
    "weights(bits=4)",
    "weights(bits=4,form=matmulnbits)",
    "dynamic",
    "fp16",
    "fp16(only=weights)",
    "fp16(type=bfloat16)",
];

#[test]
fn a_quantized_model_is_left_alone_by_all() {
    for first in ["int8", "weights", "weights(form=matmulnbits)", "dynamic"] {
        let mut m = dense();
        run(&mut m, first);
        let before = onnx::to_bytes(&m).expect("it can be written");
        for pass in ALL {
            let notes = run(&mut m, pass);
            // This one only stores what is left.
            let why = match *pass == "fp16(only=weights)" {
                true => "nothing in float32",
                false => "quantized already",
            };
            assert!(skipped(&notes, why), "{first}, {pass}: {notes:?}");
            assert!(
                onnx::to_bytes(&m).expect("it can be written") == before,
                "{first}, {pass}"
            );
        }
    }
}

#[test]
fn every_pass_says_that_there_is_nothing_for_it() {
    let nodes = vec![node("Not", &["x"], &["y"])];
    let mut proto = model_with(nodes, vec![], port("x", &[1, 4]), port("y", &[1, 4]));
    set_type(&mut proto.graph.as_mut().expect("a graph").input[0], DType::Bool);
    set_type(&mut proto.graph.as_mut().expect("a graph").output[0], DType::Bool);
    for pass in ALL {
        let mut m = read(&proto);
        let notes = run(&mut m, pass);
        assert!(
            matches!(&notes[..], [n] if n.kind == NoteKind::Skip),
            "{pass}: {notes:?}"
        );
    }
}

fn set_type(p: &mut pb::ValueInfoProto, dtype: DType) {
    if let Some(pb::type_proto::Value::TensorType(t)) = p.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        t.elem_type = Some(dtype as i32);
    }
}

#[test]
fn odd_weights_give_numbers_or_reasons() {
    let huge = numbers(1600, 5).iter().map(|x| x * 1e30).collect::<Vec<f32>>();
    let mut nan = numbers(1600, 6);
    nan[7] = f32::NAN;
    let mut dead = numbers(1600, 7);
    dead.chunks_mut(40).step_by(2).for_each(|c| c.fill(0.0));
    for (what, w) in [
        ("zeros", vec![0.0; 1600]),
        ("huge", huge),
        ("NaN", nan),
        ("dead channels", dead),
        ("tiny", vec![1e-42; 1600]),
    ] {
        let nodes = vec![with(node("Gemm", &["x", "w"], &["y"]), [int("transB", 1)])];
        let proto = model_with(
            nodes,
            vec![floats("w", &[40, 40], &w)],
            port("x", &[1, 40]),
            port("y", &[1, 40]),
        );
        for pass in ALL {
            let mut m = read(&proto);
            let notes = run(&mut m, pass);
            assert!(!notes.is_empty(), "{what}, {pass}");
            for (_, v) in m.values() {
                let Some(t) = v.tensor().filter(|_| v.name.contains("scale")) else {
                    continue;
                };
                let scales = t.to_f32().expect("scales");
                assert!(scales.iter().all(|s| s.is_normal()), "{what}, {pass}: {scales:?}");
            }
        }
    }
}

#[test]
fn without_real_data_nothing_is_measured() {
    for pass in ["weights", "weights(bits=4)", "dynamic"] {
        let (mut a, mut b) = (dense(), dense());
        let made_up = Dataset::synthetic(&a, 3, 16);
        run_on(&mut a, pass, &made_up);
        run(
            &mut b,
            &format!(
                "{}rounding=nearest)",
                pass.trim_end_matches(')').to_owned() + if pass.ends_with(')') { "," } else { "(" }
            ),
        );
        assert!(
            onnx::to_bytes(&a).expect("written") == onnx::to_bytes(&b).expect("written"),
            "{pass}"
        );
    }
}

#[test]
fn two_runs_give_the_same_bytes() {
    for pass in ALL {
        let made = || {
            let mut m = dense();
            run(&mut m, pass);
            onnx::to_bytes(&m).expect("written")
        };
        assert!(made() == made(), "{pass}");
    }
}
