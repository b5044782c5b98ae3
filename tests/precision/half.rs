//! `fp16`.

use super::*;

#[test]
fn everything_that_may_is_float16_between_two_casts() {
    let original = dense();
    let mut m = original.clone();
    run(&mut m, "fp16");
    assert_eq!(count(&m, "Cast"), 2);
    for w in ["w1", "b1", "w2", "b2"] {
        assert_eq!(dtype(&m, w), DType::Float16, "{w}");
    }
    let gap = sqnr(&original, &m);
    assert!(
        (50.0..80.0).contains(&gap),
        "{gap} dB: rounding is seen, and little is lost"
    );
    assert!(bytes(&m) < bytes(&original) * 6 / 10);
    assert_eq!((m.main().inputs()[0].name(), m.main().outputs()[0].name()), ("x", "y"));
}

fn port_type(p: &onnxzip::ir::Port) -> i32 {
    match p.info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(pb::type_proto::Value::TensorType(t)) => t.elem_type(),
        _ => 0,
    }
}

#[test]
fn inputs_and_outputs_change_their_types_only_when_asked() {
    let mut m = dense();
    run(&mut m, "fp16(keep_io=off)");
    assert_eq!(count(&m, "Cast"), 0);
    let half = DType::Float16 as i32;
    assert_eq!(
        (port_type(&m.main().inputs()[0]), port_type(&m.main().outputs()[0])),
        (half, half)
    );
    assert!(sqnr(&dense(), &m) > 50.0);
}

#[test]
fn weights_alone_have_a_cast_behind_each_and_keep_their_names() {
    let original = dense();
    for (pass, kind, least) in [
        ("fp16(only=weights)", DType::Float16, 65.0),
        ("fp16(only=weights,type=bfloat16)", DType::Bfloat16, 45.0),
    ] {
        let mut m = original.clone();
        run(&mut m, pass);
        assert_eq!(count(&m, "Cast"), 2, "biases are too small to count");
        let name = if kind == DType::Float16 {
            "w1_float16"
        } else {
            "w1_bfloat16"
        };
        assert_eq!(dtype(&m, name), kind);
        assert!(
            m.nodes()
                .any(|(_, n)| n.name() == "w1_Cast" && m.value(n.output(0).expect("one")).name == "w1")
        );
        let gap = sqnr(&original, &m);
        assert!(gap > least, "{pass}: {gap} dB");
    }
}

#[test]
fn what_integers_leave_over_is_stored_in_float16_and_scales_stay() {
    let original = dense();
    let mut m = original.clone();
    run(&mut m, "weights(bits=8,skip=fc2)");
    let whole = bytes(&m);
    run(&mut m, "fp16(only=weights,min=1)");
    assert!(count(&m, "DequantizeLinear") == 1 && bytes(&m) < whole);
    let scales = m.nodes().filter(|(_, n)| n.is("DequantizeLinear"));
    for (_, n) in scales {
        let scale = m.constant(n.input(1).expect("a scale")).expect("a constant");
        assert_eq!(scale.dtype(), DType::Float);
    }
    assert!(sqnr(&original, &m) > 30.0);
}

#[test]
fn bfloat16_raises_the_operator_set_for_all_operators() {
    let original = dense();
    let mut m = original.clone();
    run(&mut m, "fp16(type=bfloat16)");
    assert_eq!((m.opset(""), dtype(&m, "w1")), (22, DType::Bfloat16));
    let gap = sqnr(&original, &m);
    assert!((30.0..60.0).contains(&gap), "{gap} dB");
}

/// `x [1, 8] · w`, then what `nodes` make of `h`.
fn after(nodes: Vec<pb::NodeProto>, mut weights: Vec<pb::TensorProto>, gain: f32) -> Model {
    let mut all = vec![named("mul", node("Mul", &["x", "gain"], &["h"]))];
    all.extend(nodes);
    weights.push(floats("gain", &[1], &[gain]));
    read(&model_with(all, weights, port("x", &[1, 8]), port("y", &[1, 8])))
}

#[test]
fn what_overflows_on_the_data_stays_in_float32_with_what_reads_it() {
    let nodes = vec![
        named("half", node("Mul", &["h", "small"], &["s"])),
        named("out", node("Sigmoid", &["s"], &["y"])),
    ];
    let original = after(nodes, vec![floats("small", &[1], &[1e-3])], 6e4);
    let mut m = original.clone();
    let notes = run(&mut m, "fp16");
    assert!(
        notes.iter().any(|n| n.node == "mul" && n.what.contains("reaches")),
        "{notes:?}"
    );
    assert_eq!(count(&m, "Cast"), 2, "into the Sigmoid and out of it");
    assert!(sqnr(&original, &m) > 45.0);
}

