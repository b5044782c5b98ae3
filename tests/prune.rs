//! What `prune` removes, keeps, and says. Every case is run before and after and must give the same outputs; then the pass is
//! run again and must find nothing.

use onnxzip::data::Dataset;
use onnxzip::engine::Engine;
use onnxzip::engine::tract::Tract;
use onnxzip::ir::{Attr, DType, GraphId, Model, SubGraphs, Tensor, ValueId, check};
use onnxzip::onnx;
use onnxzip::passes::{Context, Note, NoteKind, parse_list};
use onnxzip::pb;
use onnxzip::progress::Silent;
use std::path::Path;

fn run(spec: &str, model: &mut Model) -> Vec<Note> {
    run_on(&Dataset::synthetic(model, 1, 4), spec, model)
}

fn run_on(data: &Dataset, spec: &str, model: &mut Model) -> Vec<Note> {
    let samples = data.all();
    let mut cx = Context {
        engine: &Tract,
        samples: &samples,
        threads: 2,
        seed: 0,
        progress: &Silent,
        notes: Vec::new(),
    };
    for request in parse_list(spec).expect("a list of passes") {
        let pass = (request.info.build)(&request.options).expect("good options");
        pass.run(model, &mut cx).expect("the pass runs");
        check::check(model).expect("the model holds together");
    }
    cx.notes
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
fn a_zero_channel_goes_with_its_batch_norm_and_the_next_filters() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 6, 6]);
    let x = n.conv("a", x, &[8, 3, 3, 3], &[1, 5]);
    let (s, b) = (n.param("s", &[8]), n.param_without("t", &[8], 0, &[1, 5]));
    let m = n.param_without("m", &[8], 0, &[1, 5]);
    let v = n.tensor("v", Tensor::new(&[8], vec![1.5f32; 8]));
    let x = n.op("BatchNormalization", &[x, s, b, m, v], vec![]);
    let x = n.op("Relu", &[x], vec![]);
    let y = n.conv("b", x, &[4, 8, 3, 3], &[]);
    n.output("y", y);
    let notes = n.prune("prune");
    assert_eq!((n.dims("a.w"), n.dims("b.w")), (vec![6, 3, 3, 3], vec![4, 6, 3, 3]));
    assert_eq!((n.dims("a.b"), n.dims("s"), n.dims("v")), (vec![6], vec![6], vec![6]));
    assert!(said(&notes, NoteKind::Did, "8 → 6 channels; tied: conv_1"), "{notes:?}");
}

#[test]
fn a_constant_channel_goes_into_the_bias_where_its_share_is_the_same_everywhere() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 6, 6]);
    let (w, b) = (n.param_without("a.w", &[4, 3, 1, 1], 0, &[2]), n.param("a.b", &[4]));
    let x = n.op("Conv", &[x, w, b], vec![]);
    let x = n.op("Sigmoid", &[x], vec![]);
    let w = n.param("b.w", &[5, 4, 3, 3]);
    let y = n.op("Conv", &[x, w], vec![]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!(n.dims("a.w"), [3, 3, 1, 1]);
    assert_eq!((n.dims("b.w"), n.dims("conv_1_bias")), (vec![5, 3, 3, 3], vec![5]));
}

#[test]
fn a_constant_channel_stays_where_padding_breaks_it() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 6, 6]);
    let (w, b) = (n.param_without("a.w", &[4, 3, 1, 1], 0, &[2]), n.param("a.b", &[4]));
    let x = n.op("Conv", &[x, w, b], vec![]);
    let y = n.conv("b", x, &[5, 4, 3, 3], &[]);
    n.output("y", y);
    let notes = n.prune("prune");
    assert_eq!(n.dims("a.w"), [4, 3, 1, 1]);
    assert!(said(&notes, NoteKind::Skip, "padding"), "{notes:?}");
}

#[test]
fn what_nobody_reads_goes_and_takes_its_makers_along() {
    let mut n = Net::new(13);
    let x = n.input(&[2, 6]);
    let (w, b) = (n.param("a", &[6, 5]), n.param("a.b", &[5]));
    let x = n.op("Gemm", &[x, w, b], vec![]);
    let x = n.op("Tanh", &[x], vec![]);
    // Unit 3 is read by units 0 and 1 only, which nobody reads.
    let data = Tensor::new(
        &[4, 5],
        (0..20)
            .map(|i| {
                if i % 5 == 3 && i > 9 {
                    0.0
                } else {
                    0.1 + i as f32 / 20.0
                }
            })
            .collect::<Vec<f32>>(),
    );
    let w = n.tensor("b", data);
    let x = n.op("Gemm", &[x, w], vec![Attr::int("transB", 1)]);
    let x = n.op("Tanh", &[x], vec![]);
    let w = n.param_without("c", &[4, 3], 0, &[0, 1]);
    let y = n.op("MatMul", &[x, w], vec![]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!(
        (n.dims("a"), n.dims("b"), n.dims("c")),
        (vec![6, 4], vec![2, 4], vec![2, 3])
    );
}

fn residual(zero_left: &[usize], zero_right: &[usize]) -> (Net, Vec<Note>) {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 5, 5]);
    let a = n.conv("a", x, &[6, 3, 1, 1], zero_left);
    let b = n.conv("b", a, &[6, 6, 3, 3], zero_right);
    let x = n.op("Add", &[a, b], vec![]);
    let x = n.op("Relu", &[x], vec![]);
    let y = n.conv("c", x, &[4, 6, 3, 3], &[]);
    n.output("y", y);
    let notes = n.prune("prune");
    (n, notes)
}

