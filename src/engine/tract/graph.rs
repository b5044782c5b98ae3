//! A main graph on its way to tract, and the surgery that makes one flat graph of it: functions, chosen branches and the
//! iterations of loops are spliced in.

use crate::engine::wanted::needed;
use crate::ir::{DType, Tensor};
use crate::pb;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap};

/// A function may call others; more nodes than this are taken for endless recursion.
const MOST_NODES: usize = 1_000_000;

/// A main graph whose constants are kept apart.
#[derive(Clone)]
pub struct Flat {
    /// The model without its graph and functions.
    pub rest: pb::ModelProto,
    /// The graph without initializers and Constant nodes, nodes in order of execution.
    pub graph: pb::GraphProto,
    /// The constants, by name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Flat {
    /// Takes a message apart, splices functions in and makes sparse constants dense.
    pub fn new(mut rest: pb::ModelProto) -> Result<Flat> {
        let mut graph = rest.graph.take().context("no graph")?;
        let functions = std::mem::take(&mut rest.functions);
        rest.metadata_props.clear();
        rest.training_info.clear();
        if !functions.is_empty() {
            let by_name = functions.iter().map(|f| ((f.domain(), f.name()), f)).collect();
            let mut count = 0;
            expand_functions(&mut graph.node, &by_name, &mut count)?;
        }
        let mut flat = Flat {
            rest,
            graph,
            tensors: BTreeMap::new(),
        };
        flat.take_constants()?;
        Ok(flat)
    }

    /// The version of the standard operators.
    pub fn version(&self) -> i64 {
        let mut opsets = self.rest.opset_import.iter();
        let standard = opsets.find(|o| matches!(o.domain(), "" | "ai.onnx"));
        standard.map_or(1, |o| o.version())
    }

    /// Moves the constants of a sub-graph to the tensors; gives what each is called now.
    ///
    /// # Errors
    /// When one is no tensor.
    pub fn move_constants(&mut self, body: &mut pb::GraphProto, prefix: &str) -> Result<HashMap<String, String>> {
        let moved = take_constants(body)?.into_iter().map(|(name, t)| {
            let new = format!("{prefix}{name}");
            self.tensors.insert(new.clone(), t);
            (name, new)
        });
        Ok(moved.collect())
    }

    /// Moves the constants of the main graph to the tensors.
    fn take_constants(&mut self) -> Result<()> {
        self.tensors.extend(take_constants(&mut self.graph)?);
        Ok(())
    }

    /// Drops what no output needs.
    pub fn prune(&mut self) {
        let graph = &mut self.graph;
        let outputs = graph.output.iter().map(|o| o.name().to_owned());
        let (keep, needed) = needed(&graph.node, outputs.collect());
        let mut keep = keep.into_iter();
        graph.node.retain(|_| keep.next().unwrap_or(true));
        graph.input.retain(|i| needed.contains(i.name()));
        self.tensors.retain(|name, _| needed.contains(name));
    }

    /// Puts the body of a sub-graph in place of the node that holds it: captures are already visible.
    pub fn splice(&mut self, at: usize, mut body: pb::GraphProto, prefix: &str) -> Result<()> {
        let node = self.graph.node[at].clone();
        let mut names: HashMap<String, String> = HashMap::new();
        let own = body
            .initializer
            .iter()
            .map(|t| t.name())
            .chain(body.node.iter().flat_map(|n| {
                let outputs = n.output.iter().map(String::as_str);
                outputs.filter(|o| !o.is_empty())
            }));
        for name in own {
            names.insert(name.to_owned(), format!("{prefix}{name}"));
        }
        for n in &mut body.node {
            rename(n, &names);
        }
        for t in &mut body.initializer {
            t.name = names.get(t.name()).cloned();
        }
        ensure!(body.output.len() >= node.output.len(), "a branch has too few outputs");
        for (o, outer) in body
            .output
            .iter()
            .zip(&node.output)
            .filter(|(_, outer)| !outer.is_empty())
        {
            let inner = names.get(o.name()).cloned().unwrap_or_else(|| o.name().to_owned());
            body.node.push(plain_node(
                "Identity",
                &format!("{prefix}{outer}"),
                vec![inner],
                vec![outer.clone()],
            ));
        }
        self.graph.node.splice(at..=at, body.node);
        self.graph.initializer = body.initializer;
        self.take_constants()
    }
}

