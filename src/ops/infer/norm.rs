//! Normalizations, and other operators that keep type and dimensions of their first input.

use super::Table;
use super::call::{Call, axis_of};
use super::fact::{Dim, Fact};
use crate::ir::DType;
use anyhow::Result;

pub(super) const TABLE: Table = &[
    ("BatchNormalization", batch),
    ("Dropout", dropout),
    ("GroupNormalization", same),
    ("Hardmax", softmax),
    ("InstanceNormalization", same),
    ("LRN", same),
    ("LayerNormalization", layer),
    ("LogSoftmax", softmax),
    ("LpNormalization", softmax),
    ("MeanVarianceNormalization", same),
    ("RMSNormalization", same),
    ("Softmax", softmax),
];

pub(super) const MICROSOFT: Table = &[
    ("BiasGelu", same),
    ("FastGelu", same),
    ("Gelu", same),
    ("QuickGelu", same),
    ("SimplifiedLayerNormalization", same),
    ("SkipLayerNormalization", same),
    ("SkipSimplifiedLayerNormalization", same),
];

/// Type and dimensions of the first input.
pub(super) fn same(c: &Call) -> Result<Vec<Fact>> {
    Ok(vec![c.like(0)])
}

/// Before opset 13 the axis may equal the number of dimensions: the input was flattened to [all, 1].
fn softmax(c: &Call) -> Result<Vec<Fact>> {
    if let (Some(x), Some(axis)) = (c.shape(0), c.node.int("axis"))
        && !x.is_empty()
        && !(c.opset < 13 && usize::try_from(axis) == Ok(x.len()))
    {
        axis_of(axis, x.len())?;
    }
    same(c)
}

/// X: [N, C, d…]; scale, B, mean, var: [C]. The further outputs, of training, are [C].
fn batch(c: &Call) -> Result<Vec<Fact>> {
    let channels = c.shape(0).and_then(|x| x.get(1)).cloned().unwrap_or_default();
    let channels = (1..5).fold(channels, |d, i| match c.shape(i) {
        Some([n]) => d.and(n),
        _ => d,
    });
    let moment = Fact::new(c.dtype(3).or(c.dtype(0)), Some(vec![channels]));
    Ok(vec![c.like(0), moment.clone(), moment.clone(), moment.clone(), moment])
}

/// The mask is `bool` since opset 10, and of the input's type before. Elements pass through unless in training.
fn dropout(c: &Call) -> Result<Vec<Fact>> {
    let mask = if c.opset >= 10 { Some(DType::Bool) } else { c.dtype(0) };
    let trains = match c.opset {
        ..7 => true,
        7..12 => false,
        _ => c.has(2) && c.int(2) != Some(0),
    };
    let elems = c.elems(0).filter(|_| !trains).map(<[_]>::to_vec);
    Ok(vec![c.like(0).with_elems(elems), c.shaped(mask, 0)])
}

/// X → Y like X, mean and inverse deviation with 1 from `axis` on.
fn layer(c: &Call) -> Result<Vec<Fact>> {
    let stash = c.type_attr("stash_type").unwrap_or(DType::Float);
    let moment = match c.shape(0) {
        Some(x) => {
            let axis = c.axis(-1, x.len())?;
            let mut m = x[..axis].to_vec();
            m.resize(x.len(), Dim::Known(1));
            Some(m)
        }
        None => None,
    };
    let moment = Fact::new(Some(stash), moment);
    Ok(vec![c.like(0), moment.clone(), moment])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, elems, f, facts, ints};
    use super::super::{Elem, Fact, show};
    use crate::ir::{Attr, DType};

    #[test]
    fn softmax_flattened_before_opset_13() {
        let s = |opset: i64| dims("Softmax", opset, vec![Attr::int("axis", 2)], &[f("N, 3")]);
        assert_eq!(s(11), "[N, 3]");
        assert!(s(13).starts_with("error: axis 2"));
    }

    #[test]
    fn the_mask_of_dropout_changed_its_type() {
        let mask = |opset: i64| facts("Dropout", opset, vec![], &[f("N, 3")]).expect("fits")[1].dtype;
        assert_eq!(mask(7), Some(DType::Float));
        assert_eq!(mask(12), Some(DType::Bool));
    }

    #[test]
    fn dropout_passes_elements_through_unless_in_training() {
        let training = Fact::of(DType::Bool, &[]).with_elems(Some(vec![Elem::Int(1)]));
        assert_eq!(elems("Dropout", 12, vec![], &[ints(&[7])]), "7");
        assert_eq!(
            elems("Dropout", 12, vec![], &[ints(&[7]), Fact::default(), training]),
            "none"
        );
    }

    #[test]
    fn layer_normalization_gives_moments_with_ones() {
        let out = facts("LayerNormalization", 17, vec![Attr::int("axis", 1)], &[f("N, L, 8")]).expect("fits");
        let shape = |f: &Fact| show(f.shape.as_deref().expect("a shape"));
        assert_eq!([shape(&out[0]), shape(&out[1])], ["[N, L, 8]", "[N, 1, 1]"]);
    }
}
