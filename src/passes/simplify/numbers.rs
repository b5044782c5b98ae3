//! Arithmetic on the data of float tensors of any width: computed in `f64`, stored in the tensor's own type.

use crate::ir::store::{keep, stream};
use crate::ir::{DType, Element, Tensor, bits};
use half::{bf16, f16};

/// The elements of a float tensor; `None` for every other type.
pub(super) fn floats(t: &Tensor) -> Option<Vec<f64>> {
    Some(match t.dtype() {
        DType::Float => t.view::<f32>()?.iter().map(|&x| f64::from(x)).collect(),
        DType::Double => t.view::<f64>()?.into_owned(),
        DType::Float16 => t.view::<f16>()?.iter().map(|x| x.to_f64()).collect(),
        DType::Bfloat16 => t.view::<bf16>()?.iter().map(|x| x.to_f64()).collect(),
        _ => return None,
    })
}

/// Reads a tensor of real numbers through, in order, a bounded number of elements at a time, until `f` says no. `None` for
/// other types, else whether it never did.
pub(super) fn every(t: &Tensor, mut f: impl FnMut(&[f64]) -> bool) -> Option<bool> {
    fn wide<T: Element>(raw: &[u8], out: &mut Vec<f64>, f: impl Fn(T) -> f64) {
        let width = std::mem::size_of::<T>();
        out.extend(raw.chunks_exact(width).map(|b| f(bytemuck::pod_read_unaligned(b))));
    }
    let into: fn(&[u8], &mut Vec<f64>) = match t.dtype() {
        DType::Float => |raw, out| wide::<f32>(raw, out, f64::from),
        DType::Double => |raw, out| wide::<f64>(raw, out, |x| x),
        DType::Float16 => |raw, out| wide::<f16>(raw, out, f16::to_f64),
        DType::Bfloat16 => |raw, out| wide::<bf16>(raw, out, bf16::to_f64),
        DType::Int64 => |raw, out| wide::<i64>(raw, out, |x| x as f64),
        DType::Int32 => |raw, out| wide::<i32>(raw, out, f64::from),
        DType::Int16 => |raw, out| wide::<i16>(raw, out, f64::from),
        DType::Int8 => |raw, out| wide::<i8>(raw, out, f64::from),
        DType::Uint64 => |raw, out| wide::<u64>(raw, out, |x| x as f64),
        DType::Uint32 => |raw, out| wide::<u32>(raw, out, f64::from),
        DType::Uint16 => |raw, out| wide::<u16>(raw, out, f64::from),
        DType::Uint8 | DType::Bool => |raw, out| wide::<u8>(raw, out, f64::from),
        _ => return None,
    };
    let mut buffer = Vec::new();
    let outcome = stream(&t.raw(), |chunk| {
        for part in chunk.chunks(1 << 16) {
            buffer.clear();
            into(part, &mut buffer);
            if !f(&buffer) {
                return Err(());
            }
        }
        Ok(())
    });
    Some(outcome.is_ok())
}

/// Takes the elements of a float tensor, in order.
pub(super) struct Writer {
    dtype: DType,
    dims: Vec<usize>,
    raw: Vec<u8>,
    finite: bool,
}

impl Writer {
    /// `None` for a type that is not float.
    pub fn new(dtype: DType, dims: &[usize]) -> Option<Writer> {
        use DType::*;
        if !matches!(dtype, Float | Double | Float16 | Bfloat16) {
            return None;
        }
        let bytes = dims.iter().product::<usize>().checked_mul(bits(dtype)? / 8)?;
        Some(Writer {
            dtype,
            dims: dims.to_vec(),
            raw: Vec::with_capacity(bytes),
            finite: true,
        })
    }

    pub fn push(&mut self, x: &[f64]) {
        macro_rules! narrow {
            ($width:literal, $to:expr) => {{
                let start = self.raw.len();
                self.raw.resize(start + x.len() * $width, 0);
                let (places, _) = self.raw[start..].as_chunks_mut::<$width>();
                for (place, x) in places.iter_mut().zip(x) {
                    let y = $to(*x);
                    self.finite &= y.is_finite();
                    *place = y.to_le_bytes();
                }
            }};
        }
        match self.dtype {
            DType::Float => narrow!(4, |x: f64| x as f32),
            DType::Double => narrow!(8, |x: f64| x),
            DType::Float16 => narrow!(2, f16::from_f64),
            _ => narrow!(2, bf16::from_f64),
        }
    }

    /// The tensor; `None` when a number is not finite once stored, or there were not as many as the dimensions say.
    pub fn tensor(self) -> Option<Tensor> {
        let t = Tensor::from_raw(self.dtype, &self.dims, keep(self.raw)).ok()?;
        self.finite.then_some(t)
    }
}

/// A float tensor; `None` for another type, or when a number is not finite once stored.
pub(super) fn store(dtype: DType, dims: &[usize], x: &[f64]) -> Option<Tensor> {
    let mut w = Writer::new(dtype, dims)?;
    w.push(x);
    w.tensor()
}

/// True when the tensor has elements and all of them are the number `x`.
pub(super) fn all_are(t: &Tensor, x: f64) -> bool {
    !t.is_empty() && every(t, |part| part.iter().all(|&e| e == x)) == Some(true)
}

/// False when one of the elements is NaN or infinite.
pub(super) fn is_finite(t: &Tensor) -> bool {
    every(t, |part| part.iter().all(|x| x.is_finite())) != Some(false)
}

/// A 1-D `int64` tensor.
pub(super) fn list(x: &[i64]) -> Tensor {
    Tensor::new(&[x.len()], x.to_vec())
}
