//! Archives and single arrays as samples of a model with one input.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use onnxzip::data::Dataset;
use onnxzip::ir::Model;
use std::path::PathBuf;
use std::sync::OnceLock;

struct Place {
    folder: PathBuf,
    model: Model,
}

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let fixtures = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures"));
        let folder = std::env::temp_dir().join(format!("onnxzip-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let model = onnxzip::onnx::read(&fixtures.join("digits_mlp.onnx")).expect("a model");
        Place { folder, model }
    })
}

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Place { folder, model } = place();
    let kind = if bytes.starts_with(b"PK") { "a.npz" } else { "a.npy" };
    let path = folder.join(kind);
    std::fs::write(&path, bytes).expect("written");
    let Ok(data) = Dataset::open(&path, model) else {
        return Corpus::Keep;
    };
    let _ = data.labels();
    for i in 0..data.len().min(4) {
        let _ = data.get(i);
    }
    Corpus::Keep
});
