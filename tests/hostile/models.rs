//! Models that decode but cannot be right, and models that would cost the earth.

use super::{Trial, assert_none_wrong};
use crate::tool::{arg, floats, int, ints, longs, model, model_with, node, onnxzip, port, save, with};
use onnxzip::pb;

fn refused(name: &str, m: pb::ModelProto) -> Trial {
    Trial::new(name).model(&m)
}

/// May be refused, or rewritten around; never a crash, a hang, or a swallowed gigabyte.
fn survived(name: &str, m: pb::ModelProto) -> Trial {
    Trial::new(name).model(&m).may(&[0, 2])
}

fn ones(name: &str, dims: &[i64]) -> pb::TensorProto {
    let n: i64 = dims.iter().product();
    floats(name, dims, &vec![1.0; n as usize])
}

#[test]
fn a_graph_that_is_no_graph_is_refused() {
    let relu = |a: &str, b: &str| node("Relu", &[a], &[b]);
    let no_graph = pb::ModelProto {
        graph: None,
        ..model(vec![], vec![])
    };
    let mut no_outputs = model(vec![relu("x", "y")], vec![]);
    no_outputs.graph.as_mut().expect("a graph").output.clear();
    let mut no_opset = model(vec![relu("x", "y")], vec![]);
    no_opset.opset_import.clear();
    let mut old = model(vec![relu("x", "y")], vec![]);
    old.opset_import[0].version = Some(-5);
    assert_none_wrong([
        refused(
            "a cycle",
            model(
                vec![node("Add", &["x", "b"], &["a"]), relu("a", "b"), relu("b", "y")],
                vec![],
            ),
        ),
        refused(
            "a node that feeds itself",
            model(vec![node("Add", &["x", "y"], &["y"])], vec![]),
        ),
        refused(
            "one name, two nodes",
            model(
                vec![relu("x", "a"), node("Neg", &["x"], &["a"]), relu("a", "y")],
                vec![],
            ),
        )
        .says(&["in.onnx", "\"a\"", "the Neg"]),
        refused(
            "a node output named like the input",
            model(vec![relu("x", "x"), relu("x", "y")], vec![]),
        ),
        refused(
            "a node output named like a weight",
            model(vec![relu("x", "w"), relu("w", "y")], vec![ones("w", &[1, 4])]),
        ),
        refused(
            "one name, two weights",
            model(
                vec![node("Add", &["x", "w"], &["y"])],
                vec![ones("w", &[4]), ones("w", &[4])],
            ),
        ),
        refused(
            "a name that nobody defines",
            model(vec![node("Add", &["x", "nowhere"], &["y"])], vec![]),
        )
        .says(&["in.onnx", "nowhere", "the Add"]),
        refused("an output that nobody defines", model(vec![relu("x", "z")], vec![])).says(&["in.onnx", "\"y\""]),
        refused("no graph", no_graph),
        refused("no outputs", no_outputs),
        refused("no opset", no_opset),
        refused("opset -5", old),
        refused(
            "a node without an operator",
            model(vec![node("", &["x"], &["y"])], vec![]),
        ),
    ]);
}

#[test]
fn a_weight_whose_dimensions_and_bytes_disagree_is_refused_by_name() {
    let add = |w: pb::TensorProto| model(vec![node("Add", &["x", "w"], &["y"])], vec![w]);
    let refused = |name: &str, w: pb::TensorProto| refused(name, add(w)).says(&["in.onnx", "\"w\""]);
    let typed = |dtype: i32| pb::TensorProto {
        data_type: Some(dtype),
        ..ones("w", &[4])
    };
    assert_none_wrong([
        refused("too few", floats("w", &[5], &[1.0; 4])),
        refused("too many", floats("w", &[3], &[1.0; 4])),
        refused("a negative dimension", floats("w", &[-1, 4], &[1.0; 4])),
        refused("two negative dimensions", floats("w", &[-2, -2], &[1.0; 4])),
        refused("2^80 elements", floats("w", &[1 << 40, 1 << 40], &[1.0; 4])),
        refused("a product that wraps round to 0", floats("w", &[1 << 62, 4], &[])),
        refused("8 GB announced", floats("w", &[1 << 31], &[1.0])),
        refused("no type", typed(0)),
        refused("a type that does not exist", typed(77)),
        refused("strings in raw data", typed(8)),
        refused(
            "no data",
            pb::TensorProto {
                raw_data: None,
                ..ones("w", &[4])
            },
        ),
    ]);
}

