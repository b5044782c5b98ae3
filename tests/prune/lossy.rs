//! `ratio`: which channels go, and what the others make good.

use super::*;

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
pub(super) fn relative_error(before: &Model, after: &Model) -> f64 {
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
fn a_copy_and_a_unit_that_never_speaks_go_first_at_no_error() {
    let mut n = Net::new(13);
    let x = n.input(&[64, 6]);
    let w = n.param("a", &[6, 8]);
    let t = n
        .model
        .constant(w)
        .expect("a weight")
        .to_f32()
        .expect("floats")
        .into_owned();
    let copy = |k: usize| if k % 8 == 6 { t[k - 5] } else { t[k] }; // unit 6 is unit 1 again
    n.model.set_const(w, Tensor::new(&[6, 8], (0..48).map(copy).collect()));
    let mut bias = vec![0.1f32; 8];
    bias[3] = -100.0; // never above zero
    let b = n.tensor("a.b", Tensor::new(&[8], bias));
    let h = n.op("Gemm", &[x, w, b], vec![]);
    let h = n.op("Relu", &[h], vec![]);
    let (w, b) = (n.param("b", &[8, 5]), n.param("b.b", &[5]));
    let y = n.op("Gemm", &[h, w, b], vec![]);
    n.output("y", y);
    let before = n.model.clone();
    run("prune(ratio=0.25)", &mut n.model);
    assert_eq!((n.dims("a"), n.dims("b")), (vec![6, 6], vec![6, 5]));
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
fn a_ratio_reaches_layers_of_few_blocks_unless_blocks_were_asked_for() {
    for (options, left) in [("", 24), (",round_to=16", 32), (",round_to=1", 24)] {
        let mut n = Net::new(17);
        let x = n.input(&[1, 3, 8, 8]);
        let x = n.conv("a", x, &[32, 3, 1, 1], &[]);
        let x = n.op("Relu", &[x], vec![]);
        let y = n.conv("b", x, &[5, 32, 3, 3], &[]);
        n.output("y", y);
        run(&format!("prune(ratio=0.25{options})"), &mut n.model);
        assert_eq!(n.dims("a.w")[0], left, "{options:?}");
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

/// Runs passes on the MNIST network of the fixtures; the report.
pub(super) fn on_digits(passes: &str, calib: bool) -> serde_json::Value {
    use crate::tool::{arg, fixture, onnxzip};
    let dir = tempfile::tempdir().expect("a folder");
    let json = dir.path().join("report.json");
    let mut args = vec![
        "optimize".into(),
        "--keep".into(),
        "--passes".into(),
        passes.to_owned(),
        "--json".into(),
        arg(&json),
    ];
    if calib {
        args.extend(["--calib".into(), arg(&fixture("digits.npz"))]);
    }
    args.extend([arg(&fixture("digits_mlp.onnx")), arg(&dir.path().join("out.onnx"))]);
    let ran = onnxzip(args);
    assert!(matches!(ran.code, Some(0 | 1)), "{passes}: {}", ran.err);
    serde_json::from_str(&std::fs::read_to_string(&json).expect("a report")).expect("JSON")
}

#[test]
fn channels_go_until_the_outputs_err_by_what_is_allowed() {
    let mut last = 1.0;
    for (error, least) in [(0.003, 23.2), (0.03, 13.2)] {
        let report = on_digits(&format!("prune(error={error})"), true);
        let sqnr = report["gaps"][0]["sqnr_db"].as_f64().expect("a number");
        let params = |when: &str| report[when]["params"].as_f64().expect("a number");
        let part = params("after") / params("before");
        assert!((least..least + 9.0).contains(&sqnr), "error={error}: {sqnr} dB");
        assert!(part < 0.9 * last, "error={error}: {part} of the weights stay");
        last = part;
        let notes = report["passes"].to_string();
        assert!(
            notes.contains("channels go: predicted error of what reads them"),
            "{notes}"
        );
    }
}

#[test]
fn made_up_samples_take_nothing_by_error() {
    let report = on_digits("prune(error=0.01)", false);
    assert_eq!(report["before"]["params"], report["after"]["params"]);
    assert!(report["passes"].to_string().contains("tell nothing of the damage"));
    for bad in ["error=1", "error=-0.1", "error=0.1,ratio=0.1"] {
        assert!(parse_list(&format!("prune({bad})")).is_err(), "{bad}");
    }
}
