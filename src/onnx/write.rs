//! Writing: into a temporary file in the target's folder, renamed over the target only when the caller commits.

use super::encode;
use super::sink::Sink;
use super::strip::stripped;
use super::temp::Temp;
use crate::ir::{Model, Tensor, store::stream};
use crate::pb;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prost::Message;
use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Tensors smaller than this stay inside the model when data go to an external file.
const EXTERNAL_FROM: usize = 1024;
/// So do smaller tensors in attributes (of `Constant`): fewer runtimes look for those outside.
const ATTRIBUTE_FROM: usize = 1 << 20;
/// External data start at multiples of this, so that runtimes can map them.
const ALIGN: u64 = 4096;
/// Where protobuf messages end.
const MESSAGE: usize = i32::MAX as usize;
/// Above this, well below that end, data go to an external file.
const INLINE_UP_TO: usize = 1_900_000_000;

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// Put the data beside the model, into `<name>.data`, even when they are small. Models that came with external data
    /// are written so in any case.
    pub external_data: bool,
    /// Models of more bytes are written with external data in any case.
    pub inline_up_to: usize,
    /// Short names inside, and nothing that no runtime reads ([`stripped`]).
    pub short_names: bool,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions {
            external_data: false,
            inline_up_to: INLINE_UP_TO,
            short_names: false,
        }
    }
}

/// A model that was written in full, but not yet put in its place. Dropping it removes the temporary files.
pub struct Staged {
    model: Temp,
    data: Option<(Temp, PathBuf)>,
    target: PathBuf,
    size: u64,
}

impl Staged {
    /// Bytes of the model and its external data.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Renames the files into place; an existing target is replaced in one step.
    ///
    /// # Errors
    /// When the file system refuses; the target is then as it was.
    pub fn commit(self) -> Result<()> {
        if let Some((data, path)) = self.data {
            data.persist(&path)?;
        }
        self.model.persist(&self.target)
    }
}

/// The folder that a path lies in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Finds out early that a target cannot be written.
///
/// # Errors
/// When the target is a folder, or its folder does not exist.
pub fn check_target(target: &Path) -> Result<()> {
    ensure!(!target.is_dir(), "{} is a folder; name a file", target.display());
    let folder = folder_of(target);
    ensure!(
        folder.is_dir(),
        "{}: there is no folder {}",
        target.display(),
        folder.display()
    );
    Ok(())
}

/// Bytes of a model file and the external data that it uses.
///
/// # Errors
/// When the file is gone.
pub fn size_on_disk(path: &Path, model: &Model) -> Result<u64> {
    let external = |v: &crate::ir::Value| Some(v.tensor()?.external()?.len() as u64);
    let outside: u64 = model.values().filter_map(|(_, v)| external(v)).sum();
    let meta = path.metadata().with_context(|| format!("{}", path.display()))?;
    Ok(meta.len() + outside)
}

/// Writes a model beside its target, to be committed later.
///
/// # Errors
/// When the folder cannot be written to, or the graph has a cycle.
pub fn write(model: &Model, target: &Path, options: WriteOptions) -> Result<Staged> {
    let mut proto = encode(&as_written(model, options))?;
    let folder = folder_of(target);
    let any_external = model
        .values()
        .any(|(_, v)| v.tensor().is_some_and(|t| t.external().is_some()));
    let outside = options.external_data || any_external || proto.encoded_len() > options.inline_up_to;
    let mut data = None;
    if outside {
        let name = format!("{}.data", target.file_name().unwrap_or_default().to_string_lossy());
        let mut temp = Temp::new_in(folder)?;
        move_data_out(&mut proto, &name, temp.file())?;
        data = Some((temp, folder.join(name)));
    }
    ensure!(
        proto.encoded_len() <= MESSAGE,
        "the model is larger than 2 GiB even without its tensors: no runtime could read it"
    );
    let mut temp = Temp::new_in(folder)?;
    let mut sink = Sink::new(temp.file());
    proto.encode(&mut sink).context("the model cannot be encoded")?;
    sink.finish().with_context(|| format!("{}", target.display()))?;
    let mut size = temp.len()?;
    if let Some((d, _)) = &mut data {
        size += d.len()?;
    }
    Ok(Staged {
        model: temp,
        data,
        target: target.to_owned(),
        size,
    })
}

