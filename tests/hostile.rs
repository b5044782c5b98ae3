//! Bad input: exit code 2, a message that names the file, no panic, no output, nothing left behind.
//!
//! Also valid oddities that must not be refused, and mutations of a real model that must not crash the library.

mod data;
mod external;
mod files;
mod fuzz;
mod models;
mod mutants;
mod usage;

use crate::tool::{Ran, arg, onnxzip};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A scratch folder with `in.onnx` in it, and the run that is tried there.
struct Trial {
    name: String,
    folder: tempfile::TempDir,
    input: PathBuf,
    output: PathBuf,
    passes: &'static str,
    args: Vec<String>,
    /// Exit codes that are right.
    codes: &'static [i32],
    /// What the message must contain; by default the input's file name.
    words: Vec<String>,
}

impl Trial {
    fn new(name: &str) -> Trial {
        let folder = tempfile::tempdir().expect("a folder");
        Trial {
            name: name.to_owned(),
            input: folder.path().join("in.onnx"),
            output: folder.path().join("out.onnx"),
            folder,
            passes: "simplify",
            args: vec!["--no-verify".into()],
            codes: &[2],
            words: vec!["in.onnx".into()],
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn bytes(self, bytes: &[u8]) -> Trial {
        std::fs::write(&self.input, bytes).expect("written");
        self
    }

    fn model(self, m: &onnxzip::pb::ModelProto) -> Trial {
        crate::tool::save(&self.input, m);
        self
    }

    fn says(mut self, words: &[&str]) -> Trial {
        self.words = words.iter().map(|w| w.to_string()).collect();
        self
    }

    fn may(mut self, codes: &'static [i32]) -> Trial {
        self.codes = codes;
        self
    }

    fn args(mut self, args: &[&str]) -> Trial {
        self.args = args.iter().map(|a| a.to_string()).collect();
        self
    }

    /// Runs it, and gives what is wrong with the outcome.
    fn wrong(self) -> Vec<String> {
        let before = contents(self.folder.path());
        let mut args = vec!["optimize".to_owned(), "--passes".into(), self.passes.into()];
        args.extend(self.args.iter().cloned());
        args.extend([arg(&self.input), arg(&self.output)]);
        let ran = onnxzip(args);
        let mut after = contents(self.folder.path());
        let mut wrong = faults(&ran, self.codes, &self.words);
        let in_place = self.output.canonicalize().ok() == self.input.canonicalize().ok();
        if ran.code == Some(0) && !in_place {
            after.remove(&data_beside(&self.output)); // external data stay external
            after.remove(&self.output);
            if !self.output.is_file() {
                wrong.push("there is no output".into());
            }
        }
        let changed: Vec<_> = after
            .iter()
            .filter(|(p, c)| before.get(*p) != Some(c))
            .map(|(p, _)| p)
            .collect();
        let allowed = ran.code == Some(0) && in_place;
        if !changed.is_empty() && !allowed {
            wrong.push(format!("left or changed: {changed:?}"));
        }
        if before.keys().any(|p| !after.contains_key(p) && *p != self.output) {
            wrong.push("a file is gone".into());
        }
        let told = ran.err.lines().next().unwrap_or_default();
        wrong
            .into_iter()
            .map(|w| format!("{}: {w}  (stderr: {told})", self.name))
            .collect()
    }
}

/// Where the writer puts external data.
fn data_beside(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".data");
    name.into()
}

fn faults(ran: &Ran, codes: &[i32], words: &[String]) -> Vec<String> {
    let mut wrong = Vec::new();
    match ran.code {
        None => wrong.push("ended by a signal or the time limit".into()),
        Some(c) if !codes.contains(&c) => wrong.push(format!("exit code {c}, not {codes:?}")),
        Some(_) => {}
    }
    if ran.err.contains("panicked") || ran.out.contains("panicked") {
        wrong.push("panicked".into());
    }
    if ran.code == Some(2) {
        let missing = words.iter().filter(|w| !ran.err.contains(*w));
        wrong.extend(missing.map(|w| format!("the message lacks {w:?}")));
    }
    wrong
}

/// Every file below a folder with what is in it; folders, links and pipes by their kind.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for e in std::fs::read_dir(folder).expect("a folder").flatten() {
        let (path, kind) = (e.path(), e.file_type().expect("a type"));
        if kind.is_dir() {
            all.extend(contents(&path));
            all.insert(path, b"folder".to_vec());
        } else {
            let bytes = if kind.is_file() {
                std::fs::read(&path).expect("read")
            } else {
                b"special".to_vec()
            };
            all.insert(path, bytes);
        }
    }
    all
}

fn assert_none_wrong(trials: impl IntoIterator<Item = Trial>) {
    let (mut count, mut wrong) = (0, Vec::new());
    for t in trials {
        count += 1;
        wrong.extend(t.wrong());
    }
    assert!(
        wrong.is_empty(),
        "{} faults in {count} trials:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
