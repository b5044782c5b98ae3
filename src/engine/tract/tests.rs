use super::*;
use crate::engine::testing::{Builder, ints};
use crate::ir::{Attr, DType, GraphId, SubGraphs};
use crate::pb;
use tract_onnx::prelude::{Framework, InferenceModelExt, TValue, TypedSimplePlan};

mod amended;
mod control;
mod convolutions;
mod grid;
mod packed;

fn floats(t: &Tensor) -> Vec<f32> {
    t.floats().expect("floats").into_owned()
}

fn sample(inputs: &[(&str, Tensor)]) -> Sample {
    inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect()
}

fn run(b: &Builder, wanted: &[ValueId], sample: &Sample) -> Vec<Tensor> {
    let session = Tract.load(&b.model, wanted, sample).expect("loads");
    session.run(sample).expect("runs")
}

/// The operators that compute these values.
fn operators(model: &Model, wanted: &[ValueId], sample: &Sample) -> Vec<String> {
    let job = Job::new(model, wanted, sample).expect("a job");
    let running = Running::new(job, sample).expect("compiles");
    let plans = running.plans();
    plans.iter().flat_map(|p| p.operators()).collect()
}

fn ramp(dims: &[usize], from: f32, step: f32) -> Tensor {
    let n = dims.iter().product::<usize>();
    Tensor::new(dims, (0..n).map(|i| from + step * i as f32).collect())
}

/// `y = Relu(h)`, `h = x w`, and a sample for `x`.
fn product() -> (Builder, [ValueId; 4], Sample) {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[1, 2]);
    let w = b.constant("w", Tensor::new(&[2, 2], vec![1f32, 2., 3., 4.]));
    let h = b.op("MatMul", &[x, w], vec![]);
    let y = b.op("Relu", &[h], vec![]);
    let s = sample(&[("x", Tensor::new(&[1, 2], vec![1f32, -1.]))]);
    (b, [x, w, h, y], s)
}

#[test]
fn any_value_of_the_main_graph_can_be_wanted_even_twice() {
    let (b, [x, w, h, y], s) = product();
    let got = run(&b, &[y, x, w, h, h], &s);
    assert_eq!(floats(&got[0]), [0., 0.]);
    assert_eq!(floats(&got[1]), [1., -1.]);
    assert_eq!(floats(&got[2]), [1., 2., 3., 4.]);
    assert_eq!(floats(&got[3]), [-2., -2.]);
    assert_eq!(floats(&got[4]), [-2., -2.]);
}

#[test]
fn values_are_handed_over_as_they_are_computed_those_that_others_read_included() {
    let (b, [x, w, h, y], s) = product();
    let wanted = [y, h, w, x, h];
    let session = Tract.load(&b.model, &wanted, &s).expect("loads");
    let mut seen = std::collections::BTreeMap::new();
    let all = session.visit(&s, &mut |i, t| {
        seen.insert(i, floats(&t));
        Ok(())
    });
    all.expect("runs");
    let run = session.run(&s).expect("runs");
    assert_eq!(
        seen.into_values().collect::<Vec<_>>(),
        run.iter().map(floats).collect::<Vec<_>>()
    );
    let stopped = session.visit(&s, &mut |i, _| match i {
        0 => Err(anyhow!("enough")),
        _ => Ok(()),
    });
    assert_eq!(stopped.expect_err("the visitor's own error").to_string(), "enough");
}

#[test]
fn one_session_serves_several_threads() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[1, 8]);
    let w = b.constant("w", ramp(&[8, 8], -1.0, 0.03));
    let y = b.op("MatMul", &[x, w], vec![]);
    let z = b.op("Sigmoid", &[y], vec![]);
    let of = |i: usize| sample(&[("x", ramp(&[1, 8], i as f32 * 0.1, 0.05))]);
    let session = Tract.load(&b.model, &[z], &of(0)).expect("loads");
    let alone: Vec<Vec<f32>> = (0..20)
        .map(|i| floats(&session.run(&of(i)).expect("runs")[0]))
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..20).for_each(|i| assert_eq!(floats(&session.run(&of(i)).expect("runs")[0]), alone[i])));
        }
    });
}

