//! Inputs whose value is the operator's default: initial states, biases and peepholes of zeros in LSTM, GRU and RNN,
//! biases of zeros in Conv, ConvTranspose and Gemm. They are left out.

use super::work::Work;
use crate::ir::{NodeId, ValueId};

/// How far a zero is followed through operators that only move elements.
const DEPTH: usize = 16;

pub(super) fn drop_zero_state(w: &mut Work, id: NodeId) -> Option<String> {
    let slots: &[usize] = match w.model.node(id).op.name.as_str() {
        "LSTM" => &[3, 5, 6, 7],
        "GRU" | "RNN" => &[3, 5],
        "Conv" | "ConvTranspose" => &[2],
        "Gemm" if w.opset(id) >= 11 => &[2],
        _ => return None,
    };
    let is_zero = |s: &usize| w.model.node(id).input(*s).is_some_and(|v| zero(w, v, DEPTH));
    let zeros: Vec<usize> = slots.iter().copied().filter(is_zero).collect();
    if zeros.is_empty() {
        return None;
    }
    let mut inputs = w.model.node(id).inputs().to_vec();
    for s in zeros {
        inputs[s] = None;
    }
    while inputs.last() == Some(&None) {
        inputs.pop();
    }
    w.model.set_inputs(id, inputs);
    Some("inputs of zeros left out: that is the default".into())
}

fn zero(w: &Work, v: ValueId, depth: usize) -> bool {
    if let Some(t) = w.constant(v) {
        return super::numbers::all_are(&t, 0.0);
    }
    let (Some(p), Some(depth)) = (w.model.value(v).producer(), depth.checked_sub(1)) else {
        return false;
    };
    if !w.may_touch(p) {
        return false;
    }
    let n = w.model.node(p);
    match n.op.name.as_str() {
        "ConstantOfShape" => match n.attr("value") {
            None => true,
            Some(a) => {
                let t = a
                    .proto
                    .t
                    .clone()
                    .and_then(|t| crate::ir::Tensor::from_proto(t, None).ok());
                t.is_some_and(|t| super::numbers::all_are(&t, 0.0))
            }
        },
        "Slice" | "Reshape" | "Expand" | "Squeeze" | "Unsqueeze" | "Transpose" | "Gather" | "Identity" | "Cast"
        | "Tile" | "Flatten" | "Split" => n.input(0).is_some_and(|x| zero(w, x, depth)),
        "Concat" => n.inputs().iter().flatten().all(|x| zero(w, *x, depth)),
        _ => false,
    }
}
