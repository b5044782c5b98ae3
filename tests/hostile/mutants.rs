//! Cut and changed bytes in a real model: any answer but a panic.

use super::files::noise;
use crate::tool::{fixture, floats, int, model, node, with};
use bytes::Bytes;
use onnxzip::data::Dataset;
use onnxzip::onnx::{External, from_bytes, to_bytes};
use onnxzip::{ir, passes, pipeline, progress::Silent};
use prost::Message;

fn small() -> Vec<u8> {
    let nodes = vec![
        node("Mul", &["w", "m"], &["wm"]),
        with(node("Gemm", &["x", "wm", "b"], &["h"]), [int("transB", 1)]),
        node("Relu", &["h"], &["r"]),
        node("MatMul", &["r", "v"], &["p"]),
        node("Add", &["p", "b"], &["y"]),
    ];
    let square = |name: &str| floats(name, &[4, 4], &[0.5; 16]);
    model(
        nodes,
        vec![square("w"), square("m"), square("v"), floats("b", &[4], &[0.1; 4])],
    )
    .encode_to_vec()
}

/// Reads it, and if it can be read, rewrites and writes it.
fn try_it(bytes: Vec<u8>) -> bool {
    let Ok(mut model) = from_bytes(Bytes::from(bytes), &External::below(None)) else {
        return false;
    };
    ir::check::check(&model).expect("what was read is whole");
    let data = Dataset::synthetic(&model, 0, 1);
    let mut options = pipeline::Options::new(passes::parse_list("simplify,prune").expect("passes"));
    options.verify = false;
    options.threads = 1;
    let engine = onnxzip::engine::tract::Tract;
    if pipeline::rewrite(&mut model, &data, &options, &engine, &Silent).is_ok() {
        ir::check::check(&model).expect("what was rewritten is whole");
        to_bytes(&model).expect("it can be written");
    }
    true
}

#[test]
fn a_model_cut_anywhere_does_not_crash_the_library() {
    let whole = small();
    assert!(try_it(whole.clone()));
    for n in 0..whole.len() {
        try_it(whole[..n].to_vec());
    }
}

#[test]
fn a_model_with_changed_bytes_does_not_crash_the_library() {
    let whole = small();
    let mut read = 0;
    for seed in 0..600u64 {
        let mut b = whole.clone();
        let random = noise(seed, 16);
        for change in random.chunks(4).take(1 + seed as usize % 4) {
            let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % b.len();
            b[at] = if change[2] < 128 {
                change[3]
            } else {
                b[at] ^ (1 << (change[3] % 8))
            };
        }
        read += usize::from(try_it(b));
    }
    assert!(
        read > 50,
        "the mutants are too broken to test anything: {read} of 600 can be read"
    );
}

#[test]
fn a_real_model_with_changed_bytes_does_not_crash_the_reader() {
    let whole = std::fs::read(fixture("digits_cnn.onnx")).expect("a fixture");
    for seed in 0..60u64 {
        let mut b = whole.clone();
        for change in noise(seed, 32).chunks(4) {
            let at = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize % 4000;
            b[at] ^= change[3];
        }
        if let Ok(m) = from_bytes(Bytes::from(b), &External::below(None)) {
            to_bytes(&m).expect("it can be written");
        }
    }
}
