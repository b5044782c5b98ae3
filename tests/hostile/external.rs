//! External data: what a model may refer to, and what it must not reach.

use super::{Trial, assert_none_wrong};
use crate::tool::{floats, model, node};
use onnxzip::pb;
use std::path::Path;

const DATA: [f32; 4] = [1.0, 2.0, 3.0, 4.0];

/// The model lies in `a/b`; the data in `a/b/w.bin`, and as bait in `x` and `a/x`.
fn trial(name: &str, location: &str, range: &[(&str, &str)]) -> Trial {
    let mut t = Trial::new(&format!("external: {name}"));
    let inner = t.path("a/b");
    std::fs::create_dir_all(&inner).expect("made");
    let bytes: Vec<u8> = DATA.iter().flat_map(|x| x.to_le_bytes()).collect();
    for bait in ["x", "a/x", "a/b/w.bin"] {
        std::fs::write(t.path(bait), &bytes).expect("written");
    }
    t.input = inner.join("in.onnx");
    t.output = inner.join("out.onnx");
    let location = location.replace('@', t.folder.path().to_str().expect("UTF-8"));
    let entry = |(key, value): (&str, &str)| pb::StringStringEntryProto {
        key: Some(key.into()),
        value: Some(value.into()),
    };
    let w = pb::TensorProto {
        raw_data: None,
        data_location: Some(pb::tensor_proto::DataLocation::External as i32),
        external_data: [("location", location.as_str())]
            .iter()
            .chain(range)
            .copied()
            .map(entry)
            .collect(),
        ..floats("w", &[4], &[])
    };
    t.model(&model(vec![node("Add", &["x", "w"], &["y"])], vec![w]))
        .says(&["in.onnx", "\"w\""])
}

#[test]
fn data_outside_of_the_models_folder_are_not_read() {
    let sub = trial("sub/../../x", "sub/../../x", &[]);
    std::fs::create_dir(sub.path("a/b/sub")).expect("made");
    assert_none_wrong([
        sub,
        trial("../../x", "../../x", &[]),
        trial("../x", "../x", &[]),
        trial("an absolute path", "@/x", &[]),
        trial("/etc/passwd", "/etc/passwd", &[]),
        trial("/dev/zero", "/dev/zero", &[]),
    ]);
}

#[cfg(unix)]
#[test]
fn links_out_of_the_models_folder_are_not_followed() {
    let link = |t: &Trial, to: &Path, at: &str| std::os::unix::fs::symlink(to, t.path(at)).expect("a link");
    let file = trial("a link to a file outside", "link.bin", &[]);
    link(&file, &file.path("x"), "a/b/link.bin");
    let folder = trial("a link to a folder outside", "ln/x", &[]);
    link(&folder, folder.folder.path(), "a/b/ln");
    let inside = trial("a link that stays inside", "link.bin", &[]).may(&[0, 2]);
    link(&inside, Path::new("w.bin"), "a/b/link.bin");
    assert_none_wrong([file, folder, inside]);
}

#[test]
fn a_location_that_is_no_file_is_refused() {
    let folder = trial("a folder", "sub", &[]);
    std::fs::create_dir(folder.path("a/b/sub")).expect("made");
    let pipe = trial("a named pipe", "pipe", &[]);
    let _ = std::process::Command::new("mkfifo").arg(pipe.path("a/b/pipe")).status();
    assert_none_wrong([
        folder,
        pipe,
        trial("nothing there", "nowhere.bin", &[]),
        trial("no name", "", &[]),
        trial("NUL in the name", "w.bin\0x", &[]),
    ]);
}

#[test]
fn a_range_outside_of_the_file_is_refused() {
    let short = trial("a file shorter than the tensor", "w.bin", &[]);
    std::fs::write(short.path("a/b/w.bin"), [0; 10]).expect("written");
    assert_none_wrong([
        short,
        trial("an offset beyond the end", "w.bin", &[("offset", "1099511627776")]),
        trial(
            "a length beyond the end",
            "w.bin",
            &[("offset", "0"), ("length", "1099511627776")],
        ),
        trial(
            "offset + length overflow",
            "w.bin",
            &[("offset", "18446744073709551608"), ("length", "16")],
        ),
        trial("a negative offset", "w.bin", &[("offset", "-4")]),
        trial("an offset in words", "w.bin", &[("offset", "banana")]),
        trial("a length shorter than the tensor", "w.bin", &[("length", "8")]),
    ]);
}

/// The output takes its external data with it, into a file of its own.
#[test]
fn valid_external_data_are_read() {
    let mut t = trial("valid", "w.bin", &[("offset", "0"), ("length", "16")]).may(&[0]);
    t.output = tempfile::tempdir().expect("a folder").keep().join("out.onnx");
    let out = t.output.clone();
    assert_none_wrong([t]);
    assert!(onnxzip::onnx::read(&out).is_ok());
    std::fs::remove_dir_all(out.parent().expect("a folder")).expect("removed");
}
