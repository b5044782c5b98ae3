//! One layer becomes two. The node that was there becomes the second: its output keeps name and type, its readers see
//! nothing. The first takes over how the input is read (strides, pads, transposition).

use super::fit::Plan;
use crate::analysis::sites::{Site, float_tensor};
use crate::ir::{Attr, DType, Model, Origin, Tensor, ValueId};
use anyhow::{Context as _, Result};
use ndarray::Array2;

/// True for a Gemm whose bias is broadcast by the rules of opset 6.
pub fn too_old(model: &Model, site: &Site) -> bool {
    let node = model.node(site.node);
    node.is("Gemm") && model.opset_of(site.node) < 7
}

/// Puts the factors in place of the weight.
///
/// # Errors
/// When the weight is no float tensor any more.
pub fn replace(model: &mut Model, plan: &Plan) -> Result<()> {
    let site = &plan.site;
    let weight = model.value(site.weight);
    let (base, graph) = (weight.name.clone(), weight.graph());
    let dtype = model.constant(site.weight).context("the weight is gone")?.dtype();
    let factor = |model: &mut Model, matrix: &Array2<f32>, which: &str| {
        let tensor = factor(site, dtype, matrix)?;
        let name = model.fresh_name(&format!("{base}_{which}"));
        anyhow::Ok(model.add_const(graph, &name, tensor))
    };
    let first = factor(model, &plan.first, "lr0")?;
    let second = factor(model, &plan.second, "lr1")?;
    let hidden = add_first(model, site, first, plan.rank, dtype)?;
    become_second(model, site, second, hidden);
    if let Some(bias) = &plan.bias {
        set_bias(model, site, bias, dtype)?;
    }
    let old = model.value(site.weight);
    if old.uses().is_empty() && old.origin() == Origin::Const {
        model.erase_const(site.weight);
    }
    Ok(())
}

/// A factor (outputs × inputs) as a weight tensor of the site's operator, oriented as the old one.
fn factor(site: &Site, dtype: DType, matrix: &Array2<f32>) -> Result<Tensor> {
    let (out, inputs) = matrix.dim();
    if site.layout.out_axis == 0 {
        let mut dims = vec![1; site.dims().len()];
        (dims[0], dims[1]) = (out, inputs);
        return float_tensor(dtype, &dims, matrix.iter().copied().collect());
    }
    float_tensor(dtype, &[inputs, out], matrix.t().iter().copied().collect())
}

/// Adds the node from the old input to the inner activation, which is returned.
fn add_first(model: &mut Model, site: &Site, weight: ValueId, rank: usize, dtype: DType) -> Result<ValueId> {
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
    inputs[site.input_slot] = Some(site.input);
    if op == "Gemm" {
        // alpha and beta stay with the second.
        attrs.retain(|a| !matches!(a.name(), "alpha" | "beta"));
        if model.opset_of(site.node) < 11 {
            // C may be left out from opset 11 on.
            let dims: &[usize] = if site.layout.output_axis == -1 {
                &[rank]
            } else {
                &[rank, 1]
            };
            let zero = float_tensor(dtype, dims, vec![0.0; rank])?;
            let zero_name = model.fresh_name(&format!("{name}_lr0_bias"));
            inputs.push(Some(model.add_const(graph, &zero_name, zero)));
        }
    }
    let (_, outputs) = model.add_node(
        graph,
        &format!("{name}_lr0"),
        &op,
        &inputs,
        &[&format!("{y}_lr0")],
        attrs,
    );
    outputs.first().copied().context("a node has an output")
}

/// Makes the old node read the inner activation through the second factor.
fn become_second(model: &mut Model, site: &Site, weight: ValueId, hidden: ValueId) {
    model.set_input(site.node, site.slot, Some(weight));
    model.set_input(site.node, site.input_slot, Some(hidden));
    let node = model.node_mut(site.node);
    if !node.name().is_empty() {
        node.rest.name = Some(format!("{}_lr1", node.name()));
    }
    if let Some(window) = &site.layout.window {
        for name in ["strides", "pads", "dilations", "auto_pad"] {
            node.remove_attr(name);
        }
        node.set_attr(Attr::ints("kernel_shape", vec![1; window.kernel.len()]));
    } else if node.is("Gemm") {
        node.remove_attr(if site.input_slot == 0 { "transA" } else { "transB" });
    }
}

/// Makes `bias` what is added to the output.
fn set_bias(model: &mut Model, site: &Site, bias: &[f32], dtype: DType) -> Result<()> {
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
