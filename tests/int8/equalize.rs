//! Channels of unequal reach before depthwise convolutions, and gates between the two.

use super::{Attr, Model, Note, Tensor, ValueId, count, input, node, numbers, output, run, sqnr, weight};

const CHANNELS: usize = 8;

/// What stands between the layer and the depthwise convolution.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Between {
    Relu,
    Gate,
    Swish,
    ShiftedGate,
}

/// A layer whose channels reach 1, 1/2, 1/4, … and a depthwise convolution that makes them equally large again.
fn unequal(between: Between) -> Model {
    let mut m = super::model(if between == Between::Swish { 14 } else { 13 });
    let x = input(&mut m, &[1, CHANNELS, 10, 10]);
    let reach = |c: usize| 4.0 * 0.5f32.powi(c as i32);
    let mut w = numbers(CHANNELS * CHANNELS, 3);
    w.iter_mut().enumerate().for_each(|(i, w)| *w *= reach(i / CHANNELS));
    let w = m.add_const(m.main_id(), "w1", Tensor::new(&[CHANNELS, CHANNELS, 1, 1], w));
    let b = numbers(CHANNELS, 8)
        .iter()
        .enumerate()
        .map(|(c, b)| b * reach(c))
        .collect();
    let b = m.add_const(m.main_id(), "b1", Tensor::new(&[CHANNELS], b));
    let y = node(&mut m, "Conv", "maker", &[x, w, b], "y", vec![]);
    let opened = match between {
        Between::Relu => node(&mut m, "Relu", "relu", &[y], "opened", vec![]),
        Between::Swish => node(&mut m, "HardSwish", "swish", &[y], "opened", vec![]),
        Between::Gate | Between::ShiftedGate => {
            let attrs = vec![Attr::float("alpha", 1.0 / 6.0), Attr::float("beta", 0.5)];
            let gate = node(&mut m, "HardSigmoid", "gate", &[y], "g", attrs);
            node(&mut m, "Mul", "product", &[y, gate], "opened", vec![])
        }
    };
    let opened = match between {
        Between::ShiftedGate => {
            let shift = m.add_const(m.main_id(), "shift", Tensor::new(&[], vec![0.01f32]));
            node(&mut m, "Add", "add", &[opened, shift], "shifted", vec![])
        }
        _ => opened,
    };
    let mut w = numbers(CHANNELS * 9, 5);
    w.iter_mut().enumerate().for_each(|(i, w)| *w /= reach(i / 9));
    let w = m.add_const(m.main_id(), "w2", Tensor::new(&[CHANNELS, 1, 3, 3], w));
    let attrs = vec![Attr::int("group", CHANNELS as i64), Attr::ints("pads", vec![1; 4])];
    let z = node(&mut m, "Conv", "depthwise", &[opened, w], "z", attrs);
    let w = weight(&mut m, "w3", &[4, CHANNELS, 1, 1], 7);
    let z = node(&mut m, "Conv", "last", &[z, w], "out", vec![]);
    output(&mut m, z, &[1, 4, 10, 10]);
    m
}

/// The signal to noise of the result in dB, and what was said.
fn quantized(original: &Model, list: &str) -> (f64, Vec<Note>, Model) {
    let mut m = original.clone();
    let notes = run(&mut m, list);
    (sqnr(original, &m), notes, m)
}

fn said(notes: &[Note]) -> bool {
    notes.iter().any(|n| n.what.contains("channels of equal reach"))
}

#[test]
fn equal_channels_save_what_a_depthwise_convolution_amplifies() {
    for between in [Between::Relu, Between::Gate, Between::Swish, Between::ShiftedGate] {
        let original = unequal(between);
        let (plain, notes, _) = quantized(&original, "int8(prefer=size,error=100)");
        assert!(!said(&notes), "{between:?}: nobody asked for less error");
        let (equal, notes, m) = quantized(&original, "int8(prefer=size,error=0.003)");
        assert!(said(&notes), "{between:?}: {notes:?}");
        assert!(equal > plain + 6.0 && equal > 26.0, "{between:?}: {plain} {equal}");
        let left = notes.iter().any(|n| n.what.contains("stay in floating point"));
        assert!(!left, "{between:?}: nothing had to be given up: {notes:?}");
        let gates = usize::from(between != Between::Relu);
        assert_eq!(
            (count(&m, "HardSigmoid"), count(&m, "HardSwish")),
            (gates, 0),
            "{between:?}"
        );
    }
}

