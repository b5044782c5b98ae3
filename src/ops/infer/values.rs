//! Arithmetic on the elements of small tensors: what operators on shapes compute.
//!
//! Integers are `i64`, and a result that does not fit its type is unknown (it would wrap). Floats are rounded to `f32`
//! where the type is `float`. A dimension's name survives what does not change it: `N + 0`, `N · 1`, a cast.

use super::call::Call;
use super::fact::{Dim, Elem, Fact, MAX_ELEMS, product};
use crate::ir::DType;

/// The range of an integer type.
fn range(dtype: DType) -> Option<(i64, i64)> {
    Some(match dtype {
        DType::Int64 => (i64::MIN, i64::MAX),
        DType::Int32 => (i32::MIN.into(), i32::MAX.into()),
        DType::Int16 => (i16::MIN.into(), i16::MAX.into()),
        DType::Int8 => (i8::MIN.into(), i8::MAX.into()),
        DType::Uint64 => (0, i64::MAX),
        DType::Uint32 => (0, u32::MAX.into()),
        DType::Uint16 => (0, u16::MAX.into()),
        DType::Uint8 => (0, u8::MAX.into()),
        DType::Bool => (0, 1),
        _ => return None,
    })
}

fn int(dtype: Option<DType>, x: Option<i64>) -> Elem {
    let fits = |x: &i64| dtype.and_then(range).is_some_and(|(lo, hi)| (lo..=hi).contains(x));
    x.filter(fits).map_or(Elem::Unknown, Elem::Int)
}

fn float(dtype: Option<DType>, x: f64) -> Elem {
    match dtype {
        Some(DType::Float) => Elem::Float(f64::from(x as f32)),
        Some(DType::Double) => Elem::Float(x),
        _ => Elem::Unknown,
    }
}

/// One operand, elementwise; `None` when the operator is not computed along.
pub(super) fn unary(op: &str, dtype: Option<DType>, x: &[Elem]) -> Option<Vec<Elem>> {
    let f: fn(f64) -> f64 = match op {
        "Ceil" => f64::ceil,
        "Floor" => f64::floor,
        "Round" => f64::round_ties_even,
        "Neg" => |x| -x,
        "Abs" => f64::abs,
        "Relu" => |x| x.max(0.0),
        "Sqrt" => f64::sqrt,
        _ => return None,
    };
    let one = |e: &Elem| match e {
        Elem::Symbol(_) if matches!(op, "Ceil" | "Floor" | "Round" | "Abs" | "Relu") => e.clone(),
        Elem::Float(x) => float(dtype, f(*x)),
        Elem::Int(i) => match op {
            "Neg" => int(dtype, i.checked_neg()),
            "Abs" => int(dtype, i.checked_abs()),
            "Relu" => Elem::Int((*i).max(0)),
            _ => Elem::Unknown,
        },
        _ => Elem::Unknown,
    };
    Some(x.iter().map(one).collect())
}

/// A cast: floats are cut off towards zero.
pub(super) fn cast(to: DType, x: &[Elem]) -> Vec<Elem> {
    let integral = range(to).is_some();
    let one = |e: &Elem| match e {
        Elem::Symbol(_) if to == DType::Bool => Elem::Unknown,
        Elem::Symbol(_) => e.clone(),
        Elem::Int(i) if to == DType::Bool => Elem::Int(i64::from(*i != 0)),
        Elem::Float(x) if to == DType::Bool => Elem::Int(i64::from(*x != 0.0)),
        Elem::Int(i) if integral => int(Some(to), Some(*i)),
        Elem::Int(i) => float(Some(to), *i as f64),
        Elem::Float(x) if integral && x.abs() < 9e15 => int(Some(to), Some(*x as i64)),
        Elem::Float(x) if !integral => float(Some(to), *x),
        _ => Elem::Unknown,
    };
    x.iter().map(one).collect()
}

/// Two operands broadcast to `shape`.
pub(super) fn binary(c: &Call, a: &Fact, b: &Fact, shape: Option<&[Dim]>) -> Option<Vec<Elem>> {
    let shape = shape?;
    let (x, y) = (spread(a, shape)?, spread(b, shape)?);
    let fmod = c.int_or("fmod", 0) != 0;
    let one = |(x, y): (&Elem, &Elem)| pair(&c.node.op.name, a.dtype, fmod, x, y);
    x.iter().zip(&y).map(one).collect()
}