#[test]
fn half_floats_are_computed_in_f32_and_rounded_where_declared() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float16, &[2]);
    let half = |v: &[f32]| v.iter().map(|&v| half::f16::from_f32(v)).collect::<Vec<_>>();
    let w = b.constant("w", Tensor::new(&[2], half(&[0.1, 3.0])));
    let y = b.op("Mul", &[x, w], vec![]);
    let z = b.op("Cast", &[y], vec![Attr::int("to", DType::Float16 as i64)]);
    let info = pb::ValueInfoProto {
        name: Some("z".into()),
        r#type: b.model.main().inputs()[0].info.r#type.clone(),
        ..Default::default()
    };
    let main = b.model.main_id();
    b.model.add_output(main, info, z);
    let s = sample(&[("x", Tensor::new(&[2], half(&[1.0, 2.0])))]);
    let got = run(&b, &[z, y], &s);
    assert_eq!(got[0].dtype(), DType::Float16);
    assert_eq!(got[0].to_f32().expect("real")[1], 6.0);
    assert_eq!(got[1].dtype(), DType::Float);
}

#[test]
fn another_shape_than_the_session_was_made_for_is_an_error_with_a_way_out() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[2]);
    let y = b.op("Relu", &[x], vec![]);
    let session = Tract
        .load(&b.model, &[y], &sample(&[("x", ramp(&[2], 0., 1.))]))
        .expect("loads");
    let e = session
        .run(&sample(&[("x", ramp(&[3], 0., 1.))]))
        .expect_err("3 are not 2");
    assert!(e.to_string().contains("samples of one shape"), "{e}");
}

#[test]
fn an_operator_that_tract_lacks_is_named() {
    for (domain, op, named) in [("", "Frobnicate", "Frobnicate"), ("acme", "Relu", "acme.Relu")] {
        let mut b = Builder::new(13);
        let x = b.input("x", DType::Float, &[2]);
        let y = b.op(op, &[x], vec![]);
        let n = b.model.value(y).producer().expect("a node");
        b.model.node_mut(n).op.domain = domain.to_owned();
        let outcome = Tract.load(&b.model, &[y], &sample(&[("x", ramp(&[2], 0., 1.))]));
        let why = outcome.err().expect("not run").0;
        assert!(why.contains(named), "{why}");
        // What is not needed may be anything.
        assert!(
            Tract
                .load(&b.model, &[x], &sample(&[("x", ramp(&[2], 0., 1.))]))
                .is_ok()
        );
    }
}

/// A quantization step: float, codes, parameters.
fn quantize(b: &mut Builder, x: ValueId, scale: Tensor, zero: Tensor, axis: i64) -> (ValueId, [ValueId; 2]) {
    let (s, z) = (b.constant("scale", scale), b.constant("zero", zero));
    (
        b.op("QuantizeLinear", &[x, s, z], vec![Attr::int("axis", axis)]),
        [s, z],
    )
}

#[test]
fn a_quantization_step_divides_rounds_half_to_even_and_clips() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[1, 2, 3]);
    let scale = Tensor::new(&[2], vec![0.1f32, 2.0]);
    let (q, [s, z]) = quantize(&mut b, x, scale, Tensor::new(&[2], vec![-3i8, 5]), 1);
    let d = b.op("DequantizeLinear", &[q, s, z], vec![Attr::int("axis", 1)]);
    let data = vec![0.35f32, -99., 99., 5.0, -3.0, 1.0];
    let got = run(&b, &[q, d], &sample(&[("x", Tensor::new(&[1, 2, 3], data.clone()))]));
    let params = |i: usize| if i < 3 { (0.1f32, -3.0f32) } else { (2.0, 5.0) };
    let codes: Vec<f32> = (0..6)
        .map(|i| ((data[i] / params(i).0).round_ties_even() + params(i).1).clamp(-128., 127.))
        .collect();
    assert_eq!(
        (got[0].dtype(), ints(&got[0])),
        (DType::Int8, codes.iter().map(|&c| c as i64).collect())
    );
    let values: Vec<f32> = (0..6).map(|i| (codes[i] - params(i).1) * params(i).0).collect();
    assert_eq!(floats(&got[1]), values);
}

#[test]
fn codes_may_pass_other_operators_before_they_are_dequantized() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[2, 2]);
    let (q, [s, z]) = quantize(&mut b, x, Tensor::scalar(0.5f32), Tensor::scalar(10u8), 1);
    let t = b.op("Transpose", &[q], vec![]);
    let d = b.op("DequantizeLinear", &[t, s, z], vec![]);
    let s = sample(&[("x", Tensor::new(&[2, 2], vec![1f32, 2., 3., -9.]))]);
    assert_eq!(floats(&run(&b, &[d], &s)[0]), [1., 3., 2., -5.]);
}

