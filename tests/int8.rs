//! `int8` on small graphs with known answers.

use crate::tool::{run_passes, samples};
use onnxzip::data::{Dataset, Sample};
use onnxzip::engine::{Engine, tract::Tract};
use onnxzip::ir::{Attr, Model, Tensor, ValueId, check};
use onnxzip::passes::{Note, NoteKind};
use onnxzip::{onnx, pb};

mod choices;
mod equalize;
mod gelu;
mod narrow;
mod opsets;
mod outliers;
pub mod place;
mod prepare;
mod rest;
mod settle;
mod tables;
mod targets;
mod tied;

fn model(opset: i64) -> Model {
    Model::new(pb::ModelProto {
        ir_version: Some(if opset < 9 { 3 } else { 8 }),
        opset_import: vec![pb::OperatorSetIdProto {
            version: Some(opset),
            ..Default::default()
        }],
        ..Default::default()
    })
}

fn port(name: &str, dims: &[usize]) -> pb::ValueInfoProto {
    let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
    crate::tool::port(name, &dims)
}

fn input(m: &mut Model, dims: &[usize]) -> ValueId {
    m.add_input(m.main_id(), port("x", dims))
}

fn output(m: &mut Model, v: ValueId, dims: &[usize]) {
    let name = m.value(v).name.clone();
    m.add_output(m.main_id(), port(&name, dims), v);
}

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

fn weight(m: &mut Model, name: &str, dims: &[usize], seed: u64) -> ValueId {
    let data = numbers(dims.iter().product(), seed);
    m.add_const(m.main_id(), name, Tensor::new(dims, data))
}

fn node(m: &mut Model, op: &str, name: &str, inputs: &[ValueId], out: &str, attrs: Vec<Attr>) -> ValueId {
    let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
    m.add_node(m.main_id(), name, op, &inputs, &[out], attrs).1[0]
}

fn run_on(m: &mut Model, list: &str, data: &Dataset) -> Vec<Note> {
    run_passes(m, list, data, 1)
}

pub fn run(m: &mut Model, list: &str) -> Vec<Note> {
    let data = Dataset::synthetic(m, 3, 32);
    run_on(m, list, &data)
}

fn count(m: &Model, op: &str) -> usize {
    m.nodes().filter(|(_, n)| n.op.name == op).count()
}

/// Signal to noise of the first output, in dB, over a few samples.
fn sqnr(a: &Model, b: &Model) -> f64 {
    sqnr_on(a, b, &Dataset::synthetic(a, 9, 32))
}

fn sqnr_on(a: &Model, b: &Model, data: &Dataset) -> f64 {
    let data = data.all();
    let first = data.get(0).expect("a sample");
    let run = |m: &Model, s: &Sample| {
        let session = Tract
            .load(m, &[m.main().outputs()[0].value], &first)
            .expect("tract loads it");
        session.run(s).expect("it runs")[0].floats().expect("floats").to_vec()
    };
    let (mut signal, mut noise) = (0.0, 0.0);
    for i in 0..data.len() {
        let sample = data.get(i).expect("a sample");
        for (x, y) in run(a, &sample).iter().zip(run(b, &sample)) {
            signal += f64::from(*x).powi(2);
            noise += f64::from(x - y).powi(2);
        }
    }
    10.0 * (signal / noise).log10()
}

/// Conv, Relu, Conv, residual Add.
fn residual(opset: i64) -> Model {
    let mut m = model(opset);
    let x = input(&mut m, &[1, 4, 5, 5]);
    let (w1, b1) = (weight(&mut m, "w1", &[4, 4, 3, 3], 1), weight(&mut m, "b1", &[4], 2));
    let (w2, b2) = (weight(&mut m, "w2", &[4, 4, 1, 1], 3), weight(&mut m, "b2", &[4], 4));
    let c1 = node(
        &mut m,
        "Conv",
        "conv1",
        &[x, w1, b1],
        "c1",
        vec![Attr::ints("pads", vec![1; 4])],
    );
    let r1 = node(&mut m, "Relu", "relu1", &[c1], "r1", vec![]);
    let c2 = node(&mut m, "Conv", "conv2", &[r1, w2, b2], "c2", vec![]);
    let y = node(&mut m, "Add", "add1", &[r1, c2], "y", vec![]);
    output(&mut m, y, &[1, 4, 5, 5]);
    m
}

