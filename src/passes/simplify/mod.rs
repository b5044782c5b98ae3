//! `simplify`: the same function with fewer nodes and fewer bytes.
//!
//! Every rule is an identity of the operators' definitions: outputs differ by the rounding of floats at most. A rule
//! looks at one node and its neighbours (`LOCAL`) or at the whole model (`WHOLE`); all of them run in rounds until
//! nothing changes, so that one rule's result feeds the next.
//!
//! * Values keep their meaning under their names: a node that is folded into its producer leaves its own output's name.
//! * Bodies of control flow and functions are rewritten like the main graph; two nodes are joined only when they stand
//!   in the same graph. A function body cannot hold initializers: constants stay `Constant` nodes there.
//! * Ports, random operators, operators of other domains (but for those that `unfuse.rs` spells out), and attributes that a function's caller gives are never touched.
//! * Nothing grows: see `fold.rs` for the bound on folded constants.

mod affine;
mod branch;
mod carried;
mod casts;
mod chains;
mod concat;
mod constant;
mod cse;
mod dead;
mod dedup;
mod direct;
mod facts;
mod fold;
mod fuse;
mod gates;
mod gemm;
mod identity;
mod moved;
mod neutral;
mod numbers;
mod pad;
mod range;
mod reshape;
mod shapes;
mod state;
mod traces;
mod unfuse;
mod views;
mod weights;
mod work;

use super::{Context, NoteKind, Opt, Options, Part, Pass, PassInfo};
use crate::ir::{Model, NodeId};
use anyhow::Result;
use std::collections::BTreeSet;
use work::Work;

/// The pass's row in the table.
pub const INFO: PassInfo = PassInfo {
    name: "simplify",
    summary: "fold constants and batch normalization, drop what does nothing, merge what repeats",
    doc: DOC,
    lossy: false,
    part: Part::Aside,
    options: OPTIONS,
    build: |o| Ok(Box::new(build(o)?)),
};

const DOC: &str = "\
Rewrites the graph by identities only: outputs stay equal up to the rounding of floats.

Constants: `Constant` nodes become initializers, what depends on constants only is computed (where the file does not
grow by it), shapes that are known become constants.
Folding: BatchNormalization and per-channel Mul, Add, Sub, Div go into a neighbouring Conv, ConvTranspose, Gemm or MatMul;
MatMul and Add become Gemm where the rank is 2; Add, Clip and Mul that spell out a hard gate become HardSigmoid; Pad goes into Conv and pools; Relu goes where a Clip follows.
Chains: Transpose, Reshape, Squeeze, Unsqueeze, Cast, Slice and Concat are merged or cancel.
Nothing to do: Identity, Dropout, and every operator that hands on its input unchanged.
Repetition: equal computations and byte-equal initializers are shared.
Portable: what the optimizer of ONNX Runtime has joined (Attention, MultiHeadAttention, EmbedLayerNormalization, SkipLayerNormalization, FusedConv, FusedGemm, FusedMatMul,
Gelu, BiasGelu, FastGelu, QuickGelu) is
spelled out in operators of ONNX, so that other passes and runtimes can read it; ONNX Runtime joins it again when it loads the result;
so is what ONNX has dropped (ImageScaler, Affine, Crop).
Dead: stack traces that an exporter has left in nodes; what no output needs; `If` with a constant condition; what a `Loop` carries along and never changes; unused functions, operator sets and optional outputs.

It leaves alone: the model's inputs (but for weights that an exporter has listed as such) and outputs, random operators, other operators of other domains, models with training information.";

const OPTIONS: &[Opt] = &[
    Opt {
        name: "fuse",
        default: "off",
        values: "off|on",
        doc: "recognise HardSwish, Gelu, Swish and LayerNormalization that are spelled out, where the operator set has them",
    },
    Opt {
        name: "inputs",
        default: "auto",
        values: "auto|keep",
        doc: "initializers that are inputs, too: constants where an exporter has listed every one of them; or inputs with a default that callers may override, as the file says",
    },
    Opt {
        name: "shapes",
        default: "keep",
        values: "keep|all",
        doc: "declare the types and dimensions of inner values: those that the file declares already, or all that can be inferred",
    },
];

