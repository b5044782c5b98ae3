//! Running the built binary, and small models made by hand.

use onnxzip::data::Dataset;
use onnxzip::engine::tract::Tract;
use onnxzip::ir::Model;
use onnxzip::ir::check::check;
use onnxzip::passes::{Context, Note, parse_list};
use onnxzip::progress::Silent;
use onnxzip::{onnx, pb};
use prost::Message;
use std::ffi::OsString;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a run of the binary left behind.
pub struct Ran {
    /// Exit code; `None` when a signal or our time limit ended it.
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Standard output of a run that must have succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.out, self.err);
        self.out
    }
}

/// Runs `onnxzip` and kills it after five minutes: nothing here takes more than seconds where nothing else runs.
pub fn onnxzip<S: Into<OsString>>(args: impl IntoIterator<Item = S>) -> Ran {
    let mut log = [
        tempfile::tempfile().expect("a file"),
        tempfile::tempfile().expect("a file"),
    ];
    let to = |f: &std::fs::File| Stdio::from(f.try_clone().expect("a handle"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_onnxzip"))
        .args(args.into_iter().map(Into::into))
        .stdin(Stdio::null())
        .stdout(to(&log[0]))
        .stderr(to(&log[1]))
        .spawn()
        .expect("the binary starts");
    let start = Instant::now();
    let code = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break status.code(),
            None if start.elapsed() > Duration::from_secs(300) => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut text = log.each_mut().map(|f| {
        let mut bytes = Vec::new();
        f.rewind().expect("rewound");
        f.read_to_end(&mut bytes).expect("read");
        String::from_utf8_lossy(&bytes).into_owned()
    });
    Ran {
        code,
        out: std::mem::take(&mut text[0]),
        err: std::mem::take(&mut text[1]),
    }
}

/// Runs the passes of a list on a model and gives what they said. The model must hold together and survive being written and read.
pub fn run_passes(model: &mut Model, list: &str, data: &Dataset, seed: u64) -> Vec<Note> {
    let samples = data.all();
    let mut cx = Context {
        engine: &Tract,
        samples: &samples,
        threads: 2,
        seed,
        progress: &Silent,
        memo: None,
        cache: None,
        objects: None,
        notes: Vec::new(),
        charts: Vec::new(),
        exhausted: false,
    };
    for request in parse_list(list).expect("a list of passes") {
        let pass = (request.info.build)(&request.options).expect("options");
        pass.run(model, &mut cx).expect("the pass runs");
        check(model).expect("the invariants hold");
    }
    let bytes = onnx::to_bytes(model).expect("it can be written");
    assert!(onnx::from_bytes(bytes.into(), &onnx::External::below(None)).is_ok());
    cx.notes
}

/// A file of `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The path as an argument.
pub fn arg(path: &Path) -> String {
    path.to_str().expect("our paths are UTF-8").to_owned()
}

/// A line on the terminal even when the test passes: the test harness swallows what the print macros write.
pub fn say(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A node.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> pb::NodeProto {
    pb::NodeProto {
        op_type: Some(op.into()),
        name: Some(format!("the {op}")),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        ..Default::default()
    }
}

/// An integer list attribute.
pub fn ints(name: &str, values: &[i64]) -> pb::AttributeProto {
    pb::AttributeProto {
        name: Some(name.into()),
        r#type: Some(pb::attribute_proto::AttributeType::Ints as i32),
        ints: values.to_vec(),
        ..Default::default()
    }
}

/// An integer attribute.
pub fn int(name: &str, value: i64) -> pb::AttributeProto {
    pb::AttributeProto {
        name: Some(name.into()),
        r#type: Some(pb::attribute_proto::AttributeType::Int as i32),
        i: Some(value),
        ..Default::default()
    }
}

/// A node with attributes.
pub fn with(mut node: pb::NodeProto, attrs: impl IntoIterator<Item = pb::AttributeProto>) -> pb::NodeProto {
    node.attribute.extend(attrs);
    node
}

/// A float tensor; the data need not fit the dimensions.
pub fn floats(name: &str, dims: &[i64], data: &[f32]) -> pb::TensorProto {
    pb::TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(pb::tensor_proto::DataType::Float as i32),
        raw_data: Some(data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()),
        ..Default::default()
    }
}

/// An int64 tensor with one axis.
pub fn longs(name: &str, data: &[i64]) -> pb::TensorProto {
    pb::TensorProto {
        name: Some(name.into()),
        dims: vec![data.len() as i64],
        data_type: Some(pb::tensor_proto::DataType::Int64 as i32),
        raw_data: Some(data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()),
        ..Default::default()
    }
}

/// A graph input or output of floats.
pub fn port(name: &str, dims: &[i64]) -> pb::ValueInfoProto {
    use pb::tensor_shape_proto::{Dimension, dimension::Value};
    let dim = |d: &i64| Dimension {
        value: Some(Value::DimValue(*d)),
        ..Default::default()
    };
    let tensor = pb::type_proto::Tensor {
        elem_type: Some(pb::tensor_proto::DataType::Float as i32),
        shape: Some(pb::TensorShapeProto {
            dim: dims.iter().map(dim).collect(),
        }),
    };
    pb::ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(pb::TypeProto {
            value: Some(pb::type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// `x` float [1, 4] in, `y` float [1, 4] out, opset 17.
pub fn model(nodes: Vec<pb::NodeProto>, weights: Vec<pb::TensorProto>) -> pb::ModelProto {
    model_with(nodes, weights, port("x", &[1, 4]), port("y", &[1, 4]))
}

/// A model with one input and one output, opset 17.
pub fn model_with(
    nodes: Vec<pb::NodeProto>,
    weights: Vec<pb::TensorProto>,
    input: pb::ValueInfoProto,
    output: pb::ValueInfoProto,
) -> pb::ModelProto {
    pb::ModelProto {
        ir_version: Some(8),
        opset_import: vec![pb::OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(17),
        }],
        graph: Some(pb::GraphProto {
            name: Some("g".into()),
            node: nodes,
            initializer: weights,
            input: vec![input],
            output: vec![output],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Writes a model.
pub fn save(path: &Path, model: &pb::ModelProto) {
    std::fs::write(path, model.encode_to_vec()).expect("written");
}

/// Samples for the input `x` of a model, as a file: the first of `dims` counts them.
pub fn samples(model: &Model, dims: &[usize], data: &[f32]) -> Dataset {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.npy");
    let shape: String = dims.iter().map(|d| format!("{d},")).collect();
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}");
    let header = format!("{header:<117}\n");
    let length = (header.len() as u16).to_le_bytes();
    let parts = [
        b"\x93NUMPY\x01\x00",
        &length[..],
        header.as_bytes(),
        bytemuck::cast_slice(data),
    ];
    std::fs::write(&path, parts.concat()).expect("written");
    let data = Dataset::open(&path, model).expect("readable");
    std::mem::forget(folder); // the data set maps the file
    data
}
