//! `simplify` on files: `SIMPLIFY_IN` and `SIMPLIFY_OUT` name folders; every model of the first is written to the second.

use onnxzip::data::Dataset;
use onnxzip::engine::tract::Tract;
use onnxzip::ir::{Attr, Model, Tensor, ValueId, check};
use onnxzip::passes::{Context, Options, find};
use onnxzip::{onnx, pb, progress};
use std::path::{Path, PathBuf};

mod bytes;
mod gates;
mod loops;

fn models_below(folder: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for e in entries.flatten() {
        let p = e.path();
        if p.is_dir() {
            models_below(&p, out);
        } else if p.extension().is_some_and(|x| x == "onnx") {
            out.push(p);
        }
    }
}

fn simplify(model: &mut Model) -> Option<Vec<onnxzip::passes::Note>> {
    let data = Dataset::synthetic(model, 1, 1).all();
    let info = find("simplify").unwrap();
    let mut cx = Context {
        engine: &Tract,
        samples: &data,
        threads: 1,
        seed: 1,
        progress: &progress::Silent,
        memo: None,
        cache: None,
        objects: None,
        notes: Vec::new(),
        charts: Vec::new(),
        exhausted: false,
    };
    let pass = (info.build)(&Options::defaults(info)).unwrap();
    if let Err(e) = pass.run(model, &mut cx) {
        println!("{e:#}");
        return None;
    }
    check::check(model).unwrap();
    Some(cx.notes)
}

#[test]
fn files_named_by_the_environment_are_simplified_and_a_second_run_changes_nothing() {
    let Ok(from) = std::env::var("SIMPLIFY_IN") else { return };
    let to = PathBuf::from(std::env::var("SIMPLIFY_OUT").unwrap());
    let verbose = std::env::var("SIMPLIFY_NOTES").is_ok();
    let mut all = Vec::new();
    for f in from.split(':') {
        match Path::new(f).is_file() {
            true => all.push(PathBuf::from(f)),
            false => models_below(Path::new(f), &mut all),
        }
    }
    all.sort();
    let mut unstable = 0;
    for p in &all {
        let one = std::panic::AssertUnwindSafe(|| unstable += usize::from(!file(p, &to, verbose)));
        if std::panic::catch_unwind(one).is_err() {
            println!("PANIC {}", p.display());
        }
    }
    assert_eq!(unstable, 0);
}

/// False when a second run changes the file.
fn file(p: &Path, to: &Path, verbose: bool) -> bool {
    let mut model = match onnx::read(p) {
        Ok(m) => m,
        Err(e) => {
            println!("UNREADABLE {}: {e:#}", p.display());
            return true;
        }
    };
    let start = std::time::Instant::now();
    let Some(notes) = simplify(&mut model) else {
        println!("REFUSED {}", p.display());
        return true;
    };
    let took = start.elapsed();
    if verbose {
        for n in &notes {
            println!("  {:?} {}: {}", n.kind, n.node, n.what);
        }
    }
    let stem = p.to_string_lossy().trim_start_matches('/').replace('/', "+");
    let short = p.file_name().unwrap().to_string_lossy().into_owned();
    let name = if short == "model.onnx" { stem } else { short };
    let out = to.join(name);
    let bytes = onnx::to_bytes(&model).unwrap();
    std::fs::write(&out, &bytes).unwrap();
    let mut again = onnx::read(&out).unwrap();
    let notes = simplify(&mut again).unwrap();
    if onnx::to_bytes(&again).unwrap() != bytes || !notes.is_empty() {
        println!(
            "UNSTABLE {} {:?}",
            out.display(),
            notes.first().map(|n| (&n.node, &n.what))
        );
        return false;
    }
    println!("{} {:.1} ms", out.display(), took.as_secs_f64() * 1e3);
    true
}

/// A small model, built node by node.
struct Net(Model);

