//! Hard gates that are spelled out, and the scales around them.

use super::{Attr, Net, ValueId};

/// `x·Clip(x + 3, 0, 6)`, before it is divided.
fn open(n: &mut Net, x: ValueId) -> ValueId {
    let three = n.floats(&[1], &[3.0]);
    let sum = n.op("Add", &[x, three], vec![]);
    let (low, high) = (n.floats(&[], &[0.0]), n.floats(&[], &[6.0]));
    let gate = n.op("Clip", &[sum, low, high], vec![]);
    n.op("Mul", &[x, gate], vec![])
}

fn attr(n: &Net, node: usize, name: &str) -> f32 {
    let id = n.0.topological(n.0.main_id()).unwrap()[node];
    n.0.node(id).float(name).unwrap()
}

#[test]
fn a_hard_swish_that_is_spelled_out_takes_two_operators() {
    for (op, c) in [("Div", 6.0), ("Mul", 1.0 / 6.0)] {
        let mut n = Net::new(13);
        let x = n.input(&[1, 2, 4, 4]);
        let y = open(&mut n, x);
        let c = n.floats(&[], &[c]);
        let y = n.op(op, &[y, c], vec![]);
        n.output(y);
        assert_eq!(n.simplified(), ["HardSigmoid", "Mul"]);
        assert_eq!((attr(&n, 0, "alpha"), attr(&n, 0, "beta")), (1.0 / 6.0, 0.5));
    }
}

#[test]
fn another_factor_stays_behind_it() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 2, 4, 4]);
    let y = open(&mut n, x);
    let c = n.floats(&[], &[0.5]);
    let y = n.op("Mul", &[y, c], vec![]);
    n.output(y);
    assert_eq!(n.simplified(), ["HardSigmoid", "Mul", "Mul"]);
    assert_eq!(n.data(2, 1), [3.0]);
}

#[test]
fn a_gate_of_another_value_needs_no_product_of_its_own() {
    let mut n = Net::new(10);
    let x = n.input(&[1, 2, 4, 4]);
    let pooled = n.op("GlobalAveragePool", &[x], vec![]);
    let three = n.floats(&[], &[3.0]);
    let sum = n.op("Add", &[pooled, three], vec![]);
    let gate = n.op("Clip", &[sum], vec![Attr::float("min", 0.0), Attr::float("max", 6.0)]);
    let six = n.floats(&[1], &[6.0]);
    let gate = n.op("Div", &[gate, six], vec![]);
    let y = n.op("Mul", &[x, gate], vec![]);
    n.output(y);
    assert_eq!(n.simplified(), ["GlobalAveragePool", "HardSigmoid", "Mul"]);
}

#[test]
fn what_only_looks_like_a_gate_stays() {
    // A clip that someone else reads, one that does not begin at zero, and a constant that makes the value larger.
    for (read_twice, low, dims) in [(true, 0.0, &[][..]), (false, -1.0, &[]), (false, 0.0, &[3, 1, 1, 1, 1])] {
        let mut n = Net::new(13);
        let x = n.input(&[1, 2, 4, 4]);
        let three = n.floats(dims, &vec![3.0; dims.iter().product()]);
        let sum = n.op("Add", &[x, three], vec![]);
        let (low, high) = (n.floats(&[], &[low]), n.floats(&[], &[6.0]));
        let gate = n.op("Clip", &[sum, low, high], vec![]);
        let y = n.op("Mul", &[x, gate], vec![]);
        let six = n.floats(&[], &[6.0]);
        let y = n.op("Div", &[y, six], vec![]);
        n.output(y);
        if read_twice {
            n.output(gate);
        }
        assert_eq!(n.simplified(), ["Add", "Clip", "Mul", "Div"]);
    }
}

#[test]
fn a_scale_goes_past_a_shift_that_a_padded_convolution_keeps_out() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 2, 4, 4]);
    let (scale, shift) = (n.floats(&[2, 1, 1], &[2.0, -4.0]), n.floats(&[], &[8.0]));
    let y = n.op("Mul", &[x, scale], vec![]);
    let y = n.op("Add", &[y, shift], vec![]);
    let w = n.floats(&[1, 2, 1, 1], &[1.0, 10.0]);
    let y = n.op("Conv", &[y, w], vec![Attr::ints("pads", vec![1; 4])]);
    n.output(y);
    assert_eq!(n.simplified(), ["Add", "Conv"]);
    assert_eq!((n.data(0, 1), n.data(1, 1)), (vec![4.0, -2.0], vec![2.0, -40.0]));
}

#[test]
fn the_half_of_a_gelu_stays_with_it() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 2]);
    let root = n.floats(&[], &[std::f32::consts::SQRT_2]);
    let (one, half) = (n.floats(&[], &[1.0]), n.floats(&[], &[0.5]));
    let y = n.op("Div", &[x, root], vec![]);
    let y = n.op("Erf", &[y], vec![]);
    let y = n.op("Add", &[y, one], vec![]);
    let y = n.op("Mul", &[x, y], vec![]);
    let y = n.op("Mul", &[y, half], vec![]);
    let w = n.floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let y = n.op("Gemm", &[y, w], vec![]);
    n.output(y);
    assert_eq!(n.simplified(), ["Div", "Erf", "Add", "Mul", "Mul", "Gemm"]);
}
