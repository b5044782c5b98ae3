//! Operators that take some of the indices of an axis: Split, Slice, Gather.
//!
//! After a cut they take what is left of the same indices: lists, bounds and sizes are rewritten.

use super::Slot::{In, Out};
use super::moves::{MOVED, moved};
use super::{At, Fix, Flow, Map, Row};

pub(super) const ROWS: &[(&[&str], Row)] = &[(&["Split"], split), (&["Slice"], slice), (&["Gather"], gather)];

const STRIDED: &str = "a Slice takes it with a step";

fn split(at: &At, flow: &mut Flow) -> Option<()> {
    let d = at.dims(In(0))?;
    let axis = at.axis(at.node.int_or("axis", 0), d.len())?;
    let attr = at.node.ints("split").map(<[i64]>::to_vec);
    let by_attr = attr.is_some();
    let sizes = match (attr, at.node.input(1)) {
        (Some(s), _) => Some(s),
        (None, Some(_)) => at.ints(1),
        (None, None) => None,
    };
    let unsaid = !by_attr && at.node.input(1).is_none();
    let equal = d[axis]
        .filter(|_| unsaid)
        .map(|n| equal_parts(n, at.node.outputs().len()));
    let mut offset = 0usize;
    for k in 0..at.node.outputs().len() {
        at.node.output(k)?;
        for a in (0..d.len()).filter(|a| *a != axis) {
            flow.same((In(0), a), (Out(k), a));
        }
        let size = match &equal {
            Some(parts) => parts.get(k).copied(),
            None => sizes.as_ref().and_then(|s| usize::try_from(*s.get(k)?).ok()),
        };
        let Some(n) = size else {
            flow.stop((In(0), axis), "it is split into parts of computed size");
            flow.stop((Out(k), axis), "it is one of parts of computed size");
            continue;
        };
        flow.tie((Out(k), axis), (In(0), axis), Map::Offset(offset));
        offset = offset.checked_add(n)?;
        let of = (Out(k), axis);
        match (unsaid, by_attr) {
            (true, _) => {}
            (_, true) => flow.fixes.push(Fix::AttrEntry {
                name: "split",
                index: k,
                of,
            }),
            (_, false) => flow.fixes.push(Fix::Entry {
                node: at.id,
                slot: 1,
                index: k,
                of,
            }),
        }
    }
    if unsaid {
        flow.fixes.push(Fix::Sizes { axis });
    }
    moved(flow);
    Some(())
}

/// Parts of equal size, the last one smaller when they do not divide the whole.
fn equal_parts(n: usize, parts: usize) -> Vec<usize> {
    let each = n.div_ceil(parts.max(1));
    (0..parts).map(|k| each.min(n.saturating_sub(k * each))).collect()
}

/// What a Slice takes of one axis.
struct Taken {
    axis: usize,
    start: i64,
    end: i64,
    step: i64,
}

/// What a Slice takes, where all of that is constant.
fn taken(at: &At, rank: usize) -> Option<(Vec<Taken>, bool)> {
    let by_attr = at.node.ints("starts").is_some();
    let (starts, ends, axes, steps) = match by_attr {
        true => {
            let axes = at.node.ints("axes").map(<[i64]>::to_vec);
            (
                at.node.ints("starts")?.to_vec(),
                at.node.ints("ends")?.to_vec(),
                axes,
                None,
            )
        }
        false => {
            let optional = |slot: usize| match at.node.input(slot) {
                Some(_) => at.ints(slot).map(Some),
                None => Some(None),
            };
            (at.ints(1)?, at.ints(2)?, optional(3)?, optional(4)?)
        }
    };
    let axes = axes.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let one = |(k, &start): (usize, &i64)| {
        Some(Taken {
            axis: at.axis(*axes.get(k)?, rank)?,
            start,
            end: *ends.get(k)?,
            step: steps.as_ref().map_or(Some(1), |s| s.get(k).copied())?,
        })
    };
    let all: Option<Vec<Taken>> = starts.iter().enumerate().map(one).collect();
    all.map(|t| (t, by_attr))
}

fn slice(at: &At, flow: &mut Flow) -> Option<()> {
    let (from, to) = (at.dims(In(0))?, at.dims(Out(0))?);
    let rank = from.len();
    let Some((taken, by_attr)) = taken(at, rank) else {
        return computed(at, flow, rank);
    };
    for a in (0..rank).filter(|a| taken.iter().all(|t| t.axis != *a)) {
        flow.same((In(0), a), (Out(0), a));
    }
    for (index, t) in taken.iter().enumerate() {
        let stop = |flow: &mut Flow, why| {
            flow.stop((In(0), t.axis), why);
            flow.stop((Out(0), t.axis), why);
        };
        let (Some(n), Some(m)) = (from[t.axis], to.get(t.axis).copied().flatten()) else {
            stop(flow, MOVED);
            continue;
        };
        let bound = |x: i64| (if x < 0 { x.saturating_add(n as i64) } else { x }).clamp(0, n as i64) as usize;
        let (start, end) = (bound(t.start), bound(t.end));
        if t.step != 1 || end.checked_sub(start) != Some(m) {
            stop(flow, STRIDED);
            continue;
        }
        flow.tie((Out(0), t.axis), (In(0), t.axis), Map::Offset(start));
        flow.fixes.push(Fix::Bounds {
            by_attr,
            index,
            axis: t.axis,
            range: start..end,
        });
    }
    moved(flow);
    Some(())
}

/// A Slice whose bounds are computed: only its axes are known.
fn computed(at: &At, flow: &mut Flow, rank: usize) -> Option<()> {
    let axes: Vec<usize> = match at.node.input(3) {
        Some(_) => at.ints(3)?.iter().map(|&a| at.axis(a, rank)).collect::<Option<_>>()?,
        None => (0..at.dims(In(1))?.first().copied()??.min(rank)).collect(),
    };
    super::moves::keep_axes(flow, rank, &axes);
    Some(())
}

fn gather(at: &At, flow: &mut Flow) -> Option<()> {
    let (rank, index_rank) = (at.dims(In(0))?.len(), at.dims(In(1))?.len());
    let axis = at.axis(at.node.int_or("axis", 0), rank)?;
    for a in (0..rank).filter(|a| *a != axis) {
        let to = if a < axis { a } else { a + index_rank - 1 };
        flow.same((In(0), a), (Out(0), to));
    }
    let list = at.ints(1).filter(|_| index_rank == 1);
    let length = at.dims(In(0))?[axis];
    let picks = list.zip(length).and_then(|(list, n)| {
        let index = |i: &i64| {
            usize::try_from(if *i < 0 { i + n as i64 } else { *i })
                .ok()
                .filter(|i| *i < n)
        };
        list.iter().map(index).collect::<Option<Vec<usize>>>()
    });
    match picks {
        Some(list) => {
            flow.tie((In(0), axis), (Out(0), axis), Map::Pick(list));
            flow.fixes.push(Fix::Picks {
                slot: 1,
                from: (In(0), axis),
                to: (Out(0), axis),
            });
        }
        None => {
            flow.stop((In(0), axis), MOVED);
            flow.stop_slot(In(1), MOVED);
            (axis..axis + index_rank).for_each(|a| flow.stop((Out(0), a), MOVED));
        }
    }
    moved(flow);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_equal_parts_may_be_smaller() {
        assert_eq!(equal_parts(8, 2), [4, 4]);
        assert_eq!(equal_parts(7, 3), [3, 3, 1]);
        assert_eq!(equal_parts(2, 3), [1, 1, 0]);
    }
}
