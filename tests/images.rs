//! Folders of images and raw numbers as data.

use crate::tool::{arg, fixture, model_with, node, onnxzip, port, save};
use image::{Rgb, RgbImage};
use onnxzip::data::{Dataset, Preprocess};
use onnxzip::ir::{Model, Tensor};
use onnxzip::{onnx, pb};
use prost::Message;
use std::path::Path;

/// A model that gives out what it gets.
fn taking(dims: &[i64]) -> pb::ModelProto {
    model_with(
        vec![node("Relu", &["x"], &["y"])],
        Vec::new(),
        port("x", dims),
        port("y", dims),
    )
}

fn read(proto: &pb::ModelProto) -> Model {
    onnx::from_bytes(proto.encode_to_vec().into(), &onnx::External::below(None)).expect("a model")
}

fn typed(dims: &[i64], dtype: pb::tensor_proto::DataType) -> Model {
    let mut proto = taking(dims);
    let graph = proto.graph.as_mut().expect("a graph");
    for port in graph.input.iter_mut().chain(&mut graph.output) {
        let value = port.r#type.as_mut().and_then(|t| t.value.as_mut());
        if let Some(pb::type_proto::Value::TensorType(t)) = value {
            t.elem_type = Some(dtype as i32);
        }
    }
    read(&proto)
}

/// A photo of `w`×`h` pixels: red grows to the right, green downwards, blue is 200.
fn photo(path: &Path, w: u32, h: u32) {
    let pixel = |x, y| Rgb([(x * 9 % 256) as u8, (y * 11 % 256) as u8, 200]);
    RgbImage::from_fn(w, h, pixel).save(path).expect("saved");
}

fn open(folder: &Path, line: &str, model: &Model) -> anyhow::Result<Dataset> {
    let line: Option<Preprocess> = (!line.is_empty()).then(|| line.parse().expect("a line"));
    Dataset::open_with(folder, line.as_ref(), model)
}

fn floats(data: &Dataset, i: usize) -> (Vec<usize>, Vec<f32>) {
    let sample = data.get(i).expect("a sample");
    let t: &Tensor = &sample["x"];
    (t.dims().to_vec(), t.to_f32().expect("numbers").into_owned())
}

#[test]
fn a_line_makes_inputs_of_photos_in_the_order_of_their_names() {
    let folder = tempfile::tempdir().expect("a folder");
    photo(&folder.path().join("b.png"), 8, 6);
    photo(&folder.path().join("a.png"), 6, 9);
    let model = read(&taking(&[1, 3, 4, 4]));
    let line = "crop 4, scale 1/255, mean 0.5 0.25 0, std 0.5 0.5 2";
    let data = open(folder.path(), line, &model).expect("photos");
    let said = data.preprocess.as_deref();
    assert_eq!(
        said,
        Some("crop 4, rgb, scale 1/255, mean 0.5 0.25 0, std 0.5 0.5 2, nchw")
    );
    assert_eq!(data.len(), 2);
    let (dims, x) = floats(&data, 0);
    assert_eq!(dims, [1, 3, 4, 4]);
    // a.png is 6×9: the crop begins at column 1, row 2.
    assert_eq!(x[0], (9.0 / 255.0 - 0.5) / 0.5);
    assert_eq!(x[16], (22.0 / 255.0 - 0.25) / 0.5);
    assert_eq!(x[47], 200.0 / 255.0 / 2.0);
    let last = read(&taking(&[1, 4, 4, 3]));
    let (dims, x) = floats(
        &open(folder.path(), "crop 4, bgr, mean 100 10 1", &last).expect("photos"),
        0,
    );
    assert_eq!((dims, &x[..3]), (vec![1, 4, 4, 3], &[100.0, 12.0, 8.0][..]));
    let grey = read(&taking(&[1, 1, 4, 4]));
    let (_, x) = floats(&open(folder.path(), "crop 4, scale 1", &grey).expect("photos"), 0);
    assert_eq!(x[0], (0.299 * 9.0 + 0.587 * 22.0 + 0.114 * 200.0f32).round());
}

