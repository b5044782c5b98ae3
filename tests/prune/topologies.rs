//! A quarter of every group of channels goes, on well-known topologies: which layers are reached, and why others are not.
//! `fixtures/topologies.py` builds them; the weights are made up here.

use super::*;
use prost::Message;

const NAMES: &[&str] = &[
    "resnet18",
    "resnet50",
    "densenet121",
    "googlenet",
    "efficientnet_b0",
    "shufflenet_v2",
    "regnet_y",
    "mobilenet_v2",
    "mobilenet_v3",
    "squeezenet",
    "vgg16",
];

fn topology(name: &str) -> Model {
    let path = crate::tool::fixture("topologies").join(format!("{name}.onnx"));
    let mut proto = pb::ModelProto::decode(&std::fs::read(path).expect("a fixture")[..]).expect("a model");
    let mut state = 11u64;
    let graph = proto.graph.as_mut().expect("a graph");
    for t in &mut graph.initializer {
        let empty = t.raw_data.as_ref().is_none_or(|r| r.is_empty());
        if t.data_type != Some(DType::Float as i32) || !empty || !t.float_data.is_empty() {
            continue;
        }
        let n: i64 = t.dims.iter().product();
        let fan: i64 = t.dims.iter().skip(1).product();
        let size = (6.0 / fan.max(1) as f32).sqrt();
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            ((state >> 40) as f32 / 8388608.0 - 1.0) * size
        };
        let bytes: Vec<u8> = (0..n).flat_map(|_| next().to_le_bytes()).collect();
        t.raw_data = Some(bytes.into());
    }
    onnx::from_bytes(proto.encode_to_vec().into(), &onnx::External::below(None)).expect("it decodes")
}

/// Every Conv and Gemm with its number of rows.
fn rows(m: &Model) -> Vec<(String, usize)> {
    let of = |(_, n): (_, &onnxzip::ir::Node)| {
        let weight = n.input(1).and_then(|v| m.constant(v))?;
        (n.is("Conv") || n.is("Gemm")).then(|| (n.name().to_owned(), weight.dims()[0]))
    };
    m.nodes().filter_map(of).collect()
}

#[test]
fn a_quarter_goes_from_every_layer_that_no_graph_output_fixes() {
    let mut table = String::new();
    for name in NAMES {
        let mut model = topology(name);
        let before = rows(&model);
        let notes = run("prune(ratio=0.25,criterion=l2,repair=off,round_to=1)", &mut model);
        let after: std::collections::BTreeMap<String, usize> = rows(&model).into_iter().collect();
        let mut reached = 0;
        for (layer, n) in &before {
            if after[layer] < *n {
                reached += 1;
                continue;
            }
            let why = notes
                .iter()
                .find(|x| x.kind == NoteKind::Skip && x.node == *layer && x.what.starts_with("none of"));
            let why = why.unwrap_or_else(|| panic!("{name}: {layer} ({n}) was not reached, and nobody says why"));
            assert!(why.what.contains("graph output y"), "{name}: {layer}: {}", why.what);
            table += &format!("  {layer}: {}\n", why.what);
        }
        table += &format!("{name}: {reached} of {} layers reached\n", before.len());
        let data = Dataset::synthetic(&model, 3, 1);
        let sample = data.get(0).expect("a sample");
        let wanted = [model.main().outputs()[0].value];
        let out = Tract
            .load(&model, &wanted, &sample)
            .expect("tract loads it")
            .run(&sample)
            .expect("it runs");
        assert!(out[0].floats().expect("floats").iter().all(|x| x.is_finite()), "{name}");
        if let Ok(folder) = std::env::var("TOPOLOGIES") {
            std::fs::write(
                format!("{folder}/{name}.onnx"),
                onnx::to_bytes(&model).expect("it encodes"),
            )
            .expect("written");
            let raw = |t: &Tensor| t.raw().to_vec();
            std::fs::write(format!("{folder}/{name}.in"), raw(&sample["x"])).expect("written");
            std::fs::write(format!("{folder}/{name}.out"), raw(&out[0])).expect("written");
        }
    }
    crate::tool::say(&table);
}
