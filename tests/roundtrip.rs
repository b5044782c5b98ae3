//! Reading and writing without a pass gives the same bytes, and a second decoder understands what was written.

use onnxzip::{ir, onnx};
use protobuf::Message;
use std::path::{Path, PathBuf};

/// Every `.onnx` file below a folder, sorted; none when the folder is not there.
pub fn models_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(f) = folders.pop() {
        for e in std::fs::read_dir(&f).into_iter().flatten().flatten() {
            let p = e.path();
            match p.is_dir() {
                true => folders.push(p),
                false if p.extension().is_some_and(|x| x == "onnx") => found.push(p),
                false => {}
            }
        }
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Real models: our fixtures, and the zoo where this checkout has it beside it.
pub fn real_models() -> Vec<PathBuf> {
    let mut all = models_below(&root().join("fixtures"));
    // Hostile files, and topologies without the numbers of their weights, are no models.
    all.retain(|p| {
        !p.components()
            .any(|c| c.as_os_str() == "hostile" || c.as_os_str() == "topologies")
    });
    assert!(!all.is_empty(), "the fixtures are there");
    all.extend(models_below(&root().join("../shared/zoo/models")));
    all
}

#[test]
fn reading_and_writing_gives_the_same_bytes() {
    let all = real_models();
    for path in &all {
        let model = onnx::read(path).expect("a model");
        let written = onnx::to_bytes(&model).expect("bytes");
        assert!(
            written == std::fs::read(path).expect("bytes"),
            "{} differs",
            path.display()
        );
    }
    println!("{} models come back byte for byte", all.len());
}

#[test]
fn with_short_names_it_is_the_same_model() {
    for path in &real_models() {
        let model = onnx::read(path).expect("a model");
        let short = onnx::stripped(&model);
        let written = onnx::to_bytes(&short).expect("bytes");
        let again = onnx::from_bytes(written.into(), &onnx::External::below(None)).expect("a model");
        ir::check::check(&again).expect("sound");
        let ports = |m: &ir::Model| -> Vec<String> {
            let all = m.main().inputs().iter().chain(m.main().outputs());
            all.map(|p| p.name().to_owned()).collect()
        };
        assert_eq!(ports(&again), ports(&model), "{}", path.display());
        // The same operators, constants and edges under other names: with names by place, both are one.
        let shape = |m: &ir::Model| -> Vec<String> {
            let mut places = std::collections::HashMap::new();
            let mut all = Vec::new();
            for (_, n) in m.nodes() {
                let mut place = |v: &Option<ir::ValueId>| {
                    let next = places.len();
                    let id = v.map(|v| *places.entry(v).or_insert(next));
                    let data = v.and_then(|v| m.constant(v)).map(|t| t.byte_len());
                    format!("{id:?} {data:?}")
                };
                let ends: Vec<String> = n.inputs().iter().chain(n.outputs()).map(&mut place).collect();
                all.push(format!("{} {ends:?} {:?}", n.op.name, n.attrs.len()));
            }
            all
        };
        assert_eq!(shape(&again), shape(&short), "{}", path.display());
        assert_eq!(shape(&short), shape(&model), "{}", path.display());
        let long = onnx::encoded_len(&model).expect("bytes");
        assert!(onnx::encoded_len(&short).expect("bytes") <= long, "{}", path.display());
    }
}

/// `onnx-protobuf` is made from an older schema by another code generator.
#[test]
fn a_second_decoder_reads_what_was_written() {
    for path in real_models() {
        let model = onnx::read(&path).expect("a model");
        let mut proto = onnx_protobuf::ModelProto::new();
        let written = onnx::to_bytes(&model).expect("bytes");
        proto.merge_from_bytes(&written).expect("it decodes");
        let graph = proto.graph.as_ref().expect("a graph");
        assert_eq!(graph.node.len(), model.main().nodes().len());
        assert_eq!(graph.initializer.len(), model.main().consts().len());
        for (t, &id) in graph.initializer.iter().zip(model.main().consts()) {
            let value = model.value(id);
            assert_eq!(t.name, value.name);
            let tensor = value.tensor().expect("data");
            assert_eq!(t.dims, tensor.dims().iter().map(|&d| d as i64).collect::<Vec<_>>());
            if !t.raw_data.is_empty() {
                assert!(t.raw_data[..] == *tensor.raw(), "{}: {}", path.display(), value.name);
            }
        }
    }
}

#[test]
fn external_data_go_out_and_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = &real_models()[0];
    let model = onnx::read(source).expect("a model");
    let out = folder.path().join("m.onnx");
    let options = onnx::WriteOptions {
        external_data: true,
        ..Default::default()
    };
    onnx::write(&model, &out, options)
        .expect("written")
        .commit()
        .expect("in place");
    assert!(out.metadata().expect("a file").len() < 20_000);
    let again = onnx::read(&out).expect("a model");
    assert!(onnx::to_bytes(&again).expect("bytes") == std::fs::read(source).expect("bytes"));
    // over itself, while the data file is mapped
    onnx::write(&again, &out, onnx::WriteOptions::default())
        .expect("written")
        .commit()
        .expect("in place");
    let third = onnx::read(&out).expect("a model");
    ir::check::check(&third).expect("whole");
    assert!(onnx::to_bytes(&third).expect("bytes") == std::fs::read(source).expect("bytes"));
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a folder").count(),
        2,
        "no temporary file is left"
    );
}

#[test]
fn a_file_from_before_imports_can_be_read_again_after_it_was_raised() {
    let mut proto = crate::tool::model(vec![crate::tool::node("Relu", &["x"], &["y"])], vec![]);
    proto.ir_version = None;
    proto.opset_import.clear();
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("old.onnx");
    crate::tool::save(&path, &proto);
    let mut m = onnx::read(&path).expect("it is read");
    m.raise_ir(4);
    std::fs::write(&path, onnx::to_bytes(&m).expect("it is written")).expect("the disk");
    let again = onnx::read(&path).expect("it is read again");
    assert_eq!((again.opset(""), again.rest.ir_version()), (1, 4));
}
