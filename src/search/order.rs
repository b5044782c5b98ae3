//! Which of the results that were measured is best.

use crate::report::Tried;

/// Results up to so many times as large as the smallest are as small as that,
const ALIKE: f64 = 1.05;
/// and so are larger ones that compute in integers, and take about half of the time for it,
const FASTER: f64 = 1.1;
/// if they use at most this part of what may be used: a loss of integers is told from few samples, and a photo is soon lost.
const ROOM: f64 = 0.5;

/// A result that was tried.
pub struct Candidate<'a> {
    /// What was measured.
    pub tried: &'a Tried,
    /// It meets the targets.
    pub met: bool,
    /// It computes in integers.
    pub integers: bool,
}

/// The best first: those that meet the targets and fit the budget; of these the smallest, or (with targets) the one that
/// uses least of the budget.
pub fn order(all: &[Candidate], (targets, fit): (bool, f64)) -> Vec<usize> {
    let fits = |r: &&Candidate| r.met && r.tried.used <= fit;
    let least = all.iter().filter(fits).map(|r| r.tried.bytes).min();
    // Results of about the same size are of the same size: then it counts how fast they are, and what they lose.
    let fast = |r: &Candidate| r.integers && r.tried.used <= ROOM * fit;
    let near = |r: &Candidate| {
        let times = if fast(r) { FASTER } else { ALIKE };
        least.is_some_and(|least| r.tried.bytes as f64 <= times * least as f64)
    };
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|&a, &b| {
        let flaws = |r: &Candidate| (!r.met, r.tried.used > fit);
        let cost = |r: &Candidate| match r.tried.used {
            used if targets || used > fit => (0.0, false, used),
            used if near(r) => (0.0, !fast(r), used),
            used => (r.tried.bytes as f64, false, used),
        };
        let (a, b) = (&all[a], &all[b]);
        flaws(a).cmp(&flaws(b)).then_with(|| {
            let (a, b) = (cost(a), cost(b));
            a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.total_cmp(&b.2))
        })
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIT: f64 = 0.9;

    fn tried(bytes: u64, used: f64) -> Tried {
        Tried {
            bytes,
            used,
            ..Tried::default()
        }
    }

    /// Those with these numbers do not meet the targets.
    fn ordered(all: &[Tried], missed: &[usize], integers: &[usize], targets: bool) -> Vec<usize> {
        let of = |(k, tried)| Candidate {
            tried,
            met: !missed.contains(&k),
            integers: integers.contains(&k),
        };
        let all: Vec<Candidate> = all.iter().enumerate().map(of).collect();
        order(&all, (targets, FIT))
    }

    #[test]
    fn the_smallest_that_fits_comes_first_and_what_does_not_fit_last() {
        let all = [
            tried(100, 0.0),
            tried(50, 0.5),
            tried(40, 0.8),
            tried(30, 1.2),
            tried(20, 9.0),
        ];
        assert_eq!(ordered(&all, &[], &[], false), [2, 1, 0, 3, 4]);
        assert_eq!(
            ordered(&all[3..], &[], &[0], false),
            [0, 1],
            "something is always taken: the verdict refuses it"
        );
    }

    #[test]
    fn of_results_of_about_the_same_size_the_one_that_loses_least_comes_first() {
        let all = [tried(100, 0.0), tried(41, 0.1), tried(40, 0.7), tried(43, 0.0)];
        assert_eq!(ordered(&all, &[], &[], false), [1, 2, 3, 0]);
    }

    #[test]
    fn of_results_of_about_the_same_size_one_in_integers_comes_first() {
        let all = [
            tried(100, 0.0),
            tried(41, 0.1),
            tried(40, 0.0),
            tried(43, 0.3),
            tried(45, 0.0),
        ];
        assert_eq!(
            ordered(&all, &[], &[3, 4], false),
            [3, 2, 1, 4, 0],
            "the last is too large"
        );
        assert_eq!(ordered(&all, &[], &[3, 1], false)[..2], [1, 3]);
        let risky = [tried(40, 0.1), tried(41, 0.6)];
        assert_eq!(ordered(&risky, &[], &[1], false), [0, 1]);
    }

    #[test]
    fn with_targets_the_best_that_meets_them_comes_first() {
        let all = [tried(100, 0.0), tried(50, 0.5), tried(40, 0.8), tried(30, 1.2)];
        assert_eq!(ordered(&all, &[0], &[], true)[0], 1);
        assert_eq!(ordered(&all, &[0, 1, 2], &[], true)[0], 3);
        assert_eq!(ordered(&all, &[0, 1, 2, 3], &[], true)[0], 0, "none meets them");
    }
}
