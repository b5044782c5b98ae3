//! The invariants of the representation, as code.

use super::{Model, Origin, Use, ValueId};
use anyhow::{Result, bail, ensure};
use std::collections::HashSet;

/// Checks a model: every edge is recorded on both sides, every value that is read exists and can be seen from where it is
/// read, no graph has a cycle, and the names of a graph's ports are unique.
///
/// # Errors
/// Names the node or value that breaks an invariant. A model that was read from a legal file and changed only through
/// the edit methods does not fail, except by a cycle, which is a fault of the file or of a pass.
pub fn check(model: &Model) -> Result<()> {
    for (id, node) in model.nodes() {
        for (slot, v) in node.inputs().iter().enumerate() {
            let Some(v) = *v else { continue };
            let value = model.value(v);
            ensure!(!value.dead, "{} reads {}, which is gone", model.label(id), value.name);
            ensure!(
                value.uses().contains(&Use::Node(id, slot)),
                "{} reads {}, which does not know it",
                model.label(id),
                value.name
            );
            ensure!(
                model.in_scope(value.graph(), node.graph()),
                "{} reads {}, which is in another scope",
                model.label(id),
                value.name
            );
        }
        for (slot, v) in node.outputs().iter().enumerate() {
            let Some(v) = *v else { continue };
            ensure!(
                model.value(v).origin() == Origin::Node(id, slot),
                "{} does not come from {}",
                model.value(v).name,
                model.label(id)
            );
        }
    }
    for (id, value) in model.values() {
        check_uses(model, id)?;
        if let (Origin::Const, None) = (value.origin(), value.tensor()) {
            bail!("initializer {} has no data", value.name);
        }
    }
    for g in model.live_graphs() {
        check_ports(model, g)?;
        if let Err(nodes) = model.topological(g) {
            let names: Vec<String> = nodes.iter().take(5).map(|n| model.label(*n)).collect();
            bail!("the graph has a cycle through {}", names.join(", "));
        }
    }
    Ok(())
}

fn check_uses(model: &Model, id: ValueId) -> Result<()> {
    let value = model.value(id);
    for u in value.uses() {
        let ok = match *u {
            Use::Node(n, slot) => model.is_alive(n) && model.node(n).input(slot) == Some(id),
            Use::Output(g, slot) => model.graph(g).outputs().get(slot).is_some_and(|p| p.value == id),
        };
        ensure!(ok, "{} lists a reader that does not read it", value.name);
    }
    Ok(())
}

fn check_ports(model: &Model, g: super::GraphId) -> Result<()> {
    let graph = model.graph(g);
    let mut seen = HashSet::new();
    for p in graph.inputs() {
        ensure!(seen.insert(p.name()), "the graph has two inputs called {}", p.name());
    }
    seen.clear();
    for p in graph.outputs() {
        ensure!(seen.insert(p.name()), "the graph has two outputs called {}", p.name());
        ensure!(
            model.in_scope(model.value(p.value).graph(), g),
            "output {} is in another scope",
            p.name()
        );
    }
    Ok(())
}
