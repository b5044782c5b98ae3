//! What tells models, measures and samples apart, on any machine.

use crate::analysis::stats::Measure;
use crate::data::Sample;
use crate::ir::{Model, ValueId};
use crate::math::hash::{Digest, Hasher};
use crate::onnx::stream_to;
use anyhow::Result;

/// A measure, without numbers that differ between runs of the program.
pub fn spelled(model: &Model, (value, measure): &(ValueId, Measure)) -> String {
    format!("{:?} {measure:?}", model.value(*value).name)
}

/// Tells a model: all that a file of it would hold.
///
/// # Errors
/// When the graph has a cycle.
pub fn of_model(model: &Model) -> Result<Digest> {
    let mut hash = Hasher::new();
    stream_to(model, &mut hash)?;
    Ok(hash.finish())
}

/// Tells a sample: names, types, dimensions, numbers.
pub fn of_sample(sample: &Sample) -> Digest {
    let mut hash = Hasher::new();
    for (name, t) in sample {
        hash.add_field(name.as_bytes());
        hash.add(&(t.dtype() as i32).to_le_bytes());
        t.dims().iter().for_each(|d| hash.add(&(*d as u64).to_le_bytes()));
        hash.add_field(&t.raw());
    }
    hash.finish()
}
