//! Large typed data (`float_data`, `int64_data`, …) of large files as raw bytes.
//!
//! Decoding a message copies its typed fields to the heap, all of them at once, eight bytes for an `int64` that took one. A
//! model whose weights are typed would be in memory as a whole before the first pass begins. So the messages down to the
//! tensors are walked here, and a large tensor is read by itself: packed floats and doubles are raw bytes already (both are
//! little endian) and stay in the mapped file; packed integers are unpacked in one sweep, and lie where
//! [`store`](crate::ir::store) puts data. The tensor is the same, and is written as `raw_data`.
//!
//! Small files, small tensors and typed data that are not packed are decoded as they are and written back unchanged.
//!
//! Source: the Protocol Buffers encoding specification. A field of a message may come in several parts: they are merged,
//! field by field, as the decoder does it.

use crate::ir::{DType, bits, store};
use crate::pb;
use anyhow::{Context, Result, ensure};
use bytes::{Buf, Bytes};
use prost::Message;

/// Files up to so many bytes are decoded in one go.
const LARGE_FILE: usize = 64 << 20;
/// The bytes of a message from which a tensor is looked at by itself.
const LARGE_TENSOR: usize = 1 << 20;
/// Messages within messages, as the decoder has it.
const DEPTH: usize = 100;

/// The message of a model file.
///
/// # Errors
/// When it is cut short or no such message.
pub fn decode(bytes: Bytes) -> Result<pb::ModelProto> {
    if bytes.len() <= LARGE_FILE {
        return Ok(pb::ModelProto::decode(bytes)?);
    }
    walked(bytes)
}

fn walked(bytes: Bytes) -> Result<pb::ModelProto> {
    let mut model = pb::ModelProto::default();
    fields(bytes, &mut model, |model, field| match field.tag {
        7 => graph(field.inner()?, model.graph.get_or_insert_default(), 0).map(Some),
        _ => Ok(None),
    })?;
    Ok(model)
}

fn graph(bytes: Bytes, to: &mut pb::GraphProto, depth: usize) -> Result<()> {
    ensure!(depth < DEPTH, "graphs within graphs, {DEPTH} deep");
    fields(bytes, to, |g, field| match field.tag {
        1 => {
            g.node.push(node(field.inner()?, depth)?);
            Ok(Some(()))
        }
        5 => {
            g.initializer.push(tensor(field.inner()?)?);
            Ok(Some(()))
        }
        _ => Ok(None),
    })
}

fn node(bytes: Bytes, depth: usize) -> Result<pb::NodeProto> {
    let mut node = pb::NodeProto::default();
    fields(bytes, &mut node, |n, field| {
        if field.tag != 5 {
            return Ok(None);
        }
        n.attribute.push(attribute(field.inner()?, depth)?);
        Ok(Some(()))
    })?;
    Ok(node)
}

fn attribute(bytes: Bytes, depth: usize) -> Result<pb::AttributeProto> {
    let mut attribute = pb::AttributeProto::default();
    fields(bytes, &mut attribute, |a, field| match field.tag {
        5 if a.t.is_none() => {
            a.t = Some(tensor(field.inner()?)?);
            Ok(Some(()))
        }
        6 => graph(field.inner()?, a.g.get_or_insert_default(), depth + 1).map(Some),
        10 => {
            a.tensors.push(tensor(field.inner()?)?);
            Ok(Some(()))
        }
        11 => {
            let mut g = pb::GraphProto::default();
            graph(field.inner()?, &mut g, depth + 1)?;
            a.graphs.push(g);
            Ok(Some(()))
        }
        _ => Ok(None),
    })?;
    Ok(attribute)
}

/// One field: the whole of it, and where its content begins.
struct Field {
    tag: u64,
    wire: u64,
    whole: Bytes,
    content: usize,
}

impl Field {
    /// The content of a field that has a length.
    fn inner(&self) -> Result<Bytes> {
        ensure!(self.wire == 2, "field {} has wire type {}", self.tag, self.wire);
        Ok(self.whole.slice(self.content..))
    }
}

