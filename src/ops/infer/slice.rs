//! Parts of tensors: Slice, Split, Pad and their kin.

use super::Table;
use super::call::{Call, Given, axes_of, axis_of};
use super::fact::{Dim, Elem, Fact, show};
use super::values::{gather, strides};
use anyhow::{Result, ensure};

pub(super) const TABLE: Table = &[
    ("CenterCropPad", center),
    ("Compress", compress),
    ("Pad", pad),
    ("ReverseSequence", super::norm::same),
    ("Slice", slice),
    ("Split", split),
    ("Trilu", super::norm::same),
];

/// What Slice takes along one axis.
struct Cut {
    axis: usize,
    start: Elem,
    end: Elem,
    step: Elem,
}

/// Attributes before opset 10, inputs after; `None` when the axes are not known.
fn cuts(c: &Call, rank: usize) -> Result<Option<Vec<Cut>>> {
    let list = |name: &str, slot: usize| -> Option<Vec<Elem>> {
        if c.opset < 10 {
            return c.node.ints(name).map(|v| v.iter().map(|&i| Elem::Int(i)).collect());
        }
        c.elems(slot).map(<[Elem]>::to_vec)
    };
    let axes = match c.attr_or_input("axes", 3, 10) {
        Given::Unknown => return Ok(None),
        Given::Known(axes) => axes,
        Given::Absent => {
            let n = list("starts", 1).or_else(|| list("ends", 2)).map(|s| s.len());
            let from_shape = || c.shape(1).and_then(|s| s.first()?.known());
            match n.or_else(from_shape) {
                Some(n) if n <= rank => (0..i64::try_from(n)?).collect(),
                Some(n) => anyhow::bail!("starts has {n} entries for {rank} dimensions"),
                None => return Ok(None),
            }
        }
    };
    axes_of(&axes, rank)?;
    let any = || vec![Elem::Unknown; axes.len()];
    let starts = list("starts", 1).unwrap_or_else(any);
    let ends = list("ends", 2).unwrap_or_else(any);
    let steps = match (c.opset >= 10 && c.has(4), c.elems(4)) {
        (false, _) => vec![Elem::Int(1); axes.len()],
        (true, Some(s)) => s.to_vec(),
        (true, None) => any(),
    };
    let n = axes.len();
    ensure!(
        starts.len() == n && ends.len() == n && steps.len() == n,
        "starts, ends, axes and steps differ in length"
    );
    let parts = axes.iter().zip(starts).zip(ends).zip(steps);
    parts
        .map(|(((&a, start), end), step)| {
            Ok(Cut {
                axis: axis_of(a, rank)?,
                start,
                end,
                step,
            })
        })
        .collect::<Result<Vec<Cut>>>()
        .map(Some)
}

/// The first index and the number of elements taken from an axis of `n` elements (specification of Slice-13).
fn taken(n: usize, start: i64, end: i64, step: i64) -> Option<(i64, usize)> {
    let n = i64::try_from(n).ok()?;
    let from_end = |i: i64| if i < 0 { i.saturating_add(n) } else { i };
    let (start, end) = (from_end(start), from_end(end));
    let (start, end) = if step > 0 {
        (start.clamp(0, n), end.clamp(0, n))
    } else {
        (start.clamp(0, (n - 1).max(0)), end.clamp(-1, n - 1))
    };
    let span = end.checked_sub(start)?;
    let count = if (span > 0) == (step > 0) && span != 0 && n > 0 {
        (span.unsigned_abs() - 1) / step.unsigned_abs() + 1
    } else {
        0
    };
    Some((start, usize::try_from(count).ok()?))
}

