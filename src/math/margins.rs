//! How many decisions among classes a noise on the scores is expected to change, from few samples.
//!
//! Counting changed decisions cannot resolve half a percent on a hundred samples: none changes, and nothing is known.
//! The margin `m` between the best and the second score says more. When the difference of these two scores errs by
//! `σ·t`, a decision changes with probability `P(t > m/σ)`; the mean of that is expected to change. Margins are the original's alone:
//! those of all samples are taken, whichever the noise was measured on. `σ` is the root mean square of the errors, those beyond
//! five deviations drawn in (Huber 1964): a score that is far off is one whose margin is large. While few changes are expected,
//! little is known of small margins, and samples that have them are noisier than others: the noise is taken `1 + 1.4/(2 + changes)` times.
//!
//! Some samples are noisier than others, so `t` is no normal number: its tails are those of Student's distribution with four degrees of
//! freedom, scaled to the mean size of normal errors. Where margins of all sizes occur, that size is all that counts. A net whose
//! margins are all about equally large loses only by the tail, and a normal one would say: nothing, until much is lost.
//!
//! With labels, a change costs where the best class was right, and gains where the second is. Few decisions are about to change,
//! so their labels alone say little of what a change costs. What says more: at a margin `m` the best class is right with odds
//! `exp(m/T)` against the second (Guo et al. 2017, "On Calibration of Modern Neural Networks", two classes; `T` is such that as many
//! are right as the labels say), so a change there costs `tanh(m/2T)`. In a net that is nearly always right the few changes
//! are of sure decisions as well, and cost more than that.
//!
//! On five classifiers in nine compressed forms each, with 128 samples, the losses that this expects are up to 40 % above those of a
//! normal tail where that told too little, and at most 0.06 points above them anywhere.
//! Scores that are probabilities are compared by their logarithms, where noise is even.

/// Decisions kept; beyond so many, counting says as much.
const MOST: usize = 1 << 16;
/// Probabilities below this are equal.
const LEAST: f32 = 1e-20;

/// How much more noise few changes mean: `1 + FEW.0 / (FEW.1 + changes)`.
const FEW: (f64, f64) = (1.4, 2.0);
/// Errors count up to so many deviations.
const OUTLIER: f64 = 5.0;

/// Changes that count as seen, at the cost that margins tell, before any is: whether the two or three closest decisions of a
/// hundred happen to be right says next to nothing.
const PRIOR: f64 = 40.0;
/// What a change costs at least by that account: in a net that is right at most so often, and at least so often.
const COST: [(f64, f64); 2] = [(0.85, 0.03), (0.97, 0.4)];
/// What it costs at most by that account.
const MOST_COST: f64 = 0.5;
/// What a change costs at least in the end: gains may be luck.
const LEAST_COST: f64 = 0.05;

/// What a change of a decision does to the accuracy.
#[derive(Clone, Copy, PartialEq)]
enum Stake {
    None,
    Loses,
    Gains,
}

/// Margins of decisions. They do not depend on the noise: they may be of more samples than it was measured on.
#[derive(Clone, Default)]
pub struct Margins {
    all: Vec<(f32, Stake)>,
}

/// How much margins err.
#[derive(Clone, Default)]
pub struct Noise {
    errors: Vec<f32>,
}

/// The margin of a decision and the places of its two best scores; `None` below two classes.
fn margin(before: &[f32]) -> Option<(f32, usize, usize)> {
    let (best, second) = two_best(before)?;
    Some((difference(before, best, second, probabilities(before)), best, second))
}

fn difference(row: &[f32], i: usize, k: usize, logs: bool) -> f32 {
    match logs {
        true => row[i].max(LEAST).ln() - row[k].max(LEAST).ln(),
        false => row[i] - row[k],
    }
}

impl Noise {
    /// Adds a decision: the scores of all classes before and after.
    pub fn add(&mut self, before: &[f32], after: &[f32]) {
        let Some((m, best, second)) = margin(before).filter(|_| after.len() == before.len()) else {
            return;
        };
        let error = m - difference(after, best, second, probabilities(before));
        if error.is_finite() && self.errors.len() < MOST {
            self.errors.push(error.abs());
        }
    }

    /// The root mean square of the errors, outliers drawn in; `None` without decisions.
    pub fn level(&self) -> Option<f64> {
        let mut sorted = self.errors.clone();
        sorted.sort_by(f32::total_cmp);
        // Of normal errors half are below 0.6745 deviations.
        let deviation = f64::from(*sorted.get(sorted.len() / 2)?) / 0.6745;
        let most = if deviation > 0.0 {
            OUTLIER * deviation
        } else {
            f64::INFINITY
        };
        let squares = sorted.iter().map(|&e| f64::from(e).min(most).powi(2));
        Some((squares.sum::<f64>() / sorted.len() as f64).sqrt())
    }
}