/// Printed by `quantize_static` of onnxruntime 1.31.1 (Q/DQ, per channel, u8 and s8) for the same net.
const LAYOUT: &str = "\
Add add1 [r1_DequantizeLinear_Output c2_DequantizeLinear_Output] -> y_QuantizeLinear_Input
Conv conv1 [x_DequantizeLinear_Output w1_DequantizeLinear_Output b1] -> r1
Conv conv2 [r1_DequantizeLinear_Output w2_DequantizeLinear_Output b2] -> c2
DequantizeLinear b1_DequantizeLinear [b1_quantized b1_quantized_scale b1_quantized_zero_point] -> b1 axis 0
DequantizeLinear b2_DequantizeLinear [b2_quantized b2_quantized_scale b2_quantized_zero_point] -> b2 axis 0
DequantizeLinear c2_DequantizeLinear [c2_QuantizeLinear_Output c2_scale c2_zero_point] -> c2_DequantizeLinear_Output
DequantizeLinear r1_DequantizeLinear [r1_QuantizeLinear_Output r1_scale r1_zero_point] -> r1_DequantizeLinear_Output
DequantizeLinear w1_DequantizeLinear [w1_quantized w1_scale w1_zero_point] -> w1_DequantizeLinear_Output axis 0
DequantizeLinear w2_DequantizeLinear [w2_quantized w2_scale w2_zero_point] -> w2_DequantizeLinear_Output axis 0
DequantizeLinear x_DequantizeLinear [x_QuantizeLinear_Output x_scale x_zero_point] -> x_DequantizeLinear_Output
DequantizeLinear y_DequantizeLinear [y_QuantizeLinear_Output y_scale y_zero_point] -> y
QuantizeLinear c2_QuantizeLinear [c2 c2_scale c2_zero_point] -> c2_QuantizeLinear_Output
QuantizeLinear r1_QuantizeLinear [r1 r1_scale r1_zero_point] -> r1_QuantizeLinear_Output
QuantizeLinear x_QuantizeLinear [x x_scale x_zero_point] -> x_QuantizeLinear_Output
QuantizeLinear y_QuantizeLinear [y_QuantizeLinear_Input y_scale y_zero_point] -> y_QuantizeLinear_Output
b1_quantized Int32 [4]
b1_quantized_scale Float [4]
b1_quantized_zero_point Int32 [4]
b2_quantized Int32 [4]
b2_quantized_scale Float [4]
b2_quantized_zero_point Int32 [4]
c2_scale Float []
c2_zero_point Uint8 []
r1_scale Float []
r1_zero_point Uint8 []
w1_quantized Int8 [4, 4, 3, 3]
w1_scale Float [4]
w1_zero_point Int8 [4]
w2_quantized Int8 [4, 4, 1, 1]
w2_scale Float [4]
w2_zero_point Int8 [4]
x_scale Float []
x_zero_point Uint8 []
y_scale Float []
y_zero_point Uint8 []
";

fn layout(m: &Model) -> String {
    let name = |v: &Option<ValueId>| v.map_or(String::new(), |v| m.value(v).name.clone());
    let mut nodes: Vec<String> = m
        .nodes()
        .map(|(_, n)| {
            let inputs: Vec<String> = n.inputs().iter().map(name).collect();
            let outputs: Vec<String> = n.outputs().iter().map(name).collect();
            let axis = n.int("axis").map_or(String::new(), |a| format!(" axis {a}"));
            format!(
                "{} {} [{}] -> {}{axis}\n",
                n.op.name,
                n.name(),
                inputs.join(" "),
                outputs.join(" ")
            )
        })
        .collect();
    let mut consts: Vec<String> = m
        .values()
        .filter_map(|(_, v)| {
            Some(format!(
                "{} {:?} {:?}\n",
                v.name,
                v.tensor()?.dtype(),
                v.tensor()?.dims()
            ))
        })
        .collect();
    nodes.sort();
    consts.sort();
    nodes.concat() + &consts.concat()
}

/// With the same name for all zero points, and without their own lines.
fn but_for_zero_points(layout: &str) -> String {
    let word = |w: &str| match w.strip_suffix(']').unwrap_or(w) {
        z if z.ends_with("_zero_point") || z.starts_with("zero_point") => "zero_point]".to_owned(),
        _ => w.to_owned(),
    };
    let line = |l: &str| l.split(' ').map(word).collect::<Vec<_>>().join(" ") + "\n";
    let lines = layout.lines().map(line);
    lines.filter(|l| !l.starts_with("zero_point]")).collect()
}

#[test]
fn layout_and_names_are_those_of_onnx_runtimes_quantizer_but_zero_points_are_shared() {
    let mut m = residual(13);
    run(&mut m, "int8");
    let ours = layout(&m);
    assert_eq!(but_for_zero_points(&ours), but_for_zero_points(LAYOUT));
    let zeros: Vec<&str> = ours.lines().filter(|l| l.starts_with("zero_point")).collect();
    assert_eq!(
        zeros[zeros.len() - 2..],
        ["zero_points_int32_4 Int32 [4]", "zero_points_int8_4 Int8 [4]"]
    );
    let different = zeros.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(different == zeros.len() && zeros.len() <= 7, "{zeros:?}");
}

