//! The intermediate representation: an ONNX model as one arena of graphs, nodes and values.
//!
//! * A **value** is what ONNX calls by a name: a graph input, an initializer, or one output of one node. It has exactly
//!   one [`Origin`] and knows all its [`Use`]s. A value that an `If` body captures is the same [`ValueId`] inside and out.
//! * A **node** is an operator application. Its edges change only through [`edit`](Model): `set_input`, `replace_uses`,
//!   `add_node`, `erase`. Ids are never reused or renumbered.
//! * A **port** is a graph input or output. The public name and declared type belong to the port, not to the value, so a
//!   pass may put any value behind an output: `onnx::encode` renames the value, or adds an `Identity`.
//! * Every structure keeps in `rest` the part of its protobuf message that is not modelled here. Reading and writing
//!   without a pass therefore gives the same bytes.
//! * The order of nodes is computed when the model is written (stable: an untouched model keeps its order).
//!
//! [`check`](check::check) states the invariants as code; the pipeline runs it after every pass.

pub mod check;
mod edit;
mod inline;
mod model;
mod node;
mod ports;
pub mod store;
mod tensor;
mod value;
mod walk;

pub use model::{Graph, Info, Model, Port};
pub use node::{Attr, Node, Op, SubGraphs};
pub use tensor::{DType, Element, Tensor, bits};
pub use value::{Origin, Use, Value};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(pub(in crate::ir) u32);

        impl $name {
            /// The position in the model's arena.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

id!(
    /// Names a graph: the main graph, a sub-graph of a control-flow node, or the body of a function.
    GraphId
);
id!(
    /// Names a node.
    NodeId
);
id!(
    /// Names a value.
    ValueId
);
