//! Matrix products.

use super::Table;
use super::call::{Call, agree};
use super::fact::{Dim, Fact, broadcast_dims, show};
use crate::ir::DType;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;

pub(super) const TABLE: Table = &[
    ("Einsum", einsum),
    ("Gemm", gemm),
    ("MatMul", |c| matmul(c, 0, 1, c.dtype(0).or(c.dtype(1)))),
    ("MatMulInteger", |c| matmul(c, 0, 1, Some(DType::Int32))),
    ("QLinearMatMul", |c| matmul(c, 0, 3, c.dtype(7))),
];

pub(super) const MICROSOFT: Table = &[
    ("DynamicQuantizeMatMul", |c| matmul(c, 0, 1, c.dtype(0))),
    ("FusedGemm", gemm),
    ("FusedMatMul", fused),
    ("MatMulIntegerToFloat", |c| matmul(c, 0, 1, c.dtype(2))),
    ("MatMulNBits", n_bits),
    ("TransposeMatMul", fused),
];

/// A: [M, K] (or transposed), B: [K, N] (or transposed), C broadcast → [M, N].
fn gemm(c: &Call) -> Result<Vec<Fact>> {
    let dtype = c.dtype(0).or(c.dtype(1));
    c.want_rank(0, 2)?;
    c.want_rank(1, 2)?;
    let part = |i: usize, attr: &str, first: bool| -> Dim {
        let flip = c.int_or(attr, 0) != 0;
        c.shape(i)
            .map_or(Dim::Unknown, |s| s[usize::from(first == flip)].clone())
    };
    agree(
        &part(0, "transA", false),
        &part(1, "transB", true),
        "inner dimensions of A and B",
    )?;
    let out = vec![part(0, "transA", true), part(1, "transB", false)];
    if let (Some(bias), true) = (c.shape(2), c.opset >= 7) {
        let all = broadcast_dims(&out, bias)?;
        let fits = all.len() == 2 && !all.iter().zip(&out).any(|(a, o)| a.differs(o));
        ensure!(fits, "C {} does not broadcast to {}", show(bias), show(&out));
    }
    Ok(vec![Fact::new(dtype, Some(out))])
}

/// The dimensions of `numpy.matmul`.
fn product_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    let both = || format!("{} and {}", show(a), show(b));
    ensure!(
        !a.is_empty() && !b.is_empty(),
        "an operand has no dimensions: {}",
        both()
    );
    let (a_batch, a_mat) = a.split_at(a.len().saturating_sub(2));
    let (b_batch, b_mat) = b.split_at(b.len().saturating_sub(2));
    let inner = (&a_mat[a_mat.len() - 1], &b_mat[0]);
    agree(inner.0, inner.1, &format!("inner dimensions of {}", both()))?;
    let mut out = broadcast_dims(a_batch, b_batch)?;
    if a_mat.len() == 2 {
        out.push(a_mat[0].clone());
    }
    if b_mat.len() == 2 {
        out.push(b_mat[1].clone());
    }
    Ok(out)
}

fn matmul(c: &Call, a: usize, b: usize, dtype: Option<DType>) -> Result<Vec<Fact>> {
    let out = match (c.shape(a), c.shape(b)) {
        (Some(a), Some(b)) => Some(product_dims(a, b)?),
        _ => None,
    };
    Ok(vec![Fact::new(dtype, out)])
}

/// `com.microsoft` FusedMatMul: the last two axes may be swapped first.
fn fused(c: &Call) -> Result<Vec<Fact>> {
    let moved = c.int_or("transBatchA", 0) != 0 || c.int_or("transBatchB", 0) != 0;
    let (Some(a), Some(b), false) = (c.shape(0), c.shape(1), moved) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    let flip = |s: &[Dim], attr: &str| {
        let mut s = s.to_vec();
        let n = s.len();
        if n >= 2 && c.int_or(attr, 0) != 0 {
            s.swap(n - 1, n - 2);
        }
        s
    };
    Ok(vec![Fact::new(
        c.dtype(0),
        Some(product_dims(&flip(a, "transA"), &flip(b, "transB"))?),
    )])
}

/// `com.microsoft` MatMulNBits: A: [.., K], the weight packed → [.., N].
fn n_bits(c: &Call) -> Result<Vec<Fact>> {
    let out = c.shape(0).filter(|a| !a.is_empty()).map(|a| {
        let mut out = a.to_vec();
        let n = usize::try_from(c.int_or("N", -1)).map_or(Dim::Unknown, Dim::Known);
        out.pop();
        out.push(n);
        out
    });
    Ok(vec![Fact::new(c.dtype(0), out)])
}

/// The terms of an Einsum equation: `…` is [`ELLIPSIS`].
pub(in crate::ops) struct Equation {
    pub inputs: Vec<Vec<char>>,
    pub output: Vec<char>,
}

/// Stands for the ellipsis in an [`Equation`].
pub(in crate::ops) const ELLIPSIS: char = '.';

