//! What some samples show of the values, before all are measured: dimensions, and how large numbers usually are.
//!
//! A second moment is a sum of squares, so one sample in a thousand whose numbers are thirty times as large as usual decides alone
//! which directions count. A sample that stands out, in a value or in what is computed from it next, gives fewer rows: so
//! many that they weigh as much as those of a sample that is [`LOUD`].

use super::{Measure, Wanted, fold, rows};
use crate::data::{Sample, Samples};
use crate::engine::Session;
use crate::ir::{DType, Model, Use, ValueId};
use crate::math::hash::splitmix;
use crate::math::vector::{count_nan, sum_of, widest};
use crate::parallel::in_order;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// So many samples, the first ones, tell what is usual.
pub const LOOKED_AT: usize = 8;
/// The power that a sample may have before it stands out, in terms of the largest of those looked at.
const LOUD: f64 = 4.0;
/// The part of its rows that every sample gives: of one sample in ten that are loud, eight that are looked at may show none.
const LEAST: f64 = 1.0 / 8.0;
/// How many operators behind a value the next measured one is looked for.
const NEAR: usize = 4;

/// A value as some samples show it.
struct Seen {
    dtype: DType,
    /// In the first of them.
    dims: Vec<usize>,
    /// The largest mean of squares.
    usual: f64,
}

impl Seen {
    fn add(&mut self, power: f64) {
        self.usual = self.usual.max(power);
    }
}

/// What was seen; nothing when no second moment is wanted.
#[derive(Default)]
pub struct Survey {
    seen: HashMap<ValueId, Seen>,
    /// For values of which moments are wanted: the measured ones that are computed from them next.
    next: BTreeMap<ValueId, Vec<ValueId>>,
}

impl Survey {
    /// Nothing seen yet of the values that are wanted.
    pub fn new(model: &Model, wanted: &Wanted) -> Survey {
        let measured: BTreeSet<ValueId> = wanted.iter().map(|(v, _)| *v).collect();
        let with_moments = wanted
            .iter()
            .filter(|(_, m)| m.iter().any(|m| matches!(m, Measure::Gram(..))));
        let next = with_moments.map(|(v, _)| (*v, next(model, *v, &measured))).collect();
        let seen = HashMap::new();
        Survey { seen, next }
    }

    /// Looks at some samples.
    ///
    /// # Errors
    /// When one fails; the message gives its number.
    pub fn look(
        &mut self,
        session: &dyn Session,
        (model, wanted): (&Model, &Wanted),
        (samples, some): (&Samples, &[usize]),
        threads: usize,
    ) -> Result<()> {
        let look = |i: usize| {
            let number = samples.number(some[i]);
            let seen = look(session, (model, wanted), (&samples.get(some[i])?, number));
            seen.with_context(|| format!("sample {number}"))
        };
        in_order(some.len(), threads, look, |_, values| {
            for (v, new) in values {
                match self.seen.get_mut(&v) {
                    Some(seen) => seen.add(new.usual),
                    None => drop(self.seen.insert(v, new)),
                }
            }
            Ok(())
        })
    }

    /// Adds the powers of [`Survey::watched`] values in another sample.
    pub fn add(&mut self, powers: &BTreeMap<ValueId, f64>) {
        for (v, power) in powers {
            if let Some(seen) = self.seen.get_mut(v) {
                seen.add(*power);
            }
        }
    }

    /// Type and dimensions of a value.
    pub fn shape(&self, v: ValueId) -> Option<(DType, &[usize])> {
        self.seen.get(&v).map(|s| (s.dtype, s.dims.as_slice()))
    }

    /// The values whose power tells how many rows are cut out of `v`.
    pub fn watched(&self, v: ValueId) -> impl Iterator<Item = ValueId> {
        self.next
            .get(&v)
            .into_iter()
            .flat_map(move |n| std::iter::once(v).chain(n.iter().copied()))
    }

    /// How many of `rows` rows of a value to take of a sample, from the powers of [`Survey::watched`] values in it: all, unless it
    /// stands out. By chance where that is no whole number.
    pub fn share(&self, v: ValueId, powers: &BTreeMap<ValueId, f64>, rows: usize, sample: usize) -> usize {
        let of = |v: ValueId| {
            let usual = self.seen.get(&v).map_or(0.0, |s| s.usual);
            let power = powers.get(&v).filter(|_| usual > 0.0)?;
            Some(LOUD * usual / power)
        };
        let share = self.watched(v).filter_map(of).fold(1.0, f64::min).max(LEAST);
        let chance = (splitmix(!(sample as u64)) >> 11) as f64 / (1u64 << 53) as f64;
        match share < 1.0 {
            true => (rows as f64 * share + chance) as usize,
            false => rows,
        }
    }
}

