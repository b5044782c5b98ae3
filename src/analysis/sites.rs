//! The places where a constant weight meets an activation, and their weights as matrices.
//!
//! Every site computes `y = scale · W x + b` with one `out × in` matrix per group. [`Site::matrix`] gives `W` with groups stacked by rows; the
//! columns are ordered like the rows `x` that [`Site::patch`] cuts out of the activation, so a Gram matrix measured with
//! that patch fits without further ado: `tr((W−Ŵ) G (W−Ŵ)ᵀ)` is the mean squared error of the output at one place.
//!
//! For ConvTranspose `x` is one input position and `y` the whole window (out · kernel numbers) that it is spread over;
//! windows overlap and add up, so errors per window tell the output's error only roughly.

use super::stats::Patch;
use crate::ir::{DType, Model, NodeId, Tensor, Use, ValueId};
use crate::ops::site::{self, Layout, Pads, Window};
use anyhow::{Context as _, Result, ensure};
use ndarray::{Array2, ArrayView2};
use std::ops::Range;

/// A constant weight, the activation that it multiplies, and how.
#[derive(Clone, Debug)]
pub struct Site {
    /// The node that multiplies.
    pub node: NodeId,
    /// The input of the node that is the weight.
    pub slot: usize,
    /// The weight: a constant float tensor (float, double, float16 or bfloat16), not empty.
    pub weight: ValueId,
    /// True when something else reads the weight too: changing it in place would change that.
    pub shared: bool,
    /// The input of the node that is the activation.
    pub input_slot: usize,
    /// The activation.
    pub input: ValueId,
    /// What is added to the product.
    pub bias: Option<Bias>,
    /// Axes, groups, factors, windows.
    pub layout: Layout,
    /// How rows `x` are cut out of the activation.
    pub patch: Patch,
    dims: Vec<usize>,
}

/// What is added to the product of a [`Site`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Bias {
    /// The node that adds it: the site's own, or an Add after a MatMul that reads nothing else.
    pub node: NodeId,
    /// Its input there.
    pub slot: usize,
    /// The value; a constant or not (an Add's always is).
    pub value: ValueId,
    /// What it is multiplied with (Gemm's `beta`).
    pub scale: f32,
}

/// Every site of the model, in the order of its nodes; sub-graphs are included, function bodies are not.
pub fn sites(model: &Model) -> Vec<Site> {
    model
        .node_ids()
        .into_iter()
        .filter_map(|n| site(model, n)?.ok())
        .collect()
}

/// The site at a node: `None` when its operator has no weight, or none of its inputs is constant, or all are; an error when it has a
/// weight that cannot be used, with the reason.
pub fn site(model: &Model, id: NodeId) -> Option<Result<Site, &'static str>> {
    let node = model.node(id);
    let op = site::find(node)?;
    let constant = |slot: usize| node.input(slot).is_some_and(|v| model.constant(v).is_some());
    let &(slot, input_slot) = op.slots.iter().find(|(w, x)| constant(*w) && !constant(*x))?;
    Some(read(model, id, op, slot, input_slot))
}

fn read(model: &Model, id: NodeId, op: &site::SiteOp, slot: usize, input_slot: usize) -> Result<Site, &'static str> {
    let node = model.node(id);
    let (Some(weight), Some(input)) = (node.input(slot), node.input(input_slot)) else {
        return Err("an input is missing");
    };
    let tensor = model.constant(weight).ok_or("its weight is not constant")?;
    if in_function(model, id) || node.has_attr_refs() {
        return Err("it is in a function body");
    }
    if !matches!(
        tensor.dtype(),
        DType::Float | DType::Double | DType::Float16 | DType::Bfloat16
    ) {
        return Err("its weight is not a float tensor");
    }
    if tensor.is_empty() {
        return Err("its weight is empty");
    }
    let layout = (op.layout)(node, slot, tensor.dims())?;
    Ok(Site {
        node: id,
        slot,
        weight,
        shared: model.value(weight).uses().len() > 1,
        input_slot,
        input,
        bias: bias(model, id, op, &layout),
        patch: patch(model, input, &layout),
        layout,
        dims: tensor.dims().to_vec(),
    })
}

fn in_function(model: &Model, id: NodeId) -> bool {
    let mut graph = model.node(id).graph();
    while let Some(parent) = model.graph(graph).parent() {
        graph = model.node(parent).graph();
    }
    model.graph(graph).function.is_some()
}

fn bias(model: &Model, id: NodeId, op: &site::SiteOp, layout: &Layout) -> Option<Bias> {
    let node = model.node(id);
    if let Some(slot) = op.bias {
        return Some(Bias {
            node: id,
            slot,
            value: node.input(slot)?,
            scale: layout.bias_scale,
        });
    }
    let (add, slot) = model.only_use(node.output(0)?)?;
    let reader = model.node(add);
    if !reader.is("Add") || reader.graph() != node.graph() || model.opset_of(add) < 7 || slot > 1 {
        return None;
    }
    let value = reader.input(1 - slot)?;
    let dims = model.constant(value)?.dims();
    // Along y's axis it may vary (or be one number), along all others it must not.
    let from_end = usize::try_from(-layout.output_axis).ok()?;
    let varies = |i: usize| dims[i] != 1 && dims.len() - i != from_end;
    if (0..dims.len()).any(varies) {
        return None;
    }
    Some(Bias {
        node: add,
        slot: 1 - slot,
        value,
        scale: 1.0,
    })
}

