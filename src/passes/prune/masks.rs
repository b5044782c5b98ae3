//! Masks: `w * m` and `Where(m, w, 0)`, as training with masks leaves them, become plain weights.
//!
//! Both sides may stand behind Identity, Cast, Transpose, Reshape, Squeeze, Unsqueeze, Flatten, Not, or further masks, and
//! broadcast. The product is the one that a runtime computes at every load: f32 times f32, rounded once; float16 by way of
//! f32, which is exact before the rounding. A side that callers may set (a graph input with a default) is left alone.

use crate::ir::{DType, Model, NodeId, Origin, Tensor, ValueId};
use crate::ops::ties::constant;
use crate::passes::Context;

/// Chains longer than this are not followed, and products larger than this are not made.
const MAX_DEPTH: usize = 16;
const MAX_LEN: usize = 1 << 29;

/// A real tensor during evaluation.
#[derive(Clone)]
struct Array {
    dtype: DType,
    dims: Vec<usize>,
    data: Vec<f32>,
}

/// What stands in the way.
enum Blocked {
    /// Not a constant, or not understood.
    Varies,
    /// A graph input with a default.
    Input(ValueId),
}

/// Folds every mask of the model; gives how many.
pub fn fold(model: &mut Model, cx: &mut Context) -> usize {
    let mut folded = 0;
    for id in model.node_ids() {
        let node = model.node(id);
        let Some(out) = node.output(0).filter(|_| node.is("Mul") || node.is("Where")) else {
            continue;
        };
        match product(model, id) {
            Ok(t) => {
                put(model, cx, id, out, t);
                folded += 1;
            }
            Err(Blocked::Input(v)) => {
                let name = &model.value(v).name;
                let why =
                    format!("{name} is a graph input that callers may set; take it out of the inputs to fold the mask");
                cx.skip(model, id, why);
            }
            Err(Blocked::Varies) => {}
        }
    }
    folded
}

fn product(model: &Model, id: NodeId) -> Result<Array, Blocked> {
    let node = model.node(id);
    let inputs: Vec<ValueId> = node.inputs().iter().flatten().copied().collect();
    let sides: Vec<Result<Array, Blocked>> = inputs.iter().map(|v| evaluate(model, *v, 0)).collect();
    let varies = sides.iter().any(|s| matches!(s, Err(Blocked::Varies)));
    if varies {
        return Err(Blocked::Varies);
    }
    let sides = sides.into_iter().collect::<Result<Vec<_>, _>>()?;
    let is_mask = |a: &Array| a.data.iter().all(|x| *x == 0.0 || *x == 1.0);
    let masked = match node.op.name.as_str() {
        "Mul" => sides.iter().any(is_mask),
        _ => sides.iter().skip(1).any(|a| a.data.iter().all(|x| *x == 0.0)),
    };
    let out = combine(&node.op.name, &sides).ok_or(Blocked::Varies)?;
    let is_weight = matches!(out.dtype, DType::Float | DType::Float16 | DType::Bfloat16) && !out.dims.is_empty();
    match masked && is_weight && sides.iter().any(|s| s.dims == out.dims) {
        true => Ok(out),
        false => Err(Blocked::Varies),
    }
}

/// Puts the folded weight in place of the product and tells about it.
fn put(model: &mut Model, cx: &mut Context, id: NodeId, out: ValueId, a: Array) {
    let left = a.data.iter().filter(|x| **x != 0.0).count();
    let reader = model.readers(out).first().copied().unwrap_or(id);
    let what = format!("mask folded: {}", sparsity(left, a.data.len()));
    cx.did(model, reader, what);
    let Some(t) = a.into_tensor() else { return };
    let name = model.fresh_name(&format!("{}_masked", model.value(out).name));
    let graph = model.node(id).graph();
    let folded = model.add_const(graph, &name, t);
    model.replace_uses(out, folded);
    erase_unread(model, id);
}

