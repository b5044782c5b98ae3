//! Finding and loading the ONNX Runtime library: one for the life of the process.
//!
//! It is looked for in the path that the user names, else in `ORT_DYLIB_PATH`, else in the active Python environment
//! (`VIRTUAL_ENV`). A path may be the library or a folder: its own files, or those where the Python package keeps them.

use anyhow::{Context, Result, anyhow, bail, ensure};
use ort::environment::Environment;
use ort::logging::LogLevel;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The way out of every error.
const WAY_OUT: &str = "get one with `pip install onnxruntime` and name it: --engine ort --engine-lib \
    …/site-packages/onnxruntime/capi/libonnxruntime.so.1.x (or the folder, or ORT_DYLIB_PATH)";

/// A loaded library.
pub struct Library {
    /// Where it lies.
    path: PathBuf,
    /// Its version, as far as it says so.
    pub version: String,
    /// The environment of all sessions.
    pub environment: Environment,
}

/// The library, loaded by the first call.
///
/// # Errors
/// When there is none, it is too old, or another one is loaded already; the message says what to do.
pub fn library(named: Option<&Path>) -> Result<&'static Library> {
    static LOADED: OnceLock<Library> = OnceLock::new();
    static LOADING: Mutex<()> = Mutex::new(());
    let path = find(named).map_err(|e| anyhow!("ONNX Runtime: {e:#}; {WAY_OUT}"))?;
    let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lib) = LOADED.get() {
        ensure!(
            lib.path == path,
            "{} is loaded already; a process has one ONNX Runtime",
            lib.path.display()
        );
        return Ok(lib);
    }
    let lib = load(path)?;
    Ok(LOADED.get_or_init(|| lib))
}

fn load(path: PathBuf) -> Result<Library> {
    // Without a logger of ours it writes to the terminal.
    let silent = Arc::new(|_: LogLevel, _: &str, _: &str, _: &str, _: &str| ());
    let failed = |e: String| anyhow!("ONNX Runtime: {}: {e}; {WAY_OUT}", path.display());
    let builder = ort::init_from(&path).map_err(|e| failed(e.to_string()))?;
    let environment = builder.with_name("onnxzip").with_telemetry(false).with_logger(silent);
    let environment = environment.build().map_err(|e| failed(e.to_string()))?;
    environment.set_log_level(LogLevel::Fatal);
    Ok(Library {
        version: version(&path),
        path,
        environment,
    })
}

/// `1.31.1` of `libonnxruntime.so.1.31.1`; the commit of the build where the name does not say.
fn version(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let words = name.split('.').filter(|w| w.parse::<u32>().is_ok());
    let numbers: Vec<&str> = words.collect();
    if !numbers.is_empty() {
        return numbers.join(".");
    }
    let commit = ort::info().split("git-commit-id=").nth(1);
    let commit = commit.and_then(|c| c.split(',').next()).unwrap_or("unknown version");
    commit.to_owned()
}

/// The library's file, absolute and without links.
fn find(named: Option<&Path>) -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let (from, path) = if let Some(path) = named {
        ("--engine-lib", path.to_owned())
    } else if let Some(path) = variable("ORT_DYLIB_PATH") {
        ("ORT_DYLIB_PATH", path)
    } else if let Some(path) = variable("VIRTUAL_ENV") {
        ("VIRTUAL_ENV", path)
    } else {
        bail!("no ONNX Runtime library was named");
    };
    let file = if path.is_dir() {
        within(&path).with_context(|| format!("{from}: there is no ONNX Runtime library in {}", path.display()))
    } else {
        Ok(path)
    };
    let file = file?;
    file.canonicalize()
        .with_context(|| format!("{from}: {}", file.display()))
}

/// The library in a folder, or in a Python environment's folders below it.
fn within(folder: &Path) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    for below in ["capi", "onnxruntime/capi", "lib", "Lib/site-packages/onnxruntime/capi"] {
        folders.push(folder.join(below));
    }
    let pythons = names(&folder.join("lib")).into_iter();
    for python in pythons.filter(|n| n.starts_with("python3")) {
        folders.push(folder.join("lib").join(python).join("site-packages/onnxruntime/capi"));
    }
    folders.into_iter().find_map(|f| {
        let all = names(&f);
        let name = all.into_iter().find(|n| is_library(n))?;
        Some(f.join(name))
    })
}

fn is_library(name: &str) -> bool {
    let rest = |prefix: &str| name.strip_prefix(prefix);
    rest("libonnxruntime.so").is_some_and(|v| v.is_empty() || v.starts_with('.'))
        || rest("libonnxruntime.").is_some_and(|v| v.ends_with("dylib"))
        || name == "onnxruntime.dll"
}

/// Names in a folder, in order; none when it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_stands_for_the_library_in_it() {
        let venv = tempfile::tempdir().expect("a folder");
        let capi = venv.path().join("lib/python3.11/site-packages/onnxruntime/capi");
        std::fs::create_dir_all(&capi).expect("made");
        assert_eq!(within(venv.path()), None);
        for name in ["libonnxruntime_providers_shared.so", "libonnxruntime.so.1.31.1"] {
            std::fs::write(capi.join(name), "").expect("written");
        }
        let lib = capi.join("libonnxruntime.so.1.31.1");
        for folder in [&capi, capi.parent().expect("a parent"), venv.path()] {
            assert_eq!(within(folder).as_ref(), Some(&lib), "{}", folder.display());
        }
        assert_eq!(version(&lib), "1.31.1");
        assert_eq!(version(Path::new("libonnxruntime.1.31.1.dylib")), "1.31.1");
    }

    #[test]
    fn what_is_no_library_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = |path: &Path| format!("{:#}", library(Some(path)).err().expect("no library"));
        let missing = text(&folder.path().join("nowhere.so"));
        assert!(
            missing.contains("nowhere.so") && missing.contains("pip install"),
            "{missing}"
        );
        let empty = text(folder.path());
        assert!(empty.contains("no ONNX Runtime library in"), "{empty}");
        let fake = folder.path().join("libonnxruntime.so.1.0");
        std::fs::write(&fake, "nothing").expect("written");
        let fake = text(&fake);
        assert!(
            fake.contains("libonnxruntime.so.1.0") && fake.contains("pip install"),
            "{fake}"
        );
    }
}
