//! The pass `lowrank` on small models whose numbers are known, run by the engine.

use crate::tool::{run_passes, samples};
use onnxzip::data::Dataset;
use onnxzip::engine::Engine;
use onnxzip::engine::tract::Tract;
use onnxzip::ir::{Attr, Model, NodeId, Tensor, ValueId};
use onnxzip::passes::{Note, NoteKind};
use onnxzip::pb;

mod merge;
mod single;
mod trial;

/// A seeded stream of numbers in [-1, 1).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / 8388608.0 - 1.0
    }
    fn take(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
    /// An `m × n` matrix of rank `r`, row by row.
    fn of_rank(&mut self, m: usize, n: usize, r: usize) -> Vec<f32> {
        let (u, v) = (self.take(m * r), self.take(r * n));
        let entry = |i: usize| (0..r).map(|k| u[i / n * r + k] * v[k * n + i % n]).sum();
        (0..m * n).map(entry).collect()
    }
}

fn info(name: &str, dims: &[usize]) -> pb::ValueInfoProto {
    let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
    crate::tool::port(name, &dims)
}

/// A model with one node `layer`: input `x`, output `y`; `args` are the inputs in order, `None` for `x`.
fn layer(opset: i64, op: &str, x: &[usize], y: &[usize], args: Vec<Option<Tensor>>, attrs: Vec<Attr>) -> Model {
    let (mut model, out) = open_layer(opset, op, x, args, attrs);
    model.add_output(model.main_id(), info("y", y), out);
    model
}

/// The same without an output; gives the node's.
fn open_layer(opset: i64, op: &str, x: &[usize], args: Vec<Option<Tensor>>, attrs: Vec<Attr>) -> (Model, ValueId) {
    let mut model = Model::new(pb::ModelProto {
        ir_version: Some(8),
        opset_import: vec![pb::OperatorSetIdProto {
            version: Some(opset),
            ..Default::default()
        }],
        ..Default::default()
    });
    let main = model.main_id();
    let input = model.add_input(main, info("x", x));
    let inputs: Vec<Option<ValueId>> = args
        .into_iter()
        .enumerate()
        .map(|(i, t)| Some(t.map_or(input, |t| model.add_const(main, ["a", "w", "b"][i], t))))
        .collect();
    let (_, out) = model.add_node(main, "layer", op, &inputs, &["y"], attrs);
    (model, out[0])
}

/// Runs the pass and gives its notes.
fn run(model: &mut Model, data: &Dataset, request: &str) -> Vec<Note> {
    run_passes(model, request, data, 0)
}

/// Outputs of all samples, end to end.
fn outputs(model: &Model, data: &Dataset) -> Vec<f32> {
    let wanted = [model.main().outputs()[0].value];
    let session = Tract
        .load(model, &wanted, &data.get(0).expect("a sample"))
        .expect("loads");
    let of = |i| {
        session.run(&data.get(i).expect("a sample")).expect("runs")[0]
            .floats()
            .expect("floats")
            .to_vec()
    };
    (0..data.len()).flat_map(of).collect()
}

/// Squared error relative to the variance along each of `width` outputs.
fn error(reference: &[f32], got: &[f32], width: usize) -> f64 {
    let rows = (reference.len() / width) as f64;
    let mut mean = vec![0.0; width];
    reference
        .iter()
        .enumerate()
        .for_each(|(i, x)| mean[i % width] += f64::from(*x) / rows);
    let square = |x: f64| x * x;
    let power: f64 = reference
        .iter()
        .enumerate()
        .map(|(i, x)| square(f64::from(*x) - mean[i % width]))
        .sum();
    let lost: f64 = reference.iter().zip(got).map(|(a, b)| square(f64::from(a - b))).sum();
    lost / power
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, x| m.max(x.abs()))
}

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let scale = largest(a);
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() <= tolerance * scale, "{x} {y}, largest {scale}");
    }
}

/// Correlated rows of `width` numbers with a mean: few directions carry nearly all power.
fn correlated(n: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut r = Numbers(seed);
    let mix = r.take(width * width);
    let shift = r.take(width);
    let mut all = Vec::with_capacity(n * width);
    for _ in 0..n {
        let z: Vec<f32> = (0..width).map(|k| r.next() * 0.8f32.powi(k as i32)).collect();
        all.extend((0..width).map(|j| (0..width).map(|k| z[k] * mix[k * width + j]).sum::<f32>() + 2.0 * shift[j]));
    }
    all
}

