//! The only code that changes edges.

use super::{Attr, Graph, GraphId, Info, Model, Node, NodeId, Op, Origin, Port, Tensor, Use, Value, ValueId};
use crate::pb;
use std::collections::HashSet;

impl Model {
    /// A model with an empty main graph; `rest` is the message without its graph and functions.
    pub fn new(rest: pb::ModelProto) -> Model {
        Model {
            graphs: vec![Graph::default()],
            nodes: Vec::new(),
            values: Vec::new(),
            main: GraphId(0),
            functions: Vec::new(),
            names: HashSet::new(),
            revision: 0,
            rest,
        }
    }

    /// Adds a graph; `parent` is the node that holds it. Decoding fills it.
    pub fn add_graph(&mut self, parent: Option<NodeId>) -> GraphId {
        let id = GraphId(self.graphs.len() as u32);
        self.graphs.push(Graph {
            parent,
            ..Graph::default()
        });
        id
    }

    /// Adds the body of a function.
    pub fn add_function(&mut self, function: pb::FunctionProto) -> GraphId {
        let id = self.add_graph(None);
        self.graphs[id.index()].function = Some(function);
        self.functions.push(id);
        id
    }

    /// Drops the functions that `keep` refuses.
    pub fn retain_functions(&mut self, keep: impl Fn(&pb::FunctionProto) -> bool) {
        let graphs = &self.graphs;
        self.functions
            .retain(|f| graphs[f.index()].function.as_ref().is_some_and(&keep));
    }

    fn push_value(&mut self, graph: GraphId, name: String, origin: Origin, tensor: Option<Tensor>) -> ValueId {
        self.revision += 1;
        let id = ValueId(self.values.len() as u32);
        self.names.insert(name.clone());
        self.values.push(Value {
            name,
            graph,
            origin,
            tensor,
            uses: Vec::new(),
            retyped: false,
            dead: false,
        });
        id
    }

    /// Adds a graph input.
    pub fn add_input(&mut self, graph: GraphId, info: pb::ValueInfoProto) -> ValueId {
        let value = self.push_value(graph, info.name().to_owned(), Origin::Input, None);
        self.graphs[graph.index()].inputs.push(Port { info, value });
        value
    }

    /// Adds a graph output that gives out `value`.
    pub fn add_output(&mut self, graph: GraphId, info: pb::ValueInfoProto, value: ValueId) {
        self.revision += 1;
        let outputs = &mut self.graphs[graph.index()].outputs;
        let slot = outputs.len();
        outputs.push(Port { info, value });
        self.values[value.index()].uses.push(Use::Output(graph, slot));
    }

    /// Adds an initializer with exactly this name (see [`Model::fresh_name`]).
    pub fn add_const(&mut self, graph: GraphId, name: &str, tensor: Tensor) -> ValueId {
        let id = self.push_value(graph, name.to_owned(), Origin::Const, Some(tensor));
        self.graphs[graph.index()].consts.push(id);
        id
    }

    /// Adds the value of a sparse initializer that stays in the graph's `rest`.
    pub fn add_sparse(&mut self, graph: GraphId, name: &str) -> ValueId {
        self.push_value(graph, name.to_owned(), Origin::Sparse, None)
    }

    /// Gives a graph input its default (an initializer of the same name).
    pub fn set_default(&mut self, input: ValueId, tensor: Tensor) {
        let graph = self.values[input.index()].graph;
        self.values[input.index()].tensor = Some(tensor);
        self.graphs[graph.index()].consts.push(input);
        self.revision += 1;
    }

    /// A name that nothing in the model has yet: `base`, or `base_1`, `base_2`, …
    pub fn fresh_name(&self, base: &str) -> String {
        if !base.is_empty() && !self.names.contains(base) {
            return base.to_owned();
        }
        let base = if base.is_empty() { "v" } else { base };
        (1..)
            .map(|i| format!("{base}_{i}"))
            .find(|n| !self.names.contains(n))
            .expect("some number is free")
    }

