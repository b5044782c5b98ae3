use super::*;
use crate::data::Dataset;
use crate::engine::testing::Builder;
use crate::engine::tract::Tract;
use crate::ir::{Attr, DType, Tensor};
use crate::progress::Silent;

fn measured(model: &Model, wanted: &[(ValueId, Measure)], n: usize, threads: usize) -> Result<Stats> {
    let data = Dataset::synthetic(model, 1, n).all();
    measure(model, wanted, &Tract, &data, threads, &Silent)
}

/// `x` of the synthetic samples, one after the other.
fn inputs(model: &Model, n: usize) -> Vec<f32> {
    let data = Dataset::synthetic(model, 1, n).all();
    let one = |i| {
        data.get(i).expect("a sample")["x"]
            .floats()
            .expect("floats")
            .into_owned()
    };
    (0..n).flat_map(one).collect()
}

fn image_model() -> (Builder, ValueId, ValueId) {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[1, 4, 6, 5]);
    let y = b.op("Relu", &[x], vec![]);
    (b, x, y)
}

fn windows(groups: usize) -> Measure {
    let patch = Patch::Windows {
        kernel: vec![3, 3],
        strides: vec![2, 1],
        pads: vec![1; 4],
        dilations: vec![1; 2],
        groups,
    };
    Measure::Gram(patch, Detail::Fine)
}

#[test]
fn sums_are_those_of_all_samples() {
    let (b, x, y) = image_model();
    let wanted = [
        (x, Measure::Range),
        (y, Measure::Histogram),
        (y, Measure::Range),
        (y, Measure::Mean(1)),
        (x, Measure::Gram(Patch::Axis(1), Detail::Fine)),
    ];
    let stats = measured(&b.model, &wanted, 5, 2).expect("measures");
    let all = inputs(&b.model, 5);
    let least = all.iter().copied().fold(f32::INFINITY, f32::min);
    assert_eq!(stats.samples, 5);
    assert_eq!(stats.range(x).expect("range").min, least);
    assert_eq!(stats.histogram(y).expect("histogram").range.min, 0.0);
    assert_eq!(stats.range(y).expect("range").min, 0.0);
    let mean = stats.mean(y, 1).expect("mean");
    let channel = |c: usize| all.chunks(30).skip(c).step_by(4).flatten().map(|&v| f64::from(v));
    for (c, m) in mean.iter().enumerate() {
        let want = channel(c).map(|v| v.max(0.0)).sum::<f64>() / 150.0;
        assert!((m - want).abs() < 1e-9, "{m} {want}");
    }
    let gram = &stats.gram(x, &Patch::Axis(1)).expect("moment")[0];
    let want: f64 = channel(1).zip(channel(3)).map(|(a, b)| a * b).sum();
    assert_eq!((gram.dim(), gram.n), (4, 150));
    assert!((gram.second()[[1, 3]] - want).abs() < 1e-3);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (b, x, y) = image_model();
    let wanted = [
        (x, windows(1)),
        (y, windows(4)),
        (y, Measure::Mean(-1)),
        (x, Measure::Histogram),
    ];
    let all = |threads| {
        let s = measured(&b.model, &wanted, 7, threads).expect("measures");
        let grams = |v, m: &Measure| match m {
            Measure::Gram(p, _) => s
                .gram(v, p)
                .expect("moments")
                .iter()
                .map(|g| g.second())
                .collect::<Vec<_>>(),
            _ => Vec::new(),
        };
        let moments = [grams(x, &wanted[0].1), grams(y, &wanted[1].1)].concat();
        (moments, s.mean(y, -1).expect("mean").to_vec(), s.spread(x).cloned())
    };
    let one = all(1);
    assert_eq!(one.0.len(), 5);
    assert_eq!(one.0[0].dim(), (36, 36));
    assert_eq!(one, all(2));
    assert_eq!(one, all(3));
}

#[test]
fn a_value_that_is_nan_is_named() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[1, 16]);
    let y = b.op("Log", &[x], vec![]);
    for m in [
        Measure::Range,
        Measure::Histogram,
        Measure::Mean(1),
        Measure::Gram(Patch::Axis(1), Detail::Fine),
    ] {
        let e = measured(&b.model, &[(y, m)], 3, 2)
            .err()
            .expect("the logarithm of a negative number");
        let text = format!("{e:#}");
        assert!(text.contains("sample 0: log") && text.contains("NaN"), "{text}");
    }
}

#[test]
fn integers_are_left_out_and_constants_need_no_sample() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[1, 4]);
    let i = b.op("Cast", &[x], vec![Attr::int("to", DType::Int64 as i64)]);
    let w = b.constant("w", Tensor::new(&[2], vec![3f32, -4.]));
    let stats = measured(&b.model, &[(i, Measure::Range), (w, Measure::Range)], 2, 1).expect("measures");
    assert!(stats.range(i).is_none());
    assert_eq!(stats.range(w).and_then(|r| r.minmax()), Some((-4.0, 3.0)));
    let alone = measured(&b.model, &[(w, Measure::Histogram)], 0, 1).expect("measures");
    assert_eq!(alone.histogram(w).map(|h| h.count()), Some(2));
}
