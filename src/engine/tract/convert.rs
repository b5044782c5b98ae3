//! Tensors in and out of tract.

use crate::ir::{DType, Tensor, store};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use std::path::Path;
use tract_onnx::data_resolver::ModelDataResolver;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{StringStringEntryProto, TensorProto};
use tract_onnx::prelude::{DatumType, IntoTValue, TValue, Tensor as TractTensor, TractResult};

/// One of our tensors as tract's, in the type that is computed with.
pub fn to_tract(t: &Tensor, dtype: DType) -> Result<TValue> {
    let t = super::prepare::computed(t)?;
    ensure!(
        t.dtype() == dtype,
        "is {}, not {}",
        t.dtype().as_str_name(),
        dtype.as_str_name()
    );
    let dt = datum_type(dtype)?;
    let raw = t.raw();
    let raw: &[u8] = &raw;
    if dtype == DType::Bool {
        let flags: Vec<bool> = raw.iter().map(|b| *b != 0).collect();
        return Ok(TractTensor::from_shape(t.dims(), &flags)?.into_tvalue());
    }
    let mut out = TractTensor::zero_dt(dt, t.dims())?;
    ensure!(
        out.as_bytes().len() == raw.len(),
        "has a size that does not fit its dimensions"
    );
    out.as_bytes_mut().copy_from_slice(raw);
    Ok(out.into_tvalue())
}

/// tract's name of a type.
///
/// # Errors
/// When it has no such type.
pub fn datum_type(dtype: DType) -> Result<DatumType> {
    Ok(match dtype {
        DType::Float => DatumType::F32,
        DType::Double => DatumType::F64,
        DType::Int64 => DatumType::I64,
        DType::Int32 => DatumType::I32,
        DType::Int16 => DatumType::I16,
        DType::Int8 => DatumType::I8,
        DType::Uint64 => DatumType::U64,
        DType::Uint32 => DatumType::U32,
        DType::Uint16 => DatumType::U16,
        DType::Uint8 => DatumType::U8,
        DType::Bool => DatumType::Bool,
        other => bail!("tract has no type {}", other.as_str_name()),
    })
}

/// Larger constants are not copied into the message.
const SMALL: usize = 1 << 14;

/// Large constants beside the message: tract asks for them, one by one, as if they were in files, whose offset is their number here. It
/// makes tensors of its own; with copies in the message weights would be in memory three times.
#[derive(Default)]
pub struct Beside(Vec<Tensor>);

/// The folder of these files. It is looked for, and none of it is read.
pub const FOLDER: &str = "/";

impl ModelDataResolver for Beside {
    fn read_bytes_from_path(&self, to: &mut Vec<u8>, _: &Path, offset: usize, _: Option<usize>) -> TractResult<()> {
        let t = self.0.get(offset).context("no such tensor")?;
        let raw = t.raw();
        to.extend_from_slice(&raw);
        store::release(&raw);
        Ok(())
    }
}

impl Beside {
    /// A constant as a message, which refers to here when it is large.
    ///
    /// # Errors
    /// When tract has no such type.
    pub fn message(&mut self, name: String, t: Tensor) -> Result<TensorProto> {
        let mut proto = TensorProto {
            name,
            dims: t.dims().iter().map(|&d| d as i64).collect(),
            data_type: t.dtype() as i32,
            ..Default::default()
        };
        if t.dtype() == DType::String {
            proto.string_data = t.proto().string_data.iter().map(|s| s.to_vec()).collect();
            return Ok(proto);
        }
        datum_type(t.dtype()).with_context(|| format!("initializer {:?}", proto.name))?;
        let raw = t.raw();
        if raw.len() <= SMALL {
            proto.raw_data = raw.into_owned();
            return Ok(proto);
        }
        drop(raw);
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
        proto.data_location = Some(DataLocation::External as i32);
        proto.external_data = vec![entry("location", ".".into()), entry("offset", self.0.len().to_string())];
        self.0.push(t);
        Ok(proto)
    }
}

struct Held(TValue);
impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A tract tensor as one of ours, of type `want` where it is known and tract used another integer or float type.
pub fn from_tract(t: TValue, want: Option<DType>) -> Result<Tensor> {
    let natural = match t.datum_type().unquantized() {
        DatumType::F16 => return from_tract(cast(&t, DatumType::F32)?, want),
        DatumType::TDim => return from_tract(cast(&t, DatumType::I64)?, want),
        DatumType::F32 => DType::Float,
        DatumType::F64 => DType::Double,
        DatumType::I64 => DType::Int64,
        DatumType::I32 => DType::Int32,
        DatumType::I16 => DType::Int16,
        DatumType::I8 => DType::Int8,
        DatumType::U64 => DType::Uint64,
        DatumType::U32 => DType::Uint32,
        DatumType::U16 => DType::Uint16,
        DatumType::U8 => DType::Uint8,
        DatumType::Bool => DType::Bool,
        other => bail!("tract gave a value of type {other:?}"),
    };
    if let Some(want) = want.filter(|w| *w != natural) {
        match (natural, want) {
            (DType::Float, DType::Float16 | DType::Bfloat16) => return rounded(&from_tract(t, None)?, want),
            (DType::Float, DType::Double) | (DType::Double, DType::Float) => {
                return from_tract(cast(&t, datum_type(want)?)?, None);
            }
            (DType::Float | DType::Double | DType::Bool, _) | (_, DType::Float | DType::Double | DType::Bool) => {}
            _ if datum_type(want).is_ok() => return from_tract(cast(&t, datum_type(want)?)?, None),
            _ => {}
        }
    }
    ensure!(t.is_plain_ram(), "tract gave a value that is no plain tensor");
    let dims = t.shape().to_vec();
    Tensor::from_raw(natural, &dims, Bytes::from_owner(Held(t)))
}

fn cast(t: &TValue, to: DatumType) -> Result<TValue> {
    Ok(t.cast_to_dt(to)?.into_owned().into_tvalue())
}

/// A float tensor rounded to a 16-bit type.
fn rounded(t: &Tensor, to: DType) -> Result<Tensor> {
    let x = t.floats().context("float data")?;
    Ok(match to {
        DType::Float16 => Tensor::new(t.dims(), x.iter().map(|&x| half::f16::from_f32(x)).collect()),
        _ => Tensor::new(t.dims(), x.iter().map(|&x| half::bf16::from_f32(x)).collect()),
    })
}