fn matmul_model(rows: usize, inputs: usize, out: usize, weight: Vec<f32>) -> Model {
    let w = Tensor::new(&[inputs, out], weight);
    layer(13, "MatMul", &[rows, inputs], &[rows, out], vec![None, Some(w)], vec![])
}

fn node_named(model: &Model, name: &str) -> NodeId {
    model.nodes().find(|(_, n)| n.name() == name).expect("the node").0
}

#[test]
fn a_weight_of_low_rank_is_found_and_kept_to_rounding() {
    let mut r = Numbers(1);
    let mut model = matmul_model(4, 80, 64, r.of_rank(80, 64, 5));
    let data = samples(&model, &[40, 4, 80], &r.take(40 * 4 * 80));
    let before = outputs(&model, &data);
    let notes = run(&mut model, &data, "lowrank(error=1e-9,round_to=1)");
    assert_eq!(notes[0].kind, NoteKind::Did);
    assert!(notes[0].what.contains("64×80 → rank 5: −86 % weights"), "{notes:?}");
    close(&before, &outputs(&model, &data), 1e-5);
    let names: Vec<&str> = model.nodes().map(|(_, n)| n.name()).collect();
    assert_eq!(names, ["layer_lr1", "layer_lr0"]);
    assert_eq!(
        model
            .main()
            .consts()
            .iter()
            .filter(|c| model.value(**c).is_alive())
            .count(),
        2
    );
}

#[test]
fn where_it_does_not_get_smaller_nothing_happens() {
    let mut r = Numbers(2);
    let mut model = matmul_model(4, 64, 64, r.take(64 * 64));
    let data = samples(&model, &[200, 4, 64], &r.take(200 * 4 * 64));
    for request in [
        "lowrank(error=1e-4)",
        "lowrank(rank=30)",
        "lowrank(rank=8,min_size=5000)",
        "lowrank(gain=1)",
    ] {
        let notes = run(&mut model, &data, request);
        assert_eq!((notes.len(), notes[0].kind), (1, NoteKind::Skip), "{request} {notes:?}");
        assert_eq!(model.nodes().count(), 1);
    }
}

#[test]
fn all_of_a_layer_is_exact_at_full_rank() {
    // 8 × 600: full rank is 8, and even that is smaller (with gain=0, as 8·608 > 8·600 never is): so 9 × 600 of rank 8.
    let mut r = Numbers(3);
    let w = r.of_rank(9, 600, 8);
    let mut model = layer(
        13,
        "Gemm",
        &[3, 600],
        &[3, 9],
        vec![
            None,
            Some(Tensor::new(&[9, 600], w)),
            Some(Tensor::new(&[9], r.take(9))),
        ],
        vec![Attr::int("transB", 1)],
    );
    let data = samples(&model, &[30, 3, 600], &r.take(30 * 3 * 600));
    let before = outputs(&model, &data);
    let notes = run(&mut model, &data, "lowrank(rank=8,gain=0)");
    assert_eq!(notes[0].kind, NoteKind::Did, "{notes:?}");
    close(&before, &outputs(&model, &data), 1e-5);
}

#[test]
fn data_beat_plain_singular_values_and_the_prediction_holds() {
    let mut r = Numbers(4);
    let weight = r.take(48 * 96);
    let original = matmul_model(2, 48, 96, weight);
    let data = samples(&original, &[400, 2, 48], &correlated(800, 48, 5));
    let before = outputs(&original, &data);
    let mut errors = Vec::new();
    for request in ["lowrank(rank=12)", "lowrank(rank=12,data=off)"] {
        let mut model = original.clone();
        let notes = run(&mut model, &data, request);
        errors.push(error(&before, &outputs(&model, &data), 96));
        if errors.len() == 1 {
            let (_, said) = notes[0].what.split_once("predicted error ").expect("a prediction");
            let said: f64 = said.trim_end_matches(" dB").parse().expect("a number");
            let measured = 10.0 * errors[0].log10();
            assert!(measured <= said + 0.5 && measured > said - 3.0, "{said} {measured}");
        }
    }
    assert!(errors[0] * 2.0 < errors[1], "{errors:?}");
}