#[test]
fn the_result_is_close_to_the_original_from_every_operator_set() {
    for opset in [7, 11, 13, 17] {
        let original = residual(opset);
        let mut m = original.clone();
        run(&mut m, "int8");
        assert_eq!(m.opset(""), opset.max(13));
        let db = sqnr(&original, &m);
        assert!(db > 30.0, "opset {opset}: {db:.1} dB");
    }
}

#[test]
fn the_same_bytes_come_out_for_any_number_of_threads() {
    let bytes: Vec<Vec<u8>> = (0..2)
        .map(|_| {
            let mut m = residual(13);
            run(&mut m, "int8");
            onnx::to_bytes(&m).expect("it can be written")
        })
        .collect();
    assert!(bytes[0] == bytes[1]);
}

#[test]
fn dead_channels_keep_their_bias() {
    let original = {
        let mut m = model(13);
        let x = input(&mut m, &[1, 3, 6, 6]);
        let mut w = numbers(4 * 27, 5);
        w[..27].iter_mut().for_each(|x| *x *= 1e-12);
        w[27..54].fill(0.0);
        let w = m.add_const(m.main_id(), "w", Tensor::new(&[4, 3, 3, 3], w));
        let b = m.add_const(m.main_id(), "b", Tensor::new(&[4], vec![6.5f32, -7.25, 0.5, 0.0]));
        let y = node(&mut m, "Conv", "conv", &[x, w, b], "y", vec![]);
        output(&mut m, y, &[1, 4, 4, 4]);
        m
    };
    for options in [
        "int8",
        "int8(rounding=nearest)",
        "int8(per_channel=off)",
        "int8(weights=7)",
    ] {
        let mut m = original.clone();
        run(&mut m, options);
        let find = |name: &str| {
            m.values()
                .find(|(_, v)| v.name == name)
                .and_then(|(_, v)| v.tensor().cloned())
        };
        let codes = find("b_quantized").expect("codes").ints().expect("int32");
        let scales = find("b_quantized_scale")
            .expect("scales")
            .to_f32()
            .expect("floats")
            .into_owned();
        for (i, b) in [(0, 6.5f64), (1, -7.25)] {
            let back = codes[i] as f64 * f64::from(scales[i.min(scales.len() - 1)]);
            assert!((back - b).abs() < 0.02, "{options}: {back} for {b}");
        }
        assert!(scales.iter().all(|s| s.is_finite() && *s > 0.0));
        assert!(sqnr(&original, &m) > 25.0, "{options}");
    }
}

/// A model of one dense layer, and a data set in a file.
fn dense() -> Model {
    let mut m = model(13);
    let x = input(&mut m, &[1, 4]);
    let (w, b) = (weight(&mut m, "w", &[4, 3], 1), weight(&mut m, "b", &[3], 2));
    let h = node(&mut m, "Gemm", "fc1", &[x, w, b], "h", vec![]);
    let r = node(&mut m, "Relu", "relu", &[h], "r", vec![]);
    let (w2, b2) = (weight(&mut m, "w2", &[2, 3], 3), weight(&mut m, "b2", &[2], 4));
    let attrs = vec![
        Attr::int("transB", 1),
        Attr::float("alpha", 0.5),
        Attr::float("beta", 2.0),
    ];
    let y = node(&mut m, "Gemm", "fc2", &[r, w2, b2], "y", attrs);
    output(&mut m, y, &[1, 2]);
    m
}

#[test]
fn the_last_dense_layer_gives_out_floats_and_its_factors_go_into_the_weights() {
    let original = dense();
    let mut m = original.clone();
    run(&mut m, "int8");
    assert_eq!((count(&m, "QuantizeLinear"), count(&m, "Relu")), (2, 0));
    let last = m.nodes().find(|(_, n)| n.name() == "fc2").expect("fc2").1;
    assert!(last.float("alpha").is_none() && last.float("beta").is_none());
    assert_eq!(m.value(last.output(0).expect("an output")).name, "y");
    assert!(sqnr(&original, &m) > 30.0);
}

