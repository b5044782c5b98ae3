//! Generators, losses, signals, text, sequences and optionals.

use super::Table;
use super::call::{Call, axis_of};
use super::fact::{Dim, Elem, Fact, MAX_ELEMS, product};
use crate::ir::{DType, Tensor};
use anyhow::Result;

pub(super) const TABLE: Table = &[
    ("BlackmanWindow", window),
    ("ConcatFromSequence", joined),
    ("Constant", constant),
    ("ConstantOfShape", constant_of_shape),
    ("DFT", dft),
    ("Det", det),
    ("EyeLike", |c| {
        Ok(vec![c.shaped(c.type_attr("dtype").or(c.dtype(0)), 0)])
    }),
    ("HammingWindow", window),
    ("HannWindow", window),
    ("ImageDecoder", |_| {
        Ok(vec![Fact::new(Some(DType::Uint8), Some(vec![Dim::Unknown; 3]))])
    }),
    ("MelWeightMatrix", mel),
    ("Multinomial", multinomial),
    ("NegativeLogLikelihoodLoss", loss),
    ("Optional", |c| {
        Ok(c.fact(0).map(|f| Fact::container(f.clone())).into_iter().collect())
    }),
    ("OptionalGetElement", optional_get),
    ("OptionalHasElement", |_| Ok(vec![Fact::of(DType::Bool, &[])])),
    ("RandomNormal", random),
    ("RandomNormalLike", |c| {
        Ok(vec![c.shaped(c.type_attr("dtype").or(c.dtype(0)), 0)])
    }),
    ("RandomUniform", random),
    ("RandomUniformLike", |c| {
        Ok(vec![c.shaped(c.type_attr("dtype").or(c.dtype(0)), 0)])
    }),
    ("Range", range),
    ("RegexFullMatch", |c| Ok(vec![c.shaped(Some(DType::Bool), 0)])),
    ("SequenceAt", |c| {
        Ok(c.fact(0)
            .and_then(|f| f.holds.as_deref().cloned())
            .into_iter()
            .collect())
    }),
    ("SequenceConstruct", sequence),
    ("SequenceEmpty", |c| {
        Ok(vec![Fact::container(Fact::new(c.type_attr("dtype"), None))])
    }),
    ("SequenceErase", |c| Ok(c.fact(0).cloned().into_iter().collect())),
    ("SequenceInsert", insert),
    ("SequenceLength", |_| Ok(vec![Fact::of(DType::Int64, &[])])),
    ("SoftmaxCrossEntropyLoss", loss),
    ("STFT", stft),
    ("SplitToSequence", |c| {
        Ok(vec![Fact::container(Fact::new(c.dtype(0), None))])
    }),
    ("StringConcat", |c| {
        Ok(vec![Fact::new(Some(DType::String), c.broadcast([0, 1])?)])
    }),
    ("StringNormalizer", normalized),
    ("StringSplit", split_text),
    ("TfIdfVectorizer", tf_idf),
];

/// The attribute that gives the constant.
fn constant(c: &Call) -> Result<Vec<Fact>> {
    let Some(a) = c.node.attrs.first().map(|a| &a.proto) else {
        return Ok(vec![]);
    };
    let float = |x: &f32| Elem::Float(f64::from(*x));
    let list = |d: DType, e: Vec<Elem>| Fact::of(d, &[e.len()]).with_elems(Some(e));
    let one = |d: DType, e: Elem| Fact::of(d, &[]).with_elems(Some(vec![e]));
    Ok(vec![match a.name() {
        "value" => match &a.t {
            Some(t) => Tensor::from_proto(t.clone(), None)
                .map(|t| Fact::constant(&t))
                .unwrap_or_default(),
            None => Fact::default(),
        },
        "value_int" => one(DType::Int64, Elem::Int(a.i())),
        "value_float" => one(DType::Float, float(&a.f())),
        "value_string" => Fact::of(DType::String, &[]),
        "value_ints" => list(DType::Int64, a.ints.iter().map(|&i| Elem::Int(i)).collect()),
        "value_floats" => list(DType::Float, a.floats.iter().map(float).collect()),
        "value_strings" => Fact::of(DType::String, &[a.strings.len()]),
        "sparse_value" => sparse(a),
        _ => Fact::default(),
    }])
}

fn sparse(a: &crate::pb::AttributeProto) -> Fact {
    let Some(s) = &a.sparse_tensor else {
        return Fact::default();
    };
    let dtype = s.values.as_ref().and_then(|v| DType::try_from(v.data_type()).ok());
    let dims = s.dims.iter().map(|&d| Elem::Int(d).dim()).collect();
    Fact::new(dtype, Some(dims))
}

