//! What is known of values when a round begins: types, dimensions, small integers.

use crate::ir::{DType, Model, ValueId};
use crate::ops::infer::{Dim, Elem, Fact};
use std::collections::HashMap;

/// Facts by value. Values that a rule adds have none until the next round.
pub(super) struct Facts(HashMap<ValueId, Fact>);

impl Facts {
    pub fn of(model: &Model) -> Facts {
        let mut all = HashMap::new();
        for (id, v) in model.values() {
            if let Some(t) = v.tensor() {
                all.insert(id, Fact::constant(t));
            }
        }
        Facts(all)
    }

    pub fn get(&self, v: ValueId) -> Option<&Fact> {
        self.0.get(&v)
    }
    pub fn dtype(&self, v: ValueId) -> Option<DType> {
        self.get(v)?.dtype
    }
    pub fn rank(&self, v: ValueId) -> Option<usize> {
        self.get(v)?.rank()
    }
    pub fn shape(&self, v: ValueId) -> Option<&[Dim]> {
        self.get(v)?.shape.as_deref()
    }
    /// The dimensions, when all are known.
    pub fn dims(&self, v: ValueId) -> Option<Vec<usize>> {
        self.get(v)?.dims()
    }
    /// The elements as integers, when all are known.
    pub fn ints(&self, v: ValueId) -> Option<Vec<i64>> {
        self.get(v)?.ints()
    }
    pub fn elems(&self, v: ValueId) -> Option<&[Elem]> {
        self.get(v)?.elems.as_deref()
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
