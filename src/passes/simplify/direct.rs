//! Small constants, computed here: an engine is a large machine to start for a scalar (5 MB of its code are read for it).
//!
//! * Concat and Slice move bytes, in every type.
//! * Cast between floats and integers where the number is in the range of both.
//! * Add, Sub, Mul, Div, Pow: floats in `f64`, rounded once. For float and float16 that is the correctly rounded result of
//!   `+ − × ÷` (an operation in a format with more than twice the digits and then one rounding is innocuous; Figueroa 1995).
//!   Integers are exact, or left to the engine: an overflow, a division by zero.
//!
//! Nothing is done for other operators and types, and from [`SMALL`] bytes on: those go to the engine.

use super::numbers::{floats, store};
use super::work::Work;
use crate::ir::{DType, NodeId, Tensor, bits};

/// The most bytes of an input, and the most elements of the result.
const SMALL: usize = 1 << 20;

/// The only output of such a node on constants.
pub(super) fn value(w: &Work, id: NodeId) -> Option<Tensor> {
    let n = w.model.node(id);
    let constant = |v: &Option<_>| w.constant((*v)?).filter(|t| t.byte_len() <= SMALL && !t.is_empty());
    if !DIRECT.contains(&n.op.name.as_str()) {
        return None;
    }
    let inputs: Vec<Tensor> = n.inputs().iter().map(constant).collect::<Option<_>>()?;
    let dims = w.facts.get(n.output(0)?).dims()?;
    let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    if elements == 0 || elements > SMALL {
        return None;
    }
    match (n.op.name.as_str(), inputs.as_slice()) {
        ("Concat", parts) => concat(parts, n.int("axis")?, &dims),
        ("Slice", [x, rest @ ..]) if w.opset(id) >= 10 => slice(x, rest, &dims),
        ("Cast", [x]) => cast(x, DType::try_from(i32::try_from(n.int("to")?).ok()?).ok()?),
        (op, [a, b]) if w.opset(id) >= 7 => binary(op, a, b, &dims),
        _ => None,
    }
}

const DIRECT: &[&str] = &["Add", "Cast", "Concat", "Div", "Mul", "Pow", "Slice", "Sub"];

/// Bytes of an element; `None` for types that share bytes or have no fixed width.
fn width(t: &Tensor) -> Option<usize> {
    Some(bits(t.dtype()).filter(|b| b % 8 == 0)? / 8)
}

fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let n = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(n)? } else { axis };
    usize::try_from(axis).ok().filter(|a| *a < rank)
}

/// Runs of bytes along an axis: how many, and how long each is.
fn runs(t: &Tensor, axis: usize) -> Option<(usize, usize)> {
    let outer = t.dims().get(..axis)?.iter().product();
    let inner: usize = t.dims().get(axis + 1..)?.iter().product();
    Some((outer, inner * width(t)?))
}

fn concat(parts: &[Tensor], axis: i64, dims: &[usize]) -> Option<Tensor> {
    let first = parts.first()?;
    let axis = axis_of(axis, dims.len())?;
    let (outer, _) = runs(first, axis)?;
    let alike = |t: &Tensor| t.dtype() == first.dtype() && runs(t, axis) == runs(first, axis);
    if !parts.iter().all(alike) {
        return None;
    }
    let raws: Vec<_> = parts.iter().map(Tensor::raw).collect();
    let mut out = Vec::new();
    for i in 0..outer {
        for raw in &raws {
            let run = raw.len() / outer;
            out.extend_from_slice(raw.get(i * run..(i + 1) * run)?);
        }
    }
    Tensor::from_raw(first.dtype(), dims, out.into()).ok()
}

