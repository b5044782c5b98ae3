//! Tensors in and out of ONNX Runtime, and the call that runs a session. All unsafe code of this engine is here.
//!
//! What goes in is not copied where it is aligned: ONNX Runtime reads the tensor's own bytes. What comes out is copied.

use crate::ir::{DType, Tensor};
use crate::pb;
use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use ort::AsPointer;
use ort::memory::MemoryInfo;
use ort::session::Session;
use ort::value::{DynTensorValueType, DynValue, Tensor as OrtTensor, TensorElementType as Element, ValueType};
use std::ffi::CString;
use std::ptr;

/// Types of elements on both sides; their bytes are the same.
const TYPES: &[(DType, Element)] = &[
    (DType::Float, Element::Float32),
    (DType::Double, Element::Float64),
    (DType::Float16, Element::Float16),
    (DType::Bfloat16, Element::Bfloat16),
    (DType::Int8, Element::Int8),
    (DType::Int16, Element::Int16),
    (DType::Int32, Element::Int32),
    (DType::Int64, Element::Int64),
    (DType::Uint8, Element::Uint8),
    (DType::Uint16, Element::Uint16),
    (DType::Uint32, Element::Uint32),
    (DType::Uint64, Element::Uint64),
    (DType::Bool, Element::Bool),
    (DType::Int4, Element::Int4),
    (DType::Uint4, Element::Uint4),
    (DType::Int2, Element::Int2),
    (DType::Uint2, Element::Uint2),
    (DType::Float4e2m1, Element::Float4E2M1),
    (DType::Float8e4m3fn, Element::Float8E4M3FN),
    (DType::Float8e4m3fnuz, Element::Float8E4M3FNUZ),
    (DType::Float8e5m2, Element::Float8E5M2),
    (DType::Float8e5m2fnuz, Element::Float8E5M2FNUZ),
    (DType::String, Element::String),
];

/// True when data of this type can be handed over as bytes.
pub fn has_bytes(dtype: DType) -> bool {
    dtype != DType::String && TYPES.iter().any(|(d, _)| *d == dtype)
}

/// Bytes that ONNX Runtime reads where they are.
enum Data {
    Shared(Bytes),
    Own(Vec<u64>),
    None,
}

impl Data {
    /// Aligned as every element type needs it.
    fn of(t: &Tensor) -> Data {
        match t.packed() {
            Some(b) if b.as_ptr().align_offset(8) == 0 => Data::Shared(b.clone()),
            _ => {
                let raw = t.raw();
                let mut own = vec![0u64; raw.len().div_ceil(8)];
                bytemuck::cast_slice_mut::<u64, u8>(&mut own)[..raw.len()].copy_from_slice(&raw);
                Data::Own(own)
            }
        }
    }

    fn as_ptr(&self) -> *const u8 {
        match self {
            Data::Shared(b) => b.as_ptr(),
            Data::Own(v) => v.as_ptr().cast(),
            Data::None => ptr::null(),
        }
    }
}

/// A value of ONNX Runtime over the bytes of a tensor, which it must not outlive: both are kept here.
pub struct Lent {
    // Dropped before the data that it points to.
    value: std::sync::Arc<DynValue>,
    _data: Data,
}

impl Lent {
    /// Lends a tensor.
    ///
    /// # Errors
    /// When ONNX Runtime has no such type, or a string is not UTF-8.
    pub fn new(t: &Tensor) -> Result<Lent> {
        let (_, element) = TYPES
            .iter()
            .find(|(d, _)| *d == t.dtype())
            .with_context(|| format!("{} is no type of ONNX Runtime here", t.dtype().as_str_name()))?;
        let dims: Vec<i64> = t.dims().iter().map(|&d| d as i64).collect();
        if *element == Element::String {
            let (value, data) = (strings(t, dims)?, Data::None);
            return Ok(Lent {
                value: value.into(),
                _data: data,
            });
        }
        let data = Data::of(t);
        let memory = MemoryInfo::default();
        let mut out = ptr::null_mut();
        // SAFETY: the pointer is valid for `byte_len` bytes as long as `data` lives, which is as long as the value. ONNX
        // Runtime only reads feeds and initializers.
        let value = unsafe {
            let status = (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                data.as_ptr().cast_mut().cast(),
                t.byte_len(),
                dims.as_ptr(),
                dims.len(),
                (*element).into(),
                &mut out,
            );
            ort::Error::result_from_status(status)?;
            let out = ptr::NonNull::new(out).context("no tensor was made")?;
            DynValue::from_ptr(out, Some(&ort::memory::Allocator::default()))
        };
        Ok(Lent {
            value: value.into(),
            _data: data,
        })
    }

