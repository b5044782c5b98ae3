//! The operators that must be rewritten: attributes that became inputs, defaults that moved, operators that got another
//! name, inputs of another length.

use super::raise::Work;
use super::softmax::softmax;
use crate::ir::{Attr, Node, NodeId, Tensor};
use anyhow::{Context as _, Result, bail, ensure};

/// One operator's change.
struct Change {
    op: &'static str,
    /// The operator set that brought it.
    at: i64,
    apply: fn(&mut Work, NodeId) -> Result<()>,
}

const fn change(op: &'static str, at: i64, apply: fn(&mut Work, NodeId) -> Result<()>) -> Change {
    Change { op, at, apply }
}

/// In the order of `at`, so that an operator that changed twice passes through both.
const CHANGES: &[Change] = &[
    change("BatchNormalization", 9, |w, n| {
        w.own(n, "spatial")?;
        ensure!(w.model.node(n).int_or("spatial", 1) == 1, "spatial=0 has no newer form");
        w.model.node_mut(n).remove_attr("spatial");
        Ok(())
    }),
    change("Scan", 9, |_, _| bail!("its batch axis has no newer form")),
    change("Upsample", 9, |w, n| {
        ensure!(w.model.node(n).attr("scales").is_some(), "its scales are missing");
        w.make_input(n, 1, "scales", "value_floats", |_, a| {
            let scales = a.proto.floats.clone();
            Ok(Some(Tensor::new(&[scales.len()], scales)))
        })
    }),
    change("Dropout", 10, |w, n| {
        let mask = w.model.node(n).output(1);
        let unused = mask.is_none_or(|v| w.model.value(v).uses().is_empty());
        ensure!(unused, "its mask is used, and has another type now");
        Ok(())
    }),
    change("Slice", 10, |w, n| {
        w.ints_to_input(n, "starts", 1)?;
        w.ints_to_input(n, "ends", 2)?;
        w.ints_to_input(n, "axes", 3)
    }),
    change("TopK", 10, |w, n| {
        w.own(n, "k")?;
        let k = w.model.node(n).int("k").context("k is missing")?;
        w.add_input(n, 1, "k", Tensor::new(&[1], vec![k]));
        w.model.node_mut(n).remove_attr("k");
        Ok(())
    }),
    change("Upsample", 10, |w, n| {
        w.rename(n, "Resize");
        Ok(())
    }),
    change("Clip", 11, clip),
    change("Pad", 11, |w, n| {
        w.ints_to_input(n, "pads", 1)?;
        w.make_input(n, 2, "value", "value_float", |w, a| match a.proto.f() {
            0.0 => Ok(None),
            value => w.scalar_like(n, value).map(Some),
        })
    }),
    change("Resize", 11, |w, n| {
        let scales = w.model.node(n).input(1);
        w.model.set_input(n, 1, None);
        w.model.set_input(n, 2, scales);
        let node = w.model.node_mut(n);
        node.set_attr(Attr::string("coordinate_transformation_mode", "asymmetric"));
        node.set_attr(Attr::string("nearest_mode", "floor"));
        Ok(())
    }),
    change("Scatter", 11, |w, n| {
        w.rename(n, "ScatterElements");
        Ok(())
    }),
    change("Dropout", 12, |w, n| {
        w.make_input(n, 1, "ratio", "value_float", |_, a| {
            Ok(Some(Tensor::scalar(a.proto.f())))
        })
    }),
    change("Softmax", 13, softmax),
    change("LogSoftmax", 13, softmax),
    change("Hardmax", 13, softmax),
    change("Squeeze", 13, axes_to_input),
    change("Unsqueeze", 13, axes_to_input),
    change("ReduceSum", 13, axes_to_input),
    change("Split", 13, |w, n| w.ints_to_input(n, "split", 1)),
    change("Resize", 13, resize_13),
    change("MeanVarianceNormalization", 13, |w, n| {
        // The default stands; onnx.checker loses it in the function that version 13 defines.
        if w.model.node(n).attr("axes").is_none() {
            w.model.node_mut(n).set_attr(Attr::ints("axes", vec![0, 2, 3]));
        }
        Ok(())
    }),
    change("BatchNormalization", 14, |w, n| {
        let outputs = w.model.node(n).outputs().iter().flatten().count();
        ensure!(outputs == 1, "it is in training mode; export the model for inference");
        Ok(())
    }),
    change("RoiAlign", 16, |w, n| {
        let mode = Attr::string("coordinate_transformation_mode", "output_half_pixel");
        w.model.node_mut(n).set_attr(mode);
        Ok(())
    }),
    change("ReduceL1", 18, axes_to_input),
    change("ReduceL2", 18, axes_to_input),
    change("ReduceLogSum", 18, axes_to_input),
    change("ReduceLogSumExp", 18, axes_to_input),
    change("ReduceMax", 18, axes_to_input),
    change("ReduceMean", 18, axes_to_input),
    change("ReduceMin", 18, axes_to_input),
    change("ReduceProd", 18, axes_to_input),
    change("ReduceSumSquare", 18, axes_to_input),
    change("Split", 18, |w, n| {
        if w.model.node(n).input(1).is_none() {
            let count = w.model.node(n).outputs().len() as i64;
            w.model.node_mut(n).set_attr(Attr::int("num_outputs", count));
        }
        Ok(())
    }),
    change("DFT", 20, |w, n| {
        if w.model.node(n).attr("axis").is_none() {
            w.model.node_mut(n).set_attr(Attr::int("axis", 1));
        }
        w.make_input(n, 2, "axis", "value_int", |_, a| Ok(Some(Tensor::scalar(a.proto.i()))))
    }),
    change("GridSample", 20, |w, n| {
        w.own(n, "mode")?;
        let mode = w.model.node(n).string("mode").unwrap_or("bilinear");
        let mode = mode.strip_prefix("bi").unwrap_or(mode).to_owned();
        w.model.node_mut(n).set_attr(Attr::string("mode", &mode));
        Ok(())
    }),
    change("GroupNormalization", 21, group_norm),
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

/// Rewrites one node from operator set `from` to that of the work; gives the last set that changed it.
pub(super) fn convert(w: &mut Work, id: NodeId, from: i64) -> Result<Option<i64>> {
    let gone = GONE.contains(&w.model.node(id).op.name.as_str());
    ensure!(!gone, "the operator was taken out of ONNX");
    let (mut last, to) = (None, w.to);
    for c in CHANGES.iter().filter(|c| from < c.at && c.at <= to) {
        if w.model.node(id).op.name == c.op {
            let before = seen(w.model.node(id));
            (c.apply)(w, id)?;
            if seen(w.model.node(id)) != before {
                last = Some(c.at);
            }
        }
    }
    Ok(last)
}

/// What a rewrite may change of a node, to tell whether it did.
fn seen(n: &Node) -> (String, usize, Vec<crate::pb::AttributeProto>) {
    let attrs = n.attrs.iter().map(|a| a.proto.clone()).collect();
    (n.op.name.clone(), n.inputs().len(), attrs)
}

fn axes_to_input(w: &mut Work, id: NodeId) -> Result<()> {
    w.ints_to_input(id, "axes", 1)
}

fn clip(w: &mut Work, id: NodeId) -> Result<()> {
    for (slot, name) in [(1, "min"), (2, "max")] {
        w.make_input(id, slot, name, "value_float", |w, a| {
            // The old defaults, the limits of f32, mean that there is none.
            match a.proto.f().abs() == f32::MAX {
                true => Ok(None),
                false => w.scalar_like(id, a.proto.f()).map(Some),
            }
        })?;
    }
    Ok(())
}

/// `roi` and `scales` became optional: an empty tensor used to stand for one that is not there, and where there are `sizes`
/// the scales had to be empty. `tf_half_pixel_for_nn`,
/// `x = (y + ½) / scale`, was taken out: floored, it is the nearest to `(y + ½) / scale − ½` with halves rounded up.
fn resize_13(w: &mut Work, id: NodeId) -> Result<()> {
    for slot in 1..3 {
        if w.model.constant_input(id, slot).is_some_and(Tensor::is_empty) {
            w.model.set_input(id, slot, None);
        }
    }
    if w.model.node(id).input(3).is_some() {
        w.model.set_input(id, 2, None);
    }
    let n = w.model.node(id);
    if n.string("coordinate_transformation_mode") == Some("tf_half_pixel_for_nn") {
        let floors = n.string("mode").unwrap_or("nearest") == "nearest" && n.string("nearest_mode") == Some("floor");
        ensure!(
            floors,
            "tf_half_pixel_for_nn has no newer form, except with mode=nearest and nearest_mode=floor"
        );
        let n = w.model.node_mut(id);
        n.set_attr(Attr::string("coordinate_transformation_mode", "half_pixel"));
        n.set_attr(Attr::string("nearest_mode", "round_prefer_ceil"));
    }
    Ok(())
}

/// Scale and bias used to have an element for every group, and now have one for every channel: each is repeated
/// C / groups times, as `Reshape(Expand(Unsqueeze(s, 1), [1, C / groups]), [-1])`.
fn group_norm(w: &mut Work, id: NodeId) -> Result<()> {
    w.own(id, "num_groups")?;
    let groups = w.model.node(id).int("num_groups").context("num_groups is missing")?;
    let x = w.input(id, 0)?;
    let ints = |w: &mut Work, what: &str, data: Vec<i64>| w.constant(id, what, Tensor::new(&[data.len()], data));
    let ends = vec![Attr::int("start", 1), Attr::int("end", 2)];
    let channels = w.add(id, "channels", "Shape", &[x], ends);
    let groups = ints(w, "groups", vec![groups]);
    let each = w.add(id, "group_size", "Div", &[channels, groups], Vec::new());
    let one = ints(w, "one", vec![1]);
    let target = w.add(id, "rows", "Concat", &[one, each], vec![Attr::int("axis", 0)]);
    let all = ints(w, "all", vec![-1]);
    for (slot, what) in [(1, "scale"), (2, "bias")] {
        let s = w.input(id, slot)?;
        let s = w.add(id, what, "Unsqueeze", &[s, one], Vec::new());
        let s = w.add(id, what, "Expand", &[s, target], Vec::new());
        let s = w.add(id, what, "Reshape", &[s, all], Vec::new());
        w.model.set_input(id, slot, Some(s));
    }
    Ok(())
}
