//! `test_data_set_N/input_K.pb`, as the ONNX backend tests and model zoo lay them out: `input_K` feeds the K-th input.

use super::{InputSpec, Sample, Source};
use crate::ir::Tensor;
use crate::onnx::map_file;
use crate::pb;
use anyhow::{Context, Result, ensure};
use prost::Message;
use std::path::{Path, PathBuf};

/// One sample a folder.
pub struct PbFolders {
    folders: Vec<PathBuf>,
    names: Vec<String>,
}

fn sets_below(folder: &Path) -> Vec<PathBuf> {
    let number = |p: &Path| -> Option<u64> { p.file_name()?.to_str()?.strip_prefix("test_data_set_")?.parse().ok() };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut sets: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| number(p).is_some()).collect();
    sets.sort_by_key(|p| number(p));
    sets
}

/// True when a folder is such a set, or holds some.
pub fn is_set(folder: &Path) -> bool {
    PbFolders::any_below(folder) || folder.join("input_0.pb").is_file()
}

impl PbFolders {
    /// True when a folder holds `test_data_set_N` folders.
    pub fn any_below(folder: &Path) -> bool {
        !sets_below(folder).is_empty()
    }

    /// Takes the sets below a folder, or the folder itself as one set.
    ///
    /// # Errors
    /// When there is no `input_0.pb`.
    pub fn open(folder: &Path, specs: &[InputSpec]) -> Result<PbFolders> {
        let mut folders = sets_below(folder);
        if folders.is_empty() {
            folders.push(folder.to_owned());
        }
        let first = folders[0].join("input_0.pb");
        ensure!(
            specs.is_empty() || first.is_file(),
            "{}: found no test_data_set_N/input_0.pb, no images (.jpg, .png) and no .bin files",
            folder.display()
        );
        Ok(PbFolders {
            folders,
            names: specs.iter().map(|s| s.name.clone()).collect(),
        })
    }
}

impl Source for PbFolders {
    fn len(&self) -> usize {
        self.folders.len()
    }
    fn read(&self, i: usize) -> Result<Sample> {
        let one = |(k, name): (usize, &String)| -> Result<(String, Tensor)> {
            let path = self.folders[i].join(format!("input_{k}.pb"));
            let named = || format!("{}", path.display());
            let proto = pb::TensorProto::decode(map_file(&path).with_context(named)?);
            let proto = proto.context("not a tensor").with_context(named)?;
            Ok((name.clone(), Tensor::from_proto(proto, None).with_context(named)?))
        };
        self.names.iter().enumerate().map(one).collect()
    }
}