/// `62.5 % zeros, 1,234 of 3,290 weights remain`.
pub fn sparsity(left: usize, total: usize) -> String {
    let zeros = 100.0 * (total - left) as f64 / total.max(1) as f64;
    format!(
        "{zeros:.1} % zeros, {} of {} weights remain",
        commas(left),
        commas(total)
    )
}

fn commas(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Erases a node that nobody reads, and then what it alone has read.
fn erase_unread(model: &mut Model, id: NodeId) {
    let mut queue = vec![id];
    while let Some(id) = queue.pop() {
        let unread = |v: &ValueId| model.value(*v).uses().is_empty();
        if !model.is_alive(id) || !model.node(id).outputs().iter().flatten().all(unread) {
            continue;
        }
        let inputs: Vec<ValueId> = model.node(id).inputs().iter().flatten().copied().collect();
        model.erase(id);
        for v in inputs {
            match model.value(v).producer() {
                Some(p) => queue.push(p),
                None if model.value(v).is_alive() && model.value(v).uses().is_empty() => model.erase_const(v),
                None => {}
            }
        }
    }
}

fn evaluate(model: &Model, v: ValueId, depth: usize) -> Result<Array, Blocked> {
    if let Some(t) = constant(model, v) {
        return Array::from_tensor(&t).ok_or(Blocked::Varies);
    }
    let value = model.value(v);
    if value.origin() == Origin::Input && value.tensor().is_some() {
        return Err(Blocked::Input(v));
    }
    let id = value.producer().filter(|_| depth < MAX_DEPTH).ok_or(Blocked::Varies)?;
    let node = model.node(id);
    if !node.op.domain.is_empty() || node.has_attr_refs() || node.outputs().len() != 1 {
        return Err(Blocked::Varies);
    }
    let input = |i: usize| evaluate(model, node.input(i).ok_or(Blocked::Varies)?, depth + 1);
    let ints = |i: usize| node.input(i).and_then(|v| constant(model, v)?.ints());
    match node.op.name.as_str() {
        "Identity" => input(0),
        "Cast" => cast(input(0)?, node.int("to")).ok_or(Blocked::Varies),
        "Not" => {
            let mut a = input(0)?;
            a.data.iter_mut().for_each(|x| *x = f32::from(u8::from(*x == 0.0)));
            Ok(a)
        }
        "Transpose" => transposed(input(0)?, node.ints("perm")).ok_or(Blocked::Varies),
        "Reshape" => {
            let a = input(0)?;
            let to = ints(1).and_then(|s| reshaped(&a.dims, &s)).ok_or(Blocked::Varies)?;
            Ok(Array { dims: to, ..a })
        }
        "Squeeze" | "Unsqueeze" | "Flatten" => {
            let a = input(0)?;
            let axes = node.ints("axes").map(<[i64]>::to_vec).or_else(|| ints(1));
            let to = other_rank(&node.op.name, &a.dims, axes, node.int_or("axis", 1)).ok_or(Blocked::Varies)?;
            Ok(Array { dims: to, ..a })
        }
        "Mul" | "Where" => {
            let sides = (0..node.inputs().len()).map(input).collect::<Result<Vec<_>, _>>()?;
            combine(&node.op.name, &sides).ok_or(Blocked::Varies)
        }
        _ => Err(Blocked::Varies),
    }
}

impl Array {
    fn from_tensor(t: &Tensor) -> Option<Array> {
        use DType::{Bfloat16, Bool, Float, Float16, Int8, Int32, Int64, Uint8};
        let known = matches!(
            t.dtype(),
            Float | Float16 | Bfloat16 | Bool | Int8 | Uint8 | Int32 | Int64
        );
        Some(Array {
            dtype: t.dtype(),
            dims: t.dims().to_vec(),
            data: t.to_f32().filter(|_| known)?.into_owned(),
        })
    }

    fn into_tensor(self) -> Option<Tensor> {
        Some(match self.dtype {
            DType::Float => Tensor::new(&self.dims, self.data),
            DType::Float16 => {
                let half: Vec<half::f16> = self.data.iter().map(|x| half::f16::from_f32(*x)).collect();
                Tensor::new(&self.dims, half)
            }
            DType::Bfloat16 => {
                let half: Vec<half::bf16> = self.data.iter().map(|x| half::bf16::from_f32(*x)).collect();
                Tensor::new(&self.dims, half)
            }
            _ => return None,
        })
    }
}

/// To the float types (their rounding included) and to bool; integers that are not masks are left alone.
fn cast(mut a: Array, to: Option<i64>) -> Option<Array> {
    let to = DType::try_from(i32::try_from(to?).ok()?).ok()?;
    let mask = a.data.iter().all(|x| *x == 0.0 || *x == 1.0);
    let round: fn(f32) -> f32 = match to {
        DType::Float => |x| x,
        DType::Float16 => |x| half::f16::from_f32(x).to_f32(),
        DType::Bfloat16 => |x| half::bf16::from_f32(x).to_f32(),
        DType::Bool => |x| f32::from(u8::from(x != 0.0)),
        DType::Int8 | DType::Uint8 | DType::Int32 | DType::Int64 if mask => |x| x,
        _ => return None,
    };
    a.data.iter_mut().for_each(|x| *x = round(*x));
    a.dtype = to;
    Some(a)
}

fn combine(op: &str, sides: &[Array]) -> Option<Array> {
    let mut dims: Vec<usize> = Vec::new();
    for s in sides {
        dims = broadcast(&dims, &s.dims)?;
    }
    let len = dims
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|n| *n <= MAX_LEN)?;
    let dtype = sides.last()?.dtype;
    let index: Vec<Vec<usize>> = sides.iter().map(|s| strides(&s.dims, &dims)).collect();
    let mut data = Vec::with_capacity(len);
    let mut at = vec![0usize; dims.len()];
    for _ in 0..len {
        let x = |k: usize| {
            let i: usize = at.iter().zip(&index[k]).map(|(i, s)| i * s).sum();
            sides[k].data[i]
        };
        data.push(match (op, sides.len()) {
            ("Mul", 2) => x(0) * x(1),
            ("Where", 3) if x(0) != 0.0 => x(1),
            ("Where", 3) => x(2),
            _ => return None,
        });
        for (i, d) in at.iter_mut().zip(&dims).rev() {
            *i += 1;
            if *i < *d {
                break;
            }
            *i = 0;
        }
    }
    let round: fn(f32) -> f32 = match dtype {
        DType::Float => |x| x,
        DType::Float16 => |x| half::f16::from_f32(x).to_f32(),
        DType::Bfloat16 => |x| half::bf16::from_f32(x).to_f32(),
        _ => return None,
    };
    data.iter_mut().for_each(|x| *x = round(*x));
    Some(Array { dtype, dims, data })
}

fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |d: &[usize], i: usize| (i + d.len()).checked_sub(rank).map_or(1, |k| d[k]);
    let one = |i| match (dim(a, i), dim(b, i)) {
        (x, y) if x == y => Some(x),
        (1, y) => Some(y),
        (x, 1) => Some(x),
        _ => None,
    };
    (0..rank).map(one).collect()
}

/// The step of each output axis in an operand; 0 where it broadcasts.
fn strides(from: &[usize], to: &[usize]) -> Vec<usize> {
    let mut out = vec![0; to.len()];
    let mut step = 1;
    for (k, &d) in from.iter().enumerate().rev() {
        out[k + to.len() - from.len()] = if d == 1 { 0 } else { step };
        step *= d;
    }
    out
}

fn transposed(a: Array, perm: Option<&[i64]>) -> Option<Array> {
    let rank = a.dims.len();
    let perm: Vec<usize> = match perm {
        Some(p) => p.iter().map(|&i| usize::try_from(i).ok()).collect::<Option<_>>()?,
        None => (0..rank).rev().collect(),
    };
    let mut sorted = perm.clone();
    sorted.sort();
    if sorted != (0..rank).collect::<Vec<_>>() {
        return None;
    }
    let view = ndarray::ArrayView::from_shape(a.dims.clone(), &a.data).ok()?;
    let turned = view.permuted_axes(perm);
    Some(Array {
        dtype: a.dtype,
        dims: turned.shape().to_vec(),
        data: turned.iter().copied().collect(),
    })
}

