//! Inference and cost of whole models, built in code.

use onnxzip::analysis::cost::cost;
use onnxzip::ir::{Attr, DType, GraphId, Model, SubGraphs, Tensor, ValueId};
use onnxzip::onnx;
use onnxzip::ops::infer::{Dim, Elem, show};
use onnxzip::ops::types::{Types, infer, infer_for, infer_sample, infer_with};
use onnxzip::pb;
use std::collections::BTreeMap;
use std::path::Path;

/// A declared type: dimensions as in `"N, 3, ?"`.
fn info(name: &str, dtype: DType, dims: &str) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |d: &str| Dimension {
        value: match (d.trim(), d.trim().parse()) {
            ("?", _) => None,
            (_, Ok(n)) => Some(Value::DimValue(n)),
            (s, _) => Some(Value::DimParam(s.to_owned())),
        },
        ..Default::default()
    };
    let dim = if dims.is_empty() {
        vec![]
    } else {
        dims.split(',').map(dim).collect()
    };
    let tensor = pb::type_proto::Tensor {
        elem_type: Some(dtype as i32),
        shape: Some(pb::TensorShapeProto { dim }),
    };
    let value = Some(pb::type_proto::Value::TensorType(tensor));
    let r#type = Some(pb::TypeProto {
        value,
        ..Default::default()
    });
    pb::ValueInfoProto {
        name: Some(name.to_owned()),
        r#type,
        ..Default::default()
    }
}

/// A model under construction; nodes go to graph `g`.
struct Build {
    m: Model,
    g: GraphId,
}

impl Build {
    fn new(opset: i64) -> Build {
        let import = pb::OperatorSetIdProto {
            domain: None,
            version: Some(opset),
        };
        let m = Model::new(pb::ModelProto {
            ir_version: Some(8),
            opset_import: vec![import],
            ..Default::default()
        });
        let g = m.main_id();
        Build { m, g }
    }
    fn input(&mut self, name: &str, dims: &str) -> ValueId {
        self.m.add_input(self.g, info(name, DType::Float, dims))
    }
    fn weights(&mut self, name: &str, dims: &[usize]) -> ValueId {
        let data = vec![0.5f32; dims.iter().product()];
        self.m.add_const(self.g, name, Tensor::new(dims, data))
    }
    fn ints(&mut self, name: &str, v: &[i64]) -> ValueId {
        self.m.add_const(self.g, name, Tensor::new(&[v.len()], v.to_vec()))
    }
    fn node(&mut self, op: &str, inputs: &[ValueId], attrs: Vec<Attr>) -> ValueId {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        let out = format!("{op}_out");
        self.m.add_node(self.g, "", op, &inputs, &[&out], attrs).1[0]
    }
    fn output(&mut self, v: ValueId) {
        let name = self.m.value(v).name.clone();
        let info = pb::ValueInfoProto {
            name: Some(name),
            ..Default::default()
        };
        self.m.add_output(self.g, info, v);
    }
    /// Gives a node a sub-graph, built by `fill`.
    fn body<T>(&mut self, of: ValueId, attr: &str, fill: impl FnOnce(&mut Build) -> T) -> T {
        let node = self.m.value(of).producer().expect("a node");
        let outer = std::mem::replace(&mut self.g, self.m.add_graph(Some(node)));
        let mut a = Attr::int(attr, 0);
        a.proto = pb::AttributeProto {
            name: Some(attr.to_owned()),
            r#type: Some(5),
            ..Default::default()
        };
        a.graphs = SubGraphs::One(self.g);
        self.m.node_mut(node).set_attr(a);
        let made = fill(self);
        self.g = outer;
        made
    }
    fn types(&self) -> Types {
        infer(&self.m).expect("no contradiction")
    }
    fn dims(&self, v: ValueId) -> String {
        self.types().shape(v).map_or("any".to_owned(), show)
    }
}

fn sizes(all: &[(&str, &[usize])]) -> BTreeMap<String, Vec<usize>> {
    all.iter().map(|(n, d)| ((*n).to_owned(), d.to_vec())).collect()
}