/// The input holds the dimensions.
fn constant_of_shape(c: &Call) -> Result<Vec<Fact>> {
    let value = c.node.attr("value").and_then(|a| a.proto.t.clone());
    let value = value
        .and_then(|t| Tensor::from_proto(t, None).ok())
        .map(|t| Fact::constant(&t));
    let (dtype, elem) = match &value {
        Some(f) => (f.dtype, f.elems.as_ref().and_then(|e| e.first().cloned())),
        None => (Some(DType::Float), Some(Elem::Float(0.0))),
    };
    let shape = match (c.elems(0), c.shape(0)) {
        (Some(e), _) => Some(e.iter().map(Elem::dim).collect::<Vec<Dim>>()),
        (None, Some([Dim::Known(n)])) if *n <= super::fact::MAX_RANK => Some(vec![Dim::Unknown; *n]),
        _ => None,
    };
    let n = shape.as_deref().and_then(product).filter(|n| *n <= MAX_ELEMS);
    let elems = n.zip(elem).map(|(n, e)| vec![e; n]);
    Ok(vec![Fact::new(dtype, shape).with_elems(elems)])
}

/// `max(⌈(limit − start) / delta⌉, 0)` elements.
fn range(c: &Call) -> Result<Vec<Fact>> {
    let dtype = (0..3).find_map(|i| c.dtype(i));
    let unknown = vec![Fact::new(dtype, Some(vec![Dim::Unknown]))];
    let one = |i: usize| match c.elems(i) {
        Some([e]) => Some(e.clone()),
        _ => None,
    };
    let (Some(start), Some(limit), Some(delta)) = (one(0), one(1), one(2)) else {
        return Ok(unknown);
    };
    if let (Elem::Int(0), Elem::Symbol(_), Elem::Int(1)) = (&start, &limit, &delta) {
        return Ok(vec![Fact::new(dtype, Some(vec![limit.dim()]))]);
    }
    if let (Elem::Int(s), Elem::Int(l), Elem::Int(d)) = (&start, &limit, &delta) {
        let (s, l, d) = (i128::from(*s), i128::from(*l), i128::from(*d));
        if d == 0 {
            return Ok(unknown);
        }
        let n = ((l - s) / d + i128::from((l - s) % d != 0 && ((l - s) > 0) == (d > 0))).max(0);
        let Ok(n) = usize::try_from(n) else { return Ok(unknown) };
        let elems = (n <= MAX_ELEMS).then(|| (0..n as i128).map(|i| Elem::Int((s + i * d) as i64)).collect());
        return Ok(vec![Fact::new(dtype, Some(vec![Dim::Known(n)])).with_elems(elems)]);
    }
    let (Some(s), Some(l), Some(d)) = (start.number(), limit.number(), delta.number()) else {
        return Ok(unknown);
    };
    let n = ((l - s) / d).ceil().max(0.0);
    let n = if n < 9e15 { Dim::Known(n as usize) } else { Dim::Unknown };
    Ok(vec![Fact::new(dtype, Some(vec![n]))])
}

fn window(c: &Call) -> Result<Vec<Fact>> {
    let n = match c.elems(0) {
        Some([e]) => e.dim(),
        _ => Dim::Unknown,
    };
    let dtype = c.type_attr("output_datatype").unwrap_or(DType::Float);
    Ok(vec![Fact::new(Some(dtype), Some(vec![n]))])
}

fn random(c: &Call) -> Result<Vec<Fact>> {
    let shape = c
        .node
        .ints("shape")
        .map(|s| s.iter().map(|&i| Elem::Int(i).dim()).collect());
    Ok(vec![Fact::new(
        Some(c.type_attr("dtype").unwrap_or(DType::Float)),
        shape,
    )])
}

fn multinomial(c: &Call) -> Result<Vec<Fact>> {
    let rows = c.shape(0).and_then(|x| x.first()).cloned().unwrap_or_default();
    let samples = Elem::Int(c.int_or("sample_size", 1)).dim();
    let dtype = c.type_attr("dtype").unwrap_or(DType::Int32);
    Ok(vec![Fact::new(Some(dtype), Some(vec![rows, samples]))])
}

/// The last two dimensions go.
fn det(c: &Call) -> Result<Vec<Fact>> {
    let out = c.shape(0).and_then(|x| Some(x[..x.len().checked_sub(2)?].to_vec()));
    Ok(vec![Fact::new(c.dtype(0), out)])
}

/// Scalar, unless `reduction` is `none`; the second output of the cross entropy is like the scores.
fn loss(c: &Call) -> Result<Vec<Fact>> {
    let y = match c.node.string("reduction") {
        Some("none") => c.shaped(c.dtype(0), 1),
        _ => Fact::new(c.dtype(0), Some(vec![])),
    };
    Ok(vec![y, c.like(0)])
}

