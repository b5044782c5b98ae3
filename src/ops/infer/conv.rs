//! Convolutions, and the arithmetic of sliding windows that they share with pooling.

use super::Table;
use super::call::{Call, agree};
use super::fact::{Dim, Fact, MAX_RANK, show};
use crate::ir::DType;
use anyhow::{Result, ensure};

pub(super) const MICROSOFT: Table = &[("FusedConv", |c| conv(c, 0, 1, Some(2), c.dtype(0).or(c.dtype(1))))];

pub(super) const TABLE: Table = &[
    ("CausalConvWithState", causal),
    ("Conv", |c| conv(c, 0, 1, Some(2), c.dtype(0).or(c.dtype(1)))),
    ("ConvInteger", |c| conv(c, 0, 1, None, Some(DType::Int32))),
    ("ConvTranspose", transpose),
    ("DeformConv", |c| conv(c, 0, 1, Some(3), c.dtype(0).or(c.dtype(1)))),
    ("QLinearConv", |c| conv(c, 0, 3, Some(8), c.dtype(7))),
    ("Col2Im", col2im),
];

/// How a window slides over the spatial axes: all lists have one entry for every axis (`pads`: begins, then ends).
pub(super) struct Window {
    pub kernel: Vec<Dim>,
    pub strides: Vec<i64>,
    pub dilations: Vec<i64>,
    pub pads: Vec<i64>,
    pub auto_pad: AutoPad,
    pub ceil: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AutoPad {
    Explicit,
    Same,
    Valid,
}

impl Window {
    /// Reads the attributes for so many spatial axes; `kernel` is used when there is no `kernel_shape`.
    ///
    /// # Errors
    /// When a list has another length, or a stride, dilation or kernel size is not positive.
    pub(super) fn read(c: &Call, axes: usize, kernel: Vec<Dim>) -> Result<Window> {
        let list = |name: &str, len: usize, default: i64| -> Result<Vec<i64>> {
            let v = match c.node.ints(name) {
                Some(v) if !v.is_empty() => v.to_vec(),
                _ => vec![default; len],
            };
            ensure!(v.len() == len, "{name} has {} entries for {axes} spatial axes", v.len());
            Ok(v)
        };
        let kernel = match c.node.ints("kernel_shape") {
            Some(k) if !k.is_empty() => {
                ensure!(
                    k.len() == axes,
                    "kernel_shape has {} entries for {axes} spatial axes",
                    k.len()
                );
                ensure!(k.iter().all(|&k| k > 0), "kernel_shape {k:?} is not positive");
                k.iter()
                    .map(|&k| usize::try_from(k).map_or(Dim::Unknown, Dim::Known))
                    .collect()
            }
            _ => kernel,
        };
        let strides = list("strides", axes, 1)?;
        let dilations = list("dilations", axes, 1)?;
        ensure!(strides.iter().all(|&s| s > 0), "strides {strides:?} are not positive");
        ensure!(
            dilations.iter().all(|&d| d > 0),
            "dilations {dilations:?} are not positive"
        );
        Ok(Window {
            kernel,
            strides,
            dilations,
            pads: list("pads", 2 * axes, 0)?,
            auto_pad: match c.node.string("auto_pad") {
                Some("SAME_UPPER" | "SAME_LOWER") => AutoPad::Same,
                Some("VALID") => AutoPad::Valid,
                _ => AutoPad::Explicit,
            },
            ceil: c.int_or("ceil_mode", 0) != 0,
        })
    }

    fn padding(&self, axis: usize) -> Option<(i64, i64)> {
        match self.auto_pad {
            AutoPad::Explicit => Some((self.pads[axis], self.pads[axis + self.strides.len()])),
            AutoPad::Valid => Some((0, 0)),
            AutoPad::Same => None,
        }
    }

    /// The number of positions of the window along an axis: `⌊(in + pads − ((k−1)·d + 1)) / s⌋ + 1`, rounded up with
    /// `ceil_mode` unless the last window would start in the padding; `⌈in / s⌉` with `auto_pad = SAME_*`.
    pub(super) fn slide(&self, input: &Dim, axis: usize) -> Dim {
        let s = self.strides[axis];
        let Some((begin, end)) = self.padding(axis) else {
            return if s == 1 {
                input.clone()
            } else {
                input.map(|n| Some(n.div_ceil(usize::try_from(s).ok()?)))
            };
        };
        let extent = self.extent(axis);
        if s == 1 && begin.checked_add(end) == extent.map(|e| e - 1) {
            return input.clone(); // whatever the size is
        }
        input.map(|n| {
            let padded = i64::try_from(n).ok()?.checked_add(begin)?.checked_add(end)?;
            let room = padded.checked_sub(extent?)?;
            if room < 0 {
                return None;
            }
            let mut out = room / s + 1;
            if self.ceil && room % s != 0 && out.checked_mul(s)? < i64::try_from(n).ok()?.checked_add(begin)? {
                out += 1;
            }
            usize::try_from(out).ok()
        })
    }

