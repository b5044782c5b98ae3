//! A fuzzer that needs no other tool: seeded, aware of the structure of a model, bounded in time.
//!
//! `FUZZ_SECONDS=600 FUZZ_SEED=7 cargo test --release --test all -- fuzz` runs it for longer, from another place. What it
//! finds is written to `target/tmp/fuzz`; a minimal case of it belongs into `fixtures/hostile`.

use super::files::noise;
use crate::tool::{fixture, say};
use bytes::Bytes;
use onnxzip::data::Dataset;
use onnxzip::onnx::{External, from_bytes, to_bytes};
use onnxzip::{ir, passes, pb, pipeline, progress::Silent};
use prost::Message;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        u64::from_le_bytes(noise(self.0, 8).try_into().expect("8 bytes"))
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
    fn of<'a, T>(&mut self, all: &'a mut [T]) -> Option<&'a mut T> {
        let i = self.below(all.len());
        all.get_mut(i)
    }
    fn number(&mut self) -> i64 {
        const ODD: &[i64] = &[
            0,
            1,
            -1,
            2,
            3,
            -2,
            7,
            64,
            1 << 31,
            -(1 << 31),
            1 << 40,
            i64::MAX,
            i64::MIN,
            i64::MAX / 4,
        ];
        ODD[self.below(ODD.len())]
    }
}

