//! Reading and writing without a pass gives the same bytes.

use onnxzip::{ir, onnx};
use std::path::{Path, PathBuf};

fn models_below(folder: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for e in entries.flatten() {
        let p = e.path();
        if p.is_dir() {
            models_below(&p, out);
        } else if p.extension().is_some_and(|x| x == "onnx") {
            out.push(p);
        }
    }
}

#[test]
fn tmp() {
    let mut all = Vec::new();
    for d in std::env::var("DIRS").unwrap_or_default().split(':') {
        models_below(Path::new(d), &mut all);
    }
    all.sort();
    let (mut same, mut bad) = (0, 0);
    for p in &all {
        let m = match onnx::read(p) {
            Ok(m) => m,
            Err(e) => {
                println!("{}: {e:#}", p.display());
                bad += 1;
                continue;
            }
        };
        ir::check::check(&m).unwrap();
        let out = onnx::to_bytes(&m).unwrap();
        if out == std::fs::read(p).unwrap() {
            same += 1
        } else {
            println!("{}: differs {}", p.display(), out.len());
            bad += 1
        }
    }
    println!("{same} same, {bad} bad of {}", all.len());
}