impl Margins {
    /// Adds a decision: the scores of all classes, and the right class where it is known.
    pub fn add(&mut self, scores: &[f32], label: Option<usize>) {
        let Some((m, best, second)) = margin(scores).filter(|m| m.0.is_finite() && self.all.len() < MOST) else {
            return;
        };
        let stake = match label {
            Some(l) if l == best => Stake::Loses,
            Some(l) if l == second => Stake::Gains,
            _ => Stake::None,
        };
        self.all.push((m, stake));
    }

    /// The expected share of decisions that change under a noise of this root mean square; `None` without decisions.
    pub fn changes(&self, noise: f64) -> Option<f64> {
        self.mean(noise, |_| 1.0)
    }

    /// The expected share of decisions that were right and become wrong, less those that become right.
    pub fn loss(&self, noise: f64) -> Option<f64> {
        let changes = self.changes(noise)?;
        let lost = self.mean(noise, |stake| match stake {
            Stake::None => 0.0,
            Stake::Loses => 1.0,
            Stake::Gains => -1.0,
        })?;
        let n = self.all.len() as f64;
        let cost = (lost * n + self.cost(noise) * PRIOR) / (changes * n + PRIOR);
        Some(changes * cost.max(LEAST_COST))
    }

    /// What a change costs by the margins alone, on average over the changes to be expected.
    fn cost(&self, noise: f64) -> f64 {
        let right = self.right();
        let (t, noise) = (self.temperature(right), self.careful(noise));
        let of = |(m, _): &(f32, Stake)| tail(f64::from(*m) / noise);
        let changes: f64 = self.all.iter().map(of).sum();
        let costs = self.all.iter().map(|d| of(d) * (f64::from(d.0) / (2.0 * t)).tanh());
        let cost = costs.sum::<f64>() / changes.max(f64::MIN_POSITIVE);
        let [(from, low), (to, high)] = COST;
        let least = low + (high - low) * ((right - from) / (to - from)).clamp(0.0, 1.0);
        match cost.is_finite() {
            true => cost.clamp(least, MOST_COST),
            false => MOST_COST,
        }
    }

    /// The share of decisions that are right.
    fn right(&self) -> f64 {
        let right = self.all.iter().filter(|d| d.1 == Stake::Loses).count() as f64;
        (right + 0.5) / (self.all.len() as f64 + 1.0)
    }

    /// The `T` for which the mean chance `1/(1 + exp(−m/T))` that a decision is right is this share.
    fn temperature(&self, share: f64) -> f64 {
        let n = self.all.len() as f64;
        let chance = |t: f64| {
            let of = |d: &(f32, Stake)| 1.0 / (1.0 + (-f64::from(d.0) / t).exp());
            self.all.iter().map(of).sum::<f64>() / n
        };
        let (mut low, mut high) = (-20.0f64, 20.0f64);
        for _ in 0..50 {
            let middle = (low + high) / 2.0;
            *(if chance(middle.exp()) > share {
                &mut low
            } else {
                &mut high
            }) = middle;
        }
        low.exp()
    }

    fn careful(&self, noise: f64) -> f64 {
        let changes: f64 = self.all.iter().map(|(m, _)| tail(f64::from(*m) / noise)).sum();
        noise * (1.0 + FEW.0 / (FEW.1 + changes))
    }

    fn mean(&self, noise: f64, weight: impl Fn(Stake) -> f64) -> Option<f64> {
        if self.all.is_empty() || noise == 0.0 {
            return (!self.all.is_empty()).then_some(0.0);
        }
        let n = self.all.len() as f64;
        let noise = self.careful(noise);
        let of = |(m, stake): &(f32, Stake)| weight(*stake) * tail(f64::from(*m) / noise);
        Some(self.all.iter().map(of).sum::<f64>() / n)
    }
}

/// The places of the largest and the second largest score; the first of equal ones counts as larger.
fn two_best(row: &[f32]) -> Option<(usize, usize)> {
    if row.len() < 2 {
        return None;
    }
    let (mut best, mut second) = if row[1] > row[0] { (1, 0) } else { (0, 1) };
    for i in 2..row.len() {
        if row[i] > row[best] {
            (best, second) = (i, best);
        } else if row[i] > row[second] {
            second = i;
        }
    }
    Some((best, second))
}

/// The chance that an error is above `x ≥ 0` times the noise: Student's distribution with four degrees of freedom, whose mean size 1 is
/// scaled to `√(2/π)`. With `s = x/√(4 + x²)` it is `(1 − s)²(2 + s)/4`.
fn tail(x: f64) -> f64 {
    let x = x * (std::f64::consts::PI / 2.0).sqrt();
    if !x.is_finite() {
        return 0.0;
    }
    let root = x.hypot(2.0);
    let (s, rest) = (x / root, 4.0 / (root * (root + x)));
    rest * rest * (2.0 + s) / 4.0
}