fn patch(model: &Model, input: ValueId, layout: &Layout) -> Patch {
    let Some(window) = &layout.window else {
        return Patch::Axis(layout.input_axis);
    };
    let ones = vec![1; window.kernel.len()];
    let still = Window {
        kernel: ones.clone(),
        strides: ones.clone(),
        dilations: ones,
        pads: Pads::Explicit(vec![0; 2 * window.kernel.len()]),
        transposed: false,
    };
    let window = if window.transposed { &still } else { window };
    let pads = explicit_pads(window, &spatial_dims(model, input, window.kernel.len()));
    let each_once = window.kernel.iter().chain(&window.strides).all(|&x| x == 1) && pads.iter().all(|&p| p == 0);
    if layout.groups == 1 && each_once {
        return Patch::Axis(layout.input_axis);
    }
    Patch::Windows {
        kernel: window.kernel.clone(),
        strides: window.strides.clone(),
        pads,
        dilations: window.dilations.clone(),
        groups: layout.groups,
    }
}

/// Declared sizes of the last `rank` axes; `None` where they are not known.
fn spatial_dims(model: &Model, value: ValueId, rank: usize) -> Vec<Option<usize>> {
    use crate::pb::{tensor_shape_proto::dimension::Value, type_proto};
    let declared = || {
        let Some(type_proto::Value::TensorType(t)) = &model.declared_type(value)?.value else {
            return None;
        };
        let dims = &t.shape.as_ref()?.dim;
        let last = &dims[dims.len().checked_sub(rank)?..];
        let known = last.iter().map(|d| match d.value {
            Some(Value::DimValue(n)) => usize::try_from(n).ok(),
            _ => None,
        });
        Some(known.collect())
    };
    declared().unwrap_or_else(|| vec![None; rank])
}

/// Begins, then ends. An unknown size under `SAME` is taken for a multiple of the stride.
fn explicit_pads(window: &Window, sizes: &[Option<usize>]) -> Vec<usize> {
    let upper = match &window.pads {
        Pads::Explicit(pads) => return pads.clone(),
        Pads::SameUpper => true,
        Pads::SameLower => false,
    };
    let rank = window.kernel.len();
    let mut pads = vec![0; 2 * rank];
    for i in 0..rank {
        let stride = window.strides[i];
        let reach = (window.kernel[i].saturating_sub(1)).saturating_mul(window.dilations[i]);
        let last_step = match sizes[i].map_or(0, |n| n % stride) {
            0 => stride,
            rest => rest,
        };
        let total = reach.saturating_add(1).saturating_sub(last_step);
        let (less, more) = (total / 2, total - total / 2);
        (pads[i], pads[rank + i]) = if upper { (less, more) } else { (more, less) };
    }
    pads
}

impl Site {
    /// Dimensions of the weight tensor.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Number of kernel taps; 1 for dense layers.
    pub fn taps(&self) -> usize {
        self.layout.window.as_ref().map_or(1, |w| w.kernel.iter().product())
    }

    /// True for a ConvTranspose.
    pub fn is_transposed(&self) -> bool {
        self.layout.window.as_ref().is_some_and(|w| w.transposed)
    }

    /// Number of outputs, of all groups.
    pub fn outputs(&self) -> usize {
        self.dims[self.layout.out_axis] * if self.is_transposed() { self.layout.groups } else { 1 }
    }

    /// Number of inputs, of all groups.
    pub fn inputs(&self) -> usize {
        let conv = self.layout.window.as_ref().is_some_and(|w| !w.transposed);
        self.dims[self.layout.in_axis] * if conv { self.layout.groups } else { 1 }
    }

    /// True for a dense layer or a convolution that looks at single positions: one `out × in` matrix, no groups.
    pub fn is_pointwise(&self) -> bool {
        self.layout.groups == 1 && self.taps() == 1
    }

    /// Rows of the matrix that belong to group `group`; their inputs are those of that group's Gram matrix.
    pub fn rows(&self, group: usize) -> Range<usize> {
        let each = self.dims.iter().product::<usize>() / self.columns().max(1) / self.layout.groups;
        group * each..(group + 1) * each
    }

    /// The output that a row of the matrix belongs to, and its place along [`Layout::out_axis`]: of a ConvTranspose every tap is a row, and
    /// all groups share the places.
    pub fn output(&self, row: usize) -> (usize, usize) {
        if !self.is_transposed() {
            return (row, row);
        }
        let place = row % self.rows(0).end / self.taps().max(1);
        (row / self.rows(0).end * self.dims[self.layout.out_axis] + place, place)
    }

    /// Length of a row `x`: columns of the matrix.
    pub fn columns(&self) -> usize {
        match &self.layout.window {
            Some(w) if !w.transposed => self.dims[1..].iter().product(),
            Some(_) => self.dims[0] / self.layout.groups,
            None => self.dims[self.layout.in_axis],
        }
    }

