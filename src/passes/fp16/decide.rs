//! Which operators of the main graph compute in float16, and why others do not.
//!
//! A node stays in float32 when ONNX says so, or when a rule about sizes does. Some rules are about values: one that is too large, or too small
//! to divide by, keeps the node that makes it and all that read it in float32. A node that only moves elements between others
//! that stay stays too, and one that gives out no floats: the Casts would cost more.

use super::{Half, LEAST};
use crate::analysis::stats::{Measure, Stats};
use crate::ir::{DType, Model, Node, NodeId, Origin, Use, ValueId};
use crate::math::histogram::Range;
use crate::ops::half::{allowed, input_is_float, is_exact, output_is_float};
use crate::ops::types::{Types, infer};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

/// Constants of so few elements cost nothing in float32.
const FEW: usize = 16;

/// Operators that add up many elements, and whether they square them.
const SUMS: &[(&str, bool)] = &[
    ("ReduceSum", false),
    ("ReduceMean", false),
    ("ReduceL1", false),
    ("ReduceL2", true),
    ("ReduceSumSquare", true),
    ("GlobalAveragePool", false),
    ("AveragePool", false),
    ("CumSum", false),
    ("LpPool", true),
    ("GlobalLpPool", true),
    ("LpNormalization", true),
];

/// Operators, and the input that must not come near zero.
const DELICATE: &[(&str, usize)] = &[("Div", 1), ("Reciprocal", 0), ("Log", 0), ("Sqrt", 0)];

/// What is to become of the main graph.
pub struct Plan<'a> {
    model: &'a Model,
    types: Types,
    /// The narrow type.
    pub half: Half,
    /// Inputs and outputs keep their types.
    pub keep_io: bool,
    /// Nodes with floats that could compute in float16.
    able: BTreeSet<NodeId>,
    /// Nodes that stay in float32, with the reason.
    pub stays: super::Stays,
    nodes: usize,
}

