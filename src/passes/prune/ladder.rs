//! For one group of units: in which order they go, and what that does to the layers that read them.
//!
//! By `data`, the unit goes first whose loss the readers can best make up for, as far as what reads them next can see it
//! ([`crate::analysis::readers`]), and the damage of the others is told anew after each ([`crate::math::channels`]). In large groups several go at once: the cheapest that are not of one kind. By `l1` and
//! `l2` the smallest go first; damage is told in the same way.

use super::Context;
use super::ratio::Criterion;
use super::refit::{Moments, Part, Patient};
use super::units::{Group, Unit, Units};
use crate::cache::{Cache, Key};
use crate::data::Samples;
use crate::ir::{Model, NodeId};
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};

/// A step takes one of so many units that are left, and one at least.
const STEP: usize = 48;
/// Units that explain so much of each other do not go in the same step.
const RELATED: f64 = 0.1;

/// The order in which units go.
#[derive(Default)]
pub struct Ladder {
    /// Units, the first to go first.
    pub order: Vec<usize>,
    /// Damage after each of them: the parts that the readers' outputs have lost of their powers, summed; without data the part of
    /// the filters' sizes.
    pub damage: Vec<f64>,
}

/// The ladder of a group, down to `least` units.
///
/// # Errors
/// When numbers are not finite.
pub fn climb(
    model: &Model,
    units: &Units,
    group: &Group,
    (least, by): (usize, &Criterion),
    moments: Option<(&Moments, Part)>,
) -> Result<Ladder> {
    let mut reading: BTreeSet<NodeId> = BTreeSet::new();
    group
        .members
        .iter()
        .for_each(|u| reading.extend(units.units[u].read.keys()));
    let mut patients = Vec::new();
    for id in reading {
        if let (Some(known), Some(Some(r))) = (moments, units.readers.get(&id)) {
            let read = |u: &usize| units.units[u].read.get(&id).map(Vec::as_slice);
            let blocks: Vec<&[usize]> = group.members.iter().filter_map(read).collect();
            patients.extend(Patient::open(model, (id, r), known, &blocks)?);
        }
    }
    let by_data = matches!(by, Criterion::Data) && !patients.is_empty();
    let whole: f64 = group.members.iter().map(|u| units.units[u].size).sum();
    let mut ladder = Ladder::default();
    let mut left = group.members.clone();
    let mut damage = 0.0;
    while left.len() > least {
        let costs = match by_data {
            true => damages(&patients, &units.units, &left)?,
            false => left.iter().map(|u| units.units[u].size).collect(),
        };
        let count = (left.len() / STEP).clamp(1, left.len() - least);
        let taken = cheapest(&patients, &units.units, &left, &costs, count);
        let blocks = |p: &Patient| {
            let of = |k: &usize| p.columns(units.units[&left[*k]].read.get(&p.id).map_or(&[], Vec::as_slice));
            taken.iter().flat_map(of).collect::<Vec<usize>>()
        };
        for p in &mut patients {
            let block = blocks(p);
            damage += p.surgeon.costs(std::slice::from_ref(&block))?[0].max(0.0);
            p.surgeon.remove(&block)?;
        }
        if patients.is_empty() {
            damage += taken.iter().map(|k| units.units[&left[*k]].size).sum::<f64>() / whole.max(f64::MIN_POSITIVE);
        }
        ladder.order.extend(taken.iter().map(|k| left[*k]));
        ladder.damage.resize(ladder.order.len(), damage);
        let gone: BTreeSet<usize> = taken.into_iter().map(|k| left[k]).collect();
        left.retain(|u| !gone.contains(u));
    }
    Ok(ladder)
}

/// What all ladders of a model depend on.
///
/// # Errors
/// When a sample cannot be read.
pub fn key(model: &Model, samples: &Samples, cx: &Context) -> Result<Key> {
    let mut key = Key::new("in which order channels go, and their damage", &cx.engine.name()).model(model)?;
    for i in 0..samples.len() {
        key = key.sample(&samples.get(i)?);
    }
    Ok(key)
}

