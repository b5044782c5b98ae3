//! Raising the operator set before `int8`.

use super::*;

#[test]
fn old_softmax_and_other_changed_operators_mean_the_same_after_raising() {
    let mut m = model(7);
    let x = input(&mut m, &[2, 3, 4, 4]);
    let c = node(
        &mut m,
        "Clip",
        "clip",
        &[x],
        "c",
        vec![Attr::float("min", -0.5), Attr::float("max", 0.75)],
    );
    let attrs = vec![
        Attr::ints("pads", vec![0, 0, 1, 1, 0, 0, 1, 1]),
        Attr::float("value", 0.25),
    ];
    let p = node(&mut m, "Pad", "pad", &[c], "p", attrs);
    let attrs = vec![
        Attr::ints("starts", vec![1]),
        Attr::ints("ends", vec![6]),
        Attr::ints("axes", vec![2]),
    ];
    let s = node(&mut m, "Slice", "slice", &[p], "s", attrs);
    let u = node(
        &mut m,
        "Unsqueeze",
        "unsqueeze",
        &[s],
        "u",
        vec![Attr::ints("axes", vec![0])],
    );
    let q = node(
        &mut m,
        "Squeeze",
        "squeeze",
        &[u],
        "q",
        vec![Attr::ints("axes", vec![0])],
    );
    let f = node(&mut m, "Softmax", "softmax", &[q], "f", vec![]);
    let attrs = vec![Attr::ints("axes", vec![3]), Attr::int("keepdims", 0)];
    let y = node(&mut m, "ReduceSum", "sum", &[f], "y", attrs);
    output(&mut m, y, &[2, 3, 5]);
    let original = m.clone();
    onnxzip::passes::opset::raise_opset(&mut m, 13).expect("all of it can be raised");
    check::check(&m).expect("the invariants hold");
    assert_eq!(m.opset(""), 13);
    assert!(m.rest.ir_version() >= 7);
    assert_eq!(count(&m, "Flatten"), 1);
    assert!(sqnr(&original, &m) > 100.0);
}

#[test]
fn an_operator_that_cannot_be_raised_is_named() {
    let mut m = model(8);
    let x = input(&mut m, &[2, 3]);
    let attrs = vec![Attr::int("spatial", 0)];
    let s = weight(&mut m, "s", &[3], 1);
    let y = node(&mut m, "BatchNormalization", "norm7", &[x, s, s, s, s], "y", attrs);
    output(&mut m, y, &[2, 3]);
    let e = onnxzip::passes::opset::raise_opset(&mut m, 13).expect_err("spatial=0");
    assert!(format!("{e:#}").contains("norm7"), "{e:#}");
}
