//! ONNX Runtime, `onnx.checker` and `onnx.reference` on what onnxzip writes.
//!
//! The tests put what they need into a virtual environment below `target/`, once. Where that is not possible (no network),
//! they say so on the terminal and pass.

use crate::tool::{arg, fixture, onnxzip, say};
use onnxzip::data::Dataset;
use onnxzip::{onnx, passes, pipeline, progress::Silent};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The versions that the claims of the README were measured with.
const PACKAGES: &[&str] = &["onnx==1.23.2", "onnxruntime==1.31.1", "numpy==2.4.6"];

pub fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target/tmp lies in target")
}

fn run(command: &mut Command) -> Result<(), String> {
    let out = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    match out.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim())),
    }
}

fn set_up() -> Result<PathBuf, String> {
    let venv = target().join("venv");
    let (python, mark) = (venv.join("bin/python"), venv.join("installed"));
    let wanted = PACKAGES.join(" ");
    if std::fs::read_to_string(&mark).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    say(&format!("installing {wanted} into {}", venv.display()));
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    run(Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary",
            ":all:",
        ])
        .args(PACKAGES))?;
    std::fs::write(mark, wanted).map_err(|e| e.to_string())?;
    Ok(python)
}

/// The interpreter with onnx and ONNX Runtime, or nothing, said loudly.
pub fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = PYTHON.get_or_init(|| {
        set_up()
            .inspect_err(|e| {
                say(&format!(
                    "SKIPPED: the interop tests did NOT run, Python packages cannot be installed: {e}"
                ))
            })
            .ok()
    });
    found.as_deref()
}

fn script(python: &Path, name: &str, args: &[&Path]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name);
    let mut command = Command::new(python);
    command.args(["-B", "-W", "ignore"]).arg(script).args(args);
    command.output().expect("Python starts")
}

/// Shows what a script printed, and fails when it did.
fn report(title: &str, out: &Output) {
    say(&format!("\n{title}\n{}", String::from_utf8_lossy(&out.stdout)));
    assert!(
        out.status.success(),
        "see above; {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// What the rewritten fixtures must keep: passes, least SQNR in dB, most percentage points of accuracy lost.
const FIDELITY: &[(&str, f64, f64)] = &[
    ("simplify", 90.0, 0.0),
    ("int8", 20.0, 1.0),
    ("prune,lowrank,int8", 12.0, 2.0),
];

#[test]
fn rewritten_fixtures_run_in_onnx_runtime_and_keep_their_accuracy() {
    let Some(python) = python() else { return };
    let folder = target().join("interop");
    std::fs::create_dir_all(&folder).expect("made");
    let data = fixture("digits.npz");
    let mut jobs = Vec::new();
    for name in ["digits_mlp", "digits_cnn", "digits_masked"] {
        for &(passes, sqnr, points) in FIDELITY {
            let (original, result) = (
                fixture(&format!("{name}.onnx")),
                folder.join(format!("{name}.{passes}.onnx")),
            );
            let args = [
                "optimize",
                "--passes",
                passes,
                "--calib",
                &arg(&data),
                &arg(&original),
                &arg(&result),
            ];
            onnxzip(args).ok();
            let size = |p: &Path| p.metadata().expect("a file").len();
            jobs.push(serde_json::json!({
                "name": name, "original": original, "result": result, "data": data, "passes": passes, "sqnr": sqnr,
                "points": points, "bytes": [size(&original), size(&result)],
            }));
        }
    }
    let list = folder.join("jobs.json");
    std::fs::write(&list, serde_json::Value::from(jobs).to_string()).expect("written");
    report("fixtures in ONNX Runtime", &script(python, "fixtures.py", &[&list]));
}

#[test]
fn layers_that_simplify_recognises_give_the_same_numbers() {
    let Some(python) = python() else { return };
    let (tool, folder) = (Path::new(env!("CARGO_BIN_EXE_onnxzip")), target().join("interop/fuse"));
    report("simplify(fuse=on)", &script(python, "fuse.py", &[tool, &folder]));
}

#[test]
fn operators_that_onnx_runtime_has_joined_are_spelled_out() {
    let Some(python) = python() else { return };
    let (tool, folder) = (Path::new(env!("CARGO_BIN_EXE_onnxzip")), target().join("interop/fused"));
    report(
        "operators of com.microsoft",
        &script(python, "fused.py", &[tool, &folder]),
    );
}

#[test]
fn loops_run_in_tract_and_what_comes_out_runs_in_onnx_runtime() {
    let Some(python) = python() else { return };
    let (tool, folder) = (Path::new(env!("CARGO_BIN_EXE_onnxzip")), target().join("interop/loops"));
    report("loops", &script(python, "loops.py", &[tool, &folder]));
}

#[test]
fn weights_dynamic_and_fp16_give_files_that_onnx_runtime_runs() {
    let Some(python) = python() else { return };
    let (tool, folder) = (
        Path::new(env!("CARGO_BIN_EXE_onnxzip")),
        target().join("interop/precision"),
    );
    report(
        "weights, dynamic, fp16",
        &script(python, "precision.py", &[tool, &folder]),
    );
}

#[test]
fn products_of_fixed_dimensions_stay_in_integers_in_onnx_runtime() {
    let Some(python) = python() else { return };
    let path = target().join("interop/products.onnx");
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    let mut model = crate::int8::place::residual();
    crate::int8::run(&mut model, "int8");
    std::fs::write(&path, onnx::to_bytes(&model).expect("written")).expect("written");
    report("Q/DQ pairs around products", &script(python, "pairs.py", &[&path]));
}

/// The backend tests of the onnx package, laid out below `target/` by the first test that asks for them.
fn backend(python: &Path) -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = target().join("backend");
        if !folder.join("ready").exists() {
            std::fs::remove_dir_all(&folder).ok(); // what an interrupted run left
            let out = script(python, "gen_backend.py", &[&folder]);
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        folder
    })
}

