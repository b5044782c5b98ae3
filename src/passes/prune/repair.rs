//! Readers fitted once more, front to back, against what the original computes ([`crate::passes::repair`]).

use super::Context;
use super::fold::takes_shift;
use super::refit::{Fitted, by_row, matrix, rebuilt};
use super::trial::Bench;
use super::units::Reader;
use crate::analysis::sites::site;
use crate::data::Samples;
use crate::ir::{Model, NodeId, ValueId};
use crate::ops::ties::constant;
use crate::passes::repair::{Lack, Subject, Target, repair};
use anyhow::Result;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// What was written so far, by node and weight.
type Current = BTreeMap<(NodeId, ValueId), Fitted>;

/// The readers of a changed model after the repair: those that were fitted, and others that come after them.
///
/// # Errors
/// When a sample fails, or numbers are not finite.
pub fn repaired(bench: &Bench, fitted: Vec<Fitted>, samples: &Samples, cx: &Context) -> Result<Vec<Fitted>> {
    let current: Current = fitted.into_iter().map(|f| ((f.id, f.weight), f)).collect();
    let targets = targets(bench, &current);
    let mut subject = Pruned { bench, current };
    repair(bench.model, bench.units.costs.macs, &targets, &mut subject, samples, cx)?;
    Ok(subject.current.into_values().collect())
}

/// A model of which nothing is cut yet: weights have zeros where inputs are gone.
struct Pruned<'a> {
    bench: &'a Bench<'a>,
    current: Current,
}

impl Subject for Pruned<'_> {
    fn model(&self) -> Cow<'_, Model> {
        Cow::Owned(self.bench.changed(self.current.values()))
    }

    fn correct(&mut self, target: &Target, lack: &Lack) -> Result<()> {
        let Some(Some(reader)) = self.bench.units.readers.get(&target.id) else {
            return Ok(());
        };
        let place = (target.id, reader.weight);
        if let Some(new) = solved(self.bench.model, (target.id, reader), self.current.get(&place), lack)? {
            self.current.insert(place, new);
        }
        Ok(())
    }
}

/// What comes after a change, in the order of execution.
fn targets(bench: &Bench, fitted: &Current) -> Vec<Target> {
    let model = bench.model;
    let changed: BTreeSet<NodeId> = fitted.keys().map(|(id, _)| *id).collect();
    let mut tainted: BTreeSet<ValueId> = BTreeSet::new();
    let mut targets = Vec::new();
    for (id, _) in &bench.groups.flows {
        let node = model.node(*id);
        let touched = changed.contains(id) || node.inputs().iter().flatten().any(|v| tainted.contains(v));
        if !touched || node.graph() != model.main_id() {
            continue;
        }
        tainted.extend(node.outputs().iter().flatten());
        let Some(Some(reader)) = bench.units.readers.get(id) else {
            continue;
        };
        let Some(own) = &reader.patch else { continue };
        // A recurrent layer's output is not its product.
        if reader.dot.alpha != 1.0 || reader.dot.beta == 0.0 {
            continue;
        }
        let patch = match site(model, *id) {
            Some(Ok(s)) if reader.taps == s.taps() => s.patch,
            _ => own.clone(),
        };
        let weight = constant(model, reader.weight).and_then(|w| matrix(&w, reader));
        let Some((outputs, columns)) = weight.map(|w| w.dim()).filter(|d| d.0 * d.1 > 0) else {
            continue;
        };
        targets.push(Target {
            id: *id,
            slot: reader.dot.data.0,
            patch,
            columns,
            value: reader.out,
            axis: reader.dot.out as i64,
            outputs,
        });
    }
    targets
}

/// A reader with what it lacks.
fn solved(
    model: &Model,
    (id, reader): (NodeId, &Reader),
    current: Option<&Fitted>,
    lack: &Lack,
) -> Result<Option<Fitted>> {
    let Some(original) = constant(model, reader.weight) else {
        return Ok(None);
    };
    let tensor = current.map_or_else(|| original.as_ref().clone(), |f| f.tensor.clone());
    let Some(map) = matrix(&tensor, reader) else {
        return Ok(None);
    };
    let (rows, n) = map.dim();
    if lack.dim() != (n, rows) {
        return Ok(None);
    }
    let shifts = takes_shift(model, id, &reader.dot);
    let kept: Vec<usize> = (0..n).filter(|j| map.column(*j).iter().any(|w| *w != 0.0)).collect();
    let Some(correction) = lack.correction(&kept, shifts)? else {
        return Ok(None);
    };
    let shift = shifts.then(|| {
        let before = current.and_then(|f| f.shift.clone());
        let more = by_row(&correction.shift, original.dims(), reader);
        match before {
            Some(b) => b.iter().zip(more).map(|(a, b)| a + b).collect(),
            None => more,
        }
    });
    Ok(
        rebuilt(&original, reader, &(map + correction.weight)).map(|tensor| Fitted {
            id,
            weight: reader.weight,
            tensor,
            shift,
            lost: current.and_then(|f| f.lost),
        }),
    )
}
