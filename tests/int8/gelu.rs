//! A Gelu that is spelled out stays whole, and in floating point: runtimes make one kernel of it.

use super::{Model, Tensor, ValueId, input, node, output, run, sqnr, weight};

const WIDTH: usize = 64;

fn number(m: &mut Model, name: &str, x: f32) -> ValueId {
    m.add_const(m.main_id(), name, Tensor::scalar(x))
}

/// `MatMul → Gelu → MatMul`; the gate in one of the ways in which exporters spell it.
fn net(way: &str) -> Model {
    let mut m = super::model(17);
    let x = input(&mut m, &[16, WIDTH]);
    let w = weight(&mut m, "w1", &[WIDTH, WIDTH], 3);
    let h = node(&mut m, "MatMul", "first", &[x, w], "h", vec![]);
    let (half, one) = (number(&mut m, "half", 0.5), number(&mut m, "one", 1.0));
    let f = if way == "tanh" {
        let (c, k) = (number(&mut m, "c", 0.044_715), number(&mut m, "k", 0.797_884_6));
        let square = node(&mut m, "Mul", "square", &[h, h], "square_out", vec![]);
        let cube = node(&mut m, "Mul", "cube", &[square, h], "cube_out", vec![]);
        let part = node(&mut m, "Mul", "part", &[cube, c], "part_out", vec![]);
        let sum = node(&mut m, "Add", "sum", &[h, part], "sum_out", vec![]);
        let inner = node(&mut m, "Mul", "inner", &[sum, k], "inner_out", vec![]);
        node(&mut m, "Tanh", "f", &[inner], "f_out", vec![])
    } else {
        let root = number(&mut m, "root", std::f32::consts::SQRT_2);
        let inner = node(&mut m, "Div", "inner", &[h, root], "inner_out", vec![]);
        node(&mut m, "Erf", "f", &[inner], "f_out", vec![])
    };
    let lifted = node(&mut m, "Add", "lifted", &[f, one], "lifted_out", vec![]);
    let y = if way == "half first" {
        let halved = node(&mut m, "Mul", "halved", &[h, half], "halved_out", vec![]);
        node(&mut m, "Mul", "product", &[halved, lifted], "gelu", vec![])
    } else {
        let product = node(&mut m, "Mul", "product", &[h, lifted], "product_out", vec![]);
        node(&mut m, "Mul", "halved", &[product, half], "gelu", vec![])
    };
    let w = weight(&mut m, "w2", &[WIDTH, WIDTH], 4);
    let z = node(&mut m, "MatMul", "second", &[y, w], "z", vec![]);
    output(&mut m, z, &[16, WIDTH]);
    m
}

#[test]
fn a_gelu_that_is_spelled_out_stays_whole() {
    for way in ["half last", "half first", "tanh"] {
        let original = net(way);
        let mut m = original.clone();
        run(&mut m, "int8(prefer=size)");
        let quantized: Vec<&str> = m
            .nodes()
            .filter(|(_, n)| n.is("QuantizeLinear"))
            .filter_map(|(_, n)| Some(m.value(n.input(0)?).name.as_str()))
            .collect();
        for part in [
            "f_out",
            "inner_out",
            "sum_out",
            "lifted_out",
            "product_out",
            "halved_out",
        ] {
            assert!(!quantized.contains(&part), "{way}: {quantized:?}");
        }
        assert!(quantized.contains(&"gelu"), "{way}: {quantized:?}");
        let db = sqnr(&original, &m);
        assert!(db > 30.0, "{way}: {db} dB");
        // What is no Gelu has integers wherever they pay, or the target asks for them.
        let mut all = original.clone();
        run(&mut all, "int8(target=generic)");
        let codes = all.nodes().filter(|(_, n)| n.is("QuantizeLinear")).count();
        assert!(codes > quantized.len(), "{way}");
    }
}
