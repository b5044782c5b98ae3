//! Calibration data that do not fit, and such that look odd but are right.

use super::{Trial, assert_none_wrong};
use crate::tool::{arg, fixture};
use std::io::Write;
use std::path::Path;

/// An array with this header and these bytes, as `numpy.save` writes it.
fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let order = if fortran { "True" } else { "False" };
    let mut head = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
    while (10 + head.len()) % 64 != 63 {
        head.push(' ');
    }
    head.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((head.len() as u16).to_le_bytes());
    out.extend(head.as_bytes());
    out.extend(data);
    out
}

fn npz(path: &Path, arrays: &[(&str, Vec<u8>)], compressed: bool) {
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).expect("a file"));
    let method = if compressed {
        zip::CompressionMethod::Deflated
    } else {
        zip::CompressionMethod::Stored
    };
    for (name, bytes) in arrays {
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        zip.start_file(format!("{name}.npy"), options).expect("an entry");
        zip.write_all(bytes).expect("written");
    }
    zip.finish().expect("an archive");
}

/// `n` images of `h` by `w` pixels.
fn images(n: usize, pixels: usize, of: impl Fn(usize) -> f32) -> Vec<u8> {
    (0..n * pixels).flat_map(|i| of(i).to_le_bytes()).collect()
}

fn ramp(i: usize) -> f32 {
    (i % 251) as f32 / 251.0
}

fn trial(name: &str) -> Trial {
    let mut t = Trial::new(name).says(&["c.npz"]);
    t.input = fixture("digits_cnn.onnx");
    let calib = arg(&t.path("c.npz"));
    let mut t = t.args(&["--calib", &calib]);
    t.passes = "int8";
    t
}

fn with(name: &str, arrays: &[(&str, Vec<u8>)]) -> Trial {
    let t = trial(name);
    npz(&t.path("c.npz"), arrays, false);
    t
}

#[test]
fn data_that_do_not_fit_are_refused() {
    let image = |shape: &str, data: Vec<u8>| vec![("image", npy("<f4", false, shape, &data))];
    let good = || images(4, 784, ramp);
    let mut all = vec![
        trial("no file"),
        with("an empty archive", &[]),
        with(
            "a wrong key",
            &[("picture", npy("<f4", false, "(4, 1, 28, 28)", &good()))],
        )
        .says(&["c.npz", "image", "picture"]),
        with("a wrong shape", &image("(4, 1, 28, 27)", images(4, 28 * 27, ramp))).says(&["c.npz", "image", "27"]),
        with("a wrong rank", &image("(4, 5)", images(4, 5, ramp))),
        with("a scalar", &image("()", images(1, 1, ramp))),
        with("no samples", &image("(0, 1, 28, 28)", vec![])),
        with(
            "NaN",
            &image(
                "(4, 1, 28, 28)",
                images(4, 784, |i| if i == 3000 { f32::NAN } else { ramp(i) }),
            ),
        )
        .says(&["c.npz", "NaN", "sample 3"]),
        with(
            "infinity",
            &image(
                "(4, 1, 28, 28)",
                images(4, 784, |i| if i == 9 { f32::INFINITY } else { ramp(i) }),
            ),
        ),
        with("strings", &[("image", npy("<U1", false, "(4,)", &[0; 16]))]),
        with(
            "complex numbers",
            &[("image", npy("<c8", false, "(4, 1, 28, 28)", &[0; 4 * 784 * 8]))],
        ),
        with("pickled objects", &[("image", npy("|O", false, "(2,)", b"\x80\x04N."))]),
        with("big endian", &[("image", npy(">f4", false, "(4, 1, 28, 28)", &good()))]),
        with("an array cut short", &image("(400, 1, 28, 28)", good())),
        with("10^15 samples", &image("(1000000000000000, 1, 28, 28)", vec![0; 64])),
        with(
            "a shape that overflows",
            &image("(4294967296, 4294967296, 28, 28)", vec![0; 64]),
        ),
        with("a negative shape", &image("(-1, 1, 28, 28)", vec![0; 64])),
        // A PEG parser takes twice the time for every bracket. Found by fuzzing.
        with("nested brackets", &image(&"[".repeat(90), good())).says(&["c.npz", "records"]),
        with("nested tuples", &image(&"(".repeat(90), good())).says(&["c.npz", "records"]),
        with("an array without a header", &[("image", b"no numbers here".to_vec())]),
    ];
    let cut = with("an archive cut short", &image("(4, 1, 28, 28)", good()));
    let bytes = std::fs::read(cut.path("c.npz")).expect("read");
    std::fs::write(cut.path("c.npz"), &bytes[..bytes.len() / 2]).expect("written");
    all.push(cut);
    for (name, bytes) in [
        ("an empty file", vec![]),
        ("random bytes", super::files::noise(3, 5000)),
    ] {
        let t = trial(name);
        std::fs::write(t.path("c.npz"), bytes).expect("written");
        all.push(t);
    }
    let folder = trial("a folder without data");
    std::fs::create_dir(folder.path("c.npz")).expect("made");
    all.push(folder);
    assert_none_wrong(all);
}

/// Exit code 0 or, where the numbers are made up, the verdict's.
#[test]
fn odd_but_right_data_are_taken() {
    let good = || npy("<f4", false, "(8, 1, 28, 28)", &images(8, 784, ramp));
    let codes = &[0, 1, 3];
    let compressed = trial("a compressed archive").may(codes);
    npz(&compressed.path("c.npz"), &[("image", good())], true);
    assert_none_wrong([
        compressed,
        with(
            "a key that is no input",
            &[("image", good()), ("labels", npy("<i8", false, "(8,)", &[0; 64]))],
        )
        .may(codes),
        with(
            "Fortran order",
            &[("image", npy("<f4", true, "(8, 1, 28, 28)", &images(8, 784, ramp)))],
        )
        .may(codes),
        with(
            "one sample",
            &[("image", npy("<f4", false, "(1, 1, 28, 28)", &images(1, 784, ramp)))],
        )
        .may(codes),
    ]);
}
