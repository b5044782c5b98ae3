//! How many decisions among classes a noise on the scores is expected to change, from few samples.
//!
//! Counting changed decisions cannot resolve half a percent on a hundred samples: none changes, and nothing is known.
//! The margin `m` between the best and the second score says more. When the difference of these two scores errs by
//! `σ` (root mean square over all decisions), a decision changes with probability `Φ(−m/σ)`; the mean of that is
//! expected to change. Margins are the original's alone: those of all samples are taken, whichever the noise was measured on.
//! With labels, a change costs where the best class was right, and gains where the second is. Few decisions are about to change,
//! so labels alone say little of what a change costs. What says more: at a margin `m` the best class is right with odds
//! `exp(m/T)` against the second (Guo et al. 2017, "On Calibration of Modern Neural Networks", two classes; `T` is such that as many
//! are right as the labels say), so a change there costs `tanh(m/2T)`: half or more in a net that is nearly always right, next
//! to nothing in one whose close decisions are guesses.
//! Few margins say little about small ones, and samples with small margins are noisier than others (measured on two digit
//! classifiers: a third to a half more decisions change than `Φ` says): with `n` margins the noise is taken `1 + 6/√n` times.
//! Scores that are probabilities are compared by their logarithms, where noise is even.

/// Decisions kept; beyond so many, counting says as much.
const MOST: usize = 1 << 16;
/// Probabilities below this are equal.
const LEAST: f32 = 1e-20;

/// How much more noise few margins mean.
const FEW: f64 = 6.0;

/// Changes that count as seen, at the cost that margins tell, before any is.
const PRIOR: f64 = 4.0;
/// What a change costs at least and at most by that account: margins and the classes behind them are not all that matters.
const COST: (f64, f64) = (0.2, 0.5);
/// What a change costs at least in the end: gains may be luck.
const LEAST_COST: f64 = 0.1;

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
#[derive(Clone, Copy, Default)]
pub struct Noise {
    squares: f64,
    count: u64,
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
        if error.is_finite() {
            self.squares += f64::from(error) * f64::from(error);
            self.count += 1;
        }
    }

    /// Root mean square; `None` without decisions.
    pub fn rms(&self) -> Option<f64> {
        (self.count > 0).then(|| (self.squares / self.count as f64).sqrt())
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
        let (t, noise) = (self.temperature(), self.careful(noise));
        let of = |(m, _): &(f32, Stake)| normal_tail(f64::from(*m) / noise);
        let changes: f64 = self.all.iter().map(of).sum();
        let costs = self.all.iter().map(|d| of(d) * (f64::from(d.0) / (2.0 * t)).tanh());
        let cost = costs.sum::<f64>() / changes.max(f64::MIN_POSITIVE);
        if cost.is_finite() {
            cost.clamp(COST.0, COST.1)
        } else {
            COST.1
        }
    }

    /// The `T` for which the mean chance `1/(1 + exp(−m/T))` that a decision is right is the share of those that are.
    fn temperature(&self) -> f64 {
        let n = self.all.len() as f64;
        let right = self.all.iter().filter(|d| d.1 == Stake::Loses).count() as f64;
        let share = (right + 0.5) / (n + 1.0);
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
        noise * (1.0 + FEW / (self.all.len() as f64).sqrt())
    }

    fn mean(&self, noise: f64, weight: impl Fn(Stake) -> f64) -> Option<f64> {
        if self.all.is_empty() || noise == 0.0 {
            return (!self.all.is_empty()).then_some(0.0);
        }
        let n = self.all.len() as f64;
        let noise = self.careful(noise);
        let of = |(m, stake): &(f32, Stake)| weight(*stake) * normal_tail(f64::from(*m) / noise);
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

/// `Φ(−x)`: the chance that a standard normal number lies above `x ≥ 0`, to 10⁻⁷ relative (Abramowitz and Stegun 7.1.26 has
/// the form `t·exp(−z² + P(t))`, the polynomial is the Chebyshev fit of Press et al., Numerical Recipes, §6.2).
fn normal_tail(x: f64) -> f64 {
    const FIT: [f64; 10] = [
        -1.26551223,
        1.00002368,
        0.37409196,
        0.09678418,
        -0.18628806,
        0.27886807,
        -1.13520398,
        1.48851587,
        -0.82215223,
        0.17087277,
    ];
    let z = x / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let p = FIT.iter().rev().fold(0.0, |sum, c| sum * t + c);
    0.5 * t * (p - z * z).exp()
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
        let rms = noise.rms().expect("some");
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
        assert!(sure > 0.4, "{sure}");
        assert!((0.1..0.3).contains(&unsure), "{unsure}");
    }

    #[test]
    fn the_normal_tail_has_the_values_of_tables() {
        for (x, p) in [
            (0.0, 0.5),
            (1.0, 0.158_655_253_9),
            (2.0, 0.022_750_131_9),
            (4.0, 3.167_124_2e-5),
        ] {
            assert!((normal_tail(x) / p - 1.0f64).abs() < 1e-6, "{x}: {}", normal_tail(x));
        }
    }

    #[test]
    fn logits_and_their_softmax_say_the_same() {
        let mut all = [Margins::default(), Margins::default()];
        let mut noise = [Noise::default(); 2];
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
        let [a, b] = [0, 1].map(|k| all[k].changes(noise[k].rms().expect("some")).expect("some"));
        assert!((a - b).abs() < 1e-4 && a > 0.001, "{a} {b}");
        assert_eq!((Margins::default().changes(1.0), Noise::default().rms()), (None, None));
    }
}
