//! Read, check, write, read again; then raise, simplify and write what came of it.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use onnxzip::data::Dataset;
use onnxzip::engine::Nothing;
use onnxzip::ir::{Model, check::check};
use onnxzip::onnx::{External, from_bytes, to_bytes};
use onnxzip::{passes, pipeline, progress::Silent};

fn read(bytes: Vec<u8>) -> Option<Model> {
    from_bytes(bytes.into(), &External::below(None)).ok()
}

/// A model that the library made can be written, read again, and then written as the same bytes.
fn comes_back(model: &Model) {
    check(model).expect("the model is whole");
    let Ok(once) = to_bytes(model) else { return }; // a cycle
    let again = read(once.clone()).expect("what was written can be read");
    let twice = to_bytes(&again).expect("what was read can be written");
    assert!(once == twice, "{} bytes, then {}", once.len(), twice.len());
}

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some(mut model) = read(bytes.to_vec()) else {
        return Corpus::Reject;
    };
    comes_back(&model);
    let data = Dataset::synthetic(&model, 0, 1);
    for list in ["opset(to=21)", "simplify(fuse=on)"] {
        let mut options = pipeline::Options::new(passes::parse_list(list).expect("passes"));
        options.verify = false;
        options.threads = 1;
        options.simplify_first = false;
        if pipeline::rewrite(&mut model, &data, &options, &Nothing, &Silent).is_ok() {
            comes_back(&model);
        }
    }
    Corpus::Keep
});