/// More rounds than any real model needs: rules that undo each other would otherwise never end.
const MAX_ROUNDS: usize = 40;
/// The newest operator set whose operators the rules were checked against.
const NEWEST_OPSET: i64 = 28;

/// A rule that looks at one node. It says what it did, or `None` when it does not apply.
type Local = fn(&mut Work, NodeId) -> Option<String>;
/// A rule that looks at the whole model. It says what it did, a line for each change.
type Whole = fn(&mut Work) -> Vec<(String, String)>;

const LOCAL: &[Local] = &[
    constant::to_initializer,
    branch::inline_constant_if,
    carried::read_from_outside,
    identity::remove,
    neutral::remove,
    casts::merge,
    range::merge,
    reshape::merge,
    reshape::constant_target,
    chains::transpose,
    chains::slice,
    concat::merge,
    views::merge,
    state::drop_zero_state,
    gemm::from_matmul_add,
    gates::hard_sigmoid,
    affine::fold,
    pad::fold,
];

const WHOLE: &[Whole] = &[
    unfuse::spell_out,
    fold::known_integers,
    cse::share,
    dedup::share,
    dead::remove,
];

/// What becomes of initializers that are inputs, too.
#[derive(PartialEq, Eq)]
enum Defaults {
    /// Constants, where an exporter listed them all.
    Auto,
    /// Callers may give others.
    Keep,
}

struct Simplify {
    fuse: bool,
    defaults: Defaults,
    all_shapes: bool,
}

fn build(options: &Options) -> Result<Simplify> {
    Ok(Simplify {
        fuse: options.text("fuse") == "on",
        defaults: match options.text("inputs") {
            "keep" => Defaults::Keep,
            _ => Defaults::Auto,
        },
        all_shapes: options.text("shapes") == "all",
    })
}

impl Pass for Simplify {
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        if !model.rest.training_info.is_empty() {
            cx.warn("simplify leaves the model as it is: its training information refers to inner names");
            return Ok(());
        }
        let opset = model.opset("");
        if opset > NEWEST_OPSET {
            cx.warn(format!(
                "simplify leaves the model as it is: operator set {opset} is newer than {NEWEST_OPSET}, the newest that it knows"
            ));
            return Ok(());
        }
        dead::default_inputs(model);
        if self.defaults == Defaults::Auto {
            let listed = dead::exporters_inputs(model, cx.samples);
            if listed > 0 {
                let what = format!(
                    "all {listed} initializers are listed as inputs, as exporters for old runtimes do: they are constants now; inputs=keep leaves them"
                );
                cx.note(NoteKind::Did, String::new(), what);
            }
        }
        let traces = traces::drop(model);
        if traces > 0 {
            let what = format!("{traces} bytes of stack traces that an exporter has left: removed");
            cx.note(NoteKind::Did, String::new(), what);
        }
        let mut rules = LOCAL.to_vec();
        if self.fuse {
            rules.insert(0, fuse::recognize); // before other rules fold a layer's factors into its neighbours
        }
        let mut refused = BTreeSet::new();
        for _ in 0..MAX_ROUNDS {
            if !round(model, cx, &rules, &mut refused)? {
                break;
            }
        }
        if self.all_shapes {
            shapes::declare(model)?;
        }
        Ok(())
    }
}

fn round(model: &mut Model, cx: &mut Context, rules: &[Local], refused: &mut BTreeSet<NodeId>) -> Result<bool> {
    let before = cx.notes.len();
    let mut work = Work::new(model)?;
    for rule in rules {
        for id in work.model.node_ids() {
            if !work.model.is_alive(id) || !work.may_touch(id) {
                continue;
            }
            let label = work.model.label(id);
            if let Some(what) = rule(&mut work, id) {
                cx.note(NoteKind::Did, label, what);
            }
        }
    }
    for rule in WHOLE {
        for (label, what) in rule(&mut work) {
            cx.note(NoteKind::Did, label, what);
        }
    }
    for (label, what) in fold::computed(&mut work, cx.engine, refused) {
        cx.note(NoteKind::Did, label, what);
    }
    Ok(cx.notes.len() > before)
}
