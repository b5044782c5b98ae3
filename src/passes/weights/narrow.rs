//! Weights of 4 bits where the outputs of the model allow it; the others keep 8.
//!
//! As `int4` of `int8`: rounded on one half of the samples, weights of 4 bits take the place of the float ones, and the outputs on
//! the other half say which may stay ([`crate::passes::trial`]). What stays is rounded again with all samples. Weights whose inputs
//! are not measured (those of LSTM and GRU, and of sub-graphs) take the nearest codes, and are tried all the same.

use super::emit;
use super::find::Weight;
use super::fit::{Data, Fitted, Scheme, fit};
use crate::analysis::sites::float_tensor;
use crate::ir::{DType, Model, Tensor, ValueId};
use crate::math::affine::IntKind;
use crate::passes::Context;
use crate::passes::nibbles::{self, choose};
use crate::passes::trial::Ladder;
use anyhow::Result;
use std::collections::BTreeSet;

/// One scale for each channel; negative where the code that has no counterpart serves better so.
pub const SCHEME: Scheme = Scheme {
    kind: IntKind::S4,
    block: 0,
    zeros: false,
    negative: true,
};

/// A weight with 4 bits, to be tried.
struct Trial<'a> {
    weight: &'a Weight,
    fitted: Fitted,
    float: Tensor,
}

impl Ladder for Trial<'_> {
    fn rungs(&self) -> usize {
        1
    }

    fn error(&self, _: usize) -> f64 {
        10f64.powf(-self.fitted.sqnr / 10.0)
    }

    fn saved(&self, _: usize) -> f64 {
        nibbles::saved(self.weight.len())
    }

    fn apply(&self, model: &mut Model, _: usize) -> Result<()> {
        model.set_const(self.weight.value, self.float.clone());
        emit::shift(model, self.weight, &self.fitted)
    }
}

/// The weights that may take 4 bits when outputs may err by `limit` more because of it, relative to their power.
///
/// # Errors
/// When a sample fails, or a weight is not finite.
pub fn choose_four<'a>(
    model: &Model,
    weights: impl Iterator<Item = &'a Weight>,
    data: &Data,
    limit: f64,
    cx: &mut Context,
) -> Result<BTreeSet<ValueId>> {
    let mut trials = Vec::new();
    for weight in weights.filter(|w| nibbles::refusal(&w.dims).is_none()) {
        let fitted = fit(model, weight, &weight.channels, SCHEME, Some(data.half()))?;
        let values = fitted.grid.values(fitted.codes.view());
        let float = weight.channels.tensor(&weight.dims, &values)?;
        let trial = Trial {
            weight,
            fitted,
            float: float_tensor(DType::Float, &weight.dims, float)?,
        };
        if trial.error(0) <= nibbles::MOST {
            trials.push(trial);
        }
    }
    if trials.is_empty() {
        return Ok(BTreeSet::new());
    }
    let chosen = choose(model, &trials, limit, "weights", cx)?;
    let chosen = trials.iter().zip(chosen).filter(|(_, chosen)| *chosen);
    Ok(chosen.map(|(trial, _)| trial.weight.value).collect())
}
