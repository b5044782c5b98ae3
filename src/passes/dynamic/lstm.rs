//! LSTM as `DynamicQuantizeLSTM` of ONNX Runtime (domain `com.microsoft`,
//! [contributed operators](https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md)).
//!
//! `W [directions, inputs, 4 · hidden]` and `R [directions, hidden, 4 · hidden]` are int8 and transposed; scales and zero points
//! `[directions, 4 · hidden]` follow the inputs of LSTM. Its activations are quantized inside.

use super::emit::Emitter;
use crate::ir::{Model, NodeId, Tensor};
use crate::passes::weights::find::Weight;
use crate::passes::weights::fit::Fitted;
use crate::passes::weights::view::View;
use crate::pb;
use anyhow::{Result, ensure};

const DOMAIN: &str = "com.microsoft";

/// One row for each gate of each direction.
pub fn view() -> View {
    View {
        rows: vec![0, 1],
        columns: vec![2],
    }
}

/// Why a recurrent node stays as it is.
pub fn refuses(model: &Model, node: NodeId, w: &Weight, r: &Weight, wanted: bool, min: usize) -> Option<String> {
    let n = model.node(node);
    if !n.is("LSTM") {
        let name = &n.op.name;
        return Some(format!(
            "{name} has no integer form: stays in floating point; weights(bits=8) stores its weights in 8 bits"
        ));
    }
    if !wanted {
        return Some("left in floating point as asked (lstm=off)".to_owned());
    }
    if n.int_or("layout", 0) != 0 || n.int_or("input_forget", 0) != 0 {
        return Some("its layout has no integer form: stays in floating point".to_owned());
    }
    if w.len() + r.len() < min {
        return Some(format!(
            "its weights have fewer than {min} elements: stays in floating point"
        ));
    }
    let alone = |w: &Weight| model.value(w.value).uses().len() == 1;
    if !alone(w) || !alone(r) {
        return Some("a weight is read by something else too: stays in floating point".to_owned());
    }
    if !w.is_finite(model) || !r.is_finite(model) {
        return Some("a weight is not finite: stays in floating point".to_owned());
    }
    None
}

/// Makes the node a DynamicQuantizeLSTM with these weights, W and R.
///
/// # Errors
/// When a weight does not have three axes.
pub fn emit(emitter: &mut Emitter, node: NodeId, weights: [(&Weight, &Fitted); 2]) -> Result<()> {
    let graph = emitter.model.node(node).graph();
    let mut inputs = emitter.model.node(node).inputs().to_vec();
    inputs.resize(8, None);
    for (slot, (w, fitted)) in weights.into_iter().enumerate() {
        let name = emitter.model.value(w.value).name.clone();
        ensure!(w.dims.len() == 3, "{name} has {} axes", w.dims.len());
        let (directions, gates, length) = (w.dims[0], w.dims[1], w.dims[2]);
        let mut turned = vec![0i8; w.len()];
        for ((row, column), &q) in fitted.codes.indexed_iter() {
            turned[(row / gates * length + column) * gates + row % gates] = q;
        }
        let codes = Tensor::new(&[directions, length, gates], turned);
        inputs[1 + slot] = Some(emitter.constant(graph, &format!("{name}_quantized"), codes));
        let scales = Tensor::new(&[directions, gates], fitted.grid.scales.iter().copied().collect());
        let zeros = Tensor::new(&[directions, gates], vec![0i8; directions * gates]);
        inputs.push(Some(emitter.constant(graph, &format!("{name}_scale"), scales)));
        inputs.push(Some(emitter.constant(graph, &format!("{name}_zero_point"), zeros)));
    }
    emitter.model.set_inputs(node, inputs);
    let name = format!("{}_quant", emitter.model.label(node));
    let n = emitter.model.node_mut(node);
    n.set_op(DOMAIN, "DynamicQuantizeLSTM");
    n.remove_attr("layout");
    emitter.rename(node, name);
    for (w, _) in weights {
        emitter.model.erase_const(w.value);
    }
    if emitter.model.opset(DOMAIN) == 0 {
        emitter.model.rest.opset_import.push(pb::OperatorSetIdProto {
            domain: Some(DOMAIN.to_owned()),
            version: Some(1),
        });
    }
    Ok(())
}
