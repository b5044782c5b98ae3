//! Orders and paths through the graph.

use super::{GraphId, Model, NodeId, Use, ValueId};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

impl Model {
    /// The node of `graph` that holds a reader of a value: the reader itself, or the control-flow node around it.
    /// `None` when the reader lies outside of `graph`, or is an output of `graph` itself.
    pub fn reader_in(&self, graph: GraphId, reader: Use) -> Option<NodeId> {
        let (mut g, mut node) = match reader {
            Use::Node(n, _) => (self.node(n).graph(), Some(n)),
            Use::Output(g, _) => (g, None),
        };
        while g != graph {
            let parent = self.graph(g).parent()?;
            node = Some(parent);
            g = self.node(parent).graph();
        }
        node
    }

    /// The nodes of a graph in an order of execution (captures by sub-graphs count as reads). Nodes that are in order
    /// already keep it. When there is a cycle, `Err` names the nodes that could not be placed.
    pub fn topological(&self, graph: GraphId) -> Result<Vec<NodeId>, Vec<NodeId>> {
        let nodes = self.graph(graph).nodes();
        let place: HashMap<NodeId, usize> = nodes.iter().enumerate().map(|(i, n)| (*n, i)).collect();
        let mut waits = vec![0usize; nodes.len()];
        let mut feeds: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
        for (i, &n) in nodes.iter().enumerate() {
            for &v in self.node(n).outputs().iter().flatten() {
                for &u in self.value(v).uses() {
                    if let Some(&j) = self.reader_in(graph, u).as_ref().and_then(|r| place.get(r)) {
                        feeds[i].push(j);
                        waits[j] += 1;
                    }
                }
            }
        }
        let mut ready: BinaryHeap<Reverse<usize>> = (0..nodes.len()).filter(|&i| waits[i] == 0).map(Reverse).collect();
        let mut order = Vec::with_capacity(nodes.len());
        while let Some(Reverse(i)) = ready.pop() {
            order.push(nodes[i]);
            for &j in &feeds[i] {
                waits[j] -= 1;
                if waits[j] == 0 {
                    ready.push(Reverse(j));
                }
            }
        }
        if order.len() == nodes.len() {
            return Ok(order);
        }
        Err((0..nodes.len()).filter(|&i| waits[i] > 0).map(|i| nodes[i]).collect())
    }

    /// The nodes that read a value, each once, in the order of their ids.
    pub fn readers(&self, value: ValueId) -> Vec<NodeId> {
        let mut all: Vec<NodeId> = self
            .value(value)
            .uses()
            .iter()
            .filter_map(|u| match u {
                Use::Node(n, _) => Some(*n),
                Use::Output(..) => None,
            })
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// True when a value of scope `outer` can be named inside `inner`: the same graph, or one around it.
    pub fn in_scope(&self, outer: GraphId, inner: GraphId) -> bool {
        let mut g = inner;
        loop {
            if g == outer {
                return true;
            }
            match self.graph(g).parent() {
                Some(p) => g = self.node(p).graph(),
                None => return false,
            }
        }
    }
}
