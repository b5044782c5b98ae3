//! Weights of 3 to 6 bits: as few as the outputs bear, and the operators stay what they were.

use super::{Dataset, Model, input, node, numbers, output, run_on, sqnr_on};
use crate::tool::samples;
use onnxzip::analysis::cost::cost;
use onnxzip::engine::{Engine, tract::Tract};
use onnxzip::ops::types::infer;

pub const WIDTH: usize = 128;

/// Three dense layers; the last may have an odd number of outputs.
fn net(last: usize) -> Model {
    let mut m = super::model(13);
    let mut x = input(&mut m, &[1, WIDTH]);
    for (i, out) in [WIDTH, WIDTH, last].into_iter().enumerate() {
        let w = super::weight(&mut m, &format!("w{i}"), &[WIDTH, out], i as u64 + 3);
        let b = super::weight(&mut m, &format!("b{i}"), &[out], i as u64 + 7);
        x = node(&mut m, "Gemm", &format!("fc{i}"), &[x, w, b], &format!("h{i}"), vec![]);
        if i < 2 {
            x = node(&mut m, "Relu", &format!("relu{i}"), &[x], &format!("r{i}"), vec![]);
        }
    }
    output(&mut m, x, &[1, last]);
    m
}

/// Rows that mix a few hidden numbers, as real inputs do.
pub fn data(m: &Model, count: usize, seed: u64) -> Dataset {
    let (mix, hidden) = (numbers(12 * WIDTH, 1), numbers(12 * count, seed));
    let row = |h: &[f32]| -> Vec<f32> {
        let at = |j: usize| h.iter().enumerate().map(|(k, h)| h * mix[k * WIDTH + j]).sum();
        (0..WIDTH).map(at).collect()
    };
    let all: Vec<f32> = hidden.chunks(12).flat_map(row).collect();
    samples(m, &[count, WIDTH], &all)
}

pub fn packed(m: &Model) -> Vec<String> {
    let casts = m.nodes().filter(|(_, n)| n.is("Cast") && n.int("to") == Some(3));
    let codes = casts.filter_map(|(_, n)| n.output(0));
    codes.map(|v| m.value(v).name.clone()).collect()
}

pub fn quantized(original: &Model, list: &str) -> (Model, f64, u64) {
    let mut m = original.clone();
    run_on(&mut m, list, &data(original, 400, 5));
    let sqnr = sqnr_on(original, &m, &data(original, 100, 9));
    let bytes = onnxzip::onnx::encoded_len(&m).expect("it can be written");
    (m, sqnr, bytes)
}

#[test]
fn weights_take_half_the_bytes_and_the_error_that_is_allowed() {
    let original = net(WIDTH);
    let (eight, fine, large) = quantized(&original, "int8(prefer=size)");
    let (few, sqnr, small) = quantized(&original, "int8(prefer=size,mixed=0.05)");
    assert_eq!((packed(&eight).len(), packed(&few).len()), (0, 3));
    let saved = (3 * WIDTH * WIDTH / 2) as u64;
    assert!(large - small > saved - 3 * 1024, "{large} → {small}, {saved} to save");
    assert!(sqnr > 13.0 && fine > sqnr, "{fine} dB with 8 bits, {sqnr} with fewer");
    // A stricter limit is kept, too, with fewer of them.
    let (some, better, between) = quantized(&original, "int8(prefer=size,mixed=0.00001)");
    assert!(packed(&some).len() < 3 && between > small, "{:?}", packed(&some));
    assert!(better > 35.0, "{better}");
}

#[test]
fn another_target_keeps_8_bits() {
    let original = net(33);
    let list = "int8(prefer=size,mixed=0.2)";
    assert_eq!(packed(&quantized(&original, list).0).len(), 3);
    for target in ["ort-avx2", "tensorrt", "qnn"] {
        let list = format!("int8(prefer=size,mixed=0.2,target={target})");
        assert!(packed(&quantized(&original, &list).0).is_empty(), "{target}");
    }
}

#[test]
fn simplify_leaves_packed_weights_packed_and_counts_them() {
    let original = net(WIDTH);
    let (few, _, bytes) = quantized(&original, "int8(prefer=size,mixed=0.05)");
    let mut again = few.clone();
    run_on(&mut again, "simplify", &data(&original, 8, 5));
    assert_eq!(packed(&again), packed(&few));
    assert!(onnxzip::onnx::encoded_len(&again).expect("it can be written") <= bytes);
    let params = |m: &Model| cost(m, &infer(m).expect("types")).params;
    assert_eq!(params(&few), params(&original), "as many as before");
}

/// The codes of a weight of `len` numbers from the constants that hold its planes, the highest bits first, with the bits of a code.
fn codes(m: &Model, name: &str, len: usize) -> (usize, Vec<u8>) {
    let (mut bits, mut all) = (0, vec![0u8; len]);
    for width in [4, 2, 1] {
        let plane = format!("{name}_bits{width}");
        let Some(bytes) = m.values().find(|(_, v)| v.name == plane).and_then(|(_, v)| v.tensor()) else {
            continue;
        };
        let (bytes, columns) = (bytes.raw().to_vec(), len * width / 8);
        bits += width;
        for (i, code) in all.iter_mut().enumerate() {
            let below = 8 - width * (i / columns + 1);
            let part = bytes[i % columns] >> below & ((1 << width) - 1);
            *code |= part << (8 - bits);
        }
    }
    (bits, all)
}

#[test]
fn all_codes_come_back_as_they_were() {
    let original = net(WIDTH);
    let mut kinds = std::collections::BTreeSet::new();
    for limit in ["0.1", "0.01", "0.001", "0.0001"] {
        let (few, ..) = quantized(&original, &format!("int8(prefer=size,mixed={limit})"));
        let names = packed(&few);
        let last: Vec<_> = names
            .iter()
            .filter_map(|name| few.values().find(|(_, v)| v.name == *name).map(|(v, _)| v))
            .collect();
        let sample = data(&original, 1, 2).get(0).expect("a sample");
        let session = Tract.load(&few, &last, &sample).expect("it loads");
        for (name, seen) in names.iter().zip(session.run(&sample).expect("it runs")) {
            let (bits, wanted) = codes(&few, name, seen.len());
            assert_eq!(seen.raw()[..], wanted[..], "{name}, {bits} bits");
            assert!(wanted.iter().any(|q| *q >= 128) && wanted.iter().any(|q| *q > 0 && *q < 128));
            kinds.insert(bits);
        }
    }
    assert!(kinds.len() > 2, "{kinds:?}");
}
