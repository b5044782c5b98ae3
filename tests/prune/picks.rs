//! Channels that are split, sliced, gathered, padded, shuffled, or kept in a recurrent state.

use super::*;

/// Two Convs read parts of what `part` makes of a Conv whose filters 1 and 5 of 8 are zero.
fn parted(opset: i64, part: impl Fn(&mut Net, ValueId) -> [ValueId; 2]) -> Net {
    let mut n = Net::new(opset);
    let x = n.input(&[1, 3, 6, 6]);
    let x = n.conv("a", x, &[8, 3, 3, 3], &[1, 5]);
    let x = n.op("Relu", &[x], vec![]);
    let [left, right] = part(&mut n, x);
    let (l, r) = (
        n.conv("l", left, &[2, 4, 1, 1], &[]),
        n.conv("r", right, &[2, 4, 1, 1], &[]),
    );
    let y = n.op("Concat", &[l, r], vec![Attr::int("axis", 1)]);
    n.output("y", y);
    n
}

fn all_lose_one(mut n: Net) {
    n.prune("prune(round_to=1)");
    assert_eq!(n.dims("a.w"), [6, 3, 3, 3]);
    assert_eq!((n.dims("l.w"), n.dims("r.w")), (vec![2, 3, 1, 1], vec![2, 3, 1, 1]));
}

fn split(n: &mut Net, inputs: &[ValueId], mut attrs: Vec<Attr>) -> [ValueId; 2] {
    attrs.push(Attr::int("axis", 1));
    let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
    let (_, outs) = n.model.add_node(n.graph, "split", "Split", &inputs, &["l", "r"], attrs);
    [outs[0], outs[1]]
}

#[test]
fn a_split_gets_new_sizes_whether_it_said_them_or_not() {
    all_lose_one(parted(11, |n, x| split(n, &[x], vec![])));
    all_lose_one(parted(11, |n, x| split(n, &[x], vec![Attr::ints("split", vec![4, 4])])));
    all_lose_one(parted(13, |n, x| split(n, &[x], vec![])));
    all_lose_one(parted(18, |n, x| split(n, &[x], vec![Attr::int("num_outputs", 2)])));
    all_lose_one(parted(13, |n, x| {
        let sizes = n.tensor("sizes", Tensor::new(&[2], vec![4i64, 4]));
        split(n, &[x, sizes], vec![])
    }));
}

#[test]
fn unequal_parts_of_a_split_say_their_sizes() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 6, 6]);
    let x = n.conv("a", x, &[8, 3, 3, 3], &[1]);
    let [l, r] = split(&mut n, &[x], vec![]);
    let (l, r) = (n.conv("l", l, &[2, 4, 1, 1], &[]), n.conv("r", r, &[2, 4, 1, 1], &[]));
    let y = n.op("Concat", &[l, r], vec![Attr::int("axis", 1)]);
    n.output("y", y);
    n.prune("prune(round_to=1)");
    assert_eq!((n.dims("l.w"), n.dims("r.w")), (vec![2, 3, 1, 1], vec![2, 4, 1, 1]));
}

#[test]
fn slices_get_new_bounds_even_when_they_share_them() {
    let ints = |n: &mut Net, name: &str, x: i64| n.tensor(name, Tensor::new(&[1], vec![x]));
    all_lose_one(parted(13, |n, x| {
        let (zero, half, all, axis) = (
            ints(n, "0", 0),
            ints(n, "4", 4),
            ints(n, "all", i64::MAX),
            ints(n, "axis", -3),
        );
        let l = n.op("Slice", &[x, zero, half, axis], vec![]);
        [l, n.op("Slice", &[x, half, all, axis], vec![])]
    }));
    all_lose_one(parted(9, |n, x| {
        let bounds = |a: i64, b: i64| {
            vec![
                Attr::ints("starts", vec![a]),
                Attr::ints("ends", vec![b]),
                Attr::ints("axes", vec![1]),
            ]
        };
        let l = n.op("Slice", &[x], bounds(0, -4));
        [l, n.op("Slice", &[x], bounds(4, 8))]
    }));
}

#[test]
fn a_gather_takes_what_is_left_of_the_same_channels() {
    let list = |n: &mut Net, name: &str, l: Vec<i64>| n.tensor(name, Tensor::new(&[l.len()], l));
    all_lose_one(parted(13, |n, x| {
        let (even, odd) = (list(n, "even", vec![0, 2, 4, -7]), list(n, "odd", vec![3, 5, 7, 6]));
        let l = n.op("Gather", &[x, even], vec![Attr::int("axis", 1)]);
        [l, n.op("Gather", &[x, odd], vec![Attr::int("axis", 1)])]
    }));
}

#[test]
fn a_slice_with_steps_keeps_its_channels_and_says_so() {
    let mut n = parted(13, |n, x| {
        let one = |n: &mut Net, name: &str, x: i64| n.tensor(name, Tensor::new(&[1], vec![x]));
        let (a, b, end, axis, step) = (
            one(n, "a", 0),
            one(n, "b", 1),
            one(n, "end", 8),
            one(n, "axis", 1),
            one(n, "step", 2),
        );
        let l = n.op("Slice", &[x, a, end, axis, step], vec![]);
        [l, n.op("Slice", &[x, b, end, axis, step], vec![])]
    });
    let notes = n.prune("prune(round_to=1)");
    assert_eq!(n.dims("a.w"), [8, 3, 3, 3]);
    assert!(
        said(&notes, NoteKind::Skip, "a Slice takes it with a step"),
        "{notes:?}"
    );
}

