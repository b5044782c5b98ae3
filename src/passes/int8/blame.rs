//! Which operators are to blame for the error of the outputs.
//!
//! Powers of independent noise add up, so what a stretch of operators (in the order in which they run) does is the error with it less the error
//! without it: stretches that do most harm are halved, as in group testing, until single ones are left or trials run out. Errors also
//! saturate: a decision that either half turns is turned with either of them left out. Then it counts how much each half does alone. What does
//! much harm for what it gains in integers is given up first.
//!
//! What is not given up need not stay in integers: without some of them the rest may no longer be worth its conversions. So each trial also tells what is
//! left in integers, and the trial that leaves most, of those that err by no more than the limit, has the last word.

use anyhow::Result;
use std::collections::VecDeque;
use std::ops::Range;

/// How many stretches are left out, one at a time, to see what they do, in each round.
const TRIALS: usize = 24;
/// Operators are given up until this part of the limit is left, as far as the trials tell.
const LEFT: f64 = 0.8;
/// An error above this saturates: what an operator adds to it says less than what it does alone.
const SATURATED: f64 = 0.1;
/// Halves that together take away less than this part of what the whole does are to blame together.
const TOGETHER: f64 = 0.5;
/// So many trials tell what of the best of all trials need not be given up.
const FEWER: usize = 12;

/// Operators that run one after the other: where they stand among those in integers, and by how much outputs err because of them.
#[derive(Clone, Debug, PartialEq)]
struct Stretch {
    first: usize,
    end: usize,
    /// What integers gain there.
    gain: f64,
    /// Noise power over signal power.
    harm: f64,
    /// It does its harm as a whole.
    whole: bool,
}

/// What became of the outputs without some operators.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// By how much they err.
    pub error: f64,
    /// What integers gain where they are left.
    pub kept: f64,
}

/// Those of all operators to give up, with the harm that each does together with its neighbours, the largest first: those that do much for what they
/// gain, and as few as will do for an error of `now` to fall to `limit`. `without` tells of the model without some.
///
/// # Errors
/// Those of `without`.
pub fn worst(
    all: &[usize],
    gains: &[f64],
    (now, limit): (f64, f64),
    without: impl FnMut(&[usize]) -> Result<Trial>,
) -> Result<Vec<(usize, f64)>> {
    let mut tried = Tried {
        all,
        limit,
        without,
        best: None,
    };
    let parts = told_apart(gains, now.min(f64::MAX), &mut tried)?;
    let chosen = fewest(parts.clone(), gains, &mut tried)?;
    let mut some: Vec<usize> = chosen.iter().flat_map(|s| s.first..s.end).collect();
    some.sort();
    if let Some((best, _)) = tried.best.clone().filter(|(best, _)| *best != some) {
        some = tried.fewer(best)?;
    }
    let harm = |i: &usize| {
        parts
            .iter()
            .find(|s| (s.first..s.end).contains(i))
            .map_or(now, |s| s.harm)
    };
    let mut each: Vec<(usize, f64)> = some.iter().map(|i| (all[*i], harm(i))).collect();
    each.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(each)
}

/// The first of these stretches, and of the last as little, as will do: what adds up does so only about.
fn fewest<F: FnMut(&[usize]) -> Result<Trial>>(
    mut stretches: Vec<Stretch>,
    gains: &[f64],
    tried: &mut Tried<F>,
) -> Result<Vec<Stretch>> {
    let mut fits = |some: &[Stretch]| {
        let some = some.iter().flat_map(|s| s.first..s.end).collect();
        anyhow::Ok(tried.error(some)? <= tried.limit)
    };
    let (mut few, mut many) = (0, stretches.len());
    while many - few > 1 {
        let middle = few.midpoint(many);
        let enough = fits(&stretches[..middle])?;
        *(if enough { &mut many } else { &mut few }) = middle;
    }
    stretches.truncate(many);
    while let Some(last) = stretches.pop_if(|s| !s.whole) {
        let mut smaller = false;
        for half in last.halves(gains, [last.harm / 2.0; 2]) {
            stretches.push(half);
            smaller = fits(&stretches)?;
            if smaller {
                break;
            }
            stretches.pop();
        }
        if !smaller {
            stretches.push(last);
            break;
        }
    }
    Ok(stretches)
}

/// What was tried, and the best of it.
struct Tried<'a, F> {
    all: &'a [usize],
    limit: f64,
    without: F,
    /// Of the trials that err by no more than the limit, the one that leaves most in integers: what it gives up, in order, and what it leaves.
    best: Option<(Vec<usize>, f64)>,
}

