//! Which layers did the damage: the noise on inner values that both models still have, layer by layer.
//!
//! A value is compared with the value of the same name in the result, as its readers see it, where that has the same dimensions. With the noise
//! of a value `r = noise power / signal power`, a layer has added `r` less the largest `r` among the compared values that it
//! is computed from: what came in it cannot be blamed for.

use crate::analysis::ends;
use crate::data::Samples;
use crate::engine::Engine;
use crate::ir::{Model, NodeId, ValueId};
use crate::math::compare::Gap;
use crate::parallel::in_order;
use anyhow::Result;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Damage shows on few samples.
const SAMPLES: usize = 4;
/// Values of more elements are not looked at.
const LARGEST: usize = 1 << 22;

/// What happened at one layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerDamage {
    /// The node of the original that makes the value.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// The value's signal-to-noise ratio in the result, dB; infinite (in JSON: null) when it is equal.
    pub sqnr_db: f64,
    /// Noise power that came in here, relative to the value's power.
    pub added: f64,
}

/// The layers of the original, those that added most noise first.
///
/// # Errors
/// [`crate::engine::NotRun`] (in the chain) when the engine cannot run one of the models with its inner values exposed.
pub fn layers(
    original: &Model,
    changed: &Model,
    samples: &Samples,
    engine: &dyn Engine,
    threads: usize,
) -> Result<Vec<LayerDamage>> {
    let pairs = pairs(original, changed);
    let gaps = gaps(original, changed, &pairs, samples, engine, threads)?;
    let noise: BTreeMap<ValueId, f64> = pairs
        .iter()
        .zip(&gaps)
        .filter_map(|(p, g)| Some((p.0, g.noise()?)))
        .collect();
    let mut all = Vec::new();
    for ((value, _), gap) in pairs.iter().zip(&gaps) {
        let (Some(&here), Some(node)) = (noise.get(value), original.value(*value).producer()) else {
            continue;
        };
        let came = sources(original, node, &noise)
            .into_iter()
            .map(|v| noise[&v])
            .fold(0.0, f64::max);
        all.push(LayerDamage {
            node: original.label(node),
            op: original.node(node).op.name.clone(),
            sqnr_db: gap.sqnr_db(),
            added: (here - came).max(0.0),
        });
    }
    all.sort_by(|a, b| b.added.total_cmp(&a.added));
    Ok(all)
}

/// Values of the main graph that both models make under the same name.
fn pairs(original: &Model, changed: &Model) -> Vec<(ValueId, ValueId)> {
    let made = |model: &Model| -> BTreeMap<String, ValueId> {
        let main = model.main_id();
        let of_main = model
            .values()
            .filter(|(_, v)| v.graph() == main && v.producer().is_some());
        of_main.map(|(id, v)| (v.name.clone(), id)).collect()
    };
    let in_result = made(changed);
    let both = made(original)
        .into_iter()
        .filter_map(|(name, a)| Some((a, ends::as_read(changed, *in_result.get(&name)?))));
    both.collect()
}

fn gaps(
    original: &Model,
    changed: &Model,
    pairs: &[(ValueId, ValueId)],
    samples: &Samples,
    engine: &dyn Engine,
    threads: usize,
) -> Result<Vec<Gap>> {
    let like = samples.get(0)?;
    let load = |model: &Model, wanted: Vec<ValueId>| engine.load(model, &wanted, &like);
    let sessions = [
        load(original, pairs.iter().map(|p| p.0).collect())?,
        load(changed, pairs.iter().map(|p| p.1).collect())?,
    ];
    let mut gaps = vec![Gap::new(); pairs.len()];
    let mut before = Vec::new();
    in_order(
        2 * samples.len().min(SAMPLES),
        threads,
        |i| sessions[i % 2].run(&samples.get(i / 2)?),
        |i, values| {
            if i % 2 == 0 {
                before = values;
                return Ok(());
            }
            for ((gap, x), y) in gaps.iter_mut().zip(&before).zip(&values) {
                if let (true, Some(a), Some(b)) = (x.dims() == y.dims() && x.len() <= LARGEST, x.reals(), y.reals()) {
                    gap.add(&a, &b)?;
                }
            }
            Ok(())
        },
    )?;
    Ok(gaps)
}

/// The nearest compared values that a node is computed from.
fn sources(model: &Model, node: NodeId, noise: &BTreeMap<ValueId, f64>) -> BTreeSet<ValueId> {
    let mut found = BTreeSet::new();
    let (mut open, mut seen) = (vec![node], BTreeSet::from([node]));
    while let Some(id) = open.pop() {
        for &v in model.node(id).inputs().iter().flatten() {
            if noise.contains_key(&v) {
                found.insert(v);
            } else if let Some(before) = model.value(v).producer().filter(|n| !seen.contains(n)) {
                seen.insert(before);
                open.push(before);
            }
        }
    }
    found
}

/// The worst of them in words, for a message: those that added at least a tenth of what the worst did.
pub fn worst(layers: &[LayerDamage], most: usize) -> Option<String> {
    let first = layers.first().filter(|l| l.added > 0.0)?;
    let guilty = layers.iter().take_while(|l| l.added * 10.0 >= first.added).take(most);
    let words: Vec<String> = guilty
        .map(|l| format!("{} ({}, {:.1} dB)", l.node, l.op, l.sqnr_db))
        .collect();
    Some(words.join(", "))
}
