//! Normalization joined with the sum before it: `SkipLayerNormalization`, and `EmbedLayerNormalization`, with which a BERT begins.

use super::{Facts, Speller};
use crate::ir::{Attr, DType, Tensor, ValueId};

/// LayerNormalization of `input + skip + bias`; that sum is output 3.
pub(super) fn skip_layer_norm(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    let n = s.model.node(s.id);
    let public = s.used(3).is_some_and(|v| s.model.value(v).is_output());
    if s.used(1).is_some() || s.used(2).is_some() || public || !s.can_normalize(facts) {
        return None;
    }
    let (input, skip, gamma) = (s.input(0)?, s.input(1)?, s.input(2)?);
    let (beta, bias, total) = (s.input(3), s.input(4), n.output(3));
    let mut sum = s.pair("Add", input, skip);
    if let Some(bias) = bias {
        sum = s.pair("Add", sum, bias);
    }
    if let Some(total) = total {
        s.model.replace_uses(total, sum);
    }
    s.normalize(sum, gamma, beta);
    Some(())
}

/// LayerNormalization of the sum of embeddings of words, positions and segments; that sum is output 2, and output 1 counts the ones of each
/// row of the mask.
pub(super) fn embed_layer_norm(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    let (ids, words, places) = (s.input(0)?, s.input(2)?, s.input(3)?);
    let (gamma, beta, mask) = (s.input(5)?, s.input(6), s.input(7));
    let (counts, total) = (s.used(1), s.used(2));
    let public = |v: Option<ValueId>| v.is_some_and(|v| s.model.value(v).is_output());
    if s.opset() < 11 || public(counts) || public(total) || (counts.is_some() && mask.is_none()) {
        return None;
    }
    if !s.can_normalize(facts) || facts.dtype(words)? != DType::Float {
        return None;
    }
    let word = s.pair("Gather", words, ids);
    let place = match s.input(8) {
        Some(chosen) => s.pair("Gather", places, chosen),
        None => {
            let length = s.dimension(ids, 1);
            let zero = s.constant(Tensor::new(&[1], vec![0i64]));
            s.add("Slice", &[places, zero, length, zero].map(Some), Vec::new())
        }
    };
    let mut sum = s.pair("Add", word, place);
    if let (Some(ids), Some(segments)) = (s.input(1), s.input(4)) {
        let segment = s.pair("Gather", segments, ids);
        sum = s.pair("Add", sum, segment);
    }
    if let (Some(counts), Some(mask)) = (counts, mask) {
        let one = s.constant(Tensor::scalar(1i32));
        let ones = s.pair("Equal", mask, one);
        let ones = s.cast(ones, DType::Int32);
        let count = s.sum_rows(ones);
        s.model.replace_uses(counts, count);
    }
    if let Some(total) = total {
        s.model.replace_uses(total, sum);
    }
    s.normalize(sum, gamma, beta);
    Some(())
}

/// `γ (x − μ)/√(σ² + ε) + β` with numbers for each channel that are computed.
pub(super) fn batch_norm(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    let n = s.model.node(s.id);
    let training = n.int_or("training_mode", 0) != 0 || n.outputs().iter().skip(1).flatten().next().is_some();
    let old = s.opset() < 9; // with `spatial`
    let x = s.input(0)?;
    let rank = facts.rank(x)?;
    if training || old || rank < 2 {
        return None;
    }
    let dims: Vec<i64> = (0..rank).map(|axis| if axis == 1 { -1 } else { 1 }).collect();
    let dims = s.constant(Tensor::new(&[rank], dims));
    let given = [1, 2, 3, 4].map(|slot| s.input(slot));
    let [gamma, beta, mean, variance] = given.map(|v| Some(s.pair("Reshape", v?, dims)));
    let around = s.pair("Sub", x, mean?);
    let epsilon = s.number(s.float("epsilon").unwrap_or(1e-5));
    let variance = s.pair("Add", variance?, epsilon);
    let deviation = s.add("Sqrt", &[Some(variance)], Vec::new());
    let even = s.pair("Div", around, deviation);
    let scaled = s.pair("Mul", even, gamma?);
    s.last("Add", &[Some(scaled), beta], Vec::new());
    Some(())
}

impl Speller<'_> {
    /// An output that somebody reads.
    fn used(&self, slot: usize) -> Option<ValueId> {
        let output = self.model.node(self.id).output(slot);
        output.filter(|v| !self.model.value(*v).uses().is_empty())
    }

    /// Whether [`Speller::normalize`] can be.
    fn can_normalize(&self, facts: &dyn Facts) -> bool {
        self.opset() >= 17 || self.input(2).and_then(|v| facts.dtype(v)) == Some(DType::Float)
    }

    /// The node becomes a LayerNormalization over the last axis, and loses its other outputs. ONNX has that operator since set 17; before, it is
    /// `γ (x − μ)/√(E(x − μ)² + ε) + β`.
    fn normalize(&mut self, x: ValueId, gamma: ValueId, beta: Option<ValueId>) {
        let epsilon = self.float("epsilon").unwrap_or(1e-12);
        for slot in (1..self.model.node(self.id).outputs().len()).rev() {
            self.model.drop_output(self.id, slot);
        }
        if self.opset() >= 17 {
            let inputs = [Some(x), Some(gamma), beta];
            let inputs = &inputs[..2 + usize::from(beta.is_some())];
            return self.last("LayerNormalization", inputs, vec![Attr::float("epsilon", epsilon)]);
        }
        let mean = self.mean(x);
        let around = self.pair("Sub", x, mean);
        let two = self.number(2.0);
        let square = self.pair("Pow", around, two);
        let variance = self.mean(square);
        let epsilon = self.number(epsilon);
        let variance = self.pair("Add", variance, epsilon);
        let deviation = self.add("Sqrt", &[Some(variance)], Vec::new());
        let even = self.pair("Div", around, deviation);
        match beta {
            Some(beta) => {
                let scaled = self.pair("Mul", even, gamma);
                self.last("Add", &[Some(scaled), Some(beta)], Vec::new());
            }
            None => self.last("Mul", &[Some(even), Some(gamma)], Vec::new()),
        }
    }

    /// Along the last axis, which stays; before operator set 18.
    fn mean(&mut self, x: ValueId) -> ValueId {
        self.add("ReduceMean", &[Some(x)], vec![Attr::ints("axes", vec![-1])])
    }

    /// The sums of the rows of a matrix.
    fn sum_rows(&mut self, x: ValueId) -> ValueId {
        let gone = Attr::int("keepdims", 0);
        match self.opset() < 13 {
            true => self.add("ReduceSum", &[Some(x)], vec![Attr::ints("axes", vec![1]), gone]),
            false => {
                let axes = self.constant(Tensor::new(&[1], vec![1i64]));
                self.add("ReduceSum", &[Some(x), Some(axes)], vec![gone])
            }
        }
    }
}
