//! What may be lost: conditions on outputs, as the user writes them, and how much of them a result uses up.

use super::OutputGap;
use crate::analysis::ends::BEFORE;

/// What a condition is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Signal-to-quantization-noise ratio: at least so many dB.
    Sqnr,
    /// Cosine similarity: at least so much.
    Cosine,
    /// Share of top-1 classes that change, 0 to 1: at most so much.
    Top1,
    /// Top-1 accuracy against the labels, 0 to 1: falls by at most so much.
    Accuracy,
}

/// One condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// What is measured.
    pub metric: Metric,
    /// The least or the most, see [`Metric`].
    pub limit: f64,
    /// The output that it is about; every output when it names none.
    pub output: Option<String>,
}

/// What may be lost: every condition holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// The conditions, in the order in which they were given.
    pub conditions: Vec<Condition>,
}

/// Typical samples may count for so much worse than all of them.
const WORSE_DB: f64 = 3.0;

impl Budget {
    /// For passes that promise the same numbers up to rounding.
    pub fn lossless() -> Budget {
        Budget::sqnr(60.0)
    }

    /// For lossy passes, when the user says nothing. Files that other tools broke measure 6 to 9 dB.
    pub fn lossy() -> Budget {
        Budget::sqnr(10.0)
    }

    fn sqnr(limit: f64) -> Budget {
        let (metric, output) = (Metric::Sqnr, None);
        Budget {
            conditions: vec![Condition { metric, limit, output }],
        }
    }

    /// True when it is about accuracy, which needs labels.
    pub fn needs_labels(&self) -> bool {
        self.conditions.iter().any(|c| c.metric == Metric::Accuracy)
    }

    /// True when it is about decisions among classes.
    pub fn about_decisions(&self) -> bool {
        self.conditions.iter().any(Condition::about_decisions)
    }

    /// The condition about an output that nobody has.
    pub fn unknown_output(&self, names: &[&str]) -> Option<&str> {
        let mut named = self.conditions.iter().filter_map(|c| c.output.as_deref());
        named.find(|n| !names.contains(n))
    }

    /// How much of the budget is used up: 1 is all of it. Where there are few samples, changes of decisions are estimated
    /// from margins ([`crate::math::margins`]) beside being counted. `None` when nothing was measured that it is about.
    pub fn used(&self, gaps: &[OutputGap]) -> Option<f64> {
        let all = self
            .conditions
            .iter()
            .flat_map(|c| gaps.iter().filter_map(|g| c.used(g)));
        all.reduce(f64::max)
    }

    /// The same, where other samples count: of two ways to tell a noise, the one that says more. A few samples that are much louder than the
    /// others may not have their like there.
    pub fn risked(&self, gaps: &[OutputGap]) -> Option<f64> {
        let typical = |g: &OutputGap| OutputGap {
            sqnr_db: match g.typical_sqnr_db {
                Some(db) if g.sqnr_db.is_finite() => db.max(g.sqnr_db - WORSE_DB).min(g.sqnr_db),
                _ => g.sqnr_db,
            },
            ..g.clone()
        };
        let seen = self.used(&gaps.iter().map(typical).collect::<Vec<_>>());
        seen.into_iter().chain(self.hidden(gaps)).reduce(f64::max)
    }

    /// What values before a function that saturates say of powers that few decided samples do not show.
    fn hidden(&self, gaps: &[OutputGap]) -> Option<f64> {
        let before = gaps.iter().filter(|g| g.inner && g.part_of.is_none() && !g.stands_in);
        let behind = before.map(|g| OutputGap {
            stands_in: true,
            sqnr_db: g.sqnr_db - 10.0 * BEFORE.log10(),
            cosine: 1.0 - BEFORE * (1.0 - g.cosine),
            ..g.clone()
        });
        let conditions = self.conditions.iter().filter(|c| !c.about_decisions());
        let all = behind.flat_map(|g| conditions.clone().filter_map(move |c| c.used(&g)));
        all.reduce(f64::max)
    }

    /// The first condition that does not hold, in words.
    pub fn exceeded(&self, gaps: &[OutputGap]) -> Option<String> {
        gaps.iter()
            .find_map(|g| self.conditions.iter().find_map(|c| c.exceeded(g)))
    }
}