impl<'a> Plan<'a> {
    /// What ONNX allows.
    ///
    /// # Errors
    /// When the model's dimensions contradict each other.
    pub fn new(model: &'a Model, half: Half, keep_io: bool) -> Result<Plan<'a>> {
        let mut plan = Plan {
            model,
            types: infer(model)?,
            half,
            keep_io,
            able: BTreeSet::new(),
            stays: BTreeMap::new(),
            nodes: 0,
        };
        for &id in model.main().nodes() {
            if !plan.has_floats(id) || reads_shape(model.node(id)) {
                continue;
            }
            plan.nodes += 1;
            match plan.legal(id) {
                Ok(()) => drop(plan.able.insert(id)),
                Err(why) => drop(plan.stays.insert(id, why)),
            }
        }
        Ok(plan)
    }

    /// True when the value was in the narrow type before.
    pub fn was_half(&self, v: ValueId) -> bool {
        self.types.dtype(v) == Some(self.half.dtype())
    }

    fn is_float(&self, v: ValueId) -> bool {
        self.types.dtype(v) == Some(DType::Float)
    }

    fn has_floats(&self, id: NodeId) -> bool {
        let n = self.model.node(id);
        n.inputs()
            .iter()
            .chain(n.outputs())
            .flatten()
            .any(|&v| self.is_float(v))
    }

    fn legal(&self, id: NodeId) -> Result<(), String> {
        let n = self.model.node(id);
        let opset = self.model.opset_of(id);
        if n.has_attr_refs() || n.sub_graphs().next().is_some() {
            return Err("control flow stays in float32".to_owned());
        }
        let known = n
            .inputs()
            .iter()
            .chain(n.outputs())
            .flatten()
            .all(|&v| self.types.dtype(v).is_some());
        if !known {
            return Err("a type is not known: stays in float32".to_owned());
        }
        let other = n.op.domain.is_empty() && (n.is("Cast") || n.is("ConstantOfShape"));
        if other || allowed(n, opset, self.half.dtype()) {
            return Ok(());
        }
        let domain = if n.op.domain.is_empty() {
            String::new()
        } else {
            format!("{}.", n.op.domain)
        };
        Err(format!(
            "{domain}{} does not compute in {} at operator set {opset}",
            n.op.name,
            self.half.name()
        ))
    }

    /// Nodes of a kind stay in float32.
    pub fn block(&mut self, which: impl Fn(NodeId) -> bool, why: &str) {
        for id in self.able.iter().copied().filter(|n| which(*n)).collect::<Vec<_>>() {
            self.keep(id, why);
        }
    }

    fn keep(&mut self, id: NodeId, why: &str) {
        if self.able.remove(&id) {
            self.stays.insert(id, why.to_owned());
        }
    }

    /// Nodes with a constant that does not fit stay in float32.
    pub fn constants(&mut self) {
        let mut refused: BTreeMap<ValueId, Option<String>> = BTreeMap::new();
        let mut stays = Vec::new();
        for &id in &self.able {
            let n = self.model.node(id);
            for (_, v) in self.half_inputs(id) {
                let Some(t) = self.model.constant(v) else { continue };
                let why = refused.entry(v).or_insert_with(|| self.half.refuses(&t.floats()?));
                if let Some(why) = why {
                    stays.push((
                        id,
                        format!("stays in float32: constant {}: {why}", self.model.value(v).name),
                    ));
                    break;
                }
            }
            let filled = n
                .attr("value")
                .and_then(|a| a.proto.t.as_ref())
                .filter(|_| n.is("ConstantOfShape"));
            let filled = filled.and_then(|t| crate::ir::Tensor::from_proto(t.clone(), None).ok());
            if let Some(why) = filled.and_then(|t| self.half.refuses(&t.floats()?)) {
                stays.push((id, format!("stays in float32: its value: {why}")));
            }
        }
        for (id, why) in stays {
            self.keep(id, &why);
        }
    }

    /// The float inputs that become float16 when the node does.
    pub fn half_inputs(&self, id: NodeId) -> Vec<(usize, ValueId)> {
        let n = self.model.node(id);
        let inputs = n.inputs().iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?)));
        inputs
            .filter(|(i, v)| self.is_float(*v) && !input_is_float(n, *i))
            .collect()
    }

    /// The float outputs that become float16 when the node does.
    pub fn half_outputs(&self, id: NodeId) -> Vec<ValueId> {
        let n = self.model.node(id);
        let outputs = n.outputs().iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?)));
        outputs
            .filter(|(i, v)| self.is_float(*v) && !output_is_float(n, *i))
            .map(|(_, v)| v)
            .collect()
    }

    /// The values whose ranges matter.
    pub fn ranges_wanted(&self) -> Vec<(ValueId, Measure)> {
        let mut all = BTreeSet::new();
        for &id in &self.able {
            all.extend(self.half_inputs(id).into_iter().map(|(_, v)| v));
            all.extend(self.half_outputs(id));
        }
        all.into_iter()
            .filter(|v| self.model.constant(*v).is_none())
            .map(|v| (v, Measure::Range))
            .collect()
    }

    /// Applies the rules about sizes.
    pub fn ranges(&mut self, stats: &Stats) {
        let measured = |v: ValueId| stats.range(v).filter(|r| r.count > 0);
        let size = |r: &Range| r.max.abs().max(r.min.abs());
        let mut wide: BTreeMap<ValueId, String> = BTreeMap::new();
        let mut stays: Vec<(NodeId, String)> = Vec::new();
        for (v, _) in self.ranges_wanted() {
            let Some(r) = measured(v) else { continue };
            let name = &self.model.value(v).name;
            if size(r) > self.half.most() {
                wide.insert(
                    v,
                    format!("stays in float32: {name} reaches {:.3e} on the data", size(r)),
                );
            } else if size(r) > self.half.whole() && self.becomes_integer(v) {
                wide.insert(
                    v,
                    format!(
                        "stays in float32: {name} is cast to an integer and reaches {:.0}",
                        size(r)
                    ),
                );
            }
        }
        for &id in &self.able {
            let n = self.model.node(id);
            if let Some(&(_, slot)) = DELICATE.iter().find(|(op, _)| n.is(op))
                && let Some(v) = n.input(slot)
                && let Some(r) = measured(v)
                && r.min > 0.0
                && r.min < LEAST
                && !self.half.wide()
            {
                wide.insert(
                    v,
                    format!(
                        "stays in float32: {} comes down to {:.1e} on the data",
                        self.model.value(v).name,
                        r.min
                    ),
                );
            }
            if let Some(&(_, squares)) = SUMS.iter().find(|(op, _)| n.is(op))
                && let (Some(x), Some(y)) = (n.input(0).and_then(measured), n.output(0))
                && let Some(sum) =
                    inner_sum(x, measured(y), size(x), squares).filter(|s| *s > f64::from(self.half.most()))
            {
                stays.push((id, format!("stays in float32: it adds up to {sum:.3e}")));
            }
        }
        for (v, why) in wide {
            let around = self.model.value(v).producer().into_iter().chain(self.model.readers(v));
            stays.extend(around.map(|n| (n, why.clone())));
        }
        for (id, why) in stays {
            self.keep(id, &why);
        }
    }

    /// Whether a value ends as integers: positions, lengths, indices.
    fn becomes_integer(&self, v: ValueId) -> bool {
        const STEPS: &[&str] = &[
            "Floor",
            "Ceil",
            "Round",
            "Mul",
            "Div",
            "Add",
            "Sub",
            "Unsqueeze",
            "Squeeze",
            "Concat",
            "Slice",
            "Gather",
            "Reshape",
        ];
        let (mut seen, mut queue) = (BTreeSet::from([v]), vec![v]);
        while let Some(v) = queue.pop() {
            for id in self.model.readers(v) {
                let n = self.model.node(id);
                let Some(out) = n.output(0).filter(|_| n.graph() == self.model.main_id()) else {
                    continue;
                };
                if n.is("Cast")
                    && self
                        .types
                        .dtype(out)
                        .is_some_and(|d| matches!(d, DType::Int64 | DType::Int32))
                {
                    return true;
                }
                if seen.len() < 16 && STEPS.iter().any(|s| n.is(s)) && seen.insert(out) {
                    queue.push(out);
                }
            }
        }
        false
    }

    /// Nodes that only move or compare elements, between others that stay in float32, stay too.
    pub fn settle(&mut self) {
        loop {
            let idle: Vec<NodeId> = self.able.iter().copied().filter(|n| self.is_idle(*n)).collect();
            if idle.is_empty() {
                return;
            }
            self.able.retain(|n| !idle.contains(n));
        }
    }

    fn is_idle(&self, id: NodeId) -> bool {
        let n = self.model.node(id);
        let (inputs, outputs) = (self.half_inputs(id), self.half_outputs(id));
        let source = inputs.is_empty() && (n.is("Cast") || n.is("ConstantOfShape"));
        if !source && (inputs.is_empty() || !is_exact(&n.op.name) && !outputs.is_empty()) {
            return false;
        }
        let from_float = |v: ValueId| match self.model.value(v).origin() {
            Origin::Node(p, _) => !self.able.contains(&p),
            Origin::Input => self.keep_io,
            _ => false,
        };
        let to_float = |u: &Use| match *u {
            Use::Node(r, slot) => !self.able.contains(&r) || self.half_inputs(r).iter().all(|(s, _)| *s != slot),
            Use::Output(..) => self.keep_io,
        };
        let constant = |v: ValueId| self.model.constant(v).is_some();
        let small = |v: ValueId| self.model.constant(v).is_some_and(|t| t.len() <= FEW);
        inputs.iter().all(|(_, v)| from_float(*v) || small(*v))
            && (source || inputs.iter().any(|(_, v)| !constant(*v)))
            && outputs.iter().all(|v| self.model.value(*v).uses().iter().all(to_float))
    }

    /// The nodes that compute in float16.
    pub fn half_nodes(&self) -> &BTreeSet<NodeId> {
        &self.able
    }

    /// How many nodes of the main graph have floats.
    pub fn count(&self) -> usize {
        self.nodes
    }
}