    /// The weight as a matrix, without [`Layout::scale`]: rows are outputs, group after group, columns as in the rows `x` of the patch.
    ///
    /// Conv `[M, C/g, k…]`: `M × (C/g · k…)`. ConvTranspose `[C, M/g, k…]`: `(g · M/g · k…) × C/g`. Gemm, MatMul: `out × in`.
    ///
    /// # Errors
    /// When the weight was replaced by one of another shape or type since the site was found.
    pub fn matrix(&self, model: &Model) -> Result<Array2<f32>> {
        let data = self
            .tensor(model)?
            .to_f32()
            .context("its weight is not a float tensor")?;
        let data = self.places().map(|i| data[i]).collect();
        Ok(Array2::from_shape_vec(
            (self.rows(self.layout.groups).start, self.columns()),
            data,
        )?)
    }

    /// A weight tensor, of the old one's type and dimensions, from a matrix as [`Site::matrix`] gives it.
    ///
    /// # Errors
    /// When the matrix has another shape, or the weight was replaced by one of another shape or type.
    pub fn tensor_of(&self, model: &Model, matrix: ArrayView2<f32>) -> Result<Tensor> {
        let old = self.tensor(model)?;
        ensure!(
            matrix.dim() == (self.rows(self.layout.groups).start, self.columns()),
            "a matrix of {:?} does not fit a weight of {:?}",
            matrix.dim(),
            self.dims
        );
        let mut data = vec![0.0f32; old.len()];
        for (i, &x) in self.places().zip(matrix.iter()) {
            data[i] = x;
        }
        float_tensor(old.dtype(), &self.dims, data)
    }

    fn tensor<'m>(&self, model: &'m Model) -> Result<&'m Tensor> {
        let t = model.constant(self.weight);
        let t = t.with_context(|| format!("{} is not constant", model.value(self.weight).name))?;
        ensure!(
            t.dims() == self.dims,
            "{} has changed its dimensions",
            model.value(self.weight).name
        );
        Ok(t)
    }

    /// Where the matrix' entries, row by row, lie in the tensor.
    fn places(&self) -> Box<dyn Iterator<Item = usize>> {
        let d = &self.dims;
        match &self.layout.window {
            Some(w) if !w.transposed => Box::new(0..d.iter().product()),
            Some(_) => {
                let groups = self.layout.groups;
                let (per, inner) = (d[0] / groups, d[1..].iter().product::<usize>());
                Box::new((0..groups).flat_map(move |g| {
                    (0..inner).flat_map(move |row| (0..per).map(move |c| (g * per + c) * inner + row))
                }))
            }
            None if self.layout.out_axis == 0 => Box::new(0..d[0] * d[1]),
            None => {
                let (rows, cols) = (d[1], d[0]);
                Box::new((0..rows).flat_map(move |r| (0..cols).map(move |c| c * rows + r)))
            }
        }
    }

    /// What is added to every output, [`Bias::scale`] included: zeros when there is no bias; `None` when it is not constant or varies along other axes.
    pub fn bias_values(&self, model: &Model) -> Option<Vec<f32>> {
        let Some(bias) = self.bias else {
            return Some(vec![0.0; self.outputs()]);
        };
        let tensor = model.constant(bias.value)?;
        let data = tensor.to_f32()?;
        let out = self.outputs();
        // Only a C of Gemm has other axes: it is broadcast to [M, N].
        let per_output = match (tensor.dims(), self.layout.output_axis) {
            (&[n], -1 | 1) => n == out || n == 1,
            (&[1, n], -1) => n == out || n == 1,
            (&[n, 1], -2) => n == out || n == 1,
            (dims, axis) => {
                bias.node != self.node && dims.len() >= axis.unsigned_abs() as usize && data.len() == out
                    || data.len() == 1
            }
        };
        let at = |i: usize| bias.scale * if data.len() == 1 { data[0] } else { data[i] };
        per_output.then(|| (0..out).map(at).collect())
    }

    /// True when nothing but this site reads the bias.
    pub fn owns_bias(&self, model: &Model) -> bool {
        self.bias
            .is_some_and(|b| model.value(b.value).uses() == [Use::Node(b.node, b.slot)])
    }
}

/// A tensor of a float type from `f32` numbers.
///
/// # Errors
/// When the type is not float, double, float16 or bfloat16.
///
/// # Panics
/// When `data` is not as long as the product of `dims`.
pub fn float_tensor(dtype: DType, dims: &[usize], data: Vec<f32>) -> Result<Tensor> {
    Ok(match dtype {
        DType::Float => Tensor::new(dims, data),
        DType::Double => Tensor::new(dims, data.into_iter().map(f64::from).collect()),
        DType::Float16 => Tensor::new(dims, data.into_iter().map(half::f16::from_f32).collect()),
        DType::Bfloat16 => Tensor::new(dims, data.into_iter().map(half::bf16::from_f32).collect()),
        other => anyhow::bail!("{} is not a float type", other.as_str_name()),
    })
}

#[cfg(test)]
mod tests;
