//! Operators spelled as the target has kernels for.

use super::{input, node, output, run, sqnr, weight};
use onnxzip::ir::Attr;

#[test]
fn an_average_pool_over_the_whole_map_becomes_global_and_others_stay() {
    for (kernel, op) in [(4, "GlobalAveragePool"), (2, "AveragePool")] {
        let mut m = super::model(17);
        let x = input(&mut m, &[1, 8, 4, 4]);
        let w = weight(&mut m, "w", &[8, 8, 1, 1], 5);
        let y = node(&mut m, "Conv", "conv", &[x, w], "y", vec![]);
        let kernel = Attr::ints("kernel_shape", vec![kernel, kernel]);
        let z = node(&mut m, "AveragePool", "pool", &[y], "z", vec![kernel]);
        let side = if op == "AveragePool" { 3 } else { 1 };
        output(&mut m, z, &[1, 8, side, side]);
        let original = m.clone();
        run(&mut m, "int8(prefer=size)");
        assert!(m.nodes().any(|(_, n)| n.is(op)), "{op}");
        let db = sqnr(&original, &m);
        // The mean of numbers around zero is small beside their range.
        assert!(db > 15.0, "{op}: {db} dB");
    }
}
