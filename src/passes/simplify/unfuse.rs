//! What ONNX Runtime's optimizer has joined to operators of its own is spelled out in ONNX's.

use super::work::Work;

pub(super) fn spell_out(w: &mut Work) -> Vec<(String, String)> {
    let name = |w: &Work, id| w.model.node(id).op.name.clone();
    let before: std::collections::BTreeMap<_, _> = w.model.node_ids().into_iter().map(|id| (id, name(w, id))).collect();
    let done = crate::analysis::fused::spell_out(w.model).unwrap_or_default(); // contradictions were looked for when the round began
    let what = |id| format!("com.microsoft.{} spelled out in operators of ONNX", before[&id]);
    done.into_iter().map(|id| (w.model.label(id), what(id))).collect()
}
