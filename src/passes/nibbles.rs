//! Two weights in a byte, taken apart by operators that every runtime has.
//!
//! A code `q` of 4 bits stands for the int8 code `16·q`, whose bits are those of `q` and four zeros. Of an axis of even length the
//! first half lies in the high bits of the bytes `P`, the second half in the low ones, so that
//! `16·q = Cast(Concat((P ≫ 4) ≪ 4, P ≪ 4), int8)`: BitShift on bytes loses what leaves them, and Cast keeps the bits (ONNX
//! operators BitShift-11, Cast-13: what is out of range wraps). No input of the model is read, so a runtime that folds constants
//! does it once, while loading, before it looks for Q/DQ pairs. int4 tensors are not used: before version 1.23 ONNX Runtime
//! cannot make int8 of them, and every other use of them makes a float operator.

use super::charts::decibel;
use super::trial::{self, Ladder};
use super::{Context, NoteKind};
use crate::engine::NotRun;
use crate::ir::{Attr, DType, GraphId, Model, Tensor, ValueId};
use anyhow::{Context as _, Result, ensure};

/// The bits that a code is shifted by.
pub const BITS: u8 = 4;
/// An int8 code for every step of a code of 4 bits.
pub const STEP: f32 = 16.0;
/// A weight that errs by more, relative to the power of its products, is not tried.
const MOST: f64 = 0.2;
/// About what the operators that take a weight apart take in a file, in bytes.
const OVERHEAD: usize = 768;
/// Smaller weights would save less than these operators are worth.
const LEAST: usize = 4096;

/// Why a weight of these dimensions cannot take 4 bits.
pub fn refusal(dims: &[usize]) -> Option<&'static str> {
    if dims.iter().product::<usize>() < LEAST {
        Some("small")
    } else if axis(dims).is_none() {
        Some("no axis is of even length")
    } else {
        None
    }
}

/// The axis along which a tensor of these dimensions can be parted in two equal halves.
pub fn axis(dims: &[usize]) -> Option<usize> {
    dims.iter().position(|d| *d > 0 && d % 2 == 0)
}

/// A weight with 4 bits, to be tried.
pub struct Trial<F> {
    weights: usize,
    error: f64,
    put: F,
}

impl<F: Fn(&mut Model) -> Result<()>> Trial<F> {
    /// So many weights, which err by `sqnr` dB beside the power of their products; `put` puts them into a model.
    pub fn new(weights: usize, sqnr: f64, put: F) -> Trial<F> {
        Trial {
            weights,
            error: 10f64.powf(-sqnr / 10.0),
            put,
        }
    }

    /// Whether it is worth a trial.
    pub fn bearable(&self) -> bool {
        self.error <= MOST
    }
}

impl<F: Fn(&mut Model) -> Result<()>> Ladder for Trial<F> {
    fn rungs(&self) -> usize {
        1
    }

    fn error(&self, _: usize) -> f64 {
        self.error
    }

    fn saved(&self, _: usize) -> f64 {
        (self.weights / 2).saturating_sub(OVERHEAD) as f64
    }

    fn apply(&self, model: &mut Model, _: usize) -> Result<()> {
        (self.put)(model)
    }
}

/// int8 codes, all multiples of 16, two to a byte.
///
/// # Errors
/// When the codes are not as said, or no axis is even.
pub fn pack(codes: &Tensor) -> Result<(Tensor, usize)> {
    let (dims, axis) = (codes.dims(), axis(codes.dims()).context("no axis is of even length")?);
    let data = codes.view::<i8>().context("codes are int8")?;
    ensure!(data.iter().all(|q| q & 15 == 0), "a code needs more than 4 bits");
    let half = dims[axis..].iter().product::<usize>() / 2;
    let bytes = data.chunks(2 * half).flat_map(|both| {
        let (high, low) = both.split_at(half);
        high.iter().zip(low).map(|(h, l)| *h as u8 | (*l as u8 >> BITS))
    });
    let bytes: Vec<u8> = bytes.collect();
    let mut dims = dims.to_vec();
    dims[axis] /= 2;
    Ok((Tensor::new(&dims, bytes), axis))
}

