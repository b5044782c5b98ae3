//! Exact removal: one test for every way in which channels are tied.

use super::*;

#[test]
fn a_zero_channel_goes_with_its_batch_norm_and_the_next_filters() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 6, 6]);
    let x = n.conv("a", x, &[8, 3, 3, 3], &[1, 5]);
    let (s, b) = (n.param("s", &[8]), n.param_without("t", &[8], 0, &[1, 5]));
    let m = n.param_without("m", &[8], 0, &[1, 5]);
    let v = n.tensor("v", Tensor::new(&[8], vec![1.5f32; 8]));
    let x = n.op("BatchNormalization", &[x, s, b, m, v], vec![]);
    let x = n.op("Relu", &[x], vec![]);
    let y = n.conv("b", x, &[4, 8, 3, 3], &[]);
    n.output("y", y);
    let notes = n.prune("prune");
    assert_eq!((n.dims("a.w"), n.dims("b.w")), (vec![6, 3, 3, 3], vec![4, 6, 3, 3]));
    assert_eq!((n.dims("a.b"), n.dims("s"), n.dims("v")), (vec![6], vec![6], vec![6]));
    assert!(said(&notes, NoteKind::Did, "8 → 6 channels; tied: conv_1"), "{notes:?}");
}

#[test]
fn a_constant_channel_goes_into_the_bias_where_its_share_is_the_same_everywhere() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 6, 6]);
    let (w, b) = (n.param_without("a.w", &[4, 3, 1, 1], 0, &[2]), n.param("a.b", &[4]));
    let x = n.op("Conv", &[x, w, b], vec![]);
    let x = n.op("Sigmoid", &[x], vec![]);
    let w = n.param("b.w", &[5, 4, 3, 3]);
    let y = n.op("Conv", &[x, w], vec![]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!(n.dims("a.w"), [3, 3, 1, 1]);
    assert_eq!((n.dims("b.w"), n.dims("conv_1_bias")), (vec![5, 3, 3, 3], vec![5]));
}

#[test]
fn a_constant_channel_stays_where_padding_breaks_it() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 6, 6]);
    let (w, b) = (n.param_without("a.w", &[4, 3, 1, 1], 0, &[2]), n.param("a.b", &[4]));
    let x = n.op("Conv", &[x, w, b], vec![]);
    let y = n.conv("b", x, &[5, 4, 3, 3], &[]);
    n.output("y", y);
    let notes = n.prune("prune");
    assert_eq!(n.dims("a.w"), [4, 3, 1, 1]);
    assert!(said(&notes, NoteKind::Skip, "padding"), "{notes:?}");
}

#[test]
fn what_nobody_reads_goes_and_takes_its_makers_along() {
    let mut n = Net::new(13);
    let x = n.input(&[2, 6]);
    let (w, b) = (n.param("a", &[6, 5]), n.param("a.b", &[5]));
    let x = n.op("Gemm", &[x, w, b], vec![]);
    let x = n.op("Tanh", &[x], vec![]);
    // Unit 3 is read by units 0 and 1 only, which nobody reads.
    let data = Tensor::new(
        &[4, 5],
        (0..20)
            .map(|i| {
                if i % 5 == 3 && i > 9 {
                    0.0
                } else {
                    0.1 + i as f32 / 20.0
                }
            })
            .collect::<Vec<f32>>(),
    );
    let w = n.tensor("b", data);
    let x = n.op("Gemm", &[x, w], vec![Attr::int("transB", 1)]);
    let x = n.op("Tanh", &[x], vec![]);
    let w = n.param_without("c", &[4, 3], 0, &[0, 1]);
    let y = n.op("MatMul", &[x, w], vec![]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!(
        (n.dims("a"), n.dims("b"), n.dims("c")),
        (vec![6, 4], vec![2, 4], vec![2, 3])
    );
}

fn residual(zero_left: &[usize], zero_right: &[usize]) -> (Net, Vec<Note>) {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 5, 5]);
    let a = n.conv("a", x, &[6, 3, 1, 1], zero_left);
    let b = n.conv("b", a, &[6, 6, 3, 3], zero_right);
    let x = n.op("Add", &[a, b], vec![]);
    let x = n.op("Relu", &[x], vec![]);
    let y = n.conv("c", x, &[4, 6, 3, 3], &[]);
    n.output("y", y);
    let notes = n.prune("prune");
    (n, notes)
}

