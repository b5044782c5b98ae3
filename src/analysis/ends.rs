//! What outputs are computed from, where a function that saturates comes last: two outputs of a Softmax at 1.0 may agree while
//! the values before it have nothing in common.

use crate::ir::{Model, Use, ValueId};
use crate::ops::saturates;

/// Behind a function that saturates an output may be expected to err by so many times the relative power of the error before it at least, whatever few samples
/// say: where they are decided, others are not.
pub const BEFORE: f64 = 0.25;

/// The value that an output is computed from by a function that saturates. Codes and casts at the end are looked through.
pub fn before(model: &Model, output: ValueId) -> Option<ValueId> {
    let mut v = output;
    for _ in 0..MOST {
        let node = model.node(model.value(v).producer()?);
        if saturates(node) {
            return node.input(0);
        }
        v = node
            .input(0)
            .filter(|_| node.is("Cast") || CODES.iter().any(|op| node.is(op)))?;
    }
    None
}

/// So many nodes at the end are looked at.
const MOST: usize = 4;

const CODES: [&str; 2] = ["QuantizeLinear", "DequantizeLinear"];

/// The value as its readers see it: behind the codes, where it is read as codes. Before them it may not have been clipped yet:
/// a range of codes that ends at 0 is what became of a Relu.
pub fn as_read(model: &Model, v: ValueId) -> ValueId {
    let through = |v: ValueId, op: &str| {
        model.value(v).uses().iter().find_map(|u| match u {
            Use::Node(id, 0) if model.node(*id).is(op) => model.node(*id).output(0),
            _ => None,
        })
    };
    let codes = through(v, CODES[0]);
    codes.and_then(|c| through(c, CODES[1])).unwrap_or(v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::Builder;
    use crate::ir::{DType, Tensor};

    #[test]
    fn codes_are_looked_through_at_the_end_and_where_a_clip_is_gone() {
        let mut b = Builder::new(13);
        let x = b.input("x", DType::Float, &[1, 4]);
        let scale = b.constant("s", Tensor::new(&[], vec![0.1f32]));
        let codes = |b: &mut Builder, v| {
            let q = b.op("QuantizeLinear", &[v, scale], vec![]);
            b.op("DequantizeLinear", &[q, scale], vec![])
        };
        let h = b.op("Neg", &[x], vec![]);
        let read = codes(&mut b, h);
        let y = b.op("Softmax", &[read], vec![]);
        let end = codes(&mut b, y);
        assert_eq!((before(&b.model, end), before(&b.model, y)), (Some(read), Some(read)));
        assert_eq!(before(&b.model, read), None);
        assert_eq!((as_read(&b.model, h), as_read(&b.model, x)), (read, x));
    }
}
