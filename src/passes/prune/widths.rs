//! How many channels a group keeps: multiples that runtimes compute without loss.
//!
//! ONNX Runtime's convolutions hold channels in blocks of 8 (AVX2) or 16 (AVX-512) numbers. A part of a block costs as much as all of
//! it; a depthwise Conv whose channels are not whole blocks, and a Conv whose inputs are not a multiple of 4, leave the blocked
//! form altogether, with a reorder before and after (measured: one dead channel less in ten of its layers made a network 1.4
//! times as slow as it was). So groups that a Conv makes or reads lose whole blocks, if they are not narrow. Channels that change
//! nothing go, but for those without which such a form would be left. Matrix products take any width.

use crate::analysis::groups::Groups;
use crate::ir::{Model, ValueId};
use std::collections::BTreeMap;

/// Blocks of channels.
const BLOCK: usize = 16;

/// What is asked for, or what the layers want.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RoundTo {
    /// Multiples of this.
    Fixed(usize),
    /// Blocks where convolutions want them.
    Auto,
}

impl RoundTo {
    /// How many of `all` stay where `left` would: the nearest multiple, of two the larger. Where nothing would go for the sake of
    /// blocks that nobody has asked for, halves or quarters of blocks stay.
    pub fn nearest(self, all: usize, left: usize, multiple: usize) -> usize {
        let to = |m: usize| (left.saturating_add(m / 2) / m).max(1).saturating_mul(m).min(all);
        let least = if self == RoundTo::Auto { 1 } else { multiple };
        let blocks = std::iter::successors(Some(multiple), |m| (*m > least).then_some(m / 2));
        blocks.map(to).find(|n| *n < all).unwrap_or(all)
    }
}

/// Which axes are channels of convolutions.
pub struct Widths {
    to: RoundTo,
    /// Axis → whether the channels are in groups.
    convolved: BTreeMap<(ValueId, usize), bool>,
}

impl Widths {
    /// Looks at every convolution.
    pub fn new(model: &Model, groups: &Groups, to: RoundTo) -> Widths {
        let mut convolved = BTreeMap::new();
        for (id, flow) in &groups.flows {
            let node = model.node(*id);
            if !node.is("Conv") && !node.is("ConvTranspose") {
                continue;
            }
            for dot in &flow.dots {
                let grouped = dot.groups > 1;
                let axes = [
                    node.input(dot.weight.0).map(|v| (v, dot.row)),
                    node.input(dot.data.0).map(|v| (v, dot.data.1)),
                ];
                for axis in axes.into_iter().flatten() {
                    *convolved.entry(axis).or_insert(false) |= grouped;
                }
            }
        }
        Widths { to, convolved }
    }

    /// A group of so many units on these axes keeps a multiple of this, or all.
    pub fn multiple(&self, axes: impl IntoIterator<Item = (ValueId, usize)>, members: usize) -> usize {
        self.by(axes, members, block)
    }

    /// The same where what goes changes nothing: as much as there is, but for what would make a layer slower.
    pub fn harmless(&self, axes: impl IntoIterator<Item = (ValueId, usize)>, members: usize) -> usize {
        self.by(axes, members, part_of_block)
    }

    fn by(
        &self,
        axes: impl IntoIterator<Item = (ValueId, usize)>,
        members: usize,
        multiple: fn(bool, usize) -> usize,
    ) -> usize {
        if let RoundTo::Fixed(n) = self.to {
            return n.max(1);
        }
        let found = axes.into_iter().filter_map(|a| self.convolved.get(&a));
        found
            .copied()
            .reduce(|a, b| a | b)
            .map_or(1, |grouped| multiple(grouped, members))
    }
}

/// Narrow layers lose parts of blocks: they would else lose nothing.
fn block(grouped: bool, members: usize) -> usize {
    match members {
        n if n >= 2 * BLOCK || (grouped && n >= BLOCK) => BLOCK,
        n if n >= BLOCK => BLOCK / 2,
        n if n >= BLOCK / 2 => BLOCK / 4,
        _ => 1,
    }
}

/// What a layer that is not narrow needs to keep its blocked form.
fn part_of_block(grouped: bool, members: usize) -> usize {
    match grouped {
        true if members >= BLOCK => BLOCK,
        false if members >= 2 * BLOCK => BLOCK / 4,
        _ => 1,
    }
}

/// How many of `all` may go when `gone` could, so that a multiple is left.
pub fn whole(all: usize, gone: usize, multiple: usize) -> usize {
    let left = all.saturating_sub(gone).checked_next_multiple_of(multiple.max(1));
    all.saturating_sub(left.unwrap_or(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_every_layer_goes_unless_blocks_were_asked_for() {
        let auto = [(32, 24, 24), (16, 12, 12), (96, 72, 80), (144, 108, 112), (3, 3, 3)];
        for (all, left, stay) in auto {
            assert_eq!(RoundTo::Auto.nearest(all, left, block(false, all)), stay, "{all}");
        }
        assert_eq!(RoundTo::Fixed(16).nearest(32, 24, 16), 32);
        assert_eq!(RoundTo::Fixed(1).nearest(32, 24, 1), 24);
    }

    #[test]
    fn whole_blocks_go_and_narrow_layers_lose_parts() {
        let cases = [(96, 16), (32, 16), (24, 8), (16, 8), (12, 4), (6, 1)];
        for (members, multiple) in cases {
            assert_eq!(block(false, members), multiple, "{members}");
        }
        assert_eq!((block(true, 24), block(true, 16), block(true, 8)), (16, 16, 4));
        assert_eq!((part_of_block(false, 64), part_of_block(false, 16)), (4, 1));
        assert_eq!((part_of_block(true, 64), part_of_block(true, 8)), (16, 1));
        assert_eq!((whole(96, 3, 16), whole(96, 17, 16), whole(40, 3, 16)), (0, 16, 0));
        assert_eq!((whole(40, 8, 16), whole(8, 2, 1), whole(3, 9, 4)), (8, 2, 3));
    }
}