#[test]
fn a_reshape_computed_from_the_batch_keeps_the_batch() {
    let mut b = Build::new(13);
    let x = b.input("x", "N, 4, 6");
    let shape = b.node("Shape", &[x], vec![]);
    let zero = b.ints("zero", &[0]);
    let n = b.node("Gather", &[shape, zero], vec![]);
    let rest = b.ints("rest", &[-1]);
    let to = b.node("Concat", &[n, rest], vec![Attr::int("axis", 0)]);
    let y = b.node("Reshape", &[x, to], vec![]);
    assert_eq!(b.dims(y), "[N, 24]");
    let bound = infer_for(&b.m, &sizes(&[("x", &[5, 4, 6])])).expect("fits");
    assert_eq!(bound.dims(y), Some(vec![5, 24]));
    assert!(bound.is_float(y) && bound.rank(y) == Some(2));
}

#[test]
fn a_contradiction_names_the_node() {
    let mut b = Build::new(13);
    let x = b.input("x", "N, 4");
    let w = b.weights("w", &[5, 6]);
    b.node("MatMul", &[x, w], vec![]);
    let e = format!("{:#}", infer(&b.m).expect_err("4 is not 5"));
    assert!(
        e.contains("MatMul") && e.contains("inner dimensions of [N, 4] and [5, 6]"),
        "{e}"
    );
}

#[test]
fn inputs_that_share_a_name_are_bound_together() {
    let mut b = Build::new(13);
    let x = b.input("x", "N, 4");
    let y = b.input("y", "N, 1");
    let z = b.node("Add", &[x, y], vec![]);
    let t = infer_for(&b.m, &sizes(&[("x", &[3, 4])])).expect("fits");
    assert_eq!((t.dims(y), t.dims(z)), (Some(vec![3, 1]), Some(vec![3, 4])));
    let e = infer_for(&b.m, &sizes(&[("q", &[3])])).expect_err("no such input");
    assert!(e.to_string().contains("no input called q"));
    let e = infer_for(&b.m, &sizes(&[("x", &[3, 5])])).expect_err("4 is declared");
    assert!(e.to_string().contains("input x is declared [N, 4]"), "{e}");
}

#[test]
fn a_claim_fills_in_where_inference_ends_and_overrules_nothing() {
    let mut b = Build::new(13);
    let x = b.input("x", "N, 4");
    let y = b.node("MyOwnOperator", &[x], vec![]);
    let z = b.node("Relu", &[x], vec![]);
    let g = b.g;
    b.m.add_info(g, Some(y), info("y", DType::Float, "N, 7"));
    b.m.add_info(g, Some(z), info("z", DType::Float, "9, 9"));
    assert_eq!(b.dims(y), "[N, 7]");
    assert_eq!(b.dims(z), "[N, 4]");
    let seen = BTreeMap::from([(y, vec![2, 7])]);
    let t = infer_with(&b.m, &seen).expect("fits");
    assert_eq!(show(t.shape(y).expect("known")), "[N, 7]", "the name is kept");
}

#[test]
fn shapes_seen_in_a_run_fill_in() {
    let mut b = Build::new(13);
    let x = b.input("x", "1, 4");
    let y = b.node("MyOwnOperator", &[x], vec![]);
    let z = b.node("Relu", &[y], vec![]);
    assert_eq!(b.dims(z), "any");
    let t = infer_with(&b.m, &BTreeMap::from([(y, vec![2, 7])])).expect("fits");
    assert_eq!(t.dims(z), Some(vec![2, 7]));
}

#[test]
fn a_default_that_a_caller_may_replace_is_no_constant() {
    let mut b = Build::new(13);
    let x = b.input("x", "6");
    let g = b.g;
    let shape = b.m.add_input(g, info("shape", DType::Int64, "2"));
    b.m.set_default(shape, Tensor::new(&[2], vec![2i64, 3]));
    let y = b.node("Reshape", &[x, shape], vec![]);
    assert_eq!(b.dims(y), "[?, ?]");
    b.m.rest.ir_version = Some(3);
    assert_eq!(b.dims(y), "[2, 3]");
}

