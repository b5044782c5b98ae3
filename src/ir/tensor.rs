//! Constant data: weights in the file, and arrays that go in and out of an engine.

use crate::pb;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use std::borrow::Cow;
use std::sync::Arc;

#[cfg(target_endian = "big")]
compile_error!("ONNX raw data are little endian; onnxzip reads them in place");

pub use pb::tensor_proto::DataType as DType;

/// A dense tensor. Cloning it shares the data.
///
/// The data stay in whatever field of the message the file used (`raw_data`, `float_data`, …, or an external file, mapped
/// into memory), so that an unchanged tensor is written back unchanged.
#[derive(Clone, Debug)]
pub struct Tensor {
    proto: Arc<pb::TensorProto>,
    external: Option<Bytes>,
    dims: Vec<usize>,
}

/// Bits of one element in packed raw data; `None` for strings and unknown types.
pub fn bits(dtype: DType) -> Option<usize> {
    use DType::*;
    Some(match dtype {
        Float | Int32 | Uint32 => 32,
        Uint8 | Int8 | Bool => 8,
        Float8e4m3fn | Float8e4m3fnuz | Float8e5m2 | Float8e5m2fnuz | Float8e8m0 => 8,
        Uint16 | Int16 | Float16 | Bfloat16 => 16,
        Int64 | Uint64 | Double | Complex64 => 64,
        Complex128 => 128,
        Uint4 | Int4 | Float4e2m1 => 4,
        Uint2 | Int2 => 2,
        Undefined | String | Float6e2m3 | Float6e3m2 => return None,
    })
}

/// A Rust type that stores one element of a [`DType`].
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The ONNX type with this storage.
    const DTYPE: DType;
}
macro_rules! element {
    ($($t:ty = $d:ident),*) => { $(impl Element for $t { const DTYPE: DType = DType::$d; })* };
}
element!(
    f32 = Float,
    f64 = Double,
    u8 = Uint8,
    i8 = Int8,
    u16 = Uint16,
    i16 = Int16,
    i32 = Int32,
    i64 = Int64,
    u32 = Uint32,
    u64 = Uint64,
    half::f16 = Float16,
    half::bf16 = Bfloat16
);

/// The bytes of packed raw data of so many elements; `None` on overflow or for types without a fixed width.
fn packed_len(dtype: DType, dims: &[usize]) -> Option<usize> {
    let n = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    Some(n.checked_mul(bits(dtype)?)?.div_ceil(8))
}

impl Tensor {
    /// From a message, with its external data if it has them.
    ///
    /// # Errors
    /// When a dimension is negative or the product overflows, or when the data are not as many as the dimensions say.
    pub fn from_proto(proto: pb::TensorProto, external: Option<Bytes>) -> Result<Tensor> {
        let dims = proto
            .dims
            .iter()
            .map(|&d| usize::try_from(d).with_context(|| format!("dimension {d} is negative")))
            .collect::<Result<Vec<usize>>>()?;
        let t = Tensor {
            proto: Arc::new(proto),
            external,
            dims,
        };
        t.check_len()?;
        Ok(t)
    }

    fn check_len(&self) -> Result<()> {
        ensure!(self.proto.segment.is_none(), "segmented tensors are not supported");
        let n = self
            .dims
            .iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .filter(|n| n.checked_mul(16).is_some())
            .with_context(|| format!("dimensions {:?} overflow", self.dims))?;
        let dtype = self.dtype();
        if let Some(raw) = self.packed() {
            let Some(want) = packed_len(dtype, &self.dims) else {
                ensure!(dtype != DType::String, "strings cannot be raw data");
                return Ok(()); // an unknown type is carried along as it is
            };
            if raw.len() != want {
                bail!(
                    "dimensions {:?} of {} need {want} bytes, but there are {}",
                    self.dims,
                    dtype.as_str_name(),
                    raw.len()
                );
            }
            return Ok(());
        }
        let p = &*self.proto;
        let (have, per_item) = match dtype {
            DType::Float => (p.float_data.len(), 1),
            DType::Complex64 => (p.float_data.len() / 2, 1),
            DType::Double => (p.double_data.len(), 1),
            DType::Complex128 => (p.double_data.len() / 2, 1),
            DType::Int64 => (p.int64_data.len(), 1),
            DType::Uint32 | DType::Uint64 => (p.uint64_data.len(), 1),
            DType::String => (p.string_data.len(), 1),
            DType::Uint4 | DType::Int4 | DType::Float4e2m1 => (p.int32_data.len(), 2),
            DType::Uint2 | DType::Int2 => (p.int32_data.len(), 4),
            DType::Undefined | DType::Float6e2m3 | DType::Float6e3m2 => return Ok(()),
            _ => (p.int32_data.len(), 1),
        };
        if have != n.div_ceil(per_item) {
            bail!(
                "dimensions {:?} of {} need {n} elements, but there are {have}",
                self.dims,
                dtype.as_str_name()
            );
        }
        Ok(())
    }