/// `rest`: starts, ends, axes, steps. The number of elements taken is known from inference, so the ends are not looked at.
fn slice(x: &Tensor, rest: &[Tensor], dims: &[usize]) -> Option<Tensor> {
    let starts = rest.first()?.ints()?;
    let axes = rest
        .get(2)
        .map_or_else(|| Some((0..starts.len() as i64).collect()), Tensor::ints)?;
    let steps = rest.get(3).map_or_else(|| Some(vec![1; starts.len()]), Tensor::ints)?;
    if rest.len() < 2 || dims.len() != x.dims().len() || axes.len() != starts.len() || steps.len() != starts.len() {
        return None;
    }
    let mut out = x.clone();
    for ((&start, &axis), &step) in starts.iter().zip(&axes).zip(&steps) {
        let axis = axis_of(axis, dims.len())?;
        let n = i64::try_from(*out.dims().get(axis)?).ok()?;
        let start = if start < 0 { start.saturating_add(n) } else { start };
        let start = start.clamp(0, if step > 0 { n } else { n - 1 });
        let (outer, inner) = runs(&out, axis)?;
        let raw = out.raw();
        let mut taken = Vec::new();
        for o in 0..outer {
            for i in 0..i64::try_from(dims[axis]).ok()? {
                let at = start.checked_add(i.checked_mul(step)?)?;
                let at = usize::try_from(at).ok().filter(|_| at < n)? + o * n as usize;
                taken.extend_from_slice(raw.get(at * inner..(at + 1) * inner)?);
            }
        }
        let mut now = out.dims().to_vec();
        now[axis] = dims[axis];
        out = Tensor::from_raw(x.dtype(), &now, taken.into()).ok()?;
    }
    Some(out)
}

fn cast(x: &Tensor, to: DType) -> Option<Tensor> {
    let dims = x.dims();
    if let Some(ints) = x.ints() {
        return match to {
            DType::Float => Some(Tensor::new(dims, ints.iter().map(|&i| i as f32).collect())),
            DType::Double => Some(Tensor::new(dims, ints.iter().map(|&i| i as f64).collect())),
            _ => whole(dims, ints, to),
        };
    }
    let numbers = floats(x)?;
    match to {
        DType::Float | DType::Double => store(to, dims, &numbers),
        DType::Bool => whole(dims, numbers.iter().map(|&x| i64::from(x != 0.0)).collect(), to),
        _ => {
            let int = |x: &f64| (x.abs() < 9e18).then(|| x.trunc() as i64);
            whole(dims, numbers.iter().map(int).collect::<Option<_>>()?, to)
        }
    }
}

/// Integers in another type that has all of them.
fn whole(dims: &[usize], ints: Vec<i64>, to: DType) -> Option<Tensor> {
    match to {
        DType::Int64 => Some(Tensor::new(dims, ints)),
        DType::Int32 => {
            let narrow: Result<Vec<i32>, _> = ints.iter().map(|&i| i32::try_from(i)).collect();
            Some(Tensor::new(dims, narrow.ok()?))
        }
        DType::Bool => {
            let bytes: Vec<u8> = ints.iter().map(|&i| u8::from(i != 0)).collect();
            Tensor::from_raw(to, dims, bytes.into()).ok()
        }
        _ => None,
    }
}

/// Which element of a tensor each element of the result reads.
fn places(from: &[usize], dims: &[usize]) -> Option<Vec<usize>> {
    let missing = dims.len().checked_sub(from.len())?;
    let mut places = vec![0usize];
    for (axis, &d) in dims.iter().enumerate() {
        let own = if axis < missing { 1 } else { from[axis - missing] };
        if own != d && own != 1 {
            return None;
        }
        let steps = |p: usize| (0..d).map(move |i| p * own + if own == 1 { 0 } else { i });
        places = places.into_iter().flat_map(steps).collect();
    }
    Some(places)
}

