//! `Loop`.

use super::*;
use onnxzip::engine::Engine;
use onnxzip::ir::{GraphId, NodeId, SubGraphs};

/// Adds the body of a loop, with these inputs.
fn body(model: &mut Model, node: NodeId, inputs: &[&str]) -> (GraphId, Vec<ValueId>) {
    let g = model.add_graph(Some(node));
    let inputs = inputs.iter().map(|name| model.add_input(g, Net::info(name, None)));
    let inputs = inputs.collect();
    let mut attr = Attr::int("body", 0);
    attr.proto.i = None;
    attr.proto.r#type = Some(pb::attribute_proto::AttributeType::Graph as i32);
    attr.graphs = SubGraphs::One(g);
    model.node_mut(node).set_attr(attr);
    (g, inputs)
}

#[test]
fn what_a_loop_never_changes_is_read_from_outside() {
    // Three times s ← Relu(s w) + b, and w is given out, too; w and b are handed from iteration to iteration, b through an Identity.
    let mut n = Net::new(13);
    let x = n.input(&[1, 2]);
    let (w, b) = (n.floats(&[2, 2], &[1.0, -2.0, 0.5, 3.0]), n.floats(&[2], &[0.25, 1.0]));
    let main = n.0.main_id();
    let times = n.0.add_const(main, "times", Tensor::scalar(3i64));
    let carried = [Some(times), None, Some(w), Some(x), Some(b)];
    let outputs = ["w_out", "s_out", "b_out", "all"];
    let (node, outputs) = n.0.add_node(main, "loop", "Loop", &carried, &outputs, vec![]);
    let (g, inside) = body(&mut n.0, node, &["i", "on", "w_in", "s_in", "b_in"]);
    let step = |n: &mut Net, op: &str, from: &[ValueId]| {
        let from: Vec<Option<ValueId>> = from.iter().copied().map(Some).collect();
        n.0.add_node(g, "", op, &from, &["t"], vec![]).1[0]
    };
    let [_, on, w_in, s_in, b_in] = inside[..] else {
        panic!("five inputs")
    };
    let product = step(&mut n, "MatMul", &[s_in, w_in]);
    let bounded = step(&mut n, "Relu", &[product]);
    let sum = step(&mut n, "Add", &[bounded, b_in]);
    let same = step(&mut n, "Identity", &[b_in]);
    for (k, v) in [on, w_in, sum, same, product].into_iter().enumerate() {
        n.0.add_output(g, Net::info(&format!("given{k}"), None), v);
    }
    for k in [0, 1, 3] {
        n.output(outputs[k]);
    }
    let run = |model: &Model| {
        let sample = [("x".to_owned(), Tensor::new(&[1, 2], vec![1.5f32, -0.5]))].into();
        let values: Vec<ValueId> = model.main().outputs().iter().map(|p| p.value).collect();
        let session = Tract.load(model, &values, &sample).unwrap();
        let floats = |t: Tensor| t.floats().unwrap().into_owned();
        session
            .run(&sample)
            .unwrap()
            .into_iter()
            .map(floats)
            .collect::<Vec<_>>()
    };
    let before = run(&n.0);
    assert_eq!(before[2].len(), 6);
    assert_eq!(n.simplified(), ["Loop"]);
    assert_eq!(run(&n.0), before);
    let left = n.0.node(node);
    assert_eq!(
        (left.inputs().len(), left.outputs().len()),
        (3, 2),
        "s, and what is collected"
    );
    assert_eq!(n.0.graph(g).inputs().len(), 3);
    assert_eq!(n.0.graph(g).outputs().len(), 3);
    let product = n.0.nodes().find(|(_, n)| n.is("MatMul")).unwrap().1;
    assert_eq!(product.input(1), Some(w), "the weight itself");
}