#[test]
fn padded_channels_follow_the_trunk_that_they_are_added_to() {
    let mut n = Net::new(11);
    let x = n.input(&[1, 3, 6, 6]);
    let a = n.conv("a", x, &[4, 3, 3, 3], &[1]);
    let pads = n.tensor("pads", Tensor::new(&[8], vec![0i64, 2, 0, 0, 0, 2, 0, 0]));
    let short = n.op("Pad", &[a, pads], vec![]);
    // Filters 3 (over channel 1 of a) and 7 (over padding) are zero.
    let b = n.conv("b", x, &[8, 3, 3, 3], &[3, 7]);
    let x = n.op("Add", &[b, short], vec![]);
    let y = n.conv("c", x, &[2, 8, 1, 1], &[]);
    n.output("y", y);
    n.prune("prune(round_to=1)");
    assert_eq!((n.dims("a.w"), n.dims("b.w")[0]), (vec![3, 3, 3, 3], 7));
    assert_eq!(n.dims("c.w"), [2, 7, 1, 1]);
}

#[test]
fn a_shuffle_lets_every_channel_go_alone() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 4, 4]);
    let x = n.conv("a", x, &[8, 3, 1, 1], &[3]);
    let shape = n.tensor("s", Tensor::new(&[5], vec![1i64, 2, 4, 4, 4]));
    let x = n.op("Reshape", &[x, shape], vec![]);
    let x = n.op("Transpose", &[x], vec![Attr::ints("perm", vec![0, 2, 1, 3, 4])]);
    let back = n.tensor("t", Tensor::new(&[4], vec![1i64, 8, 4, 4]));
    let x = n.op("Reshape", &[x, back], vec![]);
    let y = n.conv("b", x, &[5, 8, 1, 1], &[]);
    n.output("y", y);
    let before = n.model.clone();
    let notes = run("prune(ratio=0.2,round_to=1)", &mut n.model);
    assert!(said(&notes, NoteKind::Did, "becomes a Gather"), "{notes:?}");
    assert_eq!((n.dims("a.w")[0], n.dims("b.w")[1]), (7, 7));
    same_outputs(&before, &n.model);
}

/// LSTM or GRU with 4 hidden units of which unit 2 is read by nobody after it; `recurs`: but by the other units.
fn recurrent(op: &str, gates: usize, recurs: bool) -> Net {
    let mut n = Net::new(14);
    let x = n.input(&[5, 2, 3]);
    let w = n.param("w", &[1, gates * 4, 3]);
    let r = match recurs {
        true => n.param("r", &[1, gates * 4, 4]),
        false => n.param_without("r", &[1, gates * 4, 4], 2, &[2]),
    };
    let b = n.param("b", &[1, 2 * gates * 4]);
    let mut attrs = vec![Attr::int("hidden_size", 4)];
    if op == "GRU" {
        attrs.push(Attr::int("linear_before_reset", 1));
    }
    let y = n.op(op, &[x, w, r, b], attrs);
    let axes = n.tensor("axes", Tensor::new(&[1], vec![1i64]));
    let y = n.op("Squeeze", &[y, axes], vec![]);
    let v = n.param_without("v", &[4, 3], 0, &[2]);
    let y = n.op("MatMul", &[y, v], vec![]);
    n.output("y", y);
    n
}

#[test]
fn a_hidden_unit_goes_with_its_rows_of_all_gates_when_no_gate_reads_it() {
    for (op, gates) in [("LSTM", 4), ("GRU", 3)] {
        let mut n = recurrent(op, gates, false);
        n.prune("prune(round_to=1)");
        assert_eq!(
            (n.dims("w"), n.dims("r")),
            (vec![1, gates * 3, 3], vec![1, gates * 3, 3]),
            "{op}"
        );
        assert_eq!((n.dims("b"), n.dims("v")), (vec![1, 2 * gates * 3], vec![3, 3]), "{op}");
        let mut n = recurrent(op, gates, true);
        n.prune("prune(round_to=1)");
        assert_eq!(n.dims("r"), [1, gates * 4, 4], "{op}: other units read it");
        run("prune(ratio=0.25,round_to=1)", &mut n.model);
        assert_eq!((n.dims("r"), n.dims("v")), (vec![1, gates * 3, 3], vec![3, 3]), "{op}");
    }
}

#[test]
fn a_shape_keeps_a_number_for_every_axis() {
    let mut n = Net::new(13);
    let x = n.input(&[2, 6]);
    let w = n.param_without("a", &[6, 4], 1, &[1]);
    let h = n.op("MatMul", &[x, w], vec![]);
    let v = n.param("v", &[4, 6]);
    let y = n.op("MatMul", &[h, v], vec![]);
    let shape = n.op("Shape", &[x], vec![]);
    let one = |n: &mut Net, name: &str, i: i64| n.tensor(name, Tensor::new(&[1], vec![i]));
    let (start, end) = (one(&mut n, "start", 1), one(&mut n, "end", 2));
    let columns = n.op("Slice", &[shape, start, end], vec![]);
    let rows = one(&mut n, "rows", -1);
    let target = n.op("Concat", &[columns, rows], vec![Attr::int("axis", 0)]);
    let y = n.op("Reshape", &[y, target], vec![]);
    n.output("y", y);
    n.prune("prune(round_to=1)");
    assert_eq!(n.dims("a"), [6, 3]);
    let bound = |name: &str| {
        n.model
            .values()
            .find(|(_, v)| v.name == name)
            .and_then(|(_, v)| v.tensor()?.ints())
    };
    assert_eq!((bound("start"), bound("end")), (Some(vec![1]), Some(vec![2])));
}