/// Reads `ab,bc->ac`; without an arrow the output is the labels that occur once, in alphabetical order.
pub(in crate::ops) fn equation(text: &str) -> Option<Equation> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let text = text.replace("...", ".");
    let (left, right) = match text.split_once("->") {
        Some((l, r)) => (l.to_owned(), Some(r.to_owned())),
        None => (text, None),
    };
    let ok = |t: &str| t.chars().all(|c| c.is_alphabetic() || c == ELLIPSIS) && t.matches(ELLIPSIS).count() <= 1;
    let inputs: Vec<Vec<char>> = left.split(',').map(|t| t.chars().collect()).collect();
    if !left.split(',').all(ok) || !right.as_deref().is_none_or(ok) {
        return None;
    }
    let output = right.map(|r| r.chars().collect()).unwrap_or_else(|| {
        let mut count: BTreeMap<char, usize> = BTreeMap::new();
        for &l in inputs.iter().flatten() {
            *count.entry(l).or_default() += 1;
        }
        let dots = count.remove(&ELLIPSIS).map(|_| ELLIPSIS);
        let once = count.into_iter().filter(|(_, n)| *n == 1).map(|(l, _)| l);
        dots.into_iter().chain(once).collect()
    });
    Some(Equation { inputs, output })
}

/// What every label of an equation stands for, and the dimensions of the ellipsis.
pub(in crate::ops) fn labels(eq: &Equation, shapes: &[&[Dim]]) -> Result<(BTreeMap<char, Dim>, Vec<Dim>)> {
    ensure!(
        eq.inputs.len() == shapes.len(),
        "the equation has {} terms for {} inputs",
        eq.inputs.len(),
        shapes.len()
    );
    let mut sizes: BTreeMap<char, Dim> = BTreeMap::new();
    let mut dots: Vec<Dim> = Vec::new();
    for (term, shape) in eq.inputs.iter().zip(shapes) {
        let named = term.iter().filter(|l| **l != ELLIPSIS).count();
        let wide = shape
            .len()
            .checked_sub(named)
            .filter(|n| *n == 0 || term.contains(&ELLIPSIS));
        let wide = wide.with_context(|| format!("a term names {named} axes of {}", show(shape)))?;
        let mut at = 0;
        for &l in term {
            if l == ELLIPSIS {
                dots = broadcast_dims(&dots, &shape[at..at + wide])?;
                at += wide;
                continue;
            }
            let d = &shape[at];
            at += 1;
            let old = sizes.entry(l).or_insert_with(|| d.clone());
            if *old == Dim::Known(1) {
                *old = d.clone();
            }
            ensure!(
                !old.differs(d) || *d == Dim::Known(1),
                "label {l} stands for {old} and {d}"
            );
            *old = old.and(d);
        }
    }
    Ok((sizes, dots))
}

fn einsum(c: &Call) -> Result<Vec<Fact>> {
    let dtype = c.dtype(0);
    let shapes: Option<Vec<&[Dim]>> = (0..c.inputs.len()).map(|i| c.shape(i)).collect();
    let (Some(eq), Some(shapes)) = (c.node.string("equation").and_then(equation), shapes) else {
        return Ok(vec![Fact::new(dtype, None)]);
    };
    let (sizes, dots) = labels(&eq, &shapes)?;
    let mut out = Vec::new();
    for l in &eq.output {
        match l {
            &ELLIPSIS => out.extend(dots.iter().cloned()),
            l => out.push(sizes.get(l).cloned().unwrap_or_default()),
        }
    }
    Ok(vec![Fact::new(dtype, Some(out))])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, f};
    use crate::ir::Attr;

    #[test]
    fn matmul_follows_numpy() {
        let mm = |a: &str, b: &str| dims("MatMul", 13, vec![], &[f(a), f(b)]);
        assert_eq!(mm("N, L, 64", "64, 128"), "[N, L, 128]");
        assert_eq!(mm("8, 1, 3, 4", "5, 4, 2"), "[8, 5, 3, 2]");
        assert_eq!(mm("4", "4, 2"), "[2]");
        assert_eq!(mm("3, 4", "4"), "[3]");
        assert_eq!(mm("4", "4"), "[]");
        assert!(mm("2, 3", "4, 5").starts_with("error: inner dimensions"));
        assert_eq!(mm("2, K", "4, 5"), "[2, 5]");
        assert!(mm("", "4, 5").starts_with("error"));
    }

    #[test]
    fn gemm_transposes_and_checks_the_bias() {
        let gemm = |attrs: Vec<Attr>, c: &str| dims("Gemm", 13, attrs, &[f("N, 4"), f("8, 4"), f(c)]);
        assert_eq!(gemm(vec![Attr::int("transB", 1)], "8"), "[N, 8]");
        assert!(gemm(vec![], "8").starts_with("error: inner dimensions"));
        assert!(gemm(vec![Attr::int("transB", 1)], "7").starts_with("error"));
        assert!(gemm(vec![Attr::int("transB", 1)], "2, 1, 8").starts_with("error"));
    }

    #[test]
    fn einsum_reads_the_equation() {
        let e = |eq: &str, a: &str, b: &str| dims("Einsum", 12, vec![Attr::string("equation", eq)], &[f(a), f(b)]);
        assert_eq!(e("bij, bjk -> bik", "2, 3, 4", "2, 4, 5"), "[2, 3, 5]");
        assert_eq!(e("...ij,...jk", "7, N, 3, 4", "4, 5"), "[7, N, 3, 5]");
        assert_eq!(e("ij,ij->", "3, 4", "3, 4"), "[]");
        assert!(e("ij,jk->ik", "3, 4", "5, 6").starts_with("error: label j"));
        assert!(e("ij,jk->ik", "3, 4, 5", "5, 6").starts_with("error: a term"));
    }
}