fn slice(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    let Some(cuts) = cuts(c, x.len())? else {
        return Ok(vec![Fact::new(c.dtype(0), Some(vec![Dim::Unknown; x.len()]))]);
    };
    let mut out = x.to_vec();
    let mut places: Option<Vec<(i64, i64)>> = Some(vec![(0, 1); x.len()]); // first index and step of every axis
    for cut in &cuts {
        let step = cut.step.int();
        ensure!(step != Some(0), "Slice with a step of 0");
        let numbers = (x[cut.axis].known(), cut.start.int(), cut.end.int(), step);
        let known = match numbers {
            (Some(n), Some(s), Some(e), Some(step)) => taken(n, s, e, step).map(|t| (t, step)),
            _ => None,
        };
        match known {
            Some(((start, count), step)) => {
                out[cut.axis] = Dim::Known(count);
                if let Some(p) = &mut places {
                    p[cut.axis] = (start, step);
                }
            }
            None => {
                out[cut.axis] = part(&x[cut.axis], cut);
                places = None;
            }
        }
    }
    let fact = Fact::new(c.dtype(0), Some(out));
    let elems = places.and_then(|places| {
        let (from, e) = (c.fact(0)?.dims()?, c.elems(0)?);
        let steps = strides(&from)?;
        gather(&fact.dims()?, |at| {
            let mut place = 0usize;
            for ((i, (start, step)), stride) in at.iter().zip(&places).zip(&steps) {
                let i = start.checked_add(i64::try_from(*i).ok()?.checked_mul(*step)?)?;
                place += usize::try_from(i).ok()? * stride;
            }
            e.get(place).cloned()
        })
    });
    Ok(vec![fact.with_elems(elems)])
}

/// What a cut leaves of a dimension when the numbers are not all known: all of it, or nobody knows.
fn part(d: &Dim, cut: &Cut) -> Dim {
    let far = i64::from(i32::MAX);
    let all = match (&cut.start, &cut.end, cut.step.int()) {
        (Elem::Int(0), Elem::Int(end), Some(1)) => *end >= far,
        (Elem::Int(0), end, Some(1)) => d.same(&end.dim()),
        (Elem::Int(-1), Elem::Int(end), Some(-1)) => *end <= -far,
        _ => false,
    };
    if all { d.clone() } else { Dim::Unknown }
}

/// Sizes from the attribute `split` (before opset 13), an input, or equal parts.
fn split(c: &Call) -> Result<Vec<Fact>> {
    let count = c.node.outputs().len();
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(c.dtype(0), None); count]);
    };
    let axis = c.axis(0, x.len())?;
    let sizes = if c.opset == 1 && c.has(1) {
        c.ints(1).map_or(Given::Unknown, Given::Known)
    } else {
        c.attr_or_input("split", 1, 13)
    };
    let parts: Vec<Dim> = match sizes {
        Given::Unknown => vec![Dim::Unknown; count],
        Given::Known(s) => {
            ensure!(s.len() == count, "{} sizes for {count} outputs", s.len());
            let total = s.iter().try_fold(0i64, |n, &k| n.checked_add(k));
            if let (Dim::Known(n), Some(total)) = (&x[axis], total) {
                ensure!(usize::try_from(total) == Ok(*n), "sizes {s:?} of an axis of {n}");
            }
            s.iter().map(|&k| Elem::Int(k).dim()).collect()
        }
        Given::Absent => equal_parts(&x[axis], count),
    };
    // Elements of a vector of sizes, cut likewise.
    let mut at = 0usize;
    let facts = parts.into_iter().map(|p| {
        let mut out = x.to_vec();
        let elems = match (&p, c.elems(0), x.len()) {
            (Dim::Known(n), Some(e), 1) => e.get(at..at.saturating_add(*n)).map(<[Elem]>::to_vec),
            _ => None,
        };
        at = at.saturating_add(p.known().unwrap_or(usize::MAX));
        out[axis] = p;
        Fact::new(c.dtype(0), Some(out)).with_elems(elems)
    });
    Ok(facts.collect())
}

