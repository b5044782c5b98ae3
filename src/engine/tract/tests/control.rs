//! `If` and `Loop`, which are spliced into the graph: see `control` and `loops`.

use super::*;

/// Adds a sub-graph to a node; `build` gives its outputs.
fn body(b: &mut Builder, node: crate::ir::NodeId, name: &str, build: impl FnOnce(&mut Model, GraphId) -> Vec<ValueId>) {
    let g = b.model.add_graph(Some(node));
    for out in build(&mut b.model, g) {
        let info = pb::ValueInfoProto {
            name: Some(b.model.value(out).name.clone()),
            ..Default::default()
        };
        b.model.add_output(g, info, out);
    }
    let mut attr = Attr::int(name, 0);
    attr.proto.i = None;
    attr.proto.r#type = Some(pb::attribute_proto::AttributeType::Graph as i32);
    attr.graphs = SubGraphs::One(g);
    b.model.node_mut(node).set_attr(attr);
}

#[test]
fn branches_may_have_different_shapes_and_change_from_sample_to_sample() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[1, 2]);
    let flag = b.input("flag", DType::Bool, &[]);
    let out = b.op("If", &[flag], vec![]);
    let node = b.model.value(out).producer().expect("a node");
    body(&mut b, node, "then_branch", |m, g| {
        m.add_node(g, "t", "Neg", &[Some(x)], &["inner"], vec![]).1
    });
    body(&mut b, node, "else_branch", |m, g| {
        let axes = m.add_const(g, "axes", Tensor::new(&[1], vec![0i64]));
        m.add_node(g, "e", "Squeeze", &[Some(x), Some(axes)], &["inner2"], vec![])
            .1
    });
    let y = b.op("Relu", &[out], vec![]);
    let of = |on: u8| {
        let flag = Tensor::from_raw(DType::Bool, &[], bytes::Bytes::copy_from_slice(&[on])).expect("one byte");
        sample(&[("x", Tensor::new(&[1, 2], vec![1f32, -2.])), ("flag", flag)])
    };
    let session = Tract.load(&b.model, &[y], &of(1)).expect("loads");
    for on in [1, 0, 1, 0] {
        let got = session.run(&of(on)).expect("runs").remove(0);
        let want: (&[usize], [f32; 2]) = if on == 1 { (&[1, 2], [0., 2.]) } else { (&[2], [1., 0.]) };
        assert_eq!((got.dims(), floats(&got)), (want.0, want.1.to_vec()));
    }
}

/// Inputs of a body: the number of the iteration, the condition, what is carried.
fn inputs(m: &mut Model, g: GraphId, names: &[&str]) -> Vec<ValueId> {
    let input = |name: &&str| pb::ValueInfoProto {
        name: Some((*name).to_owned()),
        ..Default::default()
    };
    names.iter().map(|name| m.add_input(g, input(name))).collect()
}

/// A node of a body.
fn step(m: &mut Model, g: GraphId, op: &str, from: &[ValueId]) -> ValueId {
    let name = m.fresh_name(op);
    let from: Vec<Option<ValueId>> = from.iter().copied().map(Some).collect();
    m.add_node(g, &name, op, &from, &[&name], vec![]).1[0]
}

/// `s ← s + x·w` from zero, `most` times at most and as long as `s < limit`; gives the last `s`, and `x·w·i` of every iteration.
fn sums(opset: i64, most: Option<i64>) -> (Builder, Vec<ValueId>) {
    let mut b = Builder::new(opset);
    let x = b.input("x", DType::Float, &[1]);
    let limit = b.input("limit", DType::Float, &[1]);
    let zero = b.constant("zero", Tensor::new(&[1], vec![0f32]));
    let main = b.model.main_id();
    let most = most.map(|n| b.constant("most", Tensor::scalar(n)));
    let looped = b
        .model
        .add_node(main, "loop", "Loop", &[most, None, Some(zero)], &["s", "all"], vec![]);
    body(&mut b, looped.0, "body", |m, g| {
        let [i, _, s] = inputs(m, g, &["i", "on", "s_in"])[..] else {
            panic!("three inputs")
        };
        let w = m.add_const(g, "w", Tensor::new(&[1], vec![0.5f32]));
        let more = step(m, g, "Mul", &[x, w]);
        let s = step(m, g, "Add", &[s, more]);
        let to = Attr::int("to", DType::Float as i64);
        let number = m.add_node(g, "cast", "Cast", &[Some(i)], &["number"], vec![to]).1[0];
        let row = step(m, g, "Mul", &[more, number]);
        let less = step(m, g, "Less", &[s, limit]);
        let axes = m.add_const(g, "axes", Tensor::new(&[0], Vec::<i64>::new()));
        vec![step(m, g, "Reshape", &[less, axes]), s, row]
    });
    (b, looped.1)
}

fn of(x: f32, limit: f32) -> Sample {
    let one = |x| Tensor::new(&[1], vec![x]);
    sample(&[("x", one(x)), ("limit", one(limit))])
}

