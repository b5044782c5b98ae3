//! Resampling.

use super::Table;
use super::call::{Call, axis_of};
use super::fact::{Dim, Elem, Fact, show};
use anyhow::{Result, ensure};

pub(super) const TABLE: Table = &[
    ("AffineGrid", affine_grid),
    ("GridSample", grid_sample),
    ("Resize", resize),
    ("Upsample", upsample),
];

fn scaled(d: &Dim, scale: f64) -> Dim {
    if scale == 1.0 {
        return d.clone();
    }
    d.map(|n| {
        // The factor is a `float`; engines multiply in `float` too.
        let size = (n as f32 * scale as f32).floor();
        (0.0..1e15).contains(&size).then_some(size as usize)
    })
}

/// Scales: an attribute in opset 7, an input in 9.
fn upsample(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    let scales = if c.opset < 9 {
        let a = c.node.attr("scales");
        a.map(|a| a.proto.floats.iter().map(|&f| f64::from(f)).collect())
    } else {
        c.fact(1).and_then(Fact::numbers)
    };
    Ok(vec![by_scales(c, x, scales)?])
}

fn by_scales(c: &Call, x: &[Dim], scales: Option<Vec<f64>>) -> Result<Fact> {
    let Some(scales) = scales else {
        return Ok(Fact::new(c.dtype(0), Some(vec![Dim::Unknown; x.len()])));
    };
    ensure!(scales.len() == x.len(), "{} scales for {}", scales.len(), show(x));
    let out = x.iter().zip(&scales).map(|(d, &s)| scaled(d, s)).collect();
    Ok(Fact::new(c.dtype(0), Some(out)))
}

/// X, roi, scales, sizes (opset 10: X, scales), for all axes or for `axes` (opset 18).
fn resize(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    if c.opset < 11 {
        return Ok(vec![by_scales(c, x, c.fact(1).and_then(Fact::numbers))?]);
    }
    let axes = match c.node.ints("axes") {
        Some(a) => a.iter().map(|&a| axis_of(a, x.len())).collect::<Result<Vec<usize>>>()?,
        None => (0..x.len()).collect(),
    };
    let mut out = x.to_vec();
    let unknown = |out: &mut Vec<Dim>| axes.iter().for_each(|&a| out[a] = Dim::Unknown);
    // An empty tensor stands for an input left out.
    let given = |i: usize| c.fact(i).filter(|f| f.dims().is_none_or(|d| !d.contains(&0)));
    match (given(2), given(3)) {
        (_, Some(sizes)) => match &sizes.elems {
            Some(sizes) => {
                ensure!(
                    sizes.len() == axes.len(),
                    "{} sizes for {} axes",
                    sizes.len(),
                    axes.len()
                );
                match c.node.string("keep_aspect_ratio_policy") {
                    None | Some("stretch") => axes.iter().zip(sizes).for_each(|(&a, s)| out[a] = s.dim()),
                    Some(policy) => fitted(&mut out, &axes, sizes, policy == "not_larger"),
                }
            }
            None => unknown(&mut out),
        },
        (Some(scales), None) => match scales.numbers() {
            Some(s) => {
                ensure!(s.len() == axes.len(), "{} scales for {} axes", s.len(), axes.len());
                let crop = c.node.string("coordinate_transformation_mode") == Some("tf_crop_and_resize");
                match crop {
                    true => cropped(c, x, &mut out, &axes, &s),
                    false => axes.iter().zip(&s).for_each(|(&a, &s)| out[a] = scaled(&x[a], s)),
                }
            }
            None => unknown(&mut out),
        },
        (None, None) => unknown(&mut out),
    }
    Ok(vec![Fact::new(c.dtype(0), Some(out))])
}

/// One factor for all axes, so that none becomes larger (or smaller) than asked for; rounded half up.
fn fitted(out: &mut [Dim], axes: &[usize], sizes: &[Elem], not_larger: bool) {
    let ratio = |(&a, s): (&usize, &Elem)| Some(s.number()? / out[a].known()? as f64);
    let ratios: Option<Vec<f64>> = axes.iter().zip(sizes).map(ratio).collect();
    let best = ratios.and_then(|r| {
        r.into_iter()
            .reduce(|a, b| if not_larger { a.min(b) } else { a.max(b) })
    });
    for &a in axes {
        out[a] = match best {
            Some(s) if s.is_finite() => out[a].map(|n| Some((n as f64 * s + 0.5).floor().clamp(0.0, 1e15) as usize)),
            _ => Dim::Unknown,
        };
    }
}