#[test]
fn a_residual_add_loses_only_channels_that_are_zero_on_both_sides() {
    let (n, _) = residual(&[0, 2, 4], &[2, 4]);
    assert_eq!(n.dims("a.w"), [4, 3, 1, 1]);
    assert_eq!((n.dims("b.w"), n.dims("c.w")), (vec![4, 4, 3, 3], vec![4, 4, 3, 3]));
    let (n, notes) = residual(&[], &[1]);
    assert_eq!((n.dims("a.w"), n.dims("b.w")), (vec![6, 3, 1, 1], vec![6, 6, 3, 3]));
    assert!(
        said(&notes, NoteKind::Skip, "1 of 6 filters are zero but stay: tied"),
        "{notes:?}"
    );
}

#[test]
fn concat_moves_channels_by_their_offset() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 5, 5]);
    let a = n.conv("a", x, &[4, 3, 1, 1], &[3]);
    let b = n.conv("b", x, &[5, 3, 3, 3], &[0, 1]);
    let x = n.op("Concat", &[a, x, b], vec![Attr::int("axis", 1)]);
    let y = n.conv("c", x, &[4, 12, 3, 3], &[]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!((n.dims("a.w"), n.dims("b.w")), (vec![3, 3, 1, 1], vec![3, 3, 3, 3]));
    assert_eq!(n.dims("c.w"), [4, 9, 3, 3]);
}

#[test]
fn depthwise_chains_lose_groups() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 5, 5]);
    let x = n.conv("a", x, &[6, 3, 1, 1], &[1]);
    let (w, b) = (n.param("d.w", &[12, 1, 3, 3]), n.param("d.b", &[12]));
    let x = n.op(
        "Conv",
        &[x, w, b],
        vec![Attr::int("group", 6), Attr::ints("pads", vec![1; 4])],
    );
    let x = n.op("Relu", &[x], vec![]);
    let y = n.conv("c", x, &[4, 12, 1, 1], &[]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!((n.dims("a.w"), n.dims("d.w")), (vec![5, 3, 1, 1], vec![10, 1, 3, 3]));
    assert_eq!((n.dims("d.b"), n.dims("c.w")), (vec![10], vec![4, 10, 1, 1]));
}

#[test]
fn groups_of_a_grouped_conv_lose_the_same_channels() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 5, 5]);
    // Channels 1 and 5 are the same one in groups of 4; 2 has no zero partner.
    let x = n.conv("a", x, &[8, 3, 1, 1], &[1, 5, 2]);
    let w = n.param_without("g.w", &[6, 4, 3, 3], 0, &[0, 3]);
    let x = n.op("Conv", &[x, w], vec![Attr::int("group", 2)]);
    let y = n.conv("c", x, &[4, 6, 1, 1], &[]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!((n.dims("a.w"), n.dims("g.w")), (vec![6, 3, 1, 1], vec![4, 3, 3, 3]));
    assert_eq!(n.dims("c.w"), [4, 4, 1, 1]);
}

fn flattened(nhwc: bool, by_reshape: bool) -> Net {
    let mut n = Net::new(13);
    let x = n.input(&[2, 3, 4, 4]);
    let x = n.conv("a", x, &[5, 3, 3, 3], &[0, 3]);
    let x = n.op(
        "MaxPool",
        &[x],
        vec![
            Attr::ints("kernel_shape", vec![2, 2]),
            Attr::ints("strides", vec![2, 2]),
        ],
    );
    let x = match nhwc {
        true => n.op("Transpose", &[x], vec![Attr::ints("perm", vec![0, 2, 3, 1])]),
        false => x,
    };
    let x = match by_reshape {
        true => {
            let shape = n.tensor("shape", Tensor::new(&[2], vec![-1i64, 20]));
            n.op("Reshape", &[x, shape], vec![])
        }
        false => n.op("Flatten", &[x], vec![]),
    };
    let w = n.param("f", &[20, 7]);
    let y = n.op("Gemm", &[x, w], vec![]);
    n.output("y", y);
    n.prune("prune");
    n
}

