//! Multiply-accumulate operations (MACs) of one operator application, and which of its constants are parameters.
//!
//! Counted are the operators that multiply matrices: convolutions, matrix products, recurrent layers, attention, Einsum,
//! in float and in integer form. Elementwise work (activations, normalization, pooling) counts 0, as is usual.

use super::infer::{Call, Dim, ELLIPSIS, Fact, equation, labels, product};
use crate::ir::{DType, GraphId, Node, Tensor};

/// The MACs of one operator, from the facts of its inputs and outputs.
type Macs = fn(&Call, &[Option<&Fact>]) -> Option<u64>;

const DEFAULT: &[(&str, Macs)] = &[
    ("Attention", attention),
    ("CausalConvWithState", |c, y| conv(c, y, 1)),
    ("Conv", |c, y| conv(c, y, 1)),
    ("ConvInteger", |c, y| conv(c, y, 1)),
    ("ConvTranspose", transpose),
    ("DeformConv", |c, y| conv(c, y, 1)),
    ("Einsum", einsum),
    ("GRU", recurrent),
    ("Gemm", gemm),
    ("LSTM", recurrent),
    ("MatMul", matmul),
    ("MatMulInteger", matmul),
    ("QLinearConv", |c, y| conv(c, y, 3)),
    ("QLinearMatMul", matmul),
    ("RNN", recurrent),
];

const MICROSOFT: &[(&str, Macs)] = &[
    ("DynamicQuantizeMatMul", matmul),
    ("FusedConv", |c, y| conv(c, y, 1)),
    ("FusedGemm", gemm),
    ("FusedMatMul", matmul),
    ("MatMulIntegerToFloat", matmul),
    ("MatMulNBits", packed),
    ("TransposeMatMul", matmul),
];

fn row(domain: &str, name: &str) -> Option<Macs> {
    let table = match domain {
        "" => DEFAULT,
        "com.microsoft" => MICROSOFT,
        _ => return None,
    };
    table.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
}

/// True for the operators whose MACs are counted.
pub fn multiplies(domain: &str, name: &str) -> bool {
    row(domain, name).is_some()
}

/// The MACs of a node; 0 for operators that multiply no matrices, `None` when a dimension that matters is not known.
pub fn macs(c: &Call, outputs: &[Option<&Fact>]) -> Option<u64> {
    row(&c.node.op.domain, &c.node.op.name).map_or(Some(0), |f| f(c, outputs))
}

fn count(shape: &[Dim]) -> Option<u64> {
    product(shape)?.try_into().ok()
}

fn output(outputs: &[Option<&Fact>]) -> Option<u64> {
    count(outputs.first().copied().flatten()?.shape.as_deref()?)
}

/// Every output element is a sum over one filter: W elements / M.
fn conv(c: &Call, outputs: &[Option<&Fact>], weight: usize) -> Option<u64> {
    let w = c.shape(weight)?;
    output(outputs)?.checked_mul(count(w.get(1..)?)?)
}

/// Every input element is spread over the filters of its channel.
fn transpose(c: &Call, _: &[Option<&Fact>]) -> Option<u64> {
    count(c.shape(0)?)?.checked_mul(count(c.shape(1)?.get(1..)?)?)
}

fn gemm(c: &Call, outputs: &[Option<&Fact>]) -> Option<u64> {
    let k = usize::from(c.int_or("transA", 0) == 0);
    output(outputs)?.checked_mul(count(c.shape(0)?.get(k..=k)?)?)
}

fn matmul(c: &Call, outputs: &[Option<&Fact>]) -> Option<u64> {
    let a = c.shape(0)?;
    let k = match (c.int_or("transA", 0), a.len().checked_sub(1)?) {
        (1, last) if last > 0 => last - 1,
        (_, last) => last,
    };
    output(outputs)?.checked_mul(count(&a[k..=k])?)
}

fn packed(c: &Call, outputs: &[Option<&Fact>]) -> Option<u64> {
    output(outputs)?.checked_mul(u64::try_from(c.node.int("K")?).ok()?)
}

/// Every step multiplies by W and R, for every member of the batch: T·B·(|W| + |R|).
fn recurrent(c: &Call, _: &[Option<&Fact>]) -> Option<u64> {
    let steps = count(c.shape(0)?.get(..2)?)?;
    steps.checked_mul(count(c.shape(1)?)?.checked_add(count(c.shape(2)?)?)?)
}

/// Q·Kᵀ and the scores times V: B·H·L_q·L_kv·(D_qk + D_v).
fn attention(c: &Call, outputs: &[Option<&Fact>]) -> Option<u64> {
    let (q, y) = (c.shape(0)?, outputs.first().copied().flatten()?.shape.as_deref()?);
    // Elements of Q are B·H·L_q·D_qk, of Y B·H·L_q·D_v, in either form.
    let rows = count(q)?.checked_add(count(y)?)?;
    let keys = |i: usize| c.shape(i).and_then(|s| s.get(s.len().checked_sub(2)?)?.known());
    let past = if c.has(4) { keys(4)? } else { 0 };
    rows.checked_mul(u64::try_from(keys(1)?.checked_add(past)?).ok()?)
}

