//! What `prune` removes, keeps, and says. Every case is run before and after and must give the same outputs; then the pass is
//! run again and must find nothing.

use crate::tool::run_passes;
use onnxzip::data::Dataset;
use onnxzip::engine::Engine;
use onnxzip::engine::tract::Tract;
use onnxzip::ir::{Attr, DType, GraphId, Model, SubGraphs, Tensor, ValueId};
use onnxzip::onnx;
use onnxzip::passes::{Note, NoteKind, parse_list};
use onnxzip::pb;
use std::path::Path;

mod exact;
mod lossy;
mod masks;
mod picks;
mod reach;
mod topologies;

fn run(spec: &str, model: &mut Model) -> Vec<Note> {
    run_on(&Dataset::synthetic(model, 1, 4), spec, model)
}

fn run_on(data: &Dataset, spec: &str, model: &mut Model) -> Vec<Note> {
    run_passes(model, spec, data, 0)
}

/// A model under construction, with seeded weights.
struct Net {
    model: Model,
    graph: GraphId,
    state: u64,
}

fn info(name: &str, dims: Option<&[usize]>) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |d: &usize| Dimension {
        value: Some(Value::DimValue(*d as i64)),
        ..Default::default()
    };
    let shape = dims.map(|d| pb::TensorShapeProto {
        dim: d.iter().map(dim).collect(),
    });
    pb::ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(pb::type_proto::Tensor {
                elem_type: Some(DType::Float as i32),
                shape,
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}

impl Net {
    fn new(opset: i64) -> Net {
        let rest = pb::ModelProto {
            ir_version: Some(8),
            opset_import: vec![pb::OperatorSetIdProto {
                domain: None,
                version: Some(opset),
            }],
            ..Default::default()
        };
        let model = Model::new(rest);
        Net {
            graph: model.main_id(),
            model,
            state: 7,
        }
    }

    fn input(&mut self, dims: &[usize]) -> ValueId {
        self.model.add_input(self.graph, info("x", Some(dims)))
    }

    /// Random weights, none of them zero.
    fn param(&mut self, name: &str, dims: &[usize]) -> ValueId {
        self.param_without(name, dims, 0, &[])
    }

    /// Random weights; the slices `zero` of `axis` are zero.
    fn param_without(&mut self, name: &str, dims: &[usize], axis: usize, zero: &[usize]) -> ValueId {
        let inner: usize = dims[axis + 1..].iter().product();
        let n: usize = dims.iter().product();
        let data = (0..n).map(|i| {
            self.state = self
                .state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let x = (self.state >> 40) as f32 / 16777216.0 + 0.1;
            let sign = if self.state >> 32 & 1 == 0 { 1.0 } else { -1.0 };
            if zero.contains(&(i / inner % dims[axis])) {
                0.0
            } else {
                sign * x
            }
        });
        let data: Vec<f32> = data.collect();
        self.tensor(name, Tensor::new(dims, data))
    }

    fn tensor(&mut self, name: &str, t: Tensor) -> ValueId {
        self.model.add_const(self.graph, name, t)
    }

    fn op(&mut self, op: &str, inputs: &[ValueId], attrs: Vec<Attr>) -> ValueId {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        let name = self.model.fresh_name(&op.to_lowercase());
        let (_, outs) = self.model.add_node(self.graph, &name, op, &inputs, &[&name], attrs);
        outs[0]
    }

    fn output(&mut self, name: &str, v: ValueId) {
        self.model.add_output(self.graph, info(name, None), v);
    }

    /// Conv, with padding for odd kernels; the filters `zero` and their biases are zero.
    fn conv(&mut self, name: &str, x: ValueId, dims: &[usize; 4], zero: &[usize]) -> ValueId {
        let w = self.param_without(&format!("{name}.w"), dims, 0, zero);
        let b = self.param_without(&format!("{name}.b"), &dims[..1], 0, zero);
        let pad = (dims[2] / 2) as i64;
        self.op("Conv", &[x, w, b], vec![Attr::ints("pads", vec![pad; 4])])
    }

    fn dims(&self, name: &str) -> Vec<usize> {
        let found = self.model.values().find(|(_, v)| v.name == name);
        let t = found.and_then(|(_, v)| v.tensor());
        t.unwrap_or_else(|| panic!("no weight {name}")).dims().to_vec()
    }

    /// Prunes, compares outputs, prunes again; gives what was said the first time.
    fn prune(&mut self, spec: &str) -> Vec<Note> {
        let before = self.model.clone();
        let notes = run(spec, &mut self.model);
        same_outputs(&before, &self.model);
        let revision = onnx::to_bytes(&self.model).expect("it encodes");
        let again = run(spec, &mut self.model);
        assert!(
            again.iter().all(|n| n.kind != NoteKind::Did),
            "a second run did {again:?}"
        );
        assert_eq!(revision, onnx::to_bytes(&self.model).expect("it encodes"));
        notes
    }
}

fn same_outputs(before: &Model, after: &Model) {
    let data = Dataset::synthetic(before, 3, 3);
    for i in 0..data.len() {
        let sample = data.get(i).expect("a sample");
        let outputs = |m: &Model| {
            let wanted: Vec<ValueId> = m.main().outputs().iter().map(|p| p.value).collect();
            let session = Tract.load(m, &wanted, &sample).expect("tract loads it");
            session.run(&sample).expect("it runs")
        };
        for (a, b) in outputs(before).iter().zip(&outputs(after)) {
            assert_eq!(a.dims(), b.dims());
            let (a, b) = (a.floats().expect("floats"), b.floats().expect("floats"));
            let largest = a.iter().fold(0f32, |m, x| m.max(x.abs()));
            assert!(largest > 0.0, "a test that compares zeros says nothing");
            for (x, y) in a.iter().zip(b.iter()) {
                assert!((x - y).abs() <= 1e-5 * largest, "{x} became {y}");
            }
        }
    }
}

fn said(notes: &[Note], kind: NoteKind, part: &str) -> bool {
    notes.iter().any(|n| n.kind == kind && n.what.contains(part))
}

#[test]
fn masks_fold_and_what_they_clear_goes() {
    let mut n = Net::new(13);
    let x = n.input(&[2, 6]);
    let w = n.param("w", &[4, 6]);
    let m = n.tensor(
        "m",
        Tensor::from_raw(DType::Bool, &[4, 1], vec![1u8, 0, 1, 1].into()).expect("a mask"),
    );
    let m = n.op("Cast", &[m], vec![Attr::int("to", 1)]);
    let w = n.op("Mul", &[w, m], vec![]);
    let w = n.op("Transpose", &[w], vec![]);
    let keep = n.tensor(
        "k",
        Tensor::from_raw(DType::Bool, &[6, 4], vec![1u8; 24].into()).expect("a mask"),
    );
    let zero = n.tensor("zero", Tensor::scalar(0f32));
    let w = n.op("Where", &[keep, w, zero], vec![]);
    let h = n.op("MatMul", &[x, w], vec![]);
    let w = n.param("v", &[4, 5]);
    let y = n.op("MatMul", &[h, w], vec![]);
    n.output("y", y);
    let notes = n.prune("prune");
    assert!(
        said(
            &notes,
            NoteKind::Did,
            "mask folded: 25.0 % zeros, 18 of 24 weights remain"
        ),
        "{notes:?}"
    );
    assert_eq!(n.dims("v"), [3, 5]);
    assert_eq!(n.model.nodes().count(), 2, "the masks are gone");
}

#[test]
fn a_mask_that_callers_may_set_is_left_alone() {
    let mut n = Net::new(13);
    let x = n.input(&[2, 6]);
    let w = n.param("w", &[6, 4]);
    let m = n.model.add_input(n.graph, info("mask", Some(&[6, 4])));
    n.model.set_default(m, Tensor::new(&[6, 4], vec![0f32; 24]));
    let w = n.op("Mul", &[w, m], vec![]);
    let y = n.op("MatMul", &[x, w], vec![]);
    n.output("y", y);
    let before = onnx::to_bytes(&n.model).expect("it encodes");
    let notes = run("prune", &mut n.model);
    assert!(said(&notes, NoteKind::Skip, "mask is a graph input"), "{notes:?}");
    assert_eq!(before, onnx::to_bytes(&n.model).expect("it encodes"));
}

/// `If` whose branches read what the main graph made; `wide` branches contract it, else they give it out.
fn captured(contract: bool) -> Net {
    let mut n = Net::new(13);
    let x = n.input(&[2, 6]);
    let w = n.param_without("a", &[6, 4], 1, &[1]);
    let h = n.op("MatMul", &[x, w], vec![]);
    let v = n.param("v", &[4, 3]);
    let yes = n.tensor(
        "yes",
        Tensor::from_raw(DType::Bool, &[], vec![1u8].into()).expect("a condition"),
    );
    let (id, outs) = n.model.add_node(n.graph, "if", "If", &[Some(yes)], &["chosen"], vec![]);
    let main = n.graph;
    for branch in ["then_branch", "else_branch"] {
        n.graph = n.model.add_graph(Some(id));
        let y = match contract {
            true => n.op("MatMul", &[h, v], vec![]),
            false => n.op("Neg", &[h], vec![]),
        };
        n.output(&format!("{branch}_out"), y);
        let mut attr = Attr::int(branch, 0);
        attr.proto.i = None;
        attr.proto.r#type = Some(pb::attribute_proto::AttributeType::Graph as i32);
        attr.graphs = SubGraphs::One(n.graph);
        n.model.node_mut(id).set_attr(attr);
    }
    n.graph = main;
    let z = n.param("z", &[4, 3]);
    let z = n.op("MatMul", &[h, z], vec![]);
    n.output("z", z);
    n.output("y", outs[0]);
    n.prune("prune");
    n
}

#[test]
fn captured_channels_go_only_when_the_branches_can_spare_them() {
    let n = captured(false);
    assert_eq!((n.dims("a"), n.dims("z")), (vec![6, 4], vec![4, 3]));
    let n = captured(true);
    assert_eq!(
        (n.dims("a"), n.dims("z"), n.dims("v")),
        (vec![6, 3], vec![3, 3], vec![3, 3])
    );
}

#[test]
fn near_zero_filters_go_only_within_the_tolerance() {
    let build = || {
        let mut n = Net::new(13);
        let x = n.input(&[2, 6]);
        let w = Tensor::new(
            &[6, 2],
            (0..12)
                .map(|i| if i % 2 == 0 { 1e-30 } else { 0.5 })
                .collect::<Vec<f32>>(),
        );
        let w = n.tensor("a", w);
        let x = n.op("MatMul", &[x, w], vec![]);
        let w = n.param("b", &[2, 3]);
        let y = n.op("MatMul", &[x, w], vec![]);
        n.output("y", y);
        n
    };
    let mut n = build();
    n.prune("prune");
    assert_eq!(n.dims("a"), [6, 2]);
    let mut n = build();
    n.prune("prune(tolerance=1e-20)");
    assert_eq!(n.dims("a"), [6, 1]);
    assert!(parse_list("prune(tolerance=-1)").is_err());
}

/// `IN=a.onnx OUT=b.onnx CALIB=c.npz SPEC=prune cargo test --release -- --ignored prune::a_file --nocapture`
#[test]
#[ignore = "a tool for development: prunes the file IN"]
fn a_file() {
    let var = |n: &str| std::env::var(n).unwrap_or_else(|_| panic!("set {n}"));
    let mut model = onnx::read(Path::new(&var("IN"))).expect("a model");
    let data = match std::env::var("CALIB") {
        Ok(path) => Dataset::open(Path::new(&path), &model).expect("samples"),
        Err(_) => Dataset::synthetic(&model, 1, 4),
    };
    let start = std::time::Instant::now();
    let notes = run_on(&data, &std::env::var("SPEC").unwrap_or("prune".into()), &mut model);
    for n in &notes {
        println!("{:?} {}: {}", n.kind, n.node, n.what);
    }
    println!("{:.2} s", start.elapsed().as_secs_f64());
    std::fs::write(var("OUT"), onnx::to_bytes(&model).expect("it encodes")).expect("written");
}
