//! Weights of 4 bits where the outputs of the model allow it; the others keep 8.
//!
//! As `int4` of `int8`: rounded on one half of the samples, weights of 4 bits take the place of the float ones, and the outputs on
//! the other half say which may stay ([`crate::passes::trial`]). What stays is rounded again with all samples. Weights whose inputs
//! are not measured (those of LSTM and GRU, and of sub-graphs) take the nearest codes, and are tried all the same.

use super::emit;
use super::find::Weight;
use super::fit::{Data, Scheme, fit};
use crate::analysis::sites::float_tensor;
use crate::ir::{DType, Model, ValueId};
use crate::math::affine::IntKind;
use crate::passes::Context;
use crate::passes::nibbles::{self, Trial, choose};
use anyhow::Result;
use std::collections::BTreeSet;

/// One scale for each channel; negative where the code that has no counterpart serves better so.
pub const SCHEME: Scheme = Scheme {
    kind: IntKind::S4,
    block: 0,
    zeros: false,
    negative: true,
};

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
    let (mut trials, mut values) = (Vec::new(), Vec::new());
    for weight in weights.filter(|w| nibbles::refusal(&w.dims).is_none()) {
        let fitted = fit(model, weight, &weight.channels, SCHEME, Some(data.half()))?;
        let float = fitted.grid.values(fitted.codes.view());
        let float = float_tensor(
            DType::Float,
            &weight.dims,
            weight.channels.tensor(&weight.dims, &float)?,
        )?;
        let trial = Trial::new(weight.len(), fitted.sqnr, move |model| {
            model.set_const(weight.value, float.clone());
            emit::shift(model, weight, &fitted)
        });
        if trial.bearable() {
            trials.push(trial);
            values.push(weight.value);
        }
    }
    let chosen = choose(model, &trials, limit, "weights", cx)?;
    let chosen = values.into_iter().zip(chosen).filter(|(_, chosen)| *chosen);
    Ok(chosen.map(|(value, _)| value).collect())
}
