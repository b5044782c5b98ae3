//! What is said of two interleaved series of times: quantiles, and the ratio of medians with its confidence interval.

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

/// Median of `b` over median of `a`, and the interval that holds it in 95 of 100 cases: pairs that ran side by side are
/// drawn with replacement (percentile bootstrap; Efron 1979), the same ones in every run. `None` without pairs.
pub fn ratio(a: &[f64], b: &[f64]) -> Option<(f64, [f64; 2])> {
    let n = a.len().min(b.len());
    let of = |a: &[f64], b: &[f64]| Some(quantile(b, 0.5)? / quantile(a, 0.5)?);
    let all = of(&a[..n], &b[..n])?;
    let mut state = n as u64;
    let mut drawn = Vec::with_capacity(RESAMPLED);
    for _ in 0..RESAMPLED {
        let picks: Vec<usize> = (0..n).map(|_| (next(&mut state) % n as u64) as usize).collect();
        let take = |x: &[f64]| picks.iter().map(|&i| x[i]).collect::<Vec<f64>>();
        drawn.push(of(&take(a), &take(b))?);
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

    #[test]
    fn the_interval_holds_the_ratio_and_narrows_with_more_pairs() {
        let mut state = 3;
        let mut series = |n: usize, scale: f64| -> Vec<f64> {
            (0..n)
                .map(|_| scale * (1.0 + (next(&mut state) % 1000) as f64 / 5000.0))
                .collect()
        };
        let wide = ratio(&series(10, 1.0), &series(10, 0.5)).expect("pairs");
        let narrow = ratio(&series(400, 1.0), &series(400, 0.5)).expect("pairs");
        for (r, [low, high]) in [wide, narrow] {
            assert!(low <= r && r <= high && (0.4..0.6).contains(&r), "{low} {r} {high}");
        }
        assert!(narrow.1[1] - narrow.1[0] < wide.1[1] - wide.1[0]);
        assert_eq!(ratio(&[], &[1.0]), None);
    }
}