/// Takes a message apart; what `f` does not take (`None`) is merged into the message as it is.
fn fields<M: Message>(
    mut bytes: Bytes,
    to: &mut M,
    mut f: impl FnMut(&mut M, &Field) -> Result<Option<()>>,
) -> Result<()> {
    while !bytes.is_empty() {
        let field = next(&mut bytes)?;
        if f(to, &field)?.is_none() {
            to.merge(field.whole)?;
        }
    }
    Ok(())
}

fn next(bytes: &mut Bytes) -> Result<Field> {
    let mut rest = bytes.clone();
    let key = varint(&mut rest)?;
    let (tag, wire) = (key >> 3, key & 7);
    let mut content = bytes.len() - rest.len();
    let len = match wire {
        0 => {
            varint(&mut rest)?;
            bytes.len() - rest.len() - content
        }
        1 => 8,
        2 => {
            let len = varint(&mut rest)?;
            content = bytes.len() - rest.len();
            usize::try_from(len)?
        }
        5 => 4,
        // Groups are not used by ONNX; the decoder says what it thinks of the rest.
        _ => rest.len(),
    };
    let end = content.checked_add(len).filter(|end| *end <= bytes.len());
    let whole = bytes.split_to(end.context("a field is longer than the message")?);
    Ok(Field {
        tag,
        wire,
        whole,
        content,
    })
}

fn varint(bytes: &mut impl Buf) -> Result<u64> {
    let mut x = 0u64;
    for i in 0..10 {
        let byte = bytes.try_get_u8().context("a number is cut short")?;
        x |= u64::from(byte & 0x7f) << (7 * i).min(63);
        if byte < 0x80 {
            return Ok(x);
        }
    }
    anyhow::bail!("a number has more than ten bytes")
}

/// The fields of a tensor that hold data.
const TYPED: [u64; 5] = [4, 5, 7, 10, 11];

fn tensor(bytes: Bytes) -> Result<pb::TensorProto> {
    if bytes.len() >= LARGE_TENSOR
        && let Some(t) = raw(bytes.clone())?
    {
        return Ok(t);
    }
    Ok(pb::TensorProto::decode(bytes)?)
}

/// The tensor with raw data; `None` where it is not packed typed data in one piece and nothing else.
fn raw(bytes: Bytes) -> Result<Option<pb::TensorProto>> {
    let mut t = pb::TensorProto::default();
    let mut data: Vec<(u64, Bytes)> = Vec::new();
    let mut odd = false;
    fields(bytes, &mut t, |_, field| {
        if !TYPED.contains(&field.tag) {
            return Ok(None);
        }
        odd |= field.wire != 2;
        data.push((field.tag, field.whole.slice(field.content..)));
        Ok(Some(()))
    })?;
    let [(tag, data)] = data.as_slice() else {
        return Ok(None);
    };
    if odd || t.raw_data.is_some() || t.segment.is_some() || !t.string_data.is_empty() || !t.external_data.is_empty() {
        return Ok(None);
    }
    let raw = match (tag, DType::try_from(t.data_type()).unwrap_or_default()) {
        (4, DType::Float | DType::Complex64) | (10, DType::Double | DType::Complex128) => data.clone(),
        (7, DType::Int64) | (11, DType::Uint64) => unpacked(data, 8)?,
        (5, DType::Int32) | (11, DType::Uint32) => unpacked(data, 4)?,
        (5, d) => match bits(d) {
            Some(bits @ (8 | 16)) => unpacked(data, bits / 8)?,
            _ => return Ok(None), // several elements share a number
        },
        _ => return Ok(None),
    };
    t.raw_data = Some(raw);
    Ok(Some(t))
}