/// `⌈n / parts⌉` each, the last takes what is left (opset 18; before, `n` had to be divisible).
fn equal_parts(d: &Dim, parts: usize) -> Vec<Dim> {
    let Some(n) = d.known() else {
        return vec![if parts == 1 { d.clone() } else { Dim::Unknown }; parts];
    };
    let each = n.div_ceil(parts.max(1));
    (0..parts)
        .map(|i| Dim::Known(each.min(n.saturating_sub(each.saturating_mul(i)))))
        .collect()
}

/// Begins, then ends, for every axis or for `axes` (opset 18).
fn pad(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    let name = if c.opset < 2 { "paddings" } else { "pads" };
    let pads: Option<Vec<Elem>> = if c.opset < 11 {
        c.node.ints(name).map(|p| p.iter().map(|&i| Elem::Int(i)).collect())
    } else {
        c.elems(1).map(<[Elem]>::to_vec)
    };
    let axes = match (c.opset >= 18 && c.has(3), c.ints(3)) {
        (false, _) => Some((0..x.len()).collect()),
        (true, Some(a)) => Some(a.iter().map(|&a| axis_of(a, x.len())).collect::<Result<Vec<usize>>>()?),
        (true, None) => None,
    };
    let (Some(pads), Some(axes)) = (pads, axes) else {
        return Ok(vec![Fact::new(c.dtype(0), Some(vec![Dim::Unknown; x.len()]))]);
    };
    ensure!(
        pads.len() == 2 * axes.len(),
        "{} pads for {} axes",
        pads.len(),
        axes.len()
    );
    let mut out = x.to_vec();
    for (i, &axis) in axes.iter().enumerate() {
        out[axis] = match (&pads[i], &pads[i + axes.len()]) {
            (Elem::Int(0), Elem::Int(0)) => x[axis].clone(),
            (Elem::Int(b), Elem::Int(e)) => x[axis].map(|n| {
                let n = i64::try_from(n).ok()?;
                usize::try_from(n.checked_add(*b)?.checked_add(*e)?).ok()
            }),
            _ => Dim::Unknown,
        };
    }
    Ok(vec![Fact::new(c.dtype(0), Some(out))])
}

fn center(c: &Call) -> Result<Vec<Fact>> {
    let (Some(x), Some(size)) = (c.shape(0), c.elems(1)) else {
        let rank = c.shape(0).map(<[Dim]>::len);
        return Ok(vec![Fact::new(c.dtype(0), rank.map(|r| vec![Dim::Unknown; r]))]);
    };
    let axes = match c.node.ints("axes") {
        Some(a) => a.iter().map(|&a| axis_of(a, x.len())).collect::<Result<Vec<usize>>>()?,
        None => (0..x.len()).collect(),
    };
    ensure!(
        axes.len() == size.len(),
        "{} sizes for {} axes of {}",
        size.len(),
        axes.len(),
        show(x)
    );
    let mut out = x.to_vec();
    for (&axis, e) in axes.iter().zip(size) {
        out[axis] = e.dim();
    }
    Ok(vec![Fact::new(c.dtype(0), Some(out))])
}