impl Condition {
    fn about_decisions(&self) -> bool {
        matches!(self.metric, Metric::Top1 | Metric::Accuracy)
    }

    fn about(&self, g: &OutputGap) -> bool {
        let judged = match (g.inner, self.about_decisions()) {
            (true, _) => g.stands_in,
            (false, true) => true,
            (false, false) => !g.chosen && (!g.negligible || self.output.is_some()),
        };
        let output = g.part_of.as_ref().unwrap_or(&g.name);
        judged && self.output.as_ref().is_none_or(|o| o == output)
    }

    fn used(&self, g: &OutputGap) -> Option<f64> {
        if !self.about(g) {
            return None;
        }
        if g.broken > 0 {
            return Some(f64::INFINITY);
        }
        let part = |lost: f64| match lost <= 0.0 {
            true => 0.0,
            false => lost / self.limit,
        };
        Some(match self.metric {
            Metric::Sqnr if g.max_abs == 0.0 => 0.0,
            Metric::Sqnr if g.sqnr_db.is_nan() => f64::INFINITY,
            Metric::Sqnr => 10f64.powf((self.limit - g.sqnr_db) / 10.0),
            Metric::Cosine if g.cosine.is_nan() => f64::INFINITY,
            Metric::Cosine => (1.0 - g.cosine).max(0.0) / (1.0 - self.limit).max(f64::EPSILON),
            Metric::Top1 | Metric::Accuracy => part(self.lost(g)?.told()),
        })
    }

    /// For conditions about decisions.
    fn lost(&self, g: &OutputGap) -> Option<Lost> {
        let changed = 1.0 - g.top1.unwrap_or(1.0);
        let expected = g.top1_expected_change.unwrap_or(changed);
        let changes = [changed, expected];
        match self.metric {
            Metric::Top1 => Some(Lost {
                counted: 1.0 - g.top1?,
                expected,
                changes,
                decisions: g.decisions,
                doubt: (0.4, 0.0),
            }),
            Metric::Accuracy => g.accuracy.as_ref().map(|a| Lost {
                counted: a.before - a.after,
                expected: a.expected_loss,
                changes,
                decisions: a.samples,
                doubt: (0.5, 0.05),
            }),
            _ => None,
        }
    }

    fn exceeded(&self, g: &OutputGap) -> Option<String> {
        if !self.about(g) {
            return None;
        }
        let (name, limit) = (&g.name, self.limit);
        let what = match &g.part_of {
            Some(output) => &format!("of output {output:?} the part"),
            None if g.stands_in => "before a saturated output,",
            None => "output",
        };
        match self.metric {
            Metric::Sqnr if g.sqnr_db.is_nan() || g.sqnr_db < limit => {
                Some(format!("{what} {name:?}: {:.1} dB SQNR, below {limit} dB", g.sqnr_db))
            }
            Metric::Cosine if g.cosine.is_nan() || g.cosine < limit => {
                Some(format!("{what} {name:?}: cosine {:.5}, below {limit}", g.cosine))
            }
            Metric::Top1 | Metric::Accuracy => {
                let lost = self.lost(g)?;
                let (counted, expected) = (lost.counted * 100.0, lost.expected * 100.0);
                let what = match self.metric {
                    Metric::Top1 => "% of the top-1 classes change",
                    _ => "points of accuracy are lost",
                };
                (lost.told() > limit).then(|| {
                    format!(
                        "output {name:?}: {:.2} {what}, above {:.3} ({counted:.2} counted on {} samples, {expected:.2} expected by the margins of decisions)",
                        lost.told() * 100.0,
                        limit * 100.0,
                        lost.decisions
                    )
                })
            }
            _ => None,
        }
    }
}

/// What is known of a share of decisions that is lost.
struct Lost {
    counted: f64,
    /// By margins and noise ([`crate::math::margins`]).
    expected: f64,
    /// The share of decisions that change, as counted and as expected.
    changes: [f64; 2],
    decisions: u64,
    /// How far the expected share may be off: as a part of it, and of the changes.
    doubt: (f64, f64),
}

