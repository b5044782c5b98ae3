//! Attention and its companions.

use super::Table;
use super::call::Call;
use super::fact::{Dim, Fact};
use anyhow::Result;

pub(super) const TABLE: Table = &[
    ("Attention", attention),
    ("LinearAttention", linear),
    ("RotaryEmbedding", super::norm::same),
];

pub(super) const MICROSOFT: Table = &[
    ("MultiHeadAttention", multi_head),
    ("RotaryEmbedding", super::norm::same),
];

/// Q: [B, L, heads·d_k], V: [B, S, heads·d_v] → [B, L, heads·d_v]; packed forms are left unknown.
fn multi_head(c: &Call) -> Result<Vec<Fact>> {
    let out = match (c.shape(0), c.shape(2)) {
        (Some([b, l, _]), Some([_, _, w])) => Some(vec![b.clone(), l.clone(), w.clone()]),
        _ => None,
    };
    Ok(vec![Fact::new(c.dtype(0), out)])
}

fn count(c: &Call, name: &str) -> Dim {
    let n = c.node.int(name).and_then(|n| usize::try_from(n).ok());
    n.filter(|n| *n > 0).map_or(Dim::Unknown, Dim::Known)
}

fn over(a: &Dim, b: &Dim) -> Dim {
    match (a, b) {
        (Dim::Known(a), Dim::Known(b)) => a.checked_div(*b).map_or(Dim::Unknown, Dim::Known),
        _ => Dim::Unknown,
    }
}

/// One operand of attention as heads: [batch, heads, length, width].
fn heads(s: &[Dim], n: Dim) -> Option<[Dim; 4]> {
    match s {
        [b, h, l, w] => Some([b.clone(), h.clone(), l.clone(), w.clone()]),
        [b, l, w] => {
            let width = over(w, &n);
            Some([b.clone(), n, l.clone(), width])
        }
        _ => None,
    }
}

/// Q, K, V, mask, past K, past V; 4-D operands are [B, heads, L, width], 3-D ones [B, L, heads·width].
/// Y has the form of Q; present K and V, and the scores [B, heads, L_q, L_kv], are 4-D.
fn attention(c: &Call) -> Result<Vec<Fact>> {
    let operand = |i: usize, name: &str| c.shape(i).and_then(|s| heads(s, count(c, name)));
    let (dtype, value_type) = (c.dtype(0), c.dtype(2).or(c.dtype(0)));
    let (Some(q), Some(k), Some(v)) = (
        operand(0, "q_num_heads"),
        operand(1, "kv_num_heads"),
        operand(2, "kv_num_heads"),
    ) else {
        return Ok(vec![
            Fact::new(dtype, None),
            Fact::new(dtype, None),
            Fact::new(value_type, None),
        ]);
    };
    let [b, n, l, _] = q;
    let y = match c.shape(0) {
        Some([_, _, _]) => vec![b.clone(), l.clone(), n.times(&v[3])],
        _ => vec![b.clone(), n.clone(), l.clone(), v[3].clone()],
    };
    let past = match c.shape(4) {
        Some(p) => p.get(2).cloned().unwrap_or_default(),
        None if c.has(4) => Dim::Unknown,
        None => Dim::Known(0),
    };
    let total = past.plus(&k[2]);
    let present = |s: &[Dim; 4]| vec![b.clone(), s[1].clone(), total.clone(), s[3].clone()];
    Ok(vec![
        Fact::new(dtype, Some(y)),
        Fact::new(dtype, Some(present(&k))),
        Fact::new(value_type, Some(present(&v))),
        Fact::new(dtype, Some(vec![b.clone(), n, l, total.clone()])),
    ])
}

/// Q: [B, L, heads·d_k], K: [B, L, kv·d_k], V: [B, L, kv·d_v] → [B, L, heads·d_v], and the state [B, kv, d_k, d_v].
fn linear(c: &Call) -> Result<Vec<Fact>> {
    let (n, kv) = (count(c, "q_num_heads"), count(c, "kv_num_heads"));
    let (Some([b, l, _]), Some([_, _, k]), Some([_, _, v])) = (c.shape(0), c.shape(1), c.shape(2)) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    let (d_k, d_v) = (over(k, &kv), over(v, &kv));
    let state = vec![b.clone(), kv, d_k, d_v.clone()];
    Ok(vec![
        Fact::new(c.dtype(0), Some(vec![b.clone(), l.clone(), n.times(&d_v)])),
        Fact::new(c.dtype(3), Some(state)),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, f};
    use crate::ir::Attr;

    #[test]
    fn attention_takes_heads_in_either_form() {
        let four = [f("N, 8, L, 64"), f("N, 2, S, 64"), f("N, 2, S, 32")];
        assert_eq!(dims("Attention", 23, vec![], &four), "[N, 8, L, 32]");
        let three = [f("N, L, 512"), f("N, S, 128"), f("N, S, 64")];
        let attrs = vec![Attr::int("q_num_heads", 8), Attr::int("kv_num_heads", 2)];
        assert_eq!(dims("Attention", 23, attrs, &three), "[N, L, 256]");
        assert_eq!(
            dims("Attention", 23, vec![Attr::int("q_num_heads", 0)], &three),
            "[N, L, ?]"
        );
    }
}
