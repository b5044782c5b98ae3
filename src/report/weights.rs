//! The weights of a model by size.

use crate::ir::Model;
use serde::Serialize;

/// One weight.
#[derive(Clone, Debug, Serialize)]
pub struct WeightSize {
    /// Its name.
    pub name: String,
    /// Its element type, in lower case.
    pub dtype: String,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// Its bytes.
    pub bytes: u64,
}

/// The weights of the main graph and of all sub-graphs, largest first; those in `Constant` nodes count as operators.
pub fn weights(model: &Model) -> Vec<WeightSize> {
    let of = |v: &crate::ir::Value| {
        let t = v.tensor()?;
        Some(WeightSize {
            name: v.name.clone(),
            dtype: t.dtype().as_str_name().to_lowercase(),
            dims: t.dims().to_vec(),
            bytes: t.byte_len() as u64,
        })
    };
    let mut all: Vec<WeightSize> = model.values().filter_map(|(_, v)| of(v)).collect();
    all.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.name.cmp(&b.name)));
    all
}
