//! What is known of a value before it is computed: element type, dimensions, and the elements of small tensors.
//!
//! A fact says less or more, never something false: `Unknown` and `None` are "any". Small tensors of integers (what
//! `Shape` gives, what `Reshape` reads) are computed along, element by element, so that shapes that a graph works out at
//! run time become known.

use crate::ir::{DType, Tensor};
use anyhow::{Result, bail};
use std::fmt;

/// Tensors with more elements than this are not computed along.
pub const MAX_ELEMS: usize = 1024;
/// Of floats, which only scale factors and the like are wanted of, fewer.
const MAX_FLOATS: usize = 64;
/// No fact has more dimensions than this (a hostile file could ask for millions).
pub const MAX_RANK: usize = 64;

/// One dimension.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub enum Dim {
    /// So many elements.
    Known(usize),
    /// A number that is the same wherever the name occurs.
    Symbol(String),
    /// Any number.
    #[default]
    Unknown,
}

impl Dim {
    /// The number, when it is known.
    pub fn known(&self) -> Option<usize> {
        match self {
            Dim::Known(n) => Some(*n),
            _ => None,
        }
    }
    /// True when both are certainly the same number.
    pub fn same(&self, other: &Dim) -> bool {
        *self != Dim::Unknown && self == other
    }
    /// True when both are known and differ.
    pub fn differs(&self, other: &Dim) -> bool {
        matches!((self, other), (Dim::Known(a), Dim::Known(b)) if a != b)
    }
    /// What holds of a number of which `self` and `other` both hold.
    pub fn and(&self, other: &Dim) -> Dim {
        match (self, other) {
            (Dim::Known(_), _) | (_, Dim::Unknown) => self.clone(),
            (_, Dim::Known(_)) | (Dim::Unknown, _) => other.clone(),
            _ => self.clone(),
        }
    }
    /// What holds of a number of which `self` or `other` holds.
    pub fn or(&self, other: &Dim) -> Dim {
        if self == other { self.clone() } else { Dim::Unknown }
    }
    /// The product; unknown on overflow.
    pub fn times(&self, other: &Dim) -> Dim {
        match (self, other) {
            (Dim::Known(1), d) | (d, Dim::Known(1)) => d.clone(),
            (Dim::Known(0), _) | (_, Dim::Known(0)) => Dim::Known(0),
            (Dim::Known(a), Dim::Known(b)) => a.checked_mul(*b).map_or(Dim::Unknown, Dim::Known),
            _ => Dim::Unknown,
        }
    }
    /// The sum; unknown on overflow.
    pub fn plus(&self, other: &Dim) -> Dim {
        match (self, other) {
            (Dim::Known(0), d) | (d, Dim::Known(0)) => d.clone(),
            (Dim::Known(a), Dim::Known(b)) => a.checked_add(*b).map_or(Dim::Unknown, Dim::Known),
            _ => Dim::Unknown,
        }
    }
    /// A known number is mapped (`None`: unknown), everything else is unknown.
    pub fn map(&self, f: impl FnOnce(usize) -> Option<usize>) -> Dim {
        self.known().and_then(f).map_or(Dim::Unknown, Dim::Known)
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::Known(n)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Symbol(s) => f.write_str(s),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// Dimensions as a message shows them: `[N, 3, ?]`.
pub fn show(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

/// All dimensions known.
pub fn known(dims: &[usize]) -> Vec<Dim> {
    dims.iter().map(|&d| Dim::Known(d)).collect()
}

/// The product of dimensions, when all are known and it does not overflow.
pub fn product(dims: &[Dim]) -> Option<usize> {
    dims.iter().try_fold(1usize, |n, d| n.checked_mul(d.known()?))
}

/// One element of a small tensor.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Elem {
    /// An integer, or a truth value (0, 1).
    Int(i64),
    /// A float.
    Float(f64),
    /// The number that a dimension's name stands for: it is not negative.
    Symbol(String),
    /// Any number.
    #[default]
    Unknown,
}

impl Elem {
    /// The integer, when it is known.
    pub fn int(&self) -> Option<i64> {
        match self {
            Elem::Int(i) => Some(*i),
            _ => None,
        }
    }
    /// The number, when it is known.
    pub fn number(&self) -> Option<f64> {
        match self {
            Elem::Int(i) => Some(*i as f64),
            Elem::Float(x) => Some(*x),
            _ => None,
        }
    }
    /// The element as a dimension; a negative number is none, and unknown.
    pub fn dim(&self) -> Dim {
        match self {
            Elem::Int(i) => usize::try_from(*i).map_or(Dim::Unknown, Dim::Known),
            Elem::Symbol(s) => Dim::Symbol(s.clone()),
            _ => Dim::Unknown,
        }
    }
}

impl From<&Dim> for Elem {
    fn from(d: &Dim) -> Elem {
        match d {
            Dim::Known(n) => i64::try_from(*n).map_or(Elem::Unknown, Elem::Int),
            Dim::Symbol(s) => Elem::Symbol(s.clone()),
            Dim::Unknown => Elem::Unknown,
        }
    }
}

/// True for types of floating point numbers that are computed along.
fn is_real(d: DType) -> bool {
    matches!(d, DType::Float | DType::Float16 | DType::Bfloat16 | DType::Double)
}

/// What is known of a value.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Fact {
    /// The element type; `None` when it is not known, or the value is no tensor.
    pub dtype: Option<DType>,
    /// The dimensions; `None` when even their number is not known.
    pub shape: Option<Vec<Dim>>,
    /// The elements in row-major order; only where `shape` is wholly known, with at most [`MAX_ELEMS`] elements.
    pub elems: Option<Vec<Elem>>,
    /// For a sequence or an optional: what is known of what it holds. The fields above are `None` then.
    pub holds: Option<Box<Fact>>,
}

impl Fact {
    /// A tensor of which type and dimensions may be known.
    pub fn new(dtype: Option<DType>, shape: Option<Vec<Dim>>) -> Fact {
        let shape = shape.filter(|s| s.len() <= MAX_RANK);
        Fact {
            dtype,
            shape,
            elems: None,
            holds: None,
        }
    }
    /// A tensor of known type and dimensions.
    pub fn of(dtype: DType, dims: &[usize]) -> Fact {
        Fact::new(Some(dtype), Some(known(dims)))
    }
    /// The type and dimensions as text, e.g. `float[N,3,?,224]`; `?` for what is not known.
    pub fn describe(&self) -> String {
        let dtype = self.dtype.map_or("?".into(), |d| d.as_str_name().to_lowercase());
        let dim = |d: &Dim| match d {
            Dim::Known(n) => n.to_string(),
            Dim::Symbol(s) => s.clone(),
            _ => "?".into(),
        };
        let dims = self
            .shape
            .as_ref()
            .map(|s| s.iter().map(dim).collect::<Vec<_>>().join(","));
        format!("{dtype}[{}]", dims.unwrap_or_else(|| "…".into()))
    }
    /// The fact of a constant.
    pub fn constant(t: &Tensor) -> Fact {
        let dtype = Some(t.dtype()).filter(|d| *d != DType::Undefined);
        let mut fact = Fact::new(dtype, Some(known(t.dims())));
        if t.len() <= MAX_ELEMS {
            fact.elems = match t.dtype() {
                d if is_real(d) && t.len() > MAX_FLOATS => None,
                DType::Float | DType::Float16 | DType::Bfloat16 => t
                    .to_f32()
                    .map(|x| x.iter().map(|&x| Elem::Float(f64::from(x))).collect()),
                DType::Double => t.view::<f64>().map(|x| x.iter().map(|&x| Elem::Float(x)).collect()),
                // Numbers beyond `i64` are not computed along.
                DType::Uint64 if t.ints().is_some_and(|x| x.iter().any(|i| *i < 0)) => None,
                _ => t.ints().map(|x| x.into_iter().map(Elem::Int).collect()),
            };
        }
        fact
    }
    /// A 1-D tensor of `int64` with these elements.
    pub fn list(elems: Vec<Elem>) -> Fact {
        let mut fact = Fact::of(DType::Int64, &[elems.len()]);
        fact.elems = Some(elems).filter(|e| e.len() <= MAX_ELEMS);
        fact
    }
    /// A sequence or optional that holds this.
    pub fn container(holds: Fact) -> Fact {
        Fact {
            holds: Some(Box::new(holds)),
            ..Fact::default()
        }
    }
    /// The same with these elements, if they are as many as the dimensions say.
    pub fn with_elems(mut self, elems: Option<Vec<Elem>>) -> Fact {
        let n = self.shape.as_deref().and_then(product);
        self.elems = elems.filter(|e| Some(e.len()) == n && e.len() <= MAX_ELEMS);
        self
    }
    /// The dimensions, when all are known.
    pub fn dims(&self) -> Option<Vec<usize>> {
        self.shape.as_ref()?.iter().map(Dim::known).collect()
    }
    /// The number of dimensions.
    pub fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }
    /// The elements as integers, when all are known.
    pub fn ints(&self) -> Option<Vec<i64>> {
        self.elems.as_ref()?.iter().map(Elem::int).collect()
    }
    /// The elements as numbers, when all are known.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        self.elems.as_ref()?.iter().map(Elem::number).collect()
    }
    /// True when nothing is known.
    pub fn is_unknown(&self) -> bool {
        self.dtype.is_none() && self.shape.is_none() && self.holds.is_none()
    }

    /// What holds of a value of which `self` or `other` holds (either branch of an `If`).
    pub fn or(&self, other: &Fact) -> Fact {
        let shape = match (&self.shape, &other.shape) {
            (Some(a), Some(b)) if a.len() == b.len() => Some(a.iter().zip(b).map(|(a, b)| a.or(b)).collect()),
            _ => None,
        };
        let elems = match (&self.elems, &other.elems) {
            (Some(a), Some(b)) if self.shape == other.shape => Some(
                a.iter()
                    .zip(b)
                    .map(|(a, b)| if a == b { a.clone() } else { Elem::Unknown })
                    .collect(),
            ),
            _ => None,
        };
        let holds = match (&self.holds, &other.holds) {
            (Some(a), Some(b)) => Some(Box::new(a.or(b))),
            _ => None,
        };
        let dtype = self.dtype.filter(|d| other.dtype == Some(*d));
        Fact {
            dtype,
            shape,
            elems,
            holds,
        }
    }

    /// Fills in from a claim what is not known; where both speak, `self` wins.
    pub fn fill_from(&mut self, claim: &Fact) {
        if self.holds.is_some() || claim.holds.is_some() {
            if self.is_unknown() {
                *self = claim.clone();
            }
            return;
        }
        self.dtype = self.dtype.or(claim.dtype);
        match (&mut self.shape, &claim.shape) {
            (None, Some(_)) => self.shape = claim.shape.clone(),
            (Some(mine), Some(theirs)) if mine.len() == theirs.len() => {
                for (m, t) in mine.iter_mut().zip(theirs) {
                    if *m == Dim::Unknown {
                        *m = t.clone();
                    }
                }
            }
            _ => {}
        }
    }
}