#[test]
fn a_residual_add_loses_only_channels_that_are_zero_on_both_sides() {
    let (n, _) = residual(&[0, 2, 4], &[2, 4]);
    assert_eq!(n.dims("a.w"), [4, 3, 1, 1]);
    assert_eq!((n.dims("b.w"), n.dims("c.w")), (vec![4, 4, 3, 3], vec![4, 4, 3, 3]));
    let (n, notes) = residual(&[], &[1]);
    assert_eq!((n.dims("a.w"), n.dims("b.w")), (vec![6, 3, 1, 1], vec![6, 6, 3, 3]));
    assert!(
        said(&notes, NoteKind::Skip, "1 of 6 filters are zero but stay: tied"),
        "{notes:?}"
    );
}

#[test]
fn concat_moves_channels_by_their_offset() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 5, 5]);
    let a = n.conv("a", x, &[4, 3, 1, 1], &[3]);
    let b = n.conv("b", x, &[5, 3, 3, 3], &[0, 1]);
    let x = n.op("Concat", &[a, x, b], vec![Attr::int("axis", 1)]);
    let y = n.conv("c", x, &[4, 12, 3, 3], &[]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!((n.dims("a.w"), n.dims("b.w")), (vec![3, 3, 1, 1], vec![3, 3, 3, 3]));
    assert_eq!(n.dims("c.w"), [4, 9, 3, 3]);
}

#[test]
fn depthwise_chains_lose_groups() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 5, 5]);
    let x = n.conv("a", x, &[6, 3, 1, 1], &[1]);
    let (w, b) = (n.param("d.w", &[12, 1, 3, 3]), n.param("d.b", &[12]));
    let x = n.op(
        "Conv",
        &[x, w, b],
        vec![Attr::int("group", 6), Attr::ints("pads", vec![1; 4])],
    );
    let x = n.op("Relu", &[x], vec![]);
    let y = n.conv("c", x, &[4, 12, 1, 1], &[]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!((n.dims("a.w"), n.dims("d.w")), (vec![5, 3, 1, 1], vec![10, 1, 3, 3]));
    assert_eq!((n.dims("d.b"), n.dims("c.w")), (vec![10], vec![4, 10, 1, 1]));
}

#[test]
fn groups_of_a_grouped_conv_lose_the_same_channels() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 5, 5]);
    // Channels 1 and 5 are the same one in groups of 4; 2 has no zero partner.
    let x = n.conv("a", x, &[8, 3, 1, 1], &[1, 5, 2]);
    let w = n.param_without("g.w", &[6, 4, 3, 3], 0, &[0, 3]);
    let x = n.op("Conv", &[x, w], vec![Attr::int("group", 2)]);
    let y = n.conv("c", x, &[4, 6, 1, 1], &[]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!((n.dims("a.w"), n.dims("g.w")), (vec![6, 3, 1, 1], vec![4, 3, 3, 3]));
    assert_eq!(n.dims("c.w"), [4, 4, 1, 1]);
}

fn flattened(nhwc: bool, by_reshape: bool) -> Net {
    let mut n = Net::new(13);
    let x = n.input(&[2, 3, 4, 4]);
    let x = n.conv("a", x, &[5, 3, 3, 3], &[0, 3]);
    let x = n.op(
        "MaxPool",
        &[x],
        vec![
            Attr::ints("kernel_shape", vec![2, 2]),
            Attr::ints("strides", vec![2, 2]),
        ],
    );
    let x = match nhwc {
        true => n.op("Transpose", &[x], vec![Attr::ints("perm", vec![0, 2, 3, 1])]),
        false => x,
    };
    let x = match by_reshape {
        true => {
            let shape = n.tensor("shape", Tensor::new(&[2], vec![-1i64, 20]));
            n.op("Reshape", &[x, shape], vec![])
        }
        false => n.op("Flatten", &[x], vec![]),
    };
    let w = n.param("f", &[20, 7]);
    let y = n.op("Gemm", &[x, w], vec![]);
    n.output("y", y);
    n.prune("prune");
    n
}

#[test]
fn a_channel_owns_its_columns_behind_flatten_and_reshape_in_either_layout() {
    for (nhwc, by_reshape) in [(false, false), (false, true), (true, false), (true, true)] {
        let n = flattened(nhwc, by_reshape);
        assert_eq!((n.dims("a.w"), n.dims("f")), (vec![3, 3, 3, 3], vec![12, 7]));
    }
}