/// Reads, writes and simplifies one backend model, and makes its inner names short; gives what went wrong.
fn backend_model(path: &Path, out: &Path) -> Result<(), String> {
    let mut model = onnx::read(path).map_err(|e| format!("not read: {e:#}"))?;
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    if onnx::to_bytes(&model).map_err(|e| format!("not written: {e:#}"))? != bytes {
        return Err("reading and writing changes the bytes".into());
    }
    let mut options = pipeline::Options::new(passes::parse_list("simplify").map_err(|e| e.to_string())?);
    options.verify = false;
    options.threads = 1;
    let data = Dataset::synthetic(&model, 0, 1);
    let engine = onnxzip::engine::tract::Tract;
    pipeline::rewrite(&mut model, &data, &options, &engine, &Silent).map_err(|e| format!("simplify: {e:#}"))?;
    let short = onnx::stripped(&model);
    let written = onnx::to_bytes(&short).map_err(|e| format!("not written after simplify: {e:#}"))?;
    std::fs::write(out, written).map_err(|e| e.to_string())
}

/// Does a job for every backend model, which writes its result; gives how many there were and what went wrong.
fn each_backend_model(
    folder: &Path,
    results: &Path,
    job: impl Fn(&Path, &Path) -> Result<(), String> + std::panic::RefUnwindSafe,
) -> (usize, Vec<String>) {
    let _ = std::fs::remove_dir_all(results);
    let all = crate::roundtrip::models_below(folder);
    let mut faults = Vec::new();
    for path in &all {
        let test = path.parent().expect("a folder");
        let (kind, name) = (test.parent().expect("a kind"), test.file_name().expect("a name"));
        let kind = results.join(kind.file_name().expect("a name"));
        std::fs::create_dir_all(&kind).expect("made");
        let out = kind.join(format!("{}.onnx", name.to_string_lossy()));
        let outcome = std::panic::catch_unwind(|| job(path, &out)).unwrap_or(Err("it panicked".into()));
        faults.extend(outcome.err().map(|e| format!("{}: {e}", test.display())));
    }
    assert!(all.len() > 1000, "only {} models", all.len());
    (all.len(), faults)
}

#[test]
fn backend_tests_come_back_byte_for_byte_and_simplified_still_pass() {
    let Some(python) = python() else { return };
    let folder = backend(python);
    let results = target().join("backend_out");
    let (all, faults) = each_backend_model(folder, &results, backend_model);
    say(&format!(
        "{} of {all} backend models read, written with the same bytes, and simplified",
        all - faults.len(),
    ));
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    report(
        "backend tests after simplify",
        &script(python, "check_backend.py", &[folder, &results]),
    );
}

/// What `opset` may refuse: models older than operator set 7, and what has no newer form.
const NO_NEWER_FORM: &[&str] = &[
    "too old to be converted",
    "its batch axis has no newer form",
    "tf_half_pixel_for_nn",
];

#[test]
fn backend_tests_raised_to_newer_operator_sets_still_pass() {
    let Some(python) = python() else { return };
    let folder = backend(python);
    for to in [13, 17, 21] {
        let results = target().join(format!("backend_opset_{to}"));
        let raise = |path: &Path, out: &Path| -> Result<(), String> {
            let mut model = onnx::read(path).map_err(|e| format!("not read: {e:#}"))?;
            if model.opset("") >= to {
                return Ok(());
            }
            match passes::opset::raise_opset(&mut model, to).map_err(|e| format!("{e:#}")) {
                Err(e) if NO_NEWER_FORM.iter().any(|why| e.contains(why)) => return Ok(()),
                Err(e) => return Err(e),
                Ok(_) => {}
            }
            let bytes = onnx::to_bytes(&model).map_err(|e| format!("not written: {e:#}"))?;
            std::fs::write(out, bytes).map_err(|e| e.to_string())
        };
        let (_, faults) = each_backend_model(folder, &results, raise);
        assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
        let checked = script(python, "check_backend.py", &[folder, &results]);
        report(&format!("backend tests raised to operator set {to}"), &checked);
    }
}
