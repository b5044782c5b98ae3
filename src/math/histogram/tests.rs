use super::*;

/// Reproducible numbers, a bell around 0.3.
fn bell(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / 16777216.0 - 0.5
    };
    (0..n).map(|_| next() + next() + next() + next() + 0.3).collect()
}

fn histogram(values: &[f32]) -> Histogram {
    let mut h = Histogram::new();
    h.add(values);
    h
}

/// Percentile by sorting: between which two values it lies.
fn sorted(values: &[f32], percent: f64) -> (f64, f64) {
    let mut values = values.to_vec();
    values.sort_by(f32::total_cmp);
    let place = (percent / 100.0 * values.len() as f64) as usize;
    (
        f64::from(values[place.max(1) - 1]),
        f64::from(values[place.min(values.len() - 1)]),
    )
}

#[test]
fn order_blocks_and_shards_change_no_bit() {
    let mut values = bell(50_000, 1);
    values.extend([
        0.0,
        -0.0,
        1e-42,
        -1e-42,
        7.5,
        -40.0,
        4096.0,
        f32::NAN,
        f32::INFINITY,
        1e-9,
    ]);
    values.extend([-8.0, 8.0, 16.0, -16.0, 0.5, -0.5, f32::MIN_POSITIVE]);
    let all = histogram(&values);
    let mut reversed = values.clone();
    reversed.reverse();
    assert_eq!(all, histogram(&reversed));
    for size in [1, 3, 1000, 8192, 20_000] {
        let mut by_block = Histogram::new();
        let mut merged = Histogram::new();
        for block in values.chunks(size) {
            by_block.add(block);
            if size > 500 {
                merged.merge(&histogram(block));
            }
        }
        assert_eq!(all, by_block, "{size}");
        if size > 500 {
            assert_eq!(all, merged, "{size}");
        }
    }
    let mut backwards = Histogram::new();
    values
        .chunks(777)
        .rev()
        .for_each(|block| backwards.merge(&histogram(block)));
    assert_eq!(all, backwards);
}

