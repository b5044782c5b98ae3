//! `Attention` and `MultiHeadAttention` of ONNX Runtime: `softmax(Q Kᵀ / √d + mask) V` for every head, with the projections to Q, K and V before it
//! or only their biases. Weights become three, of which each product has a range of its own.
//!
//! Spelled out are those without a past, without rotation, with a mask of rows (`[batch, length]`), of lengths (`[batch]`), for every query
//! (`[batch, length, length]`), or causal.

use super::{Facts, Speller};
use crate::ir::{Attr, DType, Model, Tensor, ValueId};

/// How a mask is given.
enum Mask {
    /// How many positions count, for every sample.
    Lengths,
    /// Which positions count.
    Rows,
    /// The same for every query.
    Queries,
}

/// What goes into the scores of all heads.
struct Heads {
    count: i64,
    scale: f32,
    mask: Option<(ValueId, Mask)>,
    /// Added to the scores.
    bias: Option<ValueId>,
}

/// Inputs: x, weight [d, q + k + v], bias, mask, past, bias of scores, length of the past.
pub(super) fn attention(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    let n = s.model.node(s.id);
    let given = |slot: usize| n.input(slot).is_some();
    if given(4) || given(6) || n.output(1).is_some() || n.int_or("do_rotary", 0) != 0 {
        return None;
    }
    let (x, weight) = (s.input(0)?, s.model.constant(s.input(1)?)?);
    let &[rows, columns] = weight.dims() else { return None };
    let sizes = match n.ints("qkv_hidden_sizes").unwrap_or_default() {
        [] => vec![columns / 3; 3],
        sizes => sizes.iter().map(|n| usize::try_from(*n).ok()).collect::<Option<_>>()?,
    };
    let heads = heads(s, sizes[0], (3, 5), facts)?;
    let sum = sizes.iter().try_fold(0usize, |sum, n| sum.checked_add(*n));
    if sizes.len() != 3 || sizes[0] != sizes[1] || sum != Some(columns) {
        return None;
    }
    let weights = columns_of(&weight.floats()?, rows, &sizes);
    let biases = biases(s, s.input(2), &sizes)?;
    let all = ["query", "key", "value"]
        .into_iter()
        .zip(weights)
        .zip(biases)
        .zip(&sizes);
    let parts = all.map(|(((name, weight), bias), size)| {
        let weight = s.named(&format!("{name}_weight"), Tensor::new(&[rows, *size], weight));
        let product = s.pair("MatMul", x, weight);
        biased(s, product, name, bias)
    });
    let parts: Vec<ValueId> = parts.collect();
    attend(s, [parts[0], parts[1], parts[2]], heads);
    Some(())
}

/// Inputs: query, key, value (each [batch, length, width]), bias, mask, bias of scores, past key, past value.
pub(super) fn multi_head(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    let n = s.model.node(s.id);
    let given = |slot: usize| n.input(slot).is_some();
    let outputs = (1..n.outputs().len()).any(|slot| n.output(slot).is_some());
    if (6..=9).any(given) || outputs {
        return None;
    }
    let parts = [s.input(0)?, s.input(1)?, s.input(2)?];
    if parts.iter().any(|v| facts.rank(*v).is_some_and(|rank| rank != 3)) {
        return None;
    }
    let width = facts.width(parts[0])?;
    let heads = heads(s, width, (4, 5), facts)?;
    let all = match s.input(3) {
        None => [None, None, None],
        Some(bias) => {
            let values = s.model.constant(bias)?.len().checked_sub(2 * width)?;
            biases(s, Some(bias), &[width, width, values])?
        }
    };
    let named = ["query", "key", "value"].into_iter().zip(parts).zip(all);
    let parts: Vec<ValueId> = named.map(|((name, part), bias)| biased(s, part, name, bias)).collect();
    attend(s, [parts[0], parts[1], parts[2]], heads);
    Some(())
}

