//! What ONNX Runtime's optimizer has joined to operators of its own, or ONNX has dropped, is spelled out in ONNX's operators.

use super::work::Work;

pub(super) fn spell_out(w: &mut Work) -> Vec<(String, String)> {
    let done = crate::analysis::fused::spell_out(w.model).unwrap_or_default(); // contradictions were looked for when the round began
    let what = |name| format!("{name} spelled out in operators of ONNX");
    done.into_iter()
        .map(|(id, name)| (w.model.label(id), what(name)))
        .collect()
}
