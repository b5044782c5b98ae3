//! The model, its graphs and their ports; how to look things up.

use super::{GraphId, Node, NodeId, Origin, Tensor, Use, Value, ValueId};
use crate::pb;
use std::collections::HashSet;

/// A graph input or output: the public name and type, and the value behind it.
#[derive(Clone, Debug)]
pub struct Port {
    /// Public name, declared type, doc string.
    pub info: pb::ValueInfoProto,
    /// The value fed in or given out.
    pub value: ValueId,
}

impl Port {
    /// The public name.
    pub fn name(&self) -> &str {
        self.info.name()
    }
}

/// One `value_info` entry.
#[derive(Clone, Debug)]
pub struct Info {
    /// The value that it describes; `None` for a name that nothing in the graph has.
    pub value: Option<ValueId>,
    /// The entry.
    pub info: pb::ValueInfoProto,
}

/// A graph: the main one, a sub-graph of a node, or a function body.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub(in crate::ir) inputs: Vec<Port>,
    pub(in crate::ir) outputs: Vec<Port>,
    pub(in crate::ir) nodes: Vec<NodeId>,
    pub(in crate::ir) consts: Vec<ValueId>,
    pub(in crate::ir) parent: Option<NodeId>,
    /// Declared types of inner values.
    pub infos: Vec<Info>,
    /// The rest of the message: name, doc string, sparse initializers, annotations, metadata.
    pub rest: pb::GraphProto,
    /// For the body of a function: its message without nodes, inputs, outputs and `value_info`.
    pub function: Option<pb::FunctionProto>,
}

impl Graph {
    /// The inputs, in order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }
    /// The outputs, in order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }
    /// The nodes in file order, later additions last. See [`Model::topological`] for an order of execution.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }
    /// The initializers, in order (those that are also inputs included).
    pub fn consts(&self) -> &[ValueId] {
        &self.consts
    }
    /// The node whose attribute holds this graph; `None` for the main graph and for functions.
    pub fn parent(&self) -> Option<NodeId> {
        self.parent
    }
}

/// An ONNX model. Cloning it shares all tensor data.
#[derive(Clone, Debug)]
pub struct Model {
    pub(in crate::ir) graphs: Vec<Graph>,
    pub(in crate::ir) nodes: Vec<Option<Node>>,
    pub(in crate::ir) values: Vec<Value>,
    pub(in crate::ir) main: GraphId,
    pub(in crate::ir) functions: Vec<GraphId>,
    pub(in crate::ir) names: HashSet<String>,
    pub(in crate::ir) revision: u64,
    /// The rest of the message: versions, opset imports, metadata, training information.
    pub rest: pb::ModelProto,
}