fn pair(op: &str, dtype: Option<DType>, fmod: bool, x: &Elem, y: &Elem) -> Option<Elem> {
    use Elem::{Float, Int, Symbol, Unknown};
    Some(match (op, x, y) {
        ("Add" | "Sub", Symbol(_), Int(0)) | ("Add" | "Sub", Symbol(_), Float(0.0)) => x.clone(),
        ("Mul" | "Div", Symbol(_), Int(1)) | ("Mul" | "Div", Symbol(_), Float(1.0)) => x.clone(),
        ("Add", Int(0), Symbol(_)) | ("Mul", Int(1), Symbol(_)) | ("Mul", Float(1.0), Symbol(_)) => y.clone(),
        ("Mul", Int(0), _) | ("Mul", _, Int(0)) => Int(0),
        ("Sub", Symbol(s), Symbol(t)) if s == t => zero(dtype),
        ("Max" | "Min", Symbol(s), Symbol(t)) if s == t => x.clone(),
        ("Equal" | "GreaterOrEqual" | "LessOrEqual", Symbol(s), Symbol(t)) if s == t => Int(1),
        ("Greater" | "Less", Symbol(s), Symbol(t)) if s == t => Int(0),
        // What a name stands for is not negative.
        ("Equal" | "Less" | "LessOrEqual", Symbol(_), Int(..=-1)) => Int(0),
        ("Greater" | "GreaterOrEqual", Symbol(_), Int(..=-1)) | ("GreaterOrEqual", Symbol(_), Int(0)) => Int(1),
        ("Equal" | "Greater" | "GreaterOrEqual", Int(..=-1), Symbol(_)) => Int(0),
        ("Max", Symbol(_), Int(..=0)) => x.clone(),
        ("Max", Int(..=0), Symbol(_)) => y.clone(),
        (_, Int(a), Int(b)) => return integers(op, dtype, fmod, *a, *b),
        (_, Float(a), Float(b)) => return floats(op, dtype, *a, *b),
        (
            "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" | "Max" | "Min" | "And" | "Or" | "Xor" | "Equal" | "Greater"
            | "Less" | "GreaterOrEqual" | "LessOrEqual",
            ..,
        ) => Unknown,
        _ => return None,
    })
}

fn zero(dtype: Option<DType>) -> Elem {
    match dtype.and_then(range) {
        Some(_) => Elem::Int(0),
        None => float(dtype, 0.0),
    }
}

fn integers(op: &str, dtype: Option<DType>, fmod: bool, a: i64, b: i64) -> Option<Elem> {
    let truth = |t: bool| Some(Elem::Int(i64::from(t)));
    let number = match op {
        "Add" => a.checked_add(b),
        "Sub" => a.checked_sub(b),
        "Mul" => a.checked_mul(b),
        "Div" => a.checked_div(b), // towards zero, as engines do
        "Mod" if fmod => a.checked_rem(b),
        "Mod" => a
            .checked_rem(b)
            .map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
        "Pow" => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        "Max" => Some(a.max(b)),
        "Min" => Some(a.min(b)),
        "And" => return truth(a != 0 && b != 0),
        "Or" => return truth(a != 0 || b != 0),
        "Xor" => return truth((a != 0) != (b != 0)),
        "Equal" => return truth(a == b),
        "Greater" => return truth(a > b),
        "Less" => return truth(a < b),
        "GreaterOrEqual" => return truth(a >= b),
        "LessOrEqual" => return truth(a <= b),
        _ => return None,
    };
    Some(int(dtype, number))
}

fn floats(op: &str, dtype: Option<DType>, a: f64, b: f64) -> Option<Elem> {
    let truth = |t: bool| Some(Elem::Int(i64::from(t)));
    let number = match op {
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a * b,
        "Div" => a / b,
        "Max" => a.max(b),
        "Min" => a.min(b),
        "Equal" => return truth(a == b),
        "Greater" => return truth(a > b),
        "Less" => return truth(a < b),
        "GreaterOrEqual" => return truth(a >= b),
        "LessOrEqual" => return truth(a <= b),
        "Mod" | "Pow" => return Some(Elem::Unknown),
        _ => return None,
    };
    Some(float(dtype, number))
}

