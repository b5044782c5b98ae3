//! Dynamic quantization: `y = s_x·s_w·((x_q − z_x) W_q) + b`, with `s_x` and `z_x` from the range that `x` has in this very run.
//!
//! Weights are s8, one scale for each output, zero point 0, fitted as `weights` fits them. The flow: which weights only matrix products
//! read (`weights::find`), their codes (`weights::fit`), then the integer operators in their readers' places (`emit`), and LSTM (`lstm`).
//!
//! Does nothing to a model that is quantized already. Costs nothing without data; with data a run over the calibration samples.

mod emit;
mod lstm;

use super::weights::find::{self, Weight};
use super::weights::fit::{self, Data, Fitted, Scheme};
use super::{Context, Names, NoteKind, Opt, Options, Part, Pass, PassInfo, tables};
use crate::ir::{Model, NodeId};
use crate::math::affine::IntKind;
use anyhow::{Context as _, Result};
use emit::Emitter;

/// The pass's row in the table.
pub const INFO: PassInfo = PassInfo {
    name: "dynamic",
    summary: "dynamic INT8 for MatMul, Gemm and LSTM: ranges are found at run time, no calibration data needed",
    doc: include_str!("doc.md"),
    lossy: true,
    part: Part::Aside,
    options: OPTIONS,
    build: |o| Ok(Box::new(build(o)?)),
};

const OPTIONS: &[Opt] = &[
    Opt {
        name: "weights",
        default: "8",
        values: "8|7",
        doc: "bits of a weight; 7 for x86 CPUs without VNNI, whose sums of two products saturate",
    },
    Opt {
        name: "lstm",
        default: "on",
        values: "on|off",
        doc: "LSTM as DynamicQuantizeLSTM of ONNX Runtime",
    },
    Opt {
        name: "rounding",
        default: "data",
        values: "data|nearest",
        doc: "with calibration data, round weights so that errors cancel, and correct biases; or each to the nearest code",
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
        doc: "products with smaller weights stay in floating point",
    },
    Opt {
        name: "skip",
        default: "",
        values: "names of nodes, `*` and `?` as wildcards, separated by `;`",
        doc: "nodes to leave in floating point",
    },
];

/// The first default-domain operator set with per-channel DequantizeLinear; the integer operators are older.
const OPSET: i64 = 13;

struct Dynamic {
    /// For what may differ from node to node.
    options: Options,
    lstm: bool,
    data: bool,
    tables: bool,
    min: usize,
    skip: Names,
}

/// How the weight of a node is stored.
fn scheme(o: &Options) -> Scheme {
    Scheme {
        kind: if o.text("weights") == "7" {
            IntKind::S7
        } else {
            IntKind::S8
        },
        block: 0,
        zeros: false,
        negative: false,
    }
}

fn build(o: &Options) -> Result<Dynamic> {
    Ok(Dynamic {
        options: o.clone(),
        lstm: o.text("lstm") == "on",
        data: o.text("rounding") == "data",
        tables: o.text("tables") == "on",
        min: o.get("min")?,
        skip: Names::of(o, "skip"),
    })
}

impl Pass for Dynamic {
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        let Some(mut work) = cx.to_quantize(model, OPSET) else {
            return Ok(());
        };
        let quantize = |work: &mut Model, _, cx: &mut Context| self.quantize(work, cx);
        if tables::quantize_with(&mut work, (self.tables, &self.skip), cx, quantize)? {
            *model = work;
        } else if cx.notes.is_empty() {
            cx.note(
                NoteKind::Skip,
                String::new(),
                "there is no product with a constant matrix",
            );
        }
        Ok(())
    }
}

impl Dynamic {
    /// Quantizes what can be; false when there was nothing.
    fn quantize(&self, model: &mut Model, cx: &mut Context) -> Result<bool> {
        let (weights, refused) = find::weights(model);
        for (node, why) in refused {
            cx.skip(model, node, why);
        }
        let (products, others): (Vec<Weight>, Vec<Weight>) = weights.into_iter().partition(|w| !w.sites.is_empty());
        let mut chosen = Vec::new();
        for w in products {
            match self.refuses(model, &w) {
                None => chosen.push(w),
                Some(why) => cx.skip(model, w.nodes[0], why),
            }
        }
        let data = if self.data {
            Data::measure(model, chosen.iter().chain(&others), cx)?
        } else {
            None
        };
        let mut changed = false;
        let mut emitter = Emitter::new(model);
        for w in &chosen {
            changed |= self.one(&mut emitter, w, data.as_ref(), cx)?;
        }
        Ok(self.recurrent(&mut emitter, &others, data.as_ref(), cx)? || changed)
    }

