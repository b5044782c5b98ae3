//! What outputs and the layers behind them say: about errors, and about inputs too wide to be measured.

use super::{Numbers, correlated, error, info, layer, matmul_model, open_layer, outputs, run};
use crate::tool::{arg, fixture, onnxzip, samples};
use onnxzip::data::Dataset;
use onnxzip::ir::{Attr, Model, Tensor};
use onnxzip::passes::NoteKind;

/// Two dense layers. One direction holds nearly all of the first one's variance, and the second does not look at it; with `hides`, an
/// operator between them hides that.
fn blind(r: &mut Numbers, hides: bool) -> (Model, Dataset) {
    let (inputs, hidden, out) = (96, 64, 16);
    let mut first = r.take(hidden * inputs);
    first.iter_mut().for_each(|x| *x += 20.0);
    let mut second = r.take(out * hidden);
    for row in second.chunks_mut(hidden) {
        let mean = row.iter().sum::<f32>() / hidden as f32;
        row.iter_mut().for_each(|x| *x -= mean);
    }
    let gemm = |w: Vec<f32>, dims: [usize; 2]| Tensor::new(&dims, w);
    let (mut model, mut inner) = open_layer(
        13,
        "Gemm",
        &[1, inputs],
        vec![None, Some(gemm(first, [hidden, inputs]))],
        vec![Attr::int("transB", 1)],
    );
    let main = model.main_id();
    if hides {
        let names = ["hidden"];
        inner = model.add_node(main, "hides", "Neg", &[Some(inner)], &names, vec![]).1[0];
    }
    let weight = model.add_const(main, "w2", gemm(second, [out, hidden]));
    let attrs = vec![Attr::int("transB", 1)];
    let (_, y) = model.add_node(main, "second", "Gemm", &[Some(inner), Some(weight)], &["z"], attrs);
    model.add_output(main, info("z", &[1, out]), y[0]);
    let data = samples(&model, &[200, 1, inputs], &r.take(200 * inputs));
    (model, data)
}

#[test]
fn what_harms_an_output_is_taken_back() {
    let (model, data) = blind(&mut Numbers(12), true);
    let before = outputs(&model, &data);
    for (request, most) in [("lowrank(merge=off)", 0.02), ("lowrank(rank=8,merge=off)", 10.0)] {
        let mut changed = model.clone();
        let notes = run(&mut changed, &data, request);
        let lost = error(&before, &outputs(&changed, &data), 16);
        assert!(lost <= most, "{request}: {lost} {notes:?}");
        assert_eq!(lost > 0.3, request.contains("rank="), "{request}: {lost} {notes:?}");
    }
}

#[test]
fn a_rank_that_keeps_what_was_promised_is_not_taken_back_for_few_samples() {
    let mut r = Numbers(16);
    let (rows, inputs, out) = (200, 48, 96);
    let mut model = matmul_model(rows, inputs, out, r.take(inputs * out));
    let data = samples(&model, &[8, rows, inputs], &correlated(8 * rows, inputs, 17));
    let before = outputs(&model, &data);
    let notes = run(&mut model, &data, "lowrank(error=0.05,round_to=1)");
    assert_eq!(notes.len(), 1, "{notes:?}");
    let lost = error(&before, &outputs(&model, &data), out);
    assert!(notes[0].kind == NoteKind::Did && lost <= 0.05, "{lost} {notes:?}");
    // More than half of what was allowed is used.
    assert!(lost > 0.025, "{lost} {notes:?}");
}

#[test]
fn what_the_next_layer_does_not_look_at_is_not_kept() {
    let lost = [false, true].map(|hides| {
        let (mut model, data) = blind(&mut Numbers(13), hides);
        let before = outputs(&model, &data);
        run(&mut model, &data, "lowrank(rank=24,merge=off)");
        error(&before, &outputs(&model, &data), 16)
    });
    assert!(lost[0] < 0.05 && lost[1] > 0.2, "{lost:?}");
}

#[test]
fn a_window_too_wide_to_measure_is_factored_by_its_outputs() {
    let mut r = Numbers(14);
    let (channels, taps, out, length) = (80, 60, 32, 64);
    let weight = Tensor::new(&[out, channels, taps, 1], r.take(out * channels * taps));
    let bias = Tensor::new(&[out], r.take(out).iter().map(|b| 1e3 * b).collect());
    let (x, y) = ([1, channels, length, 1], [1, out, length - taps + 1, 1]);
    let original = layer(13, "Conv", &x, &y, vec![None, Some(weight), Some(bias)], vec![]);
    let width = channels * length;
    let data: Vec<f32> = correlated(96, 12, 15);
    // Twelve patterns, of falling power, around a mean.
    let patterns = r.take(12 * width);
    let mixed = |i: usize| {
        (0..12)
            .map(|k| data[i / width * 12 + k] * patterns[k * width + i % width])
            .sum::<f32>()
            + 0.5
    };
    let data = samples(
        &original,
        &[96, 1, channels, length, 1],
        &(0..96 * width).map(mixed).collect::<Vec<_>>(),
    );
    let before = outputs(&original, &data);
    let [with, without] = ["lowrank(rank=12)", "lowrank(rank=12,data=off)"].map(|request| {
        let mut model = original.clone();
        let notes = run(&mut model, &data, request);
        assert_eq!(notes[0].kind, NoteKind::Did, "{notes:?}");
        let after = outputs(&model, &data);
        before
            .iter()
            .zip(&after)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>()
    });
    assert!(with * 2.0 < without, "{with} {without}");
}

/// Of the samples that are held back, in a network of convolutions that was trained: the error of the outputs in dB.
fn held_back(passes: &str) -> f64 {
    let folder = tempfile::tempdir().expect("a folder");
    let [out, json] = ["o.onnx", "r.json"].map(|name| arg(&folder.path().join(name)));
    let (model, calib) = (arg(&fixture("digits_cnn.onnx")), arg(&fixture("digits.npz")));
    let args = [
        "optimize", "--passes", passes, "--keep", "--calib", &calib, "--json", &json, &model, &out,
    ];
    let ran = onnxzip(args);
    assert!(ran.code.is_some_and(|c| c < 2), "{}", ran.err);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).expect("a report")).expect("JSON");
    report["gaps"][0]["sqnr_db"].as_f64().expect("a number")
}

#[test]
fn factors_in_a_row_make_up_for_one_another() {
    for (request, gain) in [("lowrank(ratio=0.3,gain=0)", 4.0), ("lowrank(ratio=0.5,gain=0)", 2.0)] {
        let off = request.replace(')', ",repair=off)");
        let [with, without] = [held_back(request), held_back(&off)];
        assert!(
            with > without + gain,
            "{request}: {with:.1} dB, {without:.1} dB without"
        );
    }
}
