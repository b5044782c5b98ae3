//! Operators that tract 0.23.9 reads otherwise than ONNX means them, or runs slowly, written so that it reads them right.

use super::graph::{Flat, plain_node};
use super::ops;
use crate::ir::{Attr, Tensor};
use crate::pb;

/// Upsample, and Resize of operator set 10, become Resize of operator set 13 with the rules that they had.
pub fn resize(flat: &mut Flat) {
    let version = flat.version();
    for n in &mut flat.graph.node {
        let old = match n.op_type() {
            "Upsample" => (7..10).contains(&version),
            "Resize" => version == 10,
            _ => false,
        };
        if !old {
            continue;
        }
        let scales = match n.attribute.iter().find(|a| a.name() == "scales") {
            Some(a) => {
                let name = format!("{}/scales", n.output.join(" "));
                let tensor = Tensor::new(&[a.floats.len()], a.floats.clone());
                flat.tensors.insert(name.clone(), tensor);
                Some(name)
            }
            None => n.input.get(1).cloned(),
        };
        let (Some(x), Some(scales)) = (n.input.first(), scales) else {
            continue;
        };
        n.input = vec![x.clone(), String::new(), scales];
        n.attribute.retain(|a| a.name() == "mode");
        let rules = [
            ("coordinate_transformation_mode", "asymmetric"),
            ("nearest_mode", "floor"),
        ];
        n.attribute
            .extend(rules.map(|(name, value)| Attr::string(name, value).proto));
        n.op_type = Some(ops::RESIZE.into());
    }
}

/// Squeeze without axes drops all of length 1.
pub fn squeeze(flat: &mut Flat) {
    for n in flat.graph.node.iter_mut().filter(|n| n.op_type() == "Squeeze") {
        let says = n.attribute.iter().any(|a| a.name() == "axes") || n.input.get(1).is_some_and(|i| !i.is_empty());
        if !says && matches!(n.domain(), "" | "ai.onnx") {
            n.op_type = Some(ops::SQUEEZE.into());
        }
    }
}

/// LSTM, GRU and RNN with direction "reverse" between reversals of X and Y; states are the same either way.
pub fn forward(nodes: Vec<pb::NodeProto>) -> Vec<pb::NodeProto> {
    let mut out = Vec::with_capacity(nodes.len());
    for mut n in nodes {
        let direction = n.attribute.iter().position(|a| a.name() == "direction");
        let reverse = direction.filter(|&i| n.attribute[i].s.as_ref().is_some_and(|s| s.as_ref() == b"reverse"));
        let (Some(direction), true) = (reverse, ["LSTM", "GRU", "RNN"].contains(&n.op_type())) else {
            out.push(n);
            continue;
        };
        n.attribute.remove(direction);
        let layout = n.attribute.iter().find(|a| a.name() == "layout").and_then(|a| a.i);
        let turn = |from: String, to: String| {
            let mut turn = plain_node(ops::REVERSE, &to, vec![from], vec![to.clone()]);
            turn.attribute = vec![Attr::int("axis", layout.unwrap_or(0)).proto];
            turn
        };
        let mut after = None;
        if let Some(x) = n.input.first_mut() {
            let turned = format!("{x}/reversed for {}", n.output.join(" "));
            out.push(turn(x.clone(), turned.clone()));
            *x = turned;
        }
        if let Some(y) = n.output.first_mut().filter(|y| !y.is_empty()) {
            let turned = format!("{y}/reversed");
            after = Some(turn(turned.clone(), y.clone()));
            *y = turned;
        }
        out.push(n);
        out.extend(after);
    }
    out
}

