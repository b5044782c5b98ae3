//! Outputs that are put together from things of different kinds: a detector's boxes, in pixels, beside its scores, from 0 to 1. Errors of
//! such an output as a whole say nothing of its smaller parts.

use crate::ir::{Model, NodeId, Tensor, ValueId};
use crate::ops::saturates;
use crate::ops::types::Types;
use std::collections::BTreeSet;

/// A run of indices along one axis of an output.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The value that stands there.
    pub name: String,
    /// It comes from Sigmoid, Softmax or the like: its numbers have a scale by nature.
    pub saturates: bool,
    axis: usize,
    start: usize,
    length: usize,
}

/// More are no longer things of different kinds.
const MOST: usize = 4;

/// The parts of the model's outputs, each with the number of the output: of those whose last operator, but for Transpose, Cast and codes, is a
/// Concat of values that different operators make. `types`: for the dimensions of the samples.
pub fn parts(model: &Model, types: &Types) -> Vec<(usize, Part)> {
    let outputs = model.main().outputs().iter().enumerate();
    let all = outputs.flat_map(|(k, port)| {
        let found = found(model, port.value, types).unwrap_or_default();
        found.into_iter().map(move |part| (k, part))
    });
    all.collect()
}

fn found(model: &Model, output: ValueId, types: &Types) -> Option<Vec<Part>> {
    let dims = |v| types.dims(v);
    let rank = types.rank(output)?;
    // Which axis of the value at hand each axis of the output is.
    let mut axes: Vec<usize> = (0..rank).collect();
    let mut v = output;
    let concat = loop {
        let id = model.value(v).producer()?;
        let node = model.node(id);
        match node.op.name.as_str() {
            _ if !node.op.domain.is_empty() || node.has_attr_refs() => return None,
            "Concat" => break id,
            "Transpose" => {
                let turned: Vec<usize> = match node.ints("perm") {
                    Some(perm) => perm.iter().map(|p| usize::try_from(*p).ok()).collect::<Option<_>>()?,
                    None => (0..rank).rev().collect(),
                };
                axes = axes.iter().map(|a| turned.get(*a).copied()).collect::<Option<_>>()?;
            }
            "Identity" | "Cast" | "QuantizeLinear" | "DequantizeLinear" => {}
            _ => return None,
        }
        v = node.input(0)?;
    };
    let node = model.node(concat);
    let axis = node.int("axis")?;
    let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()?;
    let along = axes.iter().position(|a| *a == axis)?;
    let mut kinds = BTreeSet::new();
    let (mut all, mut start) = (Vec::new(), 0);
    for v in node.inputs() {
        let v = (*v)?;
        let made = model.node(made_by(model, v)?);
        kinds.insert(made.op.name.clone());
        let length = *dims(v)?.get(axis)?;
        all.push(Part {
            name: model.value(v).name.clone(),
            saturates: saturates(made),
            axis: along,
            start,
            length,
        });
        start += length;
    }
    (kinds.len() > 1 && all.len() <= MOST && dims(output)?.get(along) == Some(&start)).then_some(all)
}

/// The operator that makes a value, codes, casts and moves aside.
pub(super) fn made_by(model: &Model, mut v: ValueId) -> Option<NodeId> {
    const ASIDE: [&str; 7] = [
        "Cast",
        "QuantizeLinear",
        "DequantizeLinear",
        "Transpose",
        "Reshape",
        "Identity",
        "Unsqueeze",
    ];
    loop {
        let id = model.value(v).producer()?;
        if !ASIDE.iter().any(|op| model.node(id).is(op)) {
            return Some(id);
        }
        v = model.node(id).input(0)?;
    }
}

impl Part {
    /// What two forms of an output hold there; `None` when they are no floats, or the dimensions do not fit.
    pub fn both(&self, x: &Tensor, y: &Tensor) -> Option<(Vec<f32>, Vec<f32>)> {
        let of = |t: &Tensor| self.of(&t.reals()?, t.dims());
        of(x).zip(of(y))
    }

    fn of(&self, x: &[f32], dims: &[usize]) -> Option<Vec<f32>> {
        let length = *dims.get(self.axis).filter(|n| self.start + self.length <= **n)?;
        let inner: usize = dims[self.axis + 1..].iter().product();
        let runs = x.chunks_exact((length * inner).max(1));
        let run = |run: &[f32]| run[self.start * inner..(self.start + self.length) * inner].to_vec();
        (x.len() == dims.iter().product::<usize>()).then(|| runs.flat_map(run).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::Builder;
    use crate::ir::{Attr, DType};
    use crate::ops::types::infer;

    #[test]
    fn boxes_and_scores_are_told_apart_behind_a_transpose() {
        for op in ["Sigmoid", "Neg"] {
            let mut b = Builder::new(13);
            let x = b.input("x", DType::Float, &[1, 2, 3]);
            let boxes = b.op("Neg", &[x], vec![]);
            let scores = b.op(op, &[x], vec![]);
            let all = b.op("Concat", &[boxes, scores], vec![Attr::int("axis", 1)]);
            let y = b.op("Transpose", &[all], vec![Attr::ints("perm", vec![0, 2, 1])]);
            let types = infer(&b.model).expect("dimensions");
            let found = found(&b.model, y, &types).unwrap_or_default();
            if op == "Neg" {
                assert_eq!(found, [], "things of one kind");
                continue;
            }
            let numbers: Vec<f32> = (0..12).map(|i| i as f32).collect();
            let cut = |i: usize| found[i].of(&numbers, &[1, 3, 4]).expect("it fits");
            assert_eq!(
                (cut(0), cut(1)),
                (vec![0., 1., 4., 5., 8., 9.], vec![2., 3., 6., 7., 10., 11.])
            );
            assert_eq!((found[0].saturates, found[1].saturates), (false, true));
            assert_eq!(found[1].of(&numbers, &[1, 4, 3]), None);
        }
    }
}