#[test]
fn constants_of_four_bits_are_dequantized_by_blocks() {
    let mut b = Builder::new(21);
    let x = b.input("x", DType::Float, &[1, 4]);
    // Codes -8 … 7 and so on, two to a byte, the lower half first.
    let raw = bytes::Bytes::from_static(&[0x78, 0x0f, 0x21, 0xf3]);
    let w = b.constant("w", Tensor::from_raw(DType::Int4, &[4, 2], raw).expect("8 codes"));
    let s = b.constant("s", Tensor::new(&[2, 2], vec![1f32, 2., 10., 100.]));
    let attrs = vec![Attr::int("axis", 0), Attr::int("block_size", 2)];
    let d = b.op("DequantizeLinear", &[w, s], attrs);
    let y = b.op("MatMul", &[x, d], vec![]);
    let got = run(&b, &[d, y], &sample(&[("x", Tensor::new(&[1, 4], vec![1f32; 4]))]));
    assert_eq!(floats(&got[0]), [-8., 14., -1., 0., 10., 200., 30., -100.]);
    assert_eq!(floats(&got[1]), [31., 114.]);
}

fn softmax_between_codes() -> (Builder, ValueId) {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[1, 4]);
    let (q, [s, z]) = quantize(&mut b, x, Tensor::scalar(0.05f32), Tensor::scalar(128u8), 1);
    let d = b.op("DequantizeLinear", &[q, s, z], vec![]);
    let y = b.op("Softmax", &[d], vec![Attr::int("axis", 1)]);
    let (q, [s, z]) = quantize(&mut b, y, Tensor::scalar(1f32 / 256.), Tensor::scalar(0u8), 1);
    let out = b.op("DequantizeLinear", &[q, s, z], vec![]);
    (b, out)
}

const LOGITS: [f32; 4] = [1.0, 2.0, 3.0, 0.0];
const SOFTMAX: [f32; 4] = [0.0871, 0.2369, 0.6439, 0.0321];

#[test]
fn softmax_between_quantized_values_is_right() {
    let (b, out) = softmax_between_codes();
    let got = floats(&run(&b, &[out], &sample(&[("x", Tensor::new(&[1, 4], LOGITS.to_vec()))]))[0]);
    assert!(got.iter().zip(SOFTMAX).all(|(a, b)| (a - b).abs() < 0.003), "{got:?}");
}

/// What tract makes of a model without our preparations.
fn bare_tract(model: &Model, inputs: Vec<TValue>) -> Vec<f32> {
    let mut proto = crate::onnx::encode(model).expect("encodes");
    for (i, n) in proto.graph.iter_mut().flat_map(|g| &mut g.node).enumerate() {
        n.name = Some(format!("node {i}"));
    }
    let bytes = prost::Message::encode_to_vec(&proto);
    let onnx = tract_onnx::onnx().with_ignore_value_info(true);
    let model = onnx
        .model_for_read(&mut &bytes[..])
        .expect("reads")
        .into_optimized()
        .expect("optimizes");
    let out = TypedSimplePlan::new(model)
        .expect("plans")
        .run(inputs.into())
        .expect("runs");
    floats(&convert::from_tract(out[0].clone(), None).expect("floats"))
}

/// When this fails, tract was mended, and `ops::FAKE` is only about speed and ties.
#[test]
fn tract_still_makes_a_wrong_table_of_softmax_between_codes() {
    let (mut b, out) = softmax_between_codes();
    b.model.expose(&[out]);
    let x = convert::to_tract(&Tensor::new(&[1, 4], LOGITS.to_vec()), DType::Float).expect("converts");
    let got = bare_tract(&b.model, vec![x]);
    assert!(got.iter().zip(SOFTMAX).any(|(a, b)| (a - b).abs() > 0.1), "{got:?}");
}

#[test]
fn a_squeeze_that_names_no_axes_drops_all_of_length_1() {
    for opset in [11, 13] {
        let mut b = Builder::new(opset);
        let x = b.input("x", DType::Float, &[1, 2, 1, 3]);
        let squeezed = b.op("Squeeze", &[x], vec![]);
        let y = b.op("Neg", &[squeezed], vec![]);
        let of = sample(&[("x", Tensor::new(&[1, 2, 1, 3], vec![1f32, 2., 3., 4., 5., 6.]))]);
        let session = Tract.load(&b.model, &[squeezed, y], &of).expect("loads");
        let got = session.run(&of).expect("runs");
        assert_eq!((got[0].dims(), got[1].dims()), (&[2, 3][..], &[2, 3][..]));
        assert_eq!(floats(&got[1]), [-1., -2., -3., -4., -5., -6.]);
    }
}