/// Scales count in the region: `⌊n · (end − start) · scale⌋`.
fn cropped(c: &Call, x: &[Dim], out: &mut [Dim], axes: &[usize], scales: &[f64]) {
    let roi = c.fact(1).and_then(Fact::numbers).filter(|r| r.len() == 2 * axes.len());
    for (i, (&a, &s)) in axes.iter().zip(scales).enumerate() {
        out[a] = match &roi {
            Some(r) => scaled(&x[a], (r[i + axes.len()] - r[i]) * s),
            None => Dim::Unknown,
        };
    }
}

/// theta, size [N, C, H, W] or [N, C, D, H, W] → [N, H, W, 2] or [N, D, H, W, 3].
fn affine_grid(c: &Call) -> Result<Vec<Fact>> {
    let Some(size) = c.elems(1).filter(|s| s.len() == 4 || s.len() == 5) else {
        let out = match c.shape(1) {
            Some([Dim::Known(n @ (4 | 5))]) => {
                let mut out = vec![Dim::Unknown; n - 1];
                out.push(Dim::Known(n - 2));
                Some(out)
            }
            _ => None,
        };
        return Ok(vec![Fact::new(c.dtype(0), out)]);
    };
    let mut out = vec![size[0].dim()];
    out.extend(size[2..].iter().map(Elem::dim));
    out.push(Dim::Known(size.len() - 2));
    Ok(vec![Fact::new(c.dtype(0), Some(out))])
}

/// X: [N, C, d…], grid: [N, o…, axes] → [N, C, o…].
fn grid_sample(c: &Call) -> Result<Vec<Fact>> {
    let (Some(x), Some(grid)) = (c.shape(0), c.shape(1)) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    ensure!(
        x.len() >= 3 && grid.len() == x.len(),
        "GridSample of {} at {}",
        show(x),
        show(grid)
    );
    let mut out = vec![x[0].and(&grid[0]), x[1].clone()];
    out.extend_from_slice(&grid[1..grid.len() - 1]);
    Ok(vec![Fact::new(c.dtype(0), Some(out))])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, f, floats, ints};
    use crate::ir::Attr;
    use crate::ops::infer::Fact;

    #[test]
    fn resize_takes_scales_or_sizes() {
        let none = Fact::default();
        let scales = floats(&[1.0, 1.0, 2.0, 0.5]);
        assert_eq!(
            dims("Resize", 10, vec![], &[f("N, 3, 5, 5"), scales.clone()]),
            "[N, 3, 10, 2]"
        );
        assert_eq!(
            dims("Resize", 13, vec![], &[f("N, 3, 5, 5"), none.clone(), scales]),
            "[N, 3, 10, 2]"
        );
        let sizes = ints(&[1, 3, 7, 9]);
        let x = [f("N, 3, 5, 5"), none.clone(), floats(&[]), sizes];
        assert_eq!(dims("Resize", 13, vec![], &x), "[1, 3, 7, 9]");
        let x = [f("N, 3, 5, 5"), none.clone(), none, ints(&[7, 9])];
        assert_eq!(
            dims("Resize", 18, vec![Attr::ints("axes", vec![2, 3])], &x),
            "[N, 3, 7, 9]"
        );
    }

    #[test]
    fn one_factor_for_all_axes_when_the_aspect_is_kept() {
        let x = [f("1, 1, 4, 8"), Fact::default(), Fact::default(), ints(&[6, 6])];
        let attrs = |p: &str| {
            vec![
                Attr::ints("axes", vec![2, 3]),
                Attr::string("keep_aspect_ratio_policy", p),
            ]
        };
        assert_eq!(dims("Resize", 18, attrs("not_larger"), &x), "[1, 1, 3, 6]");
        assert_eq!(dims("Resize", 18, attrs("not_smaller"), &x), "[1, 1, 6, 12]");
    }

    #[test]
    fn hostile_scales_are_unknown_sizes() {
        let scales = floats(&[f64::INFINITY, -1.0]);
        assert_eq!(dims("Upsample", 9, vec![], &[f("2, 2"), scales]), "[?, ?]");
    }
}
