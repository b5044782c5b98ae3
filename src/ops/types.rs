//! Types and dimensions of all values of a model, from the rules of its operators ([`super::infer`]).
//!
//! One walk in the order of execution, through sub-graphs too (their captured values are ordinary values). What the file
//! declares for graph inputs is taken as given; what it claims for inner values (`value_info`) only fills in where the
//! rules end. Bodies of functions are walked at every call; of one that is called more than once nothing is kept.
//!
//! A contradiction in the main graph is an error: the file is illegal, or the input dimensions that were asked for do not
//! fit. In a branch or a loop body it is none, since the body may never run with these dimensions: there, facts become
//! unknown.

use super::claims::{bind, claims, sparse};
use super::infer::{Bodies, Call, Dim, Fact, Rule, known, rule};
use crate::ir::{DType, GraphId, Model, Node, NodeId, Origin, Tensor, ValueId};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, HashMap};

/// What is known of every value of one revision of a model.
#[derive(Clone, Debug, Default)]
pub struct Types {
    facts: Vec<Fact>,
}

static UNKNOWN: Fact = Fact {
    dtype: None,
    shape: None,
    elems: None,
    holds: None,
};

impl Types {
    /// What is known of a value; of values added to the model since, nothing.
    pub fn fact(&self, v: ValueId) -> &Fact {
        self.facts.get(v.index()).unwrap_or(&UNKNOWN)
    }
    /// The dimensions, known or not.
    pub fn shape(&self, v: ValueId) -> Option<&[Dim]> {
        self.fact(v).shape.as_deref()
    }
    /// The dimensions, when all are known.
    pub fn dims(&self, v: ValueId) -> Option<Vec<usize>> {
        self.fact(v).dims()
    }
    /// The number of dimensions.
    pub fn rank(&self, v: ValueId) -> Option<usize> {
        self.fact(v).rank()
    }
    /// The element type.
    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        self.fact(v).dtype
    }
    /// True when it certainly is a tensor of `float`.
    pub fn is_float(&self, v: ValueId) -> bool {
        self.dtype(v) == Some(DType::Float)
    }
}

/// Infers a model as it stands: inputs have the dimensions that the file declares.
///
/// # Errors
/// When the dimensions in the main graph certainly contradict each other; the message names the node.
pub fn infer(model: &Model) -> Result<Types> {
    run(model, &BTreeMap::new(), &BTreeMap::new())
}

/// As [`infer`], with dimensions that were seen in a run: they fill in where inference ends. A dimension that the file
/// names (`N`) keeps its name.
///
/// # Errors
/// As [`infer`].
pub fn infer_with(model: &Model, seen: &BTreeMap<ValueId, Vec<usize>>) -> Result<Types> {
    run(model, &BTreeMap::new(), seen)
}

/// As [`infer`], for inputs of these dimensions, by name. Inputs that are not named take over the dimensions whose names
/// they share.
///
/// # Errors
/// When there is no such input, or it is declared otherwise; and as [`infer`].
pub fn infer_for(model: &Model, inputs: &BTreeMap<String, Vec<usize>>) -> Result<Types> {
    let facts = inputs
        .iter()
        .map(|(name, dims)| (name.clone(), Fact::new(None, Some(known(dims)))));
    run(model, &facts.collect(), &BTreeMap::new())
}

/// As [`infer_for`], for one sample: small integer inputs are known by value too, and so are dimensions and conditions
/// that depend on them.
///
/// # Errors
/// As [`infer_for`].
pub fn infer_sample(model: &Model, sample: &BTreeMap<String, Tensor>) -> Result<Types> {
    let facts = sample
        .iter()
        .map(|(name, t)| (name.clone(), Fact::constant(t)))
        .collect();
    run(model, &facts, &BTreeMap::new())
}