#[test]
fn every_orientation_of_gemm_gives_the_same_numbers() {
    let mut r = Numbers(6);
    let (rows, inputs, out) = (3usize, 70usize, 60usize);
    for opset in [9, 13] {
        for case in 0..8 {
            let (left, ta, tb) = (case & 1 != 0, case & 2 != 0, case & 4 != 0);
            let flip = |t: bool, a: usize, b: usize| if t { [b, a] } else { [a, b] };
            let attrs = vec![
                Attr::int("transA", ta.into()),
                Attr::int("transB", tb.into()),
                Attr::float("alpha", 0.5),
                Attr::float("beta", 2.0),
            ];
            let (x, w, y, wide) = match left {
                false => (flip(ta, rows, inputs), flip(tb, inputs, out), [rows, out], vec![out]),
                true => (flip(tb, inputs, rows), flip(ta, out, inputs), [out, rows], vec![out, 1]),
            };
            let weight = Some(Tensor::new(&w, r.of_rank(w[0], w[1], 7)));
            let bias = Some(Tensor::new(&wide, r.take(out)));
            let args = if left {
                vec![weight, None, bias]
            } else {
                vec![None, weight, bias]
            };
            let mut model = layer(opset, "Gemm", &x, &y, args, attrs);
            let all: Vec<f32> = r.take(50 * rows * inputs).iter().map(|x| x + 0.5).collect();
            let data = samples(&model, &[50, x[0], x[1]], &all);
            let before = outputs(&model, &data);
            let notes = run(&mut model, &data, "lowrank(rank=7)");
            assert_eq!(notes[0].kind, NoteKind::Did, "{notes:?}");
            close(&before, &outputs(&model, &data), 1e-5);
        }
    }
}

#[test]
fn a_weight_on_the_left_of_matmul_is_factored() {
    let mut r = Numbers(7);
    let w = Tensor::new(&[60, 70], r.of_rank(60, 70, 6));
    let mut model = layer(13, "MatMul", &[2, 70, 3], &[2, 60, 3], vec![Some(w), None], vec![]);
    let data = samples(&model, &[30, 2, 70, 3], &r.take(30 * 420));
    let before = outputs(&model, &data);
    let notes = run(&mut model, &data, "lowrank(error=1e-9,round_to=1)");
    assert!(notes[0].what.contains("rank 6"), "{notes:?}");
    close(&before, &outputs(&model, &data), 1e-5);
}

#[test]
fn a_one_by_one_conv_keeps_strides_and_pads_and_the_mean() {
    let mut r = Numbers(8);
    let w = Tensor::new(&[64, 72, 1, 1], r.take(64 * 72));
    let attrs = vec![
        Attr::ints("strides", vec![2, 2]),
        Attr::ints("pads", vec![1, 0, 0, 1]),
        Attr::ints("kernel_shape", vec![1, 1]),
    ];
    let (x, y) = ([1, 72, 5, 5], [1, 64, 3, 3]);
    let mut model = layer(13, "Conv", &x, &y, vec![None, Some(w)], attrs);
    // Channels as rows of `correlated`, positions side by side.
    let rows = correlated(60 * 25, 72, 9);
    let place = |i: usize| rows[(i / 1800 * 25 + i % 25) * 72 + i / 25 % 72];
    let data = samples(
        &model,
        &[60, 1, 72, 5, 5],
        &(0..60 * 1800).map(place).collect::<Vec<_>>(),
    );
    let before = outputs(&model, &data);
    let notes = run(&mut model, &data, "lowrank(error=0.01,gain=0.1)");
    assert_eq!(notes[0].kind, NoteKind::Did, "{notes:?}");
    let after = outputs(&model, &data);
    // Positions to the end, for the mean of every channel.
    let turned = |v: &[f32]| {
        (0..v.len())
            .map(|i| v[i / 576 * 576 + i % 64 * 9 + i / 64 % 9])
            .collect::<Vec<_>>()
    };
    assert!(error(&turned(&before), &turned(&after), 64) < 0.015);
    let mean = |v: &[f32]| v.iter().map(|x| f64::from(*x)).sum::<f64>() / v.len() as f64;
    assert!((mean(&before) - mean(&after)).abs() < 1e-3);
    let second = model.node(node_named(&model, "layer_lr1"));
    assert!(second.ints("strides").is_none() && second.input(2).is_some());
    assert_eq!(
        model.node(node_named(&model, "layer_lr0")).ints("strides"),
        Some(&[2i64, 2][..])
    );
}

