//! Operators that tract reads otherwise than ONNX means them: see `amend`.

use super::*;

#[test]
fn upsample_and_the_first_resize_round_down() {
    let resized = |op: &str, opset: i64, mode: &str, times: f32| {
        let mut b = Builder::new(opset);
        let x = b.input("x", DType::Float, &[1, 1, 1, 2]);
        let scales = vec![1.0, 1.0, 1.0, times];
        let mut attrs = vec![Attr::string("mode", mode)];
        let mut inputs = vec![x];
        match opset < 9 {
            true => attrs.push(Attr::floats("scales", scales)),
            false => inputs.push(b.constant("scales", Tensor::new(&[4], scales))),
        }
        let y = b.op(op, &inputs, attrs);
        floats(&run(&b, &[y], &sample(&[("x", Tensor::new(&[1, 1, 1, 2], vec![0f32, 1.0]))]))[0])
    };
    for (op, opset) in [("Upsample", 7), ("Upsample", 9), ("Resize", 10)] {
        assert_eq!(
            resized(op, opset, "nearest", 3.0),
            [0., 0., 0., 1., 1., 1.],
            "{op} {opset}"
        );
        assert_eq!(resized(op, opset, "linear", 2.0), [0., 0.5, 1., 1.], "{op} {opset}");
    }
}

fn recurrence(op: &str, gates: usize, direction: &str) -> (Builder, Vec<ValueId>) {
    let mut b = Builder::new(14);
    let directions = if direction == "bidirectional" { 2 } else { 1 };
    let (input, hidden) = (2, 3);
    let x = b.input("x", DType::Float, &[5, 1, input]);
    let w = b.constant("w", ramp(&[directions, gates * hidden, input], -0.4, 0.03));
    let r = b.constant("r", ramp(&[directions, gates * hidden, hidden], 0.3, -0.02));
    let attrs = vec![
        Attr::int("hidden_size", hidden as i64),
        Attr::string("direction", direction),
    ];
    let outs = b.ops(op, &[Some(x), Some(w), Some(r)], 2, attrs);
    (b, outs)
}

fn sequence(reversed: bool) -> Tensor {
    let steps: Vec<[f32; 2]> = (0..5).map(|t| [t as f32 * 0.3 - 0.5, 1.0 - t as f32 * 0.2]).collect();
    let steps = if reversed {
        steps.into_iter().rev().collect()
    } else {
        steps
    };
    Tensor::new(&[5, 1, 2], steps.concat())
}

#[test]
fn a_reverse_recurrence_is_the_forward_one_of_the_reversed_sequence() {
    for (op, gates) in [("LSTM", 4), ("GRU", 3), ("RNN", 1)] {
        let (f, f_outs) = recurrence(op, gates, "forward");
        let (r, r_outs) = recurrence(op, gates, "reverse");
        let forward = run(&f, &f_outs, &sample(&[("x", sequence(true))]));
        let reverse = run(&r, &r_outs, &sample(&[("x", sequence(false))]));
        let steps: Vec<f32> = floats(&forward[0]).chunks(3).rev().flatten().copied().collect();
        assert_eq!(floats(&reverse[0]), steps, "{op}");
        assert_eq!(floats(&reverse[1]), floats(&forward[1]), "{op}");
    }
}

/// When this fails, tract was mended, and `amend::forward` can go.
#[test]
fn tract_still_runs_reverse_recurrences_forward() {
    let x = || vec![convert::to_tract(&sequence(false), DType::Float).expect("converts")];
    let [forward, reverse] = ["forward", "reverse"].map(|direction| {
        let (mut b, outs) = recurrence("LSTM", 4, direction);
        b.model.expose(&outs[..1]);
        bare_tract(&b.model, x())
    });
    assert_eq!(forward, reverse);
}

#[test]
fn both_directions_at_once_are_right() {
    // With equal weights the backward half is the forward half of the reversed sequence.
    let (mut b, outs) = recurrence("GRU", 3, "bidirectional");
    let half = |dims: &[usize], from, step| {
        let one = floats(&ramp(dims, from, step));
        Tensor::new(&[2, dims[0], dims[1]], [one.clone(), one].concat())
    };
    let gru = b.model.value(outs[0]).producer().expect("a node");
    let (w, r) = (
        b.constant("w2", half(&[9, 2], -0.4, 0.03)),
        b.constant("r2", half(&[9, 3], 0.3, -0.02)),
    );
    b.model.set_input(gru, 1, Some(w));
    b.model.set_input(gru, 2, Some(r));
    let there = floats(&run(&b, &outs[..1], &sample(&[("x", sequence(false))]))[0]);
    let back = floats(&run(&b, &outs[..1], &sample(&[("x", sequence(true))]))[0]);
    for t in 0..5 {
        assert_eq!(there[t * 6 + 3..t * 6 + 6], back[(4 - t) * 6..(4 - t) * 6 + 3]);
    }
}

fn int64(numbers: &[i64]) -> Tensor {
    Tensor::new(&[numbers.len()], numbers.to_vec())
}

