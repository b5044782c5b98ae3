//! Operators that rearrange: the same elements under other dimensions, copies, and the sizes themselves.

use super::Table;
use super::call::{Call, axes_of, axis_of};
use super::fact::{Dim, Elem, Fact, MAX_RANK, broadcast_dims, product, show};
use super::values::{gather, spread, strides};
use crate::ir::DType;
use anyhow::{Context, Result, bail, ensure};

pub(super) const TABLE: Table = &[
    ("Expand", expand),
    ("Flatten", flatten),
    ("Reshape", reshape),
    ("Shape", shape),
    ("Size", size),
    ("Squeeze", squeeze),
    ("Transpose", transpose),
    ("Unsqueeze", unsqueeze),
];

/// The same elements, in the same order, under other dimensions.
fn renamed(c: &Call, out: Option<Vec<Dim>>) -> Result<Vec<Fact>> {
    let elems = c.elems(0).map(<[Elem]>::to_vec);
    Ok(vec![Fact::new(c.dtype(0), out).with_elems(elems)])
}

/// 0 copies a dimension (unless `allowzero`), one −1 takes what is left.
fn reshape(c: &Call) -> Result<Vec<Fact>> {
    let wanted: Option<Vec<Elem>> = if c.opset < 5 {
        c.node.ints("shape").map(|s| s.iter().map(|&i| Elem::Int(i)).collect())
    } else {
        c.elems(1).map(<[Elem]>::to_vec)
    };
    let Some(wanted) = wanted else {
        let rank = c.shape(1).and_then(|s| match s {
            [Dim::Known(n)] => Some(*n).filter(|n| *n <= MAX_RANK),
            _ => None,
        });
        return renamed(c, rank.map(|r| vec![Dim::Unknown; r]));
    };
    renamed(c, Some(reshaped(c.shape(0), &wanted, c.int_or("allowzero", 0) != 0)?))
}

fn reshaped(x: Option<&[Dim]>, wanted: &[Elem], allow_zero: bool) -> Result<Vec<Dim>> {
    let mut out = Vec::with_capacity(wanted.len());
    let mut rest: Vec<usize> = Vec::new(); // axes of which the size follows from the others
    let mut open = 0; // how many of them are −1 for certain
    for (i, e) in wanted.iter().enumerate() {
        out.push(match e {
            Elem::Int(-1) => {
                open += 1;
                rest.push(i);
                Dim::Unknown
            }
            Elem::Int(0) if !allow_zero => match x {
                Some(x) => x
                    .get(i)
                    .cloned()
                    .with_context(|| format!("Reshape copies dimension {i} of {}", show(x)))?,
                None => Dim::Unknown,
            },
            Elem::Int(n) if *n < 0 => bail!("Reshape to a dimension of {n}"),
            Elem::Int(_) | Elem::Symbol(_) => e.dim(),
            _ => {
                rest.push(i);
                Dim::Unknown
            }
        });
    }
    ensure!(open <= 1, "Reshape to more than one -1");
    let Some(x) = x else { return Ok(out) };
    // Names that stand on both sides cancel out.
    let mut left: Vec<&Dim> = x.iter().collect();
    let mut right: Vec<&Dim> = Vec::new();
    for (i, d) in out.iter().enumerate() {
        if rest.contains(&i) {
            continue;
        }
        match left.iter().position(|l| matches!(d, Dim::Symbol(_)) && l.same(d)) {
            Some(at) => drop(left.remove(at)),
            None => right.push(d),
        }
    }
    let mul = |ds: &[&Dim]| ds.iter().fold(Dim::Known(1), |n, d| n.times(d));
    let (total, taken) = (mul(&left), mul(&right));
    match (rest[..].first(), rest.len()) {
        (None, _) => {
            let (a, b) = (product(x), product(&out));
            ensure!(
                a.is_none() || b.is_none() || a == b,
                "{} cannot be reshaped to {}",
                show(x),
                show(&out)
            );
        }
        (Some(&at), 1) => match (&total, &taken) {
            (Dim::Known(n), Dim::Known(k)) if *k > 0 => {
                ensure!(n % k == 0, "{} cannot be reshaped to {}", show(x), show(&out));
                out[at] = Dim::Known(n / k);
            }
            (d, Dim::Known(1)) => out[at] = d.clone(),
            _ => {}
        },
        _ => {}
    }
    Ok(out)
}

fn flatten(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return renamed(c, Some(vec![Dim::Unknown, Dim::Unknown]));
    };
    let axis = match c.int_or("axis", 1) {
        a if usize::try_from(a) == Ok(x.len()) => x.len(),
        a => axis_of(a, x.len())?,
    };
    let mul = |ds: &[Dim]| ds.iter().fold(Dim::Known(1), |n, d| n.times(d));
    renamed(c, Some(vec![mul(&x[..axis]), mul(&x[axis..])]))
}