fn look(
    session: &dyn Session,
    (model, wanted): (&Model, &Wanted),
    (sample, number): (&Sample, usize),
) -> Result<Vec<(ValueId, Seen)>> {
    let mut all = Vec::new();
    session.visit(sample, &mut |i, value| {
        let numbers = value.to_f32().filter(|_| fold::is_float(value.dtype()));
        let nan = numbers.as_ref().map_or(0, |x| count_nan(x));
        fold::no_nan(nan).with_context(|| model.value(wanted[i].0).name.clone())?;
        let seen = Seen {
            dtype: value.dtype(),
            dims: value.dims().to_vec(),
            usual: numbers.map_or(0.0, |x| power(&x, number)),
        };
        all.push((wanted[i].0, seen));
        Ok(())
    })?;
    Ok(all)
}

/// The measured values that are computed from one, by few operators, without another measured one in between.
fn next(model: &Model, v: ValueId, measured: &BTreeSet<ValueId>) -> Vec<ValueId> {
    let mut found = BTreeSet::new();
    let mut front = BTreeSet::from([v]);
    for _ in 0..NEAR {
        let mut further = BTreeSet::new();
        for user in front.iter().flat_map(|v| model.value(*v).uses()) {
            let Use::Node(id, _) = user else { continue };
            let outputs = model.node(*id).outputs().iter().flatten().copied();
            let (measured, others): (Vec<ValueId>, Vec<ValueId>) = outputs.partition(|v| measured.contains(v));
            found.extend(measured);
            further.extend(others);
        }
        front = further;
    }
    found.remove(&v);
    found.into_iter().collect()
}

/// The mean of the squares of a sample's value, of some thousand numbers.
pub fn power(x: &[f32], sample: usize) -> f64 {
    mean_square(&rows::some(x, 1 << 14, sample))
}

/// The mean of the squares of finite numbers; 0 for none.
fn mean_square(x: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let sum = widest!(sum_of(x, |x| x * x));
    let (sum, count) = match sum.is_finite() {
        true => (sum, x.len()),
        false => {
            let finite = || x.iter().filter(|x| x.is_finite());
            (finite().map(|x| square(*x)).sum(), finite().count())
        }
    };
    sum / count.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::Builder;

    fn survey(usual: &[(ValueId, f64)], next: &[(ValueId, Vec<ValueId>)]) -> Survey {
        let seen = |&(v, usual): &(ValueId, f64)| {
            let seen = Seen {
                dtype: DType::Float,
                dims: vec![1],
                usual,
            };
            (v, seen)
        };
        Survey {
            seen: usual.iter().map(seen).collect(),
            next: next.iter().cloned().collect(),
        }
    }

    #[test]
    fn a_sample_that_stands_out_gives_as_many_rows_as_weigh_what_is_usual() {
        let mut b = Builder::new(13);
        let x = b.input("x", DType::Float, &[1, 4]);
        let y = b.op("Relu", &[x], vec![]);
        let alone = survey(&[(x, 1.0), (y, 0.0)], &[(x, vec![])]);
        let share =
            |s: &Survey, power, rows, sample| s.share(x, &BTreeMap::from([(x, power), (y, power)]), rows, sample);
        assert_eq!((share(&alone, 1.0, 100, 0), share(&alone, 4.0, 100, 0)), (100, 100));
        assert_eq!(share(&alone, 0.0, 100, 0), 100);
        let all = |s: &Survey, power| (0..1000).map(|i| share(s, power, 10, i)).sum::<usize>();
        assert!(
            (all(&alone, 10.0) as f64 / 1000.0 - 4.0).abs() < 0.1,
            "{}",
            all(&alone, 10.0)
        );
        assert!((all(&alone, 1e9) as f64 / 10_000.0 - LEAST).abs() < 1e-2);
        // What is computed from it stands out more.
        let with_next = survey(&[(x, 1.0), (y, 0.1)], &[(x, vec![y])]);
        assert!((all(&with_next, 1.0) as f64 / 1000.0 - 4.0).abs() < 0.1);
        // Nothing is known of what is usual.
        assert_eq!(share(&survey(&[(x, 0.0)], &[(x, vec![])]), 1e9, 7, 0), 7);
        assert_eq!(share(&Survey::default(), 1e9, 7, 0), 7);
    }

    #[test]
    fn the_next_measured_values_are_found_behind_few_operators() {
        let mut b = Builder::new(13);
        let x = b.input("x", DType::Float, &[1, 4]);
        let h = b.op("Abs", &[x], vec![]);
        let one = b.op("Relu", &[h], vec![]);
        let after = b.op("Neg", &[one], vec![]);
        let other = b.op("Exp", &[h], vec![]);
        let all = BTreeSet::from([x, one, after, other]);
        assert_eq!(next(&b.model, x, &all), [one, other]);
        assert_eq!(next(&b.model, one, &all), [after]);
        assert!(next(&b.model, after, &all).is_empty());
    }

    #[test]
    fn squares_of_what_is_not_finite_do_not_count() {
        assert_eq!(mean_square(&[]), 0.0);
        assert_eq!(mean_square(&[3.0; 17]), 9.0);
        assert_eq!(mean_square(&[f32::INFINITY, 2.0, f32::NEG_INFINITY, 4.0]), 10.0);
        assert_eq!(mean_square(&[f32::MAX; 9]), f64::from(f32::MAX) * f64::from(f32::MAX));
    }
}
