//! Nodes and their attributes.

use super::{GraphId, ValueId};
use crate::pb;
use pb::attribute_proto::AttributeType;

/// Which operator a node applies.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Op {
    /// The domain; the default domain is `""` (`ai.onnx` is read as the same).
    pub domain: String,
    /// The operator type, e.g. `Conv`.
    pub name: String,
}

/// The sub-graphs that an attribute holds.
#[derive(Clone, Debug, Default)]
pub enum SubGraphs {
    /// The attribute is not a graph.
    #[default]
    None,
    /// `g`: one graph.
    One(GraphId),
    /// `graphs`: a list of graphs.
    Many(Vec<GraphId>),
}

impl SubGraphs {
    /// All of them, in order.
    pub fn as_slice(&self) -> &[GraphId] {
        match self {
            SubGraphs::None => &[],
            SubGraphs::One(g) => std::slice::from_ref(g),
            SubGraphs::Many(gs) => gs,
        }
    }
}

/// An attribute: its message without graphs, and the graphs.
#[derive(Clone, Debug, Default)]
pub struct Attr {
    /// The message; its `g` and `graphs` are empty here.
    pub proto: pb::AttributeProto,
    /// The graphs it holds.
    pub graphs: SubGraphs,
}

impl Attr {
    fn new(name: &str, kind: AttributeType) -> Attr {
        let proto = pb::AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(kind as i32),
            ..Default::default()
        };
        Attr {
            proto,
            graphs: SubGraphs::None,
        }
    }
    /// An integer attribute.
    pub fn int(name: &str, i: i64) -> Attr {
        let mut a = Attr::new(name, AttributeType::Int);
        a.proto.i = Some(i);
        a
    }
    /// A list of integers.
    pub fn ints(name: &str, ints: Vec<i64>) -> Attr {
        let mut a = Attr::new(name, AttributeType::Ints);
        a.proto.ints = ints;
        a
    }
    /// A float attribute.
    pub fn float(name: &str, f: f32) -> Attr {
        let mut a = Attr::new(name, AttributeType::Float);
        a.proto.f = Some(f);
        a
    }
    /// A list of floats.
    pub fn floats(name: &str, floats: Vec<f32>) -> Attr {
        let mut a = Attr::new(name, AttributeType::Floats);
        a.proto.floats = floats;
        a
    }
    /// A string attribute.
    pub fn string(name: &str, s: &str) -> Attr {
        let mut a = Attr::new(name, AttributeType::String);
        a.proto.s = Some(bytes::Bytes::copy_from_slice(s.as_bytes()));
        a
    }
    /// A tensor attribute.
    pub fn tensor(name: &str, t: pb::TensorProto) -> Attr {
        let mut a = Attr::new(name, AttributeType::Tensor);
        a.proto.t = Some(t);
        a
    }
    /// The attribute's name.
    pub fn name(&self) -> &str {
        self.proto.name()
    }
}

/// One operator application.
#[derive(Clone, Debug)]
pub struct Node {
    /// The operator.
    pub op: Op,
    /// Attributes, in the order of the file.
    pub attrs: Vec<Attr>,
    /// The rest of the message: name, doc string, metadata; inputs, outputs, attributes and operator are empty here,
    /// except a domain spelled `ai.onnx`.
    pub rest: pb::NodeProto,
    pub(in crate::ir) graph: GraphId,
    pub(in crate::ir) inputs: Vec<Option<ValueId>>,
    pub(in crate::ir) outputs: Vec<Option<ValueId>>,
}

impl Node {
    /// The graph it stands in.
    pub fn graph(&self) -> GraphId {
        self.graph
    }
    /// All inputs; `None` is an optional input left out.
    pub fn inputs(&self) -> &[Option<ValueId>] {
        &self.inputs
    }
    /// All outputs; `None` is an optional output left out.
    pub fn outputs(&self) -> &[Option<ValueId>] {
        &self.outputs
    }
    /// Input number `i`, if it is there.
    pub fn input(&self, i: usize) -> Option<ValueId> {
        self.inputs.get(i).copied().flatten()
    }
    /// Output number `i`, if it is there.
    pub fn output(&self, i: usize) -> Option<ValueId> {
        self.outputs.get(i).copied().flatten()
    }
    /// The name in the file; may be empty.
    pub fn name(&self) -> &str {
        self.rest.name()
    }
    /// True for the operator `name` of the default domain.
    pub fn is(&self, name: &str) -> bool {
        self.op.domain.is_empty() && self.op.name == name
    }
    /// The attribute called `name`.
    pub fn attr(&self, name: &str) -> Option<&Attr> {
        self.attrs.iter().find(|a| a.name() == name)
    }
    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.attr(name).and_then(|a| a.proto.i)
    }
    /// An integer attribute, or its default.
    pub fn int_or(&self, name: &str, default: i64) -> i64 {
        self.int(name).unwrap_or(default)
    }
    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        self.attr(name).and_then(|a| a.proto.f)
    }
    /// A list of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attr(name).map(|a| a.proto.ints.as_slice())
    }
    /// A string attribute, when it is valid UTF-8.
    pub fn string(&self, name: &str) -> Option<&str> {
        let a = self.attr(name)?;
        std::str::from_utf8(a.proto.s.as_ref()?).ok()
    }
    /// Makes it another operator, with the same name, inputs, outputs and attributes. How its domain was spelled is kept where it is the same.
    pub fn set_op(&mut self, domain: &str, name: &str) {
        if self.op.domain != domain {
            self.rest.domain = None;
        }
        self.op = Op {
            domain: domain.to_owned(),
            name: name.to_owned(),
        };
    }
    /// Puts an attribute in place of the one of the same name, or at the end.
    pub fn set_attr(&mut self, attr: Attr) {
        match self.attrs.iter_mut().find(|a| a.name() == attr.name()) {
            Some(old) => *old = attr,
            None => self.attrs.push(attr),
        }
    }
    /// Takes the attribute called `name` away.
    pub fn remove_attr(&mut self, name: &str) {
        self.attrs.retain(|a| a.name() != name);
    }
    /// The sub-graphs in all attributes.
    pub fn sub_graphs(&self) -> impl Iterator<Item = GraphId> + '_ {
        self.attrs.iter().flat_map(|a| a.graphs.as_slice().iter().copied())
    }
    /// True when an attribute takes its value from the attributes of the enclosing function.
    pub fn has_attr_refs(&self) -> bool {
        self.attrs.iter().any(|a| !a.proto.ref_attr_name().is_empty())
    }
}
