//! Embedding tables in integers, for all passes that quantize: `Gather(T, i)` becomes `Mul(Cast(Gather(T_q, i)), s)`, so that only rows that are read are ever
//! turned into floats. `DequantizeLinear` along the last axis would give the same numbers, but ONNX Runtime takes longer for it, a
//! third of the time of a small encoder.
//!
//! `T ≈ T_q · s`, one scale for each column, which is the last axis of what the Gather gives out. Elements are gathered, not
//! summed: the error of an element stays its own, so rounding to the nearest code is the best there is. Nothing is cut off: the largest
//! elements of a column may be what one row differs by. (The row of the padding of a MiniLM, which stands at most positions: scales of the least
//! error, 3 dB better for the table, took the outputs from 21 to 8 dB with 5 bits; a scale for each row gave 17 dB.) A table is left alone when
//! something other than a Gather along its rows reads it, or its columns do not fit 8 bits; what a product reads as well shares the product's codes ([`tied`]).
//!
//! Tables that have 8 bits may have fewer where the outputs bear it, tried together with the weights ([`narrow`]).

pub mod narrow;
pub mod tied;

use crate::ir::{Attr, DType, Model, NodeId, Tensor, Use, ValueId};
use crate::math::affine::IntKind;
use crate::math::table::{column_scales, quantize_columns};
use crate::math::vector::all_finite;
use crate::passes::planes::step;
use crate::passes::{Context, Names};
use anyhow::Result;
use std::collections::BTreeMap;

/// Smaller tables are not worth a node.
const LEAST: usize = 4096;
/// Below this signal to noise of the elements a table stays as it is, dB.
const GOOD: f64 = 30.0;

/// A table in integers: rows × columns of int8 codes (of fewer bits: multiples of [`step`]), and a scale for each column.
pub struct Coded {
    codes: Tensor,
    scales: Tensor,
}

impl Coded {
    /// Of a table (rows × columns), with the signal to noise of all elements, dB.
    fn new(table: &[f32], [rows, columns]: [usize; 2], kind: IntKind) -> Result<(Coded, f64)> {
        let scales = column_scales(table, columns, kind)?;
        let mut made = quantize_columns(table, &scales, kind)?;
        let steps = step(kind);
        made.codes.iter_mut().for_each(|q| *q *= steps as i8);
        let coded = Coded {
            codes: Tensor::new(&[rows, columns], made.codes),
            scales: Tensor::new(&[columns], scales.iter().map(|s| s / steps).collect()),
        };
        Ok((coded, 10.0 * (made.signal / made.noise).log10()))
    }
}

/// Quantizes all tables of the main graph; true when there was one. `skip` names nodes that are to be left alone.
///
/// # Errors
/// When a table cannot be read.
pub fn quantize(model: &mut Model, cx: &mut Context, skip: &Names) -> Result<bool> {
    let mut any = false;
    for (table, gathers) in tables(model, DType::Float) {
        if gathers.iter().any(|g| skip.has(&model.label(*g))) {
            continue;
        }
        let Some(t) = model.constant(table) else { continue };
        let (rows, columns) = (t.dims()[0], t.dims()[1]);
        let Some(floats) = t.floats() else { continue };
        let first = gathers[0];
        if !all_finite(&floats) {
            cx.skip(model, first, "its table is not finite: stays in floating point");
            continue;
        }
        let (coded, sqnr) = Coded::new(&floats, [rows, columns], IntKind::S8)?;
        if sqnr < GOOD {
            cx.skip(
                model,
                first,
                format!("its table would have {sqnr:.1} dB in 8 bits: stays in floating point"),
            );
            continue;
        }
        cx.did(
            model,
            first,
            format!("table of {rows} × {columns} in int8, {sqnr:.1} dB"),
        );
        replace(model, table, &gathers, coded);
        any = true;
    }
    Ok(any)
}

