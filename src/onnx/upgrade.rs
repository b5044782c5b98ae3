//! Raising the version of the default operator set, when a pass needs an operator that is newer.
//!
//! An ONNX operator keeps its meaning until the operator set in which it gets a new version
//! ([changelog](https://github.com/onnx/onnx/blob/main/docs/Changelog.md)). Most new versions only allow more types; the table below
//! lists those after version 7 that must be rewritten: attributes that became inputs, defaults that moved, operators that got
//! another name. Function bodies import operator sets of their own and stay as they are.

use crate::ir::{Attr, DType, Model, NodeId, Tensor, ValueId};
use crate::pb;
use anyhow::{Context as _, Result, bail, ensure};

/// One operator's change.
struct Change {
    op: &'static str,
    /// The operator set that brought it.
    at: i64,
    apply: fn(&mut Model, NodeId) -> Result<()>,
}

const fn change(op: &'static str, at: i64, apply: fn(&mut Model, NodeId) -> Result<()>) -> Change {
    Change { op, at, apply }
}

/// In the order of `at`, so that an operator that changed twice passes through both.
const CHANGES: &[Change] = &[
    change("BatchNormalization", 9, |m, n| {
        ensure!(m.node(n).int_or("spatial", 1) == 1, "spatial=0 has no newer form");
        m.node_mut(n).remove_attr("spatial");
        Ok(())
    }),
    change("Scan", 9, |_, _| bail!("its batch axis has no newer form")),
    change("Upsample", 9, |m, n| {
        let scales = floats_of(m, n, "scales").context("scales are missing")?;
        let count = scales.len();
        add_input(m, n, 1, "scales", Tensor::new(&[count], scales));
        m.node_mut(n).remove_attr("scales");
        Ok(())
    }),
    change("Dropout", 10, |m, n| {
        let mask = m.node(n).output(1);
        ensure!(
            mask.is_none_or(|v| m.value(v).uses().is_empty()),
            "its mask is used, and has another type now"
        );
        Ok(())
    }),
    change("Slice", 10, |m, n| {
        for (slot, name) in [(1, "starts"), (2, "ends"), (3, "axes")] {
            ints_to_input(m, n, name, slot);
        }
        Ok(())
    }),
    change("TopK", 10, |m, n| {
        let k = m.node(n).int("k").context("k is missing")?;
        add_input(m, n, 1, "k", Tensor::new(&[1], vec![k]));
        m.node_mut(n).remove_attr("k");
        Ok(())
    }),
    change("Upsample", 10, |m, n| {
        rename(m, n, "Resize");
        Ok(())
    }),
    change("Clip", 11, clip),
    change("Pad", 11, |m, n| {
        ints_to_input(m, n, "pads", 1);
        let value = m.node(n).float("value").unwrap_or(0.0);
        m.node_mut(n).remove_attr("value");
        if value != 0.0 {
            let value = scalar_like(m, n, value)?;
            add_input(m, n, 2, "value", value);
        }
        Ok(())
    }),
    change("Resize", 11, |m, n| {
        let scales = m.node(n).input(1);
        m.set_input(n, 1, None);
        m.set_input(n, 2, scales);
        let node = m.node_mut(n);
        node.set_attr(Attr::string("coordinate_transformation_mode", "asymmetric"));
        node.set_attr(Attr::string("nearest_mode", "floor"));
        Ok(())
    }),
    change("Scatter", 11, |m, n| {
        rename(m, n, "ScatterElements");
        Ok(())
    }),
    change("Dropout", 12, |m, n| {
        if let Some(ratio) = m.node(n).float("ratio") {
            add_input(m, n, 1, "ratio", Tensor::scalar(ratio));
            m.node_mut(n).remove_attr("ratio");
        }
        Ok(())
    }),
    change("Softmax", 13, softmax),
    change("LogSoftmax", 13, softmax),
    change("Hardmax", 13, softmax),
    change("Squeeze", 13, axes_to_input),
    change("Unsqueeze", 13, axes_to_input),
    change("ReduceSum", 13, axes_to_input),
    change("Split", 13, |m, n| {
        ints_to_input(m, n, "split", 1);
        Ok(())
    }),
];

