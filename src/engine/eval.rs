//! The values of constant sub-graphs, computed by an engine.

use super::{Engine, NotRun};
use crate::data::Sample;
use crate::ir::{Model, NodeId, Origin, Tensor, ValueId};
use crate::ops::is_random;
use std::collections::BTreeSet;

/// Computes values of the main graph that are the same in every run, in the order given. One call for many values costs
/// little more than one for a single value.
///
/// # Errors
/// [`NotRun`] when a value depends on an input (one with a default that a caller may override, too) or on chance, or when
/// the engine lacks an operator on the way; then none of the values is given.
pub fn evaluate(engine: &dyn Engine, model: &Model, values: &[ValueId]) -> Result<Vec<Tensor>, NotRun> {
    for &v in values {
        if model.value(v).graph() != model.main_id() {
            return Err(NotRun(format!("{} is in a sub-graph", model.value(v).name)));
        }
    }
    constant(model, values)?;
    let nothing = Sample::new();
    let session = engine.load(model, values, &nothing)?;
    session.run(&nothing).map_err(|e| NotRun(format!("{e:#}")))
}

/// Fails when a value is not the same in every run.
fn constant(model: &Model, values: &[ValueId]) -> Result<(), NotRun> {
    let mut seen: BTreeSet<ValueId> = values.iter().copied().collect();
    let mut queue: Vec<ValueId> = values.to_vec();
    while let Some(v) = queue.pop() {
        let value = model.value(v);
        match value.origin() {
            Origin::Input if value.graph() == model.main_id() && model.constant(v).is_none() => {
                return Err(NotRun(format!("depends on input {}", value.name)));
            }
            Origin::Node(n, _) => {
                let mut reads = Vec::new();
                reads_of(model, n, &mut reads)?;
                queue.extend(reads.into_iter().filter(|r| seen.insert(*r)));
            }
            Origin::Input | Origin::Const | Origin::Sparse => {}
        }
    }
    Ok(())
}

/// What a node and the nodes of its sub-graphs read.
fn reads_of(model: &Model, id: NodeId, out: &mut Vec<ValueId>) -> Result<(), NotRun> {
    let node = model.node(id);
    if is_random(node) {
        return Err(NotRun(format!("{} is random", model.label(id))));
    }
    out.extend(node.inputs().iter().flatten());
    for g in node.sub_graphs() {
        out.extend(model.graph(g).outputs().iter().map(|p| p.value));
        for &inner in model.graph(g).nodes() {
            reads_of(model, inner, out)?;
        }
    }
    Ok(())
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;
    use crate::engine::testing::{Builder, ints};
    use crate::engine::tract::Tract;
    use crate::ir::{Attr, DType};

    #[test]
    fn shape_arithmetic_is_exact() {
        let mut b = Builder::new(13);
        let w = b.constant("w", Tensor::new(&[2, 3, 5], vec![0f32; 30]));
        let shape = b.op("Shape", &[w], vec![]);
        let zero = b.constant("zero", Tensor::new(&[1], vec![0i64]));
        let two = b.constant("two", Tensor::new(&[1], vec![2i64]));
        let first = b.op("Gather", &[shape, zero], vec![Attr::int("axis", 0)]);
        let big = b.constant("big", Tensor::new(&[1], vec![1i64 << 53]));
        let sum = b.op("Add", &[first, big], vec![]);
        let tail = b.op("Slice", &[shape, zero, two], vec![]);
        let all = b.op("Concat", &[sum, tail], vec![Attr::int("axis", 0)]);
        let got = evaluate(&Tract, &b.model, &[all, shape]).expect("constant");
        assert_eq!(got[0].dtype(), DType::Int64);
        assert_eq!(ints(&got[0]), [(1 << 53) + 2, 2, 3]);
        assert_eq!(ints(&got[1]), [2, 3, 5]);
    }

    #[test]
    fn integer_division_rounds_towards_zero() {
        let mut b = Builder::new(13);
        let x = b.constant("x", Tensor::new(&[4], vec![7i64, -7, 7, -7]));
        let y = b.constant("y", Tensor::new(&[4], vec![2i64, 2, -2, -2]));
        let q = b.op("Div", &[x, y], vec![]);
        assert_eq!(
            ints(&evaluate(&Tract, &b.model, &[q]).expect("constant")[0]),
            [3, -3, -3, 3]
        );
    }

    #[test]
    fn what_depends_on_an_input_or_on_chance_is_refused() {
        let mut b = Builder::new(13);
        let x = b.input("x", DType::Float, &[2]);
        let y = b.op("Relu", &[x], vec![]);
        let e = evaluate(&Tract, &b.model, &[y]).expect_err("x is an input");
        assert!(e.0.contains("input x"), "{e}");
        let r = b.op("RandomNormal", &[], vec![Attr::ints("shape", vec![2])]);
        assert!(
            evaluate(&Tract, &b.model, &[r])
                .expect_err("random")
                .0
                .contains("random")
        );
    }

    #[test]
    fn an_input_with_a_default_is_constant_only_where_nobody_can_override_it() {
        for (ir, constant) in [(3, true), (8, false)] {
            let mut b = Builder::new(13);
            b.model.rest.ir_version = Some(ir);
            let x = b.input("x", DType::Int64, &[1]);
            b.model.set_default(x, Tensor::new(&[1], vec![4i64]));
            let y = b.op("Neg", &[x], vec![]);
            let got = evaluate(&Tract, &b.model, &[y]);
            assert_eq!(got.is_ok(), constant, "IR {ir}");
            if let Ok(got) = got {
                assert_eq!(ints(&got[0]), [-4]);
            }
        }
    }
}