impl<F: FnMut(&[usize]) -> Result<Trial>> Tried<'_, F> {
    /// The error without some, which are given by their places.
    fn error(&mut self, mut some: Vec<usize>) -> Result<f64> {
        some.sort();
        let units: Vec<usize> = some.iter().map(|i| self.all[*i]).collect();
        let Trial { error, kept } = (self.without)(&units)?;
        let most = self.best.as_ref().map_or(0.0, |best| best.1);
        if error <= self.limit && kept > most {
            self.best = Some((some, kept));
        }
        Ok(error)
    }

    /// As little of what is given up as a few trials tell.
    fn fewer(&mut self, mut some: Vec<usize>) -> Result<Vec<usize>> {
        let mut parts = VecDeque::from([some.clone()]);
        for _ in 0..FEWER {
            let Some(part) = parts.pop_front() else { break };
            let rest: Vec<usize> = some.iter().filter(|i| !part.contains(i)).copied().collect();
            if !rest.is_empty() {
                self.error(rest.clone())?;
            }
            if self.best.as_ref().is_some_and(|best| best.0 == rest) {
                some = rest;
            } else if part.len() > 1 {
                let (one, other) = part.split_at(part.len() / 2);
                parts.extend([one.to_vec(), other.to_vec()]);
            }
        }
        Ok(some)
    }
}

/// Trials that are left.
struct Trials<'a, 'b, F> {
    tried: &'a mut Tried<'b, F>,
    now: f64,
    left: usize,
}

impl<F: FnMut(&[usize]) -> Result<Trial>> Trials<'_, '_, F> {
    /// How much a stretch adds to the error of all.
    fn harm(&mut self, s: &Stretch) -> Result<f64> {
        self.left -= 1;
        Ok(self.now - self.tried.error((s.first..s.end).collect())?.min(f64::MAX))
    }

    /// How much it errs alone.
    fn alone(&mut self, s: &Stretch) -> Result<f64> {
        self.left -= 1;
        self.tried
            .error((0..s.first).chain(s.end..self.tried.all.len()).collect())
    }

    /// What each half of a stretch adds.
    fn added(&mut self, [a, b]: &[Stretch; 2], whole: f64) -> Result<[f64; 2]> {
        let one = self.harm(a)?.clamp(0.0, whole);
        // The larger part is measured, never inferred.
        let other = match one < whole / 2.0 && self.left > 0 {
            true => self.harm(b)?.clamp(0.0, whole),
            false => whole - one,
        };
        Ok([one, other])
    }

    /// What each half does alone, as a part of what the whole does.
    fn apart(&mut self, [a, b]: &[Stretch; 2], whole: f64) -> Result<[f64; 2]> {
        let each = [self.alone(a)?.clamp(0.0, whole), self.alone(b)?.clamp(0.0, whole)];
        let part = (whole / (each[0] + each[1]).max(f64::MIN_POSITIVE)).min(1.0);
        Ok(each.map(|harm| harm * part))
    }

    /// What each half of a stretch does; `None` when they do it together.
    fn halves(&mut self, halves: &[Stretch; 2], whole: f64) -> Result<Option<[f64; 2]>> {
        let first = self.now > SATURATED;
        for alone in [first, !first] {
            let each = match alone {
                true if self.left < 2 => continue,
                true => self.apart(halves, whole)?,
                false if self.left < 1 => continue,
                false => self.added(halves, whole)?,
            };
            if each[0] + each[1] >= TOGETHER * whole {
                return Ok(Some(each));
            }
        }
        Ok(None)
    }
}

/// All operators in stretches, those first that do much harm for what they gain.
fn told_apart<F: FnMut(&[usize]) -> Result<Trial>>(
    gains: &[f64],
    now: f64,
    tried: &mut Tried<F>,
) -> Result<Vec<Stretch>> {
    let (limit, left) = (tried.limit, TRIALS);
    let mut trials = Trials { tried, now, left };
    let mut stretches = vec![Stretch::new(gains, 0..gains.len(), now)];
    loop {
        stretches.sort_by(|a, b| b.density().total_cmp(&a.density()).then(a.first.cmp(&b.first)));
        let wide = (0..enough(&stretches, now - LEFT * limit)).filter(|k| !stretches[*k].whole);
        let most = wide.max_by(|a, b| stretches[*a].harm.total_cmp(&stretches[*b].harm));
        let (Some(k), true) = (most, trials.left > 0) else {
            return Ok(stretches);
        };
        let whole = stretches[k].harm;
        match trials.halves(&stretches[k].halves(gains, [0.0; 2]), whole)? {
            Some(each) => {
                let halves = stretches[k].halves(gains, each);
                stretches.splice(k..=k, halves);
            }
            None => stretches[k].whole = true,
        }
    }
}

/// How many of the stretches, from the first on, take so much of the error away; one at least.
fn enough(stretches: &[Stretch], wanted: f64) -> usize {
    let mut sum = 0.0;
    let reached = stretches.iter().position(|s| {
        sum += s.harm;
        sum >= wanted
    });
    reached.map_or(stretches.len(), |k| k + 1)
}