/// Operators of old that no later set has.
const GONE: &[&str] = &[
    "ATen",
    "Affine",
    "ConstantFill",
    "Crop",
    "DynamicSlice",
    "GRUUnit",
    "GivenTensorFill",
    "ImageScaler",
    "ParametricSoftplus",
    "Scale",
    "ScaledTanh",
];

/// The oldest operator set that is understood, and the newest that models are raised to.
const KNOWN: std::ops::RangeInclusive<i64> = 7..=13;

/// Raises the default operator set to `to`, and the IR version as far as that needs. Does nothing when it is there already.
///
/// # Errors
/// When an operator cannot be converted (the message names the node), the model is older than operator set 7, or
/// `to` is newer than 13. The model is then half converted: work on a clone.
pub fn raise_opset(model: &mut Model, to: i64) -> Result<()> {
    let from = model.opset("");
    if from >= to {
        return Ok(());
    }
    ensure!(from != 0, "the model does not import the default operator set");
    ensure!(
        KNOWN.contains(&from),
        "operator set {from} is too old to be converted; export the model anew"
    );
    ensure!(KNOWN.contains(&to), "operator set {to} is newer than {}", KNOWN.end());
    if model.rest.ir_version() < 4 {
        model.inputs_with_defaults_to_consts(model.main_id());
    }
    let nodes: Vec<NodeId> = model
        .nodes()
        .filter(|(id, _)| model.opset_of(*id) == from)
        .map(|(id, _)| id)
        .collect();
    for id in nodes {
        if !model.node(id).op.domain.is_empty() || in_function(model, id) {
            continue;
        }
        let named = format!("{} ({})", model.label(id), model.node(id).op.name);
        convert(model, id, from, to).with_context(|| format!("{named} cannot be raised to operator set {to}"))?;
    }
    for import in &mut model.rest.opset_import {
        if matches!(import.domain(), "" | "ai.onnx") {
            import.version = Some(to);
        }
    }
    /// What release 1.8 of ONNX, the first with operator set 13, wrote.
    const IR_VERSION: i64 = 7;
    if model.rest.ir_version() < IR_VERSION {
        model.rest.ir_version = Some(IR_VERSION);
    }
    Ok(())
}

fn in_function(model: &Model, id: NodeId) -> bool {
    let mut graph = model.node(id).graph();
    while let Some(parent) = model.graph(graph).parent() {
        graph = model.node(parent).graph();
    }
    model.graph(graph).function.is_some()
}

fn convert(model: &mut Model, id: NodeId, from: i64, to: i64) -> Result<()> {
    let gone = GONE.contains(&model.node(id).op.name.as_str());
    ensure!(!gone, "the operator was taken out of ONNX");
    for c in CHANGES.iter().filter(|c| from < c.at && c.at <= to) {
        if model.node(id).op.name == c.op {
            (c.apply)(model, id)?;
        }
    }
    Ok(())
}

fn rename(model: &mut Model, id: NodeId, op: &str) {
    op.clone_into(&mut model.node_mut(id).op.name);
}

fn floats_of(model: &Model, id: NodeId, name: &str) -> Option<Vec<f32>> {
    Some(model.node(id).attr(name)?.proto.floats.clone())
}

/// Puts a new initializer at an input; its name is made of the node's first output and `what`.
fn add_input(model: &mut Model, id: NodeId, slot: usize, what: &str, tensor: Tensor) {
    let output = model.node(id).outputs().iter().flatten().next();
    let base = output.map_or(String::new(), |v| model.value(*v).name.clone());
    let name = model.fresh_name(&format!("{base}_{what}"));
    let value = model.add_const(model.node(id).graph(), &name, tensor);
    model.set_input(id, slot, Some(value));
}

fn ints_to_input(model: &mut Model, id: NodeId, name: &str, slot: usize) {
    let Some(ints) = model.node(id).ints(name).map(<[i64]>::to_vec) else {
        return;
    };
    add_input(model, id, slot, name, Tensor::new(&[ints.len()], ints));
    model.node_mut(id).remove_attr(name);
}

fn axes_to_input(model: &mut Model, id: NodeId) -> Result<()> {
    ints_to_input(model, id, "axes", 1);
    Ok(())
}

fn clip(model: &mut Model, id: NodeId) -> Result<()> {
    for (slot, name) in [(1, "min"), (2, "max")] {
        let Some(limit) = model.node(id).float(name) else {
            continue;
        };
        model.node_mut(id).remove_attr(name);
        // The old defaults, the limits of f32, mean that there is none.
        if limit.abs() != f32::MAX {
            let limit = scalar_like(model, id, limit)?;
            add_input(model, id, slot, name, limit);
        }
    }
    Ok(())
}

