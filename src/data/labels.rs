//! The right class of every sample: an array `labels` of whole numbers in the `.npz`, or a file `labels.npy` beside the data.

use super::npz;
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// The key in an archive, and the name of a file.
pub const NAME: &str = "labels";

/// The labels that belong to the data at `path`.
///
/// # Errors
/// When there are none, or they are not one class number for each of the `count` samples.
pub fn read(path: &Path, count: usize) -> Result<Vec<i64>> {
    let within = match path.extension().is_some_and(|e| e == "npz") {
        true => npz::integers_in(path, NAME)?,
        false => None,
    };
    let labels = match within {
        Some(labels) => labels,
        None => npz::integers(&beside(path))?,
    };
    let n = labels.len();
    ensure!(n == count, "there are {n} labels for {count} samples");
    Ok(labels)
}

/// The file of labels that belongs to a file or a folder of data.
pub fn beside(path: &Path) -> PathBuf {
    let folder = if path.is_dir() {
        path
    } else {
        crate::onnx::folder_of(path)
    };
    folder.join(NAME).with_extension("npy")
}
