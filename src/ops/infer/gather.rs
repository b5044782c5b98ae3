//! Picking and placing by index.

use super::Table;
use super::call::{Call, axis_of};
use super::fact::{Dim, Elem, Fact, show};
use super::values::{gather as build, strides};
use crate::ir::DType;
use anyhow::{Result, ensure};

pub(super) const TABLE: Table = &[
    ("Gather", gather),
    ("GatherElements", |c| Ok(vec![c.shaped(c.dtype(0), 1)])),
    ("GatherND", gather_nd),
    ("NonMaxSuppression", |_| {
        Ok(vec![Fact::new(
            Some(DType::Int64),
            Some(vec![Dim::Unknown, Dim::Known(3)]),
        )])
    }),
    ("NonZero", non_zero),
    ("OneHot", one_hot),
    ("Scatter", super::norm::same),
    ("ScatterElements", super::norm::same),
    ("ScatterND", super::norm::same),
    ("TensorScatter", super::norm::same),
    ("Unique", unique),
];

/// The indices take the place of `axis`.
fn gather(c: &Call) -> Result<Vec<Fact>> {
    let (Some(x), Some(at)) = (c.shape(0), c.shape(1)) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    let axis = c.axis(0, x.len())?;
    let mut out = x[..axis].to_vec();
    out.extend_from_slice(at);
    out.extend_from_slice(&x[axis + 1..]);
    if let (Dim::Known(n), Some(places)) = (&x[axis], c.ints(1)) {
        let n = i64::try_from(*n)?;
        let outside = places.iter().find(|p| !(-n..n).contains(p));
        ensure!(
            outside.is_none(),
            "Gather of index {} from an axis of {n}",
            outside.unwrap_or(&0)
        );
    }
    let fact = Fact::new(c.dtype(0), Some(out));
    let elems = picked(c, &fact, axis);
    Ok(vec![fact.with_elems(elems)])
}

fn picked(c: &Call, out: &Fact, axis: usize) -> Option<Vec<Elem>> {
    let (e, from, places, at_dims) = (c.elems(0)?, c.fact(0)?.dims()?, c.elems(1)?, c.fact(1)?.dims()?);
    let (steps, at_steps) = (strides(&from)?, strides(&at_dims)?);
    let n = i64::try_from(from[axis]).ok()?;
    build(&out.dims()?, |at| {
        let (before, rest) = at.split_at(axis);
        let (inner, after) = rest.split_at(at_dims.len());
        let which: usize = inner.iter().zip(&at_steps).map(|(i, s)| i * s).sum();
        let Some(i) = places.get(which)?.int() else {
            return Some(Elem::Unknown);
        };
        let i = usize::try_from(if i < 0 { i + n } else { i }).ok()?;
        let outer: usize = before.iter().zip(&steps).map(|(i, s)| i * s).sum();
        let tail: usize = after.iter().zip(&steps[axis + 1..]).map(|(i, s)| i * s).sum();
        e.get(outer + i * steps[axis] + tail).cloned()
    })
}

/// The last axis of the indices names as many axes of the data, after `batch_dims` common ones.
fn gather_nd(c: &Call) -> Result<Vec<Fact>> {
    let batch = usize::try_from(c.int_or("batch_dims", 0)).unwrap_or(0);
    let (Some(x), Some(at)) = (c.shape(0), c.shape(1)) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    let Some(deep) = at.last().and_then(Dim::known) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    let from = batch.saturating_add(deep);
    ensure!(
        from <= x.len(),
        "indices {} name more axes than {} has",
        show(at),
        show(x)
    );
    let mut out = at[..at.len() - 1].to_vec();
    out.extend_from_slice(&x[from..]);
    Ok(vec![Fact::new(c.dtype(0), Some(out))])
}

