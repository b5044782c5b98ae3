//! Convolutions by kernels of our own, in a graph.

use super::*;

/// A convolution of `[1, inputs, size, size + 3]`, with the sample, weights and biases that it has.
struct Case {
    inputs: usize,
    outputs: usize,
    group: usize,
    size: usize,
    kernel: usize,
    stride: usize,
    /// Top, left, bottom, right.
    pads: [usize; 4],
    bias: bool,
}

impl Case {
    fn result(&self) -> [usize; 2] {
        let along = |size: usize, pads: usize| (size + pads - self.kernel) / self.stride + 1;
        [
            along(self.size, self.pads[0] + self.pads[2]),
            along(self.size + 3, self.pads[1] + self.pads[3]),
        ]
    }

    /// What plain sums give.
    fn plain(&self, x: &[f32], w: &[f32], bias: &[f32]) -> Vec<f32> {
        let ([height, width], k) = (self.result(), self.kernel);
        let (each, made) = (self.inputs / self.group, self.outputs / self.group);
        let mut y = Vec::new();
        for (m, r, q) in (0..self.outputs).flat_map(|m| (0..height * width).map(move |p| (m, p / width, p % width))) {
            let mut sum = bias.get(m).copied().unwrap_or(0.0);
            for (c, t) in (0..each).flat_map(|c| (0..k * k).map(move |t| (c, t))) {
                let row = (r * self.stride + t / k)
                    .checked_sub(self.pads[0])
                    .filter(|r| *r < self.size);
                let column = (q * self.stride + t % k)
                    .checked_sub(self.pads[1])
                    .filter(|q| *q < self.size + 3);
                if let (Some(row), Some(column)) = (row, column) {
                    let plane = m / made * each + c;
                    sum += w[(m * each + c) * k * k + t] * x[(plane * self.size + row) * (self.size + 3) + column];
                }
            }
            y.push(sum);
        }
        y
    }

    /// Runs it, and tells which operators did.
    fn check(&self) -> Vec<String> {
        let wave = |dims: &[usize], step: f32| -> Tensor {
            let n = dims.iter().product::<usize>();
            Tensor::new(dims, (0..n).map(|i| (i as f32 * step).sin()).collect())
        };
        let (k, ints64) = (self.kernel as i64, |x: &[usize]| {
            x.iter().map(|x| *x as i64).collect::<Vec<i64>>()
        });
        let dims = [1, self.inputs, self.size, self.size + 3];
        let mut b = Builder::new(13);
        let x = b.input("x", DType::Float, &dims);
        let weight = wave(
            &[self.outputs, self.inputs / self.group, self.kernel, self.kernel],
            0.77,
        );
        let bias = wave(&[self.outputs], 1.3);
        let mut inputs = vec![x, b.constant("w", weight.clone())];
        if self.bias {
            inputs.push(b.constant("b", bias.clone()));
        }
        let attrs = vec![
            Attr::int("group", self.group as i64),
            Attr::ints("kernel_shape", vec![k, k]),
            Attr::ints("strides", vec![self.stride as i64; 2]),
            Attr::ints("pads", ints64(&self.pads)),
        ];
        let y = b.op("Conv", &inputs, attrs);
        let z = b.op("Relu", &[y], vec![]);
        let x = wave(&dims, 0.31);
        let s = sample(&[("x", x.clone())]);
        let got = floats(&run(&b, &[z], &s)[0]);
        let biases = if self.bias { floats(&bias) } else { Vec::new() };
        let plain = self.plain(&floats(&x), &floats(&weight), &biases);
        assert_eq!(got.len(), plain.len());
        for (got, plain) in got.iter().zip(&plain) {
            let terms = (self.inputs / self.group * self.kernel * self.kernel) as f32;
            assert!((got - plain.max(0.0)).abs() < 2e-6 * terms + 1e-6, "{got} {plain}");
        }
        self.check_steps(&mut b, z, &s);
        operators(&b.model, &[z], &s)
    }

    /// With steps of a quantization behind, it gives what it gives when somebody else reads what is before them.
    fn check_steps(&self, b: &mut Builder, z: ValueId, s: &Sample) {
        let (q, [scale, zero]) = quantize(b, z, Tensor::new(&[], vec![0.03f32]), Tensor::new(&[], vec![17u8]), 1);
        let d = b.op("DequantizeLinear", &[q, scale, zero], vec![]);
        let alone = operators(&b.model, &[d], s);
        let bare = |op: &String| ["Max", "Relu"].contains(&op.as_str()) || op.contains("Fake");
        assert!(!alone.iter().any(bare), "{alone:?}");
        let both = operators(&b.model, &[z, d], s);
        assert!(both.iter().any(bare), "{both:?}");
        assert_eq!(floats(&run(b, &[d], s)[0]), floats(&run(b, &[z, d], s)[1]));
    }
}

#[test]
fn windows_of_any_kind_are_products_of_matrices() {
    for (kernel, stride, group, inputs, outputs) in [
        (1, 1, 1, 8, 6),
        (1, 2, 1, 8, 6),
        (3, 2, 1, 5, 3),
        (5, 1, 2, 6, 10),
        (7, 2, 1, 3, 16),
    ] {
        let case = Case {
            inputs,
            outputs,
            group,
            size: 15,
            kernel,
            stride,
            pads: [kernel / 2; 4],
            bias: inputs > 4,
        };
        let ran = case.check();
        let own = if kernel == 1 { "OwnProduct" } else { "OwnColumns" };
        assert!(ran.iter().any(|op| op == own), "{ran:?}");
    }
}

#[test]
fn windows_of_three_by_three_are_filtered_and_give_the_same() {
    for (size, pads, bias) in [(16, [1, 1, 1, 1], true), (13, [0, 2, 1, 0], false)] {
        let case = Case {
            inputs: 32,
            outputs: 40,
            group: 1,
            size,
            kernel: 3,
            stride: 1,
            pads,
            bias,
        };
        let ran = case.check();
        assert!(ran.iter().any(|op| op == "OwnWinograd"), "{ran:?}");
        let strided = Case { stride: 2, ..case };
        let ran = strided.check();
        assert!(!ran.iter().any(|op| op == "OwnWinograd"), "{ran:?}");
    }
}

#[test]
fn filters_of_one_channel_each_give_the_same() {
    for (kernel, stride, pads, bias) in [
        (3, 1, [1; 4], true),
        (5, 2, [2, 1, 2, 3], true),
        (3, 2, [0, 0, 1, 1], false),
    ] {
        let case = Case {
            inputs: 12,
            outputs: 12,
            group: 12,
            size: 15,
            kernel,
            stride,
            pads,
            bias,
        };
        let ran = case.check();
        assert!(ran.iter().any(|op| op == "OwnDepthWise"), "{ran:?}");
    }
}
