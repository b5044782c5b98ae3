//! Maps that are no sites: embedding tables, and the input weights of recurrent layers. One at a time, each tried at once.
//!
//! A table `T` that a Gather reads is a map that stands still, `y = I t`, behind the row `t = T[i]`: its factors are `y = B (V t)`,
//! and `V` is multiplied into the table, `A = T Vᵀ`. The covariance is that of the rows that were read for the samples, and of every
//! row of the table once more: rows that calibration never read are read some day.
//!
//! A recurrent layer multiplies its input with the weights of all gates and directions. These are one map, `W x`, and become `W' (V x)`
//! with one product `V x` before the node. The recurrent weights `R` stay: ONNX has no place for factors of them.

use super::fit::{Fit, Weight};
use super::known::Known;
use super::ladder::Chain;
use super::{Choice, LowRank, decibel};
use crate::analysis::sites::float_tensor;
use crate::analysis::stats::{Detail, Measure, Patch, Stats};
use crate::engine::NotRun;
use crate::ir::{Model, NodeId, Use, ValueId};
use crate::math::decompose::matmul_f32;
use crate::math::gram::Gram;
use crate::passes::Context;
use crate::passes::noise::Reference;
use anyhow::{Context as _, Result};
use ndarray::{Array2, ArrayView2};
use std::collections::BTreeMap;

/// Wider rows are left alone: second moments take 8 bytes for the square of this.
const WIDEST: usize = 4096;
/// Errors that are tried, as parts of that which is allowed for one layer.
const TRIED: [f64; 3] = [1.0, 0.25, 0.06];
/// Seed of the search for directions.
const SEED: u64 = 0x7461_626c;

/// One map, and what putting its factors in place costs.
struct Single<'a> {
    node: NodeId,
    what: String,
    weight: Weight,
    known: Option<Known>,
    /// Weights at a rank, as a part of those that were there.
    part: &'a dyn Fn(usize) -> f64,
    /// Puts the factors in place.
    put: &'a dyn Fn(&mut Model, &Chain) -> Result<()>,
}

impl LowRank {
    /// Factors embedding tables and recurrent layers, where that was asked for.
    ///
    /// # Errors
    /// When a sample fails.
    pub(super) fn singles(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        if self.tables {
            for (table, gathers) in tables(model) {
                if !gathers.iter().any(|g| self.skip.has(&model.label(*g))) {
                    self.table(model, table, &gathers, cx)?;
                }
            }
        }
        if self.recurrent {
            for node in model.node_ids() {
                let recurrent = ["LSTM", "GRU", "RNN"].iter().any(|op| model.node(node).is(op));
                if recurrent && !self.skip.has(&model.label(node)) {
                    self.recurrent(model, node, cx)?;
                }
            }
        }
        Ok(())
    }

    fn table(&self, model: &mut Model, table: ValueId, gathers: &[NodeId], cx: &mut Context) -> Result<()> {
        let Some(rows) = matrix(model, table) else {
            return Ok(());
        };
        let outputs: Vec<ValueId> = gathers.iter().filter_map(|g| model.node(*g).output(0)).collect();
        let (n, d) = rows.dim();
        if d > WIDEST || rows.len() < self.min_size {
            cx.skip(model, gathers[0], format!("table {n}×{d}: small, or too wide"));
            return Ok(());
        }
        let mut read = Gram::new(d);
        read.add_rows(rows.view())?;
        if read.broken > 0 {
            cx.skip(model, gathers[0], "its table is not finite");
            return Ok(());
        }
        let stats = self.seen(model, &outputs, cx)?;
        for stats in stats.iter().flatten() {
            for gram in outputs.iter().filter_map(|y| stats.gram(*y, &Patch::LAST)?.first()) {
                read.merge(gram)?;
            }
        }
        let known = Known::exact(&read)?;
        let single = Single {
            node: gathers[0],
            what: format!("table {n}×{d}"),
            weight: Weight::of(Array2::eye(d), Some(&known)),
            known: Some(known),
            part: &|r| (r * (n + d)) as f64 / (n * d) as f64,
            put: &|model, chain| put_table(model, table, gathers, rows.view(), chain),
        };
        self.single(model, single, cx)
    }

