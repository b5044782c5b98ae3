//! Arithmetic on the data of float tensors of any width: computed in `f64`, stored in the tensor's own type.

use crate::ir::{DType, Tensor};
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

/// A float tensor; `None` for another type, or when a number is not finite once stored.
pub(super) fn store(dtype: DType, dims: &[usize], x: Vec<f64>) -> Option<Tensor> {
    if x.len() != dims.iter().product::<usize>() {
        return None;
    }
    let t = match dtype {
        DType::Float => Tensor::new(dims, x.iter().map(|&x| x as f32).collect()),
        DType::Double => Tensor::new(dims, x),
        DType::Float16 => Tensor::new(dims, x.iter().map(|&x| f16::from_f64(x)).collect()),
        DType::Bfloat16 => Tensor::new(dims, x.iter().map(|&x| bf16::from_f64(x)).collect()),
        _ => return None,
    };
    let finite = t.to_f32()?.iter().all(|x| x.is_finite());
    finite.then_some(t)
}

/// True when the tensor has elements and all of them are the number `x`.
pub(super) fn all_are(t: &Tensor, x: f64) -> bool {
    if t.is_empty() {
        return false;
    }
    match floats(t) {
        Some(f) => f.iter().all(|&e| e == x),
        None => t.ints().is_some_and(|i| i.iter().all(|&e| e as f64 == x)),
    }
}

/// A 1-D `int64` tensor.
pub(super) fn list(x: &[i64]) -> Tensor {
    Tensor::new(&[x.len()], x.to_vec())
}
