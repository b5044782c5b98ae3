//! The pass `opset`. What its rewrites compute is tested with ONNX Runtime, in `interop.rs`.

use crate::tool::{floats, ints, model, node, with};
use onnxzip::onnx::{External, from_bytes, to_bytes};
use onnxzip::passes::opset::raise_opset;
use onnxzip::{ir, pb};
use prost::Message;

fn set(domain: &str, version: i64) -> pb::OperatorSetIdProto {
    pb::OperatorSetIdProto {
        domain: Some(domain.into()),
        version: Some(version),
    }
}

fn at(mut m: pb::ModelProto, opset: i64, ir: i64) -> pb::ModelProto {
    m.opset_import = vec![set("", opset)];
    m.ir_version = Some(ir);
    m
}

fn decoded(m: &pb::ModelProto) -> ir::Model {
    from_bytes(m.encode_to_vec().into(), &External::below(None)).expect("a model")
}

fn raised(m: &pb::ModelProto, to: i64) -> pb::ModelProto {
    let mut model = decoded(m);
    raise_opset(&mut model, to).expect("it can be raised");
    ir::check::check(&model).expect("whole");
    pb::ModelProto::decode(&to_bytes(&model).expect("bytes")[..]).expect("it decodes")
}

fn mean(axes: &[i64]) -> pb::NodeProto {
    with(node("ReduceMean", &["x"], &["y"]), [ints("axes", axes)])
}

#[test]
fn versions_are_raised_only_as_far_as_needed() {
    for (opset, ir, to, want) in [
        (7, 3, 8, 3),
        (8, 3, 9, 4),
        (13, 7, 14, 7),
        (13, 8, 14, 8),
        (13, 7, 21, 10),
        (17, 8, 28, 14),
    ] {
        let m = raised(&at(model(vec![node("Relu", &["x"], &["y"])], vec![]), opset, ir), to);
        assert_eq!((m.opset_import[0].version(), m.ir_version()), (to, want));
    }
}

#[test]
fn a_model_that_is_there_already_keeps_its_bytes() {
    let m = at(model(vec![mean(&[1])], vec![]), 17, 8);
    assert_eq!(raised(&m, 13).encode_to_vec(), m.encode_to_vec());
    assert_eq!(raised(&m, 17).encode_to_vec(), m.encode_to_vec());
}

#[test]
fn imports_that_no_node_uses_are_dropped() {
    let mut m = model(vec![node("Relu", &["x"], &["y"])], vec![]);
    m.opset_import = vec![set("com.microsoft", 1), set("ai.onnx", 13), set("ai.onnx.ml", 3)];
    assert_eq!(raised(&m, 21).opset_import, [set("ai.onnx", 21)]);
}

#[test]
fn a_model_with_a_node_that_cannot_be_raised_is_left_as_it_was() {
    let norm = node("BatchNormalization", &["m", "s", "s", "s", "s"], &["y", "a", "b"]);
    let nodes = vec![with(node("ReduceMean", &["x"], &["m"]), [ints("axes", &[1])]), norm];
    let m = at(model(nodes, vec![floats("s", &[4], &[1.0; 4])]), 13, 8);
    let mut model = decoded(&m);
    let e = raise_opset(&mut model, 18).expect_err("training mode");
    assert!(format!("{e:#}").contains("the BatchNormalization"), "{e:#}");
    assert_eq!(to_bytes(&model).expect("bytes"), m.encode_to_vec());
}

#[test]
fn versions_that_are_not_known_are_refused() {
    let m = model(vec![node("Relu", &["x"], &["y"])], vec![]);
    assert!(raise_opset(&mut decoded(&m), 99).is_err());
    let e = raise_opset(&mut decoded(&at(m, 6, 3)), 13).expect_err("too old");
    assert!(format!("{e:#}").contains("export the model anew"), "{e:#}");
}

/// A function `f(x)` with attribute `lo`: a mean over axis 1 of `max(x, lo)`.
fn with_function(default: Option<f32>) -> pb::ModelProto {
    let mut lo = crate::tool::int("min", 0);
    (lo.i, lo.ref_attr_name) = (None, Some("lo".into()));
    lo.r#type = Some(pb::attribute_proto::AttributeType::Float as i32);
    let number = |x: f32| pb::AttributeProto {
        name: Some("lo".into()),
        r#type: Some(pb::attribute_proto::AttributeType::Float as i32),
        f: Some(x),
        ..Default::default()
    };
    let f = pb::FunctionProto {
        name: Some("f".into()),
        domain: Some("own".into()),
        input: vec!["x".into()],
        output: vec!["y".into()],
        node: vec![
            with(node("Clip", &["x"], &["c"]), [lo]),
            with(node("ReduceMean", &["c"], &["y"]), [ints("axes", &[1])]),
        ],
        opset_import: vec![set("", 10), set("unused", 1)],
        attribute_proto: default.map(number).into_iter().collect(),
        ..Default::default()
    };
    let mut call = node("f", &["x"], &["y"]);
    call.domain = Some("own".into());
    let mut m = model(vec![call], vec![]);
    m.opset_import = vec![set("", 10), set("own", 1)];
    m.functions = vec![f];
    m
}

#[test]
fn bodies_of_functions_are_raised_with_constants_for_initializers() {
    let m = raised(&with_function(Some(0.5)), 18);
    let f = &m.functions[0];
    assert_eq!(
        (&m.opset_import[..], &f.opset_import[..]),
        (&[set("", 18), set("own", 1)][..], &[set("", 18)][..])
    );
    let ops: Vec<&str> = f.node.iter().map(|n| n.op_type()).collect();
    assert_eq!(ops.iter().filter(|o| **o == "Constant").count(), 2, "{ops:?}");
    let limit = f
        .node
        .iter()
        .flat_map(|n| &n.attribute)
        .find(|a| a.name() == "value_float")
        .expect("the limit");
    assert_eq!(limit.ref_attr_name(), "lo");
    let e = raise_opset(&mut decoded(&with_function(None)), 18).expect_err("the caller gives no `lo`");
    assert!(format!("{e:#}").contains("lo"), "{e:#}");
}

#[test]
fn nodes_in_branches_are_raised() {
    let inner = pb::GraphProto {
        name: Some("branch".into()),
        node: vec![mean(&[1])],
        output: vec![crate::tool::port("y", &[1, 1])],
        ..Default::default()
    };
    let mut branch = inner.clone();
    branch.node[0].output[0] = "z".into();
    branch.output[0].name = Some("z".into());
    let graph = |name: &str, g: pb::GraphProto| pb::AttributeProto {
        name: Some(name.into()),
        r#type: Some(pb::attribute_proto::AttributeType::Graph as i32),
        g: Some(g),
        ..Default::default()
    };
    let mut inner = inner;
    inner.node[0].output[0] = "w".into();
    inner.output[0].name = Some("w".into());
    let choose = with(
        node("If", &["c"], &["y"]),
        [graph("then_branch", branch), graph("else_branch", inner)],
    );
    let c = pb::TensorProto {
        name: Some("c".into()),
        data_type: Some(pb::tensor_proto::DataType::Bool as i32),
        raw_data: Some(vec![1u8].into()),
        ..Default::default()
    };
    let m = raised(&at(model(vec![choose], vec![c]), 13, 8), 18);
    let graph = m.graph.expect("a graph");
    for a in &graph.node[0].attribute {
        let g = a.g.as_ref().expect("a branch");
        assert_eq!(
            (g.node[0].input.len(), g.node[0].attribute.len(), g.initializer.len()),
            (2, 0, 1)
        );
    }
}
