//! Chains that only rearrange: `Reshape`, `Transpose`, `Slice`, `Gather` of one index, and their kin.
//!
//! Over a value of known dimensions, such a chain is a strided view: element `i` of the result is element
//! `offset + Σ strideₖ·iₖ` of the first input. Where one `Slice`, `Transpose` or `Reshape` gives the same view, it does
//! the work of the chain (a channel shuffle as Reshape, Transpose, Reshape and two Gather becomes two strided Slices).
//!
//! Nothing is done when a dimension is not known, or when a `Reshape` would have to copy (its input is no longer strided).

use super::chains::cuts;
use super::numbers::list;
use super::work::Work;
use crate::ir::{Attr, NodeId, ValueId};

/// The longest chain that is looked at.
const MAX_CHAIN: usize = 8;

#[derive(Clone)]
struct View {
    dims: Vec<usize>,
    strides: Vec<usize>,
    offset: usize,
}

enum Single {
    Nothing,
    Reshape,
    Transpose(Vec<i64>),
    /// Axis, start, end, step.
    Slice(Vec<[i64; 4]>),
}

pub(super) fn merge(w: &mut Work, id: NodeId) -> Option<String> {
    let mut chain = vec![id];
    while chain.len() < MAX_CHAIN && step_is_known(w, *chain.last()?) {
        match w.same_graph_producer(*chain.last()?, 0) {
            Some(p) if step_is_known(w, p) => chain.push(p),
            _ => break,
        }
    }
    let (length, single) = (2..=chain.len())
        .rev()
        .find_map(|n| Some((n, single_for(w, &chain[..n])?)))?;
    let x = w.model.node(chain[length - 1]).input(0)?;
    apply(w, id, x, single)?;
    Some(format!("a chain of {length} that only rearranges: made one"))
}

fn step_is_known(w: &Work, id: NodeId) -> bool {
    let ops = [
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Slice",
        "Gather",
    ];
    w.is_any(id, &ops) && w.opset(id) >= 5
}

/// The one operator for a chain (last node first).
fn single_for(w: &Work, chain: &[NodeId]) -> Option<Single> {
    let root = w.facts.get(w.model.node(*chain.last()?).input(0)?).dims()?;
    let mut view = View::whole(&root)?;
    for &id in chain.iter().rev() {
        view = step(w, id, view)?;
    }
    let out = w.facts.get(w.model.node(chain[0]).output(0)?).dims()?;
    if out != view.dims || out.contains(&0) {
        return None;
    }
    view.as_single(&root)
}

fn step(w: &Work, id: NodeId, view: View) -> Option<View> {
    let n = w.model.node(id);
    match n.op.name.as_str() {
        "Transpose" => {
            let rank = view.dims.len();
            let perm = n
                .ints("perm")
                .map_or_else(|| (0..rank as i64).rev().collect(), <[i64]>::to_vec);
            view.permuted(&perm)
        }
        "Slice" => view.cut(&cuts(w, id)?),
        "Gather" => {
            let index = w.constant_input(id, 1)?;
            let (&[i], rank) = (&index.ints()?[..], index.dims().len()) else {
                return None;
            };
            view.picked(n.int_or("axis", 0), i, rank)
        }
        _ => view.regrouped(&w.facts.get(n.output(0)?).dims()?),
    }
}

fn row_major(dims: &[usize]) -> Option<Vec<usize>> {
    let mut strides = vec![1usize; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i].checked_mul(dims[i])?;
    }
    Some(strides)
}

impl View {
    fn whole(dims: &[usize]) -> Option<View> {
        Some(View {
            dims: dims.to_vec(),
            strides: row_major(dims)?,
            offset: 0,
        })
    }

    fn permuted(&self, perm: &[i64]) -> Option<View> {
        let perm: Option<Vec<usize>> = perm.iter().map(|&p| usize::try_from(p).ok()).collect();
        let perm = perm.filter(|p| p.len() == self.dims.len() && p.iter().all(|&i| i < self.dims.len()))?;
        Some(View {
            dims: perm.iter().map(|&p| self.dims[p]).collect(),
            strides: perm.iter().map(|&p| self.strides[p]).collect(),
            offset: self.offset,
        })
    }

