//! What ONNX Runtime's optimizer has joined to operators of its own, or ONNX has dropped, is spelled out in ONNX's operators.

use super::work::Work;
use crate::ops::fused::spell_out_all;
use crate::ops::types::infer;

pub(super) fn spell_out(w: &mut Work) -> Vec<(String, String)> {
    let done = spell_out_all(w.model, infer).unwrap_or_default(); // contradictions were looked for when the round began
    let what = |name| format!("{name} spelled out in operators of ONNX");
    done.into_iter()
        .map(|(id, name)| (w.model.label(id), what(name)))
        .collect()
}