/// The model that is written.
fn as_written(model: &Model, options: WriteOptions) -> Cow<'_, Model> {
    match options.short_names {
        true => Cow::Owned(stripped(model)),
        false => Cow::Borrowed(model),
    }
}

/// How many bytes a model has when it is written so, with all data inside.
///
/// # Errors
/// When the graph has a cycle.
pub fn written_len(model: &Model, options: WriteOptions) -> Result<u64> {
    encoded_len(&as_written(model, options))
}

/// The bytes of a model with all data inside.
///
/// # Errors
/// When the graph has a cycle.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>> {
    Ok(encode(model)?.encode_to_vec())
}

/// Writes the bytes of [`to_bytes`], of a model of any size, without a copy of the weights.
///
/// # Errors
/// When the graph has a cycle, or `out` refuses.
pub fn stream_to(model: &Model, out: impl Write) -> Result<()> {
    let mut sink = Sink::new(out);
    encode(model)?
        .encode(&mut sink)
        .context("the model cannot be encoded")?;
    sink.finish()?;
    Ok(())
}

/// The length of [`to_bytes`].
///
/// # Errors
/// When the graph has a cycle.
pub fn encoded_len(model: &Model) -> Result<u64> {
    Ok(encode(model)?.encoded_len() as u64)
}

fn move_data_out(proto: &mut pb::ModelProto, name: &str, file: &mut File) -> Result<()> {
    let mut out = std::io::BufWriter::new(file);
    let mut at = 0u64;
    for_each_tensor(proto, &mut |t, least| {
        let Some(data) = take_data(t, least) else {
            return Ok(());
        };
        let start = at.next_multiple_of(ALIGN);
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), start - at), &mut out)?;
        stream(&data, |chunk| out.write_all(chunk))?;
        at = start + data.len() as u64;
        let entry = |key: &str, value: String| pb::StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value),
        };
        t.data_location = Some(pb::tensor_proto::DataLocation::External as i32);
        t.external_data = vec![
            entry("location", name.to_owned()),
            entry("offset", start.to_string()),
            entry("length", data.len().to_string()),
        ];
        Ok(())
    })?;
    out.flush()?;
    Ok(())
}

/// The data of a tensor with at least so many bytes of them; raw or typed, the message then has none. Strings stay.
fn take_data(t: &mut pb::TensorProto, least: usize) -> Option<Bytes> {
    if t.raw_data.is_some() {
        return t.raw_data.take_if(|d| d.len() >= least);
    }
    let typed =
        t.float_data.len() + t.int32_data.len() + t.int64_data.len() + t.double_data.len() + t.uint64_data.len();
    if typed == 0 || typed.saturating_mul(16) < least {
        return None; // no element has more than 16 bytes
    }
    let whole = Tensor::from_proto(t.clone(), None).ok()?;
    let data = Bytes::from(whole.raw().into_owned());
    if data.len() < least {
        return None;
    }
    (t.float_data, t.int32_data, t.int64_data) = Default::default();
    (t.double_data, t.uint64_data) = Default::default();
    Some(data)
}

type OnTensor<'a> = &'a mut dyn FnMut(&mut pb::TensorProto, usize) -> Result<()>;

/// Calls `f` with every initializer and tensor attribute, and with the bytes from which it goes outside.
fn for_each_tensor(proto: &mut pb::ModelProto, f: OnTensor) -> Result<()> {
    fn graph(g: &mut pb::GraphProto, f: OnTensor) -> Result<()> {
        for t in &mut g.initializer {
            f(t, EXTERNAL_FROM)?;
        }
        nodes(&mut g.node, f)
    }
    fn nodes(all: &mut [pb::NodeProto], f: OnTensor) -> Result<()> {
        for a in all.iter_mut().flat_map(|n| &mut n.attribute) {
            for t in a.t.iter_mut().chain(&mut a.tensors) {
                f(t, ATTRIBUTE_FROM)?;
            }
            for sub in a.g.iter_mut().chain(&mut a.graphs) {
                graph(sub, f)?;
            }
        }
        Ok(())
    }
    for function in &mut proto.functions {
        nodes(&mut function.node, f)?;
    }
    proto.graph.as_mut().map_or(Ok(()), |g| graph(g, f))
}
