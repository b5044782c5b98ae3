//! Weight-only quantization: weights in 8 or 4 bits, `ŵ = s·(q − z)`, activations in floating point.
//!
//! The flow: which weights there are (`find`), how a tensor is a matrix of rows with blocks (`view`), codes and parameters (`fit`), then
//! `DequantizeLinear` in front of the readers (`emit`) or `MatMulNBits` in their place (`nbits`).
//!
//! Does nothing to a model that is quantized already. Costs one run over the calibration samples and the second moments of
//! the inputs of all weights.

pub(super) mod emit;
pub(super) mod find;
pub(super) mod fit;
mod narrow;
mod nbits;
mod rest;
pub(super) mod view;

use super::{Context, Names, NoteKind, Opt, Options, Part, Pass, PassInfo, tables};
use crate::ir::Model;
use crate::math::affine::IntKind;
use crate::ops::quant::is_quantized_op;
use anyhow::{Context as _, Result, ensure};
use find::Weight;
use fit::{Data, Scheme, fit};
pub(super) use rest::{Rest, recurrent_measures};
use std::collections::BTreeMap;

/// The pass's row in the table.
pub const INFO: PassInfo = PassInfo {
    name: "weights",
    summary: "weight-only quantization: 8 or 4 bits, per channel or in blocks, activations stay in floating point",
    doc: include_str!("doc.md"),
    lossy: true,
    // Folded: convolutions whose weights are dequantized in every run are slower than before.
    part: Part::Precision {
        ways: &["weights(form=folded)"],
        error: Some("mixed"),
    },
    options: OPTIONS,
    build: |o| Ok(Box::new(build(o)?)),
};

const OPTIONS: &[Opt] = &[
    Opt {
        name: "bits",
        default: "8",
        values: "8|4",
        doc: "bits of a weight",
    },
    Opt {
        name: "block",
        default: "auto",
        values: "auto, 0 (one scale for each output channel), or a power of two from 16 to 256",
        doc: "weights that share a scale; auto: 0 for 8 bits, 32 for 4 bits and for MatMulNBits",
    },
    Opt {
        name: "symmetric",
        default: "auto",
        values: "auto|on|off",
        doc: "no zero points; auto: on for 8 bits, off for 4",
    },
    Opt {
        name: "form",
        default: "qdq",
        values: "qdq|matmulnbits|folded",
        doc: "DequantizeLinear, MatMulNBits of ONNX Runtime for MatMul and Gemm, or Cast and Mul, which runtimes compute while they load: as fast as before, as much memory as before, a smaller file",
    },
    Opt {
        name: "mixed",
        default: "0",
        values: "a part of the output's power, such as 0.01",
        doc: "with form=folded: weights are stored in 3 to 6 bits, as few as will do for outputs that err by no more because of it",
    },
    Opt {
        name: "compute",
        default: "int8",
        values: "int8|float",
        doc: "with form=matmulnbits: the runtime may round activations to int8 in small blocks (faster), or computes in float",
    },
    Opt {
        name: "rounding",
        default: "data",
        values: "data|nearest",
        doc: "round weights so that errors cancel on the calibration data, and correct biases; or each to the nearest code",
    },
    Opt {
        name: "tables",
        default: "on",
        values: "on|off",
        doc: "store embedding tables in 8 bits",
    },
    Opt {
        name: "min",
        default: "1024",
        values: "a number of elements",
        doc: "smaller weights stay as they are",
    },
    Opt {
        name: "skip",
        default: "",
        values: "names of nodes, `*` and `?` as wildcards, separated by `;`",
        doc: "nodes whose weights stay as they are",
    },
];

/// What stands in the place of a weight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Qdq,
    NBits,
    Folded,
}

struct Weights {
    scheme: Scheme,
    /// For what may differ from node to node.
    options: Options,
    form: Form,
    /// What weights of fewer bits may cost; 0: none.
    mixed: f64,
    int8: bool,
    data: bool,
    tables: bool,
    min: usize,
    skip: Names,
}