/// A real signal of an STFT gets the last axis that tract insists on and ONNX Runtime does not.
pub fn signals(flat: &mut Flat) {
    before(flat, |flat, n| {
        // Only what is real has one-sided spectra.
        let real = !n.attribute.iter().any(|a| a.name() == "onesided" && a.i == Some(0));
        let signal = n
            .input
            .first_mut()
            .filter(|_| n.op_type.as_deref() == Some("STFT") && real)?;
        let name = format!("{}/signal", n.output.join(" "));
        let shape = constant(flat, format!("{name} shape"), vec![0, -1, 1]);
        let inputs = vec![std::mem::replace(signal, name.clone()), shape];
        Some(plain_node("Reshape", &name, inputs, vec![name.clone()]))
    });
}

/// Third powers, of which tract takes the logarithm (a Gelu spelled out with Tanh has one), become products.
pub fn powers(flat: &mut Flat) {
    before(flat, |flat, n| {
        let exponent = n.input.get(1).filter(|_| n.op_type() == "Pow")?;
        let exponent = flat.tensors.get(exponent).filter(|t| t.dims().is_empty())?;
        if *exponent.to_f32()? != [3.0] {
            return None;
        }
        let (x, name) = (n.input.first()?.clone(), format!("{}/square", n.output.join(" ")));
        n.op_type = Some("Mul".into());
        n.input = vec![name.clone(), x.clone()];
        Some(plain_node("Mul", &name, vec![x.clone(), x], vec![name.clone()]))
    });
}

/// Puts nodes before others that need them.
fn before(flat: &mut Flat, make: impl Fn(&mut Flat, &mut pb::NodeProto) -> Option<pb::NodeProto>) {
    let mut nodes = Vec::with_capacity(flat.graph.node.len());
    for mut n in std::mem::take(&mut flat.graph.node) {
        nodes.extend(make(flat, &mut n));
        nodes.push(n);
    }
    flat.graph.node = nodes;
}

/// Adds a list of integers, and gives its name.
fn constant(flat: &mut Flat, name: String, numbers: Vec<i64>) -> String {
    let tensor = Tensor::new(&[numbers.len()], numbers);
    flat.tensors.insert(name.clone(), tensor);
    name
}

/// Negative pads, on which tract panics, become a Slice before the Pad; those that are known before the model runs.
pub fn crop(flat: &mut Flat) {
    // Before, pads were an attribute.
    if flat.version() >= 11 {
        before(flat, cropped);
    }
}

/// The Slice before a Pad that crops; the Pad only pads then.
fn cropped(flat: &mut Flat, n: &mut pb::NodeProto) -> Option<pb::NodeProto> {
    let known = |i: usize| flat.tensors.get(n.input.get(i)?).and_then(Tensor::ints);
    let pads = known(1).filter(|pads| n.op_type() == "Pad" && pads.iter().any(|p| *p < 0))?;
    let (begins, ends) = pads.split_at(pads.len() / 2);
    let axes = match n.input.get(3).filter(|a| !a.is_empty()) {
        Some(_) => known(3)?,
        None => (0..begins.len() as i64).collect(),
    };
    let name = format!("{}/cropped", n.output.join(" "));
    let mut tensor = |what: &str, numbers| constant(flat, format!("{name} {what}"), numbers);
    let from = begins.iter().map(|b| b.saturating_neg().max(0)).collect();
    let to = ends.iter().map(|e| if *e < 0 { *e } else { i64::MAX }).collect();
    let inputs = vec![
        n.input[0].clone(),
        tensor("from", from),
        tensor("to", to),
        tensor("axes", axes),
    ];
    n.input[1] = tensor("pads", pads.iter().map(|p| *p.max(&0)).collect());
    n.input[0] = name.clone();
    Some(plain_node("Slice", &name, inputs, vec![name.clone()]))
}

/// What a ConstantOfShape is full of where it does not say: of float zeros, which tract takes for doubles.
pub fn zeros(n: &mut pb::NodeProto) {
    if n.op_type() == "ConstantOfShape" && !n.attribute.iter().any(|a| a.name() == "value") {
        let zero = Tensor::new(&[1], vec![0.0f32]);
        n.attribute.push(Attr::tensor("value", zero.to_inline_proto()).proto);
    }
}
