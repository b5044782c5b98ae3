//! Tables that a product reads as well: the transpose of an embedding gives the scores of the words (Press and Wolf 2017, *Using the
//! Output Embedding to Improve Language Models*). While a pass quantizes, the product has a weight of its own; then rows are read from
//! its codes: `Gather(T, i)` becomes `Mul(Cast(Gather(T_q, i)), Gather(s, i))`, where every row, which is a channel of the product, has a scale. The codes stay as
//! the product reads them; the Transpose before a Gather depends on no input, and a runtime computes it once, while it loads the model.

use super::{LEAST, Scale, read};
use crate::ir::{Attr, DType, Model, NodeId, Tensor, Use, ValueId};
use crate::passes::{Context, Names};
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// A table, while a product has a copy of it.
pub struct Tied {
    table: ValueId,
    gathers: Vec<NodeId>,
    /// One of the products, which read `weight` as their input 1.
    product: NodeId,
    weight: ValueId,
    /// The weight is the transpose of the table.
    turned: bool,
}

/// Gives weights of their own to products that read a table of the main graph. `skip` names nodes that are to be left alone.
///
/// # Errors
/// When a table cannot be read.
pub fn part(model: &mut Model, skip: &Names) -> Result<Vec<Tied>> {
    let mut all = Vec::new();
    let mut tables: BTreeMap<ValueId, Vec<NodeId>> = BTreeMap::new();
    for (id, n) in model.nodes() {
        let rows = n.is("Gather") && n.graph() == model.main_id() && matches!(n.int_or("axis", 0), 0 | -2);
        if let Some(table) = n
            .input(0)
            .filter(|_| rows && !n.has_attr_refs() && !skip.has(&model.label(id)))
        {
            tables.entry(table).or_default().push(id);
        }
    }
    for (table, gathers) in tables {
        let large = |t: &&Tensor| t.dtype() == DType::Float && t.dims().len() == 2 && t.len() >= LEAST;
        let Some(tensor) = model.constant(table).filter(large).cloned() else {
            continue;
        };
        let others = |u: &&Use| !matches!(u, Use::Node(n, 0) if gathers.contains(n));
        let others: Vec<Use> = model.value(table).uses().iter().filter(others).copied().collect();
        let Some((product, turned)) = readers(model, &others) else {
            continue;
        };
        let name = model.fresh_name(&format!("{}_product", model.value(table).name));
        let tensor = if turned { transposed(&tensor)? } else { tensor };
        let weight = model.add_const(model.main_id(), &name, tensor);
        for u in others {
            let Use::Node(node, slot) = u else { continue };
            match turned {
                true => {
                    let out = model.node(node).output(0).context("a Transpose has an output")?;
                    model.replace_uses(out, weight);
                    model.erase(node);
                }
                false => model.set_input(node, slot, Some(weight)),
            }
        }
        all.push(Tied {
            table,
            gathers,
            product,
            weight,
            turned,
        });
    }
    Ok(all)
}

/// A product among the readers of a table (besides Gathers), and whether it reads the transpose; `None` when one of them is anything else, or there is none.
fn readers(model: &Model, uses: &[Use]) -> Option<(NodeId, bool)> {
    let each = uses.iter().map(|u| match *u {
        Use::Node(n, 1) if model.node(n).is("Gemm") => {
            let plain = model.node(n).int_or("transB", 0) == 1 && model.node(n).float("alpha").unwrap_or(1.0) == 1.0;
            plain.then_some((n, false))
        }
        Use::Node(n, 0) if model.node(n).is("Transpose") => {
            let turns = model.node(n).ints("perm").is_none_or(|p| p == [1, 0]);
            let out = model.value(model.node(n).output(0)?);
            let product = |u: &Use| match *u {
                Use::Node(n, 1) if model.node(n).is("MatMul") => Some(n),
                _ => None,
            };
            let products: Option<Vec<NodeId>> = out.uses().iter().map(product).collect();
            Some((*products?.first()?, true)).filter(|_| turns)
        }
        _ => None,
    });
    let each: Vec<(NodeId, bool)> = each.collect::<Option<_>>()?;
    let first = *each.first()?;
    let main = |n: NodeId| model.node(n).graph() == model.main_id();
    each.iter()
        .all(|(n, turned)| *turned == first.1 && main(*n))
        .then_some(first)
}

/// A matrix with rows as columns.
fn transposed(t: &Tensor) -> Result<Tensor> {
    let (rows, columns) = (t.dims()[0], t.dims()[1]);
    let floats = t.floats().context("a table of floats")?;
    let floats = ndarray::ArrayView2::from_shape((rows, columns), &floats)?;
    Ok(Tensor::new(&[columns, rows], floats.t().iter().copied().collect()))
}

/// Ties tables again: to the codes of the product, or to its weight as it was where that is not in integers. True when one could not be tied.
pub fn join(model: &mut Model, tied: Vec<Tied>, cx: &mut Context) -> bool {
    let mut left = false;
    for one in tied {
        if model.is_alive(one.product) && model.node(one.product).input(1) == Some(one.weight) {
            one.put_back(model);
        } else if let Some((codes, scales)) = one.codes(model) {
            one.read(model, codes, scales, cx);
        } else {
            left = true;
        }
    }
    left
}

impl Tied {
    fn put_back(&self, model: &mut Model) {
        let shared = match self.turned {
            true => turned(model, self.table),
            false => self.table,
        };
        model.replace_uses(self.weight, shared);
        model.erase_const(self.weight);
    }

    /// The codes that the product reads, and their scales: `DequantizeLinear(codes, scales)`, or `Mul(Cast(codes), scales)`.
    fn codes(&self, model: &Model) -> Option<(ValueId, Tensor)> {
        let made = |v: ValueId| model.value(v).producer().map(|p| model.node(p));
        let weight = model
            .is_alive(self.product)
            .then(|| model.node(self.product).input(1))
            .flatten();
        let maker = made(weight?)?;
        let codes = match maker.op.name.as_str() {
            "DequantizeLinear" => maker.input(0)?,
            "Mul" => made(maker.input(0)?).filter(|n| n.is("Cast"))?.input(0)?,
            _ => return None,
        };
        let scales = model.constant(maker.input(1)?)?;
        let rows = model.constant(self.table)?.dims()[0];
        (scales.len() == rows || scales.len() == 1).then(|| (codes, scales.with_dims(&[scales.len(), 1])))
    }

    /// Reads rows from codes of the product.
    fn read(&self, model: &mut Model, codes: ValueId, scales: Tensor, cx: &mut Context) {
        let name = model.value(self.table).name.clone();
        let rows = if self.turned { turned(model, codes) } else { codes };
        let (one, graph) = (scales.len() == 1, model.main_id());
        let scale_name = model.fresh_name(&format!("{name}_rows_scale"));
        let scales = model.add_const(graph, &scale_name, scales);
        let scale = if one {
            Scale::Shared(scales)
        } else {
            Scale::Rows(scales)
        };
        for &gather in &self.gathers {
            cx.did(model, gather, "rows of the table are read from the codes of a product");
            read(model, gather, rows, &scale);
        }
        model.erase_const(self.table);
    }
}

/// The transpose of a value, in the graph.
fn turned(model: &mut Model, v: ValueId) -> ValueId {
    let name = model.fresh_name(&format!("{}_transposed", model.value(v).name));
    let graph = model.main_id();
    let perm = vec![Attr::ints("perm", vec![1, 0])];
    let (_, out) = model.add_node(graph, &name, "Transpose", &[Some(v)], &[&name], perm);
    out[0]
}
