//! From ONNX messages to the intermediate representation.

use super::external::External;
use crate::ir::{Attr, DType, GraphId, Model, NodeId, Op, SubGraphs, Tensor, ValueId};
use crate::pb;
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;

/// Names that can be seen from the graph being decoded, innermost scope last.
struct Scopes(Vec<HashMap<String, ValueId>>);

impl Scopes {
    fn find(&self, name: &str) -> Option<ValueId> {
        self.0.iter().rev().find_map(|s| s.get(name).copied())
    }
    fn define(&mut self, name: &str, value: ValueId) -> Result<()> {
        let scope = self.0.last_mut().expect("a scope is open");
        ensure!(
            scope.insert(name.to_owned(), value).is_none(),
            "the name {name:?} is defined twice"
        );
        Ok(())
    }
}

/// Builds the model. `external` finds the data that lie in other files.
///
/// # Errors
/// When a name is defined twice or not at all, or a tensor's data do not fit its dimensions; the message names the node or tensor.
pub fn decode(mut proto: pb::ModelProto, external: &External) -> Result<Model> {
    let graph = proto.graph.take().context("the model has no graph")?;
    let functions = std::mem::take(&mut proto.functions);
    let mut d = Decoder {
        model: Model::new(proto),
        scopes: Scopes(Vec::new()),
        external,
    };
    let main = d.model.main_id();
    d.graph(main, graph)?;
    for f in functions {
        let name = f.name().to_owned();
        d.function(f).with_context(|| format!("function {name:?}"))?;
    }
    Ok(d.model)
}

struct Decoder<'a> {
    model: Model,
    scopes: Scopes,
    external: &'a External,
}