/// One column for every element that is not zero; a scalar counts as a vector of one.
fn non_zero(c: &Call) -> Result<Vec<Fact>> {
    let rank = c.shape(0).map_or(Dim::Unknown, |x| Dim::Known(x.len()));
    let (Some(dims), Some(x)) = (c.fact(0).and_then(Fact::dims), c.fact(0).and_then(Fact::numbers)) else {
        return Ok(vec![Fact::new(Some(DType::Int64), Some(vec![rank, Dim::Unknown]))]);
    };
    let hits: Vec<usize> = (0..x.len()).filter(|&i| x[i] != 0.0).collect();
    let fact = Fact::new(Some(DType::Int64), Some(vec![rank, Dim::Known(hits.len())]));
    let elems = strides(&dims).map(|steps| {
        let rows = steps.iter().zip(&dims);
        let index = |s: &usize, n: &usize, i: usize| Elem::Int(i64::try_from(i / s % n).unwrap_or(0));
        rows.flat_map(|(s, n)| hits.iter().map(move |&i| index(s, n, i)))
            .collect()
    });
    Ok(vec![fact.with_elems(elems)])
}

/// An axis of size `depth` is put in.
fn one_hot(c: &Call) -> Result<Vec<Fact>> {
    let dtype = c.dtype(2);
    let Some(at) = c.shape(0) else {
        return Ok(vec![Fact::new(dtype, None)]);
    };
    let axis = axis_of(c.int_or("axis", -1), at.len() + 1)?;
    let depth = c.elems(1).and_then(|d| match d {
        [Elem::Float(x)] if *x >= 0.0 && *x < 9e15 => Some(Dim::Known(*x as usize)),
        [e] => Some(e.dim()),
        _ => None,
    });
    let mut out = at.to_vec();
    out.insert(axis, depth.unwrap_or_default());
    Ok(vec![Fact::new(dtype, Some(out))])
}

fn unique(c: &Call) -> Result<Vec<Fact>> {
    let out = match (c.node.int("axis"), c.shape(0)) {
        (None, _) => Some(vec![Dim::Unknown]),
        (Some(axis), Some(x)) => {
            let mut out = x.to_vec();
            out[axis_of(axis, x.len())?] = Dim::Unknown;
            Some(out)
        }
        _ => None,
    };
    let list = Fact::new(Some(DType::Int64), Some(vec![Dim::Unknown]));
    Ok(vec![Fact::new(c.dtype(0), out), list.clone(), list.clone(), list])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, elems, f, int, ints, typed};
    use crate::ir::{Attr, DType};

    #[test]
    fn gather_puts_the_indices_in_place_of_the_axis() {
        let at = typed(DType::Int64, "5, 6");
        assert_eq!(
            dims("Gather", 13, vec![Attr::int("axis", 1)], &[f("N, 3, 4"), at.clone()]),
            "[N, 5, 6, 4]"
        );
        assert_eq!(dims("Gather", 13, vec![], &[f("N, 3"), int(0)]), "[3]");
        assert_eq!(elems("Gather", 13, vec![], &[ints(&[7, 8, 9]), int(-1)]), "9");
        assert!(dims("Gather", 13, vec![], &[f("3"), int(3)]).starts_with("error"));
        assert!(dims("Gather", 13, vec![Attr::int("axis", 9)], &[f("3"), at]).starts_with("error"));
    }

    #[test]
    fn non_zero_of_known_elements_is_known() {
        assert_eq!(dims("NonZero", 13, vec![], &[ints(&[1, 0, 1])]), "[1, 2]");
        assert_eq!(elems("NonZero", 13, vec![], &[ints(&[1, 0, 1])]), "0 2");
    }

    #[test]
    fn one_hot_puts_in_an_axis() {
        let x = [typed(DType::Int64, "N, 3"), int(10), f("2")];
        assert_eq!(dims("OneHot", 11, vec![], &x), "[N, 3, 10]");
        assert_eq!(dims("OneHot", 11, vec![Attr::int("axis", 0)], &x), "[10, N, 3]");
        assert_eq!(
            dims("OneHot", 11, vec![], &[x[0].clone(), int(-4), f("2")]),
            "[N, 3, ?]"
        );
    }
}
