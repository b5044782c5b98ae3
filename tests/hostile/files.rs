//! Files that are no models.

use super::{Trial, assert_none_wrong};
use crate::tool::{fixture, model, node, save};

fn whole() -> Vec<u8> {
    std::fs::read(fixture("digits_cnn.onnx")).expect("a fixture")
}

/// SplitMix64: bytes without meaning.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut s = seed;
    let mut next = || {
        s = s.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = s;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn a_file_that_is_no_model_is_refused() {
    let b = whole();
    let cut = |n: usize| Trial::new(&format!("cut after {n} bytes")).bytes(&b[..n]);
    let mut all: Vec<Trial> = [1, 20, 100, b.len() / 4, b.len() / 2, b.len() * 3 / 4, b.len() - 1]
        .map(cut)
        .into();
    all.push(Trial::new("random, 4 kB").bytes(&noise(1, 4096)));
    all.push(Trial::new("random, 1 MB").bytes(&noise(2, 1 << 20)));
    all.push(Trial::new("a length prefix of 2^63").bytes(b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"));
    all.push(Trial::new("empty").bytes(b""));
    all.push(Trial::new("text").bytes(&b"hello, I am no model\n".repeat(50)));
    let flipped: Vec<u8> = b
        .iter()
        .enumerate()
        .map(|(i, x)| if i % 97 == 0 && i < 3000 { x ^ 0x55 } else { *x })
        .collect();
    all.push(Trial::new("flipped bytes").bytes(&flipped));
    assert_none_wrong(all);
}

#[test]
fn a_path_that_is_no_file_is_refused() {
    let folder = Trial::new("a folder");
    std::fs::create_dir(&folder.input).expect("made");
    let mut null = Trial::new("/dev/null").says(&["/dev/null"]);
    null.input = "/dev/null".into();
    assert_none_wrong([folder, null, Trial::new("nothing there")]);
}

#[test]
fn a_pipe_does_not_hang_the_tool() {
    let t = Trial::new("a named pipe");
    let made = std::process::Command::new("mkfifo").arg(&t.input).status();
    if made.is_ok_and(|s| s.success()) {
        assert_none_wrong([t]);
    }
}

#[test]
fn every_hostile_fixture_is_refused() {
    let mut all = Vec::new();
    for e in std::fs::read_dir(fixture("hostile")).expect("a folder").flatten() {
        let (path, name) = (e.path(), e.file_name().to_string_lossy().into_owned());
        let mut t = Trial::new(&format!("fixtures/hostile/{name}")).says(&[&name]);
        if name.ends_with(".onnx") {
            t.input = path;
        } else {
            t.input = fixture("digits_cnn.onnx");
            t = t.args(&["--calib", &crate::tool::arg(&path)]);
            t.passes = "int8";
        }
        all.push(t);
    }
    assert!(all.len() > 15, "the fixtures are there");
    assert_none_wrong(all);
}

#[test]
fn a_bad_target_is_found_before_any_work() {
    let good = || model(vec![node("Relu", &["x"], &["y"])], vec![]);
    let mut missing = Trial::new("target in a missing folder")
        .model(&good())
        .says(&["nowhere"]);
    missing.output = missing.path("nowhere/out.onnx");
    let folder = Trial::new("target is a folder").model(&good()).says(&["out.onnx"]);
    std::fs::create_dir(&folder.output).expect("made");
    let mut below = Trial::new("target below a file").model(&good()).says(&["file"]);
    std::fs::write(below.path("file"), "x").expect("written");
    below.output = below.path("file/out.onnx");
    assert_none_wrong([missing, folder, below]);
}

#[test]
fn bad_input_does_not_destroy_an_old_output() {
    let t = Trial::new("an old output").bytes(&whole()[..1000]);
    std::fs::write(&t.output, "precious").expect("written");
    assert_none_wrong([t]);
}

#[test]
fn input_and_output_may_be_the_same_file() {
    let mut same = Trial::new("in == out")
        .model(&model(vec![node("Relu", &["x"], &["y"])], vec![]))
        .may(&[0]);
    same.output = same.input.clone();
    let mut spelled = Trial::new("in == ./in").may(&[0]);
    save(&spelled.input, &model(vec![node("Relu", &["x"], &["y"])], vec![]));
    spelled.output = spelled.path("./in.onnx");
    assert_none_wrong([same, spelled]);
}
