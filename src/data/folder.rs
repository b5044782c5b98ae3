//! The files of a folder, in an order that is the same on every machine.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};

/// Folders in folders are entered this deep.
const DEPTH: usize = 16;
/// More files than anybody calibrates with.
const MOST: usize = 1_000_000;

/// The files below `root` with one of these endings (lower case), sorted by path, or `root` itself when it is such a file. Names
/// that begin with a dot are left out, and so are links to folders.
///
/// # Errors
/// When a folder cannot be read, or a link leads out of it.
pub fn files(root: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    if !root.is_dir() {
        return Ok(if ends(root, endings) {
            vec![root.to_owned()]
        } else {
            Vec::new()
        });
    }
    let named = || format!("{}", root.display());
    let inside = root.canonicalize().with_context(named)?;
    let mut found = Vec::new();
    let mut folders = vec![(root.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let named = || format!("{}", folder.display());
        for entry in std::fs::read_dir(&folder).with_context(named)? {
            let entry = entry.with_context(named)?;
            if entry.file_name().as_encoded_bytes().first() == Some(&b'.') {
                continue;
            }
            let (path, kind) = (entry.path(), entry.file_type().with_context(named)?);
            if kind.is_dir() {
                ensure!(depth < DEPTH, "{}: folders lie too deep", path.display());
                folders.push((path, depth + 1));
            } else if ends(&path, endings) {
                if kind.is_symlink() {
                    let to = path.canonicalize().with_context(|| format!("{}", path.display()))?;
                    if !to.starts_with(&inside) {
                        bail!("{} is a link out of the folder: copy the file instead", path.display());
                    }
                }
                ensure!(path.is_file(), "{} is not a file", path.display());
                found.push(path);
                ensure!(found.len() <= MOST, "{}: more than {MOST} files", root.display());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn ends(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_lowercase);
    ending.is_some_and(|e| endings.contains(&e.as_str()))
}