fn build(o: &Options) -> Result<Weights> {
    let four = o.text("bits") == "4";
    let form = match o.text("form") {
        "matmulnbits" => Form::NBits,
        "folded" => Form::Folded,
        _ => Form::Qdq,
    };
    let nbits = form == Form::NBits;
    let block: Option<usize> = o.get_or_auto("block")?;
    let block = block.unwrap_or(if four || nbits { 32 } else { 0 });
    ensure!(
        block == 0 || (16..=256).contains(&block) && block.is_power_of_two(),
        "weights(block={block}): give 0, or a power of two from 16 to 256"
    );
    ensure!(
        !(nbits && block == 0),
        "weights(form=matmulnbits,block=0): MatMulNBits has blocks; give a power of two from 16 to 256"
    );
    ensure!(
        form != Form::Folded || !four && block == 0 && o.text("symmetric") != "off",
        "weights(form=folded): 8 bits and one scale for each output channel, without zero points; mixed=… stores fewer where the outputs bear it"
    );
    let mixed: f64 = o.get("mixed")?;
    ensure!(
        (0.0..1.0).contains(&mixed),
        "weights(mixed={mixed}): give a number from 0 to below 1, such as 0.01"
    );
    ensure!(
        mixed == 0.0 || form == Form::Folded,
        "weights(mixed={mixed}) goes with form=folded; bits=4 stores all weights in 4 bits"
    );
    let zeros = match o.text("symmetric") {
        "on" => false,
        "off" => true,
        _ => four,
    };
    Ok(Weights {
        scheme: Scheme {
            kind: if four { IntKind::S4 } else { IntKind::S8 },
            block,
            zeros,
            negative: false,
        },
        options: o.clone(),
        form,
        mixed,
        int8: o.text("compute") == "int8",
        data: o.text("rounding") == "data",
        tables: o.text("tables") == "on",
        min: o.get("min")?,
        skip: Names::of(o, "skip"),
    })
}

impl Pass for Weights {
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        let mut wanted = self.scheme.opset();
        for id in model.node_ids() {
            wanted = wanted.max(self.scheme(&model.label(id))?.opset());
        }
        // What others have quantized has no constant weights any more.
        let quantized = self.form == Form::Folded && model.nodes().any(|(id, _)| is_quantized_op(model, id));
        let Some(mut work) = quantized
            .then(|| model.clone())
            .or_else(|| cx.to_quantize(model, wanted))
        else {
            return Ok(());
        };
        let tables = (self.tables && !quantized, &self.skip);
        let quantize = |work: &mut Model, tables, cx: &mut Context| self.quantize(work, tables, cx);
        if tables::quantize_with(&mut work, tables, cx, quantize)? {
            *model = work;
        } else if cx.notes.is_empty() {
            cx.leave("there is no weight to quantize");
        }
        Ok(())
    }
}

impl Weights {
    /// Quantizes what can be, and takes fewer bits where asked, for `tables`, too; false when there was nothing.
    fn quantize(&self, model: &mut Model, tables: bool, cx: &mut Context) -> Result<bool> {
        let (weights, refused) = find::weights(model);
        for (node, why) in refused {
            cx.skip(model, node, why);
        }
        let weights: Vec<Weight> = weights.into_iter().filter(|w| self.wants(model, w, cx)).collect();
        if weights.is_empty() {
            return Ok(false);
        }
        let data = match self.data || self.mixed > 0.0 {
            true => Data::measure(model, &weights, cx)?,
            false => None,
        };
        let kinds = match (&data, self.mixed > 0.0) {
            (_, false) => BTreeMap::new(),
            (Some(data), true) => narrow::kinds(model, (weights.iter(), tables), data, self.mixed, cx)?,
            (None, true) => {
                cx.warn(format!(
                    "weights(mixed={}): weights keep 8 bits: without real data nobody knows the damage",
                    self.mixed
                ));
                BTreeMap::new()
            }
        };
        let data = data.filter(|_| self.data);
        let mut bytes = (0usize, 0usize);
        let mut changed = false;
        let mut emitter = emit::Emitter::new(model);
        for w in &weights {
            let Some((before, after)) = self.one(&mut emitter, w, (data.as_ref(), kinds.get(&w.value).copied()), cx)?
            else {
                continue;
            };
            bytes = (bytes.0 + before, bytes.1 + after);
            changed = true;
        }
        emitter.tables(&kinds, cx)?;
        if changed {
            let what = format!("weights of {} bytes take {} now", bytes.0, bytes.1);
            cx.note(NoteKind::Did, String::new(), what);
        }
        Ok(changed)
    }

