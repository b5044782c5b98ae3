//! Constants whose elements only move: Transpose, and the operators that change dimensions alone. Both work on tensors of
//! any size: the data are read once, in order, and pages of a mapped file are given back on the way.

use super::work::Work;
use crate::ir::store::{keep, stream};
use crate::ir::{NodeId, Tensor, bits};

/// Operators whose output has the bytes of input 0.
const VIEWS: &[&str] = &["Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"];

/// The output of such a node on a constant; `None` for other nodes and where dimensions are not known.
pub(super) fn value(w: &Work, id: NodeId) -> Option<Tensor> {
    let op = w.model.node(id).op.name.as_str();
    let (views, moves) = (VIEWS.contains(&op), op == "Transpose");
    if !views && !moves {
        return None;
    }
    let x = w.constant_input(id, 0)?;
    if views {
        let dims = w.facts.get(w.model.node(id).output(0)?).dims()?;
        return (dims.iter().product::<usize>() == x.len()).then(|| x.with_dims(&dims));
    }
    let rank = x.dims().len();
    let perm = match w.model.node(id).ints("perm") {
        None => (0..rank).rev().collect(),
        Some(p) => p
            .iter()
            .map(|&a| usize::try_from(a).ok())
            .collect::<Option<Vec<usize>>>()?,
    };
    transposed(&x, &perm)
}

/// Axis `i` of the result is axis `perm[i]` of `x`.
fn transposed(x: &Tensor, perm: &[usize]) -> Option<Tensor> {
    let rank = x.dims().len();
    let mut place = vec![usize::MAX; rank];
    for (i, &a) in perm.iter().enumerate() {
        *place.get_mut(a)? = i;
    }
    let width = bits(x.dtype()).filter(|b| b % 8 == 0)? / 8;
    if perm.len() != rank || place.contains(&usize::MAX) {
        return None;
    }
    let dims: Vec<usize> = perm.iter().map(|&a| x.dims()[a]).collect();
    let bytes = x.len().checked_mul(width)?;
    if bytes == 0 {
        return None;
    }
    // Bytes from one element to the next in the result, along each axis of `x`.
    let stride = |i: usize| dims[i + 1..].iter().product::<usize>() * width;
    let strides: Vec<usize> = place.iter().map(|&i| stride(i)).collect();
    let mut out = vec![0u8; bytes];
    let (raw, from) = (x.raw(), x.dims());
    match width {
        1 => scatter::<1>(&raw, from, &strides, &mut out),
        2 => scatter::<2>(&raw, from, &strides, &mut out),
        4 => scatter::<4>(&raw, from, &strides, &mut out),
        8 => scatter::<8>(&raw, from, &strides, &mut out),
        _ => return None,
    }
    Tensor::from_raw(x.dtype(), &dims, keep(out)).ok()
}

/// Puts element (i, j, …) of `raw`, which has dimensions `dims`, at byte `i·strides[0] + j·strides[1] + …` of `out`.
fn scatter<const W: usize>(raw: &[u8], dims: &[usize], strides: &[usize], out: &mut [u8]) {
    let (mut index, mut to) = (vec![0usize; dims.len()], 0usize);
    let done = stream(raw, |chunk| {
        for element in chunk.as_chunks::<W>().0 {
            if let Some(place) = out.get_mut(to..to + W) {
                place.copy_from_slice(element);
            }
            for axis in (0..dims.len()).rev() {
                index[axis] += 1;
                to += strides[axis];
                if index[axis] < dims[axis] {
                    break;
                }
                to -= strides[axis] * index[axis];
                index[axis] = 0;
            }
        }
        Ok::<(), std::convert::Infallible>(())
    });
    let Ok(()) = done;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_permutation_of_three_axes_puts_each_element_where_it_belongs() {
        let dims = [2, 3, 5];
        let x = Tensor::new(&dims, (0..30i32).collect());
        for perm in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let y = transposed(&x, &perm).expect("a permutation");
            let data = y.view::<i32>().expect("int32");
            let d = y.dims();
            for (i, &e) in data.iter().enumerate() {
                let at = [i / (d[1] * d[2]), i / d[2] % d[1], i % d[2]];
                let mut from = [0; 3];
                perm.iter().zip(at).for_each(|(&a, p)| from[a] = p);
                assert_eq!(e as usize, (from[0] * 3 + from[1]) * 5 + from[2], "{perm:?}");
            }
        }
        assert!(transposed(&x, &[0, 0, 1]).is_none());
        assert!(transposed(&x, &[0, 1]).is_none());
        assert!(transposed(&x, &[0, 1, 3]).is_none());
    }
}