#[test]
fn bytes_stay_bytes_and_need_no_line() {
    let folder = tempfile::tempdir().expect("a folder");
    photo(&folder.path().join("a.png"), 4, 4);
    let model = typed(&[1, 4, 4, 3], pb::tensor_proto::DataType::Uint8);
    let data = open(folder.path(), "", &model).expect("photos");
    assert_eq!(data.preprocess.as_deref(), Some("resize 4x4, rgb, nhwc"));
    assert_eq!(floats(&data, 0).1[..6], [0.0, 0.0, 200.0, 9.0, 0.0, 200.0]);
    let error = open(folder.path(), "scale 1/255", &model).err().expect("no bytes");
    assert!(format!("{error:#}").contains("uint8"), "{error:#}");
    let signed = typed(&[1, 4, 4, 3], pb::tensor_proto::DataType::Int8);
    let data = open(folder.path(), "mean 128", &signed).expect("photos");
    assert_eq!(floats(&data, 0).1[..3], [-128.0, -128.0, 72.0]);
    assert!(open(folder.path(), "scale 1", &signed).is_err(), "200 is no int8");
}

#[test]
fn what_does_not_fit_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir().expect("a folder");
    photo(&folder.path().join("a.png"), 8, 6);
    let model = read(&taking(&[1, 3, 4, 4]));
    let free = read(&taking(&[1, 3, 0, 0]));
    for (model, line, word) in [
        (&model, "", "--preprocess"),
        (&model, "scale 1/255", "resize 4x4"),
        (&model, "grey, resize 4x4", "further to the left"),
        (&model, "resize 4x4, grey", "has 1 channel(s)"),
        (&model, "crop 7", "resize first"),
        (&read(&taking(&[1, 3, 4, 3])), "resize 4x4", "nchw or nhwc"),
        (&read(&taking(&[1, 12])), "resize 4x4", "three axes"),
    ] {
        let line: Result<Preprocess, _> = match line {
            "" => Err(None),
            line => line.parse().map_err(Some),
        };
        let error = match line {
            Ok(line) => Dataset::open_with(folder.path(), Some(&line), model).err(),
            Err(None) => Dataset::open_with(folder.path(), None, model).err(),
            Err(error) => error,
        };
        let error = format!("{:#}", error.expect(word));
        assert!(error.contains(word), "{word}: {error}");
    }
    photo(&folder.path().join("b.png"), 9, 6);
    let data = open(folder.path(), "scale 1/255", &free).expect("the first one");
    let error = format!("{:#}", data.get(1).expect_err("another size"));
    assert!(error.contains("make them alike"), "{error}");
    let npz = open(&fixture("digits.npz"), "resize 8", &model)
        .err()
        .expect("no images");
    assert!(format!("{npz:#}").contains("nothing to preprocess"), "{npz:#}");
}

#[test]
fn folders_named_by_numbers_are_labels() {
    let folder = tempfile::tempdir().expect("a folder");
    for (class, name) in [("7", "a.png"), ("3", "z.png")] {
        let class = folder.path().join(class);
        std::fs::create_dir(&class).expect("a folder");
        photo(&class.join(name), 4, 4);
    }
    let model = read(&taking(&[1, 3, 4, 4]));
    let data = open(folder.path(), "scale 1/255", &model).expect("photos");
    assert_eq!(data.labels().expect("labels"), [3, 7]);
    photo(&folder.path().join("x.png"), 4, 4);
    let data = open(folder.path(), "scale 1/255", &model).expect("photos");
    assert!(data.labels().is_err(), "one lies in no class");
}

