//! Writes float16 weights and the Casts at the borders, one for each value and direction.
//!
//! A weight `w` becomes `w_float16` where something else still reads the float32 one, and keeps its name where not. The float16 copy of a value `v`
//! is `v_float16`, the float32 one of a float16 value `v_float32`; what the world sees keeps its name.

use super::decide::{self, Plan};
use crate::ir::{Attr, DType, Model, NodeId, Tensor, Use, ValueId};
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};

/// What was made.
#[derive(Default)]
pub struct Made {
    /// Casts.
    pub casts: usize,
    /// Weights of which elements became zero: how many, of how many.
    pub flushed: BTreeMap<String, (usize, usize)>,
}

/// Changes the model as planned.
///
/// # Errors
/// When a constant is not what it was.
pub fn apply(model: &mut Model, plan: &Plan) -> Result<Made> {
    let nodes: Vec<NodeId> = plan.half_nodes().iter().copied().collect();
    let mut wants: BTreeMap<ValueId, Vec<Use>> = BTreeMap::new();
    let mut makes: BTreeSet<ValueId> = BTreeSet::new();
    for &id in &nodes {
        for (slot, v) in plan.half_inputs(id) {
            wants.entry(v).or_default().push(Use::Node(id, slot));
        }
        makes.extend(plan.half_outputs(id));
    }
    if !plan.keep_io {
        let inputs: Vec<ValueId> = model.main().inputs().iter().map(|p| p.value).collect();
        let plain = |v: &ValueId| model.constant(*v).is_none() && wants.contains_key(v);
        makes.extend(inputs.into_iter().filter(plain));
    }
    let mut work = Work {
        model,
        plan,
        made: Made::default(),
    };
    for &id in &nodes {
        work.attributes(id)?;
    }
    for (&v, uses) in &wants {
        match (work.model.constant(v).is_some(), makes.contains(&v)) {
            (true, _) => work.constant(v, uses)?,
            (false, true) => {}
            (false, false) => {
                let name = format!("{}_{}", work.model.value(v).name, plan.half.name());
                let cast = work.cast(v, &name, plan.half.dtype());
                work.model.replace_uses_where(v, cast, |u| uses.contains(u));
            }
        }
    }
    for &v in &makes {
        work.widen(v, wants.get(&v).map_or(&[], Vec::as_slice));
    }
    work.drop_idle_casts(&nodes, &makes);
    Ok(work.made)
}

struct Work<'a, 'b> {
    model: &'a mut Model,
    plan: &'a Plan<'b>,
    made: Made,
}

impl Work<'_, '_> {
    /// Types that stand in attributes.
    fn attributes(&mut self, id: NodeId) -> Result<()> {
        let half = self.plan.half;
        let makes = !self.plan.half_outputs(id).is_empty();
        let n = self.model.node_mut(id);
        if makes && n.is("Cast") {
            n.set_attr(Attr::int("to", half.dtype() as i64));
        }
        if makes && n.is("ConstantOfShape") {
            let value = match n.attr("value").and_then(|a| a.proto.t.clone()) {
                Some(t) => Tensor::from_proto(t, None)?,
                None => Tensor::new(&[1], vec![0f32]),
            };
            let value = half.tensor(&value).context("a float value")?;
            n.set_attr(Attr::tensor("value", value.to_inline_proto()));
        }
        Ok(())
    }

    /// The float16 form of a constant, for those that read it in float16.
    fn constant(&mut self, v: ValueId, uses: &[Use]) -> Result<()> {
        let half = self.plan.half;
        let old = self.model.constant(v).context("a constant")?.clone();
        let new = half.tensor(&old).context("a float constant")?;
        let name = self.model.value(v).name.clone();
        let floats = old.floats().context("a float constant")?;
        let lost = floats.iter().filter(|x| **x != 0.0 && half.round(**x) == 0.0).count();
        if lost > 0 {
            self.made.flushed.insert(name.clone(), (lost, old.len()));
        }
        let all = self.model.value(v).uses().iter().all(|u| uses.contains(u));
        if all {
            self.model.set_const(v, new);
            return Ok(());
        }
        let graph = self.model.value(v).graph();
        let name = self.model.fresh_name(&format!("{name}_{}", half.name()));
        let narrow = self.model.add_const(graph, &name, new);
        self.model.replace_uses_where(v, narrow, |u| uses.contains(u));
        Ok(())
    }

    /// A value is float16 now: all but `narrow` read a float32 copy, if there are any.
    fn widen(&mut self, v: ValueId, narrow: &[Use]) {
        let (keep, half) = (self.plan.keep_io, self.plan.half);
        let main = self.model.main_id();
        let wide = |u: &Use| match u {
            Use::Output(g, _) => *g != main || keep,
            Use::Node(n, _) => !narrow.contains(u) && !decide::reads_shape(self.model.node(*n)),
        };
        let uses: Vec<Use> = self.model.value(v).uses().to_vec();
        let wanted: Vec<Use> = uses.into_iter().filter(wide).collect();
        if wanted.is_empty() {
            self.model.declare_elem_type(v, half.dtype());
            return;
        }
        let name = self.model.value(v).name.clone();
        let public =
            |u: &Use| matches!(u, Use::Output(g, i) if *g == main && self.model.graph(*g).outputs()[*i].name() == name);
        let public = wanted.iter().any(public);
        let copy = match public {
            true => {
                let inner = self.model.fresh_name(&format!("{name}_{}", half.name()));
                self.model.rename(v, inner);
                let cast = self.cast(v, &format!("{name}_float32"), DType::Float);
                self.model.rename(cast, name);
                cast
            }
            false => self.cast(v, &format!("{name}_float32"), DType::Float),
        };
        self.model.replace_uses_where(v, copy, |u| wanted.contains(u));
        self.model.declare_elem_type(v, half.dtype());
    }

    fn cast(&mut self, v: ValueId, name: &str, to: DType) -> ValueId {
        self.made.casts += 1;
        let graph = self.model.value(v).graph();
        let to = vec![Attr::int("to", to as i64)];
        self.model
            .add_node(graph, &format!("{name}_Cast"), "Cast", &[Some(v)], &[name], to)
            .1[0]
    }

    /// Casts of the model that have become casts of float16 to float16 go.
    fn drop_idle_casts(&mut self, nodes: &[NodeId], makes: &BTreeSet<ValueId>) {
        for &id in nodes {
            let n = self.model.node(id);
            let (Some(x), Some(y)) = (n.input(0).filter(|_| n.is("Cast")), n.output(0)) else {
                continue;
            };
            let narrow = makes.contains(&x) || self.plan.was_half(x);
            let from_half = narrow || self.plan.half_inputs(id).iter().any(|(slot, _)| *slot == 0);
            let to_half = n.int("to") == Some(self.plan.half.dtype() as i64);
            if from_half && to_half && !self.model.value(y).is_output() {
                self.model.replace_uses(y, x);
                self.model.erase(id);
            }
        }
    }
}