impl Decoder<'_> {
    fn graph(&mut self, id: GraphId, mut g: pb::GraphProto) -> Result<()> {
        self.scopes.0.push(HashMap::new());
        for info in std::mem::take(&mut g.input) {
            self.input(id, info)?;
        }
        for t in std::mem::take(&mut g.initializer) {
            self.initializer(id, t)?;
        }
        for s in &g.sparse_initializer {
            let name = s.values.as_ref().map_or("", |v| v.name());
            let value = self.model.add_sparse(id, name);
            self.scopes.define(name, value)?;
        }
        self.body(id, std::mem::take(&mut g.node))?;
        for info in std::mem::take(&mut g.output) {
            let name = info.name().to_owned();
            let value = self.scopes.find(&name);
            let value = value.with_context(|| format!("the output {name:?} of the graph is not defined anywhere"))?;
            self.model.add_output(id, info, value);
        }
        self.infos(id, std::mem::take(&mut g.value_info));
        self.model.graph_mut(id).rest = g;
        self.scopes.0.pop();
        Ok(())
    }

    fn function(&mut self, mut f: pb::FunctionProto) -> Result<()> {
        let named = |n: &String| pb::ValueInfoProto {
            name: Some(n.clone()),
            ..Default::default()
        };
        let inputs: Vec<_> = std::mem::take(&mut f.input).iter().map(named).collect();
        let outputs: Vec<_> = std::mem::take(&mut f.output).iter().map(named).collect();
        let nodes = std::mem::take(&mut f.node);
        let infos = std::mem::take(&mut f.value_info);
        let id = self.model.add_function(f);
        let as_graph = pb::GraphProto {
            node: nodes,
            input: inputs,
            output: outputs,
            value_info: infos,
            ..Default::default()
        };
        self.graph(id, as_graph)
    }

    fn input(&mut self, id: GraphId, info: pb::ValueInfoProto) -> Result<()> {
        let name = info.name().to_owned();
        let value = self.model.add_input(id, info);
        self.scopes.define(&name, value)
    }

    fn initializer(&mut self, id: GraphId, t: pb::TensorProto) -> Result<()> {
        let name = t.name().to_owned();
        let tensor = self.tensor(t).with_context(|| format!("initializer {name:?}"))?;
        let own = self.scopes.0.last().and_then(|s| s.get(&name).copied());
        match own {
            Some(input) if self.model.value(input).tensor().is_none() => self.model.set_default(input, tensor),
            _ => {
                let value = self.model.add_const(id, &name, tensor);
                self.scopes.define(&name, value)?;
            }
        }
        Ok(())
    }

    fn tensor(&self, mut t: pb::TensorProto) -> Result<Tensor> {
        ensure!(t.data_type() != 0, "it has no data type");
        ensure!(
            DType::try_from(t.data_type()).is_ok(),
            "data type {} does not exist in any ONNX version up to 1.23; the file is damaged, or this program too old",
            t.data_type()
        );
        let data = self.external.data_of(&t)?;
        if data.is_some() {
            t.raw_data = None;
        }
        Tensor::from_proto(t, data)
    }

    fn body(&mut self, graph: GraphId, protos: Vec<pb::NodeProto>) -> Result<()> {
        let mut nodes = Vec::with_capacity(protos.len());
        for mut p in protos {
            let (inputs, attrs) = (std::mem::take(&mut p.input), std::mem::take(&mut p.attribute));
            let id = self.node(graph, p)?;
            nodes.push((id, inputs, attrs));
        }
        for (id, inputs, attrs) in nodes {
            let resolved = inputs
                .iter()
                .map(|name| match name.as_str() {
                    "" => Ok(None),
                    _ => self.scopes.find(name).map(Some).with_context(|| {
                        let label = self.model.label(id);
                        format!("node {label:?} reads {name:?}, which is not defined anywhere")
                    }),
                })
                .collect::<Result<Vec<_>>>()?;
            self.model.set_inputs(id, resolved);
            for a in attrs {
                let label = self.model.label(id);
                let attr = self.attr(id, a).with_context(|| format!("node {label:?}"))?;
                self.model.node_mut(id).attrs.push(attr);
            }
        }
        Ok(())
    }

    fn node(&mut self, graph: GraphId, mut p: pb::NodeProto) -> Result<NodeId> {
        let outputs = std::mem::take(&mut p.output);
        let op = Op {
            domain: default_domain(p.domain()).to_owned(),
            name: p.op_type.take().unwrap_or_default(),
        };
        ensure!(!op.name.is_empty(), "node {:?} names no operator", p.name());
        let id = self.model.push_node(Model::bare_node(graph, op, p));
        for name in outputs {
            let name = Some(name.as_str()).filter(|n| !n.is_empty());
            if let Some(value) = self.model.add_node_output(id, name) {
                let label = self.model.label(id);
                let defined = self.scopes.define(&self.model.value(value).name, value);
                defined.with_context(|| format!("node {label:?}"))?;
            }
        }
        Ok(id)
    }

    fn attr(&mut self, node: NodeId, mut proto: pb::AttributeProto) -> Result<Attr> {
        let name = proto.name().to_owned();
        for t in proto.t.iter_mut().chain(&mut proto.tensors) {
            let checked = self.tensor(t.clone()).with_context(|| format!("attribute {name:?}"))?;
            if checked.external().is_some() {
                *t = checked.to_inline_proto();
            }
        }
        let (one, many) = (proto.g.take(), std::mem::take(&mut proto.graphs));
        let graphs = match (one, many.is_empty()) {
            (None, true) => SubGraphs::None,
            (Some(g), true) => SubGraphs::One(self.sub_graph(node, g, &name)?),
            (None, false) => {
                let all = many.into_iter().map(|g| self.sub_graph(node, g, &name));
                SubGraphs::Many(all.collect::<Result<_>>()?)
            }
            (Some(_), false) => bail!("attribute {name:?} holds both a graph and a list of graphs"),
        };
        Ok(Attr { proto, graphs })
    }

    fn sub_graph(&mut self, node: NodeId, g: pb::GraphProto, attr: &str) -> Result<GraphId> {
        let id = self.model.add_graph(Some(node));
        self.graph(id, g)
            .with_context(|| format!("graph in attribute {attr:?}"))?;
        Ok(id)
    }

    fn infos(&mut self, graph: GraphId, infos: Vec<pb::ValueInfoProto>) {
        for info in infos {
            let value = self.scopes.0.last().and_then(|s| s.get(info.name()).copied());
            self.model.add_info(graph, value, info);
        }
    }
}

/// `ai.onnx` is another spelling of the default domain.
pub fn default_domain(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}
