use super::*;

/// Codes of 4 bits in bytes 0x1F: the first half 16, the second −16, as many as tract itself would unpack in every run.
fn unpacked(b: &mut Builder, dims: &[usize]) -> ValueId {
    let bytes = dims.iter().product::<usize>() / 2;
    let mut x = b.constant("bits", Tensor::new(&[bytes], vec![0x1Fu8; bytes]));
    let left = b.constant("left", Tensor::new(&[2, 1], vec![0u8, 4]));
    let four = b.constant("four", Tensor::scalar(4u8));
    for (by, direction) in [(left, "LEFT"), (four, "RIGHT"), (four, "LEFT")] {
        x = b.op("BitShift", &[x, by], vec![Attr::string("direction", direction)]);
    }
    let to = b.constant("dims", Tensor::new(&[2], dims.iter().map(|d| *d as i64).collect()));
    let x = b.op("Reshape", &[x, to], vec![]);
    let wide = b.op("Cast", &[x], vec![Attr::int("to", DType::Int32 as i64)]);
    let wide = b.op("Add", &[wide, wide], vec![]);
    b.op("Cast", &[wide], vec![Attr::int("to", DType::Int8 as i64)])
}

const DIMS: [usize; 2] = [1200, 1024];

#[test]
fn codes_in_few_bits_are_unpacked_once_whoever_reads_them() {
    let mut b = Builder::new(13);
    let codes = unpacked(&mut b, &DIMS);
    let x = b.input("x", DType::Float, &[1, 1200]);
    let scale = b.constant("scale", Tensor::scalar(0.5f32));
    let zero = b.constant("zero", Tensor::scalar(0i8));
    let w = b.op("DequantizeLinear", &[codes, scale, zero], vec![]);
    let y = b.op("MatMul", &[x, w], vec![]);
    let rows = b.input("rows", DType::Int64, &[2]);
    let taken = b.op("Gather", &[codes, rows], vec![]);
    let floats_of = b.op("Cast", &[taken], vec![Attr::int("to", DType::Float as i64)]);
    let mut one = vec![0f32; 1200];
    one[700] = 3.0;
    let s = sample(&[
        ("x", Tensor::new(&[1, 1200], one)),
        ("rows", Tensor::new(&[2], vec![0i64, 1199])),
    ]);
    let wanted = [y, floats_of];
    let got = run(&b, &wanted, &s);
    assert!(floats(&got[0]).iter().all(|y| *y == -48.0), "3 · (−32) / 2");
    let rows = floats(&got[1]);
    let (first, last) = rows.split_at(1024);
    assert!(first.iter().all(|y| *y == 32.0) && last.iter().all(|y| *y == -32.0));
    let left = operators(&b.model, &wanted, &s);
    assert!(!left.iter().any(|op| op == "Add" || op == "Dequantize"), "{left:?}");
    // Wanted themselves, they are the same.
    let got = run(&b, &[codes, y], &s);
    assert_eq!((got[0].dims(), got[0].dtype()), (&DIMS[..], DType::Int8));
    assert!(
        ints(&got[0])
            .iter()
            .enumerate()
            .all(|(i, q)| *q == if i < 600 * 1024 { 32 } else { -32 })
    );
}
