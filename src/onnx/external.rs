//! Tensor data in files beside the model (ONNX specification, "External Data").
//!
//! A model file is not trusted: a location is a relative path that stays inside the model's folder, also after links are
//! followed, and offset and length must lie inside the file.

use crate::ir::{DType, bits, store};
use crate::pb;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

/// Finds and maps external data below one folder.
pub struct External {
    folder: Option<PathBuf>,
    mapped: RefCell<HashMap<String, Bytes>>,
}

impl External {
    /// Data are looked for below `folder`; without one, a reference to external data is an error.
    pub fn below(folder: Option<PathBuf>) -> External {
        External {
            folder,
            mapped: RefCell::default(),
        }
    }

    /// The data that a tensor refers to; `None` when it keeps its data inside.
    ///
    /// # Errors
    /// When the location leaves the folder, the file cannot be read, or the range lies outside of it.
    pub fn data_of(&self, t: &pb::TensorProto) -> Result<Option<Bytes>> {
        if t.data_location() != pb::tensor_proto::DataLocation::External {
            return Ok(None);
        }
        let entry = |key: &str| t.external_data.iter().find(|e| e.key() == key).map(|e| e.value());
        let number = |key: &str| -> Result<Option<usize>> {
            entry(key)
                .map(|v| {
                    v.parse()
                        .with_context(|| format!("external data: {key} {v:?} is not a number"))
                })
                .transpose()
        };
        let location = entry("location").context("external data without a location")?;
        let file = self.map(location)?;
        let offset = number("offset")?.unwrap_or(0);
        let length = match number("length")? {
            Some(n) => n,
            None => needed(t).unwrap_or(file.len().saturating_sub(offset)),
        };
        let end = offset.checked_add(length).filter(|e| *e <= file.len());
        let Some(end) = end else {
            bail!(
                "external data: {length} bytes at {offset} lie outside of {location:?}, which has {}",
                file.len()
            );
        };
        Ok(Some(file.slice(offset..end)))
    }

    fn map(&self, location: &str) -> Result<Bytes> {
        if let Some(b) = self.mapped.borrow().get(location) {
            return Ok(b.clone());
        }
        let folder = self.folder.as_deref();
        let folder =
            folder.with_context(|| format!("external data {location:?}: the model did not come from a file"))?;
        let path = contained(folder, location)?;
        let bytes = map_file(&path).with_context(|| format!("external data {}", path.display()))?;
        self.mapped.borrow_mut().insert(location.to_owned(), bytes.clone());
        Ok(bytes)
    }
}

fn needed(t: &pb::TensorProto) -> Option<usize> {
    let bits = bits(DType::try_from(t.data_type()).ok()?)?;
    let n = t
        .dims
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))?;
    Some(n.checked_mul(bits)?.div_ceil(8))
}

/// The path of a location below a folder.
fn contained(folder: &Path, location: &str) -> Result<PathBuf> {
    let rel = Path::new(location);
    let plain = !location.is_empty()
        && rel
            .components()
            .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    ensure!(
        plain && !location.contains('\\'),
        "external data location {location:?} leaves the folder of the model; only plain relative paths are read"
    );
    let root = folder
        .canonicalize()
        .with_context(|| format!("folder {}", folder.display()))?;
    let path = root.join(rel);
    let real = path
        .canonicalize()
        .with_context(|| format!("external data {} cannot be read", path.display()))?;
    ensure!(
        real.starts_with(&root),
        "external data location {location:?} is a link that leaves the folder of the model"
    );
    Ok(real)
}

/// Maps a file into memory; an empty file gives no bytes.
///
/// # Errors
/// When it is not a regular file or cannot be opened.
pub fn map_file(path: &Path) -> Result<Bytes> {
    // Looked at before it is opened: opening a named pipe waits for a writer that may never come.
    ensure!(std::fs::metadata(path)?.is_file(), "not a regular file");
    let file = std::fs::File::open(path)?;
    let meta = file.metadata()?;
    ensure!(meta.is_file(), "not a regular file");
    Ok(store::map(&file)?)
}
