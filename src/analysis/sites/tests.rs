use super::*;
use crate::ir::Attr;
use crate::pb;

/// A model of one node; `None` is the activation `x`.
fn model(op: &str, args: Vec<Option<Tensor>>, attrs: Vec<Attr>) -> (Model, NodeId) {
    let mut model = Model::new(pb::ModelProto {
        ir_version: Some(8),
        opset_import: vec![pb::OperatorSetIdProto {
            version: Some(13),
            ..Default::default()
        }],
        ..Default::default()
    });
    let main = model.main_id();
    let info = |name: &str| pb::ValueInfoProto {
        name: Some(name.into()),
        ..Default::default()
    };
    let x = model.add_input(main, info("x"));
    let inputs: Vec<Option<ValueId>> = args
        .into_iter()
        .enumerate()
        .map(|(i, t)| Some(t.map_or(x, |t| model.add_const(main, &format!("c{i}"), t))))
        .collect();
    let (node, out) = model.add_node(main, "n", op, &inputs, &["y"], attrs);
    model.add_output(main, info("y"), out[0]);
    (model, node)
}

fn counting(dims: &[usize]) -> Tensor {
    let n = dims.iter().product::<usize>();
    Tensor::new(dims, (0..n).map(|i| i as f32).collect())
}

fn only(model: &Model) -> Site {
    let mut all = sites(model);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[test]
fn matrices_have_outputs_as_rows_and_come_back() {
    type Case = (&'static str, usize, Vec<Option<Tensor>>, Vec<Attr>);
    let cases: Vec<Case> = vec![
        ("MatMul", 1, vec![None, Some(counting(&[3, 2]))], vec![]),
        ("MatMul", 0, vec![Some(counting(&[2, 3])), None], vec![]),
        (
            "Gemm",
            1,
            vec![None, Some(counting(&[2, 3]))],
            vec![Attr::int("transB", 1)],
        ),
        (
            "Gemm",
            0,
            vec![Some(counting(&[3, 2])), None],
            vec![Attr::int("transA", 1)],
        ),
        ("Conv", 1, vec![None, Some(counting(&[2, 3, 1, 1]))], vec![]),
        (
            "Conv",
            1,
            vec![None, Some(counting(&[2, 1, 3]))],
            vec![Attr::int("group", 2)],
        ),
        ("ConvTranspose", 1, vec![None, Some(counting(&[3, 2, 1]))], vec![]),
    ];
    for (op, slot, args, attrs) in cases {
        let (model, node) = model(op, args, attrs);
        let site = only(&model);
        assert_eq!((site.node, site.slot, site.shared), (node, slot, false));
        let matrix = site.matrix(&model).expect("a matrix");
        assert_eq!(matrix.dim(), (2, 3), "{op}");
        let by_rows = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]];
        let by_columns = [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]];
        let expected = if site.layout.out_axis == 0 { by_rows } else { by_columns };
        assert_eq!(matrix, ndarray::arr2(&expected), "{op}");
        let back = site.tensor_of(&model, matrix.view()).expect("a tensor");
        assert!(back.same_data(model.constant(site.weight).expect("a weight")), "{op}");
    }
}

#[test]
fn groups_are_stacked_by_rows() {
    // 2 groups of 2 inputs and 3 outputs, 2 taps.
    let (conv, _) = model(
        "Conv",
        vec![None, Some(counting(&[6, 2, 2]))],
        vec![Attr::int("group", 2)],
    );
    let site = only(&conv);
    assert_eq!((site.outputs(), site.inputs(), site.rows(1)), (6, 4, 3..6));
    assert_eq!(site.matrix(&conv).expect("a matrix").dim(), (6, 4));
    let (turned, _) = model(
        "ConvTranspose",
        vec![None, Some(counting(&[4, 3, 2]))],
        vec![Attr::int("group", 2)],
    );
    let site = only(&turned);
    assert_eq!((site.outputs(), site.inputs(), site.rows(1)), (6, 4, 6..12));
    let matrix = site.matrix(&turned).expect("a matrix");
    assert_eq!(matrix.dim(), (12, 2));
    // Group 1, output 0, tap 1, input 1: channel 3 of the tensor.
    assert_eq!(matrix[[7, 1]], (3 * 6 + 1) as f32);
    assert_eq!(
        [0, 1, 2, 7, 11].map(|row| site.output(row)),
        [(0, 0), (0, 0), (1, 1), (3, 0), (5, 2)]
    );
    let Patch::Windows { kernel, groups, .. } = site.patch else {
        panic!("groups need windows")
    };
    assert_eq!((kernel, groups), (vec![1], 2));
}