#[test]
fn operators_that_are_used_wrongly_do_not_crash_the_tool() {
    let image = || port("x", &[1, 3, 8, 8]);
    let conv = |attrs: Vec<pb::AttributeProto>, channels: i64| {
        let n = with(node("Conv", &["x", "w"], &["y"]), attrs);
        model_with(
            vec![n],
            vec![ones("w", &[4, channels, 3, 3])],
            image(),
            port("y", &[1, 4, 6, 6]),
        )
    };
    let one = |n: pb::NodeProto| model(vec![n], vec![ones("w", &[4, 4])]);
    let mut newest = one(node("Relu", &["x"], &["y"]));
    newest.opset_import[0].version = Some(9999);
    let mut domain = node("Foo", &["x"], &["y"]);
    domain.domain = Some("com.acme".into());
    assert_none_wrong([
        survived("an unknown operator", one(node("NoSuchOp", &["x"], &["y"]))),
        survived("an unknown domain", one(domain)),
        survived("opset 9999", newest),
        refused("Add with one input", one(node("Add", &["x"], &["y"]))).says(&["in.onnx", "the Add", "export"]),
        refused("Relu with nine inputs", one(node("Relu", &["x"; 9], &["y"]))).says(&["in.onnx", "the Relu"]),
        refused("Relu without inputs", one(node("Relu", &[], &["y"]))).says(&["in.onnx", "the Relu"]),
        survived(
            "Transpose along axis 7",
            one(with(node("Transpose", &["x"], &["y"]), [ints("perm", &[0, 7])])),
        ),
        survived("Transpose of a constant along axis 7", {
            let t = with(node("Transpose", &["w"], &["t"]), [ints("perm", &[0, -7])]);
            model(vec![t, node("Add", &["x", "t"], &["y"])], vec![ones("w", &[4, 4])])
        }),
        survived(
            "Concat along axis 99",
            one(with(node("Concat", &["x", "x"], &["y"]), [int("axis", 99)])),
        ),
        survived(
            "Gemm with a weight of rank 3",
            model(vec![node("Gemm", &["x", "w"], &["y"])], vec![ones("w", &[2, 2, 4])]),
        ),
        refused("Gemm with text for numbers", {
            let text = |name: &str| pb::AttributeProto {
                name: Some(name.into()),
                r#type: Some(pb::attribute_proto::AttributeType::String as i32),
                s: Some("yes".into()),
                ..Default::default()
            };
            one(with(node("Gemm", &["x", "w"], &["y"]), [text("transB"), text("alpha")]))
        })
        .says(&["in.onnx", "the Gemm", "transB", "INT", "export"]),
        survived("Conv of group 0", conv(vec![int("group", 0)], 3)),
        survived("Conv of group -1", conv(vec![int("group", -1)], 3)),
        survived("Conv of stride 0", conv(vec![ints("strides", &[0, 0])], 3)),
        survived(
            "Conv with pads of -10^9",
            conv(vec![ints("pads", &[-1_000_000_000; 4])], 3),
        ),
        survived("Conv of 5 channels on 3", conv(vec![], 5)),
        survived("BatchNormalization with weights of the wrong length", {
            let bn = node("BatchNormalization", &["c", "s", "s", "s", "s"], &["y"]);
            let mut m = conv(vec![], 3);
            let g = m.graph.as_mut().expect("a graph");
            g.node[0].output[0] = "c".into();
            g.node.push(bn);
            g.initializer.push(ones("s", &[3]));
            m
        }),
    ]);
}

/// Constant folding must not believe a graph that asks for terabytes.
#[test]
fn constants_too_large_to_fold_are_left_alone() {
    let bomb = |name: &str, n: pb::NodeProto, weights: Vec<pb::TensorProto>| {
        let max = with(node("ReduceMax", &["c"], &["r"]), [int("keepdims", 0)]);
        survived(name, model(vec![n, max, node("Add", &["x", "r"], &["y"])], weights))
    };
    let shaped = |op: &str| node(op, &["o", "s"], &["c"]);
    let doublings = (0..40).map(|i| {
        let (a, b) = (format!("c{i}"), format!("c{}", i + 1));
        with(
            node("Concat", &[&a, &a], &[if i == 39 { "c" } else { &b }]),
            [int("axis", 0)],
        )
    });
    let mut forty = doublings.collect::<Vec<_>>();
    let max = with(node("ReduceMax", &["c"], &["r"]), [int("keepdims", 0)]);
    forty.extend([max, node("Add", &["x", "r"], &["y"])]);
    let scalar = |name: &str, v: f32| floats(name, &[], &[v]);
    assert_none_wrong([
        bomb(
            "ConstantOfShape of 10^10",
            node("ConstantOfShape", &["s"], &["c"]),
            vec![longs("s", &[100_000, 100_000])],
        ),
        bomb(
            "ConstantOfShape of 2^80",
            node("ConstantOfShape", &["s"], &["c"]),
            vec![longs("s", &[1 << 40, 1 << 40])],
        ),
        bomb(
            "ConstantOfShape of -3",
            node("ConstantOfShape", &["s"], &["c"]),
            vec![longs("s", &[-3, 4])],
        ),
        bomb(
            "Expand to 10^11",
            shaped("Expand"),
            vec![ones("o", &[1]), longs("s", &[100_000, 1_000_000])],
        ),
        bomb(
            "Tile to 10^12",
            shaped("Tile"),
            vec![ones("o", &[1, 1]), longs("s", &[1_000_000, 1_000_000])],
        ),
        bomb(
            "Pad by 10^10",
            shaped("Pad"),
            vec![ones("o", &[1]), longs("s", &[0, 10_000_000_000])],
        ),
        bomb(
            "Resize by 10^12",
            node("Resize", &["o", "", "s"], &["c"]),
            vec![ones("o", &[1, 1, 9, 9]), floats("s", &[4], &[1.0, 1.0, 1e6, 1e6])],
        ),
        bomb(
            "Range to 10^12",
            node("Range", &["a", "b", "d"], &["c"]),
            vec![scalar("a", 0.0), scalar("b", 1e12), scalar("d", 1.0)],
        ),
        bomb(
            "Range of step 0",
            node("Range", &["a", "b", "d"], &["c"]),
            vec![scalar("a", 0.0), scalar("b", 9.0), scalar("d", 0.0)],
        ),
        bomb(
            "Gather out of range",
            node("Gather", &["w", "i"], &["c"]),
            vec![ones("w", &[4, 4]), longs("i", &[99])],
        ),
        bomb(
            "Reshape to a wrong size",
            node("Reshape", &["w", "i"], &["c"]),
            vec![ones("w", &[4, 4]), longs("i", &[3, 5])],
        ),
        bomb(
            "Slice of step 0",
            node("Slice", &["w", "a", "b", "a", "a"], &["c"]),
            vec![ones("w", &[4]), longs("a", &[0]), longs("b", &[3])],
        ),
        survived("40 doublings", model(forty, vec![ones("c0", &[1])])),
        bomb(
            "integer division by 0",
            node("Div", &["a", "b"], &["c"]),
            vec![longs("a", &[5]), longs("b", &[0])],
        ),
        bomb(
            "INT64_MIN / -1",
            node("Div", &["a", "b"], &["c"]),
            vec![longs("a", &[i64::MIN]), longs("b", &[-1])],
        ),
    ]);
}