impl Lost {
    /// The share to hold against a limit. Counting says little on few decisions: where a share `q` changes, either way, the count over
    /// `n` errs by `√(q/n)`. So the mean of what was counted and what is expected is taken, each weighted by the inverse of its
    /// variance. What is expected is doubted by as much as the count is worse than it beyond one and a half deviations; that
    /// the count is better, or a gain, is luck. And what counting alone proves, two deviations below the count, holds in any case.
    fn told(&self) -> f64 {
        let n = self.decisions.max(1) as f64;
        let counted = self.counted.max(0.0);
        let changes = self.changes[0].max(self.changes[1]).max(counted);
        let by_count = changes.max(1e-9) / n;
        let usual = (self.doubt.0 * self.expected).powi(2) + (self.doubt.1 * changes).powi(2) + (0.1 / n).powi(2);
        let foreseen = self.changes[1].max(0.5 / n) / n + usual;
        let excess = (counted - self.expected).max(0.0).powi(2) - 2.25 * foreseen;
        let by_margins = usual + excess.max(0.0);
        let mean = (counted / by_count + self.expected / by_margins) / (1.0 / by_count + 1.0 / by_margins);
        mean.max(counted - 2.0 * by_count.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::gap;
    use super::super::{Accuracy, Verdict, judge};
    use super::*;

    fn budget(text: &str) -> Budget {
        text.parse().expect("a budget")
    }

    #[test]
    fn every_condition_of_a_budget_must_hold() {
        let b = budget("sqnr:20dB, top1:1%");
        assert_eq!(judge(&[gap(25.0, Some(1.0))], &b), Verdict::Within);
        assert!(matches!(judge(&[gap(19.0, Some(1.0))], &b), Verdict::Outside(_)));
        assert!(matches!(judge(&[gap(25.0, Some(0.98))], &b), Verdict::Outside(_)));
        assert!(matches!(judge(&[gap(f64::NAN, None)], &b), Verdict::Outside(_)));
    }

    #[test]
    fn one_change_among_few_decisions_is_judged_by_what_is_expected() {
        let few = |expected| {
            let mut g = gap(25.0, Some(31.0 / 32.0));
            (g.decisions, g.top1_expected_change) = (32, Some(expected));
            judge(&[g], &budget("top1:1%"))
        };
        assert_eq!(few(0.004), Verdict::Within);
        assert!(matches!(few(0.02), Verdict::Outside(why) if why.contains("expected by the margins")));
    }

    #[test]
    fn what_is_risked_on_other_samples_is_what_typical_ones_say() {
        let mut g = gap(30.0, None);
        let b = budget("sqnr:20dB");
        assert_eq!(b.risked(&[g.clone()]), b.used(&[g.clone()]));
        for (typical, counts) in [(28.0, 28.0), (3.0, 27.0)] {
            g.typical_sqnr_db = Some(typical);
            let wanted = 10f64.powf((20.0 - counts) / 10.0);
            assert!((b.risked(&[g.clone()]).expect("measured") - wanted).abs() < 1e-9);
        }
        g.typical_sqnr_db = Some(40.0);
        assert_eq!(b.risked(&[g.clone()]), b.used(&[g]));
    }

    #[test]
    fn what_is_before_a_function_that_saturates_is_risked_by_a_quarter() {
        let mut before = gap(16.0, Some(0.5));
        before.inner = true;
        let b = budget("sqnr:20dB");
        let gaps = [gap(30.0, Some(1.0)), before];
        assert!((b.used(&gaps).expect("measured") - 0.1).abs() < 1e-9);
        let quarter = 10f64.powf(0.4) / 4.0;
        assert!((b.risked(&gaps).expect("measured") - quarter).abs() < 1e-9);
        assert_eq!(budget("top1:1%").risked(&gaps), Some(0.0), "decisions are counted");
    }

    #[test]
    fn a_condition_about_one_output_leaves_the_others_alone() {
        let mut other = gap(3.0, None);
        other.name = "z".into();
        let gaps = [gap(25.0, None), other];
        assert_eq!(judge(&gaps, &budget("sqnr:20dB@y")), Verdict::Within);
        assert!(matches!(judge(&gaps, &budget("sqnr:20dB")), Verdict::Outside(_)));
        assert_eq!(
            budget("sqnr:20dB@y,cosine:0.9@w").unknown_output(&["y", "z"]),
            Some("w")
        );
    }

    #[test]
    fn a_single_wrong_sample_of_few_is_judged_by_what_is_expected() {
        let lost = |n: f64| {
            let mut g = gap(30.0, Some(1.0 - n / 32.0));
            g.accuracy = Some(Accuracy {
                before: 0.75,
                after: 0.75 - n / 32.0,
                samples: 32,
                expected_loss: 0.001,
            });
            budget("accuracy:0.5pt").used(&[g]).expect("about accuracy")
        };
        assert!((0.2..0.4).contains(&lost(1.0)), "{}", lost(1.0));
        assert!(lost(2.0) > 1.0, "{}", lost(2.0));
    }

    #[test]
    fn what_is_used_up_is_one_at_the_limit() {
        let near = |x: Option<f64>, y: f64| assert!((x.expect("measured") - y).abs() < 1e-9, "{x:?} {y}");
        near(budget("sqnr:20dB").used(&[gap(20.0, None)]), 1.0);
        near(
            budget("sqnr:20dB").used(&[gap(30.0, None), gap(17.0, None)]),
            10f64.powf(0.3),
        );
        near(budget("cosine:0.98").used(&[gap(9.0, None)]), 0.5);
        assert_eq!(budget("top1:1%").used(&[gap(9.0, None)]), None);
        let mut g = gap(9.0, Some(1.0));
        g.top1_expected_change = Some(0.005);
        let used = budget("top1:1%").used(&[g]).expect("measured");
        assert!(
            (0.4..=0.5).contains(&used),
            "none of 100 changed, half of one is expected: {used}"
        );
    }

    #[test]
    fn behind_a_saturated_output_the_value_before_it_is_judged() {
        let (y, mut before) = (gap(90.0, None), gap(10.0, None));
        (before.inner, before.name) = (true, "logits".into());
        assert_eq!(
            judge(&[y.clone(), before.clone()], &budget("sqnr:20dB")),
            Verdict::Within
        );
        before.stands_in = true;
        let Verdict::Outside(why) = judge(&[y, before], &budget("sqnr:20dB")) else {
            panic!("it is outside");
        };
        assert!(why.contains("logits"), "{why}");
    }

    #[test]
    fn of_a_negligible_difference_the_value_before_is_judged() {
        let (mut y, mut before) = (gap(3.0, None), gap(70.0, None));
        (y.negligible, before.inner, before.stands_in) = (true, true, true);
        assert_eq!(
            judge(&[y.clone(), before.clone()], &budget("sqnr:60dB")),
            Verdict::Within
        );
        before.sqnr_db = 50.0;
        assert!(matches!(judge(&[y, before], &budget("sqnr:60dB")), Verdict::Outside(_)));
    }

    #[test]
    fn few_samples_are_judged_by_what_is_expected() {
        let with = |samples: u64, after: f64, expected_loss: f64| {
            let mut g = gap(30.0, Some(0.97));
            let before = 1.0;
            g.accuracy = Some(Accuracy {
                before,
                after,
                samples,
                expected_loss,
            });
            judge(&[g], &budget("accuracy:0.5pt"))
        };
        assert_eq!(
            with(32, 31.0 / 32.0, 0.002),
            Verdict::Within,
            "one of 32 is no evidence"
        );
        assert!(matches!(with(32, 30.0 / 32.0, 0.002), Verdict::Outside(_)));
        assert!(matches!(with(32, 31.0 / 32.0, 0.006), Verdict::Outside(_)));
        assert!(matches!(with(32, 1.0, 0.018), Verdict::Outside(_)), "a gain is luck");
        assert!(matches!(with(1000, 0.99, 0.002), Verdict::Outside(_)));
        assert!(
            matches!(with(1000, 0.996, 0.006), Verdict::Outside(_)),
            "thirty changes either way hide five"
        );
        assert_eq!(
            with(20_000, 0.996, 0.006),
            Verdict::Within,
            "enough samples speak for themselves"
        );
    }
}
