//! Taking inputs and outputs away from nodes and sub-graphs.

use super::{GraphId, Model, NodeId, Origin, Use, ValueId};

impl Model {
    /// Leaves an optional output out. Outputs before the last that is there keep their places.
    ///
    /// # Panics
    /// When the output is still used.
    pub fn drop_output(&mut self, node: NodeId, slot: usize) {
        if let Some(Some(v)) = self.node(node).outputs.get(slot).copied() {
            assert!(self.value(v).uses.is_empty(), "{} is still used", self.value(v).name);
            self.values[v.index()].dead = true;
            self.node_mut(node).outputs[slot] = None;
        }
        let outputs = &mut self.node_mut(node).outputs;
        while outputs.last() == Some(&None) {
            outputs.pop();
        }
    }

    /// Takes an output of a node away; those behind it move up.
    ///
    /// # Panics
    /// When the output is still used.
    pub fn remove_node_output(&mut self, node: NodeId, slot: usize) {
        let removed = self.node_mut(node).outputs.remove(slot);
        removed.into_iter().for_each(|v| self.bury(v));
        for (slot, v) in self.node(node).outputs.clone().into_iter().enumerate().skip(slot) {
            if let Some(v) = v {
                self.values[v.index()].origin = Origin::Node(node, slot);
            }
        }
    }

    /// Takes an input of a graph away; those behind it move up.
    ///
    /// # Panics
    /// When the input is still used.
    pub fn remove_input(&mut self, graph: GraphId, slot: usize) {
        let port = self.graphs[graph.index()].inputs.remove(slot);
        self.bury(port.value);
    }

    /// Takes an output of a graph away, not the value that it gives; those behind it move up.
    pub fn remove_output(&mut self, graph: GraphId, slot: usize) {
        let count = self.graph(graph).outputs.len();
        for s in slot..count {
            let v = self.graph(graph).outputs[s].value;
            let uses = &mut self.values[v.index()].uses;
            match s == slot {
                true => uses.retain(|u| *u != Use::Output(graph, s)),
                false => {
                    let moved = uses.iter_mut().filter(|u| **u == Use::Output(graph, s));
                    moved.for_each(|u| *u = Use::Output(graph, s - 1));
                }
            }
        }
        self.graphs[graph.index()].outputs.remove(slot);
        self.revision += 1;
    }

    fn bury(&mut self, v: ValueId) {
        let value = &mut self.values[v.index()];
        assert!(value.uses.is_empty(), "{} is still used", value.name);
        value.dead = true;
        self.revision += 1;
    }
}
