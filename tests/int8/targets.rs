//! The conventions of each runtime.

use super::{count, model, node, numbers, output, residual, run, sqnr, weight};
use onnxzip::ir::{Attr, DType, Model, NodeId, Tensor, ValueId};

fn named(m: &Model, name: &str) -> NodeId {
    let mut all = m.nodes().filter(|(_, n)| n.name() == name);
    all.next().unwrap_or_else(|| panic!("no node {name}")).0
}

fn maker<'a>(m: &'a Model, node: &str, slot: usize) -> Option<&'a str> {
    let value = m.node(named(m, node)).input(slot)?;
    let producer = m.value(value).producer()?;
    Some(m.node(producer).op.name.as_str())
}

/// Types of the zero points of all activations, without repetition.
fn zero_points(m: &Model) -> Vec<DType> {
    let quantizers = m.nodes().filter(|(_, n)| n.op.name == "QuantizeLinear");
    let zero = |id: NodeId| m.constant_input(id, 2).expect("a constant").dtype();
    let mut all: Vec<DType> = quantizers.map(|(id, _)| zero(id)).collect();
    all.dedup();
    all
}

#[test]
fn every_target_stays_close_to_the_original() {
    for target in ["ort", "ort-avx2", "openvino", "qnn", "tensorrt", "generic"] {
        let original = residual(13);
        let mut m = original.clone();
        run(&mut m, &format!("int8(target={target},prefer=size)"));
        assert!(count(&m, "QuantizeLinear") >= 2, "{target}");
        let db = sqnr(&original, &m);
        let least = if target == "ort-avx2" { 24.0 } else { 28.0 };
        assert!(db > least, "{target}: {db} dB");
    }
}

/// Convolution, transposed convolution of overlapping windows, convolution.
fn turned(groups: usize) -> Model {
    let mut m = model(17);
    let x = super::input(&mut m, &[1, 32, 24, 24]);
    let (w1, w2, w3) = (
        weight(&mut m, "w1", &[48, 32, 3, 3], 1),
        weight(&mut m, "w2", &[48, 16 / groups, 4, 4], 2),
        weight(&mut m, "w3", &[32, 16, 3, 3], 3),
    );
    let b2 = weight(&mut m, "b2", &[16], 4);
    let c1 = node(&mut m, "Conv", "conv1", &[x, w1], "c1", vec![]);
    let attrs = vec![Attr::ints("strides", vec![2; 2]), Attr::int("group", groups as i64)];
    let c2 = node(&mut m, "ConvTranspose", "turned", &[c1, w2, b2], "c2", attrs);
    let y = node(&mut m, "Conv", "conv2", &[c2, w3], "y", vec![]);
    output(&mut m, y, &[1, 32, 44, 44]);
    m
}

#[test]
fn taps_and_groups_of_a_transposed_convolution_share_the_scale_of_their_channel() {
    for target in ["ort", "openvino", "qnn", "tensorrt", "generic"] {
        for groups in [1, 2] {
            let original = turned(groups);
            let mut m = original.clone();
            run(&mut m, &format!("int8(target={target})"));
            let dq = m.node(named(&m, "turned")).input(1).and_then(|v| m.value(v).producer());
            let dq = dq.expect("its weight is stored in integers, for ONNX Runtime because codes are around it");
            let scales = m.constant_input(dq, 1).expect("constant").dims();
            assert_eq!(
                (m.node(dq).int_or("axis", -1), scales),
                (1, &[16 / groups][..]),
                "{target}"
            );
            let db = sqnr(&original, &m);
            assert!(db > 28.0, "{target}, {groups} groups: {db} dB");
        }
    }
}

#[test]
fn a_transposed_convolution_between_floats_is_left_as_it_is_in_onnx_runtime() {
    let mut m = model(17);
    let x = super::input(&mut m, &[1, 32, 24, 24]);
    let w = weight(&mut m, "w", &[32, 16, 4, 4], 2);
    let y = node(&mut m, "ConvTranspose", "turned", &[x, w], "y", vec![]);
    output(&mut m, y, &[1, 16, 27, 27]);
    let mut stored = m.clone();
    run(&mut m, "int8(rest=float)");
    assert_eq!((count(&m, "QuantizeLinear"), maker(&m, "turned", 1)), (0, None));
    run(&mut m, "int8");
    assert_eq!((count(&m, "QuantizeLinear"), maker(&m, "turned", 1)), (0, Some("Mul")));
    let notes = run(&mut stored, "int8(prefer=size)");
    assert_eq!(maker(&stored, "turned", 1), Some("DequantizeLinear"));
    let told = notes
        .iter()
        .any(|n| n.what.ends_with("the weights of 1 ConvTranspose in 8 bits"));
    assert!(
        told && !notes.iter().any(|n| n.what.contains("in integers: 1")),
        "{notes:?}"
    );
}