/// Takes initializers and Constant nodes out of a graph.
fn take_constants(graph: &mut pb::GraphProto) -> Result<Vec<(String, Tensor)>> {
    let mut taken = Vec::new();
    for t in std::mem::take(&mut graph.initializer) {
        let name = t.name().to_owned();
        let t = Tensor::from_proto(t, None).with_context(|| format!("initializer {name}"))?;
        taken.push((name, t));
    }
    for t in std::mem::take(&mut graph.sparse_initializer) {
        let name = t.values.as_ref().map_or("", |v| v.name()).to_owned();
        let t = dense(t).with_context(|| format!("sparse initializer {name}"))?;
        taken.push((name, t));
    }
    let mut kept = Vec::with_capacity(graph.node.len());
    for n in std::mem::take(&mut graph.node) {
        match constant_of(&n).with_context(|| label(&n))? {
            Some(t) => taken.push((n.output[0].clone(), t)),
            None => kept.push(n),
        }
    }
    graph.node = kept;
    Ok(taken)
}

/// An output of a graph.
pub fn output(name: &str) -> pb::ValueInfoProto {
    pb::ValueInfoProto {
        name: Some(name.to_owned()),
        ..Default::default()
    }
}

/// How messages name a node.
pub fn label(n: &pb::NodeProto) -> String {
    match n.name() {
        "" => format!("{} → {}", n.op_type(), n.output.first().map_or("", String::as_str)),
        name => format!("{} {name}", n.op_type()),
    }
}

/// A node without attributes.
pub fn plain_node(op: &str, name: &str, input: Vec<String>, output: Vec<String>) -> pb::NodeProto {
    pb::NodeProto {
        op_type: Some(op.to_owned()),
        name: Some(name.to_owned()),
        input,
        output,
        ..Default::default()
    }
}

/// Calls values otherwise, in sub-graphs, too.
pub fn rename(node: &mut pb::NodeProto, names: &HashMap<String, String>) {
    let new = |name: &mut String| {
        if let Some(n) = names.get(name) {
            name.clone_from(n);
        }
    };
    node.input.iter_mut().for_each(new);
    node.output.iter_mut().for_each(new);
    for g in node
        .attribute
        .iter_mut()
        .flat_map(|a| a.g.iter_mut().chain(&mut a.graphs))
    {
        g.node.iter_mut().for_each(|n| rename(n, names));
        for o in &mut g.output {
            if let Some(n) = names.get(o.name()) {
                o.name = Some(n.clone());
            }
        }
        for t in &mut g.initializer {
            if let Some(n) = names.get(t.name()) {
                t.name = Some(n.clone());
            }
        }
    }
}

type Functions<'a> = HashMap<(&'a str, &'a str), &'a pb::FunctionProto>;

fn expand_functions(nodes: &mut Vec<pb::NodeProto>, functions: &Functions, count: &mut usize) -> Result<()> {
    let mut queue: Vec<pb::NodeProto> = std::mem::take(nodes);
    queue.reverse();
    while let Some(mut n) = queue.pop() {
        *count += 1;
        ensure!(*count <= MOST_NODES, "local functions call each other without end");
        if let Some(f) = functions.get(&(n.domain(), n.op_type())) {
            let body = call(&n, f, *count).with_context(|| format!("function {}", label(&n)))?;
            queue.extend(body.into_iter().rev());
            continue;
        }
        for g in n.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs)) {
            expand_functions(&mut g.node, functions, count)?;
        }
        nodes.push(n);
    }
    Ok(())
}

/// The body of a function with the arguments of one call.
fn call(n: &pb::NodeProto, f: &pb::FunctionProto, number: usize) -> Result<Vec<pb::NodeProto>> {
    let mut names: HashMap<String, String> = HashMap::new();
    let inner = |name: &str| format!("{}_{number}_{name}", f.name());
    for name in f.node.iter().flat_map(|n| &n.output).filter(|o| !o.is_empty()) {
        names.insert(name.clone(), inner(name));
    }
    for (i, name) in f.output.iter().enumerate() {
        if let Some(outer) = n.output.get(i).filter(|o| !o.is_empty()) {
            names.insert(name.clone(), outer.clone());
        }
    }
    let mut passed = Vec::new();
    for (i, name) in f.input.iter().enumerate() {
        let outer = n.input.get(i).cloned().unwrap_or_default();
        // A function that gives an input straight out needs a node to bear the output's name.
        if f.output.contains(name) {
            passed.push(plain_node(
                "Identity",
                &inner(name),
                vec![outer.clone()],
                vec![names[name].clone()],
            ));
        }
        names.insert(name.clone(), outer);
    }
    let mut body = f.node.clone();
    for b in &mut body {
        rename(b, &names);
        bind(b, n, f);
        b.name = Some(inner(b.name()));
    }
    body.extend(passed);
    Ok(body)
}

