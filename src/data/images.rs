//! A folder of photos, turned into inputs by a line of steps ([`Preprocess`]).
//!
//! Files are read when they are asked for and kept as inputs up to [`KEPT`] bytes: a run reads its samples several times. A file says how
//! many pixels it has before any memory is taken for them.

use super::folder::files;
use super::preprocess::{Arithmetic, Color, Layout, Preprocess, Size, Step};
use super::{InputSpec, Sample, Source};
use crate::ir::{DType, Tensor};
use crate::math::resample::{Filter, Pixels, crop, resize};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use image::{ImageReader, Limits};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How image files end.
pub const ENDINGS: &[&str] = &["jpg", "jpeg", "png"];
/// Images of more pixels are refused.
const MOST_PIXELS: usize = 1 << 26;
/// And of more pixels in a row or column: what JPEG can have.
const MOST_SIDE: usize = 65_535;
/// Most that a decoder may take beside the pixels, bytes.
const MOST_ALLOC: u64 = 512 << 20;
/// Inputs are kept up to this many bytes.
const KEPT: usize = 512 << 20;

/// Images for a model with one input.
pub struct Images {
    files: Vec<PathBuf>,
    spec: InputSpec,
    line: Preprocess,
    /// Numbers for the 256 values of every channel.
    tables: Vec<Vec<f32>>,
    /// Pixels of the first image: they all have to be alike.
    first: OnceLock<(usize, usize)>,
    kept: Vec<OnceLock<Tensor>>,
    bytes: AtomicUsize,
}

impl Images {
    /// The images below a folder, or one image; the line is completed by what the input says.
    ///
    /// # Errors
    /// When the model has more than one input, or the line and the input do not fit.
    pub fn open(path: &Path, line: Option<&Preprocess>, specs: &[InputSpec]) -> Result<Images> {
        let files = files(path, ENDINGS)?;
        let [spec] = specs else {
            let names: Vec<&str> = specs.iter().map(|s| s.name.as_str()).collect();
            bail!(
                "{}: images serve a model with one input, this one has {}: {}",
                path.display(),
                specs.len(),
                names.join(", ")
            );
        };
        let line = complete(line, spec).with_context(|| format!("{}", path.display()))?;
        let images = Images {
            tables: tables(&line, spec.dtype)?,
            kept: files.iter().map(|_| OnceLock::new()).collect(),
            spec: spec.clone(),
            first: OnceLock::new(),
            bytes: AtomicUsize::new(0),
            files,
            line,
        };
        if !images.files.is_empty() {
            let pixels = images.pixels(0)?;
            let _ = images.first.set((pixels.width, pixels.height));
        }
        Ok(images)
    }

    /// The line, with nothing left open.
    pub fn line(&self) -> &Preprocess {
        &self.line
    }

    /// Class numbers, where every image lies in a folder below `root` that is named by one.
    pub fn labels(&self, root: &Path) -> Option<Vec<i64>> {
        let label = |f: &PathBuf| {
            let folder = f.parent().filter(|p| *p != root)?;
            folder.file_name()?.to_str()?.parse().ok()
        };
        self.files.iter().map(label).collect()
    }

    /// An image in its final size.
    fn pixels(&self, i: usize) -> Result<Pixels> {
        let file = &self.files[i];
        let grey = self.line.color == Some(Color::Grey);
        let mut now = decode(file, grey).with_context(|| format!("{}", file.display()))?;
        for step in &self.line.steps {
            now = sized(&now, step).with_context(|| format!("{}", file.display()))?;
        }
        Ok(now)
    }

    fn make(&self, i: usize) -> Result<Tensor> {
        let pixels = self.pixels(i)?;
        let (w, h) = (pixels.width, pixels.height);
        let wanted = wanted(&self.spec, self.line.layout);
        if let Some((wide, high)) = wanted
            && (wide.is_some_and(|x| x != w) || high.is_some_and(|x| x != h))
        {
            let say = |x: Option<usize>| x.map_or("any".into(), |x| x.to_string());
            let (wide, high) = (say(wide), say(high));
            bail!(
                "{} has {w}x{h} pixels at the end, but the input takes {wide}x{high}: end the sizes with crop {wide}x{high} or resize {wide}x{high}",
                self.files[i].display()
            );
        }
        let first = *self.first.get_or_init(|| (w, h));
        ensure!(
            first == (w, h),
            "{} has {w}x{h} pixels at the end, the first image {}x{}: let resize or crop make them alike",
            self.files[i].display(),
            first.0,
            first.1
        );
        self.tensor(&pixels)
    }