/// If(cond): Relu(x) else x reshaped to `to`.
fn branches(b: &mut Build, to: &[i64]) -> (ValueId, ValueId) {
    let x = b.input("x", "N, 4");
    let cond = b.m.add_input(b.g, info("cond", DType::Bool, ""));
    let y = b.node("If", &[cond], vec![]);
    b.body(y, "then_branch", |b| {
        let v = b.node("Relu", &[x], vec![]);
        b.output(v);
    });
    let inner = b.body(y, "else_branch", |b| {
        let to = b.ints("to", to);
        let v = b.node("Reshape", &[x, to], vec![]);
        b.output(v);
        v
    });
    (y, inner)
}

#[test]
fn an_if_gives_what_holds_in_both_branches() {
    let mut b = Build::new(13);
    let (y, inner) = branches(&mut b, &[-1, 2]);
    assert_eq!(b.dims(inner), "[?, 2]", "the captured value is known inside");
    assert_eq!(b.dims(y), "[?, ?]");
    let truth = |c: u8| Tensor::from_raw(DType::Bool, &[], vec![c].into()).expect("one byte");
    let x = || Tensor::new(&[3, 4], vec![0f32; 12]);
    let run = |c: u8| BTreeMap::from([("x".to_owned(), x()), ("cond".to_owned(), truth(c))]);
    assert_eq!(infer_sample(&b.m, &run(1)).expect("fits").dims(y), Some(vec![3, 4]));
    assert_eq!(infer_sample(&b.m, &run(0)).expect("fits").dims(y), Some(vec![6, 2]));
}

#[test]
fn a_contradiction_in_a_branch_is_no_error() {
    let mut b = Build::new(13);
    let (y, inner) = branches(&mut b, &[5, 7]);
    let t = infer_for(&b.m, &sizes(&[("x", &[3, 4])])).expect("the branch may never run");
    assert_eq!((t.shape(inner), t.shape(y)), (None, None));
}

#[test]
fn what_a_loop_changes_is_unknown_and_what_it_keeps_is_known() {
    let mut b = Build::new(13);
    let grows = b.input("grows", "2, 3");
    let stays = b.input("stays", "N, 3");
    let times = b.m.add_const(b.g, "times", Tensor::new(&[], vec![7i64]));
    let none = None;
    let inputs = [Some(times), none, Some(grows), Some(stays)];
    let (_, out) = b.m.add_node(b.g, "", "Loop", &inputs, &["g", "s", "all"], vec![]);
    b.body(out[0], "body", |b| {
        let g = b.g;
        b.m.add_input(g, info("i", DType::Int64, ""));
        let cond = b.m.add_input(g, info("c", DType::Bool, ""));
        let grows = b.m.add_input(g, info("gi", DType::Float, "K, 3"));
        let stays = b.m.add_input(g, info("si", DType::Float, "K, 3"));
        let on = b.node("Identity", &[cond], vec![]);
        let more = b.node("Concat", &[grows, grows], vec![Attr::int("axis", 0)]);
        let same = b.node("Relu", &[stays], vec![]);
        for v in [on, more, same, same] {
            b.output(v);
        }
    });
    assert_eq!(
        [b.dims(out[0]), b.dims(out[1]), b.dims(out[2])],
        ["[?, 3]", "[N, 3]", "[7, N, 3]"]
    );
}

#[test]
fn loops_in_loops_are_walked_in_bounded_time() {
    let mut b = Build::new(13);
    let x = b.input("x", "2, 3");
    fn nest(b: &mut Build, x: ValueId, depth: usize) -> ValueId {
        let y = b.m.add_node(b.g, "", "Loop", &[None, None, Some(x)], &["y"], vec![]).1[0];
        b.body(y, "body", |b| {
            let g = b.g;
            b.m.add_input(g, info(&format!("i{depth}"), DType::Int64, ""));
            let cond = b.m.add_input(g, info(&format!("c{depth}"), DType::Bool, ""));
            let state = b.m.add_input(g, info(&format!("s{depth}"), DType::Float, "?, ?"));
            let wider = b.node("Concat", &[state, state], vec![Attr::int("axis", (depth % 2) as i64)]);
            let out = if depth == 0 { wider } else { nest(b, wider, depth - 1) };
            b.output(cond);
            b.output(out);
        });
        y
    }
    let y = nest(&mut b, x, 30);
    let start = std::time::Instant::now();
    let t = b.types();
    assert!(start.elapsed().as_secs() < 5);
    assert_eq!(t.dims(y), None);
}