fn squeeze(c: &Call) -> Result<Vec<Fact>> {
    let given = c.attr_or_input("axes", 1, 13);
    let Some(x) = c.shape(0) else {
        return renamed(c, None);
    };
    let out = match given {
        super::call::Given::Unknown => None,
        super::call::Given::Absent => {
            // Dimensions that are not known may or may not be 1.
            let all_known = x.iter().all(|d| d.known().is_some());
            all_known.then(|| x.iter().filter(|d| **d != Dim::Known(1)).cloned().collect())
        }
        super::call::Given::Known(axes) => {
            let axes = axes_of(&axes, x.len())?;
            for &a in &axes {
                ensure!(
                    !x[a].differs(&Dim::Known(1)),
                    "Squeeze of axis {a} of {}, which is not 1",
                    show(x)
                );
            }
            let left = x.iter().enumerate().filter(|(i, _)| !axes.contains(i));
            Some(left.map(|(_, d)| d.clone()).collect())
        }
    };
    renamed(c, out)
}

fn unsqueeze(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return renamed(c, None);
    };
    let Some(axes) = c.attr_or_input("axes", 1, 13).or(Vec::new) else {
        let added = c
            .fact(1)
            .and_then(Fact::dims)
            .and_then(|d| d.iter().try_fold(1usize, |n, &d| n.checked_mul(d)));
        let rank = added.and_then(|n| n.checked_add(x.len())).filter(|r| *r <= MAX_RANK);
        return renamed(c, rank.map(|r| vec![Dim::Unknown; r]));
    };
    let rank = x.len() + axes.len();
    ensure!(rank <= MAX_RANK, "Unsqueeze to {rank} dimensions");
    let axes = axes_of(&axes, rank)?;
    let mut old = x.iter();
    let dim = |i: usize| match axes.contains(&i) {
        true => Dim::Known(1),
        false => old.next().cloned().unwrap_or_default(),
    };
    renamed(c, Some((0..rank).map(dim).collect()))
}

fn expand(c: &Call) -> Result<Vec<Fact>> {
    let wanted = c.elems(1).map(|e| e.iter().map(Elem::dim).collect::<Vec<Dim>>());
    let (Some(x), Some(wanted)) = (c.shape(0), wanted) else {
        // A dimension that is not 1 stays, whatever the other operand says.
        let out = match (c.shape(0), c.shape(1)) {
            (Some(x), Some([Dim::Known(n)])) if *n <= MAX_RANK => Some(broadcast_dims(x, &vec![Dim::Unknown; *n])?),
            _ => None,
        };
        return Ok(vec![Fact::new(c.dtype(0), out)]);
    };
    let out = broadcast_dims(x, &wanted)?;
    let elems = c.fact(0).and_then(|f| spread(f, &out));
    Ok(vec![Fact::new(c.dtype(0), Some(out)).with_elems(elems)])
}

/// The dimensions from `start` to `end` (opset 15), as `int64`.
fn shape(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(Some(DType::Int64), Some(vec![Dim::Unknown]))]);
    };
    let n = i64::try_from(x.len())?;
    let clamp = |i: i64| (if i < 0 { i.saturating_add(n) } else { i }).clamp(0, n);
    let (start, end) = (clamp(c.int_or("start", 0)), clamp(c.int_or("end", n)));
    let (start, end) = (usize::try_from(start)?, usize::try_from(end.max(start))?);
    Ok(vec![Fact::list(x[start..end].iter().map(Elem::from).collect())])
}

fn size(c: &Call) -> Result<Vec<Fact>> {
    let n = c.shape(0).map(|x| x.iter().fold(Dim::Known(1), |n, d| n.times(d)));
    let elems = n.map(|n| vec![Elem::from(&n)]);
    Ok(vec![Fact::of(DType::Int64, &[]).with_elems(elems)])
}

