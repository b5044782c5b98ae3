//! GridSample of images: `y[n, c, p] = Σₖ wₖ(p) · x[n, c, at k(p)]`, where a grid says for every point p between which pixels it lies.
//!
//! tract's finds pixels and weights anew for every channel, and allocates for every pixel: half of the time of a detector with deformable attention. Here they are found once for
//! a point, and rounded as there.

use super::kernel::Kernel;
use tract_onnx::tract_core::ops::nn::{GridSample, InterpolationMode, PaddingMode};
use tract_onnx::tract_hir::internal::*;

/// GridSample, bilinear or nearest, of `x` `[images, channels, height, width]` at `grid` `[images, rows, columns, 2]`, coordinates (horizontal first) from -1
/// to 1; both f32.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grid {
    op: GridSample,
    /// Height and width of an image.
    size: [usize; 2],
    shape: TVec<usize>,
}

/// Pixels and their weights.
type Between = [Option<(usize, f32)>; 4];

impl Grid {
    /// That of an operator of tract's, if it is one.
    pub fn of(op: &GridSample, inputs: &[&TypedFact]) -> Option<Grid> {
        let [x, grid] = inputs else { return None };
        let floats = [x, grid].iter().all(|f| f.datum_type == f32::datum_type());
        let (x, grid) = (x.shape.as_concrete()?, grid.shape.as_concrete()?);
        let known = floats && op.mode != InterpolationMode::Bicubic;
        match (x, grid) {
            ([n, c, h, w], [m, rows, columns, 2]) if known && n == m && h * w > 0 => Some(Grid {
                op: op.clone(),
                size: [*h, *w],
                shape: tvec![*n, *c, *rows, *columns],
            }),
            _ => None,
        }
    }

    /// A coordinate in pixels.
    fn pixels(&self, at: f32, size: usize) -> f32 {
        let size = size as f32;
        match self.op.align_corners {
            true => (at + 1.0) / 2.0 * (size - 1.0),
            false => ((at + 1.0) * size - 1.0) / 2.0,
        }
    }

    /// The edges of an image in pixels.
    fn edges(&self, size: usize) -> [f32; 2] {
        match self.op.align_corners {
            true => [0.0, size as f32 - 1.0],
            false => [-0.5, size as f32 - 0.5],
        }
    }

    /// A coordinate beyond the edges, brought back.
    fn back(&self, at: f32, size: usize) -> f32 {
        let [low, high] = self.edges(size);
        match self.op.padding_mode {
            PaddingMode::Zeros => at,
            PaddingMode::Border => at.clamp(0.0, high + low),
            PaddingMode::Reflection => reflected(at, [low, high]),
        }
    }

    /// The number of a pixel in its row or column; none where there are zeros.
    fn pixel(&self, at: isize, size: usize) -> Option<usize> {
        match self.op.padding_mode {
            PaddingMode::Zeros => usize::try_from(at).ok().filter(|i| *i < size),
            PaddingMode::Border => Some((at.max(0) as usize).min(size - 1)),
            PaddingMode::Reflection => Some((reflected(at as f32, self.edges(size)) as usize).min(size - 1)),
        }
    }

    /// The pixels that a point lies between.
    fn between(&self, point: &[f32]) -> Between {
        let [height, width] = self.size;
        let sizes = [width, height];
        let nearest = self.op.mode == InterpolationMode::Nearest;
        let mut at = [0, 1].map(|d| self.pixels(point[d], sizes[d]));
        if nearest {
            at = at.map(f32::round_ties_even);
        }
        let outside = |d: usize| {
            let [low, high] = self.edges(sizes[d]);
            at[d] < low || at[d] > high
        };
        if outside(0) || outside(1) {
            at = [0, 1].map(|d| self.back(at[d], sizes[d]));
        }
        let whole = at.map(|x| if nearest { x as isize } else { x.floor() as isize });
        let offset = |step: [isize; 2]| {
            let row = self.pixel(whole[1].saturating_add(step[1]), height)?;
            Some(row * width + self.pixel(whole[0].saturating_add(step[0]), width)?)
        };
        if nearest {
            return [offset([0, 0]).map(|i| (i, 1.0)), None, None, None];
        }
        [[0, 0], [1, 0], [0, 1], [1, 1]].map(|step| {
            let weight = |d: usize| match step[d] {
                0 => (whole[d].saturating_add(1)) as f32 - at[d],
                _ => at[d] - whole[d] as f32,
            };
            Some((offset(step)?, weight(0) * weight(1)))
        })
    }
}

/// A coordinate mirrored at the edges until it lies between them.
fn reflected(at: f32, [low, high]: [f32; 2]) -> f32 {
    let range = high - low;
    let (beyond, from, step) = match at {
        _ if range == 0.0 => return low,
        at if at < low => (low - at, low, 1.0),
        at if at > high => (at - high, high, -1.0),
        at => return at,
    };
    let times = (beyond / range) as i32;
    let rest = beyond - times as f32 * range;
    match times % 2 {
        0 => from + step * rest,
        _ => from + step * (range - rest),
    }
}

impl Kernel for Grid {
    const NAME: &'static str = "GridSample by points";

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn compute(&self, inputs: &[&[f32]], out: &mut [f32]) -> TractResult<()> {
        let [x, grid] = inputs else {
            bail!("{} inputs", inputs.len())
        };
        let [images, channels, rows, columns] = self.shape[..] else {
            bail!("{:?}", self.shape)
        };
        let (points, pixels) = (rows * columns, self.size[0] * self.size[1]);
        ensure!(
            x.len() == images * channels * pixels && grid.len() == images * points * 2,
            "other sizes"
        );
        for image in 0..images {
            let grid = &grid[image * points * 2..][..points * 2];
            let between: Vec<Between> = grid.chunks_exact(2).map(|p| self.between(p)).collect();
            for c in image * channels..(image + 1) * channels {
                let x = &x[c * pixels..][..pixels];
                let y = &mut out[c * points..][..points];
                for (y, between) in y.iter_mut().zip(&between) {
                    *y = between.iter().flatten().fold(0.0, |sum, (i, w)| sum + w * x[*i]);
                }
            }
        }
        Ok(())
    }
}
