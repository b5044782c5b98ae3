//! GridSample by a kernel of our own.

use super::*;

const SIZE: [usize; 2] = [5, 7];

/// A coordinate in pixels, and what is there, as ONNX has it: one number at a time.
struct Image<'a> {
    x: &'a [f32],
    padding: &'a str,
    corners: bool,
}

impl Image<'_> {
    fn edges(&self, size: usize) -> (f32, f32) {
        match self.corners {
            true => (0.0, size as f32 - 1.0),
            false => (-0.5, size as f32 - 0.5),
        }
    }

    fn pixels(&self, at: f32, size: usize) -> f32 {
        let (low, high) = self.edges(size);
        low + (at + 1.0) / 2.0 * (high - low)
    }

    /// The pixel that stands for one of this number, step by step.
    fn inside(&self, mut at: f32, size: usize) -> Option<usize> {
        let (low, high) = self.edges(size);
        match self.padding {
            "zeros" if at < 0.0 || at >= size as f32 => return None,
            "border" => at = at.clamp(0.0, size as f32 - 1.0),
            _ => {
                while at < low || at > high {
                    at = if at < low { 2.0 * low - at } else { 2.0 * high - at };
                }
            }
        }
        Some(at as usize)
    }

    fn pixel(&self, row: f32, column: f32) -> f32 {
        let at = self.inside(row, SIZE[0]).zip(self.inside(column, SIZE[1]));
        at.map_or(0.0, |(r, c)| self.x[r * SIZE[1] + c])
    }

    fn at(&self, point: &[f32], nearest: bool) -> f32 {
        let (c, r) = (self.pixels(point[0], SIZE[1]), self.pixels(point[1], SIZE[0]));
        if nearest {
            return self.pixel(r.round_ties_even(), c.round_ties_even());
        }
        let (down, right) = (r - r.floor(), c - c.floor());
        let side = |row: f32| (1.0 - right) * self.pixel(row, c.floor()) + right * self.pixel(row, c.floor() + 1.0);
        (1.0 - down) * side(r.floor()) + down * side(r.floor() + 1.0)
    }
}

/// Points in the image, beyond every edge, and far away.
fn points(n: usize) -> Vec<f32> {
    let at = |i: usize| match i % 11 {
        0 => -3.3,
        5 => 4.7,
        _ => 1.6 * (i as f32 * 1.37).sin(),
    };
    (0..2 * n).map(at).collect()
}

#[test]
fn points_of_a_grid_are_sampled_as_onnx_has_it() {
    const COUNT: usize = 24;
    let modes = ["bilinear", "nearest"].map(|mode| ["zeros", "border", "reflection"].map(|p| (mode, p)));
    for ((mode, padding), corners) in modes.into_iter().flatten().flat_map(|m| [(m, false), (m, true)]) {
        let mut b = Builder::new(16);
        let x = b.input("x", DType::Float, &[2, 3, SIZE[0], SIZE[1]]);
        let grid = b.input("grid", DType::Float, &[2, 4, COUNT / 8, 2]);
        let attrs = vec![
            Attr::string("mode", mode),
            Attr::string("padding_mode", padding),
            Attr::int("align_corners", corners.into()),
        ];
        let y = b.op("GridSample", &[x, grid], attrs);
        let pixels = SIZE[0] * SIZE[1];
        let images: Vec<f32> = (0..6 * pixels).map(|i| (i as f32 * 0.9).cos()).collect();
        let grids = points(COUNT);
        let s = sample(&[
            ("x", Tensor::new(&[2, 3, SIZE[0], SIZE[1]], images.clone())),
            ("grid", Tensor::new(&[2, 4, COUNT / 8, 2], grids.clone())),
        ]);
        let ran = operators(&b.model, &[y], &s);
        assert!(ran.iter().any(|op| op.starts_with("GridSample by")), "{ran:?}");
        let got = floats(&run(&b, &[y], &s)[0]);
        assert_eq!(got.len(), 3 * COUNT);
        for (i, got) in got.iter().enumerate() {
            let (plane, point) = (i / (COUNT / 2), i % (COUNT / 2) + i / (3 * COUNT / 2) * (COUNT / 2));
            let image = Image {
                x: &images[plane * pixels..][..pixels],
                padding,
                corners,
            };
            let want = image.at(&grids[2 * point..][..2], mode == "nearest");
            assert!(
                (got - want).abs() < 1e-4,
                "{mode} {padding} {corners} {i}: {got} {want}"
            );
        }
    }
}
