//! Weights of 4 bits: as many as the outputs bear, and the operators stay what they were.

use super::{Dataset, Model, input, node, numbers, output, run_on, sqnr_on};
use crate::tool::samples;
use onnxzip::analysis::{cost::cost, infer::infer};
use onnxzip::engine::{Engine, tract::Tract};

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
    casts.map(|(_, n)| n.name().to_owned()).collect()
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
    let (four, sqnr, small) = quantized(&original, "int8(prefer=size,int4=0.05)");
    assert_eq!((packed(&eight).len(), packed(&four).len()), (0, 3));
    let saved = (3 * WIDTH * WIDTH / 2) as u64;
    assert!(large - small > saved - 3 * 1024, "{large} → {small}, {saved} to save");
    assert!(sqnr > 13.0 && fine > sqnr, "{fine} dB with 8 bits, {sqnr} with 4");
    // A stricter limit is kept, too, with fewer of them.
    let (some, better, between) = quantized(&original, "int8(prefer=size,int4=0.00001)");
    assert!(packed(&some).len() < 3 && between > small, "{:?}", packed(&some));
    assert!(better > 35.0, "{better}");
}

#[test]
fn what_has_no_even_axis_or_another_target_keeps_8_bits() {
    let odd = net(33);
    let list = "int8(prefer=size,int4=0.2)";
    let kept = |name: &str| !packed(&quantized(&odd, list).0).iter().any(|n| n.starts_with(name));
    assert!(!kept("w0") && !kept("w2"), "its other axis is even");
    let original = net(WIDTH);
    for target in ["ort-avx2", "tensorrt", "qnn"] {
        let list = format!("int8(prefer=size,int4=0.2,target={target})");
        assert!(packed(&quantized(&original, &list).0).is_empty(), "{target}");
    }
}

#[test]
fn simplify_leaves_packed_weights_packed_and_counts_them() {
    let original = net(WIDTH);
    let (four, _, bytes) = quantized(&original, "int8(prefer=size,int4=0.05)");
    let mut again = four.clone();
    run_on(&mut again, "simplify", &data(&original, 8, 5));
    assert_eq!(packed(&again), packed(&four));
    assert!(onnxzip::onnx::encoded_len(&again).expect("it can be written") <= bytes);
    let params = |m: &Model| cost(m, &infer(m).expect("types")).params;
    assert_eq!(params(&four), params(&original), "two to a byte are two");
}

#[test]
fn all_codes_come_back_as_they_were() {
    let original = net(WIDTH);
    let (four, ..) = quantized(&original, "int8(prefer=size,int4=0.05)");
    let cast = four.nodes().find(|(_, n)| n.is("Cast")).expect("a packed weight").1;
    let codes = cast.output(0).expect("an output");
    let bytes = four
        .nodes()
        .find(|(_, n)| n.is("BitShift"))
        .expect("it is taken apart")
        .1;
    let bytes = four
        .constant(bytes.input(0).expect("bytes"))
        .expect("constant")
        .raw()
        .to_vec();
    let engine = Tract;
    let sample = data(&original, 1, 2).get(0).expect("a sample");
    let session = engine.load(&four, &[codes], &sample).expect("it loads");
    let seen = session.run(&sample).expect("it runs");
    let high = bytes.iter().map(|b| (b & 0xF0) as i8);
    let low = bytes.iter().map(|b| (b << 4) as i8);
    let wanted: Vec<u8> = high.chain(low).map(|q| q as u8).collect();
    assert_eq!(seen[0].raw()[..], wanted[..]);
    assert!(wanted.iter().any(|q| *q >= 128) && wanted.iter().any(|q| *q > 0 && *q < 128));
}
