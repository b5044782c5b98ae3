//! What outputs are computed from, where a function that saturates comes last: two outputs of a Softmax at 1.0 may agree while
//! the values before it have nothing in common.

use crate::ir::{Model, ValueId};
use crate::ops::saturates;

/// The value that an output is computed from by a function that saturates.
pub fn before(model: &Model, output: ValueId) -> Option<ValueId> {
    let node = model.value(output).producer()?;
    let node = model.node(node);
    node.input(0).filter(|_| saturates(node))
}

/// The value of the main graph that has a name.
pub fn named(model: &Model, name: &str) -> Option<ValueId> {
    let (mut values, main) = (model.values(), model.main_id());
    values
        .find(|(_, v)| v.name == name && v.graph() == main)
        .map(|(id, _)| id)
}
