//! Few samples that stand out do not spoil the rest.

use super::{Dataset, Model, Tensor, input, numbers, output, run_on, sqnr_on};
use crate::tool::samples;

const WIDTH: usize = 32;

/// The first input meets weights forty times as large as others do.
fn with_a_rare_channel() -> Model {
    let mut m = super::model(13);
    let x = input(&mut m, &[1, WIDTH]);
    let mut w = numbers(WIDTH * WIDTH, 3);
    w[..WIDTH].iter_mut().for_each(|w| *w *= 40.0);
    let w = m.add_const(m.main_id(), "w1", Tensor::new(&[WIDTH, WIDTH], w));
    let h = super::node(&mut m, "MatMul", "first", &[x, w], "h", vec![]);
    let h = super::node(&mut m, "Relu", "relu", &[h], "r", vec![]);
    let w = super::weight(&mut m, "w2", &[WIDTH, WIDTH], 4);
    let y = super::node(&mut m, "MatMul", "second", &[h, w], "y", vec![]);
    output(&mut m, y, &[1, WIDTH]);
    m
}

/// Samples whose first number is zero, but for some.
fn data(m: &Model, count: usize, seed: u64, stands_out: impl Fn(usize) -> bool) -> Dataset {
    let mut all = numbers(count * WIDTH, seed);
    for (i, sample) in all.chunks_mut(WIDTH).enumerate() {
        sample[0] = if stands_out(i) { 1.0 } else { 0.0 };
    }
    samples(m, &[count, WIDTH], &all)
}

#[test]
fn one_sample_in_a_hundred_decides_neither_ranges_nor_weights() {
    let original = with_a_rare_channel();
    let usual = data(&original, 100, 7, |_| false);
    let sqnr = |list: &str, stands_out: &dyn Fn(usize) -> bool| {
        let mut m = original.clone();
        run_on(&mut m, list, &data(&original, 300, 5, stands_out));
        sqnr_on(&original, &m, &usual)
    };
    let rare = |i: usize| i % 100 == 41;
    let (never, few) = (sqnr("int8(prefer=size)", &|_| false), sqnr("int8(prefer=size)", &rare));
    let all = sqnr("int8(prefer=size, ranges=minmax, rounding=nearest, error=100)", &rare);
    // Weights of an input that never moves are cut off; those of one that rarely does are not.
    assert!(never > few && few > 30.0 && few > all + 9.0, "{never} {few} {all}");
}

#[test]
fn what_one_sample_in_ten_does_is_kept() {
    let original = with_a_rare_channel();
    let often = |i: usize| i % 10 == 4;
    let mut m = original.clone();
    run_on(&mut m, "int8(prefer=size)", &data(&original, 300, 5, often));
    let loud = sqnr_on(&original, &m, &data(&original, 50, 9, |_| true));
    assert!(loud > 25.0, "{loud}");
}

#[test]
fn what_is_zero_in_all_samples_stays_in_floating_point() {
    let original = with_a_rare_channel();
    let mut m = original.clone();
    run_on(
        &mut m,
        "int8(prefer=size)",
        &samples(&original, &[8, WIDTH], &[0.0; 8 * WIDTH]),
    );
    let ops: Vec<&str> = m.nodes().map(|(_, n)| n.op.name.as_str()).collect();
    assert!(!ops.contains(&"QuantizeLinear"), "{ops:?}");
}
