//! `macs`, branches that go as a whole, and channels that are taken with a step.

use super::lossy::on_digits;
use super::*;
use std::io::Write;

/// Samples for the input `x`, as many rows as there are; a sample is one of them.
fn samples(model: &Model, columns: usize, data: &[f32]) -> Dataset {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.npy");
    let shape = format!("({}, {columns})", data.len() / columns);
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    let mut file = std::fs::File::create(&path).expect("a file");
    file.write_all(b"\x93NUMPY\x01\x00").expect("written");
    file.write_all(&118u16.to_le_bytes()).expect("written");
    file.write_all(format!("{header:<117}\n").as_bytes()).expect("written");
    file.write_all(bytemuck::cast_slice(data)).expect("written");
    drop(file);
    let data = Dataset::open(&path, model).expect("readable");
    std::mem::forget(folder); // the data set maps the file
    data
}

fn numbers(n: usize) -> Vec<f32> {
    let next = |state: &mut u64| {
        *state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        Some((*state >> 40) as f32 / 8388608.0 - 1.0)
    };
    let mut state = 3u64;
    std::iter::repeat_with(|| next(&mut state)).flatten().take(n).collect()
}

/// y = (h + f(h)) C, where f has 16 units and gives 1 + `loud` · (something that varies).
fn residual(loud: f32) -> Net {
    let mut n = Net::new(13);
    let x = n.input(&[1, 8]);
    let (w, b) = (n.param("w", &[8, 12]), n.param("w.b", &[12]));
    let h = n.op("Gemm", &[x, w, b], vec![]);
    let h = n.op("Relu", &[h], vec![]);
    let (w, b) = (n.param("a", &[12, 16]), n.param("a.b", &[16]));
    let f = n.op("Gemm", &[h, w, b], vec![]);
    let f = n.op("Tanh", &[f], vec![]);
    let quiet: Vec<f32> = numbers(16 * 12).iter().map(|x| x * loud).collect();
    let w = n.tensor("b", Tensor::new(&[16, 12], quiet));
    let b = n.tensor("b.b", Tensor::new(&[12], vec![1.0f32; 12]));
    let f = n.op("Gemm", &[f, w, b], vec![]);
    let y = n.op("Add", &[h, f], vec![]);
    let w = n.param("c", &[12, 5]);
    let y = n.op("MatMul", &[y, w], vec![]);
    n.output("y", y);
    n
}

#[test]
fn a_branch_of_a_residual_sum_goes_as_a_whole_when_it_hardly_varies() {
    let mut n = residual(1e-4);
    let before = n.model.clone();
    let data = samples(&before, 8, &numbers(64 * 8));
    let notes = run_on(&data, "prune(error=0.0001)", &mut n.model);
    assert!(said(&notes, NoteKind::Did, "its branch goes as a whole"), "{notes:?}");
    assert_eq!(n.model.nodes().filter(|(_, x)| x.is("Gemm")).count(), 1);
    assert_eq!(n.model.nodes().filter(|(_, x)| x.is("Tanh")).count(), 0);
    let error = lossy::relative_error(&before, &n.model);
    assert!(error < 1e-4, "{error}");
}

#[test]
fn channels_of_a_sum_go_together_with_a_branch_that_is_tied_to_them() {
    let mut n = residual(1e-4);
    let data = samples(&n.model, 8, &numbers(64 * 8));
    let notes = run_on(&data, "prune(error=0.3)", &mut n.model);
    assert!(said(&notes, NoteKind::Did, "its branch goes as a whole"), "{notes:?}");
    assert!(n.dims("w")[1] < 12, "{notes:?}");
}

#[test]
fn a_branch_that_says_much_stays() {
    let mut n = residual(1.0);
    let data = samples(&n.model, 8, &numbers(64 * 8));
    let notes = run_on(&data, "prune(error=0.0001)", &mut n.model);
    assert!(!said(&notes, NoteKind::Did, "as a whole"), "{notes:?}");
    assert_eq!(n.dims("b")[1], 12);
}

#[test]
fn channels_behind_slices_with_a_step_go_one_by_one() {
    let mut n = Net::new(13);
    let x = n.input(&[1, 3, 6, 6]);
    let x = n.conv("a", x, &[8, 3, 3, 3], &[]);
    let part = |n: &mut Net, k: i64, name: &str| {
        let list = |n: &mut Net, what: &str, x: i64| n.tensor(&format!("{name}{what}"), Tensor::new(&[1], vec![x]));
        let bounds = [("from", k), ("to", 8), ("axis", 1), ("step", 2)].map(|(what, x)| list(n, what, x));
        let half = n.op("Slice", &[&[x][..], &bounds[..]].concat(), vec![]);
        n.conv(name, half, &[2, 4, 1, 1], &[])
    };
    let (l, r) = (part(&mut n, 0, "l"), part(&mut n, 1, "r"));
    let y = n.op("Concat", &[l, r], vec![Attr::int("axis", 1)]);
    n.output("y", y);
    let (first, before) = (n.model.clone(), n.model.nodes().count());
    let notes = run("prune(ratio=0.25,repair=off)", &mut n.model);
    assert!(said(&notes, NoteKind::Did, "becomes a Gather of 4"), "{notes:?}");
    assert_eq!(n.dims("a.w"), [6, 3, 3, 3]);
    assert_eq!((n.dims("l.w"), n.dims("r.w")), (vec![2, 3, 1, 1], vec![2, 3, 1, 1]));
    assert_eq!(n.model.nodes().count(), before);
    let error = lossy::relative_error(&first, &n.model);
    assert!(error < 1.0, "{error}");
}

#[test]
fn a_part_of_the_multiply_adds_is_left() {
    let mut last = f64::INFINITY;
    for part in [0.8, 0.5] {
        let report = on_digits(&format!("prune(macs={part})"), true);
        let macs = |when: &str| report[when]["macs"].as_f64().expect("a number");
        let left = macs("after") / macs("before");
        assert!((part - 0.05..=part).contains(&left), "macs={part}: {left}");
        let sqnr = report["gaps"][0]["sqnr_db"].as_f64().expect("a number");
        assert!(sqnr > 12.0 && sqnr < last, "macs={part}: {sqnr} dB");
        last = sqnr;
    }
}

#[test]
fn what_cannot_be_reached_is_said_and_left() {
    let report = on_digits("prune(macs=0.0001)", true);
    assert_eq!(report["before"]["params"], report["after"]["params"]);
    assert!(report["passes"].to_string().contains("are left at least"));
    for bad in ["macs=0", "macs=1.5", "macs=0.5,error=0.1", "macs=0.5,ratio=0.1"] {
        assert!(parse_list(&format!("prune({bad})")).is_err(), "{bad}");
    }
}