#[test]
fn same_padding_is_made_explicit() {
    let window = |stride: usize, pads| Window {
        kernel: vec![4],
        strides: vec![stride],
        dilations: vec![1],
        pads,
        transposed: false,
    };
    assert_eq!(explicit_pads(&window(1, Pads::SameUpper), &[None]), [1, 2]);
    assert_eq!(explicit_pads(&window(1, Pads::SameLower), &[Some(9)]), [2, 1]);
    assert_eq!(explicit_pads(&window(2, Pads::SameUpper), &[Some(9)]), [1, 2]);
    assert_eq!(explicit_pads(&window(2, Pads::SameUpper), &[Some(8)]), [1, 1]);
    assert_eq!(explicit_pads(&window(7, Pads::SameUpper), &[Some(14)]), [0, 0]);
}

#[test]
fn an_add_after_a_matmul_is_its_bias_when_it_varies_along_the_outputs_only() {
    for (dims, is_bias) in [
        (vec![2], true),
        (vec![1, 2], true),
        (vec![1], true),
        (vec![5, 1], false),
        (vec![5, 2], false),
    ] {
        let (mut m, node) = model("MatMul", vec![None, Some(counting(&[3, 2]))], vec![]);
        let main = m.main_id();
        let b = m.add_const(main, "b", counting(&dims));
        let y = m.main().outputs()[0].value;
        let (add, z) = m.add_node(main, "add", "Add", &[Some(b), None], &["z"], vec![]);
        m.replace_uses(y, z[0]);
        m.set_input(add, 1, Some(y));
        let site = only(&m);
        assert_eq!((site.node, site.bias.is_some()), (node, is_bias), "{dims:?}");
        if is_bias {
            let last = if dims == [1] { 0.0 } else { 1.0 };
            assert_eq!(site.bias_values(&m), Some(vec![0.0, last]));
            assert!(site.owns_bias(&m));
        }
    }
}

#[test]
fn what_cannot_be_used_says_why() {
    let reason = |op, args, attrs| {
        let (m, node) = model(op, args, attrs);
        site(&m, node).map(|s| s.expect_err("no site"))
    };
    let batch = vec![None, Some(counting(&[4, 3, 2]))];
    assert_eq!(
        reason("MatMul", batch, vec![]),
        Some("its constant is a batch of matrices")
    );
    let ints = Tensor::new(&[2, 2], vec![1i64; 4]);
    assert_eq!(
        reason("MatMul", vec![None, Some(ints)], vec![]),
        Some("its weight is not a float tensor")
    );
    let odd = vec![None, Some(counting(&[3, 1, 1]))];
    let two = vec![Attr::int("group", 2)];
    assert_eq!(
        reason("Conv", odd, two),
        Some("its channels are not divisible by its groups")
    );
    let thin = vec![None, Some(counting(&[3]))];
    assert!(reason("Conv", thin, vec![]).is_some());
    let wrong = vec![None, Some(counting(&[3, 1, 1]))];
    assert!(reason("Conv", wrong, vec![Attr::ints("strides", vec![-1])]).is_some());
    let nothing = vec![None, Some(counting(&[0, 2]))];
    assert_eq!(reason("MatMul", nothing, vec![]), Some("its weight is empty"));
    assert_eq!(reason("Relu", vec![None], vec![]), None);
    let (both, _) = model("MatMul", vec![None, None], vec![]);
    assert!(sites(&both).is_empty());
}