#[test]
fn a_loop_runs_as_often_as_the_sample_makes_it() {
    for opset in [11, 13] {
        let (b, outputs) = sums(opset, Some(40));
        let session = Tract.load(&b.model, &outputs, &of(2.0, 3.0)).expect("loads");
        for (x, limit, times) in [
            (2.0, 3.0, 3),
            (2.0, 30.0, 30),
            (2.0, 3.0, 3),
            (4.0, 1e9, 40),
            (2.0, -1.0, 1),
        ] {
            let got = session.run(&of(x, limit)).expect("runs");
            assert_eq!(floats(&got[0]), [times as f32 * x / 2.0]);
            let rows: Vec<f32> = (0..times).map(|i| i as f32 * x / 2.0).collect();
            assert_eq!((got[1].dims(), floats(&got[1])), (&[times, 1][..], rows));
        }
    }
}

#[test]
fn constants_of_a_body_are_there_once() {
    let (b, outputs) = sums(13, Some(5));
    let job = Job::new(&b.model, &outputs, &of(1.0, 100.0)).expect("a job");
    let mut flat = job.flat.expect("something to compute");
    super::super::control::resolve(&mut flat, &|_, names| Ok(vec![1; names.len()])).expect("no end but its own");
    let named = |name: &str| flat.tensors.keys().filter(|k| k.ends_with(name)).count();
    assert_eq!((named("/w"), named("#4")), (1, 1));
    assert!(flat.graph.node.iter().all(|n| n.op_type() != "Loop"));
}

#[test]
fn a_loop_without_end_is_refused() {
    let (b, outputs) = sums(13, None);
    let Err(e) = Tract.load(&b.model, &outputs, &of(0.0, 1.0)) else {
        panic!("it loads")
    };
    assert!(e.0.contains("too often to be written out for tract"), "{}", e.0);
    let got = run(&b, &outputs, &of(1.0, 1.2));
    assert_eq!(floats(&got[0]), [1.5]);
}

#[test]
fn a_loop_that_does_not_run_gives_what_it_was_given() {
    let (b, outputs) = sums(13, Some(0));
    assert_eq!(floats(&run(&b, &outputs[..1], &of(1.0, 9.0))[0]), [0.0]);
}

#[test]
fn loops_and_branches_lie_in_each_other() {
    // Three times: if s > 4, s − 3, else twice s in an inner loop of one iteration.
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[1]);
    let four = b.constant("four", Tensor::new(&[1], vec![4f32]));
    let three = b.constant("three", Tensor::scalar(3i64));
    let (one, scalar) = (
        b.constant("one", Tensor::scalar(1i64)),
        b.constant("shape", Tensor::new(&[0], Vec::<i64>::new())),
    );
    let main = b.model.main_id();
    let looped = b
        .model
        .add_node(main, "loop", "Loop", &[Some(three), None, Some(x)], &["y"], vec![]);
    let mut inner = None;
    body(&mut b, looped.0, "body", |m, g| {
        let given = inputs(m, g, &["i", "on", "s"]);
        let greater = step(m, g, "Greater", &[given[2], four]);
        let greater = step(m, g, "Reshape", &[greater, scalar]);
        let choice = m.add_node(g, "if", "If", &[Some(greater)], &["next"], vec![]);
        inner = Some((choice.0, given[2]));
        vec![given[1], choice.1[0]]
    });
    let (choice, s) = inner.expect("built");
    body(&mut b, choice, "then_branch", |m, g| {
        let three = m.add_const(g, "three.0", Tensor::new(&[1], vec![3f32]));
        vec![step(m, g, "Sub", &[s, three])]
    });
    let mut innermost = None;
    body(&mut b, choice, "else_branch", |m, g| {
        let looped = m.add_node(g, "inner", "Loop", &[Some(one), None, Some(s)], &["twice"], vec![]);
        innermost = Some(looped.0);
        looped.1
    });
    body(&mut b, innermost.expect("built"), "body", |m, g| {
        let given = inputs(m, g, &["j", "go", "t"]);
        vec![given[1], step(m, g, "Add", &[given[2], given[2]])]
    });
    let of = |x: f32| sample(&[("x", Tensor::new(&[1], vec![x]))]);
    let session = Tract.load(&b.model, &looped.1, &of(1.0)).expect("loads");
    for (x, y) in [(1.0, 8.0), (3.0, 6.0), (20.0, 11.0), (2.5, 4.0)] {
        assert_eq!(floats(&session.run(&of(x)).expect("runs")[0]), [y], "{x}");
    }
}

#[test]
fn loops_in_loops_are_not_written_out_without_bound() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[1]);
    let many = b.constant("many", Tensor::scalar(100i64));
    let main = b.model.main_id();
    let looped = b
        .model
        .add_node(main, "outer", "Loop", &[Some(many), None, Some(x)], &["y"], vec![]);
    let mut inner = None;
    body(&mut b, looped.0, "body", |m, g| {
        let given = inputs(m, g, &["i", "on", "s"]);
        let looped = m.add_node(
            g,
            "inner",
            "Loop",
            &[Some(many), None, Some(given[2])],
            &["next"],
            vec![],
        );
        inner = Some(looped.0);
        vec![given[1], looped.1[0]]
    });
    body(&mut b, inner.expect("built"), "body", |m, g| {
        let given = inputs(m, g, &["j", "go", "t"]);
        vec![given[1], step(m, g, "Neg", &[given[2]])]
    });
    let x = sample(&[("x", Tensor::new(&[1], vec![1f32]))]);
    let Err(e) = Tract.load(&b.model, &looped.1, &x) else {
        panic!("it loads")
    };
    assert!(
        e.0.contains("depend on each other") || e.0.contains("too often"),
        "{}",
        e.0
    );
}
