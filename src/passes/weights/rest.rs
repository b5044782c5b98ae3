//! What another pass leaves in floating point, stored in 8 bits: `weights(form=folded)` for some of the weights, by what was measured already.

use super::emit::{self, Emitter};
use super::find::{self, Weight};
use super::fit::{Fitted, Scheme, Seen, fit};
use crate::analysis::stats::{Measure, Stats};
use crate::ir::{Model, NodeId, ValueId};
use crate::math::affine::IntKind;
use crate::parallel::side_by_side;
use crate::passes::{Context, NoteKind};
use anyhow::Result;

/// Smaller weights stay as they are.
const LEAST: usize = 1024;

/// Weights, rounded.
pub struct Rest(Vec<(Weight, Fitted)>);

/// What tells how the weights of recurrent layers, which no integer kernel takes, are to be rounded.
pub fn recurrent_measures(model: &Model) -> Vec<(ValueId, Measure)> {
    let (weights, _) = find::weights(model);
    let recurrent = weights.iter().filter(|w| w.len() >= LEAST && !w.steps.is_empty());
    let mut all: Vec<(ValueId, Measure)> = Vec::new();
    for want in recurrent.flat_map(|w| w.measures(model)) {
        if !all.contains(&want) {
            all.push(want);
        }
    }
    all
}

impl Rest {
    /// Rounds the weights that nobody reads but nodes that are `left`; by second moments of their inputs, where such were measured (over one half of the samples and the other,
    /// which may be empty), else to the nearest codes.
    ///
    /// # Errors
    /// When a weight is not what its node says.
    pub fn new(model: &Model, left: impl Fn(NodeId) -> bool, data: Option<[&Stats; 2]>) -> Result<Rest> {
        let scheme = Scheme {
            kind: IntKind::S8,
            block: 0,
            zeros: false,
            negative: false,
        };
        let small = |w: &Weight| emit::bytes(w, &w.channels, scheme) < 4 * w.len();
        let (mut weights, _) = find::weights(model);
        weights.retain(|w| w.len() >= LEAST && w.nodes.iter().all(|n| left(*n)) && small(w) && w.is_finite(model));
        let columns = |w: &Weight| w.sites.first().map_or(1, |s| s.columns());
        let seen = data.map(Seen::of);
        let fitted = side_by_side(&weights, columns, |w| fit(model, w, &w.channels, scheme, seen))?;
        let all = weights.into_iter().zip(fitted);
        Ok(Rest(all.filter(|(_, f)| !f.sqnr.is_nan()).collect()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Stores them, in this model or in one that was made of it, and says so.
    ///
    /// # Errors
    /// When codes do not fit a weight.
    pub fn put(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        let mut emitter = Emitter::new(model);
        for (w, fitted) in &self.0 {
            let what = format!(
                "computes in floating point, its weight is stored in 8 bits ({:.1} dB)",
                fitted.sqnr
            );
            cx.note(NoteKind::Did, emitter.model.label(w.nodes[0]), what);
            emit::shift(emitter.model, w, fitted)?;
            emitter.folded(w, &w.channels, fitted)?;
        }
        Ok(())
    }
}
