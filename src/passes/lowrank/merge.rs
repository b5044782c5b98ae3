//! Neighbours with nothing between them are one layer: `W₂ (W₁ x + b₁) + b₂ = (W₂ W₁) x + (W₂ b₁ + b₂)`.
//!
//! Dense layers that multiply along the last axis; a convolution of any kernel and a 1×1 after it; a 1×1 and a convolution of any
//! kernel after it, where that one does not pad or the first has no bias (its padding is zeros, not `b₁`). The one layer takes
//! the geometry of the larger kernel. Exact up to rounding; only where weights and multiply-adds both fall, so a pair of factors is
//! never multiplied back. Done before layers are factored, and again after that: the last factor of one and the first of the next.

use super::{fit, rewrite};
use crate::analysis::sites::{Site, float_tensor, site};
use crate::ir::{Attr, Model, NodeId, ValueId};
use crate::math::decompose::matmul;
use crate::ops::site::{Pads, Window};
use crate::passes::Context;
use anyhow::{Context as _, Result};
use ndarray::{Array1, Array2, Axis};

/// What tells how windows are cut.
const GEOMETRY: [&str; 5] = ["kernel_shape", "strides", "pads", "dilations", "auto_pad"];

/// Two layers that can be one.
struct Pair {
    first: Site,
    second: Site,
    /// Weights of the one, as a part of those of both.
    part: f64,
    /// What the first adds to its output, unless that is nothing.
    bias: Option<Vec<f32>>,
}

/// Makes one layer of every two neighbours where that saves weights and multiply-adds; nodes that are not `free` stay.
///
/// # Errors
/// When a weight is no float tensor.
pub fn neighbours(model: &mut Model, cx: &mut Context, free: impl Fn(&Model, NodeId) -> bool) -> Result<()> {
    loop {
        let mut merged = false;
        for id in model.node_ids() {
            while let Some(pair) = free_pair(model, id, &free) {
                let first = model.label(pair.first.node);
                let saved = 100.0 * (1.0 - pair.part);
                cx.did(
                    model,
                    id,
                    format!("one layer with {first} before it: −{saved:.0} % weights"),
                );
                merge(model, &pair)?;
                merged = true;
            }
        }
        if !merged {
            return Ok(());
        }
    }
}

fn free_pair(model: &Model, id: NodeId, free: impl Fn(&Model, NodeId) -> bool) -> Option<Pair> {
    let second = model.is_alive(id).then(|| site(model, id))??.ok()?;
    pair(model, second).filter(|p| free(model, p.first.node) && free(model, p.second.node))
}

/// The layer before a site, when both can be one that is cheaper.
fn pair(model: &Model, second: Site) -> Option<Pair> {
    let first = before(model, &second)?;
    let graph = |s: &Site| model.node(s.node).graph();
    let dtype = |s: &Site| model.constant(s.weight).map(|t| t.dtype());
    if model.only_use(second.input) != Some((second.node, second.input_slot))
        || first.shared
        || second.shared
        || graph(&first) != graph(&second)
        || dtype(&first) != dtype(&second)
        || first.outputs() != second.inputs()
        || rewrite::too_old(model, &second)
    {
        return None;
    }
    let bias = first.bias_values(model)?;
    let bias = bias.iter().any(|&b| b != 0.0).then_some(bias);
    if bias.is_some() && fit::free_bias(model, &second).is_none() {
        return None;
    }
    let spread = match (&first.layout.window, &second.layout.window) {
        (None, None) => {
            let axes = [
                first.layout.input_axis,
                first.layout.output_axis,
                second.layout.input_axis,
            ];
            (axes == [-1; 3]).then_some(1)?
        }
        (Some(a), Some(b))
            if first.layout.groups == 1 && second.layout.groups == 1 && !a.transposed && !b.transposed =>
        {
            match (still(a), still(b)) {
                (_, true) => 1,
                (true, _) if bias.is_none() || !pads(b) => b.strides.iter().product(),
                _ => return None,
            }
        }
        _ => return None,
    };
    let size = |s: &Site| s.dims().iter().product::<usize>() as f64;
    let (a, b) = (size(&first), size(&second));
    let one = (second.outputs() * first.inputs() * first.taps() * second.taps()) as f64;
    (one < a + b && one < a * spread as f64 + b).then(|| Pair {
        part: one / (a + b),
        first,
        second,
        bias,
    })
}

