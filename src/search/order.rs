//! Which of the results that were measured is best.

use crate::report::Tried;

/// Results up to so many times as large as the smallest are as small as that.
const ALIKE: f64 = 1.05;

/// The best first: those that meet the targets and fit the budget; of these the smallest, or (with targets) the one that
/// uses least of the budget.
pub fn order(all: &[&Tried], met: &[bool], (targets, fit): (bool, f64)) -> Vec<usize> {
    let fits = |k: usize| met[k] && all[k].used <= fit;
    let least = (0..all.len()).filter(|k| fits(*k)).map(|k| all[k].bytes).min();
    // Results of about the same size are of the same size: then it counts what they lose.
    let near = least.map_or(0.0, |least| ALIKE * least as f64);
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|&a, &b| {
        let flaws = |k: usize| (!met[k], all[k].used > fit);
        let cost = |k: usize| match targets || all[k].used > fit {
            true => (0.0, all[k].used),
            false if all[k].bytes as f64 <= near => (0.0, all[k].used),
            false => (all[k].bytes as f64, all[k].used),
        };
        flaws(a).cmp(&flaws(b)).then_with(|| {
            let (a, b) = (cost(a), cost(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
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

    #[test]
    fn the_smallest_that_fits_comes_first_and_what_does_not_fit_last() {
        let all = [
            tried(100, 0.0),
            tried(50, 0.5),
            tried(40, 0.8),
            tried(30, 1.2),
            tried(20, 9.0),
        ];
        let all: Vec<&Tried> = all.iter().collect();
        assert_eq!(order(&all, &[true; 5], (false, FIT)), [2, 1, 0, 3, 4]);
        assert_eq!(
            order(&all[3..], &[true; 2], (false, FIT)),
            [0, 1],
            "something is always taken: the verdict refuses it"
        );
    }

    #[test]
    fn of_results_of_about_the_same_size_the_one_that_loses_least_comes_first() {
        let all = [tried(100, 0.0), tried(41, 0.1), tried(40, 0.7), tried(43, 0.0)];
        let all: Vec<&Tried> = all.iter().collect();
        assert_eq!(order(&all, &[true; 4], (false, FIT)), [1, 2, 3, 0]);
    }

    #[test]
    fn with_targets_the_best_that_meets_them_comes_first() {
        let all = [tried(100, 0.0), tried(50, 0.5), tried(40, 0.8), tried(30, 1.2)];
        let all: Vec<&Tried> = all.iter().collect();
        assert_eq!(order(&all, &[false, true, true, true], (true, FIT))[0], 1);
        assert_eq!(order(&all, &[false, false, false, true], (true, FIT))[0], 3);
        assert_eq!(order(&all, &[false; 4], (true, FIT))[0], 0, "none meets them");
    }
}