/// `x` of 2×3 numbers 0 to 5, padded; begins and ends along the axes, or along these.
fn padded(mode: &str, pads: &[i64], axes: Option<&[i64]>) -> (Vec<usize>, Vec<f32>) {
    let mut b = Builder::new(18);
    let x = b.input("x", DType::Float, &[2, 3]);
    let mut inputs = vec![Some(x), Some(b.constant("pads", int64(pads)))];
    if let Some(axes) = axes {
        inputs.extend([None, Some(b.constant("axes", int64(axes)))]);
    }
    let y = b.ops("Pad", &inputs, 1, vec![Attr::string("mode", mode)])[0];
    let got = run(&b, &[y], &sample(&[("x", ramp(&[2, 3], 0.0, 1.0))]));
    (got[0].dims().to_vec(), floats(&got[0]))
}

#[test]
fn negative_pads_crop() {
    let all = padded("edge", &[0, 1, 0, -1], None);
    assert_eq!(all, (vec![2, 3], vec![0., 0., 1., 3., 3., 4.]));
    let all = padded("constant", &[-1, 2, 1, -2], None);
    assert_eq!(all, (vec![2, 3], vec![0., 0., 3., 0., 0., 0.]));
    let one = padded("reflect", &[-1, 1], Some(&[1]));
    assert_eq!(one, (vec![2, 3], vec![1., 2., 1., 4., 5., 4.]));
}

#[test]
fn a_constant_of_shape_is_full_of_float_zeros_where_it_does_not_say() {
    let mut b = Builder::new(13);
    let x = b.input("x", DType::Float, &[2, 2]);
    let shape = b.constant("shape", int64(&[2, 2]));
    let zeros = b.op("ConstantOfShape", &[shape], vec![]);
    let y = b.op("MatMul", &[x, zeros], vec![]);
    let got = run(&b, &[y], &sample(&[("x", ramp(&[2, 2], 0.0, 1.0))]));
    assert_eq!(floats(&got[0]), [0.0; 4]);
}

#[test]
fn a_real_signal_needs_no_last_axis() {
    let spectrum = |dims: &[usize]| {
        let mut b = Builder::new(17);
        let x = b.input("x", DType::Float, dims);
        let step = b.constant("step", Tensor::scalar(2i64));
        let window = b.constant("window", Tensor::new(&[4], vec![1f32; 4]));
        let y = b.op("STFT", &[x, step, window], vec![]);
        let got = run(&b, &[y], &sample(&[("x", ramp(dims, 1.0, 1.0))]));
        (got[0].dims().to_vec(), floats(&got[0]))
    };
    let (dims, numbers) = spectrum(&[1, 6]);
    assert_eq!(dims, [1, 2, 3, 2]);
    // 1 + 2 + 3 + 4, and 1 − 3 with 4 − 2 times i.
    assert!((numbers[0] - 10.0).abs() < 1e-5 && (numbers[2] + 2.0).abs() < 1e-5 && (numbers[3] - 2.0).abs() < 1e-5);
    assert_eq!(spectrum(&[1, 6, 1]), (dims, numbers));
}

#[test]
fn third_powers_are_products() {
    let cubes = |dims: &[usize]| {
        let mut b = Builder::new(13);
        let x = b.input("x", DType::Float, &[1, 3]);
        let three = b.constant("three", Tensor::new(dims, vec![3.0f32]));
        let y = b.op("Pow", &[x, three], vec![]);
        let x = Tensor::new(&[1, 3], vec![-2.0f32, 0.5, 3.0]);
        let sample: Sample = [("x".to_owned(), x)].into_iter().collect();
        let session = Tract.load(&b.model, &[y], &sample).expect("it loads");
        session.run(&sample).expect("it runs")[0]
            .floats()
            .expect("floats")
            .into_owned()
    };
    assert_eq!(cubes(&[]), [-8.0, 0.125, 27.0]);
    assert_eq!(cubes(&[1]), [-8.0, 0.125, 27.0]);
}

#[test]
fn a_batch_normalization_may_compute_its_numbers() {
    let mut b = Builder::new(15);
    let x = b.input("x", DType::Float, &[1, 2, 3]);
    let axes = vec![Attr::ints("axes", vec![0, 2]), Attr::int("keepdims", 0)];
    let mean = b.op("ReduceMean", &[x], axes);
    let one = b.constant("one", Tensor::new(&[2], vec![4f32, 0.25]));
    let two = b.constant("two", Tensor::new(&[2], vec![10f32, 20.0]));
    let variance = b.op("Exp", &[mean], vec![]);
    let all = [x, one, two, mean, variance];
    let y = b.op("BatchNormalization", &all, vec![Attr::float("epsilon", 0.5)]);
    let numbers = [1f32, 2.0, 3.0, -1.0, 0.0, 4.0];
    let out = run(&b, &[y], &sample(&[("x", Tensor::new(&[1, 2, 3], numbers.to_vec()))]));
    let wanted = numbers.iter().enumerate().map(|(i, x)| {
        let (mean, gamma, beta) = [(2f32, 4.0, 10.0), (1.0, 0.25, 20.0)][i / 3];
        (x - mean) / (mean.exp() + 0.5).sqrt() * gamma + beta
    });
    for (got, wanted) in floats(&out[0]).iter().zip(wanted) {
        assert!((got - wanted).abs() < 1e-5, "{got}, not {wanted}");
    }
}