/// The site whose output, bias included, a site reads.
fn before(model: &Model, second: &Site) -> Option<Site> {
    let producer = model.value(second.input).producer()?;
    let at = |id: NodeId| site(model, id)?.ok();
    if let Some(first) = at(producer) {
        return Some(first);
    }
    let ends = |s: &Site| s.bias.is_some_and(|b| b.node == producer);
    (0..2).find_map(|slot| at(model.input_producer(producer, slot)?).filter(ends))
}

/// True when every output position is made of the input at the same position.
fn still(w: &Window) -> bool {
    w.kernel.iter().chain(&w.strides).all(|&x| x == 1)
        && !matches!(&w.pads, Pads::Explicit(p) if p.iter().any(|&x| x > 0))
}

fn pads(w: &Window) -> bool {
    !matches!(&w.pads, Pads::Explicit(p) if p.iter().all(|&x| x == 0))
}

fn merge(model: &mut Model, pair: &Pair) -> Result<()> {
    let Pair {
        first, second, bias, ..
    } = pair;
    let scale = f64::from(first.layout.scale);
    let a = first.matrix(model)?.mapv(|x| f64::from(x) * scale);
    let b = second.matrix(model)?.mapv(f64::from);
    let dtype = model.constant(second.weight).context("the weight is gone")?.dtype();
    let total = bias.as_ref().and_then(|bias| {
        // Of a kernel, every tap sees the bias.
        let taps = second.taps();
        let inner = Array1::from_shape_fn(b.ncols(), |i| f64::from(bias[i / taps]));
        let through = b.dot(&inner) * f64::from(second.layout.scale);
        let own = second.bias_values(model)?;
        let sum = own.iter().zip(&through).map(|(x, y)| (f64::from(*x) + y) as f32);
        Some(sum.collect::<Vec<f32>>())
    });
    let window = [first, second].map(|s| s.layout.window.as_ref());
    let larger = match second.taps() > 1 || window[0].is_some_and(still) {
        true => window[1],
        false => window[0],
    };
    let (product, taps) = (product(&a, &b, second.taps()), first.taps() * second.taps());
    let (out, columns) = product.dim();
    let tensor = match second.layout.out_axis {
        0 => {
            let kernel = larger.map_or(&[][..], |w| &w.kernel);
            let dims = [&[out, columns / taps], kernel].concat();
            float_tensor(dtype, &dims, product.iter().map(|&x| x as f32).collect())?
        }
        _ => float_tensor(dtype, &[columns, out], product.t().iter().map(|&x| x as f32).collect())?,
    };
    let geometry: Option<Vec<Attr>> = (larger == window[0] && larger.is_some()).then(|| {
        let attrs = model.node(first.node).attrs.iter();
        attrs.filter(|a| GEOMETRY.contains(&a.name())).cloned().collect()
    });
    if let Some(geometry) = geometry {
        let node = model.node_mut(second.node);
        GEOMETRY.iter().for_each(|name| {
            node.remove_attr(name);
        });
        geometry.into_iter().for_each(|a| node.set_attr(a));
    }
    let graph = model.node(second.node).graph();
    let name = model.fresh_name(&format!("{}_merged", model.value(second.weight).name));
    let weight = model.add_const(graph, &name, tensor);
    model.set_input(second.node, second.slot, Some(weight));
    if let Some(total) = total {
        rewrite::set_bias(model, second, &total, dtype)?;
    }
    model.set_input(second.node, second.input_slot, Some(first.input));
    erase(model, first, second.weight);
    Ok(())
}

/// `out × (in · taps)`, of `a` (hidden × in·its taps) and then `b` (out × hidden·taps); one of them has a single tap.
fn product(a: &Array2<f64>, b: &Array2<f64>, taps: usize) -> Array2<f64> {
    if taps == 1 {
        return matmul(b.view(), a.view());
    }
    let mut all = Array2::zeros((b.nrows(), a.ncols() * taps));
    for t in 0..taps {
        let tap: Vec<usize> = (0..a.nrows()).map(|h| h * taps + t).collect();
        let part = matmul(b.select(Axis(1), &tap).view(), a.view());
        for (c, column) in part.columns().into_iter().enumerate() {
            all.column_mut(c * taps + t).assign(&column);
        }
    }
    all
}

/// Takes out a layer that nothing reads any more, and a weight.
fn erase(model: &mut Model, site: &Site, weight: ValueId) {
    if let Some(bias) = site.bias.filter(|b| b.node != site.node) {
        model.erase(bias.node);
    }
    model.erase(site.node);
    let old = [Some(weight), Some(site.weight), site.bias.map(|b| b.value)];
    for value in old.into_iter().flatten() {
        model.erase_unused_const(value);
    }
}
