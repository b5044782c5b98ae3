//! Images of 8-bit channels in other sizes: every output pixel is a weighted mean of the input pixels below it.
//!
//! The filter is as wide as the step between output pixels when the image shrinks (antialiasing), and as wide as a pixel when it grows; axis
//! after axis, horizontal first. Weights are rounded to 22 bits and results to 8 bits after either axis, as Pillow does
//! (`Image.resize`, and with it torchvision for PIL images): the same bytes come out as of versions 3 to 12. Version 13 goes down before it goes
//! across where the height shrinks more, which moves single results by 1.

/// How pixels are weighted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// A triangle.
    Bilinear,
    /// Keys 1981, a = -1/2.
    Bicubic,
    /// A windowed sinc, three lobes.
    Lanczos,
}

impl Filter {
    /// Pixels to either side that have weight, at a scale of 1.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| match x == 0.0 {
            true => 1.0,
            false => (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI),
        };
        let a = -0.5;
        let d = x.abs();
        match self {
            Filter::Nearest => 1.0,
            Filter::Bilinear => (1.0 - d).max(0.0),
            Filter::Bicubic if d < 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
            Filter::Bicubic if d < 2.0 => (((d - 5.0) * d + 8.0) * d - 4.0) * a,
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Bicubic | Filter::Lanczos => 0.0,
        }
    }
}

/// An image: rows of pixels, channels interleaved.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Numbers in a pixel.
    pub channels: usize,
    /// `height · width · channels` numbers.
    pub data: Vec<u8>,
}

const BITS: u32 = 22;

/// The input pixels of an output pixel: the first, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let wide = scale.max(1.0);
    let support = filter.support() * wide;
    if filter == Filter::Nearest {
        // Added up, as Pillow does: where a centre lies between two pixels, its rounding decides.
        let centers = std::iter::successors(Some(scale * 0.5), |c| Some(c + scale));
        let one = |center: f64| Taps {
            first: (center as usize).min(from - 1),
            weights: vec![1 << BITS],
        };
        return centers.take(to).map(one).collect();
    }
    let at = |k: usize| {
        let center = (k as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|i| filter.weight((i as f64 - center + 0.5) / wide))
            .collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |w: &f64| {
            let w = w / sum * f64::from(1 << BITS);
            (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32
        };
        Taps {
            first,
            weights: weights.iter().map(fixed).collect(),
        }
    };
    (0..to).map(at).collect()
}

/// The weighted mean of every `stride`-th number, from `at` on.
fn mean(data: &[u8], at: usize, stride: usize, weights: &[i32]) -> u8 {
    let products = weights
        .iter()
        .enumerate()
        .map(|(i, w)| i64::from(data[at + i * stride]) * i64::from(*w));
    let sum = (1i64 << (BITS - 1)) + products.sum::<i64>();
    (sum >> BITS).clamp(0, 255) as u8
}

/// The image in another size; neither size may be zero.
pub fn resize(image: &Pixels, width: usize, height: usize, filter: Filter) -> Pixels {
    let c = image.channels;
    let mut now = image.clone();
    if width != now.width {
        let mut data = Vec::with_capacity(now.height * width * c);
        let taps = taps(now.width, width, filter);
        for y in 0..now.height {
            let row = y * now.width * c;
            for t in &taps {
                data.extend((0..c).map(|k| mean(&now.data, row + t.first * c + k, c, &t.weights)));
            }
        }
        now = Pixels { width, data, ..now };
    }
    if height != now.height {
        let row = now.width * c;
        let mut data = Vec::with_capacity(height * row);
        for t in &taps(now.height, height, filter) {
            data.extend((0..row).map(|k| mean(&now.data, t.first * row + k, row, &t.weights)));
        }
        now = Pixels { height, data, ..now };
    }
    now
}

/// The middle of an image; when what goes is odd, the right and lower sides lose one more. No larger than the image.
pub fn crop(image: &Pixels, width: usize, height: usize) -> Pixels {
    let (width, height) = (width.min(image.width), height.min(image.height));
    let (x, y) = ((image.width - width) / 2, (image.height - height) / 2);
    let c = image.channels;
    let row = |r: usize| {
        let at = ((y + r) * image.width + x) * c;
        &image.data[at..at + width * c]
    };
    Pixels {
        width,
        height,
        channels: c,
        data: (0..height).flat_map(row).copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: usize, height: usize, channels: usize) -> Pixels {
        let n = width * height * channels;
        Pixels {
            width,
            height,
            channels,
            data: (0..n).map(|i| ((i * i * 7 + i * 13) % 251) as u8).collect(),
        }
    }

    /// Made with Pillow 13.0: the same image, `resize` along x and then along y, and this sum over the bytes.
    #[test]
    fn the_bytes_are_those_of_pillow() {
        #[rustfmt::skip]
        let known = [
            ((11, 7, 3), (4, 3), Filter::Nearest, 85768),
            ((11, 7, 3), (4, 3), Filter::Bilinear, 83857),
            ((11, 7, 3), (4, 3), Filter::Bicubic, 84047),
            ((11, 7, 3), (4, 3), Filter::Lanczos, 84258),
            ((5, 6, 1), (9, 4), Filter::Nearest, 89586),
            ((5, 6, 1), (9, 4), Filter::Bilinear, 90857),
            ((5, 6, 1), (9, 4), Filter::Bicubic, 90676),
            ((5, 6, 1), (9, 4), Filter::Lanczos, 90684),
            ((300, 200, 3), (224, 224), Filter::Nearest, 89610836732),
            ((300, 200, 3), (224, 224), Filter::Bilinear, 89582367799),
            ((300, 200, 3), (224, 224), Filter::Bicubic, 89580094914),
            ((300, 200, 3), (224, 224), Filter::Lanczos, 89622952624),
            ((64, 48, 3), (100, 31), Filter::Nearest, 5203464821),
            ((64, 48, 3), (100, 31), Filter::Bilinear, 5194702373),
            ((64, 48, 3), (100, 31), Filter::Bicubic, 5196278131),
            ((64, 48, 3), (100, 31), Filter::Lanczos, 5201992291),
            ((7, 5, 1), (7, 9), Filter::Nearest, 237568),
            ((7, 5, 1), (7, 9), Filter::Bilinear, 238336),
            ((7, 5, 1), (7, 9), Filter::Bicubic, 238848),
            ((7, 5, 1), (7, 9), Filter::Lanczos, 238976),
        ];
        for ((w, h, c), (to_w, to_h), filter, sum) in known {
            let small = resize(&image(w, h, c), to_w, to_h, filter);
            let bytes = small.data.iter().enumerate();
            let have: u64 = bytes.map(|(i, x)| (i as u64 % 9973 + 1) * u64::from(*x)).sum();
            assert_eq!(have, sum, "{w}×{h}×{c} → {to_w}×{to_h} {filter:?}");
        }
        let small = resize(&image(5, 4, 1), 3, 2, Filter::Bilinear);
        assert_eq!(small.data, [98, 103, 122, 135, 191, 95]);
    }

    #[test]
    fn the_middle_is_cut_out() {
        let cut = crop(&image(5, 4, 1), 2, 2);
        assert_eq!(cut.data, [79, 183, 237, 160]);
        assert_eq!(crop(&cut, 9, 9), cut);
    }
}
