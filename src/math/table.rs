//! A table with one symmetric scale per column, row by row: the codes of [`crate::math::channel`] for a layout in which rows lie
//! together, by vectors and on all threads. Nothing of the table is copied.

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::affine::{Affine, IntKind, round_half_even};
use super::vector::widest;

/// Numbers of a block, about: each is worked on by itself.
const BLOCK: usize = 1 << 16;

/// Codes of a table, and how much of it they lose.
pub struct Codes {
    /// rows × columns.
    pub codes: Vec<i8>,
    /// `Σ x²`.
    pub signal: f64,
    /// `Σ (x − s q)²`.
    pub noise: f64,
}

/// Rows of a block.
fn block(columns: usize) -> usize {
    columns * (BLOCK / columns.max(1)).max(1)
}

/// The symmetric scale of each column of a table (rows × `columns`), from its largest size; 1 for a column of zeros.
///
/// # Errors
/// When a number is not finite, or there is no column.
pub fn column_scales(table: &[f32], columns: usize, kind: IntKind) -> Result<Vec<f32>> {
    ensure!(columns > 0, "a table without columns");
    // Without their signs, f32 sort like their bits; what is not finite comes last.
    let largest = |rows: &[f32]| {
        let mut most = vec![0u32; columns];
        widest!(rows.chunks_exact(columns).for_each(|row| {
            let pairs = most.iter_mut().zip(row);
            pairs.for_each(|(m, x)| *m = (*m).max(x.to_bits() & i32::MAX as u32));
        }));
        most
    };
    let both = |mut a: Vec<u32>, b: Vec<u32>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a = (*a).max(b));
        a
    };
    let all = table.par_chunks(block(columns)).map(largest);
    let all = all.reduce(|| vec![0; columns], both);
    let scale = |bits: u32| {
        let absmax = f32::from_bits(bits);
        ensure!(absmax.is_finite(), "a weight is {absmax}: it cannot be quantized");
        Ok(Affine::symmetric(absmax, kind)?.scale)
    };
    all.into_iter().map(scale).collect()
}

/// The codes nearest to a table (rows × as many columns as there are scales) of finite numbers, zero point 0, saturated at `±qmax`.
///
/// # Errors
/// When the kind does not fit into int8, or there is no scale.
pub fn quantize_columns(table: &[f32], scales: &[f32], kind: IntKind) -> Result<Codes> {
    ensure!(kind.signed() && kind.qmax() <= 127, "{kind:?} does not fit into int8");
    ensure!(!scales.is_empty(), "a table without columns");
    let (low, high) = kind.symmetric_limits();
    let limits = (low as f32, high as f32);
    let mut codes = vec![0i8; table.len()];
    let rows = block(scales.len());
    let blocks = table.par_chunks(rows).zip(codes.par_chunks_mut(rows));
    let powers: Vec<[f64; 2]> = blocks
        .map(|(table, codes)| {
            let mut powers = [0.0; 2];
            let each = table.chunks(scales.len()).zip(codes.chunks_mut(scales.len()));
            widest!(each.for_each(|(row, codes)| {
                let of = quantized(row, codes, scales, limits);
                (powers[0], powers[1]) = (powers[0] + of[0], powers[1] + of[1]);
            }));
            powers
        })
        .collect();
    let sum = |k: usize| powers.iter().map(|p| p[k]).sum();
    let (signal, noise) = (sum(0), sum(1));
    Ok(Codes { codes, signal, noise })
}

/// Codes of a row; the power of it and of what they lose, each in eight strands.
#[inline(always)]
fn quantized(row: &[f32], codes: &mut [i8], scales: &[f32], (low, high): (f32, f32)) -> [f64; 2] {
    const LANES: usize = 8;
    let mut strands = [[0.0f64; LANES]; 2];
    let parts = row.chunks(LANES).zip(codes.chunks_mut(LANES)).zip(scales.chunks(LANES));
    for ((row, codes), scales) in parts {
        for (k, ((x, code), scale)) in row.iter().zip(codes).zip(scales).enumerate() {
            let steps = round_half_even((x / scale).max(low).min(high));
            *code = steps as i32 as i8;
            strands[0][k] += f64::from(*x) * f64::from(*x);
            let error = f64::from(x - scale * steps);
            strands[1][k] += error * error;
        }
    }
    strands.map(|s| s.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::super::channel::{channel_scales, dequantize_per_channel, quantize_per_channel};
    use super::*;
    use ndarray::Array2;

    #[test]
    fn columns_have_the_codes_of_channels() {
        // More than one block of rows, and a column of zeros.
        let mut state = 5u64;
        let table = Array2::from_shape_fn((4000, 37), |(_, j)| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            ((state >> 40) as f32 / 8388608.0 - 1.0) * if j == 7 { 0.0 } else { 1.0 + j as f32 }
        });
        for kind in [IntKind::S8, IntKind::S3] {
            let flat = table.as_slice().expect("row by row");
            let scales = column_scales(flat, 37, kind).expect("finite");
            assert_eq!(scales, channel_scales(table.t(), kind).expect("finite"));
            let made = quantize_columns(flat, &scales, kind).expect("finite");
            let wanted = quantize_per_channel(table.t(), &scales, kind).expect("finite");
            let made_columns = Array2::from_shape_vec((4000, 37), made.codes).expect("as large");
            assert_eq!(made_columns, wanted.t());
            let back = dequantize_per_channel(wanted.view(), &scales).expect("as many");
            let power = |x: &Array2<f32>| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
            assert!(near(made.signal, power(&table)));
            assert!(near(made.noise, power(&(&table.t() - &back))));
        }
        for bad in [f32::NAN, f32::NEG_INFINITY] {
            assert!(column_scales(&[1.0, bad], 2, IntKind::S8).is_err());
        }
        assert!(column_scales(&[], 0, IntKind::S8).is_err() && quantize_columns(&[], &[], IntKind::S8).is_err());
        assert!(quantize_columns(&[1.0], &[1.0], IntKind::U8).is_err());
    }
}