fn binary(op: &str, a: &Tensor, b: &Tensor, dims: &[usize]) -> Option<Tensor> {
    if a.dtype() != b.dtype() {
        return None;
    }
    let pairs = || Some(places(a.dims(), dims)?.into_iter().zip(places(b.dims(), dims)?));
    if matches!(a.dtype(), DType::Int64 | DType::Int32) {
        let f: fn(i64, i64) -> Option<i64> = match op {
            "Add" => i64::checked_add,
            "Sub" => i64::checked_sub,
            "Mul" => i64::checked_mul,
            "Div" => i64::checked_div,
            _ => return None,
        };
        let (x, y) = (a.ints()?, b.ints()?);
        let all = pairs()?.map(|(i, j)| f(x[i], y[j])).collect::<Option<Vec<i64>>>()?;
        return whole(dims, all, a.dtype());
    }
    let f: fn(f64, f64) -> f64 = match op {
        "Add" => |x, y| x + y,
        "Sub" => |x, y| x - y,
        "Mul" => |x, y| x * y,
        "Div" => |x, y| x / y,
        "Pow" => f64::powf,
        _ => return None,
    };
    if !matches!(a.dtype(), DType::Float | DType::Float16) {
        return None;
    }
    let (x, y) = (floats(a)?, floats(b)?);
    let all: Vec<f64> = pairs()?.map(|(i, j)| f(x[i], y[j])).collect();
    store(a.dtype(), dims, &all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_paired_as_numpy_broadcasts_them() {
        let a = Tensor::new(&[2, 1, 3], vec![0i64, 1, 2, 10, 11, 12]);
        let b = Tensor::new(&[2, 1], vec![100i64, 200]);
        let sum = binary("Add", &a, &b, &[2, 2, 3]).expect("integers");
        let all = [100, 101, 102, 200, 201, 202, 110, 111, 112, 210, 211, 212];
        assert_eq!(sum.ints().expect("integers"), all);
        assert!(binary("Add", &a, &b, &[2, 3, 3]).is_none());
    }

    #[test]
    fn what_is_not_exact_in_integers_is_left_to_others() {
        let scalar = |x: i64| Tensor::scalar(x);
        assert!(binary("Mul", &scalar(i64::MAX), &scalar(2), &[]).is_none());
        assert!(binary("Div", &scalar(1), &scalar(0), &[]).is_none());
        let q = binary("Div", &scalar(-7), &scalar(2), &[]).expect("a quotient");
        assert_eq!(q.ints().expect("integers"), [-3]);
        assert!(cast(&scalar(1 << 40), DType::Int32).is_none());
        assert!(cast(&Tensor::scalar(1e30f32), DType::Int64).is_none());
        let cut = cast(&Tensor::scalar(-1.5f32), DType::Int64).expect("in range");
        assert_eq!(cut.ints().expect("integers"), [-1]);
    }

    #[test]
    fn large_integers_are_rounded_to_float_once() {
        // Through f64 this would be rounded down twice.
        let x = (1i64 << 54) + (1 << 30) + 1;
        let y = cast(&Tensor::scalar(x), DType::Float).expect("a float");
        assert_eq!(y.floats().expect("floats")[0], x as f32);
        assert_ne!(x as f32, x as f64 as f32);
    }

    #[test]
    fn slices_go_both_ways_and_concat_puts_them_back() {
        let x = Tensor::new(&[2, 5], (0..10i32).collect());
        let list = |v: &[i64]| Tensor::new(&[v.len()], v.to_vec());
        let back = [list(&[-1]), list(&[i64::MIN]), list(&[1]), list(&[-2])];
        let y = slice(&x, &back, &[2, 3]).expect("a slice");
        assert_eq!(y.ints().expect("integers"), [4, 2, 0, 9, 7, 5]);
        let (head, tail) = (
            slice(&x, &[list(&[0]), list(&[2]), list(&[1])], &[2, 2]),
            slice(&x, &[list(&[2]), list(&[99]), list(&[-1])], &[2, 3]),
        );
        let whole = concat(&[head.expect("a slice"), tail.expect("a slice")], -1, &[2, 5]).expect("joined");
        assert!(whole.same_data(&x));
    }
}
