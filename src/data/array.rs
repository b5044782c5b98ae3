//! One NumPy array on disk, read slice by slice (NEP 1, "A Simple File Format for NumPy Arrays").

use super::InputSpec;
use crate::ir::{DType, Tensor, bits};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use npyz::{NpyHeader, Order};
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex};

/// Where the elements are.
pub enum Store {
    /// Uncompressed, in a file that several arrays may share; the number is the offset of the first element.
    File(Arc<Mutex<File>>, u64),
    /// In memory.
    Memory(Bytes),
}

/// An array whose first axis counts the samples.
pub struct Array {
    dtype: DType,
    shape: Vec<usize>,
    store: Store,
}

/// The header of an array and the number of bytes that it takes.
pub struct Head {
    dtype: DType,
    shape: Vec<usize>,
    fortran: bool,
    /// Bytes before the first element.
    pub len: u64,
    /// Bytes of all elements.
    pub data_len: usize,
}

impl Head {
    /// Reads the header at the start of a stream.
    ///
    /// # Errors
    /// When it is no `.npy` header, the type has no ONNX counterpart, or the shape overflows.
    pub fn read(mut r: impl Read) -> Result<Head> {
        let bytes = header(&mut r).context("not a NumPy array")?;
        let header = NpyHeader::from_reader(&bytes[..]).context("not a NumPy array")?;
        let len = bytes.len() as u64;
        let descr = header.dtype().descr();
        let dtype = dtype_of(descr.trim_matches(['\'', '"']))?;
        let shape = header
            .shape()
            .iter()
            .map(|&d| usize::try_from(d).ok())
            .collect::<Option<Vec<usize>>>();
        let width = bits(dtype).unwrap_or(8) / 8;
        let shape = shape.context("its shape overflows")?;
        let data_len = shape.iter().try_fold(width, |n, &d| n.checked_mul(d));
        Ok(Head {
            dtype,
            fortran: header.order() == Order::Fortran && shape.len() > 1,
            data_len: data_len.context("its shape overflows")?,
            shape,
            len,
        })
    }
}

/// The bytes before the first element. Headers are Python dictionaries, and nested brackets take a parser of such exponential time:
/// those of plain numbers have one pair of each kind.
fn header(mut r: impl Read) -> Result<Vec<u8>> {
    /// Far beyond the 10,000 bytes that NumPy itself reads.
    const MOST: usize = 1 << 16;
    let mut bytes = vec![0; 8];
    r.read_exact(&mut bytes)?;
    ensure!(bytes.starts_with(b"\x93NUMPY"), "its first bytes are others");
    let mut length = [0; 4];
    let width = if bytes[6] == 1 { 2 } else { 4 };
    r.read_exact(&mut length[..width])?;
    bytes.extend(&length[..width]);
    let (start, length) = (bytes.len(), u32::from_le_bytes(length) as usize);
    ensure!(length <= MOST, "its header takes {length} bytes");
    bytes.resize(start + length, 0);
    r.read_exact(&mut bytes[start..])?;
    let count = |bracket: u8| bytes[start..].iter().filter(|b| **b == bracket).count();
    ensure!(
        count(b'[') == 0 && count(b'(') <= 1 && count(b'{') <= 1,
        "its elements are records; save numbers"
    );
    Ok(bytes)
}

fn dtype_of(descr: &str) -> Result<DType> {
    Ok(match descr {
        "<f4" => DType::Float,
        "<f8" => DType::Double,
        "<f2" => DType::Float16,
        "<i8" => DType::Int64,
        "<i4" => DType::Int32,
        "<i2" => DType::Int16,
        "|i1" | "<i1" => DType::Int8,
        "<u8" => DType::Uint64,
        "<u4" => DType::Uint32,
        "<u2" => DType::Uint16,
        "|u1" | "<u1" => DType::Uint8,
        "|b1" => DType::Bool,
        d if d.starts_with('>') => bail!("it is big endian ({d}); save it with a.astype(a.dtype.newbyteorder('<'))"),
        d => bail!("its element type {d} is not supported; save numbers"),
    })
}

impl Array {
    /// An array; Fortran order is put into C order, which needs it in memory.
    ///
    /// # Errors
    /// When the data cannot be read.
    pub fn new(head: Head, store: Store) -> Result<Array> {
        let mut array = Array {
            dtype: head.dtype,
            shape: head.shape,
            store,
        };
        if head.fortran {
            let all = array.bytes(0, head.data_len)?;
            let width = bits(array.dtype).unwrap_or(8) / 8;
            array.store = Store::Memory(c_order(&all, &array.shape, width).into());
        }
        Ok(array)
    }

    /// The number of samples: the length of the first axis.
    pub fn len(&self) -> Option<usize> {
        self.shape.first().copied()
    }