/// Puts codes, two to a byte, into a graph, and what takes them apart; gives the int8 codes.
///
/// # Errors
/// As [`pack`].
pub fn packed(model: &mut Model, graph: GraphId, name: &str, codes: &Tensor) -> Result<ValueId> {
    let (bytes, axis) = pack(codes)?;
    let mut constant = |name: &str, t: Tensor| {
        let name = model.fresh_name(name);
        model.add_const(graph, &name, t)
    };
    let bytes = constant(&format!("{name}_packed"), bytes);
    let bits = constant(&format!("{name}_bits"), Tensor::scalar(BITS));
    let mut node = |op: &str, part: &str, inputs: &[ValueId], attr: Attr| -> Result<ValueId> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        let name = model.fresh_name(&format!("{name}{part}"));
        let (_, out) = model.add_node(graph, &name, op, &inputs, &[&name], vec![attr]);
        out.first().copied().context("an output")
    };
    let right = node(
        "BitShift",
        "_shifted",
        &[bytes, bits],
        Attr::string("direction", "RIGHT"),
    )?;
    let high = node("BitShift", "_high", &[right, bits], Attr::string("direction", "LEFT"))?;
    let low = node("BitShift", "_low", &[bytes, bits], Attr::string("direction", "LEFT"))?;
    let both = node("Concat", "_uint8", &[high, low], Attr::int("axis", axis as i64))?;
    node("Cast", "", &[both], Attr::int("to", DType::Int8 as i64))
}

/// Which weights of 4 bits, one rung each, may stay when outputs may err by `limit` more, relative to their power; asked by a pass.
///
/// # Errors
/// When a sample fails.
pub fn choose<F: Fn(&mut Model) -> Result<()>>(
    model: &Model,
    trials: &[Trial<F>],
    limit: f64,
    pass: &str,
    cx: &mut Context,
) -> Result<Vec<bool>> {
    if trials.is_empty() {
        return Ok(Vec::new());
    }
    let [one, other] = cx.samples.halves();
    let samples = if other.is_empty() { one } else { other };
    let settled = match trial::settle(model, trials, limit, &samples, cx) {
        Err(e) if e.chain().any(|c| c.is::<NotRun>()) => {
            cx.warn(format!(
                "{pass}(int4={limit}): weights keep 8 bits, since nothing can be tried: {e:#}"
            ));
            return Ok(vec![false; trials.len()]);
        }
        other => other.with_context(|| format!("{pass}: trying weights of 4 bits"))?,
    };
    let chosen: Vec<bool> = settled.choice.iter().map(Option::is_some).collect();
    let what = format!(
        "weights in 4 bits: {} of {} that were tried; on samples that had no part, outputs err by {:.1} dB because of them, of the {:.1} dB allowed",
        chosen.iter().filter(|c| **c).count(),
        chosen.len(),
        decibel(settled.last),
        decibel(limit)
    );
    cx.note(NoteKind::Did, String::new(), what);
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_half_lies_in_the_high_bits() {
        let codes = Tensor::new(&[1, 4, 2], vec![16i8, -16, 112, -112, 0, 32, -128, 48]);
        let (bytes, axis) = pack(&codes).expect("it fits");
        assert_eq!((bytes.dims(), axis), (&[1, 2, 2][..], 1));
        assert_eq!(bytes.raw()[..], [0x10, 0xF2, 0x78, 0x93]);
        let odd = Tensor::new(&[1, 3], vec![0i8; 3]);
        assert!(pack(&odd).is_err());
        let fine = Tensor::new(&[2], vec![16i8, 17]);
        assert!(pack(&fine).is_err());
    }
}