fn reshaped(from: &[usize], to: &[i64]) -> Option<Vec<usize>> {
    let total: usize = from.iter().product();
    let mut dims = Vec::new();
    for (i, &n) in to.iter().enumerate() {
        dims.push(match n {
            0 => *from.get(i)?,
            -1 => 1,
            n => usize::try_from(n).ok()?,
        });
    }
    if let Some(hole) = to.iter().position(|n| *n == -1) {
        let rest = dims
            .iter()
            .try_fold(1usize, |p, &d| p.checked_mul(d))
            .filter(|p| *p > 0)?;
        dims[hole] = total / rest;
    }
    (dims.iter().try_fold(1usize, |p, &d| p.checked_mul(d))? == total).then_some(dims)
}

fn other_rank(op: &str, from: &[usize], axes: Option<Vec<i64>>, axis: i64) -> Option<Vec<usize>> {
    let rank = from.len() as i64;
    let at = |a: i64, rank: i64| usize::try_from(if a < 0 { a + rank } else { a }).ok();
    match op {
        "Flatten" => {
            let k = at(axis, rank).filter(|k| *k <= from.len())?;
            Some(vec![from[..k].iter().product(), from[k..].iter().product()])
        }
        "Squeeze" => {
            let axes = axes.map(|l| l.iter().map(|&a| at(a, rank)).collect::<Option<Vec<_>>>());
            let gone = |i: usize| match &axes {
                Some(Some(l)) => l.contains(&i),
                _ => from[i] == 1,
            };
            let gone: Vec<usize> = (0..from.len()).filter(|i| gone(*i)).collect();
            let ones = gone.iter().all(|i| from[*i] == 1);
            ones.then(|| (0..from.len()).filter(|i| !gone.contains(i)).map(|i| from[i]).collect())
        }
        _ => {
            let axes = axes?;
            let rank = rank + axes.len() as i64;
            let new: Vec<usize> = axes.iter().map(|&a| at(a, rank)).collect::<Option<_>>()?;
            let mut old = from.iter();
            (0..rank as usize)
                .map(|i| if new.contains(&i) { Some(1) } else { old.next().copied() })
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(dims: &[usize], data: &[f32]) -> Array {
        Array {
            dtype: DType::Float,
            dims: dims.to_vec(),
            data: data.to_vec(),
        }
    }

    #[test]
    fn masks_broadcast_on_either_side() {
        let w = array(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let m = array(&[2, 1], &[0.0, 1.0]);
        let out = combine("Mul", &[m.clone(), w.clone()]).expect("they fit");
        assert_eq!((out.dims, out.data), (vec![2, 2], vec![0.0, 0.0, 3.0, 4.0]));
        let zero = array(&[], &[0.0]);
        let out = combine("Where", &[m, w, zero]).expect("they fit");
        assert_eq!(out.data, [0.0, 0.0, 3.0, 4.0]);
        assert!(combine("Mul", &[array(&[2], &[1.0, 1.0]), array(&[3], &[1.0; 3])]).is_none());
    }

    #[test]
    fn shapes_follow_the_operators() {
        assert_eq!(reshaped(&[2, 6], &[0, 3, -1]), Some(vec![2, 3, 2]));
        assert_eq!(reshaped(&[2, 6], &[5, -1]), None);
        assert_eq!(other_rank("Unsqueeze", &[4], Some(vec![0, -1]), 0), Some(vec![1, 4, 1]));
        assert_eq!(other_rank("Squeeze", &[1, 4], None, 0), Some(vec![4]));
        assert_eq!(other_rank("Squeeze", &[1, 4], Some(vec![1]), 0), None);
        assert_eq!(other_rank("Flatten", &[2, 3, 4], None, 1), Some(vec![2, 12]));
        let t = transposed(array(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), None).expect("a transpose");
        assert_eq!((t.dims, t.data), (vec![3, 2], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]));
        assert_eq!(sparsity(1234, 3290), "62.5 % zeros, 1,234 of 3,290 weights remain");
    }
}