/// A scalar of the type of a node's first input.
fn scalar_like(model: &Model, id: NodeId, x: f32) -> Result<Tensor> {
    let input = model.node(id).input(0).context("its input is missing")?;
    Ok(match float_type(model, input)? {
        DType::Float => Tensor::scalar(x),
        DType::Double => Tensor::scalar(f64::from(x)),
        DType::Float16 => Tensor::scalar(half::f16::from_f32(x)),
        other => bail!("an input of type {} has no such limit", other.as_str_name()),
    })
}

/// The declared type of a value; float where none is declared and the model has no other float type.
fn float_type(model: &Model, v: ValueId) -> Result<DType> {
    if let Some(t) = tensor_type(model, v) {
        return Ok(DType::try_from(t.elem_type()).unwrap_or(DType::Undefined));
    }
    let others = [DType::Float16, DType::Double, DType::Bfloat16];
    let mixed = model
        .values()
        .any(|(_, v)| v.tensor().is_some_and(|t| others.contains(&t.dtype())));
    ensure!(
        !mixed,
        "the type of {} is not declared; run shape inference first",
        model.value(v).name
    );
    Ok(DType::Float)
}

fn tensor_type(model: &Model, v: ValueId) -> Option<&pb::type_proto::Tensor> {
    match model.declared_type(v)?.value.as_ref()? {
        pb::type_proto::Value::TensorType(t) => Some(t),
        _ => None,
    }
}

/// Declared dimensions, `None` for those that vary.
fn dims(model: &Model, v: ValueId) -> Option<Vec<Option<i64>>> {
    use pb::tensor_shape_proto::dimension::Value as Dim;
    let shape = tensor_type(model, v)?.shape.as_ref()?;
    let known = |d: &pb::tensor_shape_proto::Dimension| match d.value {
        Some(Dim::DimValue(n)) => Some(n),
        _ => None,
    };
    Some(shape.dim.iter().map(known).collect())
}

/// Before version 13 the softmax ran over all axes from `axis` on, taken as one, and `axis` was 1 by default; now it runs
/// over `axis` alone, the last one by default. Where only one of those axes is longer than 1 the two are the same; else the
/// input is made a matrix, and the output shaped back.
fn softmax(model: &mut Model, id: NodeId) -> Result<()> {
    let axis = model.node(id).int_or("axis", 1);
    let x = model.node(id).input(0).context("its input is missing")?;
    let out = model.node(id).output(0).context("its output is missing")?;
    if axis == -1 {
        return Ok(());
    }
    if let Some(dims) = dims(model, x).or_else(|| dims(model, out)) {
        let rank = dims.len() as i64;
        let axis = if axis < 0 { axis + rank } else { axis };
        ensure!((0..rank.max(1)).contains(&axis), "axis {axis} of {rank} axes");
        let mut longer = (axis..rank).filter(|&i| dims[i as usize] != Some(1));
        let only = longer.next().unwrap_or(axis);
        if longer.next().is_none() {
            model.node_mut(id).set_attr(Attr::int("axis", only));
            return Ok(());
        }
    }
    let graph = model.node(id).graph();
    let name = model.value(out).name.clone();
    let flat = model.fresh_name(&format!("{name}_flat"));
    let flatten = vec![Attr::int("axis", axis)];
    let (_, flat) = model.add_node(graph, &flat, "Flatten", &[Some(x)], &[&flat], flatten);
    model.set_input(id, 0, Some(flat[0]));
    model.node_mut(id).set_attr(Attr::int("axis", -1));
    let shape = model.fresh_name(&format!("{name}_shape"));
    let (_, shape) = model.add_node(graph, &shape, "Shape", &[Some(x)], &[&shape], Vec::new());
    let back = model.fresh_name(&format!("{name}_back"));
    let (reshape, back) = model.add_node(
        graph,
        &back,
        "Reshape",
        &[Some(out), Some(shape[0])],
        &[&back],
        Vec::new(),
    );
    model.replace_uses_where(out, back[0], |u| *u != crate::ir::Use::Node(reshape, 0));
    model.forget_type(out);
    Ok(())
}
