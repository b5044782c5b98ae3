//! Weights that several operators read.

use super::narrow::{WIDTH, data, packed, quantized};
use super::{Model, Tensor, ValueId, input, node, numbers, output, weight};
use onnxzip::engine::{Engine, tract::Tract};

/// A dense layer that runs three times, with a bias of its own each time; the last is large.
fn unrolled() -> Model {
    let mut m = super::model(13);
    let mut x = input(&mut m, &[1, WIDTH]);
    let small = numbers(WIDTH * WIDTH, 3).iter().map(|x| x / 8.0).collect();
    let w = m.add_const(m.main_id(), "w", Tensor::new(&[WIDTH, WIDTH], small));
    for i in 0..3 {
        let b = weight(&mut m, &format!("b{i}"), &[WIDTH], i + 7);
        x = node(&mut m, "Gemm", &format!("fc{i}"), &[x, w, b], &format!("h{i}"), vec![]);
        x = node(&mut m, "Tanh", &format!("tanh{i}"), &[x], &format!("t{i}"), vec![]);
    }
    output(&mut m, x, &[1, WIDTH]);
    m
}

/// The names of the constants of as many numbers as the weight, or an eighth.
fn weights(m: &Model) -> Vec<&str> {
    let all = m
        .values()
        .filter_map(|(_, v)| Some((v.name.as_str(), v.tensor()?.len())));
    all.filter(|(_, len)| *len >= WIDTH * WIDTH / 8)
        .map(|(name, _)| name)
        .collect()
}

#[test]
fn a_weight_that_several_operators_read_is_stored_once() {
    let original = unrolled();
    let (eight, fine, _) = quantized(&original, "int8(prefer=size)");
    assert_eq!(weights(&eight), ["w_quantized"]);
    assert!(fine > 28.0, "{fine} dB");
    let (few, coarse, _) = quantized(&original, "int8(prefer=size,mixed=0.3)");
    assert_eq!(weights(&few), ["w_quantized_bits2", "w_quantized_bits1"]);
    assert_eq!(packed(&few).len(), 1);
    assert!(fine > coarse && coarse > 6.0, "{coarse} dB");
}

/// The mean of each number that the layers give out, layer by layer.
fn means(m: &Model) -> Vec<f64> {
    let layers: Vec<ValueId> = m
        .nodes()
        .filter(|(_, n)| n.is("Gemm"))
        .filter_map(|(_, n)| n.output(0))
        .collect();
    let samples = data(m, 400, 5).all();
    let first = samples.get(0).expect("a sample");
    let session = Tract.load(m, &layers, &first).expect("tract loads it");
    let mut sums = vec![0.0; layers.len() * WIDTH];
    for i in 0..samples.len() {
        let outputs = session.run(&samples.get(i).expect("a sample")).expect("it runs");
        let all = outputs.iter().flat_map(|t| t.floats().expect("floats").to_vec());
        sums.iter_mut().zip(all).for_each(|(sum, x)| *sum += f64::from(x));
    }
    sums.iter().map(|sum| sum / samples.len() as f64).collect()
}

#[test]
fn every_reader_keeps_its_own_mean() {
    let original = unrolled();
    let (seven, ..) = quantized(&original, "int8(prefer=size,weights=7)");
    let (before, after) = (means(&original), means(&seven));
    let last = 2 * WIDTH..3 * WIDTH;
    let wrong = before[last.clone()]
        .iter()
        .zip(&after[last])
        .map(|(a, b)| (a - b).powi(2));
    let wrong = (wrong.sum::<f64>() / WIDTH as f64).sqrt();
    assert!(wrong < 0.00055, "{wrong}: with the mean of all readers it is .00073");
}

#[test]
fn what_is_read_in_another_way_has_codes_of_its_own() {
    let mut original = unrolled();
    let last = original
        .nodes()
        .filter(|(_, n)| n.is("Gemm"))
        .last()
        .expect("a layer")
        .0;
    let turned = onnxzip::ir::Attr::int("transB", 1);
    original.node_mut(last).set_attr(turned);
    let (eight, fine, _) = quantized(&original, "int8(prefer=size)");
    assert_eq!(weights(&eight), ["w_quantized", "w_quantized_1"]);
    assert!(fine > 28.0, "{fine} dB");
}