#[test]
fn channels_that_someone_else_reads_are_left_as_they_are() {
    let mut original = unequal(Between::Relu);
    let opened = original.values().find(|(_, v)| v.name == "opened").expect("a value").0;
    output(&mut original, opened, &[1, CHANNELS, 10, 10]);
    let (_, notes, _) = quantized(&original, "int8(prefer=size,error=0.003)");
    assert!(!said(&notes), "{notes:?}");
}

/// The range that codes of a value cover.
fn range(m: &Model, name: &str) -> (f32, f32) {
    let quantize = format!("{name}_QuantizeLinear");
    let named = m.nodes().find(|(_, n)| n.name() == quantize);
    let (id, _) = named.expect("it is quantized");
    let constant = |slot| m.constant_input(id, slot).expect("a constant");
    let scale = constant(1).floats().expect("floats")[0];
    let zero = constant(2).ints().expect("an integer")[0] as f32;
    (-zero * scale, (255.0 - zero) * scale)
}

fn gated(opset: i64, spare: bool) -> (Model, ValueId) {
    let mut m = super::model(opset);
    let x = input(&mut m, &[1, 4, 6, 6]);
    let w = numbers(16, 3).iter().map(|w| w * 9.0).collect();
    let w = m.add_const(m.main_id(), "w1", Tensor::new(&[4, 4, 1, 1], w));
    let y = node(&mut m, "Conv", "maker", &[x, w], "y", vec![]);
    let attrs = vec![Attr::float("alpha", 1.0 / 6.0), Attr::float("beta", 0.5)];
    let gate = node(&mut m, "HardSigmoid", "gate", &[y], "g", attrs);
    let z = node(&mut m, "Mul", "product", &[y, gate], "opened", vec![]);
    let z = match spare {
        true => node(&mut m, "Sub", "sub", &[z, y], "less", vec![]),
        false => z,
    };
    let w = weight(&mut m, "w2", &[4, 4, 1, 1], 4);
    let z = node(&mut m, "Conv", "reader", &[z, w], "z", vec![]);
    output(&mut m, z, &[1, 4, 6, 6]);
    (m, y)
}

#[test]
fn codes_end_where_a_gate_is_shut() {
    let (original, _) = gated(13, false);
    let (_, _, m) = quantized(&original, "int8(prefer=size,error=100)");
    let (low, high) = range(&m, "y");
    assert!((-3.2..=-2.9).contains(&low) && high > 9.0, "{low} {high}");
    let (original, _) = gated(13, true);
    let (_, _, m) = quantized(&original, "int8(prefer=size,error=100)");
    assert!(range(&m, "y").0 < -9.0, "someone reads what the gate shuts out");
}

#[test]
fn tiny_probabilities_are_not_quantized() {
    let mut original = super::model(13);
    let x = input(&mut original, &[1, 4, 6, 6]);
    let w = weight(&mut original, "w", &[4, 4, 1, 1], 3);
    let b = original.add_const(original.main_id(), "b", Tensor::new(&[4], vec![-9f32; 4]));
    let y = node(&mut original, "Conv", "conv", &[x, w, b], "y", vec![]);
    let y = node(&mut original, "Sigmoid", "sigmoid", &[y], "p", vec![]);
    let y = node(
        &mut original,
        "MaxPool",
        "pool",
        &[y],
        "q",
        vec![Attr::ints("kernel_shape", vec![2, 2])],
    );
    output(&mut original, y, &[1, 4, 5, 5]);
    let (after, notes, _) = quantized(&original, "int8(prefer=size,error=100)");
    let left = notes
        .iter()
        .find(|n| n.node == "p" && n.what.contains("codes would cover [0, 1]"));
    assert!(left.is_some() && after > 15.0, "{after} dB {notes:?}");
}
