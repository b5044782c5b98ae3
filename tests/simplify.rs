//! `simplify` on files: `SIMPLIFY_IN` and `SIMPLIFY_OUT` name folders; every model of the first is written to the second.

use onnxzip::data::{Dataset, Sample};
use onnxzip::engine::{Engine, NotRun, Session};
use onnxzip::ir::{Model, ValueId, check};
use onnxzip::passes::{Context, Options, find};
use onnxzip::{onnx, progress};
use std::path::{Path, PathBuf};

struct NoEngine;

impl Engine for NoEngine {
    fn name(&self) -> String {
        "none".into()
    }
    fn load(&self, _: &Model, _: &[ValueId], _: &Sample) -> Result<Box<dyn Session>, NotRun> {
        Err(NotRun("no engine".into()))
    }
}

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

fn simplify(model: &mut Model) -> Vec<onnxzip::passes::Note> {
    let data = Dataset::synthetic(model, 1, 1).all();
    let info = find("simplify").unwrap();
    let mut cx = Context {
        engine: &NoEngine,
        samples: &data,
        threads: 1,
        seed: 1,
        progress: &progress::Silent,
        notes: Vec::new(),
    };
    let pass = (info.build)(&Options::defaults(info)).unwrap();
    pass.run(model, &mut cx).unwrap();
    check::check(model).unwrap();
    cx.notes
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
        let mut model = match onnx::read(p) {
            Ok(m) => m,
            Err(e) => {
                println!("UNREADABLE {}: {e:#}", p.display());
                continue;
            }
        };
        let start = std::time::Instant::now();
        let notes = simplify(&mut model);
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
        let notes = simplify(&mut again);
        if onnx::to_bytes(&again).unwrap() != bytes || !notes.is_empty() {
            unstable += 1;
            println!(
                "UNSTABLE {} {:?}",
                out.display(),
                notes.first().map(|n| (&n.node, &n.what))
            );
        }
        println!("{} {:.1} ms", out.display(), took.as_secs_f64() * 1e3);
    }
    assert_eq!(unstable, 0);
}