#[test]
fn every_value_is_in_the_bin_that_a_plain_loop_finds() {
    for scale in [1.0f32, 1e-30, 1e30, -0.01] {
        let values: Vec<f32> = bell(3000, 2).iter().map(|x| x * scale).collect();
        let h = histogram(&values);
        let (first, counts) = h.bins();
        assert!(counts.len() <= BINS && counts.len() > BINS / 2, "{}", counts.len());
        let mut expected = vec![0u64; counts.len()];
        let inverse = power_of_two(-h.exponent);
        for &x in &values {
            assert_eq!(place(x, inverse), index(x, inverse) as u32 % BINS as u32);
            let size = f64::from(x.abs()) / h.resolution();
            let bin = if x < 0.0 { -1 - size as i32 } else { size as i32 };
            expected[(bin - first) as usize] += 1;
        }
        assert_eq!(counts, expected);
        assert_eq!(h.count(), 3000);
        assert_eq!(h.range.min, values.iter().copied().fold(f32::INFINITY, f32::min));
        assert_eq!(h.range.max, values.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    }
}

#[test]
fn percentiles_are_within_a_bin_of_sorting() {
    let values = bell(40_000, 3);
    let h = histogram(&values);
    for percent in [0.0, 0.01, 1.0, 25.0, 50.0, 99.0, 99.99, 100.0] {
        let got = f64::from(h.percentile(percent).expect("values"));
        let (low, high) = sorted(&values, percent);
        let near = (low - h.resolution())..=(high + h.resolution());
        assert!(near.contains(&got), "{percent}: {got} not in {near:?}");
    }
    assert_eq!(h.percentile(0.0), Some(h.range.min));
    assert_eq!(h.percentile(100.0), Some(h.range.max));
    assert_eq!(h.percentile(300.0), Some(h.range.max));
    assert_eq!(h.percentile(f64::NAN), None);
}

#[test]
fn zeros_are_an_atom() {
    let mut values = vec![0.0f32; 6000];
    values.extend((1..=4000).map(|i| i as f32 / 100.0));
    let h = histogram(&values);
    assert_eq!((h.zeros, h.count()), (6000, 10_000));
    assert_eq!(h.percentile(59.9), Some(0.0));
    let middle = h.percentile(80.0).expect("values");
    assert!((middle - 20.0).abs() < 0.05, "{middle}");
    // −0 is a zero, not a negative number.
    let h = histogram(&[-0.0; 9]);
    assert_eq!((h.zeros, h.bins()), (9, (0, vec![9])));
    assert_eq!((h.range.min.to_bits(), h.percentile(50.0)), (0, Some(0.0)));
}

#[test]
fn nothing_one_and_constants_are_answered() {
    let empty = Histogram::new();
    assert_eq!(
        (empty.percentile(50.0), empty.range.minmax(), empty.count()),
        (None, None, 0)
    );
    for x in [1.0, -1.0, 3.3e38, -f32::MAX, 1e-45, -1e-40, 0.0] {
        for n in [1, 20_000] {
            let h = histogram(&vec![x; n]);
            assert_eq!(h.range.minmax(), Some((x, x)));
            assert_eq!(h.percentile(50.0), Some(x), "{x} {n}");
            assert_eq!(h.bins().1.iter().sum::<u64>(), n as u64);
        }
    }
}

#[test]
fn nan_and_infinities_are_counted_and_kept_out() {
    let clean = bell(20_000, 4);
    let mut values = clean.clone();
    for at in [0, 10, 9000, 20_000] {
        values.insert(at, f32::NAN);
        values.insert(at, f32::INFINITY);
        values.insert(at, f32::NEG_INFINITY);
    }
    let (h, expected) = (histogram(&values), histogram(&clean));
    assert_eq!((h.range.nan, h.range.infinite), (4, 8));
    assert_eq!((h.bins(), h.count()), (expected.bins(), expected.count()));
    let h = histogram(&[f32::NAN, f32::INFINITY]);
    assert_eq!((h.range.minmax(), h.percentile(50.0)), (None, None));
}

#[test]
fn an_outlier_widens_the_bins_and_loses_no_value() {
    let mut values = bell(20_000, 5);
    values.insert(10_000, 1e30);
    let h = histogram(&values);
    assert_eq!(h.bins().1.iter().sum::<u64>(), 20_001);
    assert!(h.resolution() > 1e26 && h.resolution() < 1e27);
    assert_eq!(h.range.max, 1e30);
    values.push(-f32::MAX);
    values.push(f32::MAX);
    assert_eq!(histogram(&values).bins().1.iter().sum::<u64>(), 20_003);
}

#[test]
fn the_cheap_range_agrees_with_the_histogram() {
    let mut values = bell(9000, 6);
    values.extend([f32::NAN, f32::INFINITY, -3.0]);
    let mut range = Range::default();
    values.chunks(100).for_each(|block| range.add(block));
    assert_eq!(range, histogram(&values).range);
    let mut merged = Range::default();
    for block in values.chunks(4000) {
        let mut part = Range::default();
        part.add(block);
        merged.merge(&part);
    }
    assert_eq!(merged, range);
    assert_eq!(Range::default().minmax(), None);
}

#[test]
fn the_range_is_that_of_all_when_only_some_values_are_counted() {
    let all: Vec<f32> = (0..5000).map(|i| (i as f32 / 700.0).sin()).chain([9.0, -3.0]).collect();
    let mut range = Range::default();
    range.add(&all);
    let some = Histogram::of_some(&all[..2000], range);
    assert_eq!(
        (some.minmax(), some.count(), some.range.count),
        (Some((-3.0, 9.0)), 2000, 5002)
    );
    let (first, counts) = some.bins();
    assert!(f64::from(first) * some.resolution() <= -3.0 && counts.iter().sum::<u64>() == 2000);
    let mut merged = some.clone();
    merged.merge(&some);
    assert_eq!((merged.count(), merged.range.count), (4000, 10004));
    assert!(some.percentile(50.0).is_some_and(|m| m.abs() <= 1.0));
}

#[test]
fn cut_off_values_count_at_the_ends() {
    let numbers: Vec<f32> = (-4000..=4000).map(|i| i as f32 / 1000.0 + 0.0003).collect();
    let all = histogram(&numbers);
    for ends in [(-1.5, 2.5), (-9.0, 1.0), (0.0, 3.0), (-2.0, 0.0), (-9.0, f32::INFINITY)] {
        let cut: Vec<f32> = numbers.iter().map(|x| x.clamp(ends.0, ends.1)).collect();
        let (got, want) = (all.clamped(ends), histogram(&cut));
        assert_eq!(
            (got.minmax(), got.count(), got.zeros),
            (want.minmax(), want.count(), want.zeros)
        );
        for percent in [1.0, 20.0, 50.0, 80.0, 99.0] {
            let (a, b) = (got.percentile(percent).unwrap(), want.percentile(percent).unwrap());
            assert!(
                (a - b).abs() <= 2.0 * all.resolution() as f32,
                "{ends:?} {percent}: {a} {b}"
            );
        }
    }
}