/// A Transpose in front of a MatMul that puts the first axis last or last but one, and leaves the others in order, as exports of attention do whose batch
/// is the second axis: ONNX Runtime makes one operator of both, and 1.31 and 1.32 end the process over it in float16 (seen on x86-64).
pub fn crashes(model: &Model, id: NodeId) -> bool {
    let n = model.node(id);
    let (Some(perm), Some(out)) = (n.ints("perm").filter(|_| n.is("Transpose")), n.output(0)) else {
        return false;
    };
    let at = perm.iter().position(|axis| *axis == 0);
    let inward = at.is_some_and(|at| perm.len() > 2 && at + 2 >= perm.len());
    let rest = perm.iter().filter(|axis| **axis != 0);
    inward && rest.is_sorted() && model.readers(out).into_iter().any(|r| model.node(r).is("MatMul"))
}

/// True for operators that look only at the dimensions: any type will do.
pub fn reads_shape(n: &Node) -> bool {
    n.is("Shape") || n.is("Size")
}

/// The largest sum that can come about inside: elements that are added up times the largest, or its square.
fn inner_sum(x: &Range, y: Option<&Range>, size: f32, squares: bool) -> Option<f64> {
    let results = y.filter(|y| y.count > 0).map_or(1, |y| y.count);
    let each = x.count as f64 / results as f64;
    let size = f64::from(size);
    Some(each.max(1.0) * if squares { size * size } else { size })
}
