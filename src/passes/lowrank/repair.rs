//! Factors fitted once more, front to back, against what the original computes ([`crate::passes::repair`]): of every chain the last
//! layer, which reads few numbers. Errors of layers in a row are not alike: the fit to what now comes in takes off the part of them
//! that the layer's own directions can still tell.
//!
//! Whether that helps is told by samples that have no part in it, with factors that were made from the others: a model that is deep and
//! shown little may lose by it.

use super::ladder::Ladder;
use super::{LowRank, fit};
use crate::analysis::sites::{Site, site};
use crate::data::Samples;
use crate::engine::NotRun;
use crate::ir::{Model, NodeId};
use crate::passes::noise::Reference;
use crate::passes::repair::{Lack, Subject, Target, repair};
use crate::passes::{Context, trial};
use anyhow::Result;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// Layers that read longer rows are not fitted.
const MAX_COLUMNS: usize = 2400;

impl LowRank {
    /// Fits the factors of a changed model once more, where that helps. `whole`: the model as it was; `choice`: what was done.
    ///
    /// # Errors
    /// When a sample fails.
    pub(super) fn repaired(
        &self,
        (whole, model): (&Model, &mut Model),
        (ladders, choice): (&[Ladder], &trial::Choice),
        cx: &mut Context,
    ) -> Result<()> {
        let changed: BTreeSet<NodeId> = (ladders.iter().zip(choice))
            .filter(|(l, rung)| rung.is_some() && l.measured)
            .map(|(l, _)| l.site.node)
            .collect();
        let [one, other] = cx.samples.halves();
        if !self.repair || changed.is_empty() || other.is_empty() {
            return Ok(());
        }
        let macs = cx.macs(whole).map_or(f64::INFINITY, |m| m as f64);
        let mut tried = || -> Result<()> {
            let reference = Reference::new(whole, &other, cx)?;
            let mut half = trial::changed(whole, ladders, choice)?;
            let before = reference.error(&half, cx)?;
            self.refit((whole, macs), &mut half, &changed, &one, cx)?;
            let after = reference.error(&half, cx)?;
            if after < before {
                self.refit((whole, macs), model, &changed, cx.samples, cx)?;
            }
            Ok(())
        };
        match tried() {
            Err(e) if !e.chain().any(|c| c.is::<NotRun>()) => Err(e.context("lowrank: fitting factors once more")),
            _ => Ok(()),
        }
    }

    /// Fits the last layers of these chains to samples.
    fn refit(
        &self,
        (whole, macs): (&Model, f64),
        model: &mut Model,
        changed: &BTreeSet<NodeId>,
        samples: &Samples,
        cx: &Context,
    ) -> Result<()> {
        let order = model.topological(model.main_id()).unwrap_or_default();
        let last = order.into_iter().filter(|id| changed.contains(id));
        let targets: Vec<Target> = last.filter_map(|id| target(model, id)).collect();
        let mut factored = Factored {
            centered: self.centered,
            model,
        };
        repair(whole, macs, &targets, &mut factored, samples, cx)
    }
}

/// A layer that can be fitted.
fn free(model: &Model, id: NodeId) -> Option<Site> {
    let site = site(model, id)?.ok()?;
    let plain = site.layout.groups == 1 && !site.is_transposed();
    (plain && !site.shared && site.layout.scale != 0.0 && site.columns() <= MAX_COLUMNS).then_some(site)
}

/// How it is measured.
fn target(model: &Model, id: NodeId) -> Option<Target> {
    let site = free(model, id)?;
    let last = site.bias.map_or(id, |b| b.node);
    Some(Target {
        id,
        slot: site.input_slot,
        columns: site.columns(),
        value: model.node(last).output(0)?,
        axis: site.layout.output_axis,
        outputs: site.outputs(),
        patch: site.patch,
    })
}

/// A model with factors.
struct Factored<'a> {
    model: &'a mut Model,
    centered: bool,
}

impl Subject for Factored<'_> {
    fn model(&self) -> Cow<'_, Model> {
        Cow::Borrowed(self.model)
    }

    fn correct(&mut self, target: &Target, lack: &Lack) -> Result<()> {
        let Some(site) = free(self.model, target.id) else {
            return Ok(());
        };
        let bias = fit::free_bias(self.model, &site).filter(|_| self.centered);
        let columns: Vec<usize> = (0..site.columns()).collect();
        let Some(correction) = lack.correction(&columns, bias.is_some())? else {
            return Ok(());
        };
        let mut matrix = site.matrix(self.model)?;
        let scale = f64::from(site.layout.scale);
        matrix.zip_mut_with(&correction.weight, |w, more| *w += (more / scale) as f32);
        let tensor = site.tensor_of(self.model, matrix.view())?;
        let dtype = tensor.dtype();
        self.model.set_const(site.weight, tensor);
        match bias {
            Some(bias) => {
                let shifted = bias
                    .iter()
                    .zip(&correction.shift)
                    .map(|(b, more)| (f64::from(*b) + more) as f32);
                super::set_bias(self.model, &site, &shifted.collect::<Vec<_>>(), dtype)
            }
            None => Ok(()),
        }
    }
}