#[test]
fn epsilons_masks_and_sums_stay_in_float32() {
    let cases: Vec<(&str, pb::NodeProto, Vec<pb::TensorProto>)> = vec![
        (
            "eps",
            node("Add", &["h", "e"], &["v"]),
            vec![floats("e", &[], &[1e-12])],
        ),
        (
            "mask",
            node("Add", &["h", "e"], &["v"]),
            vec![floats("e", &[], &[-3.4e38])],
        ),
        (
            "squares",
            with(node("ReduceSumSquare", &["h"], &["v"]), [ints("axes", &[1])]),
            vec![],
        ),
    ];
    for (what, n, weights) in cases {
        let nodes = vec![
            named(what, n),
            named("back", node("Tanh", &["v"], &["w"])),
            named("out", node("Add", &["w", "h"], &["y"])),
        ];
        let mut m = after(nodes, weights, 100.0);
        let notes = run(&mut m, "fp16");
        let stays = notes.iter().find(|n| n.node == what);
        assert!(
            stays.is_some_and(|n| n.what.contains("stays in float32")),
            "{what}: {notes:?}"
        );
    }
}

#[test]
fn what_onnx_wants_in_float32_stays_so() {
    let nodes = vec![
        named("shape", node("Reshape", &["h", "dims"], &["r"])),
        named("resize", with(node("Resize", &["r", "", "scales"], &["big"]), [])),
        named("range", node("Range", &["zero", "end", "one"], &["steps"])),
        named("pool", node("GlobalAveragePool", &["big"], &["p"])),
        named("flat", node("Reshape", &["p", "one_one"], &["f"])),
        named("add", node("Add", &["steps", "f"], &["y"])),
    ];
    let weights = vec![
        longs("dims", &[1, 1, 2, 4]),
        longs("one_one", &[1, 1]),
        floats("scales", &[4], &[1.0, 1.0, 2.0, 2.0]),
        floats("zero", &[], &[0.0]),
        floats("end", &[], &[8.0]),
        floats("one", &[], &[1.0]),
    ];
    let original = after(nodes, weights, 1.0);
    let mut m = original.clone();
    let notes = run(&mut m, "fp16");
    assert_eq!(dtype(&m, "scales"), DType::Float);
    assert!(
        notes
            .iter()
            .any(|n| n.node == "range" && n.what.contains("Range does not compute in float16")),
        "{notes:?}"
    );
    assert!(sqnr(&original, &m) > 45.0);
}

#[test]
fn blocked_nodes_stay_and_values_are_cast_once() {
    let nodes = vec![
        named("a", node("Sigmoid", &["h"], &["s"])),
        named("b", node("Tanh", &["h"], &["t"])),
        named("c", node("Add", &["s", "t"], &["u"])),
        named("d", node("Mul", &["u", "h"], &["y"])),
    ];
    let original = after(nodes, vec![], 1.0);
    let mut m = original.clone();
    let notes = run(&mut m, "fp16(block=a;b)");
    assert!(skipped(&notes, "as asked"));
    // x, h up, s and t down, y up.
    assert_eq!(count(&m, "Cast"), 5);
    assert!(sqnr(&original, &m) > 45.0);
}

#[test]
fn casts_of_the_model_that_became_idle_are_gone() {
    let nodes = vec![
        named("down", with(node("Cast", &["h"], &["f16"]), [int("to", 10)])),
        named("up", with(node("Cast", &["f16"], &["f32"]), [int("to", 1)])),
        named("out", node("Tanh", &["f32"], &["y"])),
    ];
    let original = after(nodes, vec![], 1.0);
    let mut m = original.clone();
    run(&mut m, "fp16");
    assert_eq!(count(&m, "Cast"), 2);
    assert!(sqnr(&original, &m) > 45.0);
}

#[test]
fn a_branch_reads_float32() {
    let original = super::integers::branches();
    let mut m = original.clone();
    let notes = run(&mut m, "fp16");
    assert!(
        notes.iter().any(|n| n.node == "if" && n.what.contains("control flow")),
        "{notes:?}"
    );
    assert_eq!(dtype(&m, "w"), DType::Float16);
    assert_eq!(dtype(&m, "w8"), DType::Float);
    assert!(sqnr(&original, &m) > 45.0);
}
