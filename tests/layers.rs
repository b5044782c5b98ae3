//! Which room may import which: knowledge flows one way.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("pb", &[]),
    ("math", &[]),
    ("progress", &[]),
    ("parallel", &[]),
    ("ir", &["pb"]),
    ("onnx", &["pb", "ir"]),
    ("ops", &["pb", "ir", "math"]),
    ("data", &["pb", "ir", "onnx", "math"]),
    ("engine", &["pb", "ir", "onnx", "ops", "math", "data", "parallel"]),
    (
        "analysis",
        &["pb", "ir", "ops", "math", "data", "engine", "parallel", "progress"],
    ),
    (
        "calibrate",
        &[
            "ir", "onnx", "math", "data", "engine", "analysis", "parallel", "progress",
        ],
    ),
    ("cache", &["ir", "onnx", "math", "data", "calibrate"]),
    (
        "passes",
        &[
            "cache",
            "calibrate",
            "pb",
            "ir",
            "onnx",
            "ops",
            "math",
            "data",
            "engine",
            "analysis",
            "parallel",
            "progress",
        ],
    ),
    (
        "verify",
        &[
            "ir", "ops", "analysis", "math", "data", "engine", "parallel", "progress",
        ],
    ),
    ("report", &["ir", "ops", "analysis", "passes", "verify"]),
    (
        "pipeline",
        &[
            "ir",
            "onnx",
            "ops",
            "data",
            "engine",
            "analysis",
            "cache",
            "calibrate",
            "passes",
            "verify",
            "report",
            "progress",
            "parallel",
        ],
    ),
    (
        "search",
        &[
            "ir", "onnx", "data", "engine", "analysis", "cache", "passes", "verify", "report", "progress", "pipeline",
        ],
    ),
    ("recipe", &["data", "passes", "pipeline", "search", "verify", "report"]),
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for e in std::fs::read_dir(folder).expect("a folder").flatten() {
        let p = e.path();
        if p.is_dir() {
            all.extend(sources(&p));
        } else if p.extension().is_some_and(|x| x == "rs") {
            all.push(p);
        }
    }
    all.sort();
    all
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn room_of(path: &Path) -> String {
    let first = path.strip_prefix(src()).expect("below src").components().next();
    let first = first.expect("a component").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The part of a file before its unit tests: tests may use whatever they need.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

#[test]
fn rooms_import_only_what_they_may() {
    let mut wrong = Vec::new();
    for path in sources(&src()) {
        let room = room_of(&path);
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(r, _)| *r == room) else {
            continue;
        };
        let text = std::fs::read_to_string(&path).expect("text");
        let used: BTreeSet<&str> = without_tests(&text)
            .lines()
            .filter(|l| !l.trim_start().starts_with("//"))
            .flat_map(|l| l.split("crate::").skip(1))
            .filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next())
            .collect();
        for u in used {
            let known = MAY_IMPORT.iter().any(|(r, _)| *r == u) || u == "cli";
            if known && u != room && !allowed.contains(&u) {
                wrong.push(format!("{} imports {u}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_one_file_names_tract() {
    for path in sources(&src().join("passes"))
        .iter()
        .chain(&sources(&src().join("analysis")))
    {
        let text = std::fs::read_to_string(path).expect("text");
        assert!(!without_tests(&text).contains("tract_onnx"), "{}", path.display());
    }
}

#[test]
fn only_the_engine_names_the_crate_of_onnx_runtime() {
    for path in sources(&src()) {
        let text = std::fs::read_to_string(&path).expect("text");
        let names = ["use ort::", " ort::", "(ort::"]
            .iter()
            .any(|n| without_tests(&text).contains(n));
        let engine = path.to_string_lossy().contains("engine/ort");
        assert!(engine || !names, "{}", path.display());
    }
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    for folder in ["src", "tests", "benches"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        for path in sources(&folder) {
            let lines = std::fs::read_to_string(&path).expect("text").lines().count();
            assert!(lines <= 500, "{} has {lines} lines", path.display());
        }
    }
}
