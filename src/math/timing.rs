//! What is said of two interleaved series of times: quantiles, and how long one takes in parts of the other, with its
//! confidence interval.

use super::hash::next;

/// Resamplings of the bootstrap.
const RESAMPLED: usize = 2000;

/// The value below which this part of the times lies (nearest rank); `None` without any.
pub fn quantile(times: &[f64], part: f64) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// The median of `b / a` over pairs `[a, b]` that ran side by side, and the interval that holds it in 95 of 100 cases.
///
/// A machine that is slower for a while is so for both of a pair. Pairs come in groups that share something (where the
/// weights lie in memory): groups are drawn with replacement, and in each of them its pairs (percentile bootstrap in two
/// stages; Davison and Hinkley 1997, §3.8), the same ones in every run. `None` without pairs.
pub fn ratio(groups: &[Vec<[f64; 2]>]) -> Option<(f64, [f64; 2])> {
    let ratios: Vec<Vec<f64>> = groups
        .iter()
        .filter(|g| !g.is_empty())
        .map(|g| g.iter().map(|[a, b]| b / a).collect())
        .collect();
    let all = quantile(&ratios.concat(), 0.5)?;
    let mut state = ratios.len() as u64;
    let mut draw = |n: usize| (next(&mut state) % n as u64) as usize;
    let mut drawn = Vec::with_capacity(RESAMPLED);
    for _ in 0..RESAMPLED {
        let mut picks = Vec::new();
        for _ in 0..ratios.len() {
            let group = &ratios[draw(ratios.len())];
            picks.extend(group.iter().map(|_| group[draw(group.len())]));
        }
        drawn.push(quantile(&picks, 0.5)?);
    }
    Some((all, [quantile(&drawn, 0.025)?, quantile(&drawn, 0.975)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let times: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            [0.5, 0.9, 0.99].map(|p| quantile(&times, p)),
            [Some(50.0), Some(90.0), Some(99.0)]
        );
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[3.0], 0.0), Some(3.0));
    }

    /// Groups of pairs whose ratio is one half, up to noise of pairs and of groups.
    fn pairs(groups: usize, each: usize, between: f64) -> Vec<Vec<[f64; 2]>> {
        let mut state = 3;
        let mut noise = || (next(&mut state) % 1000) as f64 / 1000.0 - 0.5;
        let group = |shift: f64, noise: &mut dyn FnMut() -> f64| {
            let pair = |_| [1.0 + 0.2 * noise(), 0.5 * (1.0 + 0.2 * noise() + shift)];
            (0..each).map(pair).collect()
        };
        (0..groups)
            .map(|_| {
                let shift = between * noise();
                group(shift, &mut noise)
            })
            .collect()
    }

    #[test]
    fn the_interval_holds_the_ratio_and_narrows_with_more_pairs() {
        let [wide, narrow] = [10, 400].map(|each| ratio(&pairs(4, each, 0.0)).expect("pairs"));
        for (r, [low, high]) in [wide, narrow] {
            assert!(low <= r && r <= high && (0.4..0.6).contains(&r), "{low} {r} {high}");
        }
        let width = |(_, [low, high]): (f64, [f64; 2])| high - low;
        assert!(width(narrow) < width(wide));
        let shifted = ratio(&pairs(4, 400, 0.4)).expect("pairs");
        assert!(
            width(shifted) > 3.0 * width(narrow),
            "sessions that differ count: {shifted:?}"
        );
        assert_eq!(ratio(&[Vec::new()]), None);
    }

    #[test]
    fn a_machine_that_is_slow_for_a_while_changes_nothing() {
        let steady: Vec<[f64; 2]> = vec![[2.0, 1.0]; 20];
        let mut slow = steady.clone();
        slow[..12].iter_mut().for_each(|p| *p = p.map(|t| t * 3.0));
        assert_eq!(ratio(&[slow]), ratio(&[steady]));
    }
}