/// Puts the call's attributes in place of references to them.
fn bind(b: &mut pb::NodeProto, n: &pb::NodeProto, f: &pb::FunctionProto) {
    b.attribute = std::mem::take(&mut b.attribute)
        .into_iter()
        .filter_map(|mut a| {
            if a.ref_attr_name().is_empty() {
                for g in a.g.iter_mut().chain(&mut a.graphs) {
                    g.node.iter_mut().for_each(|b| bind(b, n, f));
                }
                return Some(a);
            }
            let given = n.attribute.iter().chain(&f.attribute_proto);
            let mut value = given.into_iter().find(|g| g.name() == a.ref_attr_name())?.clone();
            value.name = a.name;
            Some(value)
        })
        .collect();
}

/// The tensor of a Constant node; `None` for other nodes, and for strings.
fn constant_of(n: &pb::NodeProto) -> Result<Option<Tensor>> {
    if n.op_type() != "Constant" || !matches!(n.domain(), "" | "ai.onnx") || n.output.len() != 1 {
        return Ok(None);
    }
    let Some(a) = n.attribute.first() else { return Ok(None) };
    Ok(match a.name() {
        "value" => a.t.clone().map(|t| Tensor::from_proto(t, None)).transpose()?,
        "sparse_value" => a.sparse_tensor.clone().map(dense).transpose()?,
        "value_float" => a.f.map(Tensor::scalar),
        "value_int" => a.i.map(Tensor::scalar),
        "value_floats" => Some(Tensor::new(&[a.floats.len()], a.floats.clone())),
        "value_ints" => Some(Tensor::new(&[a.ints.len()], a.ints.clone())),
        _ => None,
    })
}

/// A sparse tensor of 32- or 64-bit numbers with all its zeros.
fn dense(t: pb::SparseTensorProto) -> Result<Tensor> {
    let dims: Vec<usize> = t.dims.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>()?;
    let len = dims
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .context("too large")?;
    ensure!(len <= 1 << 31, "too large to be made dense");
    let values = Tensor::from_proto(t.values.context("no values")?, None)?;
    let indices = Tensor::from_proto(t.indices.context("no indices")?, None)?;
    let places = indices.ints().context("indices are no integers")?;
    let flat: Vec<usize> = if indices.dims().len() == 2 && !dims.is_empty() {
        let rows = places.chunks_exact(dims.len());
        let place = |row: &[i64]| {
            let step =
                |at: usize, (&i, &d): (&i64, &usize)| usize::try_from(i).ok().filter(|i| *i < d).map(|i| at * d + i);
            row.iter().zip(&dims).try_fold(0, step).context("index out of range")
        };
        rows.map(place).collect::<Result<_>>()?
    } else {
        places.iter().map(|&i| usize::try_from(i)).collect::<Result<_, _>>()?
    };
    ensure!(
        flat.len() == values.len() && flat.iter().all(|&i| i < len),
        "index out of range"
    );
    Ok(match values.dtype() {
        DType::Float => Tensor::new(&dims, scatter(&values.view::<f32>().context("floats")?, &flat, len)),
        DType::Double => Tensor::new(&dims, scatter(&values.view::<f64>().context("doubles")?, &flat, len)),
        DType::Int32 => Tensor::new(&dims, scatter(&values.view::<i32>().context("ints")?, &flat, len)),
        DType::Int64 => Tensor::new(&dims, scatter(&values.view::<i64>().context("ints")?, &flat, len)),
        DType::Float16 | DType::Bfloat16 => {
            Tensor::new(&dims, scatter(&values.to_f32().context("floats")?, &flat, len))
        }
        other => bail!("sparse {}", other.as_str_name()),
    })
}

fn scatter<T: Copy + Default>(values: &[T], at: &[usize], len: usize) -> Vec<T> {
    let mut all = vec![T::default(); len];
    at.iter().zip(values).for_each(|(&i, &v)| all[i] = v);
    all
}
