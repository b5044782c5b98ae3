//! What runs in integers, and what stays as it is though it could.

use super::{Attr, Model, Tensor, ValueId, input, node, output, run, weight};

/// What makes the data of the nodes of an operator.
fn makers<'a>(m: &'a Model, op: &'a str) -> impl Iterator<Item = Option<&'a str>> {
    let of = |v: ValueId| Some(m.node(m.value(v).producer()?).op.name.as_str());
    let nodes = m.nodes().filter(move |(_, n)| n.is(op));
    nodes.map(move |(_, n)| n.input(0).and_then(of))
}

/// `MatMul → Add (bias) → Add (residual) → LayerNormalization → MatMul`.
fn residual() -> Model {
    const WIDTH: usize = 128;
    let mut m = super::model(17);
    let x = input(&mut m, &[1, 64, WIDTH]);
    let ones = m.add_const(m.main_id(), "ones", Tensor::new(&[WIDTH], vec![1.0f32; WIDTH]));
    let bias = weight(&mut m, "bias", &[WIDTH], 9);
    let mut v = x;
    for k in 0..2 {
        let name = |part: &str| format!("{part}{k}");
        let w = weight(&mut m, &name("w"), &[WIDTH, WIDTH], 3 + k);
        let y = node(&mut m, "MatMul", &name("dense"), &[v, w], &name("y"), vec![]);
        let sum = node(&mut m, "Add", &name("plus"), &[y, bias], &name("sum"), vec![]);
        let both = node(&mut m, "Add", &name("residual"), &[sum, v], &name("both"), vec![]);
        v = node(
            &mut m,
            "LayerNormalization",
            &name("norm"),
            &[both, ones],
            &name("z"),
            vec![],
        );
    }
    output(&mut m, v, &[1, 64, WIDTH]);
    m
}

#[test]
fn sums_behind_a_product_stay_in_floating_point() {
    let mut m = residual();
    run(&mut m, "int8");
    let products: Vec<_> = makers(&m, "MatMul").collect();
    assert_eq!(products, [Some("DequantizeLinear"); 2]);
    assert!(makers(&m, "QuantizeLinear").all(|op| op != Some("Add")));
}

/// Convolutions, which are faster in integers, between such of one channel each, which are slower.
fn sandwich() -> Model {
    const CHANNELS: usize = 80;
    let dims = [1, CHANNELS, 64, 64];
    let mut m = super::model(17);
    let mut v = input(&mut m, &dims);
    for k in 0..5 {
        let (inputs, groups) = if k % 2 == 0 { (1, CHANNELS) } else { (CHANNELS, 1) };
        let w = weight(&mut m, &format!("w{k}"), &[CHANNELS, inputs, 1, 1], k);
        let group = vec![Attr::int("group", groups as i64)];
        v = node(&mut m, "Conv", &format!("conv{k}"), &[v, w], &format!("y{k}"), group);
    }
    output(&mut m, v, &dims);
    m
}

#[test]
fn no_float_weight_stands_between_codes() {
    let mut m = sandwich();
    run(&mut m, "int8");
    let (_, each) = m.nodes().find(|(_, n)| n.name() == "conv2").expect("it stands there");
    let made = |slot: usize| {
        let node = m.value(each.input(slot)?).producer()?;
        Some(m.node(node).op.name.as_str())
    };
    assert_eq!(super::count(&m, "Conv"), 5);
    // ONNX Runtime would store it in 8 bits with one scale for all channels.
    assert_eq!((made(0), made(1)), (Some("DequantizeLinear"), Some("DequantizeLinear")));
}
