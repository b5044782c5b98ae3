//! `onnxzip inspect`

use crate::analysis::cost::{Cost, cost};
use crate::data::{Dataset, inputs_of};
use crate::ir::{Model, NodeId};
use crate::onnx;
use crate::ops::types::{Types, infer, infer_for};
use crate::report;
use crate::report::text::{bytes, count};
use anyhow::{Context, Result, anyhow};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// Show what a model is made of: operators, parameters, multiply-accumulates, weights by size
#[derive(clap::Args)]
pub struct Args {
    /// List all weights, not only the 20 largest
    #[arg(short, long)]
    all: bool,
    /// List all nodes, with the types and dimensions of what they give
    #[arg(short, long)]
    nodes: bool,
    /// Dimensions of an input, where the model leaves them open: input=1,3,224,224 (several times for several inputs).
    /// Open dimensions that are not given are guessed
    #[arg(long, value_name = "NAME=DIMS", value_parser = shape)]
    shape: Vec<(String, Vec<usize>)>,
    /// The model
    model: PathBuf,
}

fn shape(text: &str) -> Result<(String, Vec<usize>)> {
    let (name, dims) = text.rsplit_once('=').context("write NAME=1,3,224,224")?;
    let dims: Result<Vec<usize>, _> = dims.split(',').map(|d| d.trim().parse()).collect();
    Ok((
        name.to_owned(),
        dims.context("dimensions are whole numbers separated by commas")?,
    ))
}

/// Runs it and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let model = onnx::read(&args.model)?;
    let mut inputs = Dataset::synthetic(&model, 0, 1).dims().unwrap_or_default();
    inputs.extend(args.shape.iter().cloned());
    let named = || format!("{}", args.model.display());
    let types = infer_for(&model, &inputs).with_context(named)?;
    let cost = cost(&model, &types);
    let size = onnx::size_on_disk(&args.model, &model)?;
    let mut out = String::new();
    // Open dimensions keep their names here.
    let open = infer(&model).with_context(named)?;
    head(&mut out, &model, size, &open)?;
    let macs = cost.macs.map_or("unknown".to_owned(), count);
    let fed: Vec<String> = inputs.iter().map(|(n, d)| format!("{n}{d:?}")).collect();
    writeln!(
        out,
        "\n{} parameters, {macs} MACs for {}\n",
        count(cost.params),
        fed.join(", ")
    )?;
    operators(&mut out, &model, &cost)?;
    weights(&mut out, &model, if args.all { usize::MAX } else { 20 })?;
    if args.nodes {
        nodes(&mut out, &model, &open)?;
    }
    print!("{out}");
    Ok(0)
}

fn head(out: &mut String, model: &Model, size: u64, types: &Types) -> Result<()> {
    let rest = &model.rest;
    let sets: Vec<String> = rest
        .opset_import
        .iter()
        .map(|o| {
            format!(
                "{} {}",
                if o.domain().is_empty() { "ai.onnx" } else { o.domain() },
                o.version()
            )
        })
        .collect();
    writeln!(
        out,
        "{}, IR version {}, opset {}",
        bytes(size),
        rest.ir_version(),
        sets.join(", ")
    )?;
    if !rest.producer_name().is_empty() {
        writeln!(out, "made by {} {}", rest.producer_name(), rest.producer_version())?;
    }
    for spec in inputs_of(model) {
        writeln!(out, "input  {}: {}", spec.name, spec.describe())?;
    }
    for port in model.main().outputs() {
        writeln!(out, "output {}: {}", port.name(), types.fact(port.value).describe())?;
    }
    Ok(())
}

/// Every node of the main graph in the order of execution.
fn nodes(out: &mut String, model: &Model, types: &Types) -> Result<()> {
    let order = model.topological(model.main_id());
    writeln!(out, "\n{:<20} {:<40} output", "operator", "node")?;
    for id in order.map_err(|_| anyhow!("the graph has a cycle"))? {
        let n = model.node(id);
        let outputs = n.outputs().iter().flatten();
        let outputs: Vec<String> = outputs
            .map(|v| format!("{}: {}", model.value(*v).name, types.fact(*v).describe()))
            .collect();
        writeln!(out, "{:<20} {:<40} {}", n.op.name, n.name(), outputs.join(", "))?;
    }
    Ok(())
}

fn operators(out: &mut String, model: &Model, cost: &Cost) -> Result<()> {
    let costs: BTreeMap<NodeId, _> = cost.nodes.iter().map(|c| (c.node, c)).collect();
    let mut ops: BTreeMap<String, (usize, u64, u64)> = BTreeMap::new();
    for (id, n) in model.nodes() {
        let name = match n.op.domain.as_str() {
            "" => n.op.name.clone(),
            domain => format!("{domain}::{}", n.op.name),
        };
        let row = ops.entry(name).or_default();
        row.0 += 1;
        if let Some(c) = costs.get(&id) {
            row.1 += c.params;
            row.2 += c.macs.unwrap_or(0);
        }
    }
    let mut rows: Vec<_> = ops.into_iter().collect();
    rows.sort_by(|a, b| (b.1.2, b.1.1, b.1.0).cmp(&(a.1.2, a.1.1, a.1.0)).then(a.0.cmp(&b.0)));
    writeln!(
        out,
        "{:<28} {:>6} {:>12} {:>12}",
        "operator", "nodes", "parameters", "MACs"
    )?;
    for (op, (nodes, params, macs)) in rows {
        writeln!(out, "{op:<28} {nodes:>6} {:>12} {:>12}", count(params), count(macs))?;
    }
    Ok(())
}

fn weights(out: &mut String, model: &Model, most: usize) -> Result<()> {
    let all = report::weights(model);
    writeln!(out, "\n{:<12} {:<10} {:<20} weight", "size", "type", "dimensions")?;
    for w in all.iter().take(most) {
        let dims = format!("{:?}", w.dims);
        writeln!(out, "{:<12} {:<10} {dims:<20} {}", bytes(w.bytes), w.dtype, w.name)?;
    }
    if all.len() > most {
        writeln!(out, "… {} smaller ones (--all lists them)", all.len() - most)?;
    }
    Ok(())
}
