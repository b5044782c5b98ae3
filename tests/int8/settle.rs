//! What harms the outputs stays in floating point.

use super::{Model, Tensor, input, numbers, output, run, sqnr};

/// Two layers; the second ignores the channel that stretches the range of what lies between.
fn stretched() -> Model {
    let mut m = super::model(17);
    let x = input(&mut m, &[1, 64]);
    let mut w = numbers(64 * 64, 3);
    w.iter_mut().step_by(64).for_each(|w| *w *= 80.0);
    let w = m.add_const(m.main_id(), "w1", Tensor::new(&[64, 64], w));
    let y = super::node(&mut m, "MatMul", "first", &[x, w], "y", vec![]);
    let mut w = numbers(64 * 64, 4);
    w[..64].fill(0.0);
    let w = m.add_const(m.main_id(), "w2", Tensor::new(&[64, 64], w));
    let z = super::node(&mut m, "MatMul", "second", &[y, w], "z", vec![]);
    output(&mut m, z, &[1, 64]);
    m
}

#[test]
fn a_range_that_drowns_what_the_output_needs_is_not_quantized() {
    let original = stretched();
    let mut careless = original.clone();
    run(&mut careless, "int8(prefer=size, error=100)");
    assert!(sqnr(&original, &careless) < 13.0, "{}", sqnr(&original, &careless));
    let mut careful = original.clone();
    let notes = run(&mut careful, "int8(prefer=size)");
    assert!(sqnr(&original, &careful) > 25.0, "{}", sqnr(&original, &careful));
    let left = notes
        .iter()
        .find(|n| n.node == "second" && n.what.contains("stay in floating point"));
    assert!(left.is_some(), "{notes:?}");
}

#[test]
fn a_clip_that_is_the_output_goes_like_any_other() {
    let mut original = super::model(13);
    let x = input(&mut original, &[1, 4, 5, 5]);
    let w = super::weight(&mut original, "w", &[4, 4, 3, 3], 1);
    let y = super::node(&mut original, "Conv", "conv", &[x, w], "c", vec![]);
    let y = super::node(&mut original, "Relu", "relu", &[y], "y", vec![]);
    output(&mut original, y, &[1, 4, 3, 3]);
    let mut m = original.clone();
    run(&mut m, "int8(prefer=size)");
    assert_eq!((super::count(&m, "Relu"), super::count(&m, "QuantizeLinear")), (0, 2));
    assert!(sqnr(&original, &m) > 28.0, "{}", sqnr(&original, &m));
}

/// The Relus go, and the values that take their names are negative where the Relus were 0.
#[test]
fn relus_that_go_are_no_damage_before_an_output_that_has_saturated() {
    let mut original = super::model(17);
    let x = input(&mut original, &[1, 64]);
    let w = super::weight(&mut original, "w1", &[64, 64], 5);
    let h = super::node(&mut original, "MatMul", "first", &[x, w], "h", vec![]);
    let h = super::node(&mut original, "Relu", "relu1", &[h], "r", vec![]);
    let mut w = numbers(64 * 8, 6);
    // The first class always wins, by far; all others are mostly negative.
    w.chunks_mut(8).for_each(|row| {
        row[0] = row[0].abs() * 30.0;
        row[1..].iter_mut().for_each(|w| *w -= 1.0);
    });
    let w = original.add_const(original.main_id(), "w2", Tensor::new(&[64, 8], w));
    let h = super::node(&mut original, "MatMul", "second", &[h, w], "logits", vec![]);
    let h = super::node(&mut original, "Relu", "relu2", &[h], "scores", vec![]);
    let y = super::node(&mut original, "Softmax", "softmax", &[h], "y", vec![]);
    output(&mut original, y, &[1, 8]);
    let mut m = original.clone();
    let notes = run(&mut m, "int8(prefer=size)");
    assert_eq!(super::count(&m, "Relu"), 0, "{notes:?}");
    assert!(
        notes.iter().all(|n| !n.what.contains("stay in floating point")),
        "{notes:?}"
    );
}

#[test]
fn an_error_of_nothing_is_refused() {
    let e = onnxzip::passes::parse_list("int8(error=0)").err().expect("refused");
    assert!(e.to_string().contains("above 0"), "{e}");
}