impl Net {
    fn new(opset: i64) -> Net {
        let import = pb::OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(opset),
        };
        Net(Model::new(pb::ModelProto {
            ir_version: Some(8),
            opset_import: vec![import],
            ..Default::default()
        }))
    }
    fn info(name: &str, dims: Option<&[i64]>) -> pb::ValueInfoProto {
        use pb::tensor_shape_proto::{Dimension, dimension::Value as Dim};
        let dim = |&d: &i64| Dimension {
            value: Some(if d < 0 {
                Dim::DimParam("N".into())
            } else {
                Dim::DimValue(d)
            }),
            ..Default::default()
        };
        let shape = dims.map(|d| pb::TensorShapeProto {
            dim: d.iter().map(dim).collect(),
        });
        let tensor = pb::type_proto::Tensor {
            elem_type: Some(1),
            shape,
        };
        let ty = pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(tensor)),
            ..Default::default()
        };
        pb::ValueInfoProto {
            name: Some(name.into()),
            r#type: Some(ty),
            ..Default::default()
        }
    }
    fn input(&mut self, dims: &[i64]) -> ValueId {
        let main = self.0.main_id();
        self.0.add_input(main, Net::info("x", Some(dims)))
    }
    fn floats(&mut self, dims: &[usize], data: &[f32]) -> ValueId {
        let (main, name) = (self.0.main_id(), self.0.fresh_name("c"));
        self.0.add_const(main, &name, Tensor::new(dims, data.to_vec()))
    }
    fn ints(&mut self, data: &[i64]) -> ValueId {
        let (main, name) = (self.0.main_id(), self.0.fresh_name("i"));
        self.0.add_const(main, &name, Tensor::new(&[data.len()], data.to_vec()))
    }
    fn op(&mut self, op: &str, inputs: &[ValueId], attrs: Vec<Attr>) -> ValueId {
        let main = self.0.main_id();
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        self.0.add_node(main, "", op, &inputs, &["v"], attrs).1[0]
    }
    fn output(&mut self, v: ValueId) {
        let (main, name) = (self.0.main_id(), format!("out{}", self.0.main().outputs().len()));
        self.0.add_output(main, Net::info(&name, None), v);
    }
    /// The operators left after `simplify`, in order.
    fn simplified(&mut self) -> Vec<String> {
        simplify(&mut self.0).unwrap();
        let first: Vec<String> = self.ops();
        assert!(
            simplify(&mut self.0).unwrap().is_empty(),
            "a second run changes nothing"
        );
        first
    }
    fn ops(&self) -> Vec<String> {
        let order = self.0.topological(self.0.main_id()).unwrap();
        order.iter().map(|n| self.0.node(*n).op.name.clone()).collect()
    }
    fn data(&self, node: usize, slot: usize) -> Vec<f32> {
        let id = self.0.topological(self.0.main_id()).unwrap()[node];
        self.0.constant_input(id, slot).unwrap().floats().unwrap().into_owned()
    }
}

fn batch_norm(n: &mut Net, x: ValueId) -> ValueId {
    let (s, b) = (n.floats(&[2], &[2.0, 3.0]), n.floats(&[2], &[1.0, -1.0]));
    let (m, v) = (n.floats(&[2], &[0.5, 1.0]), n.floats(&[2], &[4.0, 1.0]));
    n.op(
        "BatchNormalization",
        &[x, s, b, m, v],
        vec![Attr::float("epsilon", 0.0)],
    )
}

#[test]
fn batch_normalization_goes_into_the_convolution_before_it() {
    let mut n = Net::new(13);
    let x = n.input(&[-1, 1, 4, 4]);
    let w = n.floats(&[2, 1, 1, 1], &[1.0, 10.0]);
    let y = n.op("Conv", &[x, w], vec![]);
    let y = batch_norm(&mut n, y);
    n.output(y);
    assert_eq!(n.simplified(), ["Conv"]);
    assert_eq!(n.data(0, 1), [1.0, 30.0]); // scale / sqrt(var)
    assert_eq!(n.data(0, 2), [0.5, -4.0]); // B - a·mean
}

#[test]
fn batch_normalization_stays_when_the_value_between_has_another_reader() {
    let mut n = Net::new(13);
    let x = n.input(&[-1, 1, 4, 4]);
    let w = n.floats(&[2, 1, 1, 1], &[1.0, 10.0]);
    let y = n.op("Conv", &[x, w], vec![]);
    let z = batch_norm(&mut n, y);
    n.output(y);
    n.output(z);
    assert_eq!(n.simplified(), ["Conv", "BatchNormalization"]);
}

#[test]
fn a_shift_does_not_pass_into_a_padded_convolution_but_a_scale_does() {
    for (pad, op, left) in [(1, "Add", 2), (1, "Mul", 1), (0, "Add", 1)] {
        let mut n = Net::new(13);
        let x = n.input(&[-1, 2, 4, 4]);
        let c = n.floats(&[2, 1, 1], &[2.0, 3.0]);
        let y = n.op(op, &[x, c], vec![]);
        let w = n.floats(&[1, 2, 1, 1], &[1.0, 10.0]);
        let y = n.op("Conv", &[y, w], vec![Attr::ints("pads", vec![pad; 4])]);
        n.output(y);
        assert_eq!(n.simplified().len(), left, "{op} with padding {pad}");
        if left == 1 {
            assert_eq!(n.data(0, 1), if op == "Mul" { [2.0, 30.0] } else { [1.0, 10.0] });
        }
    }
}