#[test]
fn a_channel_owns_its_columns_behind_flatten_and_reshape_in_either_layout() {
    for (nhwc, by_reshape) in [(false, false), (false, true), (true, false), (true, true)] {
        let n = flattened(nhwc, by_reshape);
        assert_eq!((n.dims("a.w"), n.dims("f")), (vec![3, 3, 3, 3], vec![12, 7]));
    }
}

#[test]
fn squeeze_and_excite_follows_its_trunk_and_prunes_inside() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 4, 4]);
    let x = n.conv("a", x, &[6, 3, 3, 3], &[4]);
    let s = n.op("GlobalAveragePool", &[x], vec![]);
    let s = n.conv("s1", s, &[3, 6, 1, 1], &[2]);
    let s = n.op("Relu", &[s], vec![]);
    let s = n.conv("s2", s, &[6, 3, 1, 1], &[]);
    let s = n.op("HardSigmoid", &[s], vec![]);
    let x = n.op("Mul", &[s, x], vec![]);
    let y = n.conv("c", x, &[4, 6, 3, 3], &[]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!((n.dims("s1.w"), n.dims("s2.w")), (vec![2, 5, 1, 1], vec![5, 2, 1, 1]));
    assert_eq!((n.dims("a.w"), n.dims("c.w")), (vec![5, 3, 3, 3], vec![4, 5, 3, 3]));
}

#[test]
fn shared_weights_and_biases_are_cut_for_all_their_readers_or_not_at_all() {
    // Both convs use one weight and one bias; only the reader of the first ignores channel 2.
    let build = |second: &[usize]| {
        let mut n = Net::new(13);
        let x = n.input(&[1, 3, 4, 4]);
        let (w, b) = (n.param("w", &[5, 3, 3, 3]), n.param("b", &[5]));
        let a = n.op("Conv", &[x, w, b], vec![]);
        let x = n.op("Neg", &[x], vec![]);
        let c = n.op("Conv", &[x, w, b], vec![]);
        let (p, q) = (
            n.param_without("p", &[4, 5, 1, 1], 1, &[2]),
            n.param_without("q", &[4, 5, 1, 1], 1, second),
        );
        let (a, c) = (n.op("Conv", &[a, p], vec![]), n.op("Conv", &[c, q], vec![]));
        n.output("y", a);
        n.output("z", c);
        n.prune("prune");
        n
    };
    let n = build(&[]);
    assert_eq!((n.dims("w"), n.dims("p")), (vec![5, 3, 3, 3], vec![4, 5, 1, 1]));
    let n = build(&[2]);
    assert_eq!((n.dims("w"), n.dims("b")), (vec![4, 3, 3, 3], vec![4]));
    assert_eq!((n.dims("p"), n.dims("q")), (vec![4, 4, 1, 1], vec![4, 4, 1, 1]));
}

#[test]
fn graph_outputs_and_unknown_operators_keep_their_channels() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 4, 4]);
    let a = n.conv("a", x, &[4, 3, 1, 1], &[1]);
    let b = n.conv("b", x, &[4, 3, 1, 1], &[1]);
    let b = n.op("DepthToSpace", &[b], vec![Attr::int("blocksize", 2)]);
    n.output("y", a);
    n.output("z", b);
    let notes = n.prune("prune");
    assert_eq!((n.dims("a.w"), n.dims("b.w")), (vec![4, 3, 1, 1], vec![4, 3, 1, 1]));
    assert!(said(&notes, NoteKind::Skip, "graph output y"), "{notes:?}");
    assert!(said(
        &notes,
        NoteKind::Skip,
        "how channels run through this operator is not known"
    ));
}

#[test]
fn softmax_over_channels_pins_them_and_over_other_axes_does_not() {
    for (axis, left) in [(1, 4), (3, 3)] {
        let mut n = Net::new(13);
        let x = n.input(&[1, 3, 4, 4]);
        let x = n.conv("a", x, &[4, 3, 1, 1], &[]);
        let x = n.op("Softmax", &[x], vec![Attr::int("axis", axis)]);
        let w = n.param_without("b", &[2, 4, 1, 1], 1, &[1]);
        let y = n.op("Conv", &[x, w], vec![]);
        n.output("y", y);
        n.prune("prune");
        assert_eq!(n.dims("a.w")[0], left);
    }
}

