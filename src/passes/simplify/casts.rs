//! `Cast∘Cast` is one `Cast` when the type between holds every value of the first.

use super::work::Work;
use crate::ir::{DType, NodeId};

pub(super) fn merge(w: &mut Work, id: NodeId) -> Option<String> {
    if !w.is(id, "Cast") {
        return None;
    }
    let inner = w.model.input_producer(id, 0)?;
    if !w.is(inner, "Cast") {
        return None;
    }
    let x = w.model.node(inner).input(0)?;
    let between = w.facts.dtype(w.model.node(inner).output(0)?)?;
    if !holds_all(between, w.facts.dtype(x)?) {
        return None;
    }
    w.model.set_input(id, 0, Some(x));
    Some("Cast after a lossless Cast: merged".into())
}

/// True when every value of `narrow` is one of `wide`, as the same number.
fn holds_all(wide: DType, narrow: DType) -> bool {
    use DType::*;
    if narrow == wide {
        return true;
    }
    match narrow {
        Bool => matches!(
            wide,
            Uint8 | Int8 | Uint16 | Int16 | Uint32 | Int32 | Uint64 | Int64 | Float16 | Bfloat16 | Float | Double
        ),
        Uint8 => matches!(
            wide,
            Uint16 | Int16 | Uint32 | Int32 | Uint64 | Int64 | Float16 | Bfloat16 | Float | Double
        ),
        Int8 => matches!(wide, Int16 | Int32 | Int64 | Float16 | Bfloat16 | Float | Double),
        Uint16 => matches!(wide, Uint32 | Int32 | Uint64 | Int64 | Float | Double),
        Int16 => matches!(wide, Int32 | Int64 | Float | Double),
        Uint32 => matches!(wide, Uint64 | Int64 | Double),
        Int32 => matches!(wide, Int64 | Double),
        Float16 | Bfloat16 => matches!(wide, Float | Double),
        Float => wide == Double,
        _ => false,
    }
}