#[test]
fn a_grouped_transposed_convolution_is_scaled_by_output_channel() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 2, 3, 3]);
    let w = n.floats(&[2, 2, 1, 1], &[1.0, 1.0, 1.0, 1.0]); // two groups of one input and two output channels
    let y = n.op("ConvTranspose", &[x, w], vec![Attr::int("group", 2)]);
    let c = n.floats(&[1, 4, 1, 1], &[1.0, 2.0, 3.0, 4.0]);
    let y = n.op("Mul", &[y, c], vec![]);
    n.output(y);
    assert_eq!(n.simplified(), ["ConvTranspose"]);
    assert_eq!(n.data(0, 1), [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn the_bias_of_a_gemm_takes_beta_into_account() {
    let mut n = Net::new(13);
    let x = n.input(&[-1, 2]);
    let (w, c) = (n.floats(&[2, 2], &[1.0, 2.0, 3.0, 4.0]), n.floats(&[2], &[1.0, 1.0]));
    let attrs = vec![
        Attr::float("alpha", 0.5),
        Attr::float("beta", 4.0),
        Attr::int("transB", 1),
    ];
    let y = n.op("Gemm", &[x, w, c], attrs);
    let k = n.floats(&[2], &[10.0, 100.0]);
    let y = n.op("Mul", &[y, k], vec![]);
    n.output(y);
    assert_eq!(n.simplified(), ["Gemm"]);
    assert_eq!(n.data(0, 1), [10.0, 20.0, 300.0, 400.0]);
    assert_eq!(n.data(0, 2), [40.0, 400.0]);
}

#[test]
fn a_weight_that_two_nodes_read_is_not_scaled_in_place() {
    let mut n = Net::new(13);
    let x = n.input(&[-1, 1, 4, 4]);
    let w = n.floats(&[2, 1, 1, 1], &[1.0, 10.0]);
    let (a, b) = (
        n.op("Conv", &[x, w], vec![]),
        n.op("Conv", &[x, w], vec![Attr::ints("strides", vec![2, 2])]),
    );
    let a = batch_norm(&mut n, a);
    n.output(a);
    n.output(b);
    assert_eq!(n.simplified(), ["Conv", "Conv"]);
    let weights = [n.data(0, 1), n.data(1, 1)];
    assert!(
        weights.contains(&vec![1.0, 10.0]) && weights.contains(&vec![1.0, 30.0]),
        "{weights:?}"
    );
}

#[test]
fn a_neutral_constant_that_broadcasts_stays() {
    let mut n = Net::new(13);
    let x = n.input(&[-1, 1]);
    let ones = n.floats(&[1, 3], &[1.0; 3]);
    let y = n.op("Mul", &[x, ones], vec![]);
    let y = n.op("Abs", &[y], vec![]);
    n.output(y);
    assert_eq!(n.simplified(), ["Mul", "Abs"]);
}

#[test]
fn a_pad_of_zeros_before_a_max_pool_stays() {
    for (op, gone) in [("MaxPool", false), ("AveragePool", true)] {
        let mut n = Net::new(13);
        let x = n.input(&[1, 1, 8, 8]);
        let pads = n.ints(&[0, 0, 1, 1, 0, 0, 1, 1]);
        let y = n.op("Pad", &[x, pads], vec![]);
        let y = n.op(op, &[y], vec![Attr::ints("kernel_shape", vec![3, 3])]);
        n.output(y);
        assert_eq!(n.simplified().len(), if gone { 1 } else { 2 }, "{op}");
    }
}

#[test]
fn a_pad_goes_into_a_conv_unless_its_window_is_long() {
    for (kernel, left) in [(3, 1), (64, 2)] {
        let mut n = Net::new(13);
        let x = n.input(&[1, 1, 80, 8]);
        let pads = n.ints(&[0, 0, 1, 0, 0, 0, 1, 0]);
        let y = n.op("Pad", &[x, pads], vec![]);
        let w = n.floats(&[2, 1, kernel, 1], &vec![0.5; 2 * kernel]);
        let y = n.op("Conv", &[y, w], vec![]);
        n.output(y);
        assert_eq!(n.simplified().len(), left, "{kernel}");
    }
}

#[test]
fn a_shape_that_a_sub_graph_computes_becomes_a_constant_around_a_dynamic_batch() {
    let mut n = Net::new(13);
    let x = n.input(&[-1, 6, 4]);
    let shape = n.op("Shape", &[x], vec![]);
    let zero = n.ints(&[0]);
    let batch = n.op("Gather", &[shape, zero], vec![]);
    let rest = n.ints(&[2, 12]);
    let target = n.op("Concat", &[batch, rest], vec![Attr::int("axis", 0)]);
    let y = n.op("Reshape", &[x, target], vec![]);
    n.output(y);
    assert_eq!(n.simplified(), ["Reshape"]);
    let id = n.0.node_ids()[0];
    let target = n.0.constant_input(id, 1).unwrap().ints().unwrap();
    assert!(target == [0, 2, 12] || target == [-1, 2, 12], "{target:?}");
}

#[test]
fn random_nodes_are_not_shared() {
    let mut n = Net::new(13);
    let draw = |n: &mut Net| n.op("RandomNormal", &[], vec![Attr::ints("shape", vec![2])]);
    let (a, b) = (draw(&mut n), draw(&mut n));
    let y = n.op("Add", &[a, b], vec![]);
    n.output(y);
    assert_eq!(n.simplified(), ["RandomNormal", "RandomNormal", "Add"]);
}

#[test]
fn a_constant_that_would_make_the_file_larger_is_not_folded() {
    let mut n = Net::new(13);
    let x = n.input(&[1000, 1000]);
    let (one, size) = (n.floats(&[1], &[7.0]), n.ints(&[1000, 1000]));
    let big = n.op("Expand", &[one, size], vec![]);
    let y = n.op("MatMul", &[x, big], vec![]);
    n.output(y);
    assert_eq!(n.simplified(), ["Expand", "MatMul"]);
}

#[test]
fn inner_values_are_declared_only_when_that_is_asked_for() {
    for (list, declared) in [("simplify", 0), ("simplify(shapes=all)", 2)] {
        let mut n = Net::new(13);
        let x = n.input(&[-1, 8]);
        let w = n.floats(&[8, 4], &[1.0; 32]);
        let y = n.op("MatMul", &[x, w], vec![]);
        let y = n.op("Relu", &[y], vec![]);
        let y = n.op("Sigmoid", &[y], vec![]);
        n.output(y);
        for _ in 0..2 {
            let data = Dataset::synthetic(&n.0, 1, 1);
            let mut options = onnxzip::pipeline::Options::new(onnxzip::passes::parse_list(list).unwrap());
            options.verify = false;
            onnxzip::pipeline::rewrite(&mut n.0, &data, &options, &Tract, &progress::Silent).unwrap();
            let proto = onnx::encode(&n.0).unwrap();
            let infos = proto.graph.unwrap().value_info;
            assert_eq!(infos.len(), declared, "{list}");
            for i in infos {
                let dims = Net::info(i.name(), Some(&[-1, 4]));
                assert_eq!(i.r#type, dims.r#type);
            }
        }
    }
}

#[test]
fn a_declared_type_of_a_value_that_is_gone_does_no_harm() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 4]);
    let y = n.op("Relu", &[x], vec![]);
    n.output(y);
    let unused = n.op("Neg", &[x], vec![]); // the last value of the model
    let main = n.0.main_id();
    let name = n.0.value(unused).name.clone();
    n.0.add_info(main, Some(unused), Net::info(&name, Some(&[1, 4])));
    n.0.sweep();
    assert_eq!(n.simplified(), ["Relu"]);
}

