//! Embedding tables.

use super::{Dataset, Model, Tensor, ValueId, input, numbers, output, run, run_on};
use crate::tool::samples;
use onnxzip::ir::{Attr, DType, Node};
use onnxzip::pb;

/// What reads a table besides the Gather.
#[derive(Clone, Copy, PartialEq)]
enum Other {
    Nothing,
    /// A MatMul, turned.
    MatMul,
    /// A Gemm, as it is.
    Gemm,
    Neg,
}

/// A Gather from a table of 200 × 32, then Tanh, and what `other` makes of it and the table.
fn embedding(other: Other) -> Model {
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
    match other {
        Other::Nothing => {}
        Other::MatMul => {
            let t = super::node(&mut m, "Transpose", "turn", &[table], "turned", vec![]);
            let z = super::node(&mut m, "MatMul", "head", &[y, t], "z", vec![]);
            output(&mut m, z, &[1, 5, 200]);
        }
        Other::Gemm => {
            let dims: ValueId = m.add_const(m.main_id(), "dims", Tensor::new(&[2], vec![5i64, 32]));
            let flat = super::node(&mut m, "Reshape", "flat", &[y, dims], "flat", vec![]);
            let turned = vec![Attr::int("transB", 1)];
            let z = super::node(&mut m, "Gemm", "head", &[flat, table], "z", turned);
            output(&mut m, z, &[5, 200]);
        }
        Other::Neg => {
            let z = super::node(&mut m, "Neg", "other", &[table], "z", vec![]);
            output(&mut m, z, &[200, 32]);
        }
    }
    m
}

/// Bytes of all constants as large as the table.
fn bytes(m: &Model) -> Vec<usize> {
    let all = m.values().filter_map(|(_, v)| v.tensor());
    all.filter(|t| t.len() == 6400).map(|t| t.byte_len()).collect()
}

fn ops(m: &Model) -> Vec<&str> {
    m.nodes().map(|(_, n)| n.op.name.as_str()).collect()
}

#[test]
fn a_table_is_gathered_in_int8_and_its_rows_are_close() {
    let mut m = embedding(Other::Nothing);
    let original = m.clone();
    run(&mut m, "int8");
    assert_eq!(ops(&m), ["Gather", "Tanh", "Cast", "Mul"]);
    let gap = super::sqnr(&original, &m);
    assert!((30.0..80.0).contains(&gap), "{gap} dB");
}

#[test]
fn a_table_that_something_else_reads_or_that_is_skipped_stays() {
    for (other, list) in [
        (Other::Neg, "int8(prefer=size)"),
        (Other::MatMul, "int8(prefer=size,skip=embed)"),
        (Other::MatMul, "int8(prefer=size,rest=float,skip=head)"),
    ] {
        let mut m = embedding(other);
        let before = ops(&m).len();
        run(&mut m, list);
        let reads = |n: &Node| n.is("Gather") && m.value(n.input(0).expect("a table")).name == "table";
        assert!(m.nodes().any(|(_, n)| reads(n)), "{list}");
        assert_eq!((bytes(&m), ops(&m).len()), (vec![4 * 6400], before), "{list}");
    }
    let mut m = embedding(Other::Nothing);
    run(&mut m, "int8(skip=embed)");
    assert_eq!(ops(&m), ["Gather", "Tanh"]);
}

#[test]
fn a_table_that_a_product_reads_as_well_shares_its_codes() {
    for other in [Other::MatMul, Other::Gemm] {
        for list in ["int8(prefer=size)", "weights(min=1)", "weights(form=folded,min=1)"] {
            let mut m = embedding(other);
            let original = m.clone();
            run(&mut m, list);
            assert_eq!(bytes(&m), [6400], "{list}");
            let gap = super::sqnr(&original, &m);
            assert!((30.0..80.0).contains(&gap), "{list}: {gap} dB");
        }
        // A product that chooses the scale of its input at run time has codes of its own form, so the table has others.
        let mut m = embedding(other);
        let original = m.clone();
        run(&mut m, "dynamic(min=1)");
        assert_eq!(bytes(&m), [6400, 6400]);
        let gap = super::sqnr(&original, &m);
        assert!((25.0..80.0).contains(&gap), "{gap} dB");
    }
}

/// Words of sentences, given as floats: rows of a table, and a dense layer behind them.
fn encoder() -> Model {
    let mut m = super::model(17);
    let x = input(&mut m, &[1, 5]);
    let words = super::node(
        &mut m,
        "Cast",
        "words",
        &[x],
        "i",
        vec![Attr::int("to", DType::Int64 as i64)],
    );
    let table: ValueId = m.add_const(m.main_id(), "table", Tensor::new(&[200, 32], numbers(6400, 7)));
    let rows = super::node(&mut m, "Gather", "embed", &[table, words], "rows", vec![]);
    let w = super::weight(&mut m, "w", &[32, 64], 3);
    let y = super::node(&mut m, "MatMul", "dense", &[rows, w], "y", vec![]);
    output(&mut m, y, &[1, 5, 64]);
    m
}

fn sentences(m: &Model, count: usize, seed: u64) -> Dataset {
    let words = numbers(5 * count, seed)
        .into_iter()
        .map(|x| (100.0 * (x + 1.0)).floor());
    samples(m, &[count, 5], &words.collect::<Vec<f32>>())
}

#[test]
fn a_table_takes_fewer_bits_where_the_outputs_bear_it() {
    let original = encoder();
    let planes = |m: &Model| -> usize {
        let of_table = |name: &str| name.starts_with("table_quantized_bits");
        let all = m.values().filter(|(_, v)| of_table(&v.name));
        all.filter_map(|(_, v)| v.tensor()).map(|t| t.byte_len()).sum()
    };
    let made = |list: &str| {
        let mut m = original.clone();
        let notes = run_on(&mut m, list, &sentences(&original, 400, 5));
        let said = notes
            .iter()
            .any(|n| n.what.contains("table of 200 × 32 in ") && n.what.contains(" bits"));
        assert_eq!(said, planes(&m) > 0, "{list}");
        let sqnr = super::sqnr_on(&original, &m, &sentences(&original, 100, 9));
        (planes(&m), sqnr)
    };
    for list in ["int8(prefer=size", "weights(form=folded"] {
        let (none, fine) = made(&format!("{list})"));
        assert!(none == 0 && fine > 35.0, "{list}: {fine} dB");
        let (bytes, sqnr) = made(&format!("{list},mixed=0.01)"));
        assert!(
            (3 * 800..=6 * 800).contains(&bytes),
            "{list}: {bytes} bytes for 6400 codes"
        );
        assert!(sqnr > 20.0 && sqnr < fine, "{list}: {sqnr} dB");
        // What the outputs do not bear stays in 8 bits.
        assert_eq!(made(&format!("{list},mixed=0.000001)")).0, 0, "{list}");
    }
}

#[test]
fn a_table_whose_scales_something_else_reads_keeps_8_bits() {
    let mut m = encoder();
    let data = sentences(&m, 100, 5);
    run_on(&mut m, "int8(prefer=size)", &data);
    let (scale, _) = m.values().find(|(_, v)| v.name == "table_scale").expect("its scales");
    let other = super::node(&mut m, "Neg", "other", &[scale], "z", vec![]);
    output(&mut m, other, &[32]);
    let before = m.clone();
    run_on(&mut m, "weights(form=folded,mixed=0.05,min=1)", &data);
    assert_eq!(ops(&m), ops(&before));
}
