//! Shape inference on whole models.

use onnxzip::analysis::cost::cost;
use onnxzip::analysis::infer::{Types, infer, infer_for};
use onnxzip::ir::Model;
use onnxzip::onnx;
use onnxzip::ops::infer::{Dim, Elem};
use std::collections::BTreeMap;
use std::path::Path;

fn dump(model: &Model, types: &Types) -> serde_json::Value {
    let mut all = Vec::new();
    for (v, value) in model.values() {
        let f = types.fact(v);
        let dim = |d: &Dim| match d {
            Dim::Known(n) => serde_json::json!(n),
            Dim::Symbol(s) => serde_json::json!(s),
            Dim::Unknown => serde_json::Value::Null,
        };
        let elem = |e: &Elem| match e {
            Elem::Int(n) => serde_json::json!(n),
            Elem::Float(n) => serde_json::json!(n),
            Elem::Symbol(s) => serde_json::json!(s),
            Elem::Unknown => serde_json::Value::Null,
        };
        all.push(serde_json::json!({
            "name": value.name,
            "main": value.graph() == model.main_id(),
            "const": value.tensor().is_some(),
            "op": value.producer().map(|n| model.node(n).op.name.clone()),
            "dtype": f.dtype.map(|d| d as i32),
            "shape": f.shape.as_ref().map(|s| s.iter().map(dim).collect::<Vec<_>>()),
            "elems": f.elems.as_ref().map(|s| s.iter().map(elem).collect::<Vec<_>>()),
            "holds": f.holds.as_ref().map(|f| serde_json::json!([f.dtype.map(|d| d as i32), f.shape.as_ref().map(|s| s.iter().map(dim).collect::<Vec<_>>())])),
        }));
    }
    all.into()
}

/// `INFER_LIST`: a file of lines `model.onnx [json of input dims]`; `INFER_OUT`: where a line of JSON for each is written.
#[test]
#[ignore = "a tool: dumps facts for comparison with other inference"]
fn dump_facts() {
    let list = std::fs::read_to_string(std::env::var("INFER_LIST").unwrap()).unwrap();
    let mut out = String::new();
    for line in list.lines() {
        let (path, dims) = line.split_once('\t').unwrap_or((line, "{}"));
        let dims: BTreeMap<String, Vec<usize>> = serde_json::from_str(dims).unwrap();
        let got = onnx::read(Path::new(path)).and_then(|m| {
            let t = if dims.is_empty() {
                infer(&m)?
            } else {
                infer_for(&m, &dims)?
            };
            let c = cost(&m, &t);
            let macs: BTreeMap<String, Option<u64>> = c.nodes.iter().map(|n| (m.label(n.node), n.macs)).collect();
            Ok(serde_json::json!({"path": path, "facts": dump(&m, &t), "cost": [c.params, c.bytes, c.macs], "macs": macs}))
        });
        let json = match got {
            Ok(json) => json,
            Err(e) => serde_json::json!({"path": path, "error": format!("{e:#}")}),
        };
        out.push_str(&json.to_string());
        out.push('\n');
    }
    std::fs::write(std::env::var("INFER_OUT").unwrap(), out).unwrap();
}
