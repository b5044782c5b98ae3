//! `simplify` on files: `SIMPLIFY_IN` and `SIMPLIFY_OUT` name folders; every model of the first is written to the second.

use onnxzip::data::Dataset;
use onnxzip::engine::tract::Tract;
use onnxzip::ir::{Model, check};
use onnxzip::passes::{Context, Options, find};
use onnxzip::{onnx, progress};
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

fn simplify(model: &mut Model) -> Option<Vec<onnxzip::passes::Note>> {
    let data = Dataset::synthetic(model, 1, 1).all();
    let info = find("simplify").unwrap();
    let mut cx = Context {
        engine: &Tract,
        samples: &data,
        threads: 1,
        seed: 1,
        progress: &progress::Silent,
        notes: Vec::new(),
    };
    let pass = (info.build)(&Options::defaults(info)).unwrap();
    if let Err(e) = pass.run(model, &mut cx) {
        println!("{e:#}");
        return None;
    }
    check::check(model).unwrap();
    Some(cx.notes)
}

#[test]
fn files_named_by_the_environment_are_simplified_and_a_second_run_changes_nothing() {
    let Ok(from) = std::env::var("SIMPLIFY_IN") else { return };
    let to = PathBuf::from(std::env::var("SIMPLIFY_OUT").unwrap());
    let verbose = std::env::var("SIMPLIFY_NOTES").is_ok();
    let mut all = Vec::new();
    for f in from.split(':') {
        match Path::new(f).is_file() {
            true => all.push(PathBuf::from(f)),
            false => models_below(Path::new(f), &mut all),
        }
    }
    all.sort();
    let mut unstable = 0;
    for p in &all {
        let one = std::panic::AssertUnwindSafe(|| unstable += usize::from(!file(p, &to, verbose)));
        if std::panic::catch_unwind(one).is_err() {
            println!("PANIC {}", p.display());
        }
    }
    assert_eq!(unstable, 0);
}

/// False when a second run changes the file.
fn file(p: &Path, to: &Path, verbose: bool) -> bool {
    let mut model = match onnx::read(p) {
        Ok(m) => m,
        Err(e) => {
            println!("UNREADABLE {}: {e:#}", p.display());
            return true;
        }
    };
    let start = std::time::Instant::now();
    let Some(notes) = simplify(&mut model) else {
        println!("REFUSED {}", p.display());
        return true;
    };
    let took = start.elapsed();
    if verbose {
        for n in &notes {
            println!("  {:?} {}: {}", n.kind, n.node, n.what);
        }
    }
    let stem = p.to_string_lossy().trim_start_matches('/').replace('/', "+");
    let short = p.file_name().unwrap().to_string_lossy().into_owned();
    let name = if short == "model.onnx" { stem } else { short };
    let out = to.join(name);
    let bytes = onnx::to_bytes(&model).unwrap();
    std::fs::write(&out, &bytes).unwrap();
    let mut again = onnx::read(&out).unwrap();
    let notes = simplify(&mut again).unwrap();
    if onnx::to_bytes(&again).unwrap() != bytes || !notes.is_empty() {
        println!(
            "UNSTABLE {} {:?}",
            out.display(),
            notes.first().map(|n| (&n.node, &n.what))
        );
        return false;
    }
    println!("{} {:.1} ms", out.display(), took.as_secs_f64() * 1e3);
    true
}