fn run(model: &Model, inputs: &BTreeMap<String, Fact>, seen: &BTreeMap<ValueId, Vec<usize>>) -> Result<Types> {
    let size = model.values().map(|(v, _)| v.index() + 1).max().unwrap_or(0);
    let names = bind(model, inputs)?;
    let mut walk = Walk {
        model,
        facts: vec![Fact::default(); size],
        claims: claims(model, &names, size),
        seen,
        orders: HashMap::new(),
        functions: functions(model),
        visits: HashMap::new(),
        inside: 0,
        left: model.nodes().count().saturating_mul(32).saturating_add(10_000),
    };
    for (v, value) in model.values() {
        if let Some(t) = model.constant(v) {
            walk.facts[v.index()] = Fact::constant(t);
        } else if value.origin() == Origin::Sparse {
            walk.facts[v.index()] = sparse(model, v);
        }
    }
    for port in model.main().inputs() {
        if model.constant(port.value).is_some() {
            continue;
        }
        let mut fact = walk.claims[port.value.index()].clone().unwrap_or_default();
        if let Some(given) = inputs.get(port.name()) {
            let dtype = given.dtype.or(fact.dtype);
            fact = Fact { dtype, ..given.clone() };
        }
        walk.facts[port.value.index()] = fact;
    }
    walk.graph(model.main_id())?;
    walk.forget_repeated();
    Ok(Types { facts: walk.facts })
}

/// Function bodies by domain, name and overload.
pub type Functions<'m> = BTreeMap<(&'m str, &'m str, &'m str), GraphId>;

/// The body that a node calls, if its operator is a function of the model.
pub fn function_of(functions: &Functions, node: &Node) -> Option<GraphId> {
    let key = (node.op.domain.as_str(), node.op.name.as_str(), node.rest.overload());
    functions.get(&key).copied()
}

/// The bodies of functions, by domain, name and overload.
/// The functions of a model.
pub fn functions(model: &Model) -> Functions<'_> {
    let named = |g: &GraphId| {
        let f = model.graph(*g).function.as_ref()?;
        Some((
            (
                if f.domain() == "ai.onnx" { "" } else { f.domain() },
                f.name(),
                f.overload(),
            ),
            *g,
        ))
    };
    model.functions().iter().filter_map(named).collect()
}

struct Walk<'m> {
    model: &'m Model,
    facts: Vec<Fact>,
    claims: Vec<Option<Fact>>,
    seen: &'m BTreeMap<ValueId, Vec<usize>>,
    orders: HashMap<GraphId, Vec<NodeId>>,
    functions: Functions<'m>,
    /// How often every function body was walked.
    visits: HashMap<GraphId, usize>,
    /// How many sub-graphs and functions the walk is in.
    inside: usize,
    /// How many nodes of bodies may still be visited: nested loops and calls could ask for exponentially many.
    left: usize,
}

/// More sub-graphs and calls in one another than this are not walked.
const MAX_DEPTH: usize = 64;

