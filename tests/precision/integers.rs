//! `weights` and `dynamic`.

use super::*;
use onnxzip::ir::Attr;

#[test]
fn eight_bits_are_near_lossless_and_four_bits_close() {
    let original = dense();
    for (pass, least, most_bytes) in [
        ("weights", 38.0, 5000),
        ("weights(bits=8,block=16,symmetric=off)", 42.0, 6500),
        ("weights(bits=4)", 17.0, 4500),
        ("weights(bits=4,symmetric=on)", 15.0, 4500),
        ("weights(bits=4,block=16)", 18.0, 4500),
        ("weights(bits=4,block=0)", 11.0, 4500),
        ("weights(bits=4,form=matmulnbits)", 17.0, 4500),
        ("weights(bits=4,form=matmulnbits,symmetric=on)", 15.0, 4500),
        ("weights(form=matmulnbits)", 38.0, 6500),
        ("weights(form=folded)", 38.0, 5500),
        ("dynamic", 30.0, 6500),
    ] {
        let mut m = original.clone();
        run(&mut m, pass);
        let gap = sqnr(&original, &m);
        assert!(gap > least, "{pass}: {gap} dB");
        assert!(
            bytes(&m) < most_bytes,
            "{pass}: {} bytes of {}",
            bytes(&m),
            bytes(&original)
        );
    }
}

/// `x [1, 64] → MatMul → Relu → MatMul → y [1, 48]`, weights large enough for 4 bits.
fn wide() -> Model {
    let nodes = vec![
        named("fc1", node("MatMul", &["x", "w1"], &["h"])),
        named("relu", node("Relu", &["h"], &["r"])),
        named("fc2", node("MatMul", &["r", "w2"], &["y"])),
    ];
    let weights = vec![weight("w1", &[64, 96], 1), weight("w2", &[96, 48], 3)];
    read(&model_with(nodes, weights, port("x", &[1, 64]), port("y", &[1, 48])))
}

#[test]
fn folded_weights_take_as_few_bits_as_the_outputs_bear() {
    let original = wide();
    let folded = |mixed: &str| {
        let mut m = original.clone();
        run(&mut m, &format!("weights(form=folded{mixed})"));
        (sqnr(&original, &m), bytes(&m), count(&m, "BitShift"))
    };
    let (fine, eight, none) = folded("");
    let (strict, same, kept) = folded(",mixed=0.0000001");
    assert_eq!((none, strict, same, kept), (0, fine, eight, 0));
    // Every limit is kept (other samples are seen here), and each takes less than a stricter one.
    let mut last = eight;
    for (limit, least) in [("0.001", 28.0), ("0.01", 18.0), ("0.1", 8.0)] {
        let (gap, bytes, shifts) = folded(&format!(",mixed={limit}"));
        assert!(gap > least && gap < fine, "{limit}: {gap} dB");
        assert!(
            bytes < last && shifts % 3 == 0 && shifts > 0,
            "{limit}: {bytes} bytes, {shifts} BitShifts"
        );
        last = bytes;
    }
    let weights = 64 * 96 + 96 * 48;
    assert!(last < eight - weights / 3, "{eight} → {last} bytes");
}

#[test]
fn without_data_folded_weights_keep_8_bits_and_say_so() {
    let mut m = wide();
    let data = Dataset::synthetic(&m, 3, 8);
    let notes = run_on(&mut m, "weights(form=folded,mixed=0.2)", &data);
    assert_eq!(count(&m, "BitShift"), 0);
    assert!(notes.iter().any(|n| n.what.contains("without real data")), "{notes:?}");
}

#[test]
fn rounding_under_the_data_beats_the_nearest_codes() {
    for pass in ["weights(bits=4", "weights(bits=4,form=matmulnbits", "dynamic(weights=7"] {
        let original = dense();
        let gap = |rounding: &str| {
            let mut m = original.clone();
            run(&mut m, &format!("{pass},rounding={rounding})"));
            sqnr(&original, &m)
        };
        assert!(
            gap("data") > gap("nearest"),
            "{pass}: {} dB, {} dB",
            gap("data"),
            gap("nearest")
        );
    }
}