    fn recurrent(&self, model: &mut Model, node: NodeId, cx: &mut Context) -> Result<()> {
        let (input, weight) = (model.node(node).input(0), model.node(node).input(1));
        let (Some(input), Some(weight)) = (input, weight) else {
            return Ok(());
        };
        let dims = model.constant(weight).map(|t| t.dims().to_vec());
        let (Some(&[directions, gates, inputs]), None) = (dims.as_deref(), model.constant(input)) else {
            cx.skip(model, node, "its weight is not constant, or its input is");
            return Ok(());
        };
        let out = directions.saturating_mul(gates);
        let data = model.constant(weight).and_then(|t| t.to_f32());
        let alone = model.only_use(weight) == Some((node, 1)) && model.node(node).graph() == model.main_id();
        let Some(data) = data.filter(|d| alone && inputs <= WIDEST && d.len() >= self.min_size) else {
            cx.skip(
                model,
                node,
                "its weight is small, wide, read by others or in a sub-graph",
            );
            return Ok(());
        };
        let matrix = Array2::from_shape_vec((out, inputs), data.to_vec())?;
        let known = match self.seen(model, &[input], cx)? {
            None => None,
            Some([a, b]) => {
                let grams = [gram(&a, input, inputs), gram(&b, input, inputs)];
                Known::of_halves(grams, a.samples + b.samples, matrix.view(), false)?
            }
        };
        let single = Single {
            node,
            what: format!("{out}×{inputs}"),
            weight: Weight::of(matrix.mapv(f64::from), known.as_ref()),
            known,
            part: &|r| (r * (out + inputs)) as f64 / (out * inputs) as f64,
            put: &|model, chain| put_recurrent(model, node, weight, [directions, gates], chain),
        };
        self.single(model, single, cx)
    }

    /// Moments of values over both halves of the samples; `None` where nothing is measured.
    fn seen(&self, model: &Model, values: &[ValueId], cx: &Context) -> Result<Option<[Stats; 2]>> {
        if !self.data || cx.samples.synthetic() {
            return Ok(None);
        }
        match cx.halves(
            model,
            values.iter().map(|v| (*v, Measure::Gram(Patch::LAST, Detail::Fine))),
        ) {
            Ok(halves) => Ok(Some(halves)),
            Err(e) if e.chain().any(|c| c.is::<NotRun>()) => Ok(None),
            Err(e) => Err(e.context("lowrank: measuring")),
        }
    }

    /// Factors one map at the smallest rank that its error and those of the outputs allow.
    fn single(&self, model: &mut Model, single: Single, cx: &mut Context) -> Result<()> {
        let Single {
            node,
            what,
            weight,
            known,
            part,
            put,
        } = single;
        let full = weight.matrix.nrows().min(weight.matrix.ncols());
        let most = (1..=full)
            .take_while(|r| part(*r) <= 1.0 - self.gain)
            .last()
            .unwrap_or(0);
        let fixed = match self.choice {
            Choice::Error(_) => None,
            Choice::Rank(r) => Some(r),
            Choice::Ratio(part_kept) => Some(((part_kept / part(1)) as usize).max(1)),
        };
        let (allowed, reference) = match self.choice {
            Choice::Error(e) => (e, reference(model, cx)?),
            _ => (0.0, None),
        };
        let fit = Fit::new(&weight, known.as_ref(), most.max(1), allowed * TRIED[2], SEED)?;
        for tried in TRIED {
            let rank = fixed.or_else(|| fit.rank_for(allowed * tried));
            let rank = rank.map(|r| {
                if fixed.is_some() {
                    r
                } else {
                    r.max(1).next_multiple_of(self.round_to)
                }
            });
            let Some(rank) = rank.filter(|r| *r <= most) else {
                let why = format!(
                    "{what}: only up to rank {most} there is a gain (error there {:.1} dB)",
                    decibel(fit.error(most))
                );
                cx.skip(model, node, why);
                return Ok(());
            };
            let Some((chain, trial)) = fit.chains(&weight, known.as_ref(), &[rank]).pop() else {
                return Ok(());
            };
            if let Some(reference) = &reference {
                let mut changed = model.clone();
                put(&mut changed, trial.as_ref().unwrap_or(&chain))?;
                if reference.error(&changed, cx)? > reference.careful(allowed) {
                    continue;
                }
            }
            let saved = 100.0 * (1.0 - part(rank));
            let error = decibel(fit.error(rank));
            cx.did(
                model,
                node,
                format!("{what} → rank {rank}: −{saved:.0} % weights, predicted error {error:.1} dB"),
            );
            return put(model, &chain);
        }
        cx.skip(
            model,
            node,
            format!("{what}: an output of the model would err too much"),
        );
        Ok(())
    }
}

fn gram(stats: &Stats, value: ValueId, width: usize) -> Option<&Gram> {
    let gram = stats.gram(value, &Patch::LAST)?.first()?;
    (gram.dim() == width && gram.n > 0).then_some(gram)
}

/// The outputs on the half of the samples that directions are not chosen on; `None` when the model is not run.
fn reference(model: &Model, cx: &Context) -> Result<Option<Reference>> {
    let [one, other] = cx.samples.halves();
    let samples = if other.is_empty() { one } else { other };
    if samples.is_empty() {
        return Ok(None);
    }
    match Reference::new(model, &samples, cx) {
        Ok(reference) => Ok(Some(reference)),
        Err(e) if e.chain().any(|c| c.is::<NotRun>()) => Ok(None),
        Err(e) => Err(e.context("lowrank: trying the result")),
    }
}