/// The last axis holds real and imaginary parts: 2 of them, or 1 when a transform back gives real numbers (opset 20).
/// Opset 17: the axis is an attribute; from 20 on it is an input.
fn dft(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0).filter(|x| x.len() >= 2) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    let axis = if c.opset < 20 {
        Some(c.int_or("axis", 1))
    } else if c.has(2) {
        c.int(2)
    } else {
        Some(-2)
    };
    let Some(axis) = axis else {
        return Ok(vec![Fact::new(c.dtype(0), Some(vec![Dim::Unknown; x.len()]))]);
    };
    let axis = axis_of(axis, x.len())?;
    let mut out = x.to_vec();
    if c.has(1) {
        out[axis] = c.int(1).map_or(Dim::Unknown, |n| Elem::Int(n).dim());
    }
    let (inverse, half) = (c.int_or("inverse", 0) != 0, c.int_or("onesided", 0) != 0);
    let last = x.len() - 1;
    out[last] = Dim::Known(2);
    match (half, inverse) {
        (true, false) => out[axis] = out[axis].map(|n| Some(n / 2 + 1)),
        (true, true) => {
            out[last] = Dim::Known(1);
            if !c.has(1) {
                out[axis] = Dim::Unknown;
            }
        }
        _ => {}
    }
    Ok(vec![Fact::new(c.dtype(0), Some(out))])
}

/// [C] or [N, C] → the number of n-grams in place of C.
fn tf_idf(c: &Call) -> Result<Vec<Fact>> {
    let most = c.node.ints("ngram_indexes").and_then(|i| i.iter().max().copied());
    let n = most
        .and_then(|m| m.checked_add(1))
        .map_or(Dim::Unknown, |n| Elem::Int(n).dim());
    let out = c.shape(0).filter(|x| matches!(x.len(), 1 | 2)).map(|x| {
        let mut out = x[..x.len() - 1].to_vec();
        out.push(n);
        out
    });
    Ok(vec![Fact::new(Some(DType::Float), out)])
}

/// An optional's content; a tensor stands for itself (opset 18).
fn optional_get(c: &Call) -> Result<Vec<Fact>> {
    let Some(f) = c.fact(0) else { return Ok(vec![]) };
    let plain = c.opset >= 18 && f.dtype.is_some();
    Ok(vec![match &f.holds {
        Some(h) => (**h).clone(),
        None if plain => f.clone(),
        None => Fact::default(),
    }])
}

fn sequence(c: &Call) -> Result<Vec<Fact>> {
    let all = (0..c.inputs.len()).map(|i| c.like(i)).reduce(|a, b| a.or(&b));
    Ok(all.map(Fact::container).into_iter().collect())
}

fn insert(c: &Call) -> Result<Vec<Fact>> {
    let held = c.fact(0).and_then(|f| f.holds.as_deref());
    Ok(vec![Fact::container(
        held.map_or_else(Fact::default, |h| h.or(&c.like(1))),
    )])
}

fn joined(c: &Call) -> Result<Vec<Fact>> {
    let held = c.fact(0).and_then(|f| f.holds.as_deref());
    let extra = usize::from(c.int_or("new_axis", 0) != 0);
    let rank = held.and_then(Fact::rank).map(|r| vec![Dim::Unknown; r + extra]);
    Ok(vec![Fact::new(held.and_then(|f| f.dtype), rank)])
}

/// num_mel_bins, dft_length, … → [⌊dft_length / 2⌋ + 1, num_mel_bins].
fn mel(c: &Call) -> Result<Vec<Fact>> {
    let one = |i: usize| c.int(i).map_or(Dim::Unknown, |n| Elem::Int(n).dim());
    let dtype = c.type_attr("output_datatype").unwrap_or(DType::Float);
    let out = vec![one(1).map(|n| Some(n / 2 + 1)), one(0)];
    Ok(vec![Fact::new(Some(dtype), Some(out))])
}

/// signal [B, length, parts], frame_step, window, frame_length → [B, frames, bins, 2].
fn stft(c: &Call) -> Result<Vec<Fact>> {
    let batch = c.shape(0).and_then(|x| x.first()).cloned().unwrap_or_default();
    let signal = c.shape(0).and_then(|x| x.get(1)).cloned().unwrap_or_default();
    let frame = match (c.has(3), c.shape(2)) {
        (true, _) => c.int(3).map_or(Dim::Unknown, |n| Elem::Int(n).dim()),
        (false, Some([n])) => n.clone(),
        _ => Dim::Unknown,
    };
    let step = c.int(1).and_then(|s| usize::try_from(s).ok());
    let frames = signal.map(|n| n.checked_sub(frame.known()?)?.checked_div(step?)?.checked_add(1));
    let half = c.int_or("onesided", 1) != 0;
    let bins = frame.map(|n| Some(if half { n / 2 + 1 } else { n }));
    Ok(vec![Fact::new(
        c.dtype(0),
        Some(vec![batch, frames, bins, Dim::Known(2)]),
    )])
}

/// [C] or [1, C] → as many as are no stop words.
fn normalized(c: &Call) -> Result<Vec<Fact>> {
    let out = match c.shape(0) {
        Some([_]) => Some(vec![Dim::Unknown]),
        Some([one, _]) => Some(vec![one.clone(), Dim::Unknown]),
        _ => None,
    };
    Ok(vec![Fact::new(Some(DType::String), out)])
}

/// One axis more, for the parts; their number for every text.
fn split_text(c: &Call) -> Result<Vec<Fact>> {
    let parts = c.shape(0).map(|x| [x, &[Dim::Unknown]].concat());
    Ok(vec![
        Fact::new(Some(DType::String), parts),
        c.shaped(Some(DType::Int64), 0),
    ])
}