#[test]
fn a_long_chain_of_nodes_is_no_problem() {
    let nodes = (0..20_000).map(|i| {
        let from = if i == 0 { "x".to_owned() } else { format!("v{i}") };
        let to = if i == 19_999 {
            "y".to_owned()
        } else {
            format!("v{}", i + 1)
        };
        node(if i % 2 == 0 { "Neg" } else { "Relu" }, &[&from], &[&to])
    });
    assert_none_wrong([Trial::new("20,000 nodes")
        .model(&model(nodes.collect(), vec![]))
        .may(&[0])]);
}

/// `If` in `If` in `If`: as deep as the decoder goes it must work, and beyond it must be refused.
#[test]
fn nested_graphs_are_read_or_refused() {
    let nested = |levels: usize| {
        let leaf = pb::GraphProto {
            node: vec![node("Relu", &["x"], &["y"])],
            output: vec![port("y", &[1, 4])],
            ..Default::default()
        };
        let branch = |name: &str, g: &pb::GraphProto| pb::AttributeProto {
            name: Some(name.into()),
            r#type: Some(pb::attribute_proto::AttributeType::Graph as i32),
            g: Some(g.clone()),
            ..Default::default()
        };
        let mut g = leaf.clone();
        for _ in 0..levels {
            let n = with(
                node("If", &["c"], &["y"]),
                [branch("then_branch", &g), branch("else_branch", &leaf)],
            );
            g = pb::GraphProto {
                node: vec![n],
                output: vec![port("y", &[1, 4])],
                ..Default::default()
            };
        }
        let mut m = model(g.node, vec![]);
        let mut c = port("c", &[]);
        if let Some(pb::type_proto::Value::TensorType(t)) = c.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            t.elem_type = Some(pb::tensor_proto::DataType::Bool as i32);
        }
        m.graph.as_mut().expect("a graph").input.push(c);
        m
    };
    assert_none_wrong([
        Trial::new("20 levels").model(&nested(20)).may(&[0]),
        survived("200 levels", nested(200)),
    ]);
}

/// A value that follows from the input is no constant; it is computed when the result is verified.
#[test]
fn values_too_large_to_compute_are_named_and_nothing_is_let_out_unseen() {
    let max = with(node("ReduceMax", &["c"], &["r"]), [int("keepdims", 0)]);
    let tiled = vec![node("Tile", &["x", "s"], &["c"]), max, node("Add", &["x", "r"], &["y"])];
    let m = model(tiled, vec![longs("s", &[8_388_609, 1024])]);
    let folder = tempfile::tempdir().expect("a folder");
    let (from, to) = (folder.path().join("in.onnx"), folder.path().join("out.onnx"));
    save(&from, &m);
    for passes in ["simplify", "prune"] {
        let ran = onnxzip(["optimize", "--passes", passes, &arg(&from), &arg(&to)]);
        assert_eq!(ran.code, Some(3), "{}{}", ran.out, ran.err);
        assert!(
            ran.out.contains("8388609") && ran.out.contains("more than 4 GiB"),
            "{}",
            ran.out
        );
        assert!(!to.exists());
    }
}