    /// How the weight of a node with this label is stored.
    fn scheme(&self, label: &str) -> Result<Scheme> {
        match self.options.rules().is_empty() {
            true => Ok(self.scheme),
            false => build(&self.options.at(label)).map(|w| w.scheme),
        }
    }

    fn wants(&self, model: &Model, w: &Weight, cx: &mut Context) -> bool {
        let node = w.nodes[0];
        if w.nodes.iter().any(|n| self.skip.has(&model.label(*n))) {
            cx.skip(model, node, "left alone as asked (skip)");
            return false;
        }
        if w.len() < self.min {
            cx.skip(
                model,
                node,
                format!(
                    "its weight has {} elements, fewer than {}: left as it is",
                    w.len(),
                    self.min
                ),
            );
            return false;
        }
        if !w.is_finite(model) {
            cx.skip(model, node, "its weight is not finite: left as it is");
            return false;
        }
        true
    }

    /// Quantizes one weight; gives its bytes before and after.
    fn one(
        &self,
        emitter: &mut emit::Emitter,
        w: &Weight,
        (data, kind): (Option<&Data>, Option<IntKind>),
        cx: &mut Context,
    ) -> Result<Option<(usize, usize)>> {
        let model = &*emitter.model;
        let label = model.label(w.nodes[0]);
        let nbits = self.form == Form::NBits && nbits::fits(model, w);
        let asked = match kind {
            Some(kind) => narrow::scheme(kind),
            None => self.scheme(&label)?,
        };
        let mut scheme = Scheme {
            negative: asked.negative || nbits && !asked.zeros,
            ..asked
        };
        let view = match &w.blocked {
            Some(view) if scheme.block > 0 && view.span(&w.dims).1 * 2 >= scheme.block => view.clone(),
            _ => {
                scheme.block = 0;
                w.channels.clone()
            }
        };
        if scheme.block == 0 && asked.block > 0 && !nbits {
            // Blocks were asked for and cannot be had: one scale for so many weights needs more codes.
            (scheme.kind, scheme.zeros) = (IntKind::S8, false);
        }
        let before = 4 * w.len();
        let after = emit::bytes(w, &view, scheme);
        if after >= before {
            cx.skip(model, w.nodes[0], "its weight would not become smaller");
            return Ok(None);
        }
        let fitted = fit(model, w, &view, scheme, data.map(Data::all)).with_context(|| label.clone())?;
        if fitted.sqnr.is_nan() {
            cx.skip(model, w.nodes[0], "its weight is all zeros");
            return Ok(None);
        }
        let blocks = match scheme.block {
            0 => "one scale for each channel".to_owned(),
            b => format!("blocks of {b}"),
        };
        let what = format!("weight in {} bits, {blocks}, {:.1} dB", scheme.kind.bits(), fitted.sqnr);
        cx.note(NoteKind::Did, label, what);
        emit::shift(emitter.model, w, &fitted)?;
        match self.form {
            Form::NBits if nbits => nbits::emit(emitter, w, &fitted, self.int8)?,
            Form::Folded => emitter.folded(w, &view, &fitted)?,
            _ => emitter.dequantized(w, &view, scheme, &fitted)?,
        }
        Ok(Some((before, after)))
    }
}
