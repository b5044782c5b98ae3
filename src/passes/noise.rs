//! How far values of a changed model are from those of the model as it was.

use super::Context;
use crate::data::{Sample, Samples};
use crate::engine::Session;
use crate::ir::{Model, Tensor, ValueId};
use crate::math::compare::Gap;
use crate::parallel::in_order;
use anyhow::Result;

/// Not more samples than this.
pub const SAMPLES: usize = 64;
/// The outputs that others are compared with are kept, up to this size.
const KEPT: usize = 256 << 20;
/// With so many samples, half a limit is allowed.
const FEW: f64 = 4.0;

/// Samples, and the outputs of the model as it was.
pub struct Reference {
    outputs: Vec<ValueId>,
    samples: Vec<Sample>,
    wanted: Vec<Vec<Tensor>>,
}

impl Reference {
    /// Runs the model on up to [`SAMPLES`] samples, of which there is one at least.
    ///
    /// # Errors
    /// When a sample fails. [`crate::engine::NotRun`] is in the chain when the engine does not run the model.
    pub fn new(model: &Model, samples: &Samples, cx: &Context) -> Result<Reference> {
        let outputs = model.main().outputs().iter().map(|p| p.value).collect();
        let mut reference = Reference {
            outputs,
            samples: Vec::new(),
            wanted: Vec::new(),
        };
        let session = reference.load(model, &samples.get(0)?, cx)?;
        let mut kept = 0usize;
        for i in 0..samples.len().min(SAMPLES) {
            let sample = samples.get(i)?;
            let wanted = session.run(&sample)?;
            kept += wanted.iter().map(Tensor::byte_len).sum::<usize>();
            reference.samples.push(sample);
            reference.wanted.push(wanted);
            if kept > KEPT {
                break;
            }
        }
        Ok(reference)
    }

    /// A limit of the error, lowered: an error that is seen on few samples may be several times as large on others.
    pub fn careful(&self, limit: f64) -> f64 {
        let seen = self.samples.len() as f64;
        limit * seen / (seen + FEW)
    }

    fn load(&self, model: &Model, like: &Sample, cx: &Context) -> Result<Box<dyn Session>> {
        Ok(cx.engine.load(model, &self.outputs, like)?)
    }

    /// The error of a changed model's worst output relative to its power, on the first `most` samples. Infinite when a number is lost.
    ///
    /// # Errors
    /// As [`Reference::new`].
    pub fn error(&self, changed: &Model, most: usize, cx: &Context) -> Result<f64> {
        let Some(like) = self.samples.first() else {
            return Ok(0.0);
        };
        let session = self.load(changed, like, cx)?;
        let mut gaps = vec![Gap::new(); self.outputs.len()];
        in_order(
            self.samples.len().min(most),
            cx.threads,
            |i| session.run(&self.samples[i]),
            |i, outputs| add(&mut gaps, &self.wanted[i], &outputs),
        )?;
        Ok(gaps.iter().filter_map(Gap::noise).fold(0.0, f64::max))
    }
}

/// Adds one sample's values, as they were and as they are now. What has other dimensions now counts as lost; integers are left out.
///
/// # Errors
/// Never for floats of equal number.
pub fn add(gaps: &mut [Gap], before: &[Tensor], after: &[Tensor]) -> Result<()> {
    for ((gap, x), y) in gaps.iter_mut().zip(before).zip(after) {
        match (x.floats(), y.floats()) {
            (Some(x), Some(y)) if x.len() == y.len() => gap.add(&x, &y)?,
            (Some(_), _) => gap.broken += 1,
            (None, _) => {}
        }
    }
    Ok(())
}
