//! From the intermediate representation to ONNX messages.

use super::decode::default_domain;
use super::names::Names;
use crate::ir::{Attr, GraphId, Model, NodeId, SubGraphs, ValueId};
use crate::pb;
use anyhow::{Result, anyhow};

/// The message of a model. Tensor data are shared, not copied; external (mapped) data become `raw_data`, and
/// [`write`](super::write) decides where they go.
///
/// # Errors
/// When a graph has a cycle.
pub fn encode(model: &Model) -> Result<pb::ModelProto> {
    let e = Encoder {
        model,
        names: Names::of(model),
    };
    let mut proto = model.rest.clone();
    proto.graph = Some(e.graph(model.main_id())?);
    proto.functions = model
        .functions()
        .iter()
        .map(|f| e.function(*f))
        .collect::<Result<_>>()?;
    Ok(proto)
}

struct Encoder<'a> {
    model: &'a Model,
    names: Names,
}

impl Encoder<'_> {
    fn name(&self, v: ValueId) -> String {
        self.names.of_value(self.model, v).to_owned()
    }

    fn graph(&self, id: GraphId) -> Result<pb::GraphProto> {
        let g = self.model.graph(id);
        let mut proto = g.rest.clone();
        proto.node = self.nodes(id)?;
        proto.initializer = g
            .consts()
            .iter()
            .filter_map(|&c| {
                let mut t = self.model.value(c).tensor()?.to_inline_proto();
                let name = self.name(c);
                if t.name() != name {
                    t.name = Some(name);
                }
                Some(t)
            })
            .collect();
        proto.input = g
            .inputs()
            .iter()
            .map(|p| {
                let mut info = p.info.clone();
                if let Some(name) = self.names.renamed(p.value) {
                    info.name = Some(name.to_owned());
                }
                info
            })
            .collect();
        proto.output = g
            .outputs()
            .iter()
            .enumerate()
            .map(|(slot, p)| {
                let mut info = p.info.clone();
                if let Some(name) = self.names.of_output(id, slot) {
                    info.name = Some(name.to_owned());
                }
                info
            })
            .collect();
        proto.value_info = g
            .infos
            .iter()
            .filter_map(|i| match i.value {
                None => Some(i.info.clone()),
                Some(v) => {
                    let value = self.model.value(v);
                    if !value.is_alive() || value.is_retyped() {
                        return None;
                    }
                    let mut info = i.info.clone();
                    info.name = Some(self.name(v));
                    Some(info)
                }
            })
            .collect();
        Ok(proto)
    }

    fn function(&self, id: GraphId) -> Result<pb::FunctionProto> {
        let names = |ports: Vec<pb::ValueInfoProto>| ports.into_iter().filter_map(|p| p.name).collect();
        let g = self.graph(id)?;
        let mut f = self.model.graph(id).function.clone().unwrap_or_default();
        f.node = g.node;
        f.input = names(g.input);
        f.output = names(g.output);
        f.value_info = g.value_info;
        Ok(f)
    }

    fn nodes(&self, id: GraphId) -> Result<Vec<pb::NodeProto>> {
        let order = self.model.topological(id).map_err(|cycle| {
            let names: Vec<String> = cycle.iter().take(5).map(|n| self.model.label(*n)).collect();
            anyhow!("the graph has a cycle through {}", names.join(", "))
        })?;
        let mut nodes = order.into_iter().map(|n| self.node(n)).collect::<Result<Vec<_>>>()?;
        for (slot, p) in self.model.graph(id).outputs().iter().enumerate() {
            if self.names.needs_identity(id, slot) {
                nodes.push(pb::NodeProto {
                    input: vec![self.name(p.value)],
                    output: vec![p.name().to_owned()],
                    name: Some(format!("{}_Identity", p.name())),
                    op_type: Some("Identity".into()),
                    ..Default::default()
                });
            }
        }
        Ok(nodes)
    }

    fn node(&self, id: NodeId) -> Result<pb::NodeProto> {
        let n = self.model.node(id);
        let name = |v: &Option<ValueId>| v.map_or_else(String::new, |v| self.name(v));
        let mut proto = n.rest.clone();
        proto.input = n.inputs().iter().map(name).collect();
        proto.output = n.outputs().iter().map(name).collect();
        proto.op_type = Some(n.op.name.clone());
        if default_domain(proto.domain()) != n.op.domain {
            proto.domain = Some(n.op.domain.clone());
        }
        proto.attribute = n.attrs.iter().map(|a| self.attr(a)).collect::<Result<_>>()?;
        Ok(proto)
    }

    fn attr(&self, a: &Attr) -> Result<pb::AttributeProto> {
        let mut proto = a.proto.clone();
        match &a.graphs {
            SubGraphs::None => {}
            SubGraphs::One(g) => proto.g = Some(self.graph(*g)?),
            SubGraphs::Many(gs) => proto.graphs = gs.iter().map(|g| self.graph(*g)).collect::<Result<_>>()?,
        }
        Ok(proto)
    }
}