    /// The size of `ConvTranspose`'s output, which is the input of the convolution that it transposes.
    fn unslide(&self, input: &Dim, axis: usize, extra: i64) -> Dim {
        let s = self.strides[axis];
        let Some((begin, end)) = self.padding(axis) else {
            return input.map(|n| n.checked_mul(usize::try_from(s).ok()?));
        };
        input.map(|n| {
            let grown = i64::try_from(n).ok()?.checked_sub(1)?.checked_mul(s)?;
            let full = grown.checked_add(self.extent(axis)?)?.checked_add(extra)?;
            usize::try_from(full.checked_sub(begin)?.checked_sub(end)?).ok()
        })
    }

    fn extent(&self, axis: usize) -> Option<i64> {
        let k = i64::try_from(self.kernel[axis].known()?).ok()?;
        k.checked_sub(1)?.checked_mul(self.dilations[axis])?.checked_add(1)
    }
}

/// X: [N, C, d…], W: [M, C/group, k…] → [N, M, o…].
fn conv(c: &Call, x: usize, w: usize, bias: Option<usize>, dtype: Option<DType>) -> Result<Vec<Fact>> {
    let (xs, ws) = (c.shape(x), c.shape(w));
    let Some(rank) = xs.or(ws).map(<[Dim]>::len) else {
        return Ok(vec![Fact::new(dtype, None)]);
    };
    ensure!(rank >= 2, "the input of a convolution has {rank} dimensions");
    c.want_rank(x, rank)?;
    c.want_rank(w, rank)?;
    let kernel = ws.map_or_else(|| vec![Dim::Unknown; rank - 2], |w| w[2..].to_vec());
    let window = Window::read(c, rank - 2, kernel)?;
    let group = usize::try_from(c.int_or("group", 1)).unwrap_or(0);
    ensure!(group > 0, "group is not positive");
    let mut out = vec![Dim::Unknown; rank];
    if let Some(w) = ws {
        let want = w[1].map(|n| n.checked_mul(group));
        if let Some(x) = xs {
            agree(
                &x[1],
                &want,
                &format!("channels of the input and of weight {} in {group} groups", show(w)),
            )?;
        }
        out[1] = w[0].clone();
        if let Some(b) = bias.and_then(|b| c.shape(b)) {
            ensure!(b.len() == 1, "the bias is {}, but must have one dimension", show(b));
            agree(&b[0], &w[0], "elements of the bias and output channels")?;
        }
    }
    if let Some(x) = xs {
        out[0] = x[0].clone();
        for (axis, d) in x[2..].iter().enumerate() {
            out[axis + 2] = window.slide(d, axis);
        }
    }
    Ok(vec![Fact::new(dtype, Some(out))])
}

/// X: [N, C, d…], W: [C, M/group, k…] → [N, M, o…].
fn transpose(c: &Call) -> Result<Vec<Fact>> {
    let dtype = c.dtype(0).or(c.dtype(1));
    let (Some(x), ws) = (c.shape(0), c.shape(1)) else {
        return Ok(vec![Fact::new(dtype, None)]);
    };
    ensure!(x.len() >= 2, "the input of a convolution is {}", show(x));
    let axes = x.len() - 2;
    c.want_rank(1, x.len())?;
    let kernel = ws.map_or_else(|| vec![Dim::Unknown; axes], |w| w[2..].to_vec());
    let window = Window::read(c, axes, kernel)?;
    let mut out = vec![x[0].clone(), Dim::Unknown];
    if let Some(w) = ws {
        agree(&x[1], &w[0], "channels of the input and of the weight")?;
        let group = usize::try_from(c.int_or("group", 1)).ok();
        out[1] = w[1].map(|m| m.checked_mul(group?));
    }
    let given = c.node.ints("output_shape").filter(|s| s.len() >= axes && !s.is_empty());
    let extra = c.node.ints("output_padding").unwrap_or(&[]);
    for (axis, d) in x[2..].iter().enumerate() {
        out.push(match given {
            Some(s) => usize::try_from(s[s.len() - axes + axis]).map_or(Dim::Unknown, Dim::Known),
            None => window.unslide(d, axis, extra.get(axis).copied().unwrap_or(0)),
        });
    }
    Ok(vec![Fact::new(dtype, Some(out))])
}

/// [N, C·∏block, L], image_shape, block_shape → [N, C, image…].
fn col2im(c: &Call) -> Result<Vec<Fact>> {
    let (Some(x), Some(image)) = (c.shape(0), c.elems(1)) else {
        let axes = c.shape(1).and_then(|s| s.first()?.known()).filter(|n| *n < MAX_RANK);
        let any = axes.map(|n| vec![Dim::Unknown; n + 2]);
        return Ok(vec![Fact::new(c.dtype(0), any)]);
    };
    c.want_rank(0, 3)?;
    let block = c
        .ints(2)
        .and_then(|b| b.iter().try_fold(1i64, |n, &k| n.checked_mul(k)));
    let block = block.and_then(|b| usize::try_from(b).ok());
    let mut out = vec![x[0].clone(), x[1].map(|n| n.checked_div(block?))];
    out.extend(image.iter().map(super::Elem::dim));
    Ok(vec![Fact::new(c.dtype(0), Some(out))])
}

/// X: [N, C, L], W: [C, 1, k] → the same, and the last k − 1 columns, for the next call.
fn causal(c: &Call) -> Result<Vec<Fact>> {
    let state = match (c.shape(0), c.shape(1)) {
        (Some([n, channels, _]), Some([_, _, k])) => {
            Some(vec![n.clone(), channels.clone(), k.map(|k| k.checked_sub(1))])
        }
        _ => None,
    };
    Ok(vec![c.like(0), Fact::new(c.dtype(0), state)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, f};
    use crate::ir::Attr;

    fn conv(x: &str, w: &str, attrs: Vec<Attr>) -> String {
        dims("Conv", 11, attrs, &[f(x), f(w)])
    }

    #[test]
    fn conv_slides_with_stride_padding_and_dilation() {
        let attrs = || vec![Attr::ints("strides", vec![2, 2]), Attr::ints("pads", vec![1, 1, 1, 1])];
        assert_eq!(conv("N, 3, 224, 225", "64, 3, 3, 3", attrs()), "[N, 64, 112, 113]");
        assert_eq!(
            conv("1, 3, 10", "8, 3, 3", vec![Attr::ints("dilations", vec![4])]),
            "[1, 8, 2]"
        );
    }

    #[test]
    fn a_conv_that_keeps_the_size_keeps_an_unknown_size_by_name() {
        let attrs = vec![Attr::ints("pads", vec![1, 1, 1, 1])];
        assert_eq!(conv("N, 3, H, ?", "8, 3, 3, 3", attrs), "[N, 8, H, ?]");
        assert_eq!(conv("N, 3, H, W", "8, 3, 1, 1", vec![]), "[N, 8, H, W]");
        assert_eq!(conv("N, 3, H, W", "8, 3, 3, 3", vec![]), "[N, 8, ?, ?]");
    }

    #[test]
    fn same_padding_divides_and_rounds_up() {
        let attrs = || vec![Attr::string("auto_pad", "SAME_UPPER"), Attr::ints("strides", vec![2])];
        assert_eq!(conv("1, 3, 7", "8, 3, 3", attrs()), "[1, 8, 4]");
        assert_eq!(conv("1, 3, 8", "8, 3, 3", attrs()), "[1, 8, 4]");
    }

    #[test]
    fn channels_that_do_not_fit_are_refused() {
        assert!(conv("1, 4, 8", "8, 3, 3", vec![]).starts_with("error: channels"));
        assert_eq!(conv("1, 4, 8", "8, 2, 3", vec![Attr::int("group", 2)]), "[1, 8, 6]");
        assert_eq!(conv("1, ?, 8", "8, 3, 3", vec![]), "[1, 8, 6]");
    }

    #[test]
    fn hostile_attributes_do_no_harm() {
        assert!(conv("1, 3, 8", "8, 3, 3", vec![Attr::ints("strides", vec![0])]).starts_with("error"));
        assert!(conv("1, 3, 8", "8, 3, 3", vec![Attr::ints("pads", vec![1])]).starts_with("error"));
        assert!(conv("1, 3, 8", "8, 3, 3", vec![Attr::int("group", 0)]).starts_with("error"));
        let huge = vec![Attr::ints("dilations", vec![i64::MAX])];
        assert_eq!(conv("1, 3, 8", "8, 3, 3", huge), "[1, 8, ?]");
        assert_eq!(
            conv("1, 3, 2", "8, 3, 3", vec![]),
            "[1, 8, ?]",
            "the kernel is larger than the input"
        );
    }

    #[test]
    fn transposed_conv_undoes_the_size() {
        let attrs = vec![
            Attr::ints("strides", vec![2]),
            Attr::ints("pads", vec![1, 1]),
            Attr::ints("output_padding", vec![1]),
        ];
        assert_eq!(
            dims("ConvTranspose", 11, attrs, &[f("N, 8, 4"), f("8, 3, 3")]),
            "[N, 3, 8]"
        );
        let given = vec![Attr::ints("output_shape", vec![10]), Attr::int("group", 2)];
        assert_eq!(
            dims("ConvTranspose", 11, given, &[f("N, 8, 4"), f("8, 3, 3")]),
            "[N, 6, 10]"
        );
    }
}