    /// Why a weight stays in floating point.
    fn refuses(&self, model: &Model, w: &Weight) -> Option<String> {
        if w.nodes.iter().any(|n| self.skip.has(&model.label(*n))) {
            return Some("left alone as asked (skip)".to_owned());
        }
        let node = model.node(w.nodes[0]);
        if w.sites.iter().any(|s| s.layout.window.is_some()) {
            return Some(format!(
                "a {} stays in floating point: int8 quantizes it, with calibration data",
                node.op.name
            ));
        }
        if w.len() < self.min {
            return Some(format!(
                "its weight has {} elements, fewer than {}: stays in floating point",
                w.len(),
                self.min
            ));
        }
        if w.nodes.len() != model.value(w.value).uses().len() || w.sites.len() != w.nodes.len() {
            return Some("its weight is read by something else too: stays in floating point".to_owned());
        }
        if !w.is_finite(model) {
            return Some("its weight is not finite: stays in floating point".to_owned());
        }
        w.sites.iter().find_map(|s| emit::refuses(model, s)).map(str::to_owned)
    }

    fn fit(&self, model: &Model, w: &Weight, view: &super::weights::view::View, data: Option<&Data>) -> Result<Fitted> {
        let label = model.label(w.nodes[0]);
        let scheme = scheme(&self.options.at(&label));
        fit::fit(model, w, view, scheme, data.map(Data::all)).with_context(|| label)
    }

    fn one(&self, emitter: &mut Emitter, w: &Weight, data: Option<&Data>, cx: &mut Context) -> Result<bool> {
        let fitted = self.fit(emitter.model, w, &w.channels, data)?;
        if fitted.sqnr.is_nan() {
            cx.skip(emitter.model, w.nodes[0], "its weight is all zeros");
            return Ok(false);
        }
        let label = emitter.model.label(w.nodes[0]);
        cx.note(NoteKind::Did, label, format!("u8 × s8, weight {:.1} dB", fitted.sqnr));
        super::weights::emit::shift(emitter.model, w, &fitted)?;
        emitter.products(w, &fitted)?;
        Ok(true)
    }

    /// LSTM whose two weights are constant and nobody else's; says why others stay.
    fn recurrent(
        &self,
        emitter: &mut Emitter,
        weights: &[Weight],
        data: Option<&Data>,
        cx: &mut Context,
    ) -> Result<bool> {
        let mut nodes: Vec<NodeId> = weights.iter().flat_map(|w| w.nodes.iter().copied()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut changed = false;
        for node in nodes {
            let of = |slot: usize| {
                let value = emitter.model.node(node).input(slot)?;
                weights.iter().find(|w| w.value == value && w.nodes == [node])
            };
            let why = match (of(1), of(2)) {
                _ if self.skip.has(&emitter.model.label(node)) => Some("left alone as asked (skip)".to_owned()),
                (Some(w), Some(r)) => lstm::refuses(emitter.model, node, w, r, self.lstm, self.min),
                _ => Some(
                    "a weight is not constant, or is read by something else too: stays in floating point".to_owned(),
                ),
            };
            if let Some(why) = why {
                cx.skip(emitter.model, node, why);
                continue;
            }
            let (Some(w), Some(r)) = (of(1), of(2)) else { continue };
            let view = lstm::view();
            let (a, b) = (
                self.fit(emitter.model, w, &view, data)?,
                self.fit(emitter.model, r, &view, data)?,
            );
            let what = format!("u8 × s8, weights {:.1} dB and {:.1} dB", a.sqnr, b.sqnr);
            cx.did(emitter.model, node, what);
            lstm::emit(emitter, node, [(w, &a), (r, &b)])?;
            changed = true;
        }
        Ok(changed)
    }
}