/// Attributes and the inputs for scores, at these places; `width` is that of all queries of a position.
fn heads(s: &Speller, width: usize, (mask, bias): (usize, usize), facts: &dyn Facts) -> Option<Heads> {
    let n = s.model.node(s.id);
    let count = usize::try_from(n.int("num_heads")?).ok().filter(|n| *n > 0)?;
    if s.opset() < 11 || facts.dtype(s.input(0)?)? != DType::Float || width == 0 || !width.is_multiple_of(count) {
        return None;
    }
    let natural = 1.0 / ((width / count) as f32).sqrt();
    let mask = match n.input(mask) {
        None => None,
        Some(mask) => Some((mask, form(s.model, mask, facts)?)),
    };
    Some(Heads {
        count: count as i64,
        scale: n.float("scale").filter(|x| *x != 0.0).unwrap_or(natural),
        mask,
        bias: n.input(bias),
    })
}

/// The form of a mask. A vector may also hold two or three numbers for every sample; one that sums up rows does not.
fn form(model: &Model, mask: ValueId, facts: &dyn Facts) -> Option<Mask> {
    let (mut at, rank) = (mask, facts.rank(mask));
    while let Some(n) = model.value(at).producer().map(|n| model.node(n)) {
        match (n.op.domain.as_str(), n.op.name.as_str()) {
            ("", "Cast" | "Identity") => at = n.input(0)?,
            ("", "ReduceSum") if n.int_or("keepdims", 1) == 0 && rank.is_none_or(|r| r == 1) => {
                return Some(Mask::Lengths);
            }
            _ => break,
        }
    }
    match rank? {
        2 => Some(Mask::Rows),
        3 => Some(Mask::Queries),
        _ => None,
    }
}

/// Columns of a matrix, so many at a time.
fn columns_of(matrix: &[f32], rows: usize, sizes: &[usize]) -> Vec<Vec<f32>> {
    let all = matrix.len().checked_div(rows).unwrap_or(0);
    let mut start = 0;
    let part = |size: &usize| {
        let columns = start..start + size;
        start += size;
        matrix
            .chunks(all.max(1))
            .flat_map(|row| row[columns.clone()].to_vec())
            .collect()
    };
    sizes.iter().map(part).collect()
}

/// A bias for each; none where there is none.
fn biases(s: &Speller, bias: Option<ValueId>, sizes: &[usize]) -> Option<[Option<Vec<f32>>; 3]> {
    let Some(bias) = bias else {
        return Some([None, None, None]);
    };
    let bias = s.model.constant(bias)?.floats()?.into_owned();
    if bias.len() != sizes.iter().sum::<usize>() {
        return None;
    }
    let parts = columns_of(&bias, 1, sizes).into_iter().map(Some);
    parts.collect::<Vec<_>>().try_into().ok()
}

fn biased(s: &mut Speller, x: ValueId, name: &str, bias: Option<Vec<f32>>) -> ValueId {
    match bias {
        None => x,
        Some(bias) => {
            let bias = s.named(&format!("{name}_bias"), Tensor::new(&[bias.len()], bias));
            s.pair("Add", x, bias)
        }
    }
}