/// How many elements stay depends on the condition.
fn compress(c: &Call) -> Result<Vec<Fact>> {
    let kept = c
        .ints(1)
        .map_or(Dim::Unknown, |k| Dim::Known(k.iter().filter(|&&b| b != 0).count()));
    let out = match (c.node.int("axis"), c.shape(0)) {
        (None, _) => Some(vec![kept]),
        (Some(axis), Some(x)) => {
            let mut out = x.to_vec();
            out[axis_of(axis, x.len())?] = kept;
            Some(out)
        }
        _ => None,
    };
    Ok(vec![Fact::new(c.dtype(0), out)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, elems, f, facts, ints, typed};
    use super::taken;
    use crate::ir::{Attr, DType};

    #[test]
    fn slice_takes_what_numpy_takes() {
        assert_eq!(taken(10, 2, 8, 3), Some((2, 2)));
        assert_eq!(taken(10, -3, i64::MAX, 1), Some((7, 3)));
        assert_eq!(taken(10, -1, i64::MIN, -1), Some((9, 10)));
        assert_eq!(taken(10, 20, 0, -4), Some((9, 3)));
        assert_eq!(taken(10, 8, 2, 1), Some((8, 0)));
        assert_eq!(taken(0, 0, 5, 1), Some((0, 0)));
        assert_eq!(taken(0, -1, i64::MIN, -1).map(|t| t.1), Some(0));
        assert_eq!(taken(10, i64::MIN, i64::MAX, i64::MAX), Some((0, 1)));
        assert_eq!(taken(10, i64::MAX, i64::MIN, i64::MIN).map(|t| t.1), Some(1));
    }

    #[test]
    fn slice_read_attributes_before_opset_10() {
        let attrs = vec![
            Attr::ints("starts", vec![1]),
            Attr::ints("ends", vec![-1]),
            Attr::ints("axes", vec![1]),
        ];
        assert_eq!(dims("Slice", 9, attrs, &[f("N, 6")]), "[N, 4]");
        assert_eq!(
            dims("Slice", 13, vec![], &[f("N, 6"), ints(&[1]), ints(&[-1]), ints(&[1])]),
            "[N, 4]"
        );
    }

    #[test]
    fn a_slice_that_takes_all_keeps_a_name() {
        let all = [f("N, 6"), ints(&[0]), ints(&[i64::MAX]), ints(&[0])];
        assert_eq!(dims("Slice", 13, vec![], &all), "[N, 6]");
        let some = [f("N, 6"), ints(&[0]), ints(&[5]), ints(&[0])];
        assert_eq!(dims("Slice", 13, vec![], &some), "[?, 6]");
        assert!(dims("Slice", 13, vec![], &[f("N, 6"), ints(&[0]), ints(&[5]), ints(&[2])]).starts_with("error"));
        let still = [f("N, 6"), ints(&[0]), ints(&[5]), ints(&[1]), ints(&[0])];
        assert!(dims("Slice", 13, vec![], &still).starts_with("error"));
    }

    #[test]
    fn slices_of_shapes_are_values() {
        let x = [
            ints(&[10, 20, 30]),
            ints(&[-1]),
            ints(&[i64::MIN]),
            ints(&[0]),
            ints(&[-1]),
        ];
        assert_eq!(elems("Slice", 13, vec![], &x), "30 20 10");
    }

    #[test]
    fn pad_has_inputs_since_opset_11_and_axes_since_18() {
        let pads = vec![Attr::ints("pads", vec![0, 1, 0, 2])];
        assert_eq!(dims("Pad", 2, pads, &[f("N, 6")]), "[N, 9]");
        assert_eq!(dims("Pad", 13, vec![], &[f("N, 6"), ints(&[0, -1, 0, -2])]), "[N, 3]");
        let x = [f("N, 6"), ints(&[1, 2]), f(""), ints(&[-1])];
        assert_eq!(dims("Pad", 18, vec![], &x), "[N, 9]");
        assert!(dims("Pad", 13, vec![], &[f("N, 6"), ints(&[0, 1])]).starts_with("error"));
        assert_eq!(
            dims("Pad", 13, vec![], &[f("N, 6"), typed(DType::Int64, "4")]),
            "[?, ?]"
        );
    }

    #[test]
    fn split_without_outputs_does_no_harm() {
        assert_eq!(
            facts("Split", 13, vec![], &[f("N, 6"), ints(&[])]).expect("none").len(),
            0
        );
        assert_eq!(
            super::equal_parts(&super::Dim::Known(7), 3),
            [3, 3, 1].map(super::Dim::Known)
        );
        assert_eq!(
            super::equal_parts(&super::Dim::Known(1), 3),
            [1, 0, 0].map(super::Dim::Known)
        );
    }
}
