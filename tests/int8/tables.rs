//! Embedding tables.

use super::{Model, Tensor, ValueId, numbers, output, run};
use onnxzip::ir::Attr;
use onnxzip::pb;

/// A Gather from a table of 200 × 32, then Tanh; `tied` has a MatMul read the table too.
fn embedding(tied: bool) -> Model {
    let mut m = super::model(17);
    let mut info = crate::tool::port("x", &[1, 5]);
    if let Some(pb::type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        t.elem_type = Some(pb::tensor_proto::DataType::Int64 as i32);
    }
    let x = m.add_input(m.main_id(), info);
    let table: ValueId = m.add_const(m.main_id(), "table", Tensor::new(&[200, 32], numbers(6400, 7)));
    let rows = super::node(
        &mut m,
        "Gather",
        "embed",
        &[table, x],
        "rows",
        vec![Attr::int("axis", 0)],
    );
    let y = super::node(&mut m, "Tanh", "tanh", &[rows], "y", vec![]);
    output(&mut m, y, &[1, 5, 32]);
    if tied {
        let t = super::node(&mut m, "Transpose", "turn", &[table], "turned", vec![]);
        let z = super::node(&mut m, "MatMul", "head", &[y, t], "z", vec![]);
        output(&mut m, z, &[1, 5, 200]);
    }
    m
}

fn ops(m: &Model) -> Vec<&str> {
    m.nodes().map(|(_, n)| n.op.name.as_str()).collect()
}

#[test]
fn a_table_is_gathered_in_int8_and_its_rows_are_close() {
    let mut m = embedding(false);
    let original = m.clone();
    run(&mut m, "int8");
    assert_eq!(ops(&m), ["Gather", "Tanh", "Cast", "Mul"]);
    let gap = super::sqnr(&original, &m);
    assert!((30.0..80.0).contains(&gap), "{gap} dB");
}

#[test]
fn a_table_that_something_else_reads_or_that_is_skipped_stays() {
    let mut m = embedding(true);
    run(&mut m, "int8(prefer=size)");
    assert!(
        m.nodes()
            .any(|(_, n)| n.is("Gather") && m.value(n.input(0).expect("a table")).name == "table")
    );
    let mut m = embedding(false);
    run(&mut m, "int8(skip=embed)");
    assert_eq!(ops(&m), ["Gather", "Tanh"]);
}
