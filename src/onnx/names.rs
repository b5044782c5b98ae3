//! Which name each value is written under: public names belong to ports, and no name is used twice in one scope.

use crate::ir::{GraphId, Model, Origin, Use, ValueId};
use std::collections::{HashMap, HashSet};

/// What differs from the values' own names.
#[derive(Default)]
pub struct Names {
    renamed: HashMap<ValueId, String>,
    identities: HashSet<(GraphId, usize)>,
    outputs: HashMap<(GraphId, usize), String>,
}

impl Names {
    /// Finds the values to rename and the outputs that need an `Identity`.
    pub fn of(model: &Model) -> Names {
        let mut names = Names::default();
        let mut claims: Vec<(ValueId, String)> = Vec::new();
        for g in model.live_graphs() {
            names.claim_outputs(model, g, &mut claims);
        }
        if !claims.is_empty() {
            names.make_room(model, &claims);
        }
        names.unshadow(model);
        names
    }

    /// The name of a value in the file.
    pub fn of_value<'a>(&'a self, model: &'a Model, v: ValueId) -> &'a str {
        self.renamed.get(&v).map_or(&model.value(v).name, |n| n)
    }

    /// The name of a value in the file, when it is not its own.
    pub fn renamed(&self, v: ValueId) -> Option<&str> {
        self.renamed.get(&v).map(String::as_str)
    }

    /// The changed name of a sub-graph's output.
    pub fn of_output(&self, graph: GraphId, slot: usize) -> Option<&str> {
        self.outputs.get(&(graph, slot)).map(String::as_str)
    }

    /// True when the value behind an output cannot bear the output's name.
    pub fn needs_identity(&self, graph: GraphId, slot: usize) -> bool {
        self.identities.contains(&(graph, slot))
    }

    /// Values behind outputs take the public names; where they cannot, an `Identity` does.
    fn claim_outputs(&mut self, model: &Model, g: GraphId, claims: &mut Vec<(ValueId, String)>) {
        let ports = model.graph(g).outputs();
        let mut taken: HashSet<ValueId> = ports
            .iter()
            .filter(|p| model.value(p.value).name == p.name())
            .map(|p| p.value)
            .collect();
        for (slot, p) in ports.iter().enumerate() {
            let v = model.value(p.value);
            if v.name == p.name() {
                continue;
            }
            let can_bear = matches!(v.origin(), Origin::Node(..)) && v.graph() == g && taken.insert(p.value);
            if can_bear {
                self.renamed.insert(p.value, p.name().to_owned());
            } else {
                self.identities.insert((g, slot));
            }
            claims.push((p.value, p.name().to_owned()));
        }
    }

    /// Other values that bear a claimed name within reach of it get a fresh one.
    fn make_room(&mut self, model: &Model, claims: &[(ValueId, String)]) {
        let claimed: HashMap<&str, ValueId> = claims.iter().map(|(v, n)| (n.as_str(), *v)).collect();
        let in_the_way: Vec<ValueId> = model
            .values()
            .filter(|(id, v)| claimed.contains_key(v.name.as_str()) && !self.renamed.contains_key(id))
            .filter(|(_, v)| !is_public(model, v.graph(), &v.name, v.origin()))
            .map(|(id, _)| id)
            .collect();
        for id in in_the_way {
            let fresh = model.fresh_name(&format!("{}_inner", model.value(id).name));
            self.renamed.insert(id, fresh);
        }
    }

    /// A captured value must not be hidden by a value of the same name in a scope between.
    fn unshadow(&mut self, model: &Model) {
        let captures: Vec<(ValueId, GraphId)> = captures(model);
        if captures.is_empty() {
            return;
        }
        let mut by_scope: HashMap<(GraphId, String), ValueId> = HashMap::new();
        for (id, v) in model.values() {
            by_scope.insert((v.graph(), self.of_value(model, id).to_owned()), id);
        }
        for (v, reader) in captures {
            let mut g = reader;
            while g != model.value(v).graph() {
                let key = (g, self.of_value(model, v).to_owned());
                if let Some(&hides) = by_scope.get(&key) {
                    let fresh = model.fresh_name(&format!("{}_inner{}", key.1, hides.index()));
                    self.rename_inner(model, g, hides, fresh);
                    by_scope.remove(&key);
                }
                let Some(parent) = model.graph(g).parent() else { break };
                g = model.node(parent).graph();
            }
        }
    }

    fn rename_inner(&mut self, model: &Model, g: GraphId, v: ValueId, name: String) {
        for (slot, p) in model.graph(g).outputs().iter().enumerate() {
            if p.value == v && !self.identities.contains(&(g, slot)) {
                self.outputs.insert((g, slot), name.clone());
            }
        }
        self.renamed.insert(v, name);
    }
}

fn is_public(model: &Model, g: GraphId, name: &str, origin: Origin) -> bool {
    origin == Origin::Input && model.graph(g).inputs().iter().any(|p| p.name() == name)
}

/// Values read in a deeper scope than their own, and the scopes that read them.
fn captures(model: &Model) -> Vec<(ValueId, GraphId)> {
    let mut all = Vec::new();
    for (id, v) in model.values() {
        for u in v.uses() {
            let g = match *u {
                Use::Node(n, _) => model.node(n).graph(),
                Use::Output(g, _) => g,
            };
            if g != v.graph() {
                all.push((id, g));
            }
        }
    }
    all
}
