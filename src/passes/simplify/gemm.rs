//! `MatMul` and `Add` become `Gemm` where both factors are certainly matrices and the addend is a row (or a number):
//! `A·B + c` with A: [M, K], B: [K, N], c: [N], [1, N], [1] or a scalar.

use super::work::Work;
use crate::ir::{DType, NodeId};
use crate::ops::infer::Dim;

pub(super) fn from_matmul_add(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is(id, "Add") || w.opset(id) < 7 {
        return None;
    }
    let slot = (0..2).find(|&s| w.private_producer(id, s).is_some_and(|p| w.is(p, "MatMul")))?;
    let matmul = w.private_producer(id, slot)?;
    let (a, b) = (w.model.node(matmul).input(0)?, w.model.node(matmul).input(1)?);
    let c = w.model.node(id).input(1 - slot)?;
    let float = matches!(w.facts.dtype(b)?, DType::Float | DType::Double | DType::Float16);
    if !float || w.facts.rank(a)? != 2 || w.facts.rank(b)? != 2 || !is_row(w.facts.shape(c)?, &w.facts.shape(b)?[1]) {
        return None;
    }
    w.model.set_inputs(id, vec![Some(a), Some(b), Some(c)]);
    w.set_op(id, "Gemm", Vec::new());
    w.model.erase(matmul);
    Some("MatMul and Add made one Gemm".into())
}

fn is_row(c: &[Dim], n: &Dim) -> bool {
    let one = Dim::Known(1);
    match c {
        [] => true,
        [d] => *d == one || d.same(n),
        [first, d] => *first == one && (*d == one || d.same(n)),
        _ => false,
    }
}