/// All labels multiplied, for every operand but the first: what contracting them pairwise, without a plan, costs.
fn einsum(c: &Call, _: &[Option<&Fact>]) -> Option<u64> {
    let eq = equation(c.node.string("equation")?)?;
    let shapes: Vec<&[Dim]> = (0..c.inputs.len()).map(|i| c.shape(i)).collect::<Option<_>>()?;
    let (sizes, dots) = labels(&eq, &shapes).ok()?;
    debug_assert!(!sizes.contains_key(&ELLIPSIS));
    let all: Vec<Dim> = sizes.into_values().chain(dots).collect();
    count(&all)?.checked_mul(u64::try_from(shapes.len().checked_sub(1)?).ok()?)
}

/// Inputs that hold scales and zero points.
fn is_scale(domain: &str, name: &str, slot: usize) -> bool {
    match (domain, name) {
        (_, "QuantizeLinear" | "DequantizeLinear") => slot >= 1,
        ("", "QLinearConv" | "QLinearMatMul") => matches!(slot, 1 | 2 | 4..=7),
        ("", "ConvInteger" | "MatMulInteger") => slot >= 2,
        ("com.microsoft", "MatMulIntegerToFloat") => (2..=5).contains(&slot),
        ("com.microsoft", "DynamicQuantizeMatMul") => (2..=3).contains(&slot),
        ("com.microsoft", "MatMulNBits") => (2..=4).contains(&slot),
        _ => false,
    }
}

/// True when a constant of this type, read there, is a parameter: a float tensor that is not a single number, or
/// integers that stand for one (quantized weights and biases), but no shape, index, scale or zero point.
pub fn is_parameter(domain: &str, name: &str, slot: usize, dtype: DType, rank: usize) -> bool {
    if is_scale(domain, name, slot) || rank == 0 {
        return false;
    }
    use DType::*;
    match dtype {
        Float | Double | Float16 | Bfloat16 | Float8e4m3fn | Float8e4m3fnuz | Float8e5m2 | Float8e5m2fnuz
        | Float4e2m1 => !matches!(
            (name, slot),
            ("Resize" | "Upsample", _) | ("Clip" | "Pad" | "OneHot" | "Range", 1..)
        ),
        Int8 | Uint8 | Int4 | Uint4 | Int2 | Uint2 | Int16 | Uint16 | Int32 => {
            let handed_on = name == "DequantizeLinear" || name == "Cast" && dtype == Int8;
            handed_on || multiplies(domain, name)
        }
        _ => false,
    }
}

/// True for operators that only hand on a constant in another form; what they are read by uses it.
pub fn hands_on(node: &Node) -> bool {
    const NAMES: &[&str] = &[
        "BitShift",
        "Cast",
        "DequantizeLinear",
        "Identity",
        "QuantizeLinear",
        "Reshape",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    ];
    NAMES.contains(&node.op.name.as_str())
}

/// The sub-graphs that one run of a node may enter, and whether it enters only one of them. `condition` is the value of
/// the first input, if it is known.
pub fn bodies(node: &Node, condition: Option<&[i64]>) -> (Vec<GraphId>, bool) {
    let branch = match (node.is("If"), condition) {
        (true, Some([0])) => Some("else_branch"),
        (true, Some([_])) => Some("then_branch"),
        _ => None,
    };
    let all = match branch.and_then(|b| node.attr(b)) {
        Some(a) => a.graphs.as_slice().to_vec(),
        None => node.sub_graphs().collect(),
    };
    (all, node.is("If"))
}

/// Rank, elements and bytes of what a Constant node gives; `None` for other nodes, text and sparse tensors.
pub fn constant_size(node: &Node) -> Option<(usize, u64, u64)> {
    if !node.is("Constant") {
        return None;
    }
    let a = &node.attrs.first()?.proto;
    let list = |n: usize, width: u64| Some((1, n as u64, (n as u64).checked_mul(width)?));
    match (a.name(), &a.t) {
        ("value", Some(t)) => {
            let t = Tensor::from_proto(t.clone(), None).ok()?;
            Some((t.dims().len(), t.len() as u64, t.byte_len() as u64))
        }
        ("value_floats", _) => list(a.floats.len(), 4),
        ("value_ints", _) => list(a.ints.len(), 8),
        ("value_float", _) => Some((0, 1, 4)),
        ("value_int", _) => Some((0, 1, 8)),
        _ => None,
    }
}
