//! What is known of values when a round begins: types, dimensions, small integers.

use crate::ir::{DType, Model, Origin, ValueId};
use crate::ops::infer::{Dim, Fact};
use crate::ops::types::{Types, infer};
use anyhow::Result;

/// Facts by value. Values that a rule adds have none until the next round.
pub(super) struct Facts(Types);

impl Facts {
    /// Infers from the declared inputs and the constants alone: what a file claims of inner values (`value_info`) may be
    /// wrong without harm to a runtime, and must not change what the model computes.
    ///
    /// # Errors
    /// When shapes certainly contradict each other.
    pub fn of(model: &Model) -> Result<Facts> {
        let mut bare = model.clone();
        let main = model.main_id();
        for (v, value) in model.values() {
            if value.origin() != Origin::Input || value.graph() != main {
                bare.forget_type(v);
            }
        }
        infer(&bare).map(Facts)
    }

    pub fn get(&self, v: ValueId) -> &Fact {
        self.0.fact(v)
    }
    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        self.0.dtype(v)
    }
    pub fn rank(&self, v: ValueId) -> Option<usize> {
        self.0.rank(v)
    }
    pub fn shape(&self, v: ValueId) -> Option<&[Dim]> {
        self.0.shape(v)
    }
    /// The elements as integers, when all are known.
    pub fn ints(&self, v: ValueId) -> Option<Vec<i64>> {
        self.get(v).ints()
    }
    /// True when both certainly have the same dimensions.
    pub fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        match (self.shape(a), self.shape(b)) {
            (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b)),
            _ => false,
        }
    }
    /// True when broadcasting `small` to `big` certainly gives the dimensions of `big`.
    pub fn broadcasts_into(&self, small: &[usize], big: ValueId) -> bool {
        if small.is_empty() {
            return true;
        }
        let Some(shape) = self.shape(big) else { return false };
        small.len() <= shape.len()
            && small
                .iter()
                .rev()
                .zip(shape.iter().rev())
                .all(|(&s, d)| s == 1 || d.known() == Some(s))
    }
}