    /// Whether it is the other one, or a clone of it: no number is looked at.
    pub fn is(&self, other: &Tensor) -> bool {
        let place = |t: &Tensor| t.external.as_ref().map(|b| (b.as_ptr(), b.len()));
        Arc::ptr_eq(&self.proto, &other.proto) && place(self) == place(other)
    }

    /// From packed little-endian data.
    ///
    /// # Errors
    /// When the bytes are not as many as the dimensions and the type need.
    pub fn from_raw(dtype: DType, dims: &[usize], raw: Bytes) -> Result<Tensor> {
        let proto = pb::TensorProto {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: Some(dtype as i32),
            raw_data: Some(raw),
            ..Default::default()
        };
        Tensor::from_proto(proto, None)
    }

    /// From elements in row-major order.
    ///
    /// # Panics
    /// When `data` is not as long as the product of `dims`: the caller made both.
    pub fn new<T: Element>(dims: &[usize], data: Vec<T>) -> Tensor {
        assert_eq!(data.len(), dims.iter().product::<usize>(), "elements for {dims:?}");
        Tensor::from_raw(T::DTYPE, dims, super::store::keep(data)).expect("as many elements as dimensions say")
    }

    /// The same tensor, its data where [`store`](super::store) keeps data that a pass made: for tensors that others allocated.
    #[must_use]
    pub fn kept(self) -> Tensor {
        match (&self.external, &self.proto.raw_data) {
            (None, Some(raw)) if raw.len() > 1 << 20 => {
                let kept = super::store::keep(raw.to_vec());
                Tensor::from_raw(self.dtype(), &self.dims, kept).unwrap_or(self)
            }
            _ => self,
        }
    }

    /// A rank-0 tensor.
    pub fn scalar<T: Element>(x: T) -> Tensor {
        Tensor::new(&[], vec![x])
    }

    /// The element type; `Undefined` for a code that this version does not know.
    pub fn dtype(&self) -> DType {
        DType::try_from(self.proto.data_type()).unwrap_or(DType::Undefined)
    }
    /// The dimensions; empty for a scalar.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }
    /// True when there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The message as it stands in the file (its name may be out of date: names belong to values).
    pub fn proto(&self) -> &pb::TensorProto {
        &self.proto
    }
    /// The message with external data as (shared) `raw_data`.
    pub fn to_inline_proto(&self) -> pb::TensorProto {
        let mut t = (*self.proto).clone();
        if let Some(data) = &self.external {
            t.raw_data = Some(data.clone());
            t.external_data.clear();
            t.data_location = None;
        }
        t
    }
    /// The mapped external data, if the file keeps them outside.
    pub fn external(&self) -> Option<&Bytes> {
        self.external.as_ref()
    }

    /// The packed bytes where they lie, without a copy; `None` when a typed field (`float_data`, …) holds the data.
    pub fn packed(&self) -> Option<&Bytes> {
        let raw = self.proto.raw_data.as_ref();
        self.external
            .as_ref()
            .or(raw.filter(|r| !r.is_empty() || self.is_empty()))
    }