/// Quantizes tables, and all else by `rest`, to which it says whether there was a table: a table that a product reads as well shares the codes of the product
/// ([`tied`]). True when anything was quantized.
///
/// # Errors
/// As [`quantize`], and those of `rest`.
pub fn quantize_with(
    model: &mut Model,
    (wanted, skip): (bool, &Names),
    cx: &mut Context,
    rest: impl FnOnce(&mut Model, bool, &mut Context) -> Result<bool>,
) -> Result<bool> {
    if !wanted {
        return rest(model, false, cx);
    }
    let tables = quantize(model, cx, skip)?;
    let tied = tied::part(model, skip)?;
    let done = rest(model, tables, cx)?;
    // What has other codes than those of its product is a table like any other now.
    let more = tied::join(model, tied, cx) && quantize(model, cx, skip)?;
    Ok(tables || done || more)
}

/// Whether a node multiplies rows of a table in integers with their scales.
pub fn is_scaling(model: &Model, node: NodeId) -> bool {
    let made_by = |node: NodeId, op: &str| {
        let input = model.node(node).input(0)?;
        model.value(input).producer().filter(|p| model.node(*p).is(op))
    };
    let gather = made_by(node, "Cast").and_then(|cast| made_by(cast, "Gather"));
    let table = gather.and_then(|g| model.constant(model.node(g).input(0)?));
    model.node(node).is("Mul") && table.is_some_and(|t| t.dtype() == DType::Int8)
}

/// Constant tables of a type that only Gathers along axis 0 in the main graph read, and these.
fn tables(model: &Model, of: DType) -> BTreeMap<ValueId, Vec<NodeId>> {
    let mut all: BTreeMap<ValueId, Vec<NodeId>> = BTreeMap::new();
    for (id, n) in model.nodes() {
        let Some(table) = n.input(0).filter(|_| n.is("Gather") && n.graph() == model.main_id()) else {
            continue;
        };
        let Some(t) = model.constant(table).filter(|t| t.dtype() == of) else {
            continue;
        };
        let rows = matches!(n.int_or("axis", 0), 0 | -2) && !n.has_attr_refs();
        if rows && t.dims().len() == 2 && t.dims()[0].saturating_mul(t.dims()[1]) >= LEAST {
            all.entry(table).or_default().push(id);
        }
    }
    all.retain(|table, gathers| {
        let known = |u: &Use| matches!(u, Use::Node(n, 0) if gathers.contains(n));
        model.value(*table).uses().iter().all(known)
    });
    all
}

fn replace(model: &mut Model, table: ValueId, gathers: &[NodeId], coded: Coded) {
    let graph = model.main_id();
    let name = model.value(table).name.clone();
    let mut constant = |suffix: &str, t: Tensor| {
        let name = model.fresh_name(&format!("{name}_{suffix}"));
        model.add_const(graph, &name, t)
    };
    let codes = constant("quantized", coded.codes);
    let scale = Scale::Shared(constant("scale", coded.scales));
    gathers.iter().for_each(|&gather| read(model, gather, codes, &scale));
    model.erase_const(table);
}

/// What rows of codes are multiplied with.
enum Scale {
    /// The same for all rows.
    Shared(ValueId),
    /// A scale for each row, one below the other.
    Rows(ValueId),
}

/// Lets a Gather read codes, and multiplies what it gives with the scales.
fn read(model: &mut Model, gather: NodeId, codes: ValueId, scale: &Scale) {
    let graph = model.main_id();
    let at = model.node(gather).input(1);
    model.set_input(gather, 0, Some(codes));
    let Some(out) = model.node(gather).output(0) else {
        return;
    };
    let name = model.value(out).name.clone();
    let mut after = |op: &str, inputs: &[Option<ValueId>], attrs: Vec<Attr>| {
        let node = format!("{}_{op}", model.label(gather));
        let made = model.fresh_name(&format!("{name}_{op}_Output"));
        model.add_node(graph, &node, op, inputs, &[&made], attrs)
    };
    let (cast, floats) = after("Cast", &[Some(out)], vec![Attr::int("to", DType::Float as i64)]);
    let scale = match *scale {
        Scale::Shared(scale) => scale,
        Scale::Rows(scales) => after("Gather", &[Some(scales), at], Vec::new()).1[0],
    };
    let (_, rows) = after("Mul", &[Some(floats[0]), Some(scale)], Vec::new());
    model.replace_uses_where(out, rows[0], |u| !matches!(u, Use::Node(n, _) if *n == cast));
    let inner = model.fresh_name(&format!("{name}_quantized"));
    model.forget_type(out);
    model.rename(out, inner);
    model.rename(rows[0], name);
}