#[test]
fn squeeze_and_excite_follows_its_trunk_and_prunes_inside() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 4, 4]);
    let x = n.conv("a", x, &[6, 3, 3, 3], &[4]);
    let s = n.op("GlobalAveragePool", &[x], vec![]);
    let s = n.conv("s1", s, &[3, 6, 1, 1], &[2]);
    let s = n.op("Relu", &[s], vec![]);
    let s = n.conv("s2", s, &[6, 3, 1, 1], &[]);
    let s = n.op("HardSigmoid", &[s], vec![]);
    let x = n.op("Mul", &[s, x], vec![]);
    let y = n.conv("c", x, &[4, 6, 3, 3], &[]);
    n.output("y", y);
    n.prune("prune");
    assert_eq!((n.dims("s1.w"), n.dims("s2.w")), (vec![2, 5, 1, 1], vec![5, 2, 1, 1]));
    assert_eq!((n.dims("a.w"), n.dims("c.w")), (vec![5, 3, 3, 3], vec![4, 5, 3, 3]));
}

#[test]
fn shared_weights_and_biases_are_cut_for_all_their_readers_or_not_at_all() {
    // Both convs use one weight and one bias; only the reader of the first ignores channel 2.
    let build = |second: &[usize]| {
        let mut n = Net::new(13);
        let x = n.input(&[1, 3, 4, 4]);
        let (w, b) = (n.param("w", &[5, 3, 3, 3]), n.param("b", &[5]));
        let a = n.op("Conv", &[x, w, b], vec![]);
        let x = n.op("Neg", &[x], vec![]);
        let c = n.op("Conv", &[x, w, b], vec![]);
        let (p, q) = (
            n.param_without("p", &[4, 5, 1, 1], 1, &[2]),
            n.param_without("q", &[4, 5, 1, 1], 1, second),
        );
        let (a, c) = (n.op("Conv", &[a, p], vec![]), n.op("Conv", &[c, q], vec![]));
        n.output("y", a);
        n.output("z", c);
        n.prune("prune");
        n
    };
    let n = build(&[]);
    assert_eq!((n.dims("w"), n.dims("p")), (vec![5, 3, 3, 3], vec![4, 5, 1, 1]));
    let n = build(&[2]);
    assert_eq!((n.dims("w"), n.dims("b")), (vec![4, 3, 3, 3], vec![4]));
    assert_eq!((n.dims("p"), n.dims("q")), (vec![4, 4, 1, 1], vec![4, 4, 1, 1]));
}

#[test]
fn graph_outputs_and_unknown_operators_keep_their_channels() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 4, 4]);
    let a = n.conv("a", x, &[4, 3, 1, 1], &[1]);
    let b = n.conv("b", x, &[4, 3, 1, 1], &[1]);
    let b = n.op("DepthToSpace", &[b], vec![Attr::int("blocksize", 2)]);
    n.output("y", a);
    n.output("z", b);
    let notes = n.prune("prune");
    assert_eq!((n.dims("a.w"), n.dims("b.w")), (vec![4, 3, 1, 1], vec![4, 3, 1, 1]));
    assert!(said(&notes, NoteKind::Skip, "graph output y"), "{notes:?}");
    assert!(said(
        &notes,
        NoteKind::Skip,
        "how channels run through this operator is not known"
    ));
}

#[test]
fn softmax_over_channels_pins_them_and_over_other_axes_does_not() {
    for (axis, left) in [(1, 4), (3, 3)] {
        let mut n = Net::new(13);
        let x = n.input(&[1, 3, 4, 4]);
        let x = n.conv("a", x, &[4, 3, 1, 1], &[]);
        let x = n.op("Softmax", &[x], vec![Attr::int("axis", axis)]);
        let w = n.param_without("b", &[2, 4, 1, 1], 1, &[1]);
        let y = n.op("Conv", &[x, w], vec![]);
        n.output("y", y);
        n.prune("prune");
        assert_eq!(n.dims("a.w")[0], left);
    }
}

#[test]
fn a_dead_layer_keeps_one_channel() {
    let mut n = Net::new(13);
    let x = n.input(&[2, 6]);
    let a = n.param_without("a", &[6, 4], 1, &[0, 1, 2, 3]);
    let h = n.op("MatMul", &[x, a], vec![]);
    let b = n.param("b", &[4, 3]);
    let h = n.op("MatMul", &[h, b], vec![]);
    let c = n.param("c", &[3]);
    let y = n.op("Add", &[h, c], vec![]);
    n.output("y", y);
    let notes = n.prune("prune");
    assert_eq!((n.dims("a"), n.dims("b")), (vec![6, 1], vec![1, 3]));
    assert!(said(&notes, NoteKind::Skip, "one channel must stay"), "{notes:?}");
}
