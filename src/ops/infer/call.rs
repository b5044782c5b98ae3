//! One operator application as an infer function sees it, and the questions that many operators ask.

use super::fact::{Dim, Elem, Fact, broadcast_dims, show};
use crate::ir::{DType, Node};
use anyhow::{Result, bail, ensure};

/// A node with what is known of its inputs.
pub struct Call<'a> {
    /// The node, for its attributes.
    pub node: &'a Node,
    /// The version of the operator set of the node's domain.
    pub opset: i64,
    /// One entry for every input; `None` is an optional input left out.
    pub inputs: Vec<Option<&'a Fact>>,
}

impl Call<'_> {
    /// True when input `i` is there.
    pub fn has(&self, i: usize) -> bool {
        self.fact(i).is_some()
    }
    /// What is known of input `i`, if it is there.
    pub fn fact(&self, i: usize) -> Option<&Fact> {
        self.inputs.get(i).copied().flatten()
    }
    /// The element type of input `i`.
    pub fn dtype(&self, i: usize) -> Option<DType> {
        self.fact(i)?.dtype
    }
    /// The dimensions of input `i`.
    pub fn shape(&self, i: usize) -> Option<&[Dim]> {
        self.fact(i)?.shape.as_deref()
    }
    /// The elements of input `i`, as far as they are known.
    pub fn elems(&self, i: usize) -> Option<&[Elem]> {
        self.fact(i)?.elems.as_deref()
    }
    /// The elements of input `i` as integers.
    pub fn ints(&self, i: usize) -> Option<Vec<i64>> {
        self.fact(i)?.ints()
    }
    /// The only element of input `i` as an integer.
    pub fn int(&self, i: usize) -> Option<i64> {
        match self.elems(i)? {
            [e] => e.int(),
            _ => None,
        }
    }
    /// An integer attribute, or its default.
    pub fn int_or(&self, name: &str, default: i64) -> i64 {
        self.node.int_or(name, default)
    }
    /// A type attribute (`dtype`, `to`), if it is there and known.
    pub fn type_attr(&self, name: &str) -> Option<DType> {
        let d = i32::try_from(self.node.int(name)?).ok()?;
        DType::try_from(d).ok().filter(|d| *d != DType::Undefined)
    }
    /// The type and dimensions of input `i`, without its elements.
    pub fn like(&self, i: usize) -> Fact {
        self.fact(i)
            .map_or_else(Fact::default, |f| Fact::new(f.dtype, f.shape.clone()))
    }
    /// The dimensions of input `i` with a type of its own.
    pub fn shaped(&self, dtype: Option<DType>, i: usize) -> Fact {
        Fact::new(dtype, self.shape(i).map(<[Dim]>::to_vec))
    }
    /// The dimensions of these inputs broadcast together; `None` when one of them is not known.
    ///
    /// # Errors
    /// When they certainly cannot be broadcast.
    pub fn broadcast(&self, slots: impl IntoIterator<Item = usize>) -> Result<Option<Vec<Dim>>> {
        let mut all: Option<Vec<Dim>> = Some(Vec::new());
        for i in slots {
            all = match (all, self.shape(i)) {
                (Some(a), Some(b)) => Some(broadcast_dims(&a, b)?),
                _ => None,
            };
        }
        Ok(all)
    }
    /// The attribute `axis`, counted from the front.
    ///
    /// # Errors
    /// When it is out of range.
    pub fn axis(&self, default: i64, rank: usize) -> Result<usize> {
        axis_of(self.int_or("axis", default), rank)
    }
    /// Whole numbers that were an attribute before opset `since` and are input `slot` from then on.
    pub fn attr_or_input(&self, name: &str, slot: usize, since: i64) -> Given {
        if self.opset < since {
            return self.node.ints(name).map_or(Given::Absent, |v| Given::Known(v.to_vec()));
        }
        match self.fact(slot) {
            None => Given::Absent,
            Some(f) => f.ints().map_or(Given::Unknown, Given::Known),
        }
    }
    /// An error unless input `i` has `rank` dimensions (or their number is not known).
    ///
    /// # Errors
    /// When it certainly has another number of dimensions.
    pub fn want_rank(&self, i: usize, rank: usize) -> Result<()> {
        match self.shape(i) {
            Some(s) if s.len() != rank => bail!("input {i} is {}, but must have {rank} dimensions", show(s)),
            _ => Ok(()),
        }
    }
}

/// Whole numbers that an operator takes from an attribute or an input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Given {
    /// Left out: the default holds.
    Absent,
    /// These.
    Known(Vec<i64>),
    /// Computed at run time.
    Unknown,
}

impl Given {
    /// The numbers, `default` when they were left out, `None` when they are not known.
    pub fn or(self, default: impl FnOnce() -> Vec<i64>) -> Option<Vec<i64>> {
        match self {
            Given::Absent => Some(default()),
            Given::Known(v) => Some(v),
            Given::Unknown => None,
        }
    }
}

/// An axis counted from the front.
///
/// # Errors
/// When it is not in `-rank..rank`.
pub fn axis_of(axis: i64, rank: usize) -> Result<usize> {
    let r = i64::try_from(rank)?;
    ensure!(
        (-r..r).contains(&axis),
        "axis {axis} is out of range for {rank} dimensions"
    );
    Ok(usize::try_from(if axis < 0 { axis + r } else { axis })?)
}

/// Axes counted from the front, sorted.
///
/// # Errors
/// When one is out of range or there twice.
pub fn axes_of(axes: &[i64], rank: usize) -> Result<Vec<usize>> {
    ensure!(axes.len() <= rank, "{} axes for {rank} dimensions", axes.len());
    let mut all = axes.iter().map(|&a| axis_of(a, rank)).collect::<Result<Vec<usize>>>()?;
    all.sort_unstable();
    ensure!(all.windows(2).all(|w| w[0] != w[1]), "an axis is given twice: {axes:?}");
    Ok(all)
}

/// An error when two dimensions certainly differ.
///
/// # Errors
/// Says what the dimensions are of.
pub fn agree(a: &Dim, b: &Dim, what: &str) -> Result<()> {
    ensure!(!a.differs(b), "{what}: {a} and {b}");
    Ok(())
}