#[test]
fn hostile_images_cost_no_memory_and_links_are_not_followed_out_of_the_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.png");
    photo(&path, 4, 4);
    let good = std::fs::read(&path).expect("a PNG");
    let model = read(&taking(&[1, 3, 4, 4]));
    let mut huge = good.clone();
    huge[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]); // 65,536 × 65,536
    let crc = crc32(&huge[12..29]);
    huge[29..33].copy_from_slice(&crc.to_be_bytes());
    for bytes in [huge, good[..good.len() / 2].to_vec(), b"\x89PNG".to_vec(), Vec::new()] {
        std::fs::write(&path, &bytes).expect("written");
        let error = open(folder.path(), "resize 4x4", &model).err().expect("no image");
        assert!(format!("{error:#}").contains("a.png"), "{error:#}");
    }
    std::fs::write(&path, &good).expect("written");
    let mut wide = RgbImage::new(20_000, 1);
    wide.put_pixel(0, 0, Rgb([1, 2, 3]));
    wide.save(folder.path().join("b.png")).expect("saved");
    let data = open(folder.path(), "resize 4, crop 4", &model).expect("the first one");
    assert!(data.get(1).is_ok(), "80,000 × 4 pixels are cropped");
    let data = open(folder.path(), "resize 16384, crop 4", &model)
        .err()
        .expect("too many pixels");
    assert!(format!("{data:#}").contains("pixels are made"), "{data:#}");
    #[cfg(unix)]
    {
        let elsewhere = tempfile::tempdir().expect("a folder");
        photo(&elsewhere.path().join("secret.png"), 4, 4);
        std::os::unix::fs::symlink(&path, folder.path().join("c.png")).expect("a link");
        assert_eq!(open(folder.path(), "resize 4x4", &model).expect("photos").len(), 3);
        let link = folder.path().join("d.png");
        std::os::unix::fs::symlink(elsewhere.path().join("secret.png"), link).expect("a link");
        let error = open(folder.path(), "resize 4x4", &model).err().expect("a link out");
        assert!(format!("{error:#}").contains("link out of the folder"), "{error:#}");
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| {
            (c >> 1) ^ if c & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

#[test]
fn raw_numbers_are_one_sample_a_file_or_many_in_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    std::fs::write(folder.path().join("b.bin"), bytes(&[5.0, 6.0, 7.0, 8.0])).expect("written");
    std::fs::write(folder.path().join("a.bin"), bytes(&[1.0, 2.0, 3.0, 4.0])).expect("written");
    let model = read(&taking(&[0, 4]));
    let data = Dataset::open(folder.path(), &model).expect("raw numbers");
    assert_eq!(
        (data.len(), floats(&data, 1)),
        (2, (vec![1, 4], vec![5.0, 6.0, 7.0, 8.0]))
    );
    let one = folder.path().join("all.raw.bin");
    std::fs::write(&one, bytes(&[1.0; 12])).expect("written");
    assert_eq!(Dataset::open(&one, &model).expect("raw numbers").len(), 3);
    let error = Dataset::open(folder.path(), &model).err().expect("the wrong length");
    assert!(format!("{error:#}").contains("16 bytes for a sample"), "{error:#}");
    let free = read(&taking(&[1, 0, 2]));
    let (dims, _) = floats(&Dataset::open(&one, &free).expect("raw numbers"), 0);
    assert_eq!(dims, [1, 6, 2]);
    let mut two = taking(&[1, 4]);
    two.graph.as_mut().expect("a graph").input.push(port("a:0", &[1, 2]));
    let two = read(&two);
    let error = Dataset::open(folder.path(), &two).err().expect("no folders");
    assert!(format!("{error:#}").contains("no folder \"x\""), "{error:#}");
    for (name, x) in [("x", &[1.0f32; 4][..]), ("a_0", &[2.0; 2])] {
        std::fs::create_dir(folder.path().join(name)).expect("a folder");
        std::fs::write(folder.path().join(name).join("0.bin"), bytes(x)).expect("written");
    }
    let sample = Dataset::open(folder.path(), &two)
        .and_then(|d| d.get(0))
        .expect("a sample");
    assert_eq!(sample["a:0"].to_f32().expect("numbers")[..], [2.0, 2.0]);
}

#[test]
fn all_commands_read_photos() {
    let folder = tempfile::tempdir().expect("a folder");
    let photos = folder.path().join("photos");
    std::fs::create_dir(&photos).expect("a folder");
    for i in 0..6 {
        photo(&photos.join(format!("{i}.png")), 20 + i, 30 - i);
    }
    let (from, to) = (folder.path().join("m.onnx"), folder.path().join("o.onnx"));
    save(&from, &taking(&[1, 3, 8, 8]));
    let (from, to, photos) = (arg(&from), arg(&to), arg(&photos));
    let line = "resize 10, crop 8, scale 1/255";
    let data = ["--calib", &photos, "--preprocess", line];
    let out = onnxzip(
        ["optimize"]
            .iter()
            .chain(&data)
            .chain(&[from.as_str(), to.as_str()])
            .copied(),
    )
    .ok();
    assert!(out.contains("resize 10, crop 8, rgb, scale 1/255, nchw"), "{out}");
    for command in ["verify", "bench"] {
        let out = onnxzip(
            [command]
                .iter()
                .chain(&data)
                .chain(&[from.as_str(), to.as_str()])
                .copied(),
        )
        .ok();
        assert!(out.contains("rgb, scale 1/255, nchw"), "{command}: {out}");
    }
    let none = onnxzip(["optimize", "--preprocess", line, &from, &to]);
    assert_eq!(none.code, Some(2));
    assert!(none.err.contains("--calib"), "{}", none.err);
    let wrong = onnxzip(["optimize", "--calib", &photos, "--preprocess", "crop tiny", &from, &to]);
    assert_eq!(wrong.code, Some(2));
    assert!(
        wrong.err.contains("\"tiny\" is not a number of pixels"),
        "{}",
        wrong.err
    );
}
