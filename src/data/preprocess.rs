//! How a photo becomes an input, in one line: `resize 256, crop 224, scale 1/255, mean 0.485 0.456 0.406, std 0.229 0.224 0.225`.
//!
//! Steps are separated by commas and done from left to right on pixels from 0 to 255: what changes the size first, then the order of
//! channels, then the numbers. So `mean` and `std` count in 0..1 behind a `scale 1/255`, in 0..255 without, and in the order of channels
//! that stands before them. [`STEPS`] is the list of steps.

use crate::math::resample::Filter;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::fmt;
use std::str::FromStr;

/// The steps, for help and documentation: how each is written, and what it does.
pub const STEPS: &[(&str, &str)] = &[
    (
        "resize 256",
        "the short side becomes 256 pixels, the long side keeps the proportion, rounded down (torchvision's `Resize`)",
    ),
    ("resize 224x192", "width and height, whatever the proportion was"),
    (
        "resize 256 bicubic",
        "with another filter: `nearest`, `bilinear` (the default), `bicubic` or `lanczos`; all but nearest are antialiased, as in Pillow and torchvision",
    ),
    ("crop 224", "the middle, 224 pixels wide and high; also `crop 224x192`"),
    (
        "crop 87.5%",
        "the middle, a square of this part of the short side (EfficientNet: `crop 87.5%, resize 224x224 bicubic`)",
    ),
    ("rgb", "red, green, blue: the default for inputs with three channels"),
    ("bgr", "blue, green, red"),
    (
        "grey",
        "one channel, 0.299 R + 0.587 G + 0.114 B: the default for inputs with one channel",
    ),
    ("scale 1/255", "multiplies by a number or a fraction"),
    (
        "mean 0.485 0.456 0.406",
        "is subtracted: one number, or one for each channel in the order of channels so far",
    ),
    ("std 0.229 0.224 0.225", "divides: one number, or one for each channel"),
    (
        "nchw",
        "channels come first; without `nchw` or `nhwc` the axis of 1 or 3 of the input is taken for the channels",
    ),
    ("nhwc", "channels come last"),
];

/// What may be resized to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// The short side; of a crop, both.
    Short(usize),
    /// Width and height.
    Exact(usize, usize),
    /// A square of this part of the short side.
    Part(f64),
}

/// A step that changes the size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// To another size.
    Resize(Size, Filter),
    /// The middle.
    Crop(Size),
}

/// Which channels, in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One channel.
    Grey,
}

/// Where the channels lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Channels first.
    Nchw,
    /// Channels last.
    Nhwc,
}

/// A step that changes numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Arithmetic {
    /// Times the first, over the second.
    Scale(f32, f32),
    /// Minus one number, or one for each channel.
    Mean(Vec<f32>),
    /// Over one number, or one for each channel.
    Std(Vec<f32>),
}

/// The line; what it leaves open follows from the input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preprocess {
    /// Steps that change the size, in order.
    pub steps: Vec<Step>,
    /// Which channels.
    pub color: Option<Color>,
    /// Steps that change numbers, in order.
    pub arithmetic: Vec<Arithmetic>,
    /// Where the channels lie.
    pub layout: Option<Layout>,
}

/// Sides of more pixels are not made.
const MOST: usize = 16_384;

impl FromStr for Preprocess {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Preprocess> {
        let mut line = Preprocess::default();
        for step in text.split(',').map(str::trim).filter(|s| !s.is_empty()) {
            line.add(step).map_err(|e| anyhow!("preprocess step {step:?}: {e:#}"))?; // one line: clap shows no causes
        }
        line.check()?;
        Ok(line)
    }
}

