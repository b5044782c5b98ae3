//! One layer becomes several. The node that was there becomes the last: its output keeps name and type, its readers see
//! nothing. The first takes over how the input is read (transposition); of a convolution, each takes the strides and pads of
//! the axes that it covers.

use super::ladder::{Chain, Covers, Layer};
use crate::analysis::sites::{Site, float_tensor};
use crate::ir::{Attr, DType, Model, Node, Origin, Tensor, ValueId};
use anyhow::{Context as _, Result};
use ndarray::ArrayView2;

/// True for a Gemm whose bias is broadcast by the rules of opset 6.
pub fn too_old(model: &Model, site: &Site) -> bool {
    let node = model.node(site.node);
    node.is("Gemm") && model.opset_of(site.node) < 7
}

/// Puts the layers of a chain in place of a site.
///
/// # Errors
/// When the weight is no float tensor any more.
pub fn replace(model: &mut Model, site: &Site, chain: &Chain) -> Result<()> {
    let weight = model.value(site.weight);
    let (base, graph) = (weight.name.clone(), weight.graph());
    let dtype = model.constant(site.weight).context("the weight is gone")?.dtype();
    let mut weights = Vec::new();
    for (i, layer) in chain.layers.iter().enumerate() {
        let tensor = tensor(site, dtype, layer)?;
        let name = model.fresh_name(&format!("{base}_lr{i}"));
        weights.push(model.add_const(graph, &name, tensor));
    }
    let (Some((last, layers)), Some((last_weight, weights))) = (chain.layers.split_last(), weights.split_last()) else {
        anyhow::bail!("a chain without layers");
    };
    let mut hidden = site.input;
    for (i, (layer, weight)) in layers.iter().zip(weights).enumerate() {
        hidden = add_layer(model, site, layer, *weight, i, hidden, dtype)?;
    }
    become_last(model, site, last, *last_weight, hidden, layers.len());
    if let Some(bias) = &chain.bias {
        set_bias(model, site, bias, dtype)?;
    }
    model.erase_unused_const(site.weight);
    Ok(())
}

/// The kernel of a layer: that of the old one on the axes that it covers, 1 elsewhere.
fn kernel(site: &Site, covers: Covers) -> Vec<usize> {
    let whole = site.layout.window.as_ref().map_or(&[][..], |w| &w.kernel);
    let taken = |i: usize| match covers {
        Covers::Nothing => false,
        Covers::Everything => true,
        Covers::Axis(a) => a == i,
    };
    whole
        .iter()
        .enumerate()
        .map(|(i, &k)| if taken(i) { k } else { 1 })
        .collect()
}

/// A layer's matrix as a weight tensor of the site's operator, oriented as the old one.
fn tensor(site: &Site, dtype: DType, layer: &Layer) -> Result<Tensor> {
    let matrix: ArrayView2<f32> = layer.weight.view();
    let (out, columns) = matrix.dim();
    if site.layout.out_axis == 0 {
        let kernel = kernel(site, layer.covers);
        let taps: usize = kernel.iter().product();
        let dims = [&[out, columns / taps.max(1)], kernel.as_slice()].concat();
        return float_tensor(dtype, &dims, matrix.iter().copied().collect());
    }
    float_tensor(dtype, &[columns, out], matrix.t().iter().copied().collect())
}