    /// Adds a node with new outputs of these names (made unique), and gives the outputs.
    ///
    /// `name` is the node's name; `inputs` may skip optional ones with `None`.
    pub fn add_node(
        &mut self,
        graph: GraphId,
        name: &str,
        op: &str,
        inputs: &[Option<ValueId>],
        outputs: &[&str],
        attrs: Vec<Attr>,
    ) -> (NodeId, Vec<ValueId>) {
        let node = Node {
            op: Op {
                domain: String::new(),
                name: op.to_owned(),
            },
            attrs,
            rest: pb::NodeProto {
                name: Some(name.to_owned()),
                ..Default::default()
            },
            graph,
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        let id = self.push_node(node);
        self.set_inputs(id, inputs.to_vec());
        let outs = outputs
            .iter()
            .map(|o| {
                let o = self.fresh_name(o);
                self.add_node_output(id, Some(&o)).expect("a named output")
            })
            .collect();
        (id, outs)
    }

    /// Adds a node without edges to the graph it names.
    pub fn push_node(&mut self, node: Node) -> NodeId {
        self.revision += 1;
        let id = NodeId(self.nodes.len() as u32);
        self.graphs[node.graph.index()].nodes.push(id);
        self.nodes.push(Some(node));
        id
    }

    /// A bare node for [`Model::push_node`].
    pub fn bare_node(graph: GraphId, op: Op, rest: pb::NodeProto) -> Node {
        Node {
            op,
            attrs: Vec::new(),
            rest,
            graph,
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }

    /// Adds the next output of a node under exactly this name; `None` leaves an optional output out.
    pub fn add_node_output(&mut self, node: NodeId, name: Option<&str>) -> Option<ValueId> {
        let (graph, slot) = {
            let n = self.node(node);
            (n.graph, n.outputs.len())
        };
        let value = name.map(|n| self.push_value(graph, n.to_owned(), Origin::Node(node, slot), None));
        self.node_mut(node).outputs.push(value);
        value
    }

    /// Replaces all inputs of a node.
    pub fn set_inputs(&mut self, node: NodeId, inputs: Vec<Option<ValueId>>) {
        for slot in 0..self.node(node).inputs.len() {
            self.unuse(node, slot);
        }
        for (slot, v) in inputs.iter().enumerate() {
            if let Some(v) = v {
                self.values[v.index()].uses.push(Use::Node(node, slot));
            }
        }
        self.node_mut(node).inputs = inputs;
    }

    /// Replaces one input of a node; trailing inputs are added when `slot` lies beyond the last.
    pub fn set_input(&mut self, node: NodeId, slot: usize, value: Option<ValueId>) {
        self.unuse(node, slot);
        let inputs = &mut self.node_mut(node).inputs;
        if inputs.len() <= slot {
            inputs.resize(slot + 1, None);
        }
        inputs[slot] = value;
        if let Some(v) = value {
            self.values[v.index()].uses.push(Use::Node(node, slot));
        }
    }

    fn unuse(&mut self, node: NodeId, slot: usize) {
        if let Some(old) = self.node(node).input(slot) {
            self.values[old.index()].uses.retain(|u| *u != Use::Node(node, slot));
        }
    }

    /// Makes every reader of `old`, graph outputs included, read `new`.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        self.replace_uses_where(old, new, |_| true);
    }

    /// Makes those readers of `old` that `which` accepts read `new`.
    pub fn replace_uses_where(&mut self, old: ValueId, new: ValueId, which: impl Fn(&Use) -> bool) {
        if old == new {
            return;
        }
        self.revision += 1;
        let (moved, kept): (Vec<Use>, Vec<Use>) = std::mem::take(&mut self.values[old.index()].uses)
            .into_iter()
            .partition(which);
        for u in &moved {
            match *u {
                Use::Node(n, slot) => self.node_mut(n).inputs[slot] = Some(new),
                Use::Output(g, slot) => self.graphs[g.index()].outputs[slot].value = new,
            }
        }
        self.values[old.index()].uses = kept;
        self.values[new.index()].uses.extend(moved);
    }

    /// Replaces the data of an initializer (or the default of an input); its declared type becomes obsolete when type or dimensions change.
    ///
    /// # Panics
    /// When the value is not an initializer.
    pub fn set_const(&mut self, value: ValueId, tensor: Tensor) {
        self.revision += 1;
        let v = &mut self.values[value.index()];
        let old = v.tensor.as_ref().expect("an initializer");
        v.retyped |= old.dims() != tensor.dims() || old.dtype() != tensor.dtype();
        v.tensor = Some(tensor);
    }

    /// Says that the declared type of a value no longer holds: it is not written again.
    pub fn forget_type(&mut self, value: ValueId) {
        self.values[value.index()].retyped = true;
    }

    /// Renames an inner value. Public names belong to ports and do not change.
    ///
    /// # Panics
    /// When the value is a graph input.
    pub fn rename(&mut self, value: ValueId, name: String) {
        assert!(
            self.values[value.index()].origin != Origin::Input,
            "inputs keep their names"
        );
        self.revision += 1;
        self.names.insert(name.clone());
        self.values[value.index()].name = name;
    }

    /// Takes a node out of the model, with all that its sub-graphs hold.
    ///
    /// # Panics
    /// When one of its outputs is still used.
    pub fn erase(&mut self, id: NodeId) {
        self.set_inputs(id, Vec::new());
        let graphs: Vec<GraphId> = self.node(id).sub_graphs().collect();
        for g in graphs {
            self.clear_graph(g);
        }
        let node = self.nodes[id.index()].take().expect("the node was not erased");
        for v in node.outputs.into_iter().flatten() {
            let v = &mut self.values[v.index()];
            assert!(v.uses.is_empty(), "{} is still used", v.name);
            v.dead = true;
        }
        self.graphs[node.graph.index()].nodes.retain(|n| *n != id);
        self.revision += 1;
    }

    fn clear_graph(&mut self, g: GraphId) {
        let outputs = std::mem::take(&mut self.graphs[g.index()].outputs);
        for (slot, port) in outputs.iter().enumerate() {
            self.values[port.value.index()]
                .uses
                .retain(|u| *u != Use::Output(g, slot));
        }
        let nodes = self.graphs[g.index()].nodes.clone();
        for &n in &nodes {
            self.set_inputs(n, Vec::new());
            let inner: Vec<GraphId> = self.node(n).sub_graphs().collect();
            for g in inner {
                self.clear_graph(g); // its captures are uses of this graph's values
            }
        }
        for n in nodes {
            self.erase(n);
        }
        let graph = &mut self.graphs[g.index()];
        let inputs = std::mem::take(&mut graph.inputs).into_iter().map(|p| p.value);
        let gone: Vec<ValueId> = inputs.chain(std::mem::take(&mut graph.consts)).collect();
        for v in gone {
            self.values[v.index()].dead = true;
        }
    }

    /// Takes an initializer out of the model, unless something still reads it.
    pub fn erase_unused_const(&mut self, id: ValueId) {
        if self.value(id).uses().is_empty() {
            self.erase_const(id);
        }
    }

    /// Takes an unused initializer out of the model. A graph input keeps its port, and its default.
    ///
    /// # Panics
    /// When it is still used.
    pub fn erase_const(&mut self, id: ValueId) {
        let v = &mut self.values[id.index()];
        assert!(v.uses.is_empty(), "{} is still used", v.name);
        if v.origin == Origin::Const {
            v.dead = true;
            let g = v.graph.index();
            self.graphs[g].consts.retain(|c| *c != id);
            self.revision += 1;
        }
    }

    /// Makes inputs that carry a default plain initializers, no longer listed among the inputs.
    pub fn inputs_with_defaults_to_consts(&mut self, graph: GraphId) {
        let g = &mut self.graphs[graph.index()];
        let values = &mut self.values;
        g.inputs.retain(|p| {
            let v = &mut values[p.value.index()];
            if v.tensor.is_some() {
                v.origin = Origin::Const;
            }
            v.tensor.is_none()
        });
        self.revision += 1;
    }

    /// Raises the IR version. From 4 on initializers need not be inputs, so those of the main graph no longer are. Below 3 a file
    /// imports operator set 1 without saying so; from there on it has to.
    pub fn raise_ir(&mut self, to: i64) {
        let from = self.rest.ir_version();
        if from >= to {
            return;
        }
        if from < 4 && to >= 4 {
            self.inputs_with_defaults_to_consts(self.main_id());
        }
        if from < 3 && self.rest.opset_import.is_empty() {
            self.rest.opset_import.push(crate::pb::OperatorSetIdProto {
                domain: None,
                version: Some(1),
            });
        }
        self.rest.ir_version = Some(to);
    }

    /// Removes what no output needs: nodes whose outputs are all unused and unused initializers, in all graphs. Gives the
    /// number of nodes and of initializers removed. Inputs and `If`/`Loop`/`Scan` outputs stay.
    pub fn sweep(&mut self) -> (usize, usize) {
        let (mut nodes, mut consts) = (0, 0);
        let mut queue: Vec<NodeId> = self.node_ids();
        queue.sort(); // later nodes are popped first: usually consumers before producers
        while let Some(id) = queue.pop() {
            if !self.is_alive(id) || !self.is_unused(id) {
                continue;
            }
            let mut feeds: Vec<NodeId> = Vec::new();
            self.collect_producers(id, &mut feeds);
            self.erase(id);
            nodes += 1;
            queue.extend(feeds.into_iter().filter(|f| self.is_alive(*f)));
        }
        let unused: Vec<ValueId> = self
            .values()
            .filter(|(_, v)| v.origin == Origin::Const && v.uses.is_empty())
            .map(|(id, _)| id)
            .collect();
        for id in unused {
            self.erase_const(id);
            consts += 1;
        }
        (nodes, consts)
    }

    fn is_unused(&self, id: NodeId) -> bool {
        let n = self.node(id);
        n.outputs.iter().flatten().all(|v| self.value(*v).uses.is_empty())
    }

    fn collect_producers(&self, id: NodeId, out: &mut Vec<NodeId>) {
        let n = self.node(id);
        out.extend(n.inputs.iter().flatten().filter_map(|v| self.value(*v).producer()));
        for g in n.sub_graphs() {
            out.extend(
                self.graph(g)
                    .outputs
                    .iter()
                    .filter_map(|p| self.value(p.value).producer()),
            );
            for &inner in &self.graph(g).nodes {
                self.collect_producers(inner, out);
            }
        }
    }

    /// Adds a `value_info` entry.
    pub fn add_info(&mut self, graph: GraphId, value: Option<ValueId>, info: pb::ValueInfoProto) {
        self.graphs[graph.index()].infos.push(Info { value, info });
    }

    /// Declares the type of a value, in place of what was declared before.
    pub fn declare(&mut self, value: ValueId, info: pb::ValueInfoProto) {
        let v = &mut self.values[value.index()];
        v.retyped = false;
        let infos = &mut self.graphs[v.graph.index()].infos;
        match infos.iter_mut().find(|i| i.value == Some(value)) {
            Some(old) => old.info = info,
            None => infos.push(Info {
                value: Some(value),
                info,
            }),
        }
    }

    /// Changes the element type that is declared for a value: at its ports, those of sub-graphs that give it out too, and in `value_info`, where an entry is added
    /// when there is none.
    pub fn declare_elem_type(&mut self, value: ValueId, dtype: super::DType) {
        self.revision += 1;
        let v = &self.values[value.index()];
        let (name, retyped, home) = (v.name.clone(), v.retyped, v.graph.index());
        let set = |info: &mut pb::ValueInfoProto| {
            if let Some(pb::type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
                t.elem_type = Some(dtype as i32);
            }
        };
        let mut declared = false;
        for reader in &v.uses {
            if let Use::Output(g, slot) = *reader {
                set(&mut self.graphs[g.index()].outputs[slot].info);
                declared = true;
            }
        }
        let graph = &mut self.graphs[home];
        for port in graph.inputs.iter_mut().filter(|p| p.value == value) {
            set(&mut port.info);
            declared = true;
        }
        for info in graph.infos.iter_mut().filter(|i| i.value == Some(value)) {
            set(&mut info.info);
            declared |= !retyped;
        }
        if !declared {
            self.declare(value, Model::elem_info(name, dtype));
        }
    }

    /// What declares a tensor of these elements, of any shape.
    pub fn elem_info(name: String, dtype: super::DType) -> pb::ValueInfoProto {
        let tensor = pb::type_proto::Tensor {
            elem_type: Some(dtype as i32),
            shape: None,
        };
        pb::ValueInfoProto {
            name: Some(name),
            r#type: Some(pb::TypeProto {
                value: Some(pb::type_proto::Value::TensorType(tensor)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Adds these values as outputs of the main graph, under their own names, so that an engine gives them out.
    /// Values that are outputs already stay one output more.
    pub fn expose(&mut self, values: &[ValueId]) {
        for &v in values {
            let info = pb::ValueInfoProto {
                name: Some(self.value(v).name.clone()),
                ..Default::default()
            };
            self.add_output(self.main, info, v);
        }
    }
}
