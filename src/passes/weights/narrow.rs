//! Weights of fewer than 8 bits where the outputs of the model allow it ([`mixed`]), as `mixed` of `int8`.
//!
//! Embedding tables are tried with them ([`stored`]). Weights whose inputs are not measured (those of LSTM and GRU, and of sub-graphs) take the nearest codes, and are tried all the same.

use super::emit;
use super::find::Weight;
use super::fit::{Data, Fitted, Scheme, fit};
use crate::analysis::sites::float_tensor;
use crate::ir::{DType, Model, ValueId};
use crate::math::affine::IntKind;
use crate::passes::Context;
use crate::passes::mixed::{self, choose};
use crate::passes::tables::narrow::{Any, stored};
use anyhow::Result;
use std::collections::BTreeMap;

/// One scale for each channel; negative where the code that has no counterpart serves better so.
pub fn scheme(kind: IntKind) -> Scheme {
    Scheme {
        kind,
        block: 0,
        zeros: false,
        negative: true,
    }
}

/// A weight that could have fewer bits.
struct Narrow<'a> {
    model: &'a Model,
    weight: &'a Weight,
    data: &'a Data,
}

impl mixed::Weight for Narrow<'_> {
    type Codes = Fitted;

    fn len(&self) -> usize {
        self.weight.len()
    }

    fn columns(&self) -> usize {
        self.len() / self.weight.dims[self.weight.axis].max(1)
    }

    fn rounded(&self, kind: IntKind) -> Result<(Fitted, f64)> {
        let seen = Some(self.data.half());
        let fitted = fit(self.model, self.weight, &self.weight.channels, scheme(kind), seen)?;
        let sqnr = fitted.sqnr;
        Ok((fitted, sqnr))
    }

    fn put(&self, model: &mut Model, fitted: &Fitted) -> Result<()> {
        let Weight {
            dims, channels, value, ..
        } = self.weight;
        let numbers = channels.tensor(dims, &fitted.grid.values(fitted.codes.view()))?;
        model.set_const(*value, float_tensor(DType::Float, dims, numbers)?);
        emit::shift(model, self.weight, fitted)
    }
}

/// The weights (and the `tables`, by their codes) that may take fewer bits when outputs may err by `limit` more because of it, relative to their power.
///
/// # Errors
/// When a sample fails, or a weight is not finite.
pub fn kinds<'a>(
    model: &Model,
    (weights, tables): (impl Iterator<Item = &'a Weight>, bool),
    data: &Data,
    limit: f64,
    cx: &mut Context,
) -> Result<BTreeMap<ValueId, IntKind>> {
    let weights = weights.map(|weight| Any::Weight(Narrow { model, weight, data }));
    let tables = stored(model).into_iter().filter(|_| tables).map(Any::Table);
    let chosen = choose(model, weights.chain(tables).collect(), limit, "weights", cx)?;
    let value = |w: Any<Narrow>| match w {
        Any::Weight(w) => w.weight.value,
        Any::Table(t) => t.codes,
    };
    Ok(chosen.into_iter().map(|(w, kind)| (value(w), kind)).collect())
}
