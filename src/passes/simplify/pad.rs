//! A constant `Pad` of the spatial axes goes into the `pads` of the operator that reads it.
//!
//! * Conv pads with zeros: a `Pad` with 0.
//! * AveragePool: a `Pad` with 0 is counted in the average, so it becomes `pads` with `count_include_pad` = 1, where the
//!   pool pads nothing itself or counts its padding already, and rounds sizes down.
//! * MaxPool ignores its padding: a `Pad` with −∞.
//!
//! Pools keep every pad smaller than the kernel (a window of padding alone is not defined). A Conv keeps its Pad where the
//! window is long: ONNX Runtime's blocked kernels compute the windows that reach into padding one by one, and of a window of 512
//! many do (torchcrepe: 2.0 ms with the Pads, 3.2 ms without).

use super::work::Work;
use crate::ir::{Attr, NodeId};

pub(super) fn fold(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is_any(id, &["Conv", "AveragePool", "MaxPool"]) {
        return None;
    }
    let pad = w.same_graph_producer(id, 0)?;
    if !w.is(pad, "Pad") {
        return None;
    }
    let n = w.model.node(id);
    let op = n.op.name.clone();
    let own = own_pads(w, id)?;
    let value = value_of(w, pad)?;
    let wanted = if op == "MaxPool" { f64::NEG_INFINITY } else { 0.0 };
    if value != wanted {
        return None;
    }
    let more = spatial_pads(w, pad)?;
    let pads = match own {
        Some(own) if own.len() != more.len() => return None,
        Some(own) => own
            .iter()
            .zip(&more)
            .map(|(a, b)| a.checked_add(*b))
            .collect::<Option<Vec<i64>>>()?,
        None => more.clone(),
    };
    if op != "Conv" {
        pool_allows(w, id, &pads)?;
    } else if is_long(w, id, &more)? {
        return None;
    }
    let x = w.model.node(pad).input(0);
    w.model.set_input(id, 0, x);
    let node = w.model.node_mut(id);
    node.remove_attr("auto_pad");
    node.set_attr(Attr::ints("pads", pads));
    if op == "AveragePool" {
        node.set_attr(Attr::int("count_include_pad", 1));
    }
    Some("took over the padding of the Pad before it".into())
}

/// `Some(None)` when the operator pads nothing; `None` when its padding depends on the shape.
fn own_pads(w: &Work, id: NodeId) -> Option<Option<Vec<i64>>> {
    let n = w.model.node(id);
    match n.string("auto_pad") {
        None | Some("NOTSET" | "") => Some(n.ints("pads").filter(|p| !p.is_empty()).map(<[i64]>::to_vec)),
        Some("VALID") => Some(None),
        Some(_) => None,
    }
}

/// True when the window is long along an axis that is padded.
fn is_long(w: &Work, id: NodeId, pads: &[i64]) -> Option<bool> {
    const LONG: usize = 16;
    let weight = w.facts.shape(w.model.node(id).input(1)?)?;
    let kernel = weight.get(2..).filter(|k| k.len() * 2 == pads.len())?;
    let long = |i: usize| kernel[i % kernel.len()].known().is_none_or(|k| k > LONG);
    Some(pads.iter().enumerate().any(|(i, &p)| p > 0 && long(i)))
}

fn pool_allows(w: &Work, id: NodeId, pads: &[i64]) -> Option<()> {
    let n = w.model.node(id);
    let kernel = n.ints("kernel_shape")?;
    let small = kernel.len() * 2 == pads.len() && pads.iter().enumerate().all(|(i, &p)| p < kernel[i % kernel.len()]);
    let plain = n.int_or("ceil_mode", 0) == 0 && n.ints("dilations").is_none_or(|d| d.iter().all(|&d| d == 1));
    let counts = n.op.name == "MaxPool"
        || n.int_or("count_include_pad", 0) != 0
        || n.ints("pads").is_none_or(|p| p.iter().all(|&p| p == 0));
    let since = if n.op.name == "MaxPool" { 1 } else { 7 };
    (small && plain && counts && w.opset(id) >= since && w.sole_output(id).is_some()).then_some(())
}

fn value_of(w: &Work, pad: NodeId) -> Option<f64> {
    let n = w.model.node(pad);
    if !matches!(n.string("mode"), None | Some("constant")) {
        return None;
    }
    if w.opset(pad) < 11 {
        return Some(f64::from(n.float("value").unwrap_or(0.0)));
    }
    match n.input(2) {
        None => Some(0.0),
        Some(_) => {
            let t = w.constant_input(pad, 2)?;
            match super::numbers::floats(&t)?[..] {
                [x] => Some(x),
                _ => None,
            }
        }
    }
}

/// The pads of the axes from 2 on, begins then ends; `None` when others are padded or any is negative.
fn spatial_pads(w: &Work, pad: NodeId) -> Option<Vec<i64>> {
    let n = w.model.node(pad);
    let opset = w.opset(pad);
    let given = match opset < 11 {
        true => n.ints("pads").or(n.ints("paddings"))?.to_vec(),
        false => w.ints_input(pad, 1)?,
    };
    let pads = match n.input(3) {
        Some(_) if opset >= 18 => {
            let (axes, rank) = (w.ints_input(pad, 3)?, w.facts.rank(n.input(0)?)?);
            let mut all = vec![0; rank * 2];
            if given.len() != axes.len() * 2 {
                return None;
            }
            for (i, &a) in axes.iter().enumerate() {
                let a = usize::try_from(if a < 0 { a + rank as i64 } else { a })
                    .ok()
                    .filter(|a| *a < rank)?;
                (all[a], all[a + rank]) = (given[i], given[i + axes.len()]);
            }
            all
        }
        _ => given,
    };
    let rank = pads.len() / 2;
    if rank < 3 || pads.len() % 2 != 0 || pads.iter().any(|&p| p < 0) {
        return None;
    }
    let (begins, ends) = pads.split_at(rank);
    let others_zero = begins[..2].iter().chain(&ends[..2]).all(|&p| p == 0);
    others_zero.then(|| [&begins[2..], &ends[2..]].concat())
}
