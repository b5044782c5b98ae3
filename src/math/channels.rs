//! Removing inputs of a linear map one after the other, the others taking over what they can.
//!
//! For `y = W x` and the covariance C of x, dropping a block R of inputs and refitting the rest by least squares costs
//! `tr(W_R S W_Rᵀ)` with `S = ((C⁻¹)_RR)⁻¹`, the covariance of x_R that the other inputs do not explain; the refitted map is
//! `W − W_R S (C⁻¹)_R,:`, and the inverse for what is left is `C⁻¹ − (C⁻¹)_:,R S (C⁻¹)_R,:` (optimal brain surgeon, Hassibi and
//! Stork 1993, by blocks). Means are taken care of by the bias: it grows by `(W_before − W_after) μ`.
//!
//! Cost: one inverse, n³; then for each removed input a product of rank one, n·(n + rows), `n` being the inputs that are left.

use super::decompose::{add_product, solve_spd};
use super::few;
use anyhow::{Result, ensure};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

/// Columns of removed inputs stay, as zeros, until they are so large a part of all.
const STALE: f64 = 0.125;

/// A map, and what is left of the inverse covariance of its inputs.
pub struct Surgeon {
    /// Columns of inputs that are left, and of some that are not.
    weight: Array2<f64>,
    inverse: Array2<f64>,
    /// Output power that the inputs cause, `tr(W C Wᵀ)`: the unit of costs.
    power: f64,
    /// Where an input is in `weight` and `inverse`; `None` when it was removed.
    place: Vec<Option<usize>>,
}

impl Surgeon {
    /// For `weight` (rows × n) and the covariance of its inputs (n × n) from `seen` rows; `damping` is added to the diagonal, relative to its mean.
    ///
    /// # Errors
    /// When shapes do not fit or numbers are not finite.
    pub fn new(weight: Array2<f64>, (covariance, seen): (ArrayView2<f64>, u64), damping: f64) -> Result<Surgeon> {
        let n = weight.ncols();
        ensure!(
            covariance.dim() == (n, n),
            "Surgeon: {:?} against {:?}",
            weight.dim(),
            covariance.dim()
        );
        let inverse = few::inverse(covariance, damping, seen)?;
        let power = power(weight.view(), covariance);
        Ok(Surgeon {
            weight: row_major(weight),
            inverse: row_major(inverse),
            power: power.max(f64::MIN_POSITIVE),
            place: (0..n).map(Some).collect(),
        })
    }

    /// The map: columns of removed inputs are zero.
    pub fn weight(&self) -> Array2<f64> {
        let mut whole = Array2::zeros((self.weight.nrows(), self.place.len()));
        let places = self.place.iter().enumerate();
        for (i, k) in places.filter_map(|(i, k)| Some((i, (*k)?))) {
            whole.column_mut(i).assign(&self.weight.column(k));
        }
        whole
    }

    /// The places of those of a block that are left.
    fn places(&self, block: &[usize]) -> Vec<usize> {
        block.iter().filter_map(|i| self.place[*i]).collect()
    }

    /// What removing each of these blocks alone would cost, in parts of the output's power.
    pub fn costs(&self, blocks: &[Vec<usize>]) -> Result<Vec<f64>> {
        let norms = self.weight.map_axis(Axis(0), |c| c.dot(&c));
        blocks
            .iter()
            .map(|b| match self.places(b)[..] {
                [] => Ok(0.0),
                [k] => Ok(norms[k] / self.inverse[[k, k]] / self.power),
                ref at => {
                    let w = self.weight.select(Axis(1), at);
                    Ok(power(w.view(), self.unexplained(at)?.view()) / self.power)
                }
            })
            .collect()
    }

    /// How far two blocks stand for each other given all others: the squared partial correlation, from 0 to 1, for single inputs.
    pub fn related(&self, a: &[usize], b: &[usize]) -> f64 {
        let (a, b) = (self.places(a), self.places(b));
        let square = |a: &[usize], b: &[usize]| {
            let of_row = |i: &usize| b.iter().map(|j| self.inverse[[*i, *j]].powi(2)).sum::<f64>();
            a.iter().map(of_row).sum::<f64>()
        };
        let whole = (square(&a, &a) * square(&b, &b)).sqrt();
        if whole > 0.0 { square(&a, &b) / whole } else { 0.0 }
    }

