//! A tensor message as `input_0.pb` of a model with one input.
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
        std::fs::create_dir_all(folder.join("test_data_set_0")).expect("a folder");
        let model = onnxzip::onnx::read(&fixtures.join("digits_mlp.onnx")).expect("a model");
        Place { folder, model }
    })
}

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Place { folder, model } = place();
    std::fs::write(folder.join("test_data_set_0/input_0.pb"), bytes).expect("written");
    if let Ok(data) = Dataset::open(folder, model) {
        let _ = data.get(0);
    }
    Corpus::Keep
});