/// The dimensions of the result when two operands are broadcast against each other (ONNX "Broadcasting", NumPy rules).
///
/// # Errors
/// When two known dimensions differ and neither is 1.
pub fn broadcast_dims(a: &[Dim], b: &[Dim]) -> Result<Vec<Dim>> {
    let rank = a.len().max(b.len());
    let one = Dim::Known(1);
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(one.clone(), |j| s[j].clone());
    (0..rank)
        .map(|i| {
            Ok(match (at(a, i), at(b, i)) {
                (Dim::Known(1), d) | (d, Dim::Known(1)) => d,
                (Dim::Known(x), Dim::Known(y)) if x != y => {
                    bail!("{} and {} cannot be broadcast against each other", show(a), show(b))
                }
                (Dim::Known(n), _) | (_, Dim::Known(n)) => Dim::Known(n),
                (x, y) => x.or(&y),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::f;
    use super::*;

    fn both(a: &str, b: &str) -> String {
        let (a, b) = (f(a).shape.expect("a shape"), f(b).shape.expect("a shape"));
        broadcast_dims(&a, &b).map_or_else(|e| e.to_string(), |s| show(&s))
    }

    #[test]
    fn broadcasting_keeps_what_is_certain() {
        assert_eq!(both("2, 1, 4", "3, 1"), "[2, 3, 4]");
        assert_eq!(both("N, 3", "1, 3"), "[N, 3]");
        assert_eq!(both("N, 3", "N, ?"), "[N, 3]", "3 is not 1, so the other is 1 or 3");
        assert_eq!(both("N", "M"), "[?]");
        assert_eq!(both("?", "1"), "[?]");
        assert_eq!(both("0", "1"), "[0]");
        assert!(both("2", "3").contains("cannot be broadcast"));
    }

    #[test]
    fn joining_branches_forgets_where_they_differ() {
        assert_eq!(f("2, N, 4").or(&f("2, N, 5")), f("2, N, ?"));
        assert_eq!(f("2").or(&f("2, 3")).shape, None);
    }

    #[test]
    fn a_claim_fills_in_and_does_not_overrule() {
        let mut fact = f("?, 3");
        fact.fill_from(&f("N, 4"));
        assert_eq!(fact, f("N, 3"));
        fact.fill_from(&f("1, 2, 3"));
        assert_eq!(fact, f("N, 3"));
    }

    #[test]
    fn products_that_overflow_are_unknown() {
        assert_eq!(Dim::Known(usize::MAX).times(&Dim::Known(2)), Dim::Unknown);
        assert_eq!(Dim::Known(usize::MAX).plus(&Dim::Known(1)), Dim::Unknown);
        assert_eq!(product(&[Dim::Known(usize::MAX), Dim::Known(3)]), None);
    }
}
