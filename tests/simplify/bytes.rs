//! What makes the file smaller.

use super::*;

#[test]
fn pieces_of_a_constant_are_computed_together_where_they_are_no_larger_than_it() {
    let net = |second: i64| {
        let mut n = Net::new(13);
        let x = n.input(&[-1, 1]);
        let w = n.floats(&[600], &(0..600).map(|i| i as f32).collect::<Vec<_>>());
        let mut pieces = Vec::new();
        for (from, to) in [(second, 600), (0, 300)] {
            let at = [from, to, 0].map(|i| {
                let main = n.0.main_id();
                let name = n.0.fresh_name("at");
                n.0.add_const(main, &name, Tensor::new(&[1], vec![i]))
            });
            pieces.push(n.op("Slice", &[w, at[0], at[1], at[2]], vec![]));
        }
        let turned = n.op("Concat", &pieces, vec![Attr::int("axis", 0)]);
        let y = n.op("Mul", &[x, turned], vec![]);
        n.output(y);
        n
    };
    assert_eq!(net(300).simplified(), ["Mul"]);
    assert_eq!(
        net(10).simplified(),
        ["Slice", "Slice", "Concat", "Mul"],
        "1,160 bytes more"
    );
}

#[test]
fn stack_traces_of_an_exporter_go_and_documentation_stays() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 4]);
    let y = n.op("Relu", &[x], vec![]);
    let z = n.op("Neg", &[y], vec![]);
    n.output(z);
    let prop = |key: &str| pb::StringStringEntryProto {
        key: Some(key.into()),
        value: Some("x".into()),
    };
    for (op, doc) in [
        ("Relu", "/site-packages/net.py(7): forward\n"),
        ("Neg", "turns it round"),
    ] {
        let id = n.0.nodes().find(|(_, n)| n.is(op)).unwrap().0;
        let rest = &mut n.0.node_mut(id).rest;
        rest.doc_string = Some(doc.into());
        rest.metadata_props = vec![prop("pkg.torch.onnx.stack_trace"), prop("owner")];
    }
    assert_eq!(n.simplified(), ["Relu", "Neg"]);
    let docs: Vec<&str> = n.0.nodes().map(|(_, n)| n.rest.doc_string()).collect();
    assert_eq!(docs, ["", "turns it round"]);
    assert!(n.0.nodes().all(|(_, n)| n.rest.metadata_props == [prop("owner")]));
}