#[test]
fn a_dead_layer_keeps_one_channel() {
    let mut n = Net::new(13);
    let x = n.input(&[2, 6]);
    let a = n.param_without("a", &[6, 4], 1, &[0, 1, 2, 3]);
    let h = n.op("MatMul", &[x, a], vec![]);
    let b = n.param("b", &[4, 3]);
    let h = n.op("MatMul", &[h, b], vec![]);
    let c = n.param("c", &[3]);
    let y = n.op("Add", &[h, c], vec![]);
    n.output("y", y);
    let notes = n.prune("prune");
    assert_eq!((n.dims("a"), n.dims("b")), (vec![6, 1], vec![1, 3]));
    assert!(said(&notes, NoteKind::Skip, "one channel must stay"), "{notes:?}");
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

/// x (64 × 6) → 8 hidden units, the last two of which say nothing new → 5 outputs.
fn redundant() -> Net {
    let mut n = Net::new(13);
    let x = n.input(&[64, 6]);
    let w = n.param("a", &[6, 8]);
    let t = n
        .model
        .value(w)
        .tensor()
        .expect("a weight")
        .floats()
        .expect("floats")
        .into_owned();
    let column = |i: usize, j: usize| match j {
        6 => t[i * 8 + 1],
        7 => 3.0 * t[i * 8 + 4],
        _ => t[i * 8 + j],
    };
    let t = Tensor::new(&[6, 8], (0..48).map(|k| column(k / 8, k % 8)).collect());
    n.model.set_const(w, t);
    let h = n.op("MatMul", &[x, w], vec![]);
    let h = n.op("Relu", &[h], vec![]);
    let (w, b) = (n.param("b", &[5, 8]), n.param("b.b", &[5]));
    let y = n.op("Gemm", &[h, w, b], vec![Attr::int("transB", 1)]);
    n.output("y", y);
    n
}

/// Error power over power of the outputs.
fn relative_error(before: &Model, after: &Model) -> f64 {
    let sample = Dataset::synthetic(before, 3, 1).get(0).expect("a sample");
    let output = |m: &Model| {
        let session = Tract
            .load(m, &[m.main().outputs()[0].value], &sample)
            .expect("tract loads it");
        session.run(&sample).expect("it runs")[0]
            .floats()
            .expect("floats")
            .into_owned()
    };
    let (a, b) = (output(before), output(after));
    let power = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>();
    power(&mut a.iter().zip(&b).map(|(x, y)| x - y)) / power(&mut a.iter().copied())
}

#[test]
fn units_that_say_nothing_new_go_first_and_the_others_take_over() {
    let mut n = redundant();
    let before = n.model.clone();
    let notes = run("prune(ratio=0.25)", &mut n.model);
    assert_eq!((n.dims("a"), n.dims("b")), (vec![6, 6], vec![5, 6]));
    assert!(said(&notes, NoteKind::Did, "refitted"), "{notes:?}");
    let error = relative_error(&before, &n.model);
    assert!(error < 1e-5, "{error}");
}

#[test]
fn repair_beats_cutting_and_data_beat_magnitude() {
    let error = |spec: &str| {
        let mut n = redundant();
        let before = n.model.clone();
        run(spec, &mut n.model);
        assert_eq!(n.dims("a"), [6, 4], "{spec}");
        relative_error(&before, &n.model)
    };
    let (data, l2) = (error("prune(ratio=0.5)"), error("prune(ratio=0.5,criterion=l2)"));
    let cut = error("prune(ratio=0.5,criterion=l2,repair=off)");
    assert!(data <= l2 && l2 < cut, "{data} {l2} {cut}");
}

#[test]
fn groups_keep_multiples() {
    let mut n = redundant();
    run("prune(ratio=0.3,round_to=4,criterion=l1)", &mut n.model);
    assert_eq!(n.dims("a"), [6, 8]);
    run("prune(ratio=0.5,round_to=4,criterion=l1)", &mut n.model);
    assert_eq!(n.dims("a"), [6, 4]);
    for bad in ["ratio=1", "ratio=-0.1", "round_to=0", "criterion=luck", "ratio=x"] {
        assert!(parse_list(&format!("prune({bad})")).is_err(), "{bad}");
    }
}

#[test]
fn a_padded_conv_is_refitted_channel_by_channel() {
    let mut n = Net::new(13);
    let x = n.input(&[2, 3, 8, 8]);
    let w = n.param("a.w", &[4, 3, 1, 1]);
    let mut t = n
        .model
        .value(w)
        .tensor()
        .expect("a weight")
        .floats()
        .expect("floats")
        .into_owned();
    t.copy_within(0..3, 9); // channel 3 is a copy of channel 0
    n.model.set_const(w, Tensor::new(&[4, 3, 1, 1], t));
    let x = n.op("Conv", &[x, w], vec![]);
    let x = n.op("Relu", &[x], vec![]);
    let y = n.conv("b", x, &[5, 4, 3, 3], &[]);
    n.output("y", y);
    let before = n.model.clone();
    run("prune(ratio=0.25)", &mut n.model);
    assert_eq!(n.dims("b.w"), [5, 3, 3, 3]);
    let error = relative_error(&before, &n.model);
    assert!(error < 1e-5, "{error}");
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