/// Adds layer number `i` behind `input`; gives its output.
fn add_layer(
    model: &mut Model,
    site: &Site,
    layer: &Layer,
    weight: ValueId,
    i: usize,
    input: ValueId,
    dtype: DType,
) -> Result<ValueId> {
    let node = model.node(site.node);
    let (op, graph, mut attrs) = (node.op.name.clone(), node.graph(), node.attrs.clone());
    let y = node.output(0).map(|v| model.value(v).name.clone()).unwrap_or_default();
    let name = if node.name().is_empty() {
        y.clone()
    } else {
        node.name().to_owned()
    };
    let mut inputs = vec![None; 2];
    inputs[site.slot] = Some(weight);
    inputs[site.input_slot] = Some(input);
    if op == "Gemm" {
        // alpha and beta stay with the last.
        attrs.retain(|a| !matches!(a.name(), "alpha" | "beta"));
        if model.opset_of(site.node) < 11 {
            // C may be left out from opset 11 on.
            let rank = layer.weight.view().nrows();
            let dims: &[usize] = if site.layout.output_axis == -1 {
                &[rank]
            } else {
                &[rank, 1]
            };
            let zero = float_tensor(dtype, dims, vec![0.0; rank])?;
            let zero_name = model.fresh_name(&format!("{name}_lr{i}_bias"));
            inputs.push(Some(model.add_const(graph, &zero_name, zero)));
        }
    }
    let (added, outputs) = model.add_node(
        graph,
        &format!("{name}_lr{i}"),
        &op,
        &inputs,
        &[&format!("{y}_lr{i}")],
        attrs,
    );
    cover(model.node_mut(added), site, layer.covers);
    outputs.first().copied().context("a node has an output")
}

/// Leaves a convolution the geometry of the axes that it covers.
fn cover(node: &mut Node, site: &Site, covers: Covers) {
    let Some(window) = &site.layout.window else { return };
    if covers == Covers::Everything {
        return;
    }
    let ints = |list: Vec<usize>| list.into_iter().map(|x| x as i64).collect::<Vec<_>>();
    node.set_attr(Attr::ints("kernel_shape", ints(kernel(site, covers))));
    let Covers::Axis(axis) = covers else {
        for name in ["strides", "pads", "dilations", "auto_pad"] {
            node.remove_attr(name);
        }
        return;
    };
    let rank = window.kernel.len();
    for (name, neutral) in [("strides", 1), ("dilations", 1), ("pads", 0)] {
        if let Some(list) = node.ints(name) {
            let keep = |(i, &x): (usize, &i64)| if i % rank == axis { x } else { neutral };
            let list = list.iter().enumerate().map(keep).collect();
            node.set_attr(Attr::ints(name, list));
        }
    }
}

/// Makes the old node read the inner activation through the last layer.
fn become_last(model: &mut Model, site: &Site, layer: &Layer, weight: ValueId, hidden: ValueId, number: usize) {
    model.set_input(site.node, site.slot, Some(weight));
    model.set_input(site.node, site.input_slot, Some(hidden));
    let node = model.node_mut(site.node);
    if !node.name().is_empty() {
        node.rest.name = Some(format!("{}_lr{number}", node.name()));
    }
    if node.is("Gemm") {
        node.remove_attr(if site.input_slot == 0 { "transA" } else { "transB" });
    }
    cover(node, site, layer.covers);
}

/// Makes `bias` what is added to the output of a site that has a bias or can have one.
///
/// # Errors
/// When `dtype` is no float type.
pub fn set_bias(model: &mut Model, site: &Site, bias: &[f32], dtype: DType) -> Result<()> {
    let graph = model.node(site.node).graph();
    let along_last = site.layout.output_axis != -2;
    let dims = match site.bias.and_then(|b| model.constant(b.value)) {
        Some(old) if old.len() == bias.len() => old.dims().to_vec(),
        _ if along_last => vec![bias.len()],
        _ => vec![bias.len(), 1],
    };
    let tensor = float_tensor(dtype, &dims, bias.to_vec())?;
    match site.bias {
        Some(old) if site.owns_bias(model) && model.value(old.value).origin() == Origin::Const => {
            model.set_const(old.value, tensor);
        }
        _ => {
            let (node, slot, base) = match site.bias {
                Some(b) => (b.node, b.slot, model.value(b.value).name.clone()),
                None => (site.node, 2, format!("{}_bias", model.value(site.weight).name)),
            };
            let name = model.fresh_name(&format!("{base}_lr1"));
            let value = model.add_const(graph, &name, tensor);
            model.set_input(node, slot, Some(value));
        }
    }
    if site.bias.is_some_and(|b| b.scale != 1.0) || site.layout.bias_scale != 1.0 {
        model.node_mut(site.node).remove_attr("beta");
    }
    Ok(())
}