#[test]
fn local_functions_are_spliced_in_with_their_attributes() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[2]);
    let y = b.op("Leaky", &[x], vec![Attr::float("slope", 0.5)]);
    let node = b.model.value(y).producer().expect("a node");
    b.model.node_mut(node).op.domain = "local".into();
    let mut alpha = Attr::float("alpha", 0.0).proto;
    alpha.f = None;
    alpha.ref_attr_name = Some("slope".into());
    let inner = |op: &str, from: &str, to: &str, attribute| pb::NodeProto {
        op_type: Some(op.into()),
        input: vec![from.into()],
        output: vec![to.into()],
        attribute,
        ..Default::default()
    };
    let function = pb::FunctionProto {
        name: Some("Leaky".into()),
        domain: Some("local".into()),
        input: vec!["a".into()],
        output: vec!["c".into()],
        attribute: vec!["slope".into()],
        node: vec![
            inner("LeakyRelu", "a", "b", vec![alpha]),
            inner("Neg", "b", "c", vec![]),
        ],
        opset_import: b.model.rest.opset_import.clone(),
        ..Default::default()
    };
    b.model.expose(&[y]);
    let mut proto = crate::onnx::encode(&b.model).expect("encodes");
    proto.functions.push(function);
    let model = crate::onnx::decode(proto, &crate::onnx::External::below(None)).expect("decodes");
    let y = model.main().outputs()[0].value;
    let s = sample(&[("x", Tensor::new(&[2], vec![-4f32, 3.]))]);
    let got = Tract.load(&model, &[y], &s).expect("loads").run(&s).expect("runs");
    assert_eq!(floats(&got[0]), [2., -3.]);
}

#[test]
fn a_panic_inside_is_an_error_and_is_not_printed() {
    let e = quietly(|| -> Result<()> { panic!("deep inside") }).expect_err("it panicked");
    assert_eq!(e.to_string(), "panicked: deep inside");
    let NotRun(why) = failed(e).downcast().expect("another engine may run it");
    assert_eq!(why, "tract: panicked: deep inside");
}

#[test]
fn what_tract_computes_wrongly_is_refused_by_name() {
    for (op, attr) in [
        ("Celu", Attr::float("alpha", 2.0)),
        ("Swish", Attr::float("alpha", 0.5)),
        ("SpaceToDepth", Attr::string("mode", "CRD")),
    ] {
        let mut b = Builder::new(22);
        let x = b.input("x", DType::Float, &[2]);
        let y = b.op(op, &[x], vec![attr]);
        let outcome = Tract.load(&b.model, &[y], &sample(&[("x", ramp(&[2], 0., 1.))]));
        let why = outcome.err().expect("not run").0;
        assert!(why.contains(op) && why.contains("wrongly"), "{why}");
    }
}

#[test]
fn nodes_may_share_a_name() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[2]);
    let y = b.op("Neg", &[x], vec![]);
    let z = b.op("Abs", &[y], vec![]);
    for v in [y, z] {
        let n = b.model.value(v).producer().expect("a node");
        b.model.node_mut(n).rest.name = Some("x".into());
    }
    let got = run(&b, &[z], &sample(&[("x", Tensor::new(&[2], vec![1f32, -2.]))]));
    assert_eq!(floats(&got[0]), [1., 2.]);
}

#[test]
fn sparse_initializers_are_made_dense() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[2, 2]);
    let w = b.model.add_sparse(b.model.main_id(), "w");
    let mut values = Tensor::new(&[2], vec![5f32, 7.]).to_inline_proto();
    values.name = Some("w".into());
    let sparse = pb::SparseTensorProto {
        values: Some(values),
        indices: Some(Tensor::new(&[2], vec![1i64, 2]).to_inline_proto()),
        dims: vec![2, 2],
    };
    let main = b.model.main_id();
    b.model.graph_mut(main).rest.sparse_initializer.push(sparse);
    let y = b.op("Add", &[x, w], vec![]);
    let got = run(&b, &[y, w], &sample(&[("x", Tensor::new(&[2, 2], vec![1f32; 4]))]));
    assert_eq!(floats(&got[0]), [1., 6., 8., 1.]);
    assert_eq!(floats(&got[1]), [0., 5., 7., 0.]);
}
