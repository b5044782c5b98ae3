//! Speed and memory, as ratios within one run: `cargo bench`. Each figure stands beside the plain copy of the same bytes, or
//! beside the oracle for the same numbers, so that runs on different machines can be compared.

use criterion::{Criterion, criterion_group, criterion_main};
use ndarray::Array2;
use onnxzip::math::decompose::thin_svd;
use onnxzip::{data::Dataset, engine::tract::Tract, onnx, passes, pipeline, progress::Silent};
use std::hint::black_box;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// Decode and encode, against a copy of the file in memory.
fn files(c: &mut Criterion) {
    let path = fixture("digits_mlp.onnx");
    let bytes = std::fs::read(&path).expect("the fixture is there");
    let mut group = c.benchmark_group("files");
    group.bench_function("copy", |b| b.iter(|| black_box(bytes.clone())));
    group.bench_function("read", |b| b.iter(|| onnx::read(&path).expect("a model")));
    let model = onnx::read(&path).expect("a model");
    group.bench_function("clone", |b| b.iter(|| black_box(model.clone())));
    group.bench_function("write", |b| b.iter(|| onnx::to_bytes(&model).expect("bytes")));
    group.finish();
}

/// Each pass on the fixture, without verification and with it.
fn whole_runs(c: &mut Criterion) {
    let original = onnx::read(&fixture("digits_cnn.onnx")).expect("a model");
    let data = Dataset::open(&fixture("digits.npz"), &original).expect("data");
    let mut group = c.benchmark_group("passes");
    group.sample_size(10);
    for list in ["simplify", "prune", "lowrank", "int8", "prune,lowrank,int8"] {
        for verify in [false, true] {
            let mut options = pipeline::Options::new(passes::parse_list(list).expect("passes"));
            options.verify = verify;
            let name = format!("{list}{}", if verify { " verified" } else { "" });
            group.bench_function(name, |b| {
                b.iter(|| {
                    let mut model = original.clone();
                    pipeline::rewrite(&mut model, &data, &options, &Tract, &Silent).expect("a report")
                })
            });
        }
    }
    group.finish();
}

/// faer, which does the work, against nalgebra, the oracle.
fn linear_algebra(c: &mut Criterion) {
    let n = 256;
    let a = Array2::from_shape_fn((n, n), |(i, j)| ((i * 7919 + j * 104_729) % 1009) as f64 / 1009.0);
    let m = nalgebra::DMatrix::from_fn(n, n, |i, j| a[(i, j)]);
    let mut group = c.benchmark_group("svd 256x256");
    group.sample_size(10);
    group.bench_function("faer", |b| b.iter(|| thin_svd(a.view()).expect("an SVD")));
    group.bench_function("nalgebra", |b| b.iter(|| m.clone().svd(true, true)));
    group.finish();
}

criterion_group!(benches, files, whole_runs, linear_algebra);
criterion_main!(benches);