impl Stretch {
    fn new(gains: &[f64], part: Range<usize>, harm: f64) -> Stretch {
        Stretch {
            first: part.start,
            end: part.end,
            gain: gains[part.clone()].iter().sum(),
            harm,
            whole: part.len() < 2,
        }
    }

    fn halves(&self, gains: &[f64], [one, other]: [f64; 2]) -> [Stretch; 2] {
        let middle = self.first.midpoint(self.end);
        [
            Stretch::new(gains, self.first..middle, one),
            Stretch::new(gains, middle..self.end, other),
        ]
    }

    fn density(&self) -> f64 {
        self.harm / self.gain.max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finds what is to be given up when operators do this harm; with the number of trials.
    fn found(harm: impl Fn(&[usize]) -> f64, n: usize, limit: f64) -> (Vec<usize>, usize) {
        let all: Vec<usize> = (0..n).collect();
        let mut trials = 0;
        let mut without = |some: &[usize]| {
            trials += 1;
            let rest: Vec<usize> = all.iter().filter(|i| !some.contains(i)).copied().collect();
            Ok(Trial {
                error: harm(&rest),
                kept: rest.len() as f64,
            })
        };
        let found = worst(&all, &vec![1.0; n], (harm(&all), limit), &mut without).expect("trials run");
        let mut units: Vec<usize> = found.iter().map(|unit| unit.0).collect();
        units.sort();
        (units, trials)
    }

    #[test]
    fn one_operator_among_many_is_found() {
        let sum = |some: &[usize]| some.iter().map(|&i| if i == 37 { 0.1 } else { 1e-4 }).sum();
        let (units, trials) = found(sum, 150, 0.05);
        assert_eq!(units, [37]);
        assert!(trials <= 20, "{trials} trials");
    }

    #[test]
    fn two_that_do_harm_only_together_are_found_together_or_one_of_them() {
        // The outputs err when either is in integers.
        let either = |some: &[usize]| {
            if some.contains(&6) || some.contains(&9) {
                0.3
            } else {
                0.0
            }
        };
        let (units, _) = found(either, 16, 0.05);
        assert!(units.contains(&6) && units.contains(&9), "{units:?}");
        assert!(units.len() <= 4, "{units:?}");
    }

    #[test]
    fn an_error_that_saturates_does_not_take_all() {
        // Half of them do nearly as much as all.
        let saturated = |some: &[usize]| 0.07 * (1.0 - 0.97f64.powi(some.len() as i32));
        let (units, _) = found(saturated, 100, 0.05);
        assert!(units.len() < 70, "{}", units.len());
    }

    #[test]
    fn what_does_harm_only_together_is_given_up_as_far_as_needed() {
        let both = |some: &[usize]| {
            if some.contains(&6) && some.contains(&9) {
                0.3
            } else {
                0.0
            }
        };
        let (units, _) = found(both, 16, 0.05);
        assert!(units.contains(&6) != units.contains(&9), "{units:?}");
    }

    #[test]
    fn where_all_do_the_same_harm_no_more_go_than_have_to() {
        let sum = |some: &[usize]| 0.001 * some.len() as f64;
        let (units, trials) = found(sum, 100, 0.05);
        assert!((50..=52).contains(&units.len()), "{}", units.len());
        assert!(trials <= TRIALS + 10, "{trials}");
    }

    #[test]
    fn a_choice_that_leaves_nothing_in_integers_is_not_the_last_word() {
        // The second half does three quarters of the harm; without much of the first, nothing is worth its conversions.
        let all: Vec<usize> = (0..64).collect();
        let without = |some: &[usize]| {
            let first = some.iter().filter(|i| **i < 32).count();
            let rest = 64 - some.len();
            let harm = (32 - first) as f64 * 0.001 + (rest + first - 32) as f64 * 0.003;
            Ok(match first > 8 {
                true => Trial { error: 0.0, kept: 0.0 },
                false => Trial {
                    error: harm,
                    kept: rest as f64,
                },
            })
        };
        let gains: Vec<f64> = all.iter().map(|i| if *i < 32 { 0.1 } else { 1.0 }).collect();
        let found = worst(&all, &gains, (0.128, 0.05), without).expect("trials run");
        let (first, second): (Vec<usize>, Vec<usize>) = found.iter().map(|unit| unit.0).partition(|i| *i < 32);
        assert!(first.len() <= 8, "{found:?}");
        assert!((24..=32).contains(&second.len()), "{found:?}");
    }

    #[test]
    fn numbers_that_are_lost_are_harm_without_end() {
        let lost = |some: &[usize]| if some.contains(&3) { f64::INFINITY } else { 0.01 };
        assert_eq!(found(lost, 8, 0.05).0, [3]);
    }
}