    /// `((C⁻¹)_RR)⁻¹`, for places.
    fn unexplained(&self, at: &[usize]) -> Result<Array2<f64>> {
        let inner = self.inverse.select(Axis(0), at).select(Axis(1), at);
        solve_spd(inner.view(), Array2::eye(at.len()).view(), 0.0)
    }

    /// Removes inputs; the others take over what they can.
    ///
    /// # Errors
    /// When numbers are not finite.
    pub fn remove(&mut self, block: &[usize]) -> Result<()> {
        let at = self.places(block);
        if at.is_empty() {
            return Ok(());
        }
        let rows = self.inverse.select(Axis(0), &at);
        let share = match at[..] {
            [k] => &rows / self.inverse[[k, k]],
            _ => self.unexplained(&at)?.dot(&rows),
        };
        let w = self.weight.select(Axis(1), &at);
        subtract(&mut self.weight, w.view(), share.view());
        subtract(&mut self.inverse, rows.t(), share.view());
        for k in &at {
            self.weight.column_mut(*k).fill(0.0);
            self.inverse.column_mut(*k).fill(0.0);
            self.inverse.row_mut(*k).fill(0.0);
        }
        block.iter().for_each(|i| self.place[*i] = None);
        self.close_up();
        Ok(())
    }

    /// Drops the columns and rows of removed inputs, where they are many.
    fn close_up(&mut self) {
        let kept: Vec<usize> = self.place.iter().copied().flatten().collect();
        if kept.len() as f64 >= (1.0 - STALE) * self.weight.ncols() as f64 {
            return;
        }
        self.weight = row_major(self.weight.select(Axis(1), &kept));
        self.inverse = row_major(self.inverse.select(Axis(1), &kept).select(Axis(0), &kept));
        let left = self.place.iter_mut().filter(|k| k.is_some());
        left.enumerate().for_each(|(k, place)| *place = Some(k));
    }
}

/// The same matrix, in rows: products are added to it.
fn row_major(a: Array2<f64>) -> Array2<f64> {
    match a.is_standard_layout() {
        true => a,
        false => a.as_standard_layout().into_owned(),
    }
}

/// `tr(W C Wᵀ)`.
pub fn power(w: ArrayView2<f64>, c: ArrayView2<f64>) -> f64 {
    let product = super::decompose::matmul(w, c);
    (&product * &w).sum()
}

/// `a -= b · c`.
fn subtract(a: &mut Array2<f64>, b: ArrayView2<f64>, c: ArrayView2<f64>) {
    if b.ncols() > 2 {
        add_product(a, -1.0, b, c);
        return;
    }
    for (mut row, factors) in a.rows_mut().into_iter().zip(b.rows()) {
        for (f, line) in factors.iter().zip(c.rows()) {
            if *f != 0.0 {
                row.scaled_add(-f, &line);
            }
        }
    }
}

/// A map refitted to some of its inputs, and what that loses.
pub struct Refit {
    /// `rows × n`; columns of inputs that are not kept are zero.
    pub weight: Array2<f64>,
    /// In parts of the output's power.
    pub lost: f64,
}

/// `W' = W C_:K (C_KK)⁻¹`, the least-squares map on the inputs `kept` (ascending); `damping` as in [`Surgeon::new`], `seen` is the number of rows of
/// the moment, `whole` the [`power`] of the output.
///
/// # Errors
/// When shapes do not fit or numbers are not finite.
pub fn refit(
    weight: ArrayView2<f64>,
    (covariance, seen, whole): (ArrayView2<f64>, u64, f64),
    kept: &[usize],
    damping: f64,
) -> Result<Refit> {
    let n = weight.ncols();
    ensure!(
        covariance.dim() == (n, n) && kept.iter().all(|k| *k < n),
        "refit: {:?} against {:?}",
        weight.dim(),
        covariance.dim()
    );
    let gone: Vec<usize> = (0..n).filter(|i| kept.binary_search(i).is_err()).collect();
    let inner = covariance.select(Axis(0), kept).select(Axis(1), kept);
    let cross = covariance.select(Axis(0), kept).select(Axis(1), &gone);
    // Only what the others take over: W'_K = W_K + W_R X with X = C_RK (C_KK)⁻¹, so that damping does not touch W_K.
    let lost_columns = weight.select(Axis(1), &gone);
    let mut new = Array2::zeros(weight.dim());
    let own = weight.select(Axis(1), kept);
    let takes = match gone.len() <= weight.nrows() {
        true => super::decompose::matmul(
            lost_columns.view(),
            few::solve(inner.view(), cross.view(), damping, seen)?.t(),
        ),
        false => {
            let right = super::decompose::matmul(cross.view(), lost_columns.t());
            few::solve(inner.view(), right.view(), damping, seen)?.reversed_axes()
        }
    };
    for (k, &i) in kept.iter().enumerate() {
        new.column_mut(i).assign(&(&own.column(k) + &takes.column(k)));
    }
    let lost = power((&weight - &new).view(), covariance) / whole.max(f64::MIN_POSITIVE);
    Ok(Refit { weight: new, lost })
}

