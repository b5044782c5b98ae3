//! Small models for tests.

use crate::ir::{Attr, DType, Model, Tensor, ValueId};
use crate::pb;

/// Builds a model node by node.
pub struct Builder {
    /// The model so far.
    pub model: Model,
}

impl Builder {
    /// An empty model with this version of the default operator set.
    pub fn new(opset: i64) -> Builder {
        let rest = pb::ModelProto {
            ir_version: Some(8),
            opset_import: vec![pb::OperatorSetIdProto {
                domain: None,
                version: Some(opset),
            }],
            ..Default::default()
        };
        Builder {
            model: Model::new(rest),
        }
    }

    /// Adds an input.
    pub fn input(&mut self, name: &str, dtype: DType, dims: &[usize]) -> ValueId {
        use pb::tensor_shape_proto::{Dimension, dimension::Value};
        let dim = |&d: &usize| Dimension {
            value: Some(Value::DimValue(d as i64)),
            ..Default::default()
        };
        let info = pb::ValueInfoProto {
            name: Some(name.to_owned()),
            r#type: Some(pb::TypeProto {
                value: Some(pb::type_proto::Value::TensorType(pb::type_proto::Tensor {
                    elem_type: Some(dtype as i32),
                    shape: Some(pb::TensorShapeProto {
                        dim: dims.iter().map(dim).collect(),
                    }),
                })),
                ..Default::default()
            }),
            ..Default::default()
        };
        let main = self.model.main_id();
        self.model.add_input(main, info)
    }

    /// Adds an initializer.
    pub fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let main = self.model.main_id();
        let name = self.model.fresh_name(name);
        self.model.add_const(main, &name, tensor)
    }

    /// Adds a node with one output.
    pub fn op(&mut self, op: &str, inputs: &[ValueId], attrs: Vec<Attr>) -> ValueId {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        self.ops(op, &inputs, 1, attrs)[0]
    }

    /// Adds a node with several outputs; `None` leaves an input out.
    pub fn ops(&mut self, op: &str, inputs: &[Option<ValueId>], outputs: usize, attrs: Vec<Attr>) -> Vec<ValueId> {
        let main = self.model.main_id();
        let names: Vec<String> = (0..outputs).map(|_| op.to_lowercase()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let name = self.model.fresh_name(op);
        self.model.add_node(main, &name, op, inputs, &names, attrs).1
    }
}

/// The integers of a tensor.
pub fn ints(t: &Tensor) -> Vec<i64> {
    t.ints().expect("integers")
}