/// The low bytes of each number.
fn unpacked(data: &Bytes, width: usize) -> Result<Bytes> {
    let mut numbers = 0usize;
    let counted = store::stream(data, |chunk| {
        numbers += chunk.iter().filter(|b| **b < 0x80).count();
        Ok::<(), std::convert::Infallible>(())
    });
    let Ok(()) = counted;
    let mut out: Vec<u8> = Vec::with_capacity(numbers.checked_mul(width).context("too many numbers")?);
    let mut rest = data.clone();
    let mut released = 0;
    while rest.has_remaining() {
        out.extend_from_slice(&varint(&mut rest)?.to_le_bytes()[..width]);
        let read = data.len() - rest.len();
        if read - released >= store::CHUNK {
            store::release(&data[released..read]);
            released = read;
        }
    }
    store::release(&data[released..]);
    Ok(store::keep(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Tensor;

    fn typed(dtype: DType, n: usize) -> pb::TensorProto {
        let number = |i: usize| (i as i64 - 300_000) * 1_000_003;
        let mut t = pb::TensorProto {
            dims: vec![n as i64],
            data_type: Some(dtype as i32),
            name: Some("w".into()),
            ..Default::default()
        };
        match dtype {
            DType::Float => t.float_data = (0..n).map(|i| number(i) as f32).collect(),
            DType::Double => t.double_data = (0..n).map(|i| number(i) as f64).collect(),
            DType::Int64 => t.int64_data = (0..n).map(number).collect(),
            DType::Uint64 | DType::Uint32 => t.uint64_data = (0..n as u64).collect(),
            DType::Int32 => t.int32_data = (0..n).map(|i| i as i32 - 300_000).collect(),
            DType::Int8 => t.int32_data = (0..n).map(|i| (i % 256) as i32 - 128).collect(),
            _ => t.int32_data = (0..n).map(|i| (i % 65_536) as i32).collect(),
        }
        t
    }

    #[test]
    fn large_typed_data_are_the_same_numbers_as_raw_bytes() {
        use DType::*;
        for dtype in [Float, Double, Int64, Uint64, Uint32, Int32, Int8, Uint16, Float16] {
            let proto = typed(dtype, 600_000);
            let read = tensor(proto.encode_to_vec().into()).expect("a tensor");
            assert!(read.raw_data.is_some(), "{dtype:?}");
            assert_eq!(read.name(), "w");
            let (a, b) = (Tensor::from_proto(proto, None), Tensor::from_proto(read, None));
            assert!(a.expect("typed").same_data(&b.expect("raw")), "{dtype:?}");
        }
    }

    #[test]
    fn a_walked_model_is_the_decoded_one() {
        let attribute = pb::AttributeProto {
            name: Some("value".into()),
            t: Some(typed(DType::Float, 10)),
            g: Some(pb::GraphProto {
                initializer: vec![typed(DType::Int64, 5)],
                doc_string: Some("inner".into()),
                ..Default::default()
            }),
            ints: vec![1, -2, 3],
            ..Default::default()
        };
        let node = pb::NodeProto {
            op_type: Some("Constant".into()),
            attribute: vec![attribute],
            ..Default::default()
        };
        let model = pb::ModelProto {
            ir_version: Some(8),
            producer_name: Some("p".into()),
            graph: Some(pb::GraphProto {
                node: vec![node],
                initializer: vec![typed(DType::Uint32, 7)],
                ..Default::default()
            }),
            ..Default::default()
        };
        let bytes = model.encode_to_vec();
        assert_eq!(walked(bytes.clone().into()).expect("a model"), model);
        for n in 0..bytes.len() {
            let (a, b) = (walked(bytes[..n].to_vec().into()), pb::ModelProto::decode(&bytes[..n]));
            assert_eq!(a.ok(), b.ok(), "cut after {n} bytes");
        }
    }

    #[test]
    fn data_in_several_parts_are_left_to_the_decoder() {
        let half = typed(DType::Float, 300_000);
        let both = [half.encode_to_vec(), half.encode_to_vec()].concat();
        let read = tensor(both.into()).expect("a tensor");
        assert_eq!((read.float_data.len(), read.raw_data), (600_000, None));
    }
}
