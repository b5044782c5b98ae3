//! Masks in the forms that exports leave them: folded, with outputs equal bit for bit.

use super::*;

/// A float mask with scattered zeros, none of which clears a whole row or column.
fn mask(n: &mut Net, name: &str, dims: &[usize], dtype: DType) -> ValueId {
    let data: Vec<f32> = (0..dims.iter().product::<usize>())
        .map(|i| f32::from(u8::from(i % 3 != 1)))
        .collect();
    let t = match dtype {
        DType::Bool => Tensor::from_raw(
            DType::Bool,
            dims,
            data.iter().map(|x| *x as u8).collect::<Vec<u8>>().into(),
        )
        .expect("a mask"),
        _ => Tensor::new(dims, data),
    };
    n.tensor(name, t)
}

fn outputs(m: &Model) -> Vec<f32> {
    let sample = Dataset::synthetic(m, 3, 1).get(0).expect("a sample");
    let session = Tract
        .load(m, &[m.main().outputs()[0].value], &sample)
        .expect("tract loads it");
    session.run(&sample).expect("it runs")[0]
        .floats()
        .expect("floats")
        .into_owned()
}

/// `x · weight(…)`, where the function masks a 6 × 4 weight; the mask must fold and the outputs stay the same bits.
fn folds(what: &str, masked: impl Fn(&mut Net, ValueId) -> ValueId) {
    let mut n = Net::new(13);
    let x = n.input(&[2, 6]);
    let w = n.param("w", &[6, 4]);
    let w = masked(&mut n, w);
    let y = n.op("MatMul", &[x, w], vec![]);
    n.output("y", y);
    let before = outputs(&n.model);
    let notes = run("prune", &mut n.model);
    assert!(
        said(
            &notes,
            NoteKind::Did,
            "mask folded: 33.3 % zeros, 16 of 24 weights remain"
        ),
        "{what}: {notes:?}"
    );
    let left = n
        .model
        .nodes()
        .any(|(_, node)| node.is("Mul") || node.is("Where") || node.is("Cast"));
    assert!(!left, "{what}: a mask is left");
    let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
    assert_eq!(bits(before), bits(outputs(&n.model)), "{what}");
}

#[test]
fn every_form_of_a_mask_folds_to_the_same_bits() {
    folds("weight_orig * weight_mask", |n, w| {
        let m = mask(n, "m", &[6, 4], DType::Float);
        n.op("Mul", &[w, m], vec![])
    });
    folds("the mask first", |n, w| {
        let m = mask(n, "m", &[6, 4], DType::Float);
        n.op("Mul", &[m, w], vec![])
    });
    folds("Cast from bool", |n, w| {
        let m = mask(n, "m", &[6, 4], DType::Bool);
        let m = n.op("Cast", &[m], vec![Attr::int("to", 1)]);
        n.op("Mul", &[w, m], vec![])
    });
    folds("behind Identity and Reshape", |n, w| {
        let m = mask(n, "m", &[24], DType::Float);
        let m = n.op("Identity", &[m], vec![]);
        let s = n.tensor("s", Tensor::new(&[2], vec![6i64, -1]));
        let m = n.op("Reshape", &[m, s], vec![]);
        n.op("Mul", &[w, m], vec![])
    });
    folds("both transposed", |n, w| {
        let m = mask(n, "m", &[6, 4], DType::Float);
        let (w, m) = (n.op("Transpose", &[w], vec![]), n.op("Transpose", &[m], vec![]));
        let w = n.op("Mul", &[w, m], vec![]);
        n.op("Transpose", &[w], vec![])
    });
    folds("Where with zero", |n, w| {
        let m = mask(n, "m", &[6, 4], DType::Bool);
        let zero = n.tensor("zero", Tensor::scalar(0f32));
        n.op("Where", &[m, w, zero], vec![])
    });
    folds("Where with the mask turned round", |n, w| {
        let m = mask(n, "m", &[6, 4], DType::Bool);
        let m = n.op("Not", &[m], vec![]);
        let zero = n.tensor("zero", Tensor::scalar(0f32));
        n.op("Where", &[m, zero, w], vec![])
    });
    folds("a mask of a mask", |n, w| {
        let (m, ones) = (
            mask(n, "m", &[6, 4], DType::Float),
            n.tensor("ones", Tensor::new(&[1, 4], vec![1f32; 4])),
        );
        let m = n.op("Mul", &[m, ones], vec![]);
        n.op("Mul", &[w, m], vec![])
    });
}