impl Walk<'_> {
    fn order(&mut self, g: GraphId) -> Result<Vec<NodeId>> {
        if let Some(o) = self.orders.get(&g) {
            return Ok(o.clone());
        }
        let Ok(order) = self.model.topological(g) else {
            bail!("the graph has a cycle")
        };
        self.orders.insert(g, order.clone());
        Ok(order)
    }

    fn graph(&mut self, g: GraphId) -> Result<()> {
        for n in self.order(g)? {
            let facts = match self.node(n) {
                Ok(facts) => facts,
                Err(_) if self.inside > 0 => Vec::new(),
                Err(e) => return Err(e).with_context(|| self.model.label(n)),
            };
            let mut facts = facts.into_iter();
            for &v in self.model.node(n).outputs() {
                let fact = facts.next().unwrap_or_default();
                if let Some(v) = v {
                    self.facts[v.index()] = self.complete(v, fact);
                }
            }
        }
        Ok(())
    }

    /// Fills in what the rules left open: names that the file claims, what a run showed, numbers that the file claims.
    fn complete(&self, v: ValueId, mut fact: Fact) -> Fact {
        let claim = self.claims[v.index()].as_ref();
        if let (Some(dims), None) = (self.seen.get(&v), &fact.holds) {
            let mut run = Fact::new(None, Some(known(dims)));
            if let (Some(run), Some(claim)) = (&mut run.shape, claim.and_then(|c| c.shape.as_ref()))
                && run.len() == claim.len()
            {
                let named = run.iter_mut().zip(claim).filter(|(_, c)| matches!(c, Dim::Symbol(_)));
                named.for_each(|(r, c)| *r = c.clone());
            }
            fact.fill_from(&run);
        }
        if let Some(claim) = claim {
            fact.fill_from(claim);
        }
        fact
    }

    fn node(&mut self, id: NodeId) -> Result<Vec<Fact>> {
        let model = self.model;
        let node = model.node(id);
        let opset = model.opset_of(id);
        let facts = |walk: &Self| -> Vec<Option<Fact>> {
            let inputs = node.inputs().iter();
            inputs.map(|v| v.map(|v| walk.facts[v.index()].clone())).collect()
        };
        if let Some(g) = function_of(&self.functions, node) {
            let inputs: Vec<Fact> = facts(self).into_iter().map(Option::unwrap_or_default).collect();
            *self.visits.entry(g).or_default() += 1;
            return self.body(g, &inputs);
        }
        // Attributes that come from a call are not looked up.
        let by = if node.has_attr_refs() || opset < 1 {
            None
        } else {
            rule(&node.op.domain, &node.op.name)
        };
        match by {
            None => {
                for g in node.sub_graphs() {
                    self.body(g, &[])?;
                }
                Ok(Vec::new())
            }
            Some(Rule::Plain(f)) => {
                let inputs = node
                    .inputs()
                    .iter()
                    .map(|v| v.map(|v| &self.facts[v.index()]))
                    .collect();
                f(&Call { node, opset, inputs })
            }
            Some(Rule::Bodies(f)) => {
                let facts = facts(self);
                let inputs = facts.iter().map(Option::as_ref).collect();
                f(&Call { node, opset, inputs }, self)
            }
        }
    }

    /// Of a body that was walked for several calls, or whose walk was cut short, only the constants are known.
    fn forget_repeated(&mut self) {
        let cut = self.left == 0;
        let mut drop: Vec<GraphId> = self.visits.iter().filter(|(_, n)| **n > 1).map(|(g, _)| *g).collect();
        if cut {
            drop = self
                .model
                .live_graphs()
                .into_iter()
                .filter(|g| *g != self.model.main_id())
                .collect();
        }
        let inside = |g: GraphId| drop.iter().any(|d| self.model.in_scope(*d, g));
        let gone: Vec<ValueId> = self
            .model
            .values()
            .filter(|(v, value)| inside(value.graph()) && self.model.constant(*v).is_none())
            .map(|(v, _)| v)
            .collect();
        for v in gone {
            self.facts[v.index()] = Fact::default();
        }
    }
}

impl Bodies for Walk<'_> {
    fn body(&mut self, g: GraphId, inputs: &[Fact]) -> Result<Vec<Fact>> {
        let graph = self.model.graph(g);
        let outputs = graph.outputs().len();
        let nodes = graph.nodes().len() + 1;
        if self.inside >= MAX_DEPTH || self.left < nodes {
            self.left = 0;
            return Ok(vec![Fact::default(); outputs]);
        }
        self.left -= nodes;
        for (i, port) in graph.inputs().iter().enumerate() {
            let fact = inputs.get(i).cloned().unwrap_or_default();
            self.facts[port.value.index()] = self.complete(port.value, fact);
        }
        self.inside += 1;
        let walked = self.graph(g);
        self.inside -= 1;
        walked?;
        Ok(graph
            .outputs()
            .iter()
            .map(|p| self.facts[p.value.index()].clone())
            .collect())
    }
}