#[test]
fn odd_calibration_data_never_give_scales_that_are_not_numbers() {
    let cases: [(&str, Vec<[f32; 4]>); 5] = [
        ("all zero", vec![[0.0; 4]; 4]),
        ("constant", vec![[0.5; 4]; 4]),
        ("one sample", vec![[0.1, -0.5, 0.3, 1.0]]),
        ("an outlier", vec![[0.1, -0.5, 0.3, 1.0], [1e30, 0.0, 0.0, 0.0]]),
        ("tiny", vec![[1e-42, 0.0, -1e-43, 0.0]; 3]),
    ];
    for (what, data) in cases {
        for options in [
            "int8",
            "int8(ranges=minmax)",
            "int8(ranges=kl)",
            "int8(ranges=percentile)",
            "int8(ranges=mse)",
        ] {
            let mut m = dense();
            let data = samples(&m, &[data.len(), 4], data.as_flattened());
            run_on(&mut m, options, &data);
            for (_, v) in m.values().filter(|(_, v)| v.name.ends_with("scale")) {
                let scales = v.tensor().and_then(|t| t.to_f32()).expect("scales").into_owned();
                assert!(
                    scales.iter().all(|s| s.is_normal() && *s > 0.0),
                    "{what}, {options}: {} {scales:?}",
                    v.name
                );
            }
        }
    }
}

#[test]
fn a_quantized_model_is_left_alone() {
    let mut m = residual(13);
    run(&mut m, "int8");
    let before = onnx::to_bytes(&m).expect("it can be written");
    let notes = run(&mut m, "int8");
    assert!(onnx::to_bytes(&m).expect("it can be written") == before);
    assert!(matches!(&notes[..], [n] if n.kind == NoteKind::Skip));
}

#[test]
fn what_is_skipped_stays_in_floating_point_with_its_weights() {
    let mut m = residual(13);
    let notes = run(&mut m, "int8(skip=conv2;nothing*,prefer=size)");
    let conv2 = m.nodes().find(|(_, n)| n.name() == "conv2").expect("conv2").0;
    assert!(m.constant_input(conv2, 1).is_some_and(|w| w.floats().is_some()));
    assert!(notes.iter().any(|n| n.node == "conv2" && n.kind == NoteKind::Skip));
    assert!(m.nodes().any(|(_, n)| n.name() == "w1_DequantizeLinear"));
}

#[test]
fn a_relu_behind_a_pool_goes_and_the_pool_keeps_the_scale() {
    let mut m = model(13);
    let x = input(&mut m, &[1, 2, 8, 8]);
    let (w, b) = (weight(&mut m, "w", &[3, 2, 3, 3], 1), weight(&mut m, "b", &[3], 2));
    let c = node(&mut m, "Conv", "conv", &[x, w, b], "c", vec![]);
    let pool = vec![
        Attr::ints("kernel_shape", vec![2, 2]),
        Attr::ints("strides", vec![2, 2]),
    ];
    let p = node(&mut m, "MaxPool", "pool", &[c], "p", pool);
    let r = node(&mut m, "Relu", "relu", &[p], "r", vec![]);
    let (w2, b2) = (weight(&mut m, "w2", &[3, 3, 1, 1], 3), weight(&mut m, "b2", &[3], 4));
    let y = node(&mut m, "Conv", "conv2", &[r, w2, b2], "y", vec![]);
    output(&mut m, y, &[1, 3, 3, 3]);
    let original = m.clone();
    run(&mut m, "int8");
    assert_eq!(count(&m, "Relu"), 0);
    let pool = m.nodes().find(|(_, n)| n.name() == "pool").expect("pool").1;
    let before = m.value(pool.input(0).expect("an input")).producer().expect("a DQ");
    let after = m.readers(pool.output(0).expect("an output"))[0];
    assert_eq!(m.node(before).input(1), m.node(after).input(1), "one scale");
    assert!(sqnr(&original, &m) > 28.0);
}

#[test]
fn concat_and_what_it_alone_reads_have_one_scale() {
    let mut m = model(13);
    let x = input(&mut m, &[1, 2, 4, 4]);
    let (wa, wb) = (
        weight(&mut m, "wa", &[2, 2, 1, 1], 1),
        weight(&mut m, "wb", &[2, 2, 1, 1], 2),
    );
    let a = node(&mut m, "Conv", "a", &[x, wa], "va", vec![]);
    let b = node(&mut m, "Conv", "b", &[x, wb], "vb", vec![]);
    let c = node(&mut m, "Concat", "cat", &[a, b], "vc", vec![Attr::int("axis", 1)]);
    let w = weight(&mut m, "w", &[2, 4, 1, 1], 3);
    let y = node(&mut m, "Conv", "last", &[c, w], "y", vec![]);
    output(&mut m, y, &[1, 2, 4, 4]);
    run(&mut m, "int8");
    let scale = |name: &str| {
        let v = m.values().find(|(_, v)| v.name == name).expect("a scale").1;
        v.tensor().and_then(|t| t.to_f32()).expect("a number")[0].to_bits()
    };
    assert_eq!(
        (scale("va_scale"), scale("vb_scale")),
        (scale("vc_scale"), scale("vc_scale"))
    );
}
