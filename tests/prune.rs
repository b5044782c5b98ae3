//! What `prune` removes, keeps, and says.

use onnxzip::data::{Dataset, Sample};
use onnxzip::engine::{Engine, NotRun, Session};
use onnxzip::ir::{Model, ValueId, check};
use onnxzip::onnx;
use onnxzip::passes::{Context, Note, parse_list};
use onnxzip::progress::Silent;
use std::path::Path;

/// Exact pruning asks no engine.
struct NoEngine;
impl Engine for NoEngine {
    fn name(&self) -> String {
        "none".into()
    }
    fn load(&self, _: &Model, _: &[ValueId], _: &Sample) -> Result<Box<dyn Session>, NotRun> {
        Err(NotRun("no engine in this test".into()))
    }
}

fn run(spec: &str, model: &mut Model) -> Vec<Note> {
    let samples = Dataset::synthetic(model, 1, 4).all();
    let mut cx = Context {
        engine: &NoEngine,
        samples: &samples,
        threads: 2,
        seed: 0,
        progress: &Silent,
        notes: Vec::new(),
    };
    for request in parse_list(spec).expect("a list of passes") {
        let pass = (request.info.build)(&request.options).expect("good options");
        pass.run(model, &mut cx).expect("the pass runs");
        check::check(model).expect("the model holds together");
    }
    cx.notes
}

/// `IN=a.onnx OUT=b.onnx SPEC=prune cargo test --release -- --ignored prune::a_file --nocapture`
#[test]
#[ignore = "a tool for development: prunes the file IN"]
fn a_file() {
    let var = |n: &str| std::env::var(n).unwrap_or_else(|_| panic!("set {n}"));
    let mut model = onnx::read(Path::new(&var("IN"))).expect("a model");
    let start = std::time::Instant::now();
    let notes = run(&std::env::var("SPEC").unwrap_or("prune".into()), &mut model);
    for n in &notes {
        println!("{:?} {}: {}", n.kind, n.node, n.what);
    }
    println!("{:.2} s", start.elapsed().as_secs_f64());
    std::fs::write(var("OUT"), onnx::to_bytes(&model).expect("it encodes")).expect("written");
}
