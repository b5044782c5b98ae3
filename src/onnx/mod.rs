//! ONNX files: reading without a copy of the weights, writing so that nothing is ever lost.

mod decode;
mod encode;
mod external;
mod names;
mod sink;
mod strip;
pub(crate) mod temp;
mod typed;
mod write;

pub use decode::{decode, default_domain};
pub use encode::encode;
pub use external::{External, map_file};
pub use strip::stripped;
pub use write::{
    Staged, WriteOptions, check_target, encoded_len, folder_of, size_on_disk, stream_to, to_bytes, write, written_len,
};

use crate::ir::Model;
use crate::pb;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
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
    let proto = typed::decode(bytes).context("not an ONNX model (or cut short)")?;
    let graph = proto.graph.as_ref().context("not an ONNX model: it has no graph")?;
    ensure!(!graph.output.is_empty(), "the graph has no outputs");
    check_opsets(&proto)?;
    let model = decode(proto, external)?;
    crate::ir::check::check(&model)?;
    Ok(model)
}

/// IR version 3 made the import of an operator set mandatory; older files mean opset 1.
fn check_opsets(proto: &pb::ModelProto) -> Result<()> {
    let missing = proto.ir_version() >= 3 && proto.opset_import.is_empty();
    ensure!(!missing, "not a valid ONNX model: it imports no operator set");
    let bad = proto.opset_import.iter().find(|o| o.version() < 1);
    let domain = bad.map_or("", |o| o.domain());
    ensure!(
        bad.is_none(),
        "opset {} of domain {domain:?} does not exist",
        bad.map_or(0, |o| o.version())
    );
    Ok(())
}