impl Model {
    /// The main graph.
    pub fn main(&self) -> &Graph {
        &self.graphs[self.main.index()]
    }
    /// The id of the main graph.
    pub fn main_id(&self) -> GraphId {
        self.main
    }
    /// The bodies of the model-local functions.
    pub fn functions(&self) -> &[GraphId] {
        &self.functions
    }
    /// A graph.
    pub fn graph(&self, id: GraphId) -> &Graph {
        &self.graphs[id.index()]
    }
    /// A graph whose `rest` and `infos` may be changed.
    pub fn graph_mut(&mut self, id: GraphId) -> &mut Graph {
        &mut self.graphs[id.index()]
    }
    /// Every graph that can still be reached: main, sub-graphs of living nodes, function bodies; parents first.
    pub fn live_graphs(&self) -> Vec<GraphId> {
        let mut all = vec![self.main];
        all.extend(&self.functions);
        let mut i = 0;
        while i < all.len() {
            for &n in &self.graph(all[i]).nodes {
                all.extend(self.node(n).sub_graphs());
            }
            i += 1;
        }
        all
    }
    /// A node.
    ///
    /// # Panics
    /// When the node was erased.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes[id.index()].as_ref().expect("the node was not erased")
    }
    /// A node whose operator, attributes and `rest` may be changed; its edges change by the methods of `Model`.
    ///
    /// # Panics
    /// When the node was erased.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.revision += 1;
        self.nodes[id.index()].as_mut().expect("the node was not erased")
    }
    /// True while the node is part of the model.
    pub fn is_alive(&self, id: NodeId) -> bool {
        self.nodes[id.index()].is_some()
    }
    /// Every living node of every graph, oldest first.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes
            .iter()
            .enumerate()
            .filter_map(|(i, n)| Some((NodeId(i as u32), n.as_ref()?)))
    }
    /// The ids of every living node, as a list that stays valid while the model is edited.
    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes().map(|(id, _)| id).collect()
    }
    /// A value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }
    /// Every value that is still there.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values
            .iter()
            .enumerate()
            .filter(|(_, v)| !v.dead)
            .map(|(i, v)| (ValueId(i as u32), v))
    }
    /// The tensor behind a value that is the same in every run: an initializer that no caller can override.
    ///
    /// An initializer that is also a graph input is a constant only below IR version 4, where every initializer had to be
    /// listed as an input (ONNX IR specification, "Initializers").
    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        let v = self.value(id);
        match v.origin {
            Origin::Const => v.tensor.as_ref(),
            Origin::Input if self.rest.ir_version() < 4 => v.tensor.as_ref(),
            _ => None,
        }
    }
    /// The constant behind input `i` of a node.
    pub fn constant_input(&self, node: NodeId, i: usize) -> Option<&Tensor> {
        self.constant(self.node(node).input(i)?)
    }
    /// The node that makes the value at input `i` of a node.
    pub fn input_producer(&self, node: NodeId, i: usize) -> Option<NodeId> {
        self.value(self.node(node).input(i)?).producer()
    }
    /// The only reader of a value, when it is read exactly once, by a node, at input `.1`.
    pub fn only_use(&self, id: ValueId) -> Option<(NodeId, usize)> {
        match self.value(id).uses[..] {
            [Use::Node(n, i)] => Some((n, i)),
            _ => None,
        }
    }
    /// The version of an operator set that the model imports; the default domain is `""`. 0 when it is not imported.
    pub fn opset(&self, domain: &str) -> i64 {
        opset_in(&self.rest.opset_import, domain)
    }
    /// The version of its operator set that a node is read under: a function body has imports of its own.
    pub fn opset_of(&self, node: NodeId) -> i64 {
        let node = self.node(node);
        let mut graph = node.graph;
        while let Some(p) = self.graph(graph).parent {
            graph = self.node(p).graph;
        }
        match &self.graph(graph).function {
            Some(f) => opset_in(&f.opset_import, &node.op.domain),
            None => self.opset(&node.op.domain),
        }
    }
    /// The type that the file declares for a value, unless a pass has made it obsolete.
    pub fn declared_type(&self, id: ValueId) -> Option<&pb::TypeProto> {
        let v = self.value(id);
        if v.retyped {
            return None;
        }
        let g = self.graph(v.graph);
        let ports = g.inputs.iter().chain(&g.outputs);
        let port = ports.filter(|p| p.value == id).find_map(|p| p.info.r#type.as_ref());
        port.or_else(|| {
            let info = g.infos.iter().find(|i| i.value == Some(id))?;
            info.info.r#type.as_ref()
        })
    }
    /// How a report names a node: its name, or its operator and first output.
    pub fn label(&self, id: NodeId) -> String {
        let n = self.node(id);
        if !n.name().is_empty() {
            return n.name().to_owned();
        }
        let out = n.outputs.iter().flatten().next();
        match out {
            Some(&v) => format!("{} → {}", n.op.name, self.value(v).name),
            None => n.op.name.clone(),
        }
    }
    /// A number that grows with every change, to key what was computed from the model.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

fn opset_in(imports: &[pb::OperatorSetIdProto], domain: &str) -> i64 {
    let same = |d: &str| d == domain || (domain.is_empty() && d == "ai.onnx");
    imports.iter().find(|o| same(o.domain())).map_or(0, |o| o.version())
}