#[test]
fn a_function_is_inferred_at_its_call() {
    let mut b = Build::new(13);
    let name = |s: &str| Some(s.to_owned());
    let f = b.m.add_function(pb::FunctionProto {
        name: name("Twice"),
        domain: name("mine"),
        opset_import: b.m.rest.opset_import.clone(),
        ..Default::default()
    });
    let outer = std::mem::replace(&mut b.g, f);
    let a = b.m.add_input(
        f,
        pb::ValueInfoProto {
            name: name("a"),
            ..Default::default()
        },
    );
    let two = b.node("Concat", &[a, a], vec![Attr::int("axis", 1)]);
    b.output(two);
    b.g = outer;
    let x = b.input("x", "N, 4");
    let y = b.node("Twice", &[x], vec![]);
    let call = b.m.value(y).producer().expect("a node");
    b.m.node_mut(call).op.domain = "mine".into();
    assert_eq!((b.dims(y), b.dims(two)), ("[N, 8]".to_owned(), "[N, 8]".to_owned()));
    let z = b.node("Twice", &[y], vec![]);
    let call = b.m.value(z).producer().expect("a node");
    b.m.node_mut(call).op.domain = "mine".into();
    assert_eq!(
        (b.dims(z), b.dims(two)),
        ("[N, 16]".to_owned(), "any".to_owned()),
        "two calls, two answers"
    );
}

#[test]
fn a_conv_costs_the_same_with_its_weight_dequantized() {
    let mut b = Build::new(13);
    let x = b.input("x", "N, 3, 8, 8");
    let w = b.weights("w", &[4, 3, 3, 3]);
    let bias = b.weights("bias", &[4]);
    b.node("Conv", &[x, w, bias], vec![]);
    let t = infer_for(&b.m, &sizes(&[("x", &[2, 3, 8, 8])])).expect("fits");
    let plain = cost(&b.m, &t);
    assert_eq!(
        (plain.params, plain.bytes, plain.macs),
        (108 + 4, 448, Some(2 * 4 * 36 * 27))
    );
    assert_eq!(cost(&b.m, &b.types()).macs, None, "the batch is not known");

    let mut b = Build::new(13);
    let x = b.input("x", "2, 3, 8, 8");
    let g = b.g;
    let w = Tensor::from_raw(DType::Int8, &[4, 3, 3, 3], vec![1u8; 108].into()).expect("108 bytes");
    let w = b.m.add_const(g, "w", w);
    let scale = b.weights("scale", &[4]);
    let zero = b.m.add_const(
        g,
        "zero",
        Tensor::from_raw(DType::Int8, &[4], vec![0u8; 4].into()).expect("4 bytes"),
    );
    let real = b.node("DequantizeLinear", &[w, scale, zero], vec![Attr::int("axis", 0)]);
    let conv = b.node("Conv", &[x, real], vec![]);
    let c = cost(&b.m, &b.types());
    assert_eq!((c.params, c.bytes, c.macs), (108, 108 + 16 + 4, plain.macs));
    let conv = b.m.value(conv).producer().expect("a node");
    let row = c.nodes.iter().find(|n| n.node == conv).expect("the Conv has a row");
    assert_eq!(
        (row.params, row.macs),
        (108, plain.macs),
        "the weight is put down to the Conv"
    );
}

#[test]
fn a_weight_read_twice_counts_once_and_an_unread_one_not_at_all() {
    let mut b = Build::new(13);
    let x = b.input("x", "5, 4");
    let w = b.weights("w", &[4, 4]);
    b.weights("unread", &[100]);
    let y = b.node("MatMul", &[x, w], vec![]);
    b.node("MatMul", &[y, w], vec![]);
    let c = cost(&b.m, &b.types());
    assert_eq!((c.params, c.bytes, c.macs), (16, 64, Some(2 * 5 * 16)));
}