    fn cut(mut self, cuts: &[(i64, i64, i64, i64)]) -> Option<View> {
        for &(axis, start, end, step) in cuts {
            let axis = usize::try_from(axis).ok().filter(|a| *a < self.dims.len())?;
            let size = i64::try_from(self.dims[axis]).ok()?;
            let clamp = |p: i64| if p < 0 { p.saturating_add(size) } else { p }.clamp(0, size);
            let (start, end) = (clamp(start), clamp(end));
            if step < 1 || end <= start {
                return None;
            }
            self.offset += start as usize * self.strides[axis];
            self.dims[axis] = ((end - start - 1) / step + 1) as usize;
            self.strides[axis] = self.strides[axis].checked_mul(step as usize)?;
        }
        Some(self)
    }

    fn picked(mut self, axis: i64, index: i64, rank: usize) -> Option<View> {
        let axis = if axis < 0 { axis + self.dims.len() as i64 } else { axis };
        let axis = usize::try_from(axis).ok().filter(|a| *a < self.dims.len())?;
        let size = self.dims[axis] as i64;
        let index = if index < 0 { index + size } else { index };
        if !(0..size).contains(&index) || rank > 1 {
            return None;
        }
        self.offset += index as usize * self.strides[axis];
        self.dims[axis] = 1;
        if rank == 0 {
            self.dims.remove(axis);
            self.strides.remove(axis);
        }
        Some(self)
    }

    /// The same elements under other dimensions, when that needs no copy: runs of axes whose strides continue each other
    /// are regrouped run by run.
    fn regrouped(&self, dims: &[usize]) -> Option<View> {
        let old: Vec<(usize, usize)> = self
            .dims
            .iter()
            .copied()
            .zip(self.strides.iter().copied())
            .filter(|(d, _)| *d != 1)
            .collect();
        let mut strides = vec![0usize; dims.len()];
        let (mut i, mut j) = (0, 0);
        while i < old.len() {
            let (from_old, from_new) = (i, j);
            let (mut a, mut b) = (old[i].0, *dims.get(j)?);
            (i, j) = (i + 1, j + 1);
            while a != b {
                if a < b {
                    a = a.checked_mul(old.get(i)?.0)?;
                    i += 1;
                } else {
                    b = b.checked_mul(*dims.get(j)?)?;
                    j += 1;
                }
            }
            let continues = |k: usize| old[k].1 == old[k + 1].1 * old[k + 1].0;
            if !(from_old..i - 1).all(continues) {
                return None;
            }
            let mut stride = old[i - 1].1;
            for k in (from_new..j).rev() {
                strides[k] = stride;
                stride = stride.checked_mul(dims[k])?;
            }
        }
        if dims[j..].iter().any(|&d| d != 1) {
            return None;
        }
        Some(View {
            dims: dims.to_vec(),
            strides,
            offset: self.offset,
        })
    }

    fn as_single(&self, root: &[usize]) -> Option<Single> {
        let count = |d: &[usize]| d.iter().product::<usize>();
        if self.offset == 0 && count(&self.dims) == count(root) {
            let plain = self.same_as(&View::whole(&self.dims)?.strides);
            return match plain {
                true if self.dims == root => Some(Single::Nothing),
                true => Some(Single::Reshape),
                false => self.as_transpose(root),
            };
        }
        self.as_slice(root)
    }

    /// Strides of axes of size 1 do not matter.
    fn same_as(&self, strides: &[usize]) -> bool {
        let mut axes = self.dims.iter().zip(self.strides.iter().zip(strides));
        axes.all(|(&d, (a, b))| d == 1 || a == b)
    }

    fn as_transpose(&self, root: &[usize]) -> Option<Single> {
        if root.len() != self.dims.len() {
            return None;
        }
        let strides = row_major(root)?;
        let mut free: Vec<usize> = (0..root.len()).collect();
        let mut perm = Vec::new();
        for (&d, &s) in self.dims.iter().zip(&self.strides) {
            let place = free.iter().position(|&a| root[a] == d && (d == 1 || strides[a] == s))?;
            perm.push(free.remove(place) as i64);
        }
        Some(Single::Transpose(perm))
    }

