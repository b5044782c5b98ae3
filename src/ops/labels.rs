//! Outputs that dress up numbers as names: converters of classifiers end a graph with the label of the best class, and with a map from labels to
//! scores. No engine here computes strings and maps, and there is nothing in them but the numbers.

use crate::ir::{DType, Model, ValueId};

const ML: &str = "ai.onnx.ml";

/// The numbers behind an output: what ZipMap puts into maps, or the index at which a label is looked up. Any other value is itself.
pub fn numbers(model: &Model, v: ValueId) -> ValueId {
    behind(model, v).unwrap_or(v)
}

/// The numbers behind the outputs of a model, in their order.
pub fn outputs(model: &Model) -> Vec<ValueId> {
    let outputs = model.main().outputs().iter();
    outputs.map(|p| numbers(model, p.value)).collect()
}

fn behind(model: &Model, v: ValueId) -> Option<ValueId> {
    let n = model.node(model.value(v).producer()?);
    let of_ml = |name: &str| n.op.domain == ML && n.op.name == name;
    if of_ml("ZipMap") {
        return n.input(0);
    }
    let strings = |v: ValueId| {
        let constant = model
            .value(v)
            .producer()
            .map(|id| model.node(id))
            .filter(|n| n.is("Constant"));
        let given = constant.and_then(|n| n.attr("value")?.proto.t.as_ref().map(|t| t.data_type()));
        let dtype = given.or(model.constant(v).map(|t| t.dtype() as i32));
        dtype == Some(DType::String as i32)
    };
    let looked_up = of_ml("ArrayFeatureExtractor") || n.is("Gather");
    n.input(1).filter(|_| looked_up && n.input(0).is_some_and(strings))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::Builder;
    use crate::ir::{Attr, Tensor};

    #[test]
    fn labels_and_maps_of_scores_are_seen_through() {
        let mut b = Builder::new(13);
        let x = b.input("x", DType::Float, &[1, 3]);
        let scores = b.op("Softmax", &[x], vec![]);
        let best = b.op("ArgMax", &[scores], vec![]);
        let mut labels = Tensor::new(&[3], vec![0f32; 3]).to_inline_proto();
        labels.data_type = Some(DType::String as i32);
        labels.raw_data = None;
        labels.string_data = vec!["a".into(), "b".into(), "c".into()];
        let labels = b.op("Constant", &[], vec![Attr::tensor("value", labels)]);
        let of_ml = |b: &mut Builder, op: &str, inputs: &[ValueId]| {
            let v = b.op(op, inputs, vec![]);
            let id = b.model.value(v).producer().expect("a node");
            b.model.node_mut(id).op.domain = ML.into();
            v
        };
        let label = of_ml(&mut b, "ArrayFeatureExtractor", &[labels, best]);
        let map = of_ml(&mut b, "ZipMap", &[scores]);
        let gathered = b.op("Gather", &[labels, best], vec![]);
        let m = &b.model;
        assert_eq!([label, gathered, map].map(|v| numbers(m, v)), [best, best, scores]);
        let of_numbers = of_ml(&mut b, "ArrayFeatureExtractor", &[scores, best]);
        assert_eq!(numbers(&b.model, of_numbers), of_numbers);
        assert_eq!([scores, x].map(|v| numbers(&b.model, v)), [scores, x]);
    }
}