fn transpose(c: &Call) -> Result<Vec<Fact>> {
    let perm = c.node.ints("perm").filter(|p| !p.is_empty());
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(c.dtype(0), perm.map(|p| vec![Dim::Unknown; p.len()]))]);
    };
    let perm: Vec<usize> = match perm {
        Some(p) => {
            ensure!(p.len() == x.len(), "a permutation of {} axes for {}", p.len(), show(x));
            axes_of(p, x.len())?; // each once
            p.iter().map(|&a| axis_of(a, x.len())).collect::<Result<_>>()?
        }
        None => (0..x.len()).rev().collect(),
    };
    let out: Vec<Dim> = perm.iter().map(|&a| x[a].clone()).collect();
    let fact = Fact::new(c.dtype(0), Some(out));
    let elems = c.elems(0).zip(c.fact(0).and_then(Fact::dims)).and_then(|(e, from)| {
        let steps = strides(&from)?;
        gather(&fact.dims()?, |at| {
            e.get(at.iter().zip(&perm).map(|(i, &a)| i * steps[a]).sum::<usize>())
                .cloned()
        })
    });
    Ok(vec![fact.with_elems(elems)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, elems, f, ints, typed};
    use super::*;
    use crate::ir::Attr;

    fn to(x: &str, shape: &Fact) -> String {
        dims("Reshape", 14, vec![], &[f(x), shape.clone()])
    }

    #[test]
    fn reshape_copies_with_0_and_infers_with_minus_1() {
        assert_eq!(to("2, 3, 4", &ints(&[0, -1])), "[2, 12]");
        assert_eq!(to("N, 3, 4", &ints(&[0, -1])), "[N, 12]");
        assert_eq!(
            to("N, 3, 4", &ints(&[-1, 12])),
            "[?, 12]",
            "N · 12 / 12 is only known by algebra on names"
        );
        assert_eq!(to("N, L, 8", &ints(&[0, 0, 2, 4])), "[N, L, 2, 4]");
    }

    #[test]
    fn names_on_both_sides_cancel() {
        let n = Fact::list(vec![Elem::Symbol("N".into()), Elem::Int(-1)]);
        assert_eq!(to("N, 3, 4", &n), "[N, 12]");
        assert_eq!(to("3, N", &n), "[N, 3]");
        let open = Fact::list(vec![Elem::Unknown, Elem::Int(6)]);
        assert_eq!(to("2, 3, 4", &open), "[4, 6]", "what is open is what is left");
    }

    #[test]
    fn reshape_to_another_number_of_elements_is_refused() {
        assert!(to("2, 3", &ints(&[4, 2])).starts_with("error"));
        assert!(to("2, 3", &ints(&[4, -1])).starts_with("error"));
        assert!(to("2, 3", &ints(&[-1, -1])).starts_with("error"));
        assert!(to("2, 3", &ints(&[-7])).starts_with("error"));
        assert!(
            to("6", &ints(&[2, 3, 0])).starts_with("error"),
            "there is no third dimension to copy"
        );
        assert_eq!(to("N, 3", &ints(&[4, 2])), "[4, 2]");
        assert_eq!(
            to("2, 3", &ints(&[i64::MAX, i64::MAX])),
            format!("[{0}, {0}]", i64::MAX)
        );
    }

    #[test]
    fn allowzero_means_zero() {
        let attrs = vec![Attr::int("allowzero", 1)];
        assert_eq!(dims("Reshape", 14, attrs, &[f("3, 0"), ints(&[0, 7])]), "[0, 7]");
    }

    #[test]
    fn squeeze_and_unsqueeze_take_axes_as_attribute_then_as_input() {
        let axes = |v: &[i64]| vec![Attr::ints("axes", v.to_vec())];
        assert_eq!(dims("Squeeze", 11, axes(&[-1]), &[f("N, 1")]), "[N]");
        assert_eq!(dims("Squeeze", 13, vec![], &[f("N, 1"), ints(&[1])]), "[N]");
        assert_eq!(dims("Squeeze", 13, vec![], &[f("N, 1")]), "any", "N may be 1");
        assert!(dims("Squeeze", 11, axes(&[0]), &[f("2, 1")]).starts_with("error"));
        assert_eq!(dims("Unsqueeze", 11, axes(&[0, -1]), &[f("N")]), "[1, N, 1]");
        assert_eq!(
            dims("Unsqueeze", 13, vec![], &[f("N"), typed(DType::Int64, "2")]),
            "[?, ?, ?]"
        );
        assert!(dims("Unsqueeze", 13, vec![], &[f("N"), ints(&[5])]).starts_with("error"));
        assert!(dims("Unsqueeze", 13, vec![], &[f("N"), ints(&[0, 0])]).starts_with("error"));
    }

    #[test]
    fn shapes_are_values() {
        assert_eq!(elems("Shape", 13, vec![], &[f("N, 3, ?")]), "N 3 ?");
        assert_eq!(elems("Shape", 15, vec![Attr::int("start", -2)], &[f("N, 3, 4")]), "3 4");
        assert_eq!(elems("Shape", 15, vec![Attr::int("start", 9)], &[f("N, 3, 4")]), "");
        assert_eq!(elems("Size", 13, vec![], &[f("2, 3")]), "6");
    }

    #[test]
    fn transpose_and_flatten() {
        assert_eq!(dims("Transpose", 13, vec![], &[f("N, 3, 4")]), "[4, 3, N]");
        let perm = |p: &[i64]| vec![Attr::ints("perm", p.to_vec())];
        assert_eq!(dims("Transpose", 13, perm(&[0, 2, 1]), &[f("N, 3, 4")]), "[N, 4, 3]");
        assert!(dims("Transpose", 13, perm(&[0, 0, 1]), &[f("N, 3, 4")]).starts_with("error"));
        assert_eq!(dims("Flatten", 13, vec![], &[f("N, 3, 4")]), "[N, 12]");
        assert_eq!(
            dims("Flatten", 13, vec![Attr::int("axis", 3)], &[f("2, 3, 4")]),
            "[24, 1]"
        );
    }

    #[test]
    fn expand_broadcasts_both_ways() {
        assert_eq!(dims("Expand", 13, vec![], &[f("3, 1"), ints(&[2, 1, 6])]), "[2, 3, 6]");
        assert_eq!(
            dims("Expand", 13, vec![], &[f("3, 1"), typed(DType::Int64, "2")]),
            "[3, ?]"
        );
    }
}
