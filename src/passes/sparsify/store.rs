//! What zeros save: the size of weights when they are compressed, and as sparse initializers.
//!
//! A sparse initializer of n floats of which k are not zero takes 12·k bytes instead of 4·n
//! ([SparseTensorProto](https://github.com/onnx/onnx/blob/main/docs/IR.md), since IR version 5): linear indices and values.

use super::super::{Context, NoteKind};
use crate::ir::{DType, Model, Origin, Tensor, ValueId};
use crate::pb;
use anyhow::Result;
use std::io::{Cursor, Write};

/// The oldest IR version with sparse initializers.
const SINCE_IR: i64 = 5;
/// The oldest operator set of runtimes that know them.
const SINCE_OPSET: i64 = 11;

/// Adds a line about the whole model, and stores weights sparsely where that is asked for and saves bytes.
///
/// # Errors
/// When a tensor cannot be made.
pub fn account(model: &mut Model, sparse: bool, cx: &mut Context) -> Result<()> {
    let weights: Vec<ValueId> = model
        .values()
        .filter(|(_, v)| {
            v.origin() == Origin::Const && v.tensor().is_some_and(|t| t.dtype() == DType::Float && t.len() > 1)
        })
        .map(|(v, _)| v)
        .collect();
    let (mut all, mut left, mut bytes) = (0usize, 0usize, 0usize);
    let mut zip = Deflate::new();
    for v in &weights {
        let Some(t) = model.constant(*v) else { continue };
        all += t.len();
        bytes += t.byte_len();
        left += t.floats().map_or(t.len(), |x| x.iter().filter(|x| **x != 0.0).count());
        zip.add(&t.raw());
    }
    let small = zip.finish();
    let what = format!(
        "all weights: {:.1} % zeros, {left} of {all} remain; {bytes} bytes deflate to {small} ({:.2}×)",
        100.0 * (all - left) as f64 / all.max(1) as f64,
        bytes as f64 / small.max(1) as f64
    );
    cx.leave(what);
    if sparse {
        store(model, &weights, cx)?;
    }
    Ok(())
}

fn store(model: &mut Model, weights: &[ValueId], cx: &mut Context) -> Result<()> {
    if model.rest.ir_version.unwrap_or(0) < SINCE_IR || model.opset("") < SINCE_OPSET {
        cx.warn(format!(
            "sparsify(format=sparse) needs IR version {SINCE_IR} and opset {SINCE_OPSET}: weights stay dense; raise it with the pass opset first"
        ));
        return Ok(());
    }
    for &v in weights {
        let value = model.value(v);
        let Some(t) = value.tensor() else { continue };
        let Some(x) = t.floats() else { continue };
        let places: Vec<i64> = (0..x.len()).filter(|i| x[*i] != 0.0).map(|i| i as i64).collect();
        if places.is_empty() || 12 * places.len() + 32 >= t.byte_len() || value.graph() != model.main_id() {
            continue;
        }
        let (name, graph, dims) = (value.name.clone(), value.graph(), t.dims().to_vec());
        let kept: Vec<f32> = places.iter().map(|i| x[*i as usize]).collect();
        let (before, after) = (t.byte_len(), 12 * places.len());
        let mut values = Tensor::new(&[kept.len()], kept).to_inline_proto();
        values.name = Some(name.clone());
        let indices = Tensor::new(&[places.len()], places).to_inline_proto();
        model.rename(v, model.fresh_name(&format!("{name}_dense")));
        let new = model.add_sparse(graph, &name);
        model
            .graph_mut(graph)
            .rest
            .sparse_initializer
            .push(pb::SparseTensorProto {
                values: Some(values),
                indices: Some(indices),
                dims: dims.iter().map(|d| *d as i64).collect(),
            });
        model.replace_uses(v, new);
        model.erase_const(v);
        cx.note(
            NoteKind::Did,
            name,
            format!("stored sparsely: {before} → {after} bytes"),
        );
    }
    Ok(())
}

/// Bytes after deflate.
pub fn deflated(parts: &[&[u8]]) -> usize {
    let mut zip = Deflate::new();
    parts.iter().for_each(|p| zip.add(p));
    zip.finish()
}

/// A stream that is compressed only to see how long it becomes.
struct Deflate(Option<zip::ZipWriter<Cursor<Vec<u8>>>>);

impl Deflate {
    fn new() -> Deflate {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        let started = zip.start_file("w", options).is_ok();
        Deflate(Some(zip).filter(|_| started))
    }

    fn add(&mut self, bytes: &[u8]) {
        if let Some(zip) = &mut self.0
            && zip.write_all(bytes).is_err()
        {
            self.0 = None;
        }
    }

    /// The bytes, some hundred of which are the container's; 0 when it failed.
    fn finish(self) -> usize {
        let done = self.0.and_then(|z| z.finish().ok());
        done.map_or(0, |c| c.into_inner().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_deflate_to_little() {
        let few = deflated(&[&[0u8; 10_000]]);
        assert!(few > 0 && few < 300, "{few}");
    }
}