    /// The packed little-endian bytes; copied only when a typed field holds the data. Empty for strings.
    pub fn raw(&self) -> Cow<'_, [u8]> {
        if let Some(raw) = self.packed() {
            return Cow::Borrowed(raw);
        }
        let p = &*self.proto;
        let from_i32 = |width: usize| -> Vec<u8> {
            p.int32_data
                .iter()
                .flat_map(|x| x.to_le_bytes().into_iter().take(width))
                .collect()
        };
        match self.dtype() {
            DType::Float | DType::Complex64 => Cow::Borrowed(bytemuck::cast_slice(&p.float_data)),
            DType::Double | DType::Complex128 => Cow::Borrowed(bytemuck::cast_slice(&p.double_data)),
            DType::Int64 => Cow::Borrowed(bytemuck::cast_slice(&p.int64_data)),
            DType::Uint64 => Cow::Borrowed(bytemuck::cast_slice(&p.uint64_data)),
            DType::Int32 => Cow::Borrowed(bytemuck::cast_slice(&p.int32_data)),
            DType::Uint32 => p.uint64_data.iter().flat_map(|x| (*x as u32).to_le_bytes()).collect(),
            DType::Uint16 | DType::Int16 | DType::Float16 | DType::Bfloat16 => from_i32(2).into(),
            DType::String | DType::Undefined => Cow::Borrowed(&[]),
            _ => from_i32(1).into(),
        }
    }

    /// The elements as `T`; `None` when the type is another. Copied only where the bytes are not aligned.
    pub fn view<T: Element>(&self) -> Option<Cow<'_, [T]>> {
        if self.dtype() != T::DTYPE {
            return None;
        }
        Some(match self.raw() {
            Cow::Borrowed(raw) => match bytemuck::try_cast_slice(raw) {
                Ok(s) => Cow::Borrowed(s),
                Err(_) => Cow::Owned(bytemuck::pod_collect_to_vec(raw)),
            },
            Cow::Owned(raw) => Cow::Owned(bytemuck::pod_collect_to_vec(&raw)),
        })
    }

    /// The elements of a `float` tensor; `None` for every other type.
    pub fn floats(&self) -> Option<Cow<'_, [f32]>> {
        self.view::<f32>()
    }

    /// The elements of a floating-point tensor of any width as `f32`; `None` for integers and the rest.
    pub fn reals(&self) -> Option<Cow<'_, [f32]>> {
        use DType::{Bfloat16, Double, Float, Float16};
        matches!(self.dtype(), Float | Double | Float16 | Bfloat16).then(|| self.to_f32())?
    }

    /// The elements as `f32`, for every real type (float16, double, integers, bool); `None` for the others.
    pub fn to_f32(&self) -> Option<Cow<'_, [f32]>> {
        fn conv<T: Element>(t: &Tensor, f: impl Fn(T) -> f32) -> Option<Cow<'_, [f32]>> {
            Some(t.view::<T>()?.iter().map(|&x| f(x)).collect())
        }
        match self.dtype() {
            DType::Float => self.floats(),
            DType::Double => conv::<f64>(self, |x| x as f32),
            DType::Float16 => conv::<half::f16>(self, half::f16::to_f32),
            DType::Bfloat16 => conv::<half::bf16>(self, half::bf16::to_f32),
            DType::Bool => Some(self.raw().iter().map(|&b| (b != 0) as u8 as f32).collect()),
            _ => Some(self.ints()?.into_iter().map(|x| x as f32).collect()),
        }
    }

    /// The elements of an integer or bool tensor as `i64`; `None` for every other type.
    pub fn ints(&self) -> Option<Vec<i64>> {
        fn conv<T: Element + Copy>(t: &Tensor, f: impl Fn(T) -> i64) -> Option<Vec<i64>> {
            Some(t.view::<T>()?.iter().map(|&x| f(x)).collect())
        }
        match self.dtype() {
            DType::Int64 => conv::<i64>(self, |x| x),
            DType::Int32 => conv::<i32>(self, i64::from),
            DType::Int16 => conv::<i16>(self, i64::from),
            DType::Int8 => conv::<i8>(self, i64::from),
            DType::Uint64 => conv::<u64>(self, |x| x as i64),
            DType::Uint32 => conv::<u32>(self, i64::from),
            DType::Uint16 => conv::<u16>(self, i64::from),
            DType::Uint8 => conv::<u8>(self, i64::from),
            DType::Bool => Some(self.raw().iter().map(|&b| i64::from(b != 0)).collect()),
            _ => None,
        }
    }

    /// The same elements under other dimensions.
    ///
    /// # Panics
    /// When the number of elements changes.
    pub fn with_dims(&self, dims: &[usize]) -> Tensor {
        assert_eq!(
            self.len(),
            dims.iter().product::<usize>(),
            "reshape {:?} to {dims:?}",
            self.dims
        );
        let mut proto = (*self.proto).clone();
        proto.dims = dims.iter().map(|&d| d as i64).collect();
        Tensor {
            proto: Arc::new(proto),
            external: self.external.clone(),
            dims: dims.to_vec(),
        }
    }

    /// The size of the data in bytes.
    pub fn byte_len(&self) -> usize {
        match packed_len(self.dtype(), &self.dims) {
            Some(n) => n,
            None => self.proto.string_data.iter().map(Bytes::len).sum::<usize>() + self.packed().map_or(0, |b| b.len()),
        }
    }

    /// True when both have the same type, dimensions and bytes.
    pub fn same_data(&self, other: &Tensor) -> bool {
        self.dtype() == other.dtype()
            && self.dtype() != DType::Undefined
            && self.dims == other.dims
            && self.proto.string_data == other.proto.string_data
            && super::store::same(&self.raw(), &other.raw())
    }
}