#[test]
fn shared_and_grouped_weights_are_left_alone_by_name() {
    let mut r = Numbers(10);
    let mut model = matmul_model(4, 64, 64, r.of_rank(64, 64, 2));
    let main = model.main_id();
    let (w, y) = (
        model.node(node_named(&model, "layer")).input(1),
        model.main().outputs()[0].value,
    );
    model.add_node(main, "again", "MatMul", &[Some(y), w], &["z"], vec![]);
    let data = samples(&model, &[10, 4, 64], &r.take(2560));
    let notes = run(&mut model, &data, "lowrank");
    assert_eq!(
        notes
            .iter()
            .filter(|n| n.what == "w is read by other nodes too")
            .count(),
        2
    );
    let w = Tensor::new(&[64, 32, 1, 1], r.take(64 * 32));
    let attrs = vec![Attr::int("group", 2)];
    let mut model = layer(13, "Conv", &[1, 64, 5, 5], &[1, 64, 5, 5], vec![None, Some(w)], attrs);
    let data = samples(&model, &[4, 1, 64, 5, 5], &r.take(4 * 1600));
    let notes = run(&mut model, &data, "lowrank");
    assert!(notes[0].what.contains("it has 2 groups"), "{notes:?}");
}

/// A kernel [out, channels, k…] from its entries.
fn kernel(dims: [usize; 4], entry: impl Fn(usize, usize, usize, usize) -> f32) -> Tensor {
    let [out, channels, h, w] = dims;
    let at = |i: usize| entry(i / (channels * h * w), i / (h * w) % channels, i / w % h, i % w);
    Tensor::new(&dims, (0..out * channels * h * w).map(at).collect())
}

#[test]
fn a_kernel_that_is_of_a_form_is_found_in_that_form_whatever_its_geometry() {
    const N: usize = 48;
    let mut r = Numbers(11);
    let (a, b, c) = (r.take(N * N * 9), r.take(N * N * 9), r.take(N * N * 9));
    let dot = |f: &dyn Fn(usize) -> f32| (0..8).map(f).sum::<f32>();
    // Through 8 channels each: behind the kernel, before it, and between two passes of it.
    let channel = kernel([N, N, 3, 3], |o, i, h, w| {
        dot(&|k| a[o * 8 + k] * b[k * N * 9 + i * 9 + h * 3 + w])
    });
    let input = kernel([N, N, 3, 3], |o, i, h, w| {
        dot(&|k| a[(o * 8 + k) * 9 + h * 3 + w] * b[k * N + i])
    });
    let spatial = kernel([N, N, 3, 3], |o, i, h, w| {
        dot(&|k| a[(o * 8 + k) * 3 + w] * b[(k * N + i) * 3 + h])
    });
    let tucker = kernel([N, N, 3, 3], |o, i, h, w| {
        dot(&|s| c[o * 8 + s] * dot(&|k| a[(s * 8 + k) * 9 + h * 3 + w] * b[k * N + i]))
    });
    let geometries: [(Vec<Attr>, [usize; 4]); 3] = [
        (vec![Attr::ints("pads", vec![1, 0, 2, 1])], [1, N, 9, 7]),
        (
            vec![
                Attr::ints("strides", vec![1, 2]),
                Attr::ints("dilations", vec![2, 1]),
                Attr::ints("kernel_shape", vec![3, 3]),
            ],
            [1, N, 4, 3],
        ),
        (vec![Attr::string("auto_pad", "SAME_UPPER")], [1, N, 8, 8]),
    ];
    for (form, weight) in [
        ("rank 8", &channel),
        ("1×1 to 8, then the kernel", &input),
        ("k×1 then 1×k, rank 8", &spatial),
        ("Tucker-2 of ranks 8 and 8", &tucker),
    ] {
        for (attrs, y) in &geometries {
            let args = vec![None, Some(weight.clone()), Some(Tensor::new(&[N], r.take(N)))];
            let mut model = layer(13, "Conv", &[1, N, 8, 8], y, args, attrs.clone());
            let numbers: Vec<f32> = r.take(24 * N * 64).iter().map(|x| x + 0.3).collect();
            let data = samples(&model, &[24, 1, N, 8, 8], &numbers);
            let before = outputs(&model, &data);
            let notes = run(&mut model, &data, "lowrank(error=1e-5)");
            assert!(notes[0].what.contains(form), "{form}: {notes:?}");
            close(&before, &outputs(&model, &data), 1e-3);
        }
    }
}