impl Preprocess {
    /// True when it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Preprocess::default()
    }

    fn add(&mut self, step: &str) -> Result<()> {
        let mut words = step.split_whitespace();
        let (word, rest) = (words.next().unwrap_or_default(), words.collect::<Vec<&str>>());
        let alone = || -> Result<()> {
            ensure!(rest.is_empty(), "nothing may stand behind {word}");
            Ok(())
        };
        match word {
            "resize" | "crop" => {
                let early = self.arithmetic.is_empty() && self.color.is_none();
                ensure!(
                    early,
                    "sizes change before channels and numbers do: write it further to the left"
                );
                self.steps.push(sized(word, &rest)?);
            }
            "rgb" | "bgr" | "grey" | "gray" => {
                alone()?;
                ensure!(
                    self.arithmetic.is_empty() && self.color.is_none(),
                    "give rgb, bgr or grey once, before scale, mean and std"
                );
                self.color = Some(match word {
                    "rgb" => Color::Rgb,
                    "bgr" => Color::Bgr,
                    _ => Color::Grey,
                });
            }
            "scale" => {
                let [factor] = rest[..] else {
                    bail!("write scale 1/255 or scale 2")
                };
                let (over, under) = factor.split_once('/').unwrap_or((factor, "1"));
                let (over, under) = (number(over)?, number(under)?);
                ensure!(over != 0.0 && under != 0.0, "0 leaves nothing of the image");
                self.arithmetic.push(Arithmetic::Scale(over, under));
            }
            "mean" => self.arithmetic.push(Arithmetic::Mean(numbers(&rest)?)),
            "std" => {
                let by = numbers(&rest)?;
                ensure!(by.iter().all(|x| *x > 0.0), "give numbers above 0");
                self.arithmetic.push(Arithmetic::Std(by));
            }
            "nchw" | "nhwc" => {
                alone()?;
                ensure!(self.layout.is_none(), "give nchw or nhwc once");
                self.layout = Some(if word == "nchw" { Layout::Nchw } else { Layout::Nhwc });
            }
            _ => {
                let known: Vec<&str> = STEPS.iter().map(|(s, _)| *s).collect();
                bail!("there is no such step; there are: {}", known.join(", "));
            }
        }
        Ok(())
    }

    /// Means for pixels from 0 to 1 and pixels from 0 to 255 are the mistake that everybody makes once.
    fn check(&self) -> Result<()> {
        let first = self.arithmetic.iter().find_map(|a| match a {
            Arithmetic::Scale(..) => Some(None),
            Arithmetic::Mean(m) => Some(Some(m)),
            Arithmetic::Std(_) => None,
        });
        if let Some(Some(mean)) = first {
            let fraction = mean.iter().all(|m| (0.0..=1.0).contains(m)) && mean.iter().any(|m| *m > 0.0);
            ensure!(
                !fraction,
                "preprocess: a mean of {} is meant for pixels from 0 to 1, and pixels are from 0 to 255 here: write `scale 1/255` before it \
                 (or `scale 1` when it is right as it is)",
                spelled(mean)
            );
        }
        Ok(())
    }
}

fn number(text: &str) -> Result<f32> {
    let x: f32 = text
        .trim()
        .parse()
        .with_context(|| format!("{text:?} is not a number"))?;
    ensure!(x.is_finite(), "{text:?} is not a number");
    Ok(x)
}

fn numbers(words: &[&str]) -> Result<Vec<f32>> {
    ensure!(
        matches!(words.len(), 1 | 3),
        "give one number, or three with spaces between them"
    );
    words.iter().map(|w| number(w)).collect()
}