fn probabilities(row: &[f32]) -> bool {
    row.iter().all(|x| *x >= 0.0) && (row.iter().sum::<f32>() - 1.0).abs() < 1e-3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::hash::next;

    /// Nearly normal numbers.
    fn normal(state: &mut u64) -> f32 {
        (0..12)
            .map(|_| (next(state) >> 40) as f32 / (1u64 << 24) as f32)
            .sum::<f32>()
            - 6.0
    }

    #[test]
    fn expected_changes_are_those_that_happen() {
        let mut state = 7;
        let (mut all, mut noise) = (Margins::default(), Noise::default());
        let best = |row: &[f32]| two_best(row).expect("four classes").0;
        let (mut changed, mut lost, n) = (0.0, 0.0, 20_000);
        for i in 0..n {
            let before: Vec<f32> = (0..4).map(|_| 3.0 * normal(&mut state)).collect();
            let after: Vec<f32> = before.iter().map(|x| x + 0.2 * normal(&mut state)).collect();
            let label = if i % 4 > 0 { best(&before) } else { i % 3 };
            all.add(&before, Some(label));
            noise.add(&before, &after);
            let (a, b) = (best(&before), best(&after));
            changed += f64::from(u8::from(a != b)) / f64::from(n as u32);
            lost += (f64::from(u8::from(a == label)) - f64::from(u8::from(b == label))) / f64::from(n as u32);
        }
        let rms = noise.level().expect("some");
        let (expected, loss) = (all.changes(rms).expect("some"), all.loss(rms).expect("some"));
        assert!((expected / changed - 1.0).abs() < 0.1, "{expected} against {changed}");
        assert!((loss / lost - 1.0).abs() < 0.15, "{loss} against {lost}");
    }

    /// Margins of 0.1, 0.2, … 9.6; in every `wrong` the second class is right, or another one.
    fn ladder(wrong: usize) -> Margins {
        let mut all = Margins::default();
        for i in 1..=96 {
            let label = match (i % wrong, i % 2) {
                (0, 0) => 1,
                (0, _) => 2,
                _ => 0,
            };
            all.add(&[i as f32 / 10.0, 0.0, -1.0], Some(label));
        }
        all
    }

    #[test]
    fn a_change_costs_much_where_nearly_all_is_right_and_little_where_close_decisions_are_guesses() {
        let cost = |m: &Margins| m.loss(0.2).expect("some") / m.changes(0.2).expect("some");
        let (sure, unsure) = (cost(&ladder(97)), cost(&ladder(3)));
        assert!(sure > 0.5, "{sure}");
        assert!((0.03..0.2).contains(&unsure), "{unsure}");
    }

    #[test]
    fn an_outlier_does_not_raise_the_noise() {
        let mut noise = [Noise::default(), Noise::default()];
        let mut state = 3;
        for i in 0..100 {
            let x = [3.0 + normal(&mut state), 0.0];
            let y = [x[0] + 0.1 * normal(&mut state), 0.0];
            noise[0].add(&x, &y);
            noise[1].add(&x, if i == 50 { &[90.0, 0.0] } else { &y });
        }
        let [plain, outlier] = noise.map(|n| n.level().expect("some"));
        assert!(
            (0.08..0.12).contains(&plain) && outlier < 1.2 * plain,
            "{plain} {outlier}"
        );
    }

    #[test]
    fn the_tail_has_the_values_of_tables() {
        // The quantiles of Student's distribution with four degrees of freedom.
        for (t, p) in [(0.0, 0.5), (2.131_847, 0.05), (4.604_095, 0.005), (8.610_302, 0.0005)] {
            let x = t / (std::f64::consts::PI / 2.0).sqrt();
            assert!((tail(x) / p - 1.0f64).abs() < 1e-6, "{t}: {}", tail(x));
        }
        assert_eq!(tail(f64::INFINITY), 0.0);
    }

    #[test]
    fn equal_margins_are_not_safe_because_none_was_passed() {
        let mut all = Margins::default();
        (0..64).for_each(|_| all.add(&[3.5, 0.0, 0.0, 0.0], Some(0)));
        let [near, far] = [0.65, 0.1].map(|noise| all.loss(noise).expect("some"));
        assert!(near > 0.002 && far < 1e-5, "{near} {far}");
    }

    #[test]
    fn logits_and_their_softmax_say_the_same() {
        let mut all = [Margins::default(), Margins::default()];
        let mut noise = [Noise::default(), Noise::default()];
        let mut state = 1;
        for _ in 0..100 {
            let x: Vec<f32> = (0..5).map(|_| normal(&mut state)).collect();
            let y: Vec<f32> = x.iter().map(|x| x + 0.1 * normal(&mut state)).collect();
            let softmax = |row: &[f32]| {
                let sum: f32 = row.iter().map(|x| x.exp()).sum();
                row.iter().map(|x| x.exp() / sum).collect::<Vec<f32>>()
            };
            for (k, (x, y)) in [(x.clone(), y.clone()), (softmax(&x), softmax(&y))]
                .into_iter()
                .enumerate()
            {
                all[k].add(&x, None);
                noise[k].add(&x, &y);
            }
        }
        let [a, b] = [0, 1].map(|k| all[k].changes(noise[k].level().expect("some")).expect("some"));
        assert!((a - b).abs() < 1e-4 && a > 0.001, "{a} {b}");
        assert_eq!(
            (Margins::default().changes(1.0), Noise::default().level()),
            (None, None)
        );
    }
}