/// The node becomes the last operator of `softmax(Q Kᵀ scale + mask) V`, heads side by side.
fn attend(s: &mut Speller, [query, key, value]: [ValueId; 3], heads: Heads) {
    let dims = s.constant(Tensor::new(&[4], vec![0, 0, heads.count, -1]));
    let part = |s: &mut Speller, x: ValueId, perm: [i64; 4]| {
        let apart = s.pair("Reshape", x, dims);
        s.add("Transpose", &[Some(apart)], vec![Attr::ints("perm", perm.to_vec())])
    };
    let query_of_heads = part(s, query, [0, 2, 1, 3]);
    let key_of_heads = part(s, key, [0, 2, 3, 1]);
    let value_of_heads = part(s, value, [0, 2, 1, 3]);
    let scores = s.pair("MatMul", query_of_heads, key_of_heads);
    let scale = s.number(heads.scale);
    let mut scores = s.pair("Mul", scores, scale);
    let filter = s.float("mask_filter_value").unwrap_or(-10_000.0);
    if let Some((mask, form)) = heads.mask {
        let hidden = match form {
            Mask::Lengths => behind(s, mask, key),
            _ => {
                let seen = s.cast(mask, DType::Bool);
                s.add("Not", &[Some(seen)], Vec::new())
            }
        };
        let hidden = match form {
            Mask::Queries => s.unsqueezed(hidden),
            _ => {
                let dims = s.constant(Tensor::new(&[4], vec![0i64, 1, 1, -1]));
                s.pair("Reshape", hidden, dims)
            }
        };
        scores = masked(s, scores, hidden, filter);
    }
    if s.model.node(s.id).int_or("unidirectional", 0) != 0 {
        let later = later(s, key);
        scores = masked(s, scores, later, filter);
    }
    if let Some(bias) = heads.bias {
        scores = s.pair("Add", scores, bias);
    }
    let weights = s.add("Softmax", &[Some(scores)], vec![Attr::int("axis", -1)]);
    let sums = s.pair("MatMul", weights, value_of_heads);
    let together = s.add("Transpose", &[Some(sums)], vec![Attr::ints("perm", vec![0, 2, 1, 3])]);
    let dims = s.constant(Tensor::new(&[3], vec![0i64, 0, -1]));
    s.last("Reshape", &[Some(together), Some(dims)], Vec::new());
}

/// Adds the filter's value where something is hidden.
fn masked(s: &mut Speller, scores: ValueId, hidden: ValueId, filter: f32) -> ValueId {
    let (hidden, filter) = (s.cast(hidden, DType::Float), s.number(filter));
    let mask = s.pair("Mul", hidden, filter);
    s.pair("Add", scores, mask)
}

/// The positions `0, 1, …` of a value `[batch, length, width]`.
fn positions(s: &mut Speller, of: ValueId) -> ValueId {
    let length = s.dimension(of, 1);
    let dims = s.constant(Tensor::new(&[0], Vec::<i64>::new()));
    let length = s.pair("Reshape", length, dims);
    let (zero, one) = (s.constant(Tensor::scalar(0i64)), s.constant(Tensor::scalar(1i64)));
    s.add("Range", &[zero, length, one].map(Some), Vec::new())
}

/// Which positions lie behind the lengths: [batch, length].
fn behind(s: &mut Speller, lengths: ValueId, of: ValueId) -> ValueId {
    let (at, lengths) = (positions(s, of), s.cast(lengths, DType::Int64));
    let dims = s.constant(Tensor::new(&[2], vec![-1i64, 1]));
    let lengths = s.pair("Reshape", lengths, dims);
    let counts = s.pair("Less", at, lengths);
    s.add("Not", &[Some(counts)], Vec::new())
}

/// Which positions are later than that of a query: [length, length].
fn later(s: &mut Speller, of: ValueId) -> ValueId {
    let at = positions(s, of);
    let dims = s.constant(Tensor::new(&[2], vec![-1i64, 1]));
    let rows = s.pair("Reshape", at, dims);
    s.pair("Less", rows, at)
}

impl Speller<'_> {
    /// A constant named after what it is for.
    fn named(&mut self, what: &str, t: Tensor) -> ValueId {
        let name = self.model.fresh_name(&format!("{}_{what}", self.base));
        self.model.add_const(self.graph, &name, t)
    }

    /// With one more axis, the second.
    fn unsqueezed(&mut self, x: ValueId) -> ValueId {
        match self.opset() < 13 {
            true => self.add("Unsqueeze", &[Some(x)], vec![Attr::ints("axes", vec![1])]),
            false => {
                let axes = self.constant(Tensor::new(&[1], vec![1i64]));
                self.pair("Unsqueeze", x, axes)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_parted_row_by_row() {
        let parts = columns_of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, &[1, 0, 2]);
        assert_eq!(parts, [vec![1.0, 4.0], vec![], vec![2.0, 3.0, 5.0, 6.0]]);
    }
}
