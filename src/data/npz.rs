//! `.npz` archives and single `.npy` files.

use super::array::{Array, Head, Store, in_memory};
use super::{InputSpec, Sample, Source};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex};
use zip::{CompressionMethod, ZipArchive};

/// Compressed arrays are kept in memory; this is the most that is taken.
const MOST_IN_MEMORY: u64 = 8 << 30;

/// Arrays by input name.
pub struct Npz {
    arrays: Vec<(InputSpec, Array)>,
    len: usize,
}

impl Npz {
    /// Opens an archive; entries that are not named like an input are not looked at.
    ///
    /// # Errors
    /// When an input has no array, or arrays disagree in the number of samples.
    pub fn open(path: &Path, specs: &[InputSpec]) -> Result<Npz> {
        let named = || format!("{}", path.display());
        let file = File::open(path).with_context(named)?;
        let mut zip = ZipArchive::new(BufReader::new(file))
            .context("not an .npz archive")
            .with_context(named)?;
        let names: Vec<String> = zip
            .file_names()
            .filter_map(|n| n.ok().map(|n| n.into_owned()))
            .collect();
        let keys: BTreeMap<&str, &str> = names
            .iter()
            .map(|n| (n.strip_suffix(".npy").unwrap_or(n), n.as_str()))
            .collect();
        let shared = Arc::new(Mutex::new(File::open(path).with_context(named)?));
        let mut arrays = Vec::new();
        for spec in specs {
            let Some(entry) = keys.get(spec.name.as_str()) else {
                let have: Vec<&str> = keys.keys().copied().collect();
                bail!(
                    "{}: there is no array for input {:?}; the keys are: {}",
                    path.display(),
                    spec.name,
                    have.join(", ")
                );
            };
            let array = entry_array(&mut zip, entry, &shared);
            let array = array.with_context(|| format!("{}: array {:?}", path.display(), spec.name))?;
            arrays.push((spec.clone(), array));
        }
        Npz::of(arrays).with_context(named)
    }

    /// Opens a single array for a model with a single input.
    ///
    /// # Errors
    /// When the model has not exactly one input, or the file is no array.
    pub fn open_npy(path: &Path, specs: &[InputSpec]) -> Result<Npz> {
        let named = || format!("{}", path.display());
        let [spec] = specs else {
            let names: Vec<&str> = specs.iter().map(|s| s.name.as_str()).collect();
            bail!(
                "{}: an .npy serves a model with one input, this one has {}: {}; save an .npz with these keys",
                path.display(),
                specs.len(),
                names.join(", ")
            );
        };
        let mut file = File::open(path).with_context(named)?;
        let head = Head::read(&mut file).with_context(named)?;
        let have = file.metadata()?.len().saturating_sub(head.len);
        ensure!(
            have >= head.data_len as u64,
            "{}: the array is cut short",
            path.display()
        );
        let start = head.len;
        let array = Array::new(head, Store::File(Arc::new(Mutex::new(file)), start)).with_context(named)?;
        Npz::of(vec![(spec.clone(), array)]).with_context(named)
    }

    fn of(arrays: Vec<(InputSpec, Array)>) -> Result<Npz> {
        let mut len: Option<(usize, String)> = None;
        for (spec, a) in &arrays {
            let n = a.len();
            let n = n.with_context(|| format!("array {:?} has no axis that counts samples", spec.name))?;
            match &len {
                Some((m, other)) => ensure!(*m == n, "array {:?} has {n} samples, but {other:?} has {m}", spec.name),
                None => len = Some((n, spec.name.clone())),
            }
        }
        Ok(Npz {
            arrays,
            len: len.map_or(1, |l| l.0),
        })
    }
}

/// An array of whole numbers in an archive; `None` when it has no such key.
///
/// # Errors
/// When it is no list of whole numbers.
pub fn integers_in(path: &Path, key: &str) -> Result<Option<Vec<i64>>> {
    let mut zip = ZipArchive::new(BufReader::new(File::open(path)?))?;
    let entry = format!("{key}.npy");
    if zip.index_for_name(&entry).is_none() {
        return Ok(None);
    }
    let file = Arc::new(Mutex::new(File::open(path)?));
    let list = entry_array(&mut zip, &entry, &file).and_then(|a| a.integers());
    list.map(Some).with_context(|| format!("array {key:?}"))
}

/// The whole numbers of an `.npy` file.
///
/// # Errors
/// When it cannot be read, or is no list of whole numbers.
pub fn integers(path: &Path) -> Result<Vec<i64>> {
    let named = || format!("{}", path.display());
    let bytes = std::fs::read(path).with_context(named)?;
    in_memory(bytes.into()).and_then(|a| a.integers()).with_context(named)
}

fn entry_array(zip: &mut ZipArchive<BufReader<File>>, name: &str, file: &Arc<Mutex<File>>) -> Result<Array> {
    let mut entry = zip.by_name(name)?;
    if entry.compression() == CompressionMethod::Stored {
        let (start, size) = (entry.data_start().context("no data")?, entry.size());
        drop(entry);
        let head = {
            let mut f = file.lock().map_err(|_| anyhow::anyhow!("reading was interrupted"))?;
            f.seek(SeekFrom::Start(start))?;
            Head::read((&mut *f).take(size))?
        };
        ensure!(
            size.saturating_sub(head.len) >= head.data_len as u64,
            "the array is cut short"
        );
        let at = start + head.len;
        return Array::new(head, Store::File(file.clone(), at));
    }
    let size = entry.size();
    ensure!(
        size <= MOST_IN_MEMORY,
        "{size} bytes when unpacked; save it uncompressed (numpy.savez)"
    );
    let mut all = Vec::new();
    (&mut entry)
        .take(size)
        .read_to_end(&mut all)
        .context("it cannot be unpacked")?;
    in_memory(Bytes::from(all))
}

impl Source for Npz {
    fn len(&self) -> usize {
        self.len
    }
    fn read(&self, i: usize) -> Result<Sample> {
        let one = |(spec, a): &(InputSpec, Array)| Ok((spec.name.clone(), a.sample(i, spec)?));
        self.arrays.iter().map(one).collect()
    }
}
