//! What runs in integers, and what stays as it is though it could.

use super::{Attr, Model, Tensor, ValueId, input, node, output, run, weight};

/// What makes the data of the nodes of an operator.
fn makers<'a>(m: &'a Model, op: &'a str) -> impl Iterator<Item = Option<&'a str>> {
    let of = |v: ValueId| Some(m.node(m.value(v).producer()?).op.name.as_str());
    let nodes = m.nodes().filter(move |(_, n)| n.is(op));
    nodes.map(move |(_, n)| n.input(0).and_then(of))
}

const WIDTH: usize = 128;

/// `MatMul → Add (bias) → Add (residual) → LayerNormalization → MatMul`.
pub fn residual() -> Model {
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

#[test]
fn a_vector_behind_a_product_in_integers_becomes_a_row() {
    let mut m = residual();
    let before = m.clone();
    run(&mut m, "int8");
    let added: Vec<_> = m
        .nodes()
        .filter(|(_, n)| n.name().starts_with("plus"))
        .map(|(n, _)| m.constant_input(n, 1).map(Tensor::dims))
        .collect();
    // ONNX Runtime would join a vector with the product, and its Q/DQ pairs would fuse no more (`tests/interop/pairs.py`).
    assert_eq!(added, [Some(&[1, WIDTH][..]); 2]);
    assert!(super::sqnr(&before, &m) > 25.0);
}

#[test]
fn a_product_of_a_vector_gives_out_codes_where_a_vector_is_added() {
    let mut m = super::model(17);
    let x = input(&mut m, &[512]);
    let (w, b) = (weight(&mut m, "w", &[512, 512], 1), weight(&mut m, "b", &[512], 2));
    let y = node(&mut m, "MatMul", "dense", &[x, w], "y", vec![]);
    let z = node(&mut m, "Add", "plus", &[y, b], "z", vec![]);
    output(&mut m, z, &[512]);
    run(&mut m, "int8");
    assert_eq!(makers(&m, "MatMul").collect::<Vec<_>>(), [Some("DequantizeLinear")]);
    assert_eq!(makers(&m, "Add").collect::<Vec<_>>(), [Some("DequantizeLinear")]);
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

/// A convolution in groups between two others, and a pool behind it where asked.
fn groups_between(pool: bool) -> Model {
    let mut m = super::model(17);
    let mut v = input(&mut m, &[1, 96, 32, 32]);
    // ONNX Runtime has a kernel of its own for groups of one channel that give out one channel, but none for those that give out four.
    for (k, w, groups) in [(0, [96, 96, 3, 3], 1), (1, [384, 1, 3, 3], 96), (2, [96, 384, 1, 1], 1)] {
        let pads = Attr::ints("pads", vec![w[2] as i64 / 2; 4]);
        let w = weight(&mut m, &format!("w{k}"), &w, k);
        let attrs = vec![Attr::int("group", groups), pads];
        v = node(&mut m, "Conv", &format!("conv{k}"), &[v, w], &format!("y{k}"), attrs);
        if groups > 1 && pool {
            let kernel = vec![
                Attr::ints("kernel_shape", vec![2, 2]),
                Attr::ints("strides", vec![2, 2]),
            ];
            v = node(&mut m, "MaxPool", "pool", &[v], "pooled", kernel);
        }
    }
    let side = if pool { 16 } else { 32 };
    output(&mut m, v, &[1, 96, side, side]);
    m
}

#[test]
fn a_convolution_that_is_much_slower_in_integers_stays_in_floats_with_floats_on_one_side() {
    let mut m = groups_between(false);
    run(&mut m, "int8");
    let (_, each) = m.nodes().find(|(_, n)| n.name() == "conv1").expect("it stands there");
    let made = |slot: usize| m.value(each.input(slot)?).producer();
    let codes_before = made(0).is_some_and(|p| m.node(p).is("DequantizeLinear"));
    let readers = m.readers(each.output(0).expect("a result"));
    let codes_behind = readers.iter().any(|r| m.node(*r).is("QuantizeLinear"));
    let weight = made(1).map(|p| m.node(p).op.name.as_str());
    assert_eq!(weight, Some("Mul"), "it computes in floats; 8 bits are stored");
    assert!(
        codes_before != codes_behind,
        "before: {codes_before}, behind: {codes_behind}"
    );
}

#[test]
fn codes_do_not_stand_on_both_sides_of_it_behind_a_pool_either() {
    let mut m = groups_between(true);
    run(&mut m, "int8");
    let before = makers(&m, "Conv").nth(1).expect("it stands there");
    let pool = m.nodes().find(|(_, n)| n.is("MaxPool")).expect("it stands there").1;
    let is_code = |v: Option<ValueId>| v.is_some_and(|v| m.readers(v).iter().any(|r| m.node(*r).is("QuantizeLinear")));
    // ONNX Runtime would move the codes before the pool, and then store the weight in integers with one scale for all of it.
    let behind = is_code(pool.input(0)) || is_code(pool.output(0));
    assert!(!(before == Some("DequantizeLinear") && behind), "{before:?}");
    assert!(m.nodes().any(|(_, n)| n.is("QuantizeLinear")));
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

#[test]
fn a_first_layer_that_gains_nothing_stays_in_floats() {
    let mut m = super::model(17);
    let mut v = input(&mut m, &[1, 3, 96, 96]);
    // ONNX Runtime copies windows of 3 channels row by row.
    for (k, (inputs, outputs)) in [(3, 4), (4, 32), (32, 32), (32, 32)].into_iter().enumerate() {
        let w = weight(&mut m, &format!("w{k}"), &[outputs, inputs, 3, 3], k as u64);
        let pads = Attr::ints("pads", vec![1; 4]);
        v = node(
            &mut m,
            "Conv",
            &format!("conv{k}"),
            &[v, w],
            &format!("y{k}"),
            vec![pads],
        );
    }
    output(&mut m, v, &[1, 32, 96, 96]);
    run(&mut m, "int8");
    let all: Vec<_> = makers(&m, "Conv").collect();
    assert_eq!((all[0], all[3]), (None, Some("DequantizeLinear")), "{all:?}");
}

#[test]
fn depthwise_chains_whose_integers_gain_nothing_stay_in_floats_with_weights_in_8_bits() {
    const CHANNELS: usize = 64;
    let dims = [1, CHANNELS, 40, 40];
    let mut m = super::model(17);
    let mut v = input(&mut m, &dims);
    for k in 0..6 {
        let (inputs, groups, side) = if k % 2 == 0 { (1, CHANNELS, 5) } else { (CHANNELS, 1, 1) };
        let w = weight(&mut m, &format!("w{k}"), &[CHANNELS, inputs, side, side], k);
        let attrs = vec![
            Attr::int("group", groups as i64),
            Attr::ints("pads", vec![side as i64 / 2; 4]),
        ];
        v = node(&mut m, "Conv", &format!("conv{k}"), &[v, w], &format!("y{k}"), attrs);
    }
    output(&mut m, v, &dims);
    run(&mut m, "int8");
    assert_eq!(super::count(&m, "QuantizeLinear"), 0);
    let convs = m.nodes().filter(|(_, n)| n.is("Conv"));
    let stored = convs.filter(|(id, _)| m.constant_input(*id, 1).is_none());
    assert_eq!(stored.count(), 6);
}

#[test]
fn a_pool_behind_floats_is_not_given_codes() {
    let mut m = super::model(17);
    let x = input(&mut m, &[1, 32, 46, 46]);
    let slopes = [32, 64].map(|channels| weight(&mut m, &format!("slope{channels}"), &[channels, 1, 1], 4));
    let (w, v) = (
        weight(&mut m, "w", &[64, 32, 3, 3], 5),
        weight(&mut m, "v", &[64, 64, 3, 3], 6),
    );
    let bent = node(&mut m, "PRelu", "prelu", &[x, slopes[0]], "bent", vec![]);
    let window = vec![
        Attr::ints("kernel_shape", vec![3, 3]),
        Attr::ints("strides", vec![2, 2]),
    ];
    let pooled = node(&mut m, "MaxPool", "pool", &[bent], "pooled", window);
    let y = node(&mut m, "Conv", "conv0", &[pooled, w], "y0", vec![]);
    let bent = node(&mut m, "PRelu", "prelu1", &[y, slopes[1]], "bent1", vec![]);
    let z = node(&mut m, "Conv", "conv1", &[bent, v], "z", vec![]);
    output(&mut m, z, &[1, 64, 18, 18]);
    run(&mut m, "int8");
    assert_eq!(makers(&m, "MaxPool").collect::<Vec<_>>(), [Some("PRelu")]);
    // ONNX Runtime would move a Q behind the pool before it, and take it channels first.
    assert_eq!(
        makers(&m, "Conv").collect::<Vec<_>>(),
        [Some("MaxPool"), Some("DequantizeLinear")]
    );
}

#[test]
fn codes_in_front_of_a_pool_begin_at_a_convolution_in_integers() {
    let mut m = super::model(17);
    let x = input(&mut m, &[1, 1, 60, 257]);
    let (w, v) = (
        weight(&mut m, "w", &[32, 1, 3, 3], 5),
        weight(&mut m, "v", &[160, 32, 3, 3], 6),
    );
    let padded = || vec![Attr::ints("pads", vec![1; 4])];
    let y = node(&mut m, "Conv", "conv0", &[x, w], "y0", padded());
    let bent = node(&mut m, "LeakyRelu", "bend0", &[y], "bent0", vec![]);
    let window = vec![
        Attr::ints("kernel_shape", vec![1, 4]),
        Attr::ints("strides", vec![1, 4]),
    ];
    let pooled = node(&mut m, "MaxPool", "pool", &[bent], "pooled", window);
    let z = node(&mut m, "Conv", "conv1", &[pooled, v], "z", padded());
    output(&mut m, z, &[1, 160, 60, 64]);
    run(&mut m, "int8");
    let coded = |op| makers(&m, op).all(|made| made == Some("DequantizeLinear"));
    // ONNX Runtime takes codes that an activation behind floats gives out channels first, and a pool of those takes 4 ns for each tap.
    let all = |op| makers(&m, op).collect::<Vec<_>>();
    assert!(
        coded("Conv") && coded("MaxPool"),
        "{:?} {:?} {:?}",
        all("Conv"),
        all("LeakyRelu"),
        all("MaxPool")
    );
}
