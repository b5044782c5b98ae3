//! Weights stored in float16 with a Cast to float32 behind each: for a weight `w`, the initializer `w_float16` and the node `w_Cast`,
//! whose output has the name `w`. Runtimes compute such a Cast once, when they load the model. Scales of quantized values stay.

use super::{Half, report_small};
use crate::ir::{Attr, DType, Model, Use, ValueId};
use crate::ops::quant::is_quantized_op;
use crate::passes::{Context, Names, NoteKind};
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Stores every float32 weight of at least `min` elements, in sub-graphs too; false when there is none.
///
/// # Errors
/// When a constant is not what it was.
pub fn store(model: &mut Model, half: Half, min: usize, block: &Names, cx: &mut Context) -> Result<bool> {
    let weights: Vec<ValueId> = model
        .values()
        .map(|(v, _)| v)
        .filter(|v| is_weight(model, *v, min))
        .collect();
    let mut names: BTreeSet<String> = model.nodes().map(|(_, n)| n.name().to_owned()).collect();
    let (mut flushed, mut bytes, mut count) = (BTreeMap::new(), 0, 0);
    for v in weights {
        let name = model.value(v).name.clone();
        if model.readers(v).iter().any(|n| block.has(&model.label(*n))) {
            cx.note(NoteKind::Skip, name, "left in float32 as asked (block)");
            continue;
        }
        let tensor = model.constant(v).context("a constant")?.clone();
        let floats = tensor.floats().context("a float constant")?;
        if let Some(why) = half.refuses(&floats) {
            cx.note(NoteKind::Skip, name, format!("stays in float32: {why}"));
            continue;
        }
        let lost = floats.iter().filter(|x| **x != 0.0 && half.round(**x) == 0.0).count();
        if lost > 0 {
            flushed.insert(name.clone(), (lost, floats.len()));
        }
        let narrow = half.tensor(&tensor).context("a float constant")?;
        bytes += narrow.byte_len();
        count += 1;
        let graph = model.value(v).graph();
        let stored = model.fresh_name(&format!("{name}_{}", half.name()));
        let stored = model.add_const(graph, &stored, narrow);
        let numbered = (1..).map(|i| format!("{name}_Cast_{i}"));
        let node = std::iter::once(format!("{name}_Cast"))
            .chain(numbered)
            .find(|n| names.insert(n.clone()));
        let to = vec![Attr::int("to", DType::Float as i64)];
        let inner = model.fresh_name(&format!("{name}_float32"));
        let (_, out) = model.add_node(graph, &node.unwrap_or_default(), "Cast", &[Some(stored)], &[&inner], to);
        model.replace_uses(v, out[0]);
        model.erase_const(v);
        model.rename(out[0], name);
    }
    if count > 0 {
        let what = format!(
            "{count} weights in {}: {bytes} bytes saved; operators compute in float32",
            half.name()
        );
        cx.note(NoteKind::Did, String::new(), what);
    }
    report_small(cx, &flushed);
    Ok(count > 0)
}

fn is_weight(model: &Model, v: ValueId, min: usize) -> bool {
    let used = |u: &Use| matches!(u, Use::Node(..));
    let scale = |u: &Use| matches!(u, Use::Node(n, _) if is_quantized_op(model, *n));
    let inside = |v: ValueId| {
        let mut g = model.value(v).graph();
        while let Some(p) = model.graph(g).parent() {
            g = model.node(p).graph();
        }
        model.graph(g).function.is_none()
    };
    model
        .constant(v)
        .is_some_and(|t| t.dtype() == DType::Float && t.len() >= min.max(1))
        && model.value(v).uses().iter().any(used)
        && !model.value(v).uses().iter().any(scale)
        && inside(v)
}