fn sized(word: &str, rest: &[&str]) -> Result<Step> {
    let [size, filter @ ..] = rest else {
        bail!("say the size: {word} 224, or {word} 224x192")
    };
    let side = |text: &str| -> Result<usize> {
        let n: usize = text
            .parse()
            .with_context(|| format!("{text:?} is not a number of pixels"))?;
        ensure!((1..=MOST).contains(&n), "{n} pixels: give 1 to {MOST}");
        Ok(n)
    };
    let size = match (size.split_once('x'), size.strip_suffix('%')) {
        (_, Some(part)) if word == "crop" => {
            let part = part.parse::<f64>().unwrap_or(f64::NAN) / 100.0;
            ensure!(part > 0.0 && part <= 1.0, "give a part above 0% and up to 100%");
            Size::Part(part)
        }
        (Some((w, h)), _) => Size::Exact(side(w)?, side(h)?),
        _ => Size::Short(side(size)?),
    };
    if word == "crop" {
        ensure!(filter.is_empty(), "nothing may stand behind the size");
        return Ok(Step::Crop(size));
    }
    let filter = match filter {
        [] | ["bilinear"] => Filter::Bilinear,
        ["nearest"] => Filter::Nearest,
        ["bicubic"] => Filter::Bicubic,
        ["lanczos"] => Filter::Lanczos,
        _ => bail!("behind the size may stand nearest, bilinear, bicubic or lanczos"),
    };
    Ok(Step::Resize(size, filter))
}

fn spelled(numbers: &[f32]) -> String {
    numbers.iter().map(f32::to_string).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Short(n) => write!(f, "{n}"),
            Size::Exact(w, h) => write!(f, "{w}x{h}"),
            Size::Part(p) => write!(f, "{}%", p * 100.0),
        }
    }
}

impl fmt::Display for Preprocess {
    /// As it is read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps = Vec::new();
        for step in &self.steps {
            steps.push(match step {
                Step::Resize(size, Filter::Bilinear) => format!("resize {size}"),
                Step::Resize(size, filter) => format!("resize {size} {}", format!("{filter:?}").to_lowercase()),
                Step::Crop(size) => format!("crop {size}"),
            });
        }
        steps.extend(self.color.map(|c| format!("{c:?}").to_lowercase()));
        for a in &self.arithmetic {
            steps.push(match a {
                Arithmetic::Scale(x, 1.0) => format!("scale {x}"),
                Arithmetic::Scale(x, y) => format!("scale {x}/{y}"),
                Arithmetic::Mean(m) => format!("mean {}", spelled(m)),
                Arithmetic::Std(s) => format!("std {}", spelled(s)),
            });
        }
        steps.extend(self.layout.map(|l| format!("{l:?}").to_lowercase()));
        f.write_str(&steps.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_written_alike() {
        for line in [
            "",
            "resize 256, crop 224, rgb, scale 1/255, mean 0.485 0.456 0.406, std 0.229 0.224 0.225, nchw",
            "crop 87.5%, resize 224x224 bicubic, mean 127, std 128, nhwc",
            "resize 256 lanczos, bgr, mean 103.939 116.779 123.68",
            "grey, scale 0.5",
        ] {
            let read: Preprocess = line.parse().expect(line);
            assert_eq!(read.to_string(), line);
        }
        for step in STEPS {
            assert!(
                step.0.parse::<Preprocess>().is_ok() || step.0.starts_with("mean"),
                "{step:?}"
            );
        }
    }

    #[test]
    fn a_wrong_line_says_the_way_out() {
        for (line, word) in [
            ("resize", "say the size"),
            ("resize 0", "give 1 to"),
            ("resize 224 cubic", "bicubic"),
            ("crop 120%", "up to 100%"),
            ("crop nan%", "up to 100%"),
            ("rotate 90", "there are: resize 256"),
            ("mean 0.485 0.456 0.406", "scale 1/255"),
            ("mean 1 2", "one number, or three"),
            ("std 0", "above 0"),
            ("scale 1/0", "leaves nothing"),
            ("scale inf", "not a number"),
            ("mean 127, bgr", "before scale"),
            ("rgb, resize 3", "further to the left"),
            ("nchw, nhwc", "once"),
            ("rgb 3", "nothing may stand"),
        ] {
            let error = line.parse::<Preprocess>().expect_err(line);
            assert!(format!("{error:#}").contains(word), "{line}: {error:#}");
        }
    }
}
