//! How far values of a changed model are from those of the model as it was.

use crate::ir::Tensor;
use crate::math::compare::Gap;
use anyhow::Result;

/// Adds one sample's values, as they were and as they are now. What has other dimensions now counts as lost; integers are left out.
///
/// # Errors
/// Never for floats of equal number.
pub fn add(gaps: &mut [Gap], before: &[Tensor], after: &[Tensor]) -> Result<()> {
    for ((gap, x), y) in gaps.iter_mut().zip(before).zip(after) {
        match (x.floats(), y.floats()) {
            (Some(x), Some(y)) if x.len() == y.len() => gap.add(&x, &y)?,
            (Some(_), _) => gap.broken += 1,
            (None, _) => {}
        }
    }
    Ok(())
}

/// Noise power over signal power; infinite when a number was lost, `None` when nothing was compared.
pub fn ratio(gap: &Gap) -> Option<f64> {
    match (gap.count, gap.broken) {
        (0, 0) => None,
        (_, 0) => Some(10f64.powf(-gap.sqnr_db() / 10.0)),
        _ => Some(f64::INFINITY),
    }
}