/// What the ladder of a group depends on, too.
pub fn of_group(key: &Key, units: &Units, group: &Group, (least, by): (usize, &Criterion)) -> Key {
    let read = |u: &usize| (*u, &units.units[u].read, units.units[u].size);
    let read: Vec<_> = group.members.iter().map(read).collect();
    key.clone().number(least).text(&format!("{by:?} {read:?}"))
}

/// A ladder of these units that was climbed before, or is now.
///
/// # Errors
/// Those of `climb`, and when the cache holds something else.
pub fn known((cache, key): (&Cache, Key), units: &[usize], climb: impl FnOnce() -> Result<Ladder>) -> Result<Ladder> {
    let numbers = cache.numbers(key, || {
        let ladder = climb()?;
        let order = ladder.order.iter().map(|u| *u as f64);
        Ok(order.chain(ladder.damage.iter().copied()).collect())
    })?;
    let (order, damage) = numbers.split_at(numbers.len() / 2);
    let order: Vec<usize> = order.iter().map(|u| *u as usize).collect();
    let (all, taken): (BTreeSet<&usize>, BTreeSet<&usize>) = (units.iter().collect(), order.iter().collect());
    ensure!(
        order.len() == damage.len() && taken.len() == order.len() && taken.is_subset(&all),
        "the cache holds other channels: remove it"
    );
    Ok(Ladder {
        order,
        damage: damage.to_vec(),
    })
}

/// The places of the cheapest units that do not stand for each other.
fn cheapest(
    patients: &[Patient],
    units: &BTreeMap<usize, Unit>,
    left: &[usize],
    costs: &[f64],
    count: usize,
) -> Vec<usize> {
    let mut order: Vec<usize> = (0..left.len()).collect();
    order.sort_by(|a, b| costs[*a].total_cmp(&costs[*b]).then(a.cmp(b)));
    let mut taken: Vec<usize> = Vec::new();
    for k in order.into_iter().take(4 * count) {
        let columns = |p: &Patient, k: usize| p.columns(units[&left[k]].read.get(&p.id).map_or(&[], Vec::as_slice));
        let related = |other: &usize| {
            let alike = |p: &Patient| p.surgeon.related(&columns(p, k), &columns(p, *other)) > RELATED;
            patients.iter().any(alike)
        };
        if taken.is_empty() || !taken.iter().any(related) {
            taken.push(k);
        }
        if taken.len() == count {
            break;
        }
    }
    taken
}

fn damages(patients: &[Patient], units: &BTreeMap<usize, Unit>, left: &[usize]) -> Result<Vec<f64>> {
    let mut sum = vec![0.0; left.len()];
    for p in patients {
        let of = |u: &usize| p.columns(units[u].read.get(&p.id).map_or(&[], Vec::as_slice));
        let blocks: Vec<Vec<usize>> = left.iter().map(of).collect();
        for (total, cost) in sum.iter_mut().zip(p.surgeon.costs(&blocks)?) {
            *total += cost;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn a_ladder_that_was_climbed_comes_back_and_another_one_is_refused() {
        let cache = Cache::default();
        let key = || Key::new("a ladder", "tract");
        let climbed = || {
            Ok(Ladder {
                order: vec![7, 3, 5],
                damage: vec![1e-9, 0.25, 0.5],
            })
        };
        let again = || bail!("it is climbed once more");
        known((&cache, key()), &[3, 5, 7, 9], climbed).expect("climbed");
        let ladder = known((&cache, key()), &[3, 5, 7, 9], again).expect("known");
        assert_eq!((ladder.order, ladder.damage), (vec![7, 3, 5], vec![1e-9, 0.25, 0.5]));
        let why = known((&cache, key()), &[3, 5, 8], again)
            .err()
            .expect("there is no unit 7");
        assert!(why.to_string().contains("remove it"));
        for odd in [vec![3.0], vec![3.0, 3.0, 0.1, 0.2]] {
            let key = key().number(odd.len());
            cache.numbers(key.clone(), || Ok(odd)).expect("kept");
            assert!(known((&cache, key), &[3, 5], again).is_err());
        }
    }
}
