//! What stays in floating point: its weights are stored in 8 bits, from which a runtime makes floats again while it loads the model.
//!
//! Integers do not pay everywhere (LSTM and GRU have none, small layers would spend more on conversions), but bytes of the file do. Weights are rounded by the
//! moments that were measured of their inputs, where there are any, and the outputs are looked at once more; where they err too much, weights are stored in float16.

use super::settle::Outcome;
use super::units::Unit;
use super::{Int8, Seen};
use crate::analysis::stats::Stats;
use crate::ir::{Model, NodeId};
use crate::passes::noise::Reference;
use crate::passes::weights::Rest;
use crate::passes::{Context, NoteKind, fp16};
use anyhow::Result;
use std::collections::BTreeSet;

impl Int8 {
    /// Nothing is in integers: all weights are stored in 8 bits, if the `reference` is there to tell what that does.
    ///
    /// # Errors
    /// As [`Int8::store_rest`].
    pub(super) fn without_integers(
        &self,
        model: &mut Model,
        seen: Option<&Seen>,
        reference: Option<&Reference>,
        cx: &mut Context,
    ) -> Result<Outcome> {
        let mut stored = model.clone();
        let done = match reference {
            Some(r) => self.store_rest((model, &mut stored), std::iter::empty(), seen, r, cx)?,
            None => false,
        };
        if !done {
            return Ok(Outcome::Nothing);
        }
        *model = stored;
        Ok(Outcome::Quantized)
    }

    /// Stores in `quantized`, which was made of `model`, what does not run in integers; false where there is no such weight, or outputs err too much by it.
    ///
    /// # Errors
    /// When a sample fails.
    pub(super) fn store_rest<'u>(
        &self,
        (model, quantized): (&Model, &mut Model),
        integer: impl Iterator<Item = &'u Unit>,
        seen: Option<&Seen>,
        reference: &Reference,
        cx: &mut Context,
    ) -> Result<bool> {
        if !self.rest || !self.target.unpacks {
            return Ok(false);
        }
        let integer: BTreeSet<NodeId> = integer.map(|u| u.node).collect();
        let left = |node: NodeId| !integer.contains(&node) && !self.skip.has(&model.label(node));
        let none = Stats::default();
        let data = self.options.text("rounding") == "data" && !cx.samples.synthetic();
        let halves = match seen.filter(|_| data) {
            Some(Seen { halves: Some(both), .. }) => Some(both.each_ref()),
            Some(seen) => Some([seen.stats, &none]),
            None => None,
        };
        let rest = Rest::new(model, left, halves)?;
        if rest.is_empty() {
            return Ok(false);
        }
        let (mut stored, said) = (quantized.clone(), cx.notes.len());
        rest.put(&mut stored, cx)?;
        if reference.error(&stored, cx)? <= self.error {
            *quantized = stored;
            return Ok(true);
        }
        cx.notes.truncate(said);
        let what = format!(
            "weights of what stays in floating point are not stored in 8 bits: outputs would err by more than error={}",
            self.error
        );
        cx.note(NoteKind::Skip, String::new(), what);
        fp16::store(quantized, &self.skip, cx)
    }
}
