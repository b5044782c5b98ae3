//! Constant channels into biases: `y_o = β b_o + α Σ_j w_oj x_j` with `x_i = c` everywhere is
//! `β (b_o + α/β · c · w_oi) + α Σ_{j≠i} w_oj x_j`. The sums are taken in f64 and rounded once.

use super::cut::Kept;
use super::exact::Constants;
use super::facts::row_sums;
use crate::analysis::groups::{Dims, Groups};
use crate::ir::{DType, Model, NodeId, Tensor, ValueId};
use crate::ops::ties::{Dot, constant};
use std::collections::BTreeSet;

/// What a contraction's bias grows by.
pub struct Shift {
    /// Whose bias.
    pub node: NodeId,
    /// Its contraction.
    pub dot: Dot,
    /// What it makes.
    pub out: ValueId,
    /// By how much the sum grows, for every row before the cut.
    pub by_row: Vec<f64>,
}

/// True when constants can be folded here: their share is the same everywhere, and the bias can take it.
pub fn is_foldable(model: &Model, id: NodeId, dot: &Dot) -> bool {
    dot.uniform && takes_shift(model, id, dot)
}

/// True when weight and bias are constants, and the bias runs along the rows only.
pub fn takes_shift(model: &Model, id: NodeId, dot: &Dot) -> bool {
    let node = model.node(id);
    let Some(weight) = node.input(dot.weight.0).and_then(|v| constant(model, v)) else {
        return false;
    };
    if weight.dtype() != DType::Float || dot.beta == 0.0 || node.output(0).is_none() {
        return false;
    }
    let rows = weight.dims().get(dot.row).copied().unwrap_or(0);
    match dot.bias.and_then(|slot| node.input(slot)) {
        None => true,
        Some(b) => constant(model, b).is_some_and(|t| runs_along_rows(&t, rows)),
    }
}

fn runs_along_rows(bias: &Tensor, rows: usize) -> bool {
    let along = bias.dims().last().is_none_or(|n| *n == rows || *n == 1);
    bias.dtype() == DType::Float && along && (bias.len() == rows || bias.len() == 1)
}

/// The shifts of all biases when these units go.
pub fn shifts(model: &Model, groups: &Groups, constants: &Constants, gone: &BTreeSet<usize>) -> Vec<Shift> {
    let mut out = Vec::new();
    for (&(id, k), by_index) in constants {
        let Some(dot) = groups.flows.iter().find(|f| f.0 == id).and_then(|f| f.1.dots.get(k)) else {
            continue;
        };
        let node = model.node(id);
        let data = node.input(dot.data.0).and_then(|v| groups.axis(v, dot.data.1));
        let (Some((start, _)), Some(value)) = (data, node.output(0)) else {
            continue;
        };
        // Channels that stay count as zero here, so that every row has a sum.
        let number = |e: usize| {
            let folded = gone.contains(&groups.unit(e));
            Some(by_index.get(&(e - start)).copied().filter(|_| folded).unwrap_or(0.0))
        };
        let Some(rows) = row_sums(model, groups, id, dot, &number) else {
            continue;
        };
        let by_row: Vec<f64> = rows.into_iter().map(|r| r.unwrap_or(0.0)).collect();
        if by_row.iter().any(|x| *x != 0.0) {
            out.push(Shift {
                node: id,
                dot: dot.clone(),
                out: value,
                by_row,
            });
        }
    }
    out
}

impl Shift {
    /// Writes the new bias, after the cut: `kept` says which rows are left.
    pub fn apply(self, model: &mut Model, kept: &Kept, dims: &mut Dims) {
        let keep = kept.get(&(self.out, self.dot.out));
        let stays = |o: usize| keep.is_none_or(|k| k.get(o) == Some(&true));
        let rows = self.by_row.iter().enumerate().filter(|(o, _)| stays(*o));
        let factor = f64::from(self.dot.alpha) / f64::from(self.dot.beta);
        let shift: Vec<f64> = rows.map(|(_, x)| x * factor).collect();
        match self.dot.bias {
            Some(slot) => self.shift_bias(model, slot, &shift),
            None => self.shift_by_add(model, &shift, dims),
        }
    }

    fn shift_bias(&self, model: &mut Model, slot: usize, shift: &[f64]) {
        let node = model.node(self.node);
        let old = node.input(slot);
        let tensor = old.and_then(|v| constant(model, v));
        let before = tensor.as_ref().and_then(|t| t.floats());
        let at = |o: usize| match before.as_deref() {
            Some([only]) => f64::from(*only),
            Some(b) => b.get(o).copied().map_or(0.0, f64::from),
            None => 0.0,
        };
        let new: Vec<f32> = shift.iter().enumerate().map(|(o, x)| (at(o) + x) as f32).collect();
        let (graph, base) = match old {
            Some(v) => (node.graph(), model.value(v).name.clone()),
            None => (node.graph(), format!("{}_bias", model.label(self.node))),
        };
        let name = model.fresh_name(&base);
        let own = model.add_const(graph, &name, Tensor::new(&[new.len()], new));
        model.set_input(self.node, slot, Some(own));
        if let Some(old) = old {
            model.erase_unused_const(old);
        }
    }

    /// MatMul has no bias: an Add follows it.
    fn shift_by_add(&self, model: &mut Model, shift: &[f64], dims: &mut Dims) {
        let Some(known) = dims.get(self.out.index()).cloned().flatten() else {
            return;
        };
        let behind = known.len().saturating_sub(self.dot.out + 1);
        let mut shape = vec![1; behind + 1];
        shape[0] = shift.len();
        let new = Tensor::new(&shape, shift.iter().map(|x| *x as f32).collect());
        let graph = model.node(self.node).graph();
        let base = format!("{}_bias", model.value(self.out).name);
        let bias = model.add_const(graph, &model.fresh_name(&base), new);
        let label = format!("{}_bias", model.label(self.node));
        let inputs = [Some(self.out), Some(bias)];
        let (add, outs) = model.add_node(graph, &label, "Add", &inputs, &[&base], Vec::new());
        let Some(&sum) = outs.first() else { return };
        model.replace_uses_where(self.out, sum, |u| *u != crate::ir::Use::Node(add, 0));
        dims.resize(dims.len().max(sum.index() + 1), None);
        dims[sum.index()] = Some(known);
    }
}