/// `Where`, elementwise.
pub(super) fn select(c: &Call, shape: &[Dim]) -> Option<Vec<Elem>> {
    let [cond, x, y] = [0, 1, 2].map(|i| spread_or_unknown(c, i, shape));
    let (cond, x, y) = (cond?, x?, y?);
    let all = cond.iter().zip(x.iter().zip(&y));
    let pick = |(c, (x, y)): (&Elem, (&Elem, &Elem))| match c {
        Elem::Int(0) => y.clone(),
        Elem::Int(_) => x.clone(),
        _ if x == y => x.clone(),
        _ => Elem::Unknown,
    };
    Some(all.map(pick).collect())
}

fn spread_or_unknown(c: &Call, i: usize, shape: &[Dim]) -> Option<Vec<Elem>> {
    let fact = c.fact(i)?;
    if fact.elems.is_some() {
        return spread(fact, shape);
    }
    let n = product(shape).filter(|n| *n <= MAX_ELEMS)?;
    Some(vec![Elem::Unknown; n])
}

/// `Clip` with bounds as inputs (opset 11).
pub(super) fn clip(c: &Call) -> Option<Vec<Elem>> {
    let bound = |i: usize| match c.elems(i) {
        Some([e]) => Some(e.clone()),
        None if !c.has(i) => None,
        _ => Some(Elem::Unknown),
    };
    let (lo, hi) = (bound(1), bound(2));
    if c.opset < 11 {
        return None;
    }
    let step = |op: &str, x: Elem, b: &Option<Elem>| match b {
        Some(b) => pair(op, c.dtype(0), false, &x, b).unwrap_or_default(),
        None => x,
    };
    let all = c.elems(0)?.iter();
    Some(all.map(|x| step("Min", step("Max", x.clone(), &lo), &hi)).collect())
}

/// All elements reduced to one; `None` when the operator is not computed along.
pub(super) fn fold(op: &str, x: &[Elem]) -> Option<Elem> {
    let op = match op {
        "ReduceProd" => "Mul",
        "ReduceSum" => "Add",
        "ReduceMax" => "Max",
        "ReduceMin" => "Min",
        _ => return None,
    };
    let mut all = x.iter().cloned();
    let first = all.next()?;
    let dtype = match first {
        Elem::Float(_) => DType::Float,
        _ => DType::Int64,
    };
    all.try_fold(first, |a, b| pair(op, Some(dtype), false, &a, &b))
}

/// The elements of a fact broadcast to a shape.
pub(super) fn spread(f: &Fact, shape: &[Dim]) -> Option<Vec<Elem>> {
    let from = f.dims()?;
    let elems = f.elems.as_ref()?;
    let to: Vec<usize> = shape.iter().map(Dim::known).collect::<Option<_>>()?;
    let lead = to.len().checked_sub(from.len())?;
    let steps = strides(&from)?;
    gather(&to, |at| {
        let place = at[lead..].iter().zip(&from).zip(&steps);
        elems
            .get(place.map(|((i, n), s)| if *n == 1 { 0 } else { i * s }).sum::<usize>())
            .cloned()
    })
}

/// The distance in memory of neighbours along every axis (row-major).
pub(super) fn strides(dims: &[usize]) -> Option<Vec<usize>> {
    let mut out = vec![1usize; dims.len()];
    for i in (1..dims.len()).rev() {
        out[i - 1] = out[i].checked_mul(dims[i])?;
    }
    Some(out)
}

/// A small tensor, element by element; `f` gives the element at an index.
pub(super) fn gather(dims: &[usize], mut f: impl FnMut(&[usize]) -> Option<Elem>) -> Option<Vec<Elem>> {
    let n = dims
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|n| *n <= MAX_ELEMS)?;
    let mut at = vec![0usize; dims.len()];
    let mut out = Vec::with_capacity(n);
    for _ in 0..n {
        out.push(f(&at)?);
        for axis in (0..dims.len()).rev() {
            at[axis] += 1;
            if at[axis] < dims[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    Some(out)
}
