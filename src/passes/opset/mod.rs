//! `opset`: the same model under a newer version of the default operator set.
//!
//! An ONNX operator keeps its meaning until the operator set in which it gets a new version
//! ([changelog](https://github.com/onnx/onnx/blob/main/docs/Changelog.md)). Most new versions only allow more types or add
//! an attribute whose default is the old meaning; `changes.rs` lists all others after version 7, each with its rewrite.
//!
//! The model and its functions import operator sets separately, and every import of the default domain is raised. The IR
//! version becomes what the ONNX release that brought the operator set wrote, when it is lower. Imports that no node uses
//! are dropped.
//!
//! It does nothing to what is at the version already or above: the meaning of newer operators cannot be told in older ones.

mod changes;
mod raise;
mod softmax;

use super::{Context, NoteKind, Opt, Options, Part, Pass, PassInfo};
use crate::ir::{GraphId, Model, NodeId};
use crate::onnx::default_domain;
use crate::pb::OperatorSetIdProto;
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;

/// The pass's row in the table.
pub const INFO: PassInfo = PassInfo {
    name: "opset",
    summary: "raise the version of the default operator set",
    doc: DOC,
    lossy: false,
    part: Part::Aside,
    options: OPTIONS,
    build: |o| Ok(Box::new(build(o)?)),
};

const DOC: &str = "\
Rewrites every operator whose definition changed, in sub-graphs and functions too, so that the model means the same under
the newer operator set; raises the IR version as far as that needs; drops imports that nothing uses. `--opset N` asks for it
before all other passes.

It never lowers a version. A model older than operator set 7 is refused, and so is one with a node that has no newer form (the
message names it): nothing is changed then.";

const OPTIONS: &[Opt] = &[Opt {
    name: "to",
    default: "21",
    values: "7 to 28",
    doc: "the operator set to reach",
}];

/// The oldest operator set that is understood, and the newest that models are raised to.
const KNOWN: std::ops::RangeInclusive<i64> = 7..=28;

/// The IR version that the first ONNX release with an operator set wrote
/// ([versioning](https://github.com/onnx/onnx/blob/main/docs/Versioning.md)): from the set on, the IR version.
const IR_VERSIONS: &[(i64, i64)] = &[
    (7, 3),
    (9, 4),
    (10, 5),
    (11, 6),
    (12, 7),
    (15, 8),
    (19, 9),
    (21, 10),
    (23, 11),
    (24, 12),
    (25, 13),
    (28, 14),
];

struct Raise {
    to: i64,
}

fn build(options: &Options) -> Result<Raise> {
    let to = options.get("to")?;
    ensure!(
        KNOWN.contains(&to),
        "operator set {to}: give one from {} to {}",
        KNOWN.start(),
        KNOWN.end()
    );
    Ok(Raise { to })
}

impl Pass for Raise {
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        let from = model.opset("");
        if from > self.to {
            cx.warn(format!(
                "the model is at operator set {from}, above {}: left there",
                self.to
            ));
            return Ok(());
        }
        ensure!(
            model.rest.training_info.is_empty(),
            "its training information refers to inner names: the operator set cannot be raised"
        );
        for (node, what) in raise_opset(model, self.to)? {
            cx.note(NoteKind::Did, node, what);
        }
        Ok(())
    }
}

/// Raises every import of the default operator set to `to`, and the IR version as far as that needs. Gives what was
/// rewritten: the node's label, and how.
///
/// # Errors
/// When a node cannot be converted (the message names it), an import is older than operator set 7, or `to` is not known.
/// The model is then as it was.
pub fn raise_opset(model: &mut Model, to: i64) -> Result<Vec<(String, String)>> {
    ensure!(
        KNOWN.contains(&to),
        "operator set {to} is not known: the newest is {}",
        KNOWN.end()
    );
    let mut raised = model.clone();
    let mut done = Vec::new();
    let roots: Vec<GraphId> = std::iter::once(model.main_id())
        .chain(model.functions().to_vec())
        .collect();
    let mut any = false;
    for root in roots {
        let from = imported(model, root);
        if from == 0 || from >= to {
            continue;
        }
        ensure!(
            KNOWN.contains(&from),
            "operator set {from} is too old to be converted; export the model anew, at operator set {} or later",
            KNOWN.start()
        );
        any = true;
    }
    if !any {
        return Ok(done);
    }
    let needed = IR_VERSIONS
        .iter()
        .rev()
        .find(|(set, _)| *set <= to)
        .map_or(3, |(_, ir)| *ir);
    raised.raise_ir(needed);
    let nodes: Vec<(NodeId, i64)> = raised
        .nodes()
        .filter(|(_, n)| n.op.domain.is_empty())
        .map(|(id, _)| (id, raised.opset_of(id)))
        .filter(|(_, from)| *from != 0 && *from < to)
        .collect();
    let mut work = raise::Work::new(&mut raised, to);
    for (id, from) in nodes {
        let op = work.model.node(id).op.name.clone();
        let label = work.model.label(id);
        let changed = changes::convert(&mut work, id, from);
        let changed = changed.with_context(|| format!("{label} ({op}) cannot be raised to operator set {to}"))?;
        done.extend(changed.map(|at| (label, format!("{op} rewritten: it changed in operator set {at}"))));
    }
    for root in std::iter::once(raised.main_id()).chain(raised.functions().to_vec()) {
        set_imports(&mut raised, root, to);
    }
    *model = raised;
    Ok(done)
}

fn imports(model: &mut Model, root: GraphId) -> &mut Vec<OperatorSetIdProto> {
    if root == model.main_id() {
        return &mut model.rest.opset_import;
    }
    let function = &mut model.graph_mut(root).function;
    &mut function.get_or_insert_default().opset_import
}

/// The default operator set that the main graph or a function imports; 0 for none.
fn imported(model: &Model, root: GraphId) -> i64 {
    let of = |all: &[OperatorSetIdProto]| {
        let own = all.iter().find(|o| default_domain(o.domain()).is_empty());
        own.map_or(0, |o| o.version())
    };
    match &model.graph(root).function {
        Some(f) => of(&f.opset_import),
        None => of(&model.rest.opset_import),
    }
}

/// Sets the version of the default domain, and drops imports of domains that no node of the root uses. (The model itself
/// imports what its functions use, too.)
fn set_imports(model: &mut Model, root: GraphId, to: i64) {
    let main = model.main_id();
    let mut used: BTreeSet<String> = BTreeSet::from([String::new()]);
    let nodes = model
        .nodes()
        .filter(|(_, n)| root == main || model.in_scope(root, n.graph()));
    used.extend(nodes.map(|(_, n)| n.op.domain.clone()));
    let all = imports(model, root);
    all.retain(|o| used.contains(default_domain(o.domain())));
    for o in all.iter_mut().filter(|o| default_domain(o.domain()).is_empty()) {
        if o.version() < to {
            o.version = Some(to);
        }
    }
}
