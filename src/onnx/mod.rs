//! ONNX files: reading without a copy of the weights, writing so that nothing is ever lost.

mod decode;
mod encode;
mod external;
mod names;
mod sink;
mod write;

pub use decode::{decode, default_domain};
pub use encode::encode;
pub use external::{External, map_file};
pub mod upgrade;
pub use write::{Staged, WriteOptions, check_target, folder_of, size_on_disk, to_bytes, write};

use crate::ir::Model;
use crate::pb;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prost::Message;
use std::path::Path;

/// Reads a model from a file. Weights stay in the mapped file until they are used.
///
/// # Errors
/// When the file cannot be read or is not a valid ONNX model; the message names the file and the node or tensor at fault.
pub fn read(path: &Path) -> Result<Model> {
    let named = || format!("{}", path.display());
    let bytes = map_file(path).with_context(named)?;
    from_bytes(bytes, &External::below(Some(folder_of(path).to_owned()))).with_context(named)
}

/// Reads a model from bytes.
///
/// # Errors
/// As [`read`].
pub fn from_bytes(bytes: Bytes, external: &External) -> Result<Model> {
    ensure!(!bytes.is_empty(), "the file is empty");
    let proto = pb::ModelProto::decode(bytes).context("not an ONNX model (or cut short)")?;
    ensure!(proto.graph.is_some(), "not an ONNX model: it has no graph");
    let model = decode(proto, external)?;
    crate::ir::check::check(&model)?;
    Ok(model)
}
