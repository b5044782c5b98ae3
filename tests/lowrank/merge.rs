//! The pass `lowrank` makes one layer of neighbours with nothing between them.

use super::{Numbers, close, info, open_layer, outputs, run};
use crate::tool::samples;
use onnxzip::ir::{Attr, Model, Tensor, ValueId};

/// Adds a node with a weight (and a bias) behind `x`; gives its output.
fn then(model: &mut Model, op: &str, x: ValueId, name: &str, args: &[Tensor], attrs: Vec<Attr>) -> ValueId {
    let main = model.main_id();
    let mut inputs = vec![Some(x)];
    for (i, t) in args.iter().enumerate() {
        inputs.push(Some(model.add_const(main, &format!("{name}_{i}"), t.clone())));
    }
    model
        .add_node(main, name, op, &inputs, &[&format!("{name}_y")], attrs)
        .1[0]
}

/// What a model gives before and after the pass, and how many nodes it has then.
fn compared(mut model: Model, end: ValueId, x: &[usize], y: &[usize], request: &str, tolerance: f32) -> usize {
    model.add_output(model.main_id(), info("end", y), end);
    let n = 12 * x.iter().product::<usize>();
    let data = samples(&model, &[&[12], x].concat(), &Numbers(5).take(n));
    let before = outputs(&model, &data);
    run(&mut model, &data, request);
    close(&before, &outputs(&model, &data), tolerance);
    let nodes = model.nodes().count();
    run(&mut model, &data, request);
    assert_eq!(model.nodes().count(), nodes, "a second time changes nothing");
    nodes
}

const ONLY_MERGE: &str = "lowrank(min_size=1000000)";

#[test]
fn dense_neighbours_are_one_layer_whatever_their_operators() {
    let mut r = Numbers(1);
    let gemm = |turned: i64| {
        vec![
            Attr::int("transB", turned),
            Attr::float("alpha", 0.5),
            Attr::float("beta", 2.0),
        ]
    };
    for (first, second) in [
        ("Gemm", "Gemm"),
        ("MatMul", "Gemm"),
        ("Gemm", "MatMul"),
        ("MatMul", "MatMul"),
    ] {
        for merge in ["on", "off"] {
            let wide = if first == "Gemm" { [50, 20] } else { [20, 50] };
            let mut args = vec![None, Some(Tensor::new(&wide, r.take(1000)))];
            if first == "Gemm" {
                args.push(Some(Tensor::new(&[50], r.take(50))));
            }
            let attrs = if first == "Gemm" { gemm(1) } else { vec![] };
            let (mut model, mut y) = open_layer(13, first, &[3, 20], args, attrs);
            if first == "MatMul" {
                y = then(
                    &mut model,
                    "Add",
                    y,
                    "first_add",
                    &[Tensor::new(&[50], r.take(50))],
                    vec![],
                );
            }
            let mut args = vec![Tensor::new(&[50, 30], r.take(1500))];
            if second == "Gemm" {
                args.push(Tensor::new(&[30], r.take(30)));
            }
            let attrs = if second == "Gemm" { gemm(0) } else { vec![] };
            y = then(&mut model, second, y, "second", &args, attrs);
            if second == "MatMul" {
                y = then(
                    &mut model,
                    "Add",
                    y,
                    "second_add",
                    &[Tensor::new(&[30], r.take(30))],
                    vec![],
                );
            }
            let before = model.nodes().count();
            let request = format!("lowrank(min_size=1000000,merge={merge})");
            let nodes = compared(model, y, &[3, 20], &[3, 30], &request, 1e-5);
            let one = if second == "MatMul" { 2 } else { 1 };
            assert_eq!(nodes, if merge == "on" { one } else { before }, "{first} {second}");
        }
    }
}

#[test]
fn a_kernel_and_a_single_position_are_one_layer_except_where_padding_would_see_the_bias() {
    let mut r = Numbers(2);
    let kernel = |dims: [usize; 4], r: &mut Numbers| Tensor::new(&dims, r.take(dims.iter().product()));
    let padded = || {
        vec![
            Attr::ints("kernel_shape", vec![3, 2]),
            Attr::ints("strides", vec![2, 1]),
            Attr::ints("pads", vec![1, 0, 1, 1]),
            Attr::ints("dilations", vec![1, 2]),
        ]
    };
    let open = || vec![Attr::ints("kernel_shape", vec![3, 2])];
    // (kernel first, its attributes, a bias in the first layer, nodes at the end)
    for (kernel_first, attrs, bias, left) in [
        (true, padded(), true, 1),
        (false, padded(), false, 1),
        (false, open(), true, 1),
        (false, padded(), true, 2),
    ] {
        let y = if attrs.len() > 1 { [1, 5, 4, 5] } else { [1, 5, 5, 5] };
        let first = match kernel_first {
            true => kernel([24, 6, 3, 2], &mut r),
            false => kernel([24, 6, 1, 1], &mut r),
        };
        let mut args = vec![None, Some(first)];
        if bias {
            args.push(Some(Tensor::new(&[24], r.take(24))));
        }
        let of_first = if kernel_first { attrs.clone() } else { vec![] };
        let (mut model, hidden) = open_layer(13, "Conv", &[1, 6, 7, 6], args, of_first);
        let (second, of_second) = match kernel_first {
            true => (kernel([5, 24, 1, 1], &mut r), vec![]),
            false => (kernel([5, 24, 3, 2], &mut r), attrs),
        };
        let end = then(&mut model, "Conv", hidden, "second", &[second], of_second);
        assert_eq!(compared(model, end, &[1, 6, 7, 6], &y, ONLY_MERGE, 1e-5), left);
    }
}

#[test]
fn factors_that_come_to_lie_side_by_side_are_one_matrix() {
    // 128 → 60 → 128: no gain as one layer; of rank 16 each, the two in the middle fall away.
    let mut r = Numbers(3);
    let mut of_rank = |m: usize, n: usize| {
        let (u, v) = (r.take(m * 16), r.take(16 * n));
        let entry = |i: usize| (0..16).map(|k| u[i / n * 16 + k] * v[k * n + i % n]).sum::<f32>();
        Tensor::new(&[m, n], (0..m * n).map(entry).collect())
    };
    let (first, second) = (of_rank(128, 60), of_rank(60, 128));
    let (mut model, hidden) = open_layer(13, "MatMul", &[2, 128], vec![None, Some(first)], vec![]);
    let end = then(&mut model, "MatMul", hidden, "second", &[second], vec![]);
    assert_eq!(compared(model, end, &[2, 128], &[2, 128], "lowrank(rank=16)", 1e-4), 2);
}

#[test]
fn what_others_read_too_stays() {
    let mut r = Numbers(4);
    let w = Tensor::new(&[20, 50], r.take(1000));
    let (mut model, hidden) = open_layer(13, "MatMul", &[3, 20], vec![None, Some(w)], vec![]);
    let end = then(
        &mut model,
        "MatMul",
        hidden,
        "second",
        &[Tensor::new(&[50, 30], r.take(1500))],
        vec![],
    );
    model.add_output(model.main_id(), info("hidden", &[3, 50]), hidden);
    assert_eq!(compared(model, end, &[3, 20], &[3, 30], ONLY_MERGE, 1e-6), 2);
}