    fn tensor(&self, pixels: &Pixels) -> Result<Tensor> {
        let (w, h, c) = (pixels.width, pixels.height, pixels.channels);
        let at = |k: usize| {
            if self.line.color == Some(Color::Bgr) {
                c - 1 - k
            } else {
                k
            }
        };
        let codes: Vec<u8> = match self.line.layout {
            Some(Layout::Nhwc) => pixels
                .data
                .chunks_exact(c)
                .flat_map(|p| (0..c).map(move |k| p[at(k)]))
                .collect(),
            _ => (0..c)
                .flat_map(|k| pixels.data.iter().skip(at(k)).step_by(c).copied())
                .collect(),
        };
        let mut dims = match self.line.layout {
            Some(Layout::Nhwc) => vec![h, w, c],
            _ => vec![c, h, w],
        };
        let channel = |i: usize| match self.line.layout {
            Some(Layout::Nhwc) => i % c,
            _ => i / (h * w),
        };
        if self.spec.dims.as_ref().is_none_or(|d| d.len() == 4) {
            dims.insert(0, 1);
        }
        let floats = codes
            .iter()
            .enumerate()
            .map(|(i, q)| self.tables[channel(i)][usize::from(*q)]);
        Ok(match self.spec.dtype {
            DType::Uint8 => Tensor::from_raw(DType::Uint8, &dims, Bytes::from(codes))?,
            DType::Int8 => Tensor::new(&dims, floats.map(|x| x as i8).collect()),
            DType::Double => Tensor::new(&dims, floats.map(f64::from).collect()),
            DType::Float16 => Tensor::new(&dims, floats.map(half::f16::from_f32).collect()),
            _ => Tensor::new(&dims, floats.collect()),
        })
    }
}

impl Source for Images {
    fn len(&self) -> usize {
        self.files.len()
    }
    fn read(&self, i: usize) -> Result<Sample> {
        let tensor = match self.kept[i].get() {
            Some(t) => t.clone(),
            None => {
                let t = self.make(i)?;
                let before = self.bytes.fetch_add(t.byte_len(), Ordering::Relaxed);
                if before.saturating_add(t.byte_len()) <= KEPT {
                    let _ = self.kept[i].set(t.clone());
                }
                t
            }
        };
        Ok([(self.spec.name.clone(), tensor)].into())
    }
}

/// The pixels of a file, in three channels or one.
fn decode(file: &Path, grey: bool) -> Result<Pixels> {
    let open = || -> Result<_> { Ok(ImageReader::open(file)?.with_guessed_format()?) };
    let (w, h) = open()?.into_dimensions().context("not an image")?;
    let pixels = u64::from(w) * u64::from(h);
    ensure!(
        pixels > 0 && pixels <= MOST_PIXELS as u64 && w.max(h) as usize <= MOST_SIDE,
        "{w}x{h} pixels: at most {MOST_PIXELS} are read, and {MOST_SIDE} in a row"
    );
    let mut limits = Limits::default();
    limits.max_alloc = Some(MOST_ALLOC);
    let mut reader = open()?;
    reader.limits(limits);
    let rgb = reader.decode().context("not an image")?.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    let data = rgb.into_raw();
    let (channels, data) = match grey {
        false => (3, data),
        // ITU-R 601-2, in 16 bits, as Pillow has it.
        true => {
            let luma =
                |p: &[u8]| (u32::from(p[0]) * 19595 + u32::from(p[1]) * 38470 + u32::from(p[2]) * 7471 + 0x8000) >> 16;
            (1, data.chunks_exact(3).map(|p| luma(p) as u8).collect())
        }
    };
    Ok(Pixels {
        width,
        height,
        channels,
        data,
    })
}

fn sized(image: &Pixels, step: &Step) -> Result<Pixels> {
    let (w, h) = (image.width, image.height);
    let short = w.min(h);
    match *step {
        Step::Resize(size, filter) => {
            let (to_w, to_h) = match size {
                Size::Exact(w, h) => (w, h),
                Size::Short(n) => (n * w / short, n * h / short),
                Size::Part(_) => bail!("resize takes pixels"),
            };
            // Rows come first: their image is as high as the old one.
            ensure!(
                to_w.saturating_mul(to_h.max(h)) <= MOST_PIXELS,
                "{w}x{h} pixels would become {to_w}x{to_h}: at most {MOST_PIXELS} pixels are made"
            );
            Ok(resize(image, to_w, to_h, filter))
        }
        Step::Crop(size) => {
            let (to_w, to_h) = match size {
                Size::Exact(w, h) => (w, h),
                Size::Short(n) => (n, n),
                Size::Part(part) => {
                    let n = ((short as f64 * part) as usize).max(1);
                    (n, n)
                }
            };
            ensure!(
                to_w <= w && to_h <= h,
                "{w}x{h} pixels are too few for crop {to_w}x{to_h}: resize first"
            );
            Ok(crop(image, to_w, to_h))
        }
    }
}

