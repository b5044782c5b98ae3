//! Initializers with the same type, dimensions and bytes are one initializer.
//!
//! Of equal ones the first that all readers can see stays. Defaults of inputs (a caller may give other data), initializers
//! that are graph outputs, and those that annotations name are left alone. Tensors are compared in full only after
//! a sample of their bytes agrees, so that large models are not read through.

use super::work::Work;
use crate::ir::{DType, Origin, Tensor, ValueId};
use std::borrow::Cow;
use std::collections::HashMap;

/// Bytes at each end that are looked at first.
const SAMPLE: usize = 256;

#[derive(PartialEq, Eq, Hash)]
struct Key {
    dtype: DType,
    dims: Vec<usize>,
    sample: Vec<u8>,
}

pub(super) fn share(w: &mut Work) -> Vec<(String, String)> {
    let mut seen: HashMap<Key, Vec<ValueId>> = HashMap::new();
    let mut done = Vec::new();
    for g in w.model.live_graphs() {
        for v in w.model.graph(g).consts().to_vec() {
            if !may_share(w, v) {
                continue;
            }
            let Some(key) = w.model.value(v).tensor().map(key_of) else {
                continue;
            };
            let known = seen.entry(key).or_default();
            match known.iter().copied().find(|k| are_equal(w, *k, v)) {
                Some(first) => {
                    let label = w.model.value(v).name.clone();
                    w.model.replace_uses(v, first);
                    w.model.erase_const(v);
                    let kept = &w.model.value(first).name;
                    done.push((label, format!("the same data as {kept}: shared")));
                }
                None => known.push(v),
            }
        }
    }
    done
}

fn may_share(w: &Work, v: ValueId) -> bool {
    let value = w.model.value(v);
    value.origin() == Origin::Const && !value.is_output() && !w.is_pinned(v)
}

fn key_of(t: &Tensor) -> Key {
    let raw: Cow<[u8]> = match t.packed() {
        Some(raw) => Cow::Borrowed(raw),
        None => t.raw(),
    };
    let mut sample = raw[..raw.len().min(SAMPLE)].to_vec();
    sample.extend(&raw[raw.len() - raw.len().min(SAMPLE)..]);
    Key {
        dtype: t.dtype(),
        dims: t.dims().to_vec(),
        sample,
    }
}

fn are_equal(w: &Work, first: ValueId, v: ValueId) -> bool {
    let (a, b) = (w.model.value(first), w.model.value(v));
    let same = match (a.tensor(), b.tensor()) {
        (Some(a), Some(b)) => a.same_data(b),
        _ => false,
    };
    same && w.model.in_scope(a.graph(), b.graph())
}