/// Constant tables of the main graph that only Gathers along their rows read, and these.
fn tables(model: &Model) -> BTreeMap<ValueId, Vec<NodeId>> {
    let mut all: BTreeMap<ValueId, Vec<NodeId>> = BTreeMap::new();
    for (id, n) in model.nodes() {
        let rows = n.is("Gather") && matches!(n.int_or("axis", 0), 0 | -2) && !n.has_attr_refs();
        if let Some(table) = n.input(0).filter(|_| rows && n.graph() == model.main_id())
            && model.constant(table).is_some_and(|t| t.dims().len() == 2)
        {
            all.entry(table).or_default().push(id);
        }
    }
    all.retain(|table, gathers| {
        let known = |u: &Use| matches!(u, Use::Node(n, 0) if gathers.contains(n));
        model.value(*table).uses().iter().all(known)
    });
    all
}

/// A table's floats.
fn matrix(model: &Model, table: ValueId) -> Option<Array2<f32>> {
    let t = model.constant(table)?;
    let &[rows, columns] = t.dims() else { return None };
    let data = t.to_f32().filter(|d| !d.is_empty())?;
    Array2::from_shape_vec((rows, columns), data.to_vec()).ok()
}

fn factors(chain: &Chain) -> Result<[ArrayView2<'_, f32>; 2]> {
    let [first, second] = chain.layers.as_slice() else {
        anyhow::bail!("a pair has two layers")
    };
    Ok([first.weight.view(), second.weight.view()])
}

fn put_table(
    model: &mut Model,
    table: ValueId,
    gathers: &[NodeId],
    rows: ArrayView2<f32>,
    chain: &Chain,
) -> Result<()> {
    let [first, second] = factors(chain)?;
    let dtype = model.constant(table).context("the table is gone")?.dtype();
    let (name, graph) = (model.value(table).name.clone(), model.main_id());
    let thin = matmul_f32(rows, first.t());
    let dims = [thin.nrows(), thin.ncols()];
    let thin = float_tensor(dtype, &dims, thin.iter().copied().collect())?;
    let thin = constant(model, &format!("{name}_lr0"), thin);
    let back = float_tensor(
        dtype,
        &[second.ncols(), second.nrows()],
        second.t().iter().copied().collect(),
    )?;
    let back = constant(model, &format!("{name}_lr1"), back);
    for &gather in gathers {
        let node = model.node(gather);
        let (inputs, attrs) = ([Some(thin), node.input(1)], node.attrs.clone());
        let (name, y) = (
            node.name().to_owned(),
            node.output(0).context("a Gather has an output")?,
        );
        let out = model.value(y).name.clone();
        let added = [format!("{name}_lr0"), format!("{name}_lr1")];
        let (_, inner) = model.add_node(graph, &added[0], "Gather", &inputs, &[&format!("{out}_lr0")], attrs);
        let inputs = [inner.first().copied(), Some(back)];
        let (_, whole) = model.add_node(graph, &added[1], "MatMul", &inputs, &[&format!("{out}_lr1")], vec![]);
        model.replace_uses(y, *whole.first().context("a MatMul has an output")?);
        model.erase(gather);
    }
    model.erase_unused_const(table);
    Ok(())
}

fn put_recurrent(
    model: &mut Model,
    node: NodeId,
    weight: ValueId,
    [directions, gates]: [usize; 2],
    chain: &Chain,
) -> Result<()> {
    let [first, second] = factors(chain)?;
    let dtype = model.constant(weight).context("the weight is gone")?.dtype();
    let (rank, inputs) = first.dim();
    let base = model.value(weight).name.clone();
    let turned = float_tensor(dtype, &[inputs, rank], first.t().iter().copied().collect())?;
    let turned = constant(model, &format!("{base}_lr0"), turned);
    let inner = float_tensor(dtype, &[directions, gates, rank], second.iter().copied().collect())?;
    let inner = constant(model, &format!("{base}_lr1"), inner);
    let n = model.node(node);
    let (name, input) = (format!("{}_lr0", n.name()), n.input(0).context("it has an input")?);
    let out = format!("{}_lr0", model.value(input).name);
    let graph = model.main_id();
    let (_, thin) = model.add_node(graph, &name, "MatMul", &[Some(input), Some(turned)], &[&out], vec![]);
    model.set_input(node, 0, thin.first().copied());
    model.set_input(node, 1, Some(inner));
    model.erase_unused_const(weight);
    Ok(())
}

fn constant(model: &mut Model, name: &str, tensor: crate::ir::Tensor) -> ValueId {
    let name = model.fresh_name(name);
    model.add_const(model.main_id(), &name, tensor)
}