    /// The value, for a session that is dropped before this.
    pub fn value(&self) -> std::sync::Arc<DynValue> {
        self.value.clone()
    }
}

fn strings(t: &Tensor, dims: Vec<i64>) -> Result<DynValue> {
    let text = |b: &Bytes| String::from_utf8(b.to_vec()).context("a string is not UTF-8");
    let all: Vec<String> = t.proto().string_data.iter().map(text).collect::<Result<_>>()?;
    Ok(OrtTensor::from_string_array((dims, &*all))?.into_dyn())
}

/// Runs a session on feeds by name and gives the outputs.
///
/// # Errors
/// When ONNX Runtime fails, or an output is no tensor of a known type.
pub fn run(session: &Session, feeds: &[(&CString, Lent)], outputs: &[CString]) -> Result<Vec<Tensor>> {
    let names: Vec<_> = feeds.iter().map(|(n, _)| n.as_ptr()).collect();
    let values: Vec<_> = feeds.iter().map(|(_, v)| v.value.ptr()).collect();
    let wanted: Vec<_> = outputs.iter().map(|n| n.as_ptr()).collect();
    let mut given = vec![ptr::null_mut(); wanted.len()];
    // SAFETY: every array is as long as it is said to be, and names and feeds live until the call returns. The crate asks
    // for a `&mut Session` here; ONNX Runtime documents concurrent calls of `Run` on one session as allowed
    // (inference_session.h: "Multiple threads are allowed to run this function; hence its thread-safe"), and there is only
    // the CPU's execution provider.
    let given: Vec<Option<DynValue>> = unsafe {
        let status = (ort::api().Run)(
            session.ptr().cast_mut(),
            ptr::null(),
            names.as_ptr(),
            values.as_ptr(),
            values.len(),
            wanted.as_ptr(),
            wanted.len(),
            given.as_mut_ptr(),
        );
        ort::Error::result_from_status(status)?;
        let owned = |p| Some(DynValue::from_ptr(ptr::NonNull::new(p)?, Some(session.allocator())));
        given.into_iter().map(owned).collect()
    };
    let tensor = |(value, name): (Option<DynValue>, &CString)| {
        let named = || format!("output {name:?}");
        copied(value.with_context(named)?).with_context(named)
    };
    given.into_iter().zip(outputs).map(tensor).collect()
}

fn copied(value: DynValue) -> Result<Tensor> {
    let (element, dims) = match value.dtype() {
        ValueType::Tensor { ty, shape, .. } => (*ty, shape.to_vec()),
        other => bail!("is a {other}, not a tensor"),
    };
    let dims: Vec<usize> = dims.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>()?;
    let found = TYPES.iter().find(|(_, e)| *e == element);
    let (dtype, _) = found.with_context(|| format!("has elements of type {element}"))?;
    if *dtype == DType::String {
        let (_, all) = value.try_extract_strings()?;
        let proto = pb::TensorProto {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: Some(DType::String as i32),
            string_data: all.into_iter().map(|s| Bytes::from(s.into_bytes())).collect(),
            ..Default::default()
        };
        return Tensor::from_proto(proto, None);
    }
    let value = value.downcast::<DynTensorValueType>().map_err(|e| anyhow!("{e}"))?;
    ensure!(
        value.memory_info().is_cpu_accessible(),
        "is not in the memory of the CPU"
    );
    let count = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let len = count.and_then(|n| element.byte_size(n)).context("is too large")?;
    let at = value.data_ptr().cast::<u8>();
    // SAFETY: a tensor on the CPU has as many bytes as its type and dimensions say, and lives until the end of this call.
    let raw = match len == 0 || at.is_null() {
        true => Bytes::new(),
        false => Bytes::copy_from_slice(unsafe { std::slice::from_raw_parts(at, len) }),
    };
    Tensor::from_raw(*dtype, &dims, raw)
}