/// The second weight reads eight directions of 64 only: there errors can cancel in the others.
#[test]
fn errors_cancel_where_inputs_are_correlated() {
    let nodes = vec![
        node("MatMul", &["x", "w1"], &["h"]),
        node("MatMul", &["h", "w2"], &["y"]),
    ];
    let weights = vec![weight("w1", &[8, 64], 1), weight("w2", &[64, 32], 2)];
    let original = read(&model_with(nodes, weights, port("x", &[1, 8]), port("y", &[1, 32])));
    for pass in [
        "weights(bits=4",
        "weights(bits=8,form=folded",
        "weights(bits=4,form=matmulnbits",
    ] {
        let gap = |rounding: &str| {
            let mut m = original.clone();
            // The first weight is smaller than that.
            run(&mut m, &format!("{pass},min=1000,rounding={rounding})"));
            sqnr(&original, &m)
        };
        let (data, nearest) = (gap("data"), gap("nearest"));
        assert!(data > nearest + 4.0, "{pass}: {data} dB, {nearest} dB");
    }
}

#[test]
fn errors_cancel_in_recurrent_layers_too() {
    for (op, gates, directions) in [("LSTM", 4i64, 1i64), ("GRU", 3, 1), ("LSTM", 4, 2)] {
        let direction = if directions == 2 { "bidirectional" } else { "forward" };
        let mut layer = with(node(op, &["h", "w2", "r"], &["y", ""]), [int("hidden_size", 16)]);
        layer.attribute.push(Attr::string("direction", direction).proto);
        // 64 numbers that follow from 8.
        let nodes = vec![named("mix", node("MatMul", &["x", "w1"], &["h"])), layer];
        let mut weights = vec![
            weight("w1", &[8, 64], 1),
            weight("w2", &[directions, gates * 16, 64], 2),
            weight("r", &[directions, gates * 16, 16], 3),
        ];
        // Gates that hardly saturate.
        for (w, seed) in weights[1..].iter_mut().zip(2..) {
            let small: Vec<f32> = numbers(w.dims.iter().product::<i64>() as usize, seed);
            *w = floats(w.name(), &w.dims, &small.iter().map(|x| 0.1 * x).collect::<Vec<_>>());
        }
        let to = port("y", &[5, directions, 1, 16]);
        let original = read(&model_with(nodes, weights, port("x", &[5, 1, 8]), to));
        for pass in [
            "weights(bits=4,block=0,min=1000",
            "weights(form=folded,min=1000",
            "int8(skip=mix",
        ] {
            let gap = |rounding: &str| {
                let mut m = original.clone();
                run(&mut m, &format!("{pass},rounding={rounding})"));
                sqnr(&original, &m)
            };
            let (data, nearest) = (gap("data"), gap("nearest"));
            assert!(
                data > nearest + 3.0,
                "{op} {directions} {pass}: {data} dB, {nearest} dB"
            );
        }
    }
}

#[test]
fn weights_have_the_layout_that_was_asked_for() {
    let mut m = dense();
    run(&mut m, "weights");
    assert_eq!(m.opset(""), 17);
    assert_eq!(
        (dtype(&m, "w1_quantized"), dtype(&m, "w2_quantized")),
        (DType::Int8, DType::Int8)
    );
    let dq = m
        .nodes()
        .find(|(_, n)| n.name() == "w2_DequantizeLinear")
        .expect("a DequantizeLinear")
        .1;
    assert_eq!(
        (dq.int("axis"), dq.int("block_size"), dq.inputs().len()),
        (Some(1), None, 2)
    );

    let mut m = dense();
    run(&mut m, "weights(bits=4)");
    assert!(m.opset("") >= 21 && m.rest.ir_version() >= 10);
    assert_eq!(dtype(&m, "w1_quantized"), DType::Int4);
    let (_, dq) = m
        .nodes()
        .find(|(_, n)| n.name() == "w1_DequantizeLinear")
        .expect("a DequantizeLinear");
    assert_eq!(
        (dq.int("axis"), dq.int("block_size"), dq.inputs().len()),
        (Some(1), Some(32), 3)
    );
    let dims = |name: &str| {
        m.values()
            .find(|(_, v)| v.name == name)
            .and_then(|(_, v)| v.tensor())
            .expect("a constant")
            .dims()
            .to_vec()
    };
    assert_eq!((dims("w1_scale"), dims("w2_scale")), (vec![48, 2], vec![2, 24]));

    let mut m = dense();
    run(&mut m, "weights(bits=4,form=matmulnbits)");
    assert_eq!(
        (count(&m, "MatMulNBits"), count(&m, "Gemm"), m.opset("com.microsoft")),
        (2, 0, 1)
    );
    let dims = |name: &str| {
        m.values()
            .find(|(_, v)| v.name == name)
            .and_then(|(_, v)| v.tensor())
            .expect("a constant")
            .dims()
            .to_vec()
    };
    assert_eq!(
        (dims("w1_Q4"), dims("w1_scales"), dims("w1_zero_points")),
        (vec![48, 2, 16], vec![48, 2], vec![48, 1])
    );
}

