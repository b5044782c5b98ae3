//! Softmax, LogSoftmax and Hardmax.
//!
//! Before version 13 they ran over all axes from `axis` on, taken as one, and `axis` was 1 by default; now they run over
//! `axis` alone, the last one by default. Where only one of those axes is longer than 1 the two are the same; else the
//! input is made a matrix, and the output shaped back.

use super::raise::Work;
use crate::ir::{Attr, NodeId, Use};
use anyhow::{Context as _, Result, ensure};

pub(super) fn softmax(w: &mut Work, id: NodeId) -> Result<()> {
    w.own(id, "axis")?;
    let axis = w.model.node(id).int_or("axis", 1);
    let x = w.input(id, 0)?;
    let out = w.model.node(id).output(0).context("its output is missing")?;
    if axis == -1 {
        return Ok(());
    }
    if let Some(dims) = w.shape(x).or_else(|| w.shape(out)) {
        let rank = dims.len() as i64;
        let axis = if axis < 0 { axis + rank } else { axis };
        ensure!((0..rank.max(1)).contains(&axis), "axis {axis} of {rank} axes");
        let mut longer = (axis..rank).filter(|&i| dims[i as usize].known() != Some(1));
        let only = longer.next().unwrap_or(axis);
        if longer.next().is_none() {
            w.model.node_mut(id).set_attr(Attr::int("axis", only));
            return Ok(());
        }
    }
    let flat = w.add(id, "flat", "Flatten", &[x], vec![Attr::int("axis", axis)]);
    w.model.set_input(id, 0, Some(flat));
    w.model.node_mut(id).set_attr(Attr::int("axis", -1));
    let shape = w.add(id, "shape", "Shape", &[x], Vec::new());
    let back = w.add(id, "back", "Reshape", &[out, shape], Vec::new());
    let reshape = w.model.value(back).producer();
    w.model
        .replace_uses_where(out, back, |u| Some(*u) != reshape.map(|r| Use::Node(r, 0)));
    w.model.forget_type(out);
    Ok(())
}
