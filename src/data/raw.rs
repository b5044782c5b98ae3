//! Raw numbers: `.bin` files of little-endian elements in the input's type and shape, one sample a file.
//!
//! A model with one input takes the `.bin` files of a folder, sorted by path, or one file with sample after sample. With several inputs the
//! folder holds a folder for each, named as the input is (every character other than letters, digits, `.`, `-` and `_` as `_`), with
//! equally many files. A batch axis that may vary is 1; one other axis that may vary follows from the length of the file.

use super::folder::files;
use super::{InputSpec, Sample, Source};
use crate::ir::{DType, Tensor, bits};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How such files end.
pub const ENDINGS: &[&str] = &["bin"];
/// A sample of more bytes is refused.
const MOST: usize = 1 << 32;

/// A part of a file.
struct Piece {
    file: PathBuf,
    at: u64,
    len: usize,
}

/// Raw samples.
pub struct Raw {
    inputs: Vec<(InputSpec, Vec<Piece>)>,
    len: usize,
}

impl Raw {
    /// The samples below a folder, or in one file.
    ///
    /// # Errors
    /// When an input has no folder, folders disagree in the number of files, or a file has not the length of a sample.
    pub fn open(path: &Path, specs: &[InputSpec]) -> Result<Raw> {
        let mut inputs = Vec::new();
        for spec in specs {
            let from = match specs.len() {
                1 => path.to_owned(),
                _ => path.join(folder_name(&spec.name)),
            };
            ensure!(
                specs.len() == 1 || from.is_dir(),
                "{}: the model has {} inputs, and there is no folder {:?} with the .bin files of input {:?}",
                path.display(),
                specs.len(),
                folder_name(&spec.name),
                spec.name
            );
            let mut pieces = Vec::new();
            let all = files(&from, ENDINGS)?;
            for file in all {
                pieces.extend(cut(&file, spec, !from.is_dir()).with_context(|| format!("{}", file.display()))?);
            }
            inputs.push((spec.clone(), pieces));
        }
        let len = inputs.first().map_or(0, |(_, p)| p.len());
        for (spec, pieces) in &inputs {
            let n = pieces.len();
            ensure!(
                n == len,
                "{}: input {:?} has {n} files, {:?} has {len}",
                path.display(),
                spec.name,
                inputs[0].0.name
            );
        }
        Ok(Raw { inputs, len })
    }
}

/// The folder of an input.
fn folder_name(input: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let name: String = input.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    // "." and ".." are no names.
    if name.chars().all(|c| c == '.') {
        "_".repeat(name.len().max(1))
    } else {
        name
    }
}

/// The samples of a file: one, or as many as fit when it is the only file.
fn cut(file: &Path, spec: &InputSpec, many: bool) -> Result<Vec<Piece>> {
    let all = usize::try_from(file.metadata()?.len())?;
    let piece = |at: usize, len: usize| Piece {
        file: file.to_owned(),
        at: at as u64,
        len,
    };
    let known = dims(spec, None).map(|d| bytes_of(spec, &d)).transpose()?;
    match known {
        Some(one) if many && one > 0 && all > 0 && all.is_multiple_of(one) => {
            Ok((0..all / one).map(|i| piece(i * one, one)).collect())
        }
        Some(one) => {
            ensure!(
                all == one,
                "input {:?} is {}, {one} bytes for a sample, but there are {all}",
                spec.name,
                spec.describe()
            );
            Ok(vec![piece(0, all)])
        }
        None => Ok(vec![piece(0, all)]),
    }
}

/// The dimensions of a sample: axes that vary are 1, or follow from the number of elements.
fn dims(spec: &InputSpec, elements: Option<usize>) -> Option<Vec<usize>> {
    let declared = spec.dims.as_ref()?;
    let first_is_batch = |(i, d): (usize, &Option<usize>)| if i == 0 { Some(d.unwrap_or(1)) } else { *d };
    let dims: Vec<Option<usize>> = declared.iter().enumerate().map(first_is_batch).collect();
    let product = dims.iter().flatten().try_fold(1usize, |n, d| n.checked_mul(*d))?;
    match dims.iter().filter(|d| d.is_none()).count() {
        0 => dims.into_iter().collect(),
        1 => {
            let left = elements?.checked_div(product)?;
            Some(dims.into_iter().map(|d| d.unwrap_or(left)).collect())
        }
        _ => None,
    }
}

fn width(spec: &InputSpec) -> Result<usize> {
    match bits(spec.dtype) {
        Some(b) if b % 8 == 0 && spec.dtype != DType::Undefined => Ok(b / 8),
        _ => bail!(
            "input {:?} is {}: raw numbers need a type of whole bytes",
            spec.name,
            spec.describe()
        ),
    }
}

fn bytes_of(spec: &InputSpec, dims: &[usize]) -> Result<usize> {
    let n = dims.iter().try_fold(width(spec)?, |n, d| n.checked_mul(*d));
    n.filter(|n| *n <= MOST).context("a sample would be too large")
}

impl Source for Raw {
    fn len(&self) -> usize {
        self.len
    }
    fn read(&self, i: usize) -> Result<Sample> {
        let one = |(spec, pieces): &(InputSpec, Vec<Piece>)| -> Result<(String, Tensor)> {
            let piece = &pieces[i];
            let named = || format!("{}", piece.file.display());
            ensure!(piece.len <= MOST, "{}: {} bytes are too many", named(), piece.len);
            let dims = dims(spec, Some(piece.len / width(spec)?)).with_context(|| {
                format!(
                    "input {:?} is {}: with several axes that vary, raw numbers do not say their shape; save an .npy or .npz",
                    spec.name,
                    spec.describe()
                )
            });
            let dims = dims.with_context(named)?;
            ensure!(
                bytes_of(spec, &dims)? == piece.len,
                "{}: {} bytes do not fill {}",
                named(),
                piece.len,
                spec.describe()
            );
            let mut file = File::open(&piece.file).with_context(named)?;
            file.seek(SeekFrom::Start(piece.at)).with_context(named)?;
            let mut data = vec![0; piece.len];
            file.read_exact(&mut data).with_context(named)?;
            let t = Tensor::from_raw(spec.dtype, &dims, Bytes::from(data)).with_context(named)?;
            Ok((spec.name.clone(), t))
        };
        self.inputs.iter().map(one).collect()
    }
}