    fn bytes(&self, at: usize, len: usize) -> Result<Bytes> {
        match &self.store {
            Store::Memory(all) => {
                let end = at.checked_add(len).filter(|e| *e <= all.len());
                Ok(all.slice(at..end.context("the array is cut short")?))
            }
            Store::File(file, start) => {
                let mut out = vec![0; len];
                let mut file = file.lock().map_err(|_| anyhow::anyhow!("reading was interrupted"))?;
                file.seek(SeekFrom::Start(start + at as u64))?;
                file.read_exact(&mut out).context("the array is cut short")?;
                Ok(out.into())
            }
        }
    }

    /// All elements of a list of whole numbers.
    ///
    /// # Errors
    /// When it has another shape or type, or the data cannot be read.
    pub fn integers(&self) -> Result<Vec<i64>> {
        let n: usize = self.shape.iter().product();
        ensure!(
            self.shape.first() == Some(&n),
            "its shape is {:?}, not one number for each sample",
            self.shape
        );
        let bytes = self.bytes(0, n * (bits(self.dtype).unwrap_or(8) / 8))?;
        let list = Tensor::from_raw(self.dtype, &[n], bytes)?.ints();
        list.with_context(|| {
            format!(
                "it holds {}, not whole numbers",
                self.dtype.as_str_name().to_lowercase()
            )
        })
    }

    /// Sample `i`, shaped and typed for an input: with a batch axis of 1 in front when the input has one axis more.
    ///
    /// # Errors
    /// When the data cannot be read, or cannot be converted without loss of meaning.
    pub fn sample(&self, i: usize, spec: &InputSpec) -> Result<Tensor> {
        let inner = &self.shape[1..];
        let n: usize = inner.iter().product();
        let len = n * (bits(self.dtype).unwrap_or(8) / 8);
        let mut dims = inner.to_vec();
        if spec.dims.as_ref().is_none_or(|d| d.len() == dims.len() + 1) {
            dims.insert(0, 1);
        }
        let t = Tensor::from_raw(self.dtype, &dims, self.bytes(i * len, len)?)?;
        convert(t, spec)
    }
}

/// Widens or narrows floats, and integers where the numbers fit; anything else is the caller's mistake.
fn convert(t: Tensor, spec: &InputSpec) -> Result<Tensor> {
    let want = spec.dtype;
    if t.dtype() == want || want == DType::Undefined {
        return Ok(t);
    }
    let float = |d| matches!(d, DType::Float | DType::Double | DType::Float16);
    let dims = t.dims().to_vec();
    if float(t.dtype()) && float(want) {
        let x = t.to_f32().context("real numbers")?;
        return Ok(match want {
            DType::Float => Tensor::new(&dims, x.into_owned()),
            DType::Double => Tensor::new(&dims, x.iter().map(|&x| f64::from(x)).collect()),
            _ => Tensor::new(&dims, x.iter().map(|&x| half::f16::from_f32(x)).collect()),
        });
    }
    if let (Some(x), DType::Int64 | DType::Int32) = (t.ints(), want) {
        if want == DType::Int64 {
            return Ok(Tensor::new(&dims, x));
        }
        let narrow: Result<Vec<i32>, _> = x.iter().map(|&x| i32::try_from(x)).collect();
        return Ok(Tensor::new(&dims, narrow.context("a number does not fit int32")?));
    }
    let have = t.dtype().as_str_name().to_lowercase();
    bail!(
        "input {:?} is {}, but the array is {have}; save it as the model wants it (preprocessed)",
        spec.name,
        spec.describe()
    )
}

/// Elements of `width` bytes from column-major into row-major order.
fn c_order(data: &[u8], shape: &[usize], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut index = vec![0usize; shape.len()];
    let mut strides = Vec::with_capacity(shape.len());
    let mut s = width;
    for &d in shape {
        strides.push(s);
        s *= d;
    }
    for _ in 0..data.len() / width.max(1) {
        let at: usize = index.iter().zip(&strides).map(|(i, s)| i * s).sum();
        out.extend_from_slice(&data[at..at + width]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

/// A whole array in memory, from its `.npy` bytes.
///
/// # Errors
/// When the header is bad or there are fewer elements than it says.
pub fn in_memory(npy: Bytes) -> Result<Array> {
    let head = Head::read(Cursor::new(&npy))?;
    let start = usize::try_from(head.len)?;
    let end = start.checked_add(head.data_len).filter(|e| *e <= npy.len());
    ensure!(end.is_some(), "the array is cut short");
    let data = npy.slice(start..start + head.data_len);
    Array::new(head, Store::Memory(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_major_becomes_row_major() {
        // [[1,2,3],[4,5,6]] in column-major order
        assert_eq!(c_order(&[1, 4, 2, 5, 3, 6], &[2, 3], 1), [1, 2, 3, 4, 5, 6]);
    }
}
