use super::*;
use nalgebra::DMatrix;
use ndarray::{Axis, s};

/// Reproducible numbers, roughly normal.
fn random(rows: usize, cols: usize, seed: u64) -> Array2<f64> {
    let mut state = seed;
    Array2::from_shape_simple_fn((rows, cols), || nearly_normal(&mut state))
}

fn oracle(a: &Array2<f64>) -> DMatrix<f64> {
    DMatrix::from_fn(a.nrows(), a.ncols(), |i, j| a[[i, j]])
}

fn distance(a: &Array2<f64>, b: &Array2<f64>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

fn on_threads<T: Send>(n: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(n)
        .build()
        .expect("a small pool")
        .install(run)
}

#[test]
fn products_match_ndarray_for_every_stride() {
    for (m, k, n) in [
        (1, 1, 1),
        (3, 5, 2),
        (1, 70, 33),
        (300, 40, 1),
        (520, 65, 130),
        (4, 0, 3),
    ] {
        let (a, b) = (random(m, k, 1), random(k, n, 2));
        assert!(distance(&matmul(a.view(), b.view()), &a.dot(&b)) < 1e-11);
        let wide = random(2 * m, 3 * k, 3);
        let strided = wide.slice(s![..;2, ..;3]);
        assert!(distance(&matmul(strided, b.view()), &strided.dot(&b)) < 1e-11);
        let turned = random(k, m, 4);
        assert!(distance(&matmul(turned.t(), b.view()), &turned.t().dot(&b)) < 1e-11);
        let mut flipped = b.clone();
        flipped.invert_axis(Axis(0));
        assert!(distance(&matmul(a.view(), flipped.view()), &a.dot(&flipped)) < 1e-11);
        let single = matmul_f32(a.mapv(|x| x as f32).view(), b.mapv(|x| x as f32).view());
        assert!(distance(&single.mapv(f64::from), &a.dot(&b)) < 1e-4);
    }
}

#[test]
fn no_bit_depends_on_threads_or_alignment() {
    let a = random(700, 130, 5);
    let tall = random(600, 90, 6);
    let run = |shift: usize| {
        // The same numbers at another address: the inputs of the products are borrowed, not copied.
        let mut room = vec![0.0; shift];
        room.extend(a.iter());
        let a = ArrayView2::from_shape(a.dim(), &room[shift..]).expect("same size");
        let gram = matmul(a.t(), a);
        let (values, vectors) = sym_eigen(gram.view()).expect("finite");
        let svd = thin_svd(tall.view()).expect("finite");
        let basis = range_finder(a, 20, 2, 7).expect("finite");
        let x = solve_spd(gram.view(), gram.view(), 0.1).expect("positive");
        let all = [gram, vectors, svd.u, svd.vt, basis, x];
        let mut bits: Vec<u64> = all.iter().flat_map(|m| m.iter().map(|x| x.to_bits())).collect();
        bits.extend(values.iter().chain(&svd.s).map(|x| x.to_bits()));
        bits
    };
    let first = on_threads(1, || run(0));
    for (threads, shift) in [(2, 0), (3, 1), (8, 5), (1, 3)] {
        assert!(
            first == on_threads(threads, || run(shift)),
            "{threads} threads, shift {shift}"
        );
    }
}

#[test]
fn eigenvalues_match_nalgebra_and_vectors_rebuild_the_matrix() {
    for n in [1, 2, 3, 17, 64, 150] {
        let a = random(n, n, n as u64);
        let a = &a + &a.t();
        let (values, vectors) = sym_eigen(a.view()).expect("finite");
        let mut expected: Vec<f64> = oracle(&a).symmetric_eigenvalues().iter().copied().collect();
        expected.sort_by(|x, y| y.total_cmp(x));
        for (x, y) in values.iter().zip(&expected) {
            assert!((x - y).abs() < 1e-10, "{n}: {x} {y}");
        }
        let rebuilt = (&vectors * &values).dot(&vectors.t());
        assert!(distance(&rebuilt, &a) < 1e-11 * n as f64);
        assert!(distance(&vectors.t().dot(&vectors), &Array2::eye(n)) < 1e-12 * n as f64);
    }
}

#[test]
fn svd_matches_nalgebra_and_rebuilds_the_matrix() {
    for (m, n) in [(1, 1), (1, 9), (9, 1), (40, 7), (7, 40), (64, 64), (300, 20), (33, 120)] {
        let a = random(m, n, 11);
        let svd = thin_svd(a.view()).expect("finite");
        let mut expected: Vec<f64> = oracle(&a).singular_values().iter().copied().collect();
        expected.sort_by(|x, y| y.total_cmp(x));
        assert_eq!(svd.s.len(), m.min(n));
        for (x, y) in svd.s.iter().zip(&expected) {
            assert!((x - y).abs() < 1e-10);
        }
        assert!(distance(&(&svd.u * &svd.s).dot(&svd.vt), &a) < 1e-11);
        assert!(distance(&svd.u.t().dot(&svd.u), &Array2::eye(m.min(n))) < 1e-11);
        assert!(distance(&svd.vt.dot(&svd.vt.t()), &Array2::eye(m.min(n))) < 1e-11);
    }
}

#[test]
fn zeros_huge_tiny_and_rank_one_decompose() {
    let (values, vectors) = sym_eigen(Array2::zeros((5, 5)).view()).expect("finite");
    assert!(values.iter().all(|&x| x == 0.0));
    assert!(distance(&vectors.t().dot(&vectors), &Array2::eye(5)) < 1e-14);
    let svd = thin_svd(Array2::zeros((6, 3)).view()).expect("finite");
    assert!(svd.s.iter().all(|&x| x == 0.0));
    assert!(distance(&svd.u.t().dot(&svd.u), &Array2::eye(3)) < 1e-14);
    for size in [1e300, 1e30, 1e-30, 1e-300, 5e-324] {
        let ones = Array2::from_elem((4, 4), size);
        let (values, _) = sym_eigen(ones.view()).expect("finite");
        assert!((values[0] / (4.0 * size) - 1.0).abs() < 1e-12, "{size}: {values}");
        assert!(values[1].abs() <= 1e-15 * size);
        let svd = thin_svd(ones.slice(s![..3, ..])).expect("finite");
        let expected = 12f64.sqrt() * size;
        // 5e-324 has no bits to spare: its multiples round to whole numbers of itself.
        assert!(
            (svd.s[0] - expected).abs() <= 1e-12 * expected + 5e-324,
            "{size}: {}",
            svd.s
        );
    }
}

#[test]
fn empty_matrices_are_answered() {
    assert_eq!(sym_eigen(Array2::zeros((0, 0)).view()).expect("empty").0.len(), 0);
    let svd = thin_svd(Array2::zeros((0, 4)).view()).expect("empty");
    assert_eq!((svd.u.dim(), svd.s.len(), svd.vt.dim()), ((0, 0), 0, (0, 4)));
    assert_eq!(
        range_finder(Array2::ones((4, 3)).view(), 0, 1, 1).expect("empty").dim(),
        (4, 0)
    );
    let x = solve_spd(Array2::zeros((0, 0)).view(), Array2::zeros((0, 3)).view(), 0.0);
    assert_eq!(x.expect("empty").dim(), (0, 3));
}

#[test]
fn what_is_not_finite_or_not_square_is_refused() {
    for bad in [f64::NAN, f64::INFINITY] {
        let mut a = Array2::eye(3);
        a[[1, 1]] = bad;
        assert!(sym_eigen(a.view()).is_err());
        assert!(thin_svd(a.view()).is_err());
        assert!(range_finder(a.view(), 2, 1, 0).is_err());
        assert!(solve_spd(a.view(), Array2::eye(3).view(), 0.1).is_err());
        assert!(solve_spd(Array2::eye(3).view(), a.view(), 0.1).is_err());
    }
    assert!(sym_eigen(Array2::zeros((2, 3)).view()).is_err());
    assert!(solve_spd(Array2::eye(3).view(), Array2::ones((2, 1)).view(), 0.0).is_err());
    assert!(solve_spd(Array2::eye(3).view(), Array2::ones((3, 1)).view(), -1.0).is_err());
}

#[test]
fn the_range_finder_is_near_the_best_rank_and_orthonormal() {
    let (m, n, rank) = (200, 80, 12);
    let decay = Array1::from_shape_fn(n, |i| 0.9f64.powi(i as i32));
    let left = orthonormal(random(m, n, 21));
    let right = orthonormal(random(n, n, 22));
    let a = (&left * &decay).dot(&right.t());
    let best = decay.iter().skip(rank).map(|s| s * s).sum::<f64>().sqrt();
    let error = |basis: &Array2<f64>| {
        assert!(distance(&basis.t().dot(basis), &Array2::eye(basis.ncols())) < 1e-12);
        let rest = &a - &basis.dot(&basis.t().dot(&a));
        rest.iter().map(|x| x * x).sum::<f64>().sqrt()
    };
    let basis = range_finder(a.view(), rank, 2, 23).expect("finite");
    assert_eq!(basis.dim(), (m, rank));
    assert!((best * 0.999999..best * 1.1).contains(&error(&basis)));
    // With the advised surplus, at least as good as the best of the rank wanted.
    assert!(error(&range_finder(a.view(), rank + 5, 2, 23).expect("finite")) < best);
    assert_ne!(basis, range_finder(a.view(), rank, 2, 24).expect("finite"));
    // A matrix of rank 1 still gives an orthonormal basis.
    let basis = range_finder(Array2::ones((30, 20)).view(), 5, 1, 1).expect("finite");
    assert!(distance(&basis.t().dot(&basis), &Array2::eye(5)) < 1e-12);
}

#[test]
fn the_random_numbers_have_mean_zero_and_variance_one() {
    let a = random(1000, 100, 9);
    let mean = a.sum() / a.len() as f64;
    let variance = a.iter().map(|x| x * x).sum::<f64>() / a.len() as f64;
    assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
}

#[test]
fn spd_systems_are_solved_and_singular_ones_damped() {
    for n in [1, 2, 30, 100] {
        let a = random(n + 20, n, 31);
        let g = a.t().dot(&a);
        let x = random(n, 7, 32);
        let solved = solve_spd(g.view(), g.dot(&x).view(), 0.0).expect("positive definite");
        assert!(distance(&solved, &x) < 1e-7, "{n}");
        let damped = solve_spd(g.view(), x.view(), 0.5).expect("positive definite");
        let mean = g.diag().sum() / n as f64;
        let back = g.dot(&damped) + &damped * (0.5 * mean);
        assert!(distance(&back, &x) < 1e-9);
    }
    // Rank 2 of 6: no damping given, some is found, and the equations that can hold do hold.
    let a = random(2, 6, 33);
    let g = a.t().dot(&a);
    let b = g.dot(&random(6, 3, 34));
    let x = solve_spd(g.view(), b.view(), 0.0).expect("semidefinite");
    assert!(distance(&g.dot(&x), &b) < 1e-4);
    // A dead input: zero row and column.
    let mut g = Array2::eye(4);
    g[[2, 2]] = 0.0;
    let x = solve_spd(g.view(), g.view(), 1e-6).expect("semidefinite");
    assert!(x[[2, 2]] == 0.0 && (x[[1, 1]] - 1.0).abs() < 1e-5);
    for size in [1e30, 1e-30, 1e-300] {
        let x = solve_spd((Array2::eye(3) * size).view(), Array2::ones((3, 1)).view(), 0.0);
        assert!((x.expect("positive")[[0, 0]] * size - 1.0).abs() < 1e-12);
    }
}

#[test]
fn far_from_positive_is_an_error_and_zero_is_zero() {
    let minus = Array2::<f64>::eye(3) * -1.0;
    assert!(solve_spd(minus.view(), Array2::ones((3, 1)).view(), 0.1).is_err());
    let mut indefinite = Array2::<f64>::eye(2);
    indefinite[[1, 0]] = 50.0;
    indefinite[[0, 1]] = 50.0;
    assert!(solve_spd(indefinite.view(), Array2::ones((2, 1)).view(), 0.0).is_err());
    let zero = Array2::<f64>::zeros((2, 2));
    assert_eq!(solve_spd(zero.view(), zero.view(), 0.0).expect("zero"), zero);
    assert!(solve_spd(zero.view(), Array2::ones((2, 1)).view(), 0.0).is_err());
}