    fn as_slice(&self, root: &[usize]) -> Option<Single> {
        if root.len() != self.dims.len() {
            return None;
        }
        let strides = row_major(root)?;
        let (mut rest, mut cuts) = (self.offset, Vec::new());
        for (axis, (&d, &s)) in self.dims.iter().zip(&self.strides).enumerate() {
            let start = rest / strides[axis];
            rest %= strides[axis];
            let step = if d == 1 { 1 } else { s / strides[axis] };
            if d != 1 && (s % strides[axis] != 0 || step == 0) || start + (d - 1) * step >= root[axis] {
                return None;
            }
            if d != root[axis] {
                let end = start + (d - 1) * step + 1;
                cuts.push([axis as i64, start as i64, end as i64, step as i64]);
            }
        }
        (rest == 0).then_some(Single::Slice(cuts))
    }
}

fn apply(w: &mut Work, id: NodeId, x: ValueId, single: Single) -> Option<()> {
    let graph = w.model.node(id).graph();
    match single {
        Single::Nothing => return w.bypass(id, x),
        Single::Reshape => {
            let out = w.facts.get(w.model.node(id).output(0)?).dims()?;
            let target: Option<Vec<i64>> = out.iter().map(|&d| i64::try_from(d).ok()).collect();
            let shape = w.add_const(graph, "shape", list(&target?));
            w.set_op(id, "Reshape", Vec::new());
            w.model.set_inputs(id, vec![Some(x), Some(shape)]);
        }
        Single::Transpose(perm) => {
            w.set_op(id, "Transpose", vec![Attr::ints("perm", perm)]);
            w.model.set_inputs(id, vec![Some(x)]);
        }
        Single::Slice(cuts) => {
            let column = |i: usize| cuts.iter().map(|c| c[i]).collect::<Vec<i64>>();
            if w.opset(id) < 10 {
                if cuts.iter().any(|c| c[3] != 1) {
                    return None;
                }
                let attrs = [("axes", 0), ("starts", 1), ("ends", 2)];
                w.set_op(id, "Slice", attrs.map(|(n, i)| Attr::ints(n, column(i))).into());
                w.model.set_inputs(id, vec![Some(x)]);
                return Some(());
            }
            let mut inputs = vec![Some(x)];
            for (name, i) in [("starts", 1), ("ends", 2), ("axes", 0), ("steps", 3)] {
                if name != "steps" || cuts.iter().any(|c| c[3] != 1) {
                    inputs.push(Some(w.add_const(graph, name, list(&column(i)))));
                }
            }
            w.set_op(id, "Slice", Vec::new());
            w.model.set_inputs(id, inputs);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_shuffle_is_a_strided_slice() {
        let root = [1, 6, 2, 2];
        let v = View::whole(&root).unwrap().regrouped(&[3, 2, 4]).unwrap();
        let v = v.permuted(&[1, 0, 2]).unwrap().regrouped(&[2, 1, 3, 2, 2]).unwrap();
        let v = v.picked(0, 1, 0).unwrap();
        assert_eq!(v.dims, [1, 3, 2, 2]);
        match v.as_single(&root) {
            Some(Single::Slice(cuts)) => assert_eq!(cuts, [[1, 1, 6, 2]]),
            _ => panic!("not a slice"),
        }
    }

    #[test]
    fn a_reshape_after_a_transpose_that_mixes_axes_is_no_view() {
        let v = View::whole(&[2, 3]).unwrap().permuted(&[1, 0]).unwrap();
        assert!(v.regrouped(&[6]).is_none());
        assert!(v.regrouped(&[3, 1, 2]).is_some());
    }

    #[test]
    fn a_transpose_of_axes_of_size_one_is_a_reshape() {
        let v = View::whole(&[1, 5, 1]).unwrap().permuted(&[1, 0, 2]).unwrap();
        assert!(matches!(v.as_single(&[1, 5, 1]), Some(Single::Reshape)));
    }
}