#[test]
fn weights_that_an_exporter_has_listed_as_inputs_are_constants_unless_some_are_not_listed() {
    let net = |listed: bool, another: bool| {
        let mut n = Net::new(13);
        let x = n.input(&[-1, 2]);
        let mut weight = |name: &str, dims: &[usize], data: Vec<f32>| {
            let main = n.0.main_id();
            let listed_dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
            match listed {
                true => {
                    let input = n.0.add_input(main, Net::info(name, Some(&listed_dims)));
                    n.0.set_default(input, Tensor::new(dims, data));
                    input
                }
                false => n.0.add_const(main, name, Tensor::new(dims, data)),
            }
        };
        let w = weight("w", &[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let b = weight("b", &[2], vec![5.0, 6.0]);
        let y = n.op("MatMul", &[x, w], vec![]);
        let mut y = n.op("Add", &[y, b], vec![]);
        if another {
            let scale = n.floats(&[2], &[2.0, 2.0]);
            y = n.op("Mul", &[y, scale], vec![]);
        }
        n.output(y);
        n
    };
    let mut all = net(true, false);
    assert_eq!(all.simplified(), ["Gemm"]);
    assert_eq!(all.0.main().inputs().len(), 1, "x alone");
    let mut some = net(true, true);
    assert_eq!(some.simplified(), ["Gemm", "Mul"], "callers may give other weights");
    assert_eq!(some.0.main().inputs().len(), 3);
    assert_eq!(net(false, true).simplified(), ["Gemm"]);
}