#[test]
fn tensorrt_has_symmetric_codes_on_inputs_and_lets_conv_add_and_relu_fuse() {
    let mut m = residual(13);
    run(&mut m, "int8(target=tensorrt)");
    assert_eq!(zero_points(&m), [DType::Int8]);
    assert_eq!(count(&m, "Relu"), 1, "its own kernel has it");
    assert_eq!(maker(&m, "add1", 0), Some("DequantizeLinear"), "the shortcut");
    assert_eq!(maker(&m, "add1", 1), Some("Conv"), "one kernel with the Add");
    assert_eq!(
        (maker(&m, "conv1", 2), maker(&m, "conv2", 2)),
        (None, None),
        "float biases"
    );
    let public = m.main().outputs()[0].value;
    let last = m.value(public).producer().expect("a node");
    assert_eq!(m.node(last).op.name, "Add", "results are not quantized");
}

#[test]
fn openvino_has_unsigned_codes_on_inputs_and_float_biases() {
    let mut m = residual(13);
    run(&mut m, "int8(target=openvino)");
    assert_eq!(zero_points(&m), [DType::Uint8]);
    assert_eq!((count(&m, "Relu"), maker(&m, "conv1", 2)), (1, None));
    assert_eq!(maker(&m, "conv2", 0), Some("DequantizeLinear"));
    assert_eq!(
        maker(&m, "relu1", 0),
        Some("Conv"),
        "no pair between a Conv and its Relu"
    );
}

#[test]
fn the_weights_of_ort_avx2_have_seven_bits() {
    let mut m = residual(13);
    run(&mut m, "int8(target=ort-avx2)");
    let codes = m.constant_input(named(&m, "w1_DequantizeLinear"), 0).expect("codes");
    let largest = codes.raw().iter().map(|&c| (c as i8).unsigned_abs()).max();
    assert!(largest.is_some_and(|c| (32..=64).contains(&c)), "{largest:?}");
}

fn product() -> Model {
    let mut m = model(13);
    let x = super::input(&mut m, &[3, 32]);
    let w = weight(&mut m, "w", &[32, 24], 1);
    let y = node(&mut m, "MatMul", "product", &[x, w], "p", vec![]);
    let y = node(&mut m, "Softmax", "soft", &[y], "y", vec![Attr::int("axis", 1)]);
    output(&mut m, y, &[3, 24]);
    m
}

#[test]
fn qnn_has_one_scale_for_the_weight_of_a_product_and_generic_one_for_each_channel() {
    let scales = |target: &str| -> Vec<usize> {
        let mut m = product();
        run(&mut m, &format!("int8(target={target})"));
        assert_eq!(
            maker(&m, "soft", 0),
            Some("DequantizeLinear"),
            "{target}: pairs around everything"
        );
        let scale: Option<&Tensor> = m.constant_input(named(&m, "w_DequantizeLinear"), 1);
        scale.expect("a constant").dims().to_vec()
    };
    assert_eq!((scales("qnn"), scales("generic")), (vec![], vec![24]));
}

/// A bias that int32 cannot hold at the scale of the products.
#[test]
fn a_float_bias_costs_the_weights_nothing() {
    let mut m = model(13);
    let x: ValueId = super::input(&mut m, &[1, 8]);
    let tiny: Vec<f32> = numbers(64, 5).iter().map(|x| x * 1e-9).collect();
    let w = m.add_const(m.main_id(), "w", Tensor::new(&[8, 8], tiny));
    let b = m.add_const(m.main_id(), "b", Tensor::new(&[8], vec![1000f32; 8]));
    let y = node(&mut m, "Gemm", "gemm", &[x, w, b], "y", vec![]);
    output(&mut m, y, &[1, 8]);
    let scale = |target: &str| {
        let mut m = m.clone();
        run(&mut m, &format!("int8(target={target},prefer=size)"));
        let scale = m.constant_input(named(&m, "w_DequantizeLinear"), 1).expect("scales");
        scale.to_f32().expect("floats")[0]
    };
    assert!(scale("generic") > 10.0 * scale("tensorrt"));
}
