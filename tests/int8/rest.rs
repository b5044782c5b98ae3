//! What stays in floating point is stored in 8 bits.

use super::{Attr, Model, input, node, output, run, sqnr, weight};
use onnxzip::passes::NoteKind;

/// A GRU, which has no integers, and nothing else.
fn gru() -> Model {
    let mut m = super::model(17);
    let x = input(&mut m, &[6, 1, 40]);
    let w = weight(&mut m, "w", &[1, 96, 40], 1);
    let r = weight(&mut m, "r", &[1, 96, 32], 2);
    let hidden = vec![Attr::int("hidden_size", 32)];
    let y = node(&mut m, "GRU", "gru", &[x, w, r], "y", hidden);
    output(&mut m, y, &[6, 1, 1, 32]);
    m
}

/// What makes each input of a node.
fn makers<'a>(m: &'a Model, name: &str) -> Vec<Option<&'a str>> {
    let (_, n) = m.nodes().find(|(_, n)| n.name() == name).expect("it is there");
    let maker = |v| Some(m.node(m.value(v).producer()?).op.name.as_str());
    n.inputs().iter().flatten().map(|v| maker(*v)).collect()
}

#[test]
fn weights_of_operators_without_integers_are_stored() {
    let original = gru();
    let mut m = original.clone();
    let notes = run(&mut m, "int8");
    assert_eq!(makers(&m, "gru"), [None, Some("Mul"), Some("Mul")]);
    let db = sqnr(&original, &m);
    assert!((35.0..70.0).contains(&db), "{db} dB");
    let told = |n: &&onnxzip::passes::Note| n.kind == NoteKind::Did && n.what.contains("is stored in 8 bits");
    assert_eq!(notes.iter().filter(told).count(), 2, "{notes:?}");
}

#[test]
fn a_transposed_convolution_beside_integers_is_stored_though_its_moments_are_of_channels_alone() {
    let mut m = super::model(17);
    let x = input(&mut m, &[1, 32, 24, 24]);
    let (w, v) = (
        weight(&mut m, "w", &[32, 16, 4, 4], 2),
        weight(&mut m, "v", &[64, 16, 3, 3], 3),
    );
    let y = node(&mut m, "ConvTranspose", "turned", &[x, w], "y", vec![]);
    let z = node(&mut m, "Conv", "conv", &[y, v], "z", vec![]);
    output(&mut m, z, &[1, 64, 25, 25]);
    let original = m.clone();
    run(&mut m, "int8");
    assert_eq!(makers(&m, "turned")[1], Some("Mul"));
    assert_eq!(makers(&m, "conv")[1], Some("DequantizeLinear"));
    let db = sqnr(&original, &m);
    assert!(db > 25.0, "{db} dB");
}

#[test]
fn they_stay_where_asked_and_take_16_bits_where_outputs_err_too_much() {
    for (list, maker) in [
        ("int8(rest=float)", None),
        ("int8(skip=gru)", None),
        ("int8(target=generic)", None),
        ("int8(error=1e-9)", Some("Cast")),
    ] {
        let original = gru();
        let mut m = original.clone();
        let notes = run(&mut m, list);
        assert_eq!(makers(&m, "gru"), [None, maker, maker], "{list}");
        let refused = notes
            .iter()
            .any(|n| n.what.contains("outputs would err by more than error="));
        assert_eq!(refused, maker.is_some(), "{list}: {notes:?}");
        let db = sqnr(&original, &m);
        assert!(db > 60.0, "{list}: {db} dB");
    }
}
