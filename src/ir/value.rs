//! Values: what the names in an ONNX graph stand for.

use super::{GraphId, NodeId, Tensor};

/// Where a value comes from. It has exactly one origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A graph input. It may carry a default [`Tensor`] (an initializer of the same name).
    Input,
    /// Output number `.1` of a node.
    Node(NodeId, usize),
    /// An initializer.
    Const,
    /// A sparse initializer, kept as it is in the graph's `rest`.
    Sparse,
}

/// One place that reads a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Use {
    /// Input number `.1` of a node.
    Node(NodeId, usize),
    /// Output number `.1` of a graph.
    Output(GraphId, usize),
}

/// One value of the model.
#[derive(Clone, Debug)]
pub struct Value {
    /// The name in the file. Unique within its graph once written; sibling sub-graphs may repeat it.
    pub name: String,
    pub(in crate::ir) graph: GraphId,
    pub(in crate::ir) origin: Origin,
    pub(in crate::ir) tensor: Option<Tensor>,
    pub(in crate::ir) uses: Vec<Use>,
    pub(in crate::ir) retyped: bool,
    pub(in crate::ir) dead: bool,
}

impl Value {
    /// The graph whose scope the value belongs to.
    pub fn graph(&self) -> GraphId {
        self.graph
    }
    /// Where it comes from.
    pub fn origin(&self) -> Origin {
        self.origin
    }
    /// Who reads it. Every read is one entry: a node that reads it twice is listed twice.
    pub fn uses(&self) -> &[Use] {
        &self.uses
    }
    /// The initializer's data, or the default of a graph input. See [`Model::constant`](super::Model::constant) for
    /// "is this value the same in every run".
    pub fn tensor(&self) -> Option<&Tensor> {
        self.tensor.as_ref()
    }
    /// False once the node or initializer was erased.
    pub fn is_alive(&self) -> bool {
        !self.dead
    }
    /// True when a pass has made the declared type obsolete.
    pub fn is_retyped(&self) -> bool {
        self.retyped
    }
    /// The node that makes it, if one does.
    pub fn producer(&self) -> Option<NodeId> {
        match self.origin {
            Origin::Node(node, _) => Some(node),
            _ => None,
        }
    }
    /// True when a graph output is among its uses.
    pub fn is_output(&self) -> bool {
        self.uses.iter().any(|u| matches!(u, Use::Output(..)))
    }
}