fn seconds(default: u64) -> Duration {
    let given = std::env::var("FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(given.unwrap_or(default))
}

fn seed() -> u64 {
    std::env::var("FUZZ_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(0)
}

/// Small models: our fixture, and the backend tests where `interop.rs` has laid them out.
fn corpus() -> Vec<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target/tmp lies in target");
    let mut all = crate::roundtrip::models_below(&target.join("backend"));
    all.retain(|p| p.metadata().is_ok_and(|m| m.len() < 20_000));
    all.push(fixture("digits_mlp.onnx"));
    all.push(fixture("digits_cnn.onnx"));
    all
}

fn mutate_node(node: &mut pb::NodeProto, names: &[String], dice: &mut Dice) {
    let name = |dice: &mut Dice| names.get(dice.below(names.len())).cloned().unwrap_or_default();
    match dice.below(9) {
        0 => drop(node.input.pop()),
        1 => {
            let n = name(dice);
            node.input.push(n);
        }
        2 => {
            let n = name(dice);
            if let Some(i) = dice.of(&mut node.input) {
                *i = n;
            }
        }
        3 => node.input.iter_mut().for_each(String::clear),
        4 => {
            let ops = [
                "Add",
                "Conv",
                "Gemm",
                "MatMul",
                "Reshape",
                "Transpose",
                "Concat",
                "If",
                "Loop",
                "Constant",
                "Slice",
                "Resize",
                "Split",
                "Foo",
            ];
            node.op_type = Some(ops[dice.below(ops.len())].into());
        }
        5 => drop(node.output.pop()),
        6 => {
            let i = dice.below(node.attribute.len());
            if i < node.attribute.len() {
                node.attribute.remove(i);
            }
        }
        _ => {
            let Some(a) = dice.of(&mut node.attribute) else { return };
            match dice.below(6) {
                0 => a.i = Some(dice.number()),
                1 => a.ints.push(dice.number()),
                2 => drop(a.ints.pop()),
                3 => {
                    let n = dice.number();
                    if let Some(i) = dice.of(&mut a.ints) {
                        *i = n;
                    }
                }
                4 => a.r#type = Some(dice.below(16) as i32),
                _ => a.f = Some([0.0, -1.0, f32::NAN, f32::INFINITY, 1e38][dice.below(5)]),
            }
        }
    }
}

fn mutate_tensor(t: &mut pb::TensorProto, dice: &mut Dice) {
    match dice.below(6) {
        0 => t.dims.push(dice.number()),
        1 => drop(t.dims.pop()),
        2 => {
            let n = dice.number();
            if let Some(d) = dice.of(&mut t.dims) {
                *d = n;
            }
        }
        3 => t.data_type = Some(dice.below(32) as i32),
        4 => t.raw_data = t.raw_data.as_ref().map(|r| r.slice(..r.len() / 2)),
        _ => {
            let n = dice.number();
            let bytes = n.to_le_bytes();
            t.raw_data = t.raw_data.as_ref().map(|r| {
                r.iter()
                    .enumerate()
                    .map(|(i, b)| if i < 8 { bytes[i] } else { *b })
                    .collect()
            });
        }
    }
}

fn mutate(m: &mut pb::ModelProto, dice: &mut Dice) {
    let Some(g) = &mut m.graph else { return };
    let mut names: Vec<String> = g
        .node
        .iter()
        .flat_map(|n| n.input.iter().chain(&n.output).cloned())
        .collect();
    names.extend(g.initializer.iter().map(|t| t.name().to_owned()));
    match dice.below(12) {
        0..=4 => {
            if let Some(n) = dice.of(&mut g.node) {
                mutate_node(n, &names, dice);
            }
        }
        5 | 6 => {
            if let Some(t) = dice.of(&mut g.initializer) {
                mutate_tensor(t, dice);
            }
        }
        7 => {
            let d = pb::tensor_shape_proto::dimension::Value::DimValue(dice.number());
            let ports = if dice.below(2) == 0 {
                &mut g.input
            } else {
                &mut g.value_info
            };
            let ty = dice
                .of(ports)
                .and_then(|p| p.r#type.as_mut())
                .and_then(|t| t.value.as_mut());
            if let Some(pb::type_proto::Value::TensorType(t)) = ty
                && let Some(dim) = t.shape.as_mut().and_then(|s| dice.of(&mut s.dim))
            {
                dim.value = Some(d);
            }
        }
        8 => {
            if let Some(o) = dice.of(&mut m.opset_import) {
                o.version = Some(dice.below(32) as i64);
            }
        }
        9 => {
            let i = dice.below(g.node.len());
            if i < g.node.len() {
                let n = g.node.remove(i);
                if dice.below(2) == 0 {
                    g.node.insert(0, n);
                }
            }
        }
        10 => {
            let i = dice.below(g.node.len());
            if let Some(mut n) = g.node.get(i).cloned() {
                n.output.iter_mut().for_each(|o| o.push('2'));
                g.node.push(n);
            }
        }
        _ => {
            let n = names.get(dice.below(names.len())).cloned();
            if let Some(o) = dice.of(&mut g.output) {
                o.name = n;
            }
        }
    }
}

/// Reads, raises, simplifies, prunes and writes; true when it could be read.
fn try_it(bytes: &[u8]) -> bool {
    let Ok(mut model) = from_bytes(Bytes::copy_from_slice(bytes), &External::below(None)) else {
        return false;
    };
    ir::check::check(&model).expect("what was read is whole");
    let data = Dataset::synthetic(&model, 0, 1);
    for list in ["opset(to=21)", "simplify(fuse=on),prune"] {
        let mut options = pipeline::Options::new(passes::parse_list(list).expect("passes"));
        options.verify = false;
        options.threads = 1;
        options.simplify_first = false;
        let engine = onnxzip::engine::tract::Tract;
        if pipeline::rewrite(&mut model, &data, &options, &engine, &Silent).is_ok() {
            ir::check::check(&model).expect("what was rewritten is whole");
            let written = to_bytes(&model).expect("it can be written");
            from_bytes(Bytes::from(written), &External::below(None)).expect("what was written can be read");
        }
    }
    true
}

#[test]
fn fuzzed_models_do_not_crash_the_library() {
    let corpus = corpus();
    let found = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    let _ = std::fs::remove_dir_all(&found);
    let (start, mut dice) = (Instant::now(), Dice(seed()));
    let (mut tried, mut read, mut bad) = (0u64, 0u64, Vec::new());
    while start.elapsed() < seconds(5) {
        let path = &corpus[dice.below(corpus.len())];
        let whole = std::fs::read(path).expect("a file");
        let Ok(mut m) = pb::ModelProto::decode(&whole[..]) else {
            continue;
        };
        for _ in 0..1 + dice.below(3) {
            mutate(&mut m, &mut dice);
        }
        let mut bytes = m.encode_to_vec();
        if dice.below(8) == 0 {
            let at = dice.below(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
        }
        let case = Instant::now();
        let outcome = std::panic::catch_unwind(|| try_it(&bytes));
        tried += 1;
        read += u64::from(*outcome.as_ref().unwrap_or(&true));
        let slow = case.elapsed() > Duration::from_secs(10);
        if outcome.is_err() || slow {
            std::fs::create_dir_all(&found).expect("made");
            let file = found.join(format!("{tried}.onnx"));
            std::fs::write(&file, &bytes).expect("written");
            bad.push(format!(
                "{} from {}{}",
                file.display(),
                path.display(),
                if slow { ": slow" } else { "" }
            ));
        }
    }
    say(&format!(
        "{tried} mutants of {} models, {read} of them readable, {} crashed",
        corpus.len(),
        bad.len()
    ));
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert!(read * 10 > tried, "the mutants are too broken to test anything");
}

#[test]
fn fuzzed_samples_do_not_crash_the_readers() {
    let model = onnxzip::onnx::read(&fixture("digits_mlp.onnx")).expect("a model");
    let folder = tempfile::tempdir().expect("a folder");
    let npz = std::fs::read(fixture("digits.npz")).expect("a fixture");
    let tensor = crate::tool::floats("image", &[1, 1, 28, 28], &[0.5; 784]).encode_to_vec();
    let header = format!(
        "{:<117}\n",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 28, 28), }"
    );
    let npy: Vec<u8> = [b"\x93NUMPY\x01\x00\x76\x00", header.as_bytes(), &[0; 2 * 784 * 4]].concat();
    let set = folder.path().join("pb/test_data_set_0");
    std::fs::create_dir_all(&set).expect("made");
    let kinds = [
        (npz, folder.path().join("a.npz"), folder.path().join("a.npz")),
        (npy, folder.path().join("a.npy"), folder.path().join("a.npy")),
        (tensor, set.join("input_0.pb"), folder.path().join("pb")),
    ];
    let (start, mut dice) = (Instant::now(), Dice(seed()));
    let (mut tried, mut read) = ([0u64; 3], [0u64; 3]);
    while start.elapsed() < seconds(3) {
        let kind = dice.below(3);
        let (whole, file, path) = &kinds[kind];
        let mut bytes = whole.clone();
        // Headers are at the start, and at the end of a zip.
        let ends = if dice.below(4) == 0 { bytes.len() } else { 160 };
        for _ in 0..1 + dice.below(4) {
            let at = dice.below(ends.min(bytes.len()));
            let at = if kind == 0 && dice.below(2) == 0 {
                bytes.len() - 1 - at
            } else {
                at
            };
            bytes[at] = match dice.below(3) {
                0 => dice.next() as u8,
                1 => b"0123456789(),-<>|fiub"[dice.below(21)],
                _ => bytes[at] ^ (1 << dice.below(8)),
            };
        }
        if dice.below(10) == 0 {
            bytes.truncate(dice.below(bytes.len()));
        }
        std::fs::write(file, &bytes).expect("written");
        tried[kind] += 1;
        if let Ok(data) = Dataset::open(path, &model) {
            read[kind] += 1;
            for i in 0..data.len().min(4) {
                let _ = data.get(i);
            }
        }
    }
    say(&format!(
        "mutants of npz, npy, pb: {tried:?}, of them readable: {read:?}"
    ));
}