/// Width and height that the input fixes.
fn wanted(spec: &InputSpec, layout: Option<Layout>) -> Option<(Option<usize>, Option<usize>)> {
    let dims = spec.dims.as_ref()?;
    let n = dims.len();
    (3..=4).contains(&n).then(|| match layout {
        Some(Layout::Nhwc) => (dims[n - 2], dims[n - 3]),
        _ => (dims[n - 1], dims[n - 2]),
    })
}

/// What the line leaves open, from the input.
fn complete(line: Option<&Preprocess>, spec: &InputSpec) -> Result<Preprocess> {
    let types = [
        DType::Uint8,
        DType::Int8,
        DType::Float,
        DType::Double,
        DType::Float16,
        DType::Undefined,
    ];
    let says = || format!("input {:?} is {}", spec.name, spec.describe());
    ensure!(types.contains(&spec.dtype), "{}: no image can be that", says());
    let Some(mut line) = line.cloned().or((spec.dtype == DType::Uint8).then(Preprocess::default)) else {
        bail!(
            "how do images become inputs? Say it with --preprocess (or `preprocess` in the recipe), for example \
             'resize 256, crop 224, scale 1/255, mean 0.485 0.456 0.406, std 0.229 0.224 0.225' for most models from PyTorch; {}",
            says()
        );
    };
    let dims = spec.dims.as_deref();
    if let Some(d) = dims {
        ensure!(
            (3..=4).contains(&d.len()),
            "{}: an image has three axes, and one for the batch",
            says()
        );
    }
    if line.layout.is_none() {
        let channels = |back: usize| dims.is_some_and(|d| matches!(d[d.len() - back], Some(1 | 3)));
        line.layout = Some(match (channels(3), channels(1)) {
            (true, false) => Layout::Nchw,
            (false, true) => Layout::Nhwc,
            _ => bail!(
                "{}: it does not say where the channels lie; end the preprocess line with nchw or nhwc",
                says()
            ),
        });
    }
    let back = if line.layout == Some(Layout::Nchw) { 3 } else { 1 };
    let channels = dims.and_then(|d| d[d.len() - back]);
    let color = *line.color.get_or_insert(match channels {
        Some(1) => Color::Grey,
        _ => Color::Rgb,
    });
    let have = if color == Color::Grey { 1 } else { 3 };
    ensure!(
        channels.is_none_or(|c| c == have),
        "{}: an image as {} has {have} channel(s) on that axis",
        says(),
        format!("{color:?}").to_lowercase()
    );
    if let (true, DType::Uint8, Some((Some(w), Some(h)))) =
        (line.steps.is_empty(), spec.dtype, wanted(spec, line.layout))
    {
        // Pixels as they are, in the size that the model wants: nothing else can be meant.
        line.steps.push(Step::Resize(Size::Exact(w, h), Filter::Bilinear));
    }
    Ok(line)
}

/// What the 256 values of every channel become.
fn tables(line: &Preprocess, dtype: DType) -> Result<Vec<Vec<f32>>> {
    let channels = if line.color == Some(Color::Grey) { 1 } else { 3 };
    let pick = |list: &[f32], k: usize| -> Result<f32> {
        match list {
            [one] => Ok(*one),
            all if all.len() == channels => Ok(all[k]),
            all => bail!("preprocess: {} numbers for {channels} channel(s)", all.len()),
        }
    };
    let table = |k: usize| -> Result<Vec<f32>> {
        let mut x: Vec<f32> = (0..=255u8).map(f32::from).collect();
        for step in &line.arithmetic {
            match step {
                Arithmetic::Scale(over, under) => x.iter_mut().for_each(|x| *x = *x * over / under),
                Arithmetic::Mean(m) => {
                    let m = pick(m, k)?;
                    x.iter_mut().for_each(|x| *x -= m);
                }
                Arithmetic::Std(s) => {
                    let s = pick(s, k)?;
                    x.iter_mut().for_each(|x| *x /= s);
                }
            }
        }
        let whole = |low: f32, high: f32| x.iter().all(|x| x.fract() == 0.0 && (low..=high).contains(x));
        match dtype {
            DType::Uint8 => ensure!(
                line.arithmetic.is_empty(),
                "preprocess: the input is uint8 and takes pixels as they are: leave out scale, mean and std"
            ),
            DType::Int8 => ensure!(
                whole(-128.0, 127.0),
                "preprocess: the input is int8: `mean 128` alone makes pixels fit"
            ),
            _ => {}
        }
        Ok(x)
    };
    (0..channels).map(table).collect()
}
