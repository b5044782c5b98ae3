//! Pooling.

use super::call::Call;
use super::conv::Window;
use super::fact::{Dim, Fact, show};
use super::{Elem, Table};
use crate::ir::DType;
use anyhow::{Result, ensure};

pub(super) const TABLE: Table = &[
    ("AveragePool", pool),
    ("GlobalAveragePool", global),
    ("GlobalLpPool", global),
    ("GlobalMaxPool", global),
    ("LpPool", pool),
    ("MaxPool", pool),
    ("MaxRoiPool", roi_pool),
    ("MaxUnpool", unpool),
    ("RoiAlign", roi_align),
];

/// [N, C, d…] → [N, C, o…]; `MaxPool` also gives the indices.
pub(super) fn pool(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(c.dtype(0), None), Fact::new(Some(DType::Int64), None)]);
    };
    ensure!(x.len() >= 2, "the input of pooling is {}", show(x));
    let window = Window::read(c, x.len() - 2, vec![Dim::Unknown; x.len() - 2])?;
    let mut out = x[..2].to_vec();
    out.extend(x[2..].iter().enumerate().map(|(axis, d)| window.slide(d, axis)));
    Ok(vec![
        Fact::new(c.dtype(0), Some(out.clone())),
        Fact::new(Some(DType::Int64), Some(out)),
    ])
}

/// [N, C, d…] → [N, C, 1…].
pub(super) fn global(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    ensure!(x.len() >= 2, "the input of pooling is {}", show(x));
    let mut out = x[..2].to_vec();
    out.resize(x.len(), Dim::Known(1));
    Ok(vec![Fact::new(c.dtype(0), Some(out))])
}

/// The inverse of `MaxPool`: `(in − 1)·stride + kernel − pads`, unless `output_shape` is given.
fn unpool(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    ensure!(x.len() >= 2, "the input of pooling is {}", show(x));
    if c.has(2) {
        let out = c.elems(2).map(|e| e.iter().map(Elem::dim).collect());
        return Ok(vec![Fact::new(c.dtype(0), out.or(Some(vec![Dim::Unknown; x.len()])))]);
    }
    let axes = x.len() - 2;
    let w = Window::read(c, axes, vec![Dim::Unknown; axes])?;
    let mut out = x[..2].to_vec();
    out.extend(x[2..].iter().enumerate().map(|(i, d)| {
        d.map(|n| {
            let grown = i64::try_from(n).ok()?.checked_sub(1)?.checked_mul(w.strides[i])?;
            let full = grown.checked_add(i64::try_from(w.kernel[i].known()?).ok()?)?;
            usize::try_from(full.checked_sub(w.pads[i])?.checked_sub(w.pads[i + axes])?).ok()
        })
    }));
    Ok(vec![Fact::new(c.dtype(0), Some(out))])
}

fn size(n: i64) -> Dim {
    usize::try_from(n).map_or(Dim::Unknown, Dim::Known)
}

/// X: [N, C, H, W], regions: [R, …] → [R, C, h, w].
fn regions(c: &Call, h: i64, w: i64) -> Result<Vec<Fact>> {
    c.want_rank(0, 4)?;
    let channels = c.shape(0).map_or(Dim::Unknown, |x| x[1].clone());
    let count = c.shape(1).and_then(|r| r.first()).cloned().unwrap_or_default();
    Ok(vec![Fact::new(
        c.dtype(0),
        Some(vec![count, channels, size(h), size(w)]),
    )])
}

fn roi_pool(c: &Call) -> Result<Vec<Fact>> {
    match c.node.ints("pooled_shape") {
        Some(&[h, w]) => regions(c, h, w),
        _ => Ok(vec![Fact::new(c.dtype(0), None)]),
    }
}

fn roi_align(c: &Call) -> Result<Vec<Fact>> {
    regions(c, c.int_or("output_height", 1), c.int_or("output_width", 1))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, f};
    use crate::ir::Attr;

    fn pool(x: &str, k: i64, s: i64, pads: [i64; 2], ceil: i64) -> String {
        let attrs = vec![
            Attr::ints("kernel_shape", vec![k]),
            Attr::ints("strides", vec![s]),
            Attr::ints("pads", pads.to_vec()),
            Attr::int("ceil_mode", ceil),
        ];
        dims("MaxPool", 12, attrs, &[f(x)])
    }

    #[test]
    fn ceil_mode_adds_a_window_unless_it_starts_in_the_padding() {
        assert_eq!(pool("1, 1, 6", 3, 2, [0, 0], 0), "[1, 1, 2]");
        assert_eq!(pool("1, 1, 6", 3, 2, [0, 0], 1), "[1, 1, 3]");
        assert_eq!(
            pool("1, 1, 2", 1, 2, [0, 0], 1),
            "[1, 1, 1]",
            "the second window would start at 2"
        );
    }

    #[test]
    fn global_pooling_leaves_ones() {
        assert_eq!(
            dims("GlobalAveragePool", 1, vec![], &[f("N, 64, H, W")]),
            "[N, 64, 1, 1]"
        );
    }
}