#[test]
fn dynamic_has_the_layout_of_onnx_runtime() {
    let original = dense();
    let mut m = original.clone();
    run(&mut m, "dynamic");
    let of = |op| count(&m, op);
    assert_eq!(
        (
            of("DynamicQuantizeLinear"),
            of("MatMulInteger"),
            of("Mul"),
            of("Add"),
            of("Gemm"),
            of("MatMul")
        ),
        (2, 2, 4, 2, 0, 0)
    );
    assert!(m.nodes().any(|(_, n)| n.name() == "fc2_quant_output_scale_mul"));
    assert_eq!(m.main().outputs()[0].name(), "y");
}

/// Two products and a Gather read one table of 64 × 64.
fn shared(gather: bool) -> Model {
    let mut nodes = vec![
        named("a", node("MatMul", &["x", "w"], &["p"])),
        named("tanh", node("Tanh", &["p"], &["t"])),
        named("b", node("MatMul", &["t", "w"], &["q"])),
    ];
    let mut weights = vec![weight("w", &[64, 64], 5)];
    match gather {
        true => {
            weights.push(longs("rows", &[3]));
            nodes.push(named("rows", node("Gather", &["w", "rows"], &["r"])));
            nodes.push(named("sum", node("Add", &["q", "r"], &["y"])));
        }
        false => nodes.push(named("sum", node("Identity", &["q"], &["y"]))),
    }
    read(&model_with(nodes, weights, port("x", &[1, 64]), port("y", &[1, 64])))
}

#[test]
fn a_shared_weight_is_stored_once() {
    for (pass, op) in [
        ("weights(bits=4)", "DequantizeLinear"),
        ("dynamic", "MatMulInteger"),
        ("weights(form=matmulnbits)", "MatMulNBits"),
    ] {
        let original = shared(false);
        let mut m = original.clone();
        run(&mut m, pass);
        assert_eq!(count(&m, op), if op == "DequantizeLinear" { 1 } else { 2 }, "{pass}");
        assert!(bytes(&m) < 6500, "{pass}: {}", bytes(&m));
        assert!(sqnr(&original, &m) > 14.0, "{pass}: {}", sqnr(&original, &m));
    }
}

#[test]
fn what_else_reads_a_weight_reads_the_same_numbers() {
    let original = shared(true);
    let mut m = original.clone();
    run(&mut m, "weights(form=matmulnbits)");
    assert_eq!((count(&m, "DequantizeLinear"), count(&m, "MatMulNBits")), (1, 0));
    assert!(sqnr(&original, &m) > 30.0);
    let mut m = original.clone();
    assert!(skipped(&run(&mut m, "dynamic"), "something else"));
}

#[test]
fn convolutions_in_blocks_and_by_channel_keep_their_numbers() {
    let nodes = vec![
        named(
            "first",
            with(node("Conv", &["x", "w1", "b1"], &["h"]), [ints("pads", &[1; 4])]),
        ),
        named("relu", node("Relu", &["h"], &["r"])),
        named(
            "depthwise",
            with(
                node("Conv", &["r", "w2"], &["d"]),
                [int("group", 32), ints("pads", &[1; 4])],
            ),
        ),
        named(
            "grouped",
            with(
                node("Conv", &["d", "w3"], &["g"]),
                [int("group", 2), ints("pads", &[1; 4])],
            ),
        ),
        named(
            "up",
            with(node("ConvTranspose", &["g", "w4"], &["y"]), [int("group", 2)]),
        ),
    ];
    let weights = vec![
        weight("w1", &[32, 4, 3, 3], 1),
        weight("b1", &[32], 2),
        weight("w2", &[32, 1, 3, 3], 3),
        weight("w3", &[48, 16, 3, 3], 4),
        weight("w4", &[48, 8, 2, 2], 5),
    ];
    let original = read(&model_with(
        nodes,
        weights,
        port("x", &[1, 4, 6, 6]),
        port("y", &[1, 16, 7, 7]),
    ));
    for (pass, least) in [
        ("weights(min=1)", 36.0),
        ("weights(bits=4,min=1)", 14.0),
        ("weights(bits=4,min=1,block=16)", 14.0),
    ] {
        let mut m = original.clone();
        run(&mut m, pass);
        assert_eq!(count(&m, "DequantizeLinear"), 4, "{pass}");
        let gap = sqnr(&original, &m);
        assert!(gap > least, "{pass}: {gap} dB");
    }
}

