//! `onnxzip passes`

use crate::passes::{ALL, PassInfo, find};
use anyhow::{Context, Result};

/// List the passes, or explain one
#[derive(clap::Args)]
pub struct Args {
    /// The pass to explain
    name: Option<String>,
}

/// Runs it and gives the exit code.
pub fn run(args: &Args) -> Result<u8> {
    match &args.name {
        None => {
            for p in ALL {
                println!("{:<10} {}", p.name, p.summary);
            }
        }
        Some(name) => {
            let info = find(name).with_context(|| {
                let known: Vec<&str> = ALL.iter().map(|p| p.name).collect();
                format!("there is no pass {name:?}; there are: {}", known.join(", "))
            })?;
            print!("{}", explain(info));
        }
    }
    Ok(0)
}

/// A pass in Markdown: `docs/passes.md` is made of these.
pub fn explain(p: &PassInfo) -> String {
    let mut out = format!("## {}\n\n{}\n\n{}\n", p.name, p.summary, p.doc.trim());
    if !p.options.is_empty() {
        out += "\n| option | default | values | what |\n|---|---|---|---|\n";
        for o in p.options {
            let values = o.values.replace('|', " \\| ");
            out += &format!("| `{}` | `{}` | {values} | {} |\n", o.name, o.default, o.doc);
        }
    }
    out
}
