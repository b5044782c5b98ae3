//! Moving the content of a sub-graph into the graph around it.

use super::{GraphId, Model, ValueId};
use std::collections::HashMap;

impl Model {
    /// Moves all nodes, initializers and declared types of a node's sub-graph into the graph of that node. The outputs of
    /// the emptied sub-graph still name their values. Names that another living value bears are made fresh.
    ///
    /// Does nothing for a graph that no node holds. Inputs of the sub-graph are not moved: it should have none.
    pub fn inline_body(&mut self, body: GraphId) {
        let Some(parent) = self.graph(body).parent else { return };
        let outer = self.node(parent).graph;
        let mut bearers: HashMap<String, usize> = HashMap::new();
        for (_, v) in self.values() {
            *bearers.entry(v.name.clone()).or_default() += 1;
        }
        let moved: Vec<ValueId> = self
            .values()
            .filter(|(_, v)| v.graph == body)
            .map(|(id, _)| id)
            .collect();
        for v in moved {
            let name = &self.values[v.index()].name;
            if bearers.get(name).is_some_and(|n| *n > 1) {
                let fresh = self.fresh_name(name);
                self.names.insert(fresh.clone());
                self.values[v.index()].name = fresh;
            }
            self.values[v.index()].graph = outer;
        }
        let nodes = std::mem::take(&mut self.graphs[body.index()].nodes);
        for &n in &nodes {
            self.node_mut(n).graph = outer;
        }
        let consts = std::mem::take(&mut self.graphs[body.index()].consts);
        let infos = std::mem::take(&mut self.graphs[body.index()].infos);
        let graph = &mut self.graphs[outer.index()];
        graph.nodes.extend(nodes);
        graph.consts.extend(consts);
        graph.infos.extend(infos);
        self.revision += 1;
    }
}
