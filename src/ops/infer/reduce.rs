//! Reductions.

use super::Table;
use super::call::{Call, axes_of, axis_of};
use super::fact::{Dim, Elem, Fact};
use super::values::fold;
use crate::ir::DType;
use anyhow::{Result, ensure};

pub(super) const TABLE: Table = &[
    ("ArgMax", arg),
    ("ArgMin", arg),
    ("CumProd", cumulative),
    ("CumSum", cumulative),
    ("ReduceL1", |c| reduce(c, 18)),
    ("ReduceL2", |c| reduce(c, 18)),
    ("ReduceLogSum", |c| reduce(c, 18)),
    ("ReduceLogSumExp", |c| reduce(c, 18)),
    ("ReduceMax", |c| reduce(c, 18)),
    ("ReduceMean", |c| reduce(c, 18)),
    ("ReduceMin", |c| reduce(c, 18)),
    ("ReduceProd", |c| reduce(c, 18)),
    ("ReduceSum", |c| reduce(c, 13)),
    ("ReduceSumSquare", |c| reduce(c, 18)),
    ("TopK", top_k),
];

/// Without axes all are reduced, or none with `noop_with_empty_axes`. The axes are an input from opset `since` on.
fn reduce(c: &Call, since: i64) -> Result<Vec<Fact>> {
    let dtype = c.dtype(0);
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(dtype, None)]);
    };
    let keep = c.int_or("keepdims", 1) != 0;
    let Some(axes) = c.attr_or_input("axes", 1, since).or(Vec::new) else {
        // Not known which axes, but known how many dimensions stay when they are kept.
        return Ok(vec![Fact::new(dtype, keep.then(|| vec![Dim::Unknown; x.len()]))]);
    };
    let axes = match axes.is_empty() {
        true if c.int_or("noop_with_empty_axes", 0) != 0 => return Ok(vec![c.like(0)]),
        true => (0..x.len()).collect(),
        false => axes_of(&axes, x.len())?,
    };
    let all = axes.len() == x.len();
    let out = without(x, &axes, keep);
    let elems = c.elems(0).filter(|_| all);
    let elems = elems.and_then(|e| fold(&c.node.op.name, e)).map(|e| vec![e]);
    Ok(vec![Fact::new(dtype, Some(out)).with_elems(elems)])
}

fn without(x: &[Dim], axes: &[usize], keep: bool) -> Vec<Dim> {
    let dims = x.iter().enumerate();
    dims.filter_map(|(i, d)| match axes.contains(&i) {
        true => keep.then_some(Dim::Known(1)),
        false => Some(d.clone()),
    })
    .collect()
}

fn arg(c: &Call) -> Result<Vec<Fact>> {
    let out = match c.shape(0) {
        Some(x) => {
            let axis = c.axis(0, x.len())?;
            Some(without(x, &[axis], c.int_or("keepdims", 1) != 0))
        }
        None => None,
    };
    Ok(vec![Fact::new(Some(DType::Int64), out)])
}

fn cumulative(c: &Call) -> Result<Vec<Fact>> {
    if let (Some(x), Some(axis)) = (c.shape(0), c.int(1)) {
        axis_of(axis, x.len())?;
    }
    Ok(vec![c.like(0)])
}

/// `k` is an attribute before opset 10, an input after.
fn top_k(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(c.dtype(0), None), Fact::new(Some(DType::Int64), None)]);
    };
    let axis = c.axis(-1, x.len())?;
    let k = if c.opset < 10 {
        c.node.int("k").map_or(Elem::Unknown, Elem::Int)
    } else {
        match c.elems(1) {
            Some([k]) => k.clone(),
            _ => Elem::Unknown,
        }
    };
    let k = k.dim();
    if let (Dim::Known(k), Dim::Known(n)) = (&k, &x[axis]) {
        ensure!(k <= n, "the {k} largest of {n} elements");
    }
    let mut out = x.to_vec();
    out[axis] = k;
    Ok(vec![
        Fact::new(c.dtype(0), Some(out.clone())),
        Fact::new(Some(DType::Int64), Some(out)),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, elems, f, ints};
    use crate::ir::{Attr, DType};

    #[test]
    fn axes_became_an_input() {
        let attr = || vec![Attr::ints("axes", vec![-1]), Attr::int("keepdims", 0)];
        assert_eq!(dims("ReduceSum", 11, attr(), &[f("N, 3, 4")]), "[N, 3]");
        assert_eq!(dims("ReduceMean", 13, attr(), &[f("N, 3, 4")]), "[N, 3]");
        assert_eq!(dims("ReduceMean", 18, vec![], &[f("N, 3, 4"), ints(&[1])]), "[N, 1, 4]");
        assert!(dims("ReduceSum", 11, vec![Attr::ints("axes", vec![3])], &[f("N, 3, 4")]).starts_with("error"));
    }

    #[test]
    fn no_axes_are_all_axes_or_none() {
        assert_eq!(
            dims("ReduceSum", 13, vec![Attr::int("keepdims", 0)], &[f("N, 3")]),
            "[]"
        );
        let noop = vec![Attr::int("noop_with_empty_axes", 1)];
        assert_eq!(dims("ReduceSum", 13, noop, &[f("N, 3")]), "[N, 3]");
        let unknown = [f("N, 3"), super::super::testing::typed(DType::Int64, "1")];
        assert_eq!(dims("ReduceSum", 13, vec![], &unknown), "[?, ?]");
        assert_eq!(dims("ReduceSum", 13, vec![Attr::int("keepdims", 0)], &unknown), "any");
    }

    #[test]
    fn products_of_shapes_are_values() {
        assert_eq!(elems("ReduceProd", 13, vec![], &[ints(&[2, 3, 4])]), "24");
    }

    #[test]
    fn top_k_reads_k_from_attribute_or_input() {
        assert_eq!(dims("TopK", 9, vec![Attr::int("k", 2)], &[f("N, 5")]), "[N, 2]");
        assert_eq!(dims("TopK", 11, vec![], &[f("N, 5"), ints(&[3])]), "[N, 3]");
        assert!(dims("TopK", 11, vec![], &[f("N, 5"), ints(&[6])]).starts_with("error"));
    }
}