#[test]
fn of_an_if_the_branch_that_costs_more_counts() {
    let mut b = Build::new(13);
    let x = b.input("x", "5, 4");
    let cond = b.m.add_input(b.g, info("cond", DType::Bool, ""));
    let y = b.node("If", &[cond], vec![]);
    for (name, n) in [("then_branch", 2), ("else_branch", 3)] {
        b.body(y, name, |b| {
            let w = b.weights(name, &[4, n]);
            let v = b.node("MatMul", &[x, w], vec![]);
            b.output(v);
        });
    }
    let c = cost(&b.m, &b.types());
    assert_eq!((c.params, c.macs), (20, Some(5 * 4 * 3)));
}

#[test]
fn recurrent_layers_count_both_matrices_at_every_step() {
    let mut b = Build::new(14);
    let x = b.input("x", "7, 2, 3");
    let w = b.weights("w", &[1, 20, 3]);
    let r = b.weights("r", &[1, 20, 5]);
    b.node("LSTM", &[x, w, r], vec![Attr::int("hidden_size", 5)]);
    assert_eq!(cost(&b.m, &b.types()).macs, Some(7 * 2 * 20 * (3 + 5)));
}

fn dump(model: &Model, types: &Types) -> serde_json::Value {
    let mut all = Vec::new();
    for (v, value) in model.values() {
        let f = types.fact(v);
        let dim = |d: &Dim| match d {
            Dim::Known(n) => serde_json::json!(n),
            Dim::Symbol(s) => serde_json::json!(s),
            Dim::Unknown => serde_json::Value::Null,
        };
        let elem = |e: &Elem| match e {
            Elem::Int(n) => serde_json::json!(n),
            Elem::Float(n) => serde_json::json!(n),
            Elem::Symbol(s) => serde_json::json!(s),
            Elem::Unknown => serde_json::Value::Null,
        };
        all.push(serde_json::json!({
            "name": value.name,
            "main": value.graph() == model.main_id(),
            "const": value.tensor().is_some(),
            "op": value.producer().map(|n| model.node(n).op.name.clone()),
            "dtype": f.dtype.map(|d| d as i32),
            "shape": f.shape.as_ref().map(|s| s.iter().map(dim).collect::<Vec<_>>()),
            "elems": f.elems.as_ref().map(|s| s.iter().map(elem).collect::<Vec<_>>()),
            "holds": f.holds.as_ref().map(|f| serde_json::json!([f.dtype.map(|d| d as i32), f.shape.as_ref().map(|s| s.iter().map(dim).collect::<Vec<_>>())])),
        }));
    }
    all.into()
}

/// `INFER_LIST`: a file of lines `model.onnx [json of input dims]`; `INFER_OUT`: where a line of JSON for each is written.
#[test]
#[ignore = "a tool: dumps facts for comparison with other inference"]
fn dump_facts() {
    let list = std::fs::read_to_string(std::env::var("INFER_LIST").unwrap()).unwrap();
    let mut out = String::new();
    for line in list.lines() {
        let (path, dims) = line.split_once('\t').unwrap_or((line, "{}"));
        let dims: BTreeMap<String, Vec<usize>> = serde_json::from_str(dims).unwrap();
        let got = onnx::read(Path::new(path)).and_then(|m| {
            let t = if dims.is_empty() {
                infer(&m)?
            } else {
                infer_for(&m, &dims)?
            };
            let c = cost(&m, &t);
            let macs: BTreeMap<String, Option<u64>> = c.nodes.iter().map(|n| (m.label(n.node), n.macs)).collect();
            Ok(serde_json::json!({"path": path, "facts": dump(&m, &t), "cost": [c.params, c.bytes, c.macs], "macs": macs}))
        });
        let json = match got {
            Ok(json) => json,
            Err(e) => serde_json::json!({"path": path, "error": format!("{e:#}")}),
        };
        out.push_str(&json.to_string());
        out.push('\n');
    }
    std::fs::write(std::env::var("INFER_OUT").unwrap(), out).unwrap();
}