/// The change of a bias that keeps the mean output: `(before − after) μ`, one number for every row.
pub fn bias_shift(before: ArrayView2<f64>, after: ArrayView2<f64>, mean: ArrayView1<f64>) -> Array1<f64> {
    (&before - &after).dot(&mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A covariance and a map, seeded.
    fn case(n: usize, rows: usize) -> (Array2<f64>, Array2<f64>) {
        let mut state = 5u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
        };
        let x = Array2::from_shape_simple_fn((4 * n, n), &mut next);
        (Array2::from_shape_simple_fn((rows, n), &mut next), x.t().dot(&x))
    }

    #[test]
    fn what_is_left_is_the_least_squares_refit_and_costs_say_what_it_loses() {
        let (w, c) = case(6, 3);
        let w = w.t().as_standard_layout().into_owned().reversed_axes(); // by columns, as weights of a Gemm may lie
        for blocks in [vec![vec![1], vec![4]], vec![vec![4, 1]], vec![vec![1, 4]]] {
            let mut surgeon = Surgeon::new(w.clone(), (c.view(), 99), 0.0).expect("a covariance");
            let mut told = 0.0;
            for b in &blocks {
                told += surgeon.costs(std::slice::from_ref(b)).expect("finite")[0];
                surgeon.remove(b).expect("finite");
            }
            let left = [0, 2, 3, 5];
            let cross = w.dot(&c.select(Axis(1), &left));
            let inner = c.select(Axis(0), &left).select(Axis(1), &left);
            let refit = solve_spd(inner.view(), cross.t(), 0.0)
                .expect("a solution")
                .reversed_axes();
            let mut full = Array2::zeros(w.dim());
            left.iter()
                .enumerate()
                .for_each(|(k, &i)| full.column_mut(i).assign(&refit.column(k)));
            assert!((&surgeon.weight() - &full).iter().all(|d| d.abs() < 1e-9));
            let at_once =
                super::refit(w.view(), (c.view(), 99, power(w.view(), c.view())), &left, 0.0).expect("a solution");
            assert!((&at_once.weight - &full).iter().all(|d| d.abs() < 1e-9));
            assert!((at_once.lost - told).abs() < 1e-9 * told.max(1.0));
            let lost = power((&w - &full).view(), c.view()) / power(w.view(), c.view());
            assert!((told - lost).abs() < 1e-9 * lost.max(1.0), "{told} {lost}");
        }
    }

    #[test]
    fn a_copy_costs_nothing_but_its_twin_then_costs_all() {
        let c = ndarray::arr2(&[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        let w = ndarray::arr2(&[[1.0, 1.0, 1.0]]);
        let mut surgeon = Surgeon::new(w, (c.view(), 99), 1e-9).expect("a covariance");
        let one: Vec<Vec<usize>> = (0..3).map(|i| vec![i]).collect();
        assert!(surgeon.costs(&one).expect("finite")[0] < 1e-6);
        surgeon.remove(&[0]).expect("finite");
        assert!((surgeon.weight()[[0, 1]] - 2.0).abs() < 1e-6);
        assert!(surgeon.costs(&one).expect("finite")[1] > 0.5);
        surgeon.remove(&[0]).expect("a second time is nothing");
    }
}