#[test]
fn recurrent_weights_are_stored_or_run_in_integers() {
    let nodes = vec![
        named(
            "lstm",
            with(
                node("LSTM", &["x", "w", "r", "b"], &["h", "", ""]),
                [int("hidden_size", 16)],
            ),
        ),
        named("flat", node("Reshape", &["h", "dims"], &["f"])),
        named(
            "gru",
            with(node("GRU", &["f", "gw", "gr"], &["y", ""]), [int("hidden_size", 8)]),
        ),
    ];
    let weights = vec![
        weight("w", &[1, 64, 20], 1),
        weight("r", &[1, 64, 16], 2),
        weight("b", &[1, 128], 3),
        longs("dims", &[5, 1, 16]),
        weight("gw", &[1, 24, 16], 4),
        weight("gr", &[1, 24, 8], 5),
    ];
    let original = read(&model_with(
        nodes,
        weights,
        port("x", &[5, 1, 20]),
        port("y", &[5, 1, 1, 8]),
    ));
    for (pass, least) in [
        ("weights(min=1)", 36.0),
        ("weights(bits=4,min=1,block=16)", 14.0),
        ("dynamic", 30.0),
    ] {
        let mut m = original.clone();
        let notes = run(&mut m, pass);
        assert!(sqnr(&original, &m) > least, "{pass}: {} dB", sqnr(&original, &m));
        let is_dynamic = pass == "dynamic";
        assert_eq!(count(&m, "DynamicQuantizeLSTM"), usize::from(is_dynamic));
        assert_eq!(count(&m, "DequantizeLinear"), if is_dynamic { 0 } else { 4 }, "{pass}");
        assert_eq!(skipped(&notes, "GRU has no integer form"), is_dynamic);
    }
}

/// An If whose branches multiply with weights of their own.
pub(super) fn branches() -> Model {
    let body = |seed: u64| {
        let mut w = weight("inner", &[40, 40], seed);
        w.name = Some(format!("w{seed}"));
        pb::GraphProto {
            name: Some(format!("branch{seed}")),
            node: vec![named(
                &format!("inner{seed}"),
                node("MatMul", &["h", &format!("w{seed}")], &[&format!("o{seed}")]),
            )],
            initializer: vec![w],
            output: vec![port(&format!("o{seed}"), &[1, 40])],
            ..Default::default()
        }
    };
    let graph = |name: &str, g: pb::GraphProto| pb::AttributeProto {
        name: Some(name.into()),
        r#type: Some(pb::attribute_proto::AttributeType::Graph as i32),
        g: Some(g),
        ..Default::default()
    };
    let nodes = vec![
        named("first", node("MatMul", &["x", "w"], &["h"])),
        named("total", with(node("ReduceSum", &["x"], &["sum"]), [int("keepdims", 0)])),
        named("test", node("Greater", &["sum", "zero"], &["c"])),
        named(
            "if",
            with(
                node("If", &["c"], &["y"]),
                [graph("then_branch", body(8)), graph("else_branch", body(9))],
            ),
        ),
    ];
    let weights = vec![weight("w", &[40, 40], 1), floats("zero", &[], &[0.0])];
    read(&model_with(nodes, weights, port("x", &[1, 40]), port("y", &[1, 40])))
}

#[test]
fn weights_in_branches_are_stored_too() {
    let original = branches();
    for (pass, op, n) in [
        ("weights", "DequantizeLinear", 3),
        ("weights(bits=4,form=matmulnbits)", "MatMulNBits", 3),
        ("dynamic", "MatMulInteger", 3),
        ("fp16(only=weights)", "Cast", 3),
    ] {
        let mut m = original.clone();
        run(&mut m, pass);
        assert_eq!(count(&m, op), n, "{pass}");
        assert!(sqnr(&original, &m) > 14.0, "{pass}: {}", sqnr(&original, &m));
    }
}

#[test]
fn bad_options_are_refused_with_a_way_out() {
    for (list, says) in [
        ("weights(block=7)", "power of two"),
        ("weights(form=matmulnbits,block=0)", "MatMulNBits has blocks"),
        ("weights(mixed=0.01)", "goes with form=folded"),
        ("weights(form=folded,mixed=1)", "give a number from 0 to below 1"),
        ("weights(bits=3)", "choose one of 8, 4"),
        ("dynamic(weights=4)", "choose one of 8, 7"),
        ("fp16(type=float8)", "choose one of"),
    ] {
        let message = format!("{:#}", parse_list(list).err().expect("refused"));
        assert!(message.contains(says), "{list}: {message}");
    }
}
