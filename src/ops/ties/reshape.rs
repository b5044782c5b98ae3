//! Reshape and Flatten: a channel becomes a block of columns, or columns become heads.
//!
//! Both shapes are cut into the shortest runs of axes that hold the same elements. In a run, one axis on either side carries
//! the channels: index digits of a common row-major number. The other axes of the run keep their length.

use super::Slot::{In, Out};
use super::moves::{Entry, entries, moved};
use super::{At, Fix, Flow, Map, Row};
use crate::ops::infer::Dim;

pub(super) const ROWS: &[(&[&str], Row)] = &[(&["Reshape", "Flatten"], reshape)];

const MIXED: &str = "a Reshape mixes it with other axes";

/// The longest run of axes that a Reshape may mix index by index.
const MAX_RUN: usize = 1 << 24;

/// How many elements come in one run of axes, where runs on both sides hold the same elements.
struct Run {
    from: std::ops::Range<usize>,
    to: std::ops::Range<usize>,
}

/// Cuts two shapes of the same number of elements into the shortest runs of equal size. Unknown lengths are matched by name;
/// one more on either side may be left over: the totals are equal, so if all else agrees, these two are equal too.
fn runs(from: &[Dim], to: &[Dim]) -> Option<Vec<Run>> {
    let (from, to) = (sizes(from)?, sizes(to)?);
    let (from, to) = same_names(from, to)?;
    let mut out = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < from.len() || j < to.len() {
        let (i0, j0) = (i, j);
        let (mut a, mut b) = (Size::one(), Size::one());
        loop {
            // The side that is behind takes its next axis; all in all both are equal, so one side always has one.
            let behind = (a.names.len(), a.known) <= (b.names.len(), b.known);
            match (behind && i < from.len()) || j >= to.len() {
                true => a.grow(from.get(i)?, &mut i),
                false => b.grow(to.get(j)?, &mut j),
            }
            if a == b {
                break;
            }
        }
        out.push(Run { from: i0..i, to: j0..j });
    }
    Some(out)
}

/// A number of elements: the product of what is known, and the names of the rest, sorted.
#[derive(Clone, PartialEq, Eq)]
struct Size {
    known: usize,
    names: Vec<String>,
}

impl Size {
    fn one() -> Size {
        Size {
            known: 1,
            names: Vec::new(),
        }
    }
    fn grow(&mut self, by: &Size, at: &mut usize) {
        self.known = self.known.saturating_mul(by.known);
        self.names.extend(by.names.iter().cloned());
        self.names.sort();
        *at += 1;
    }
}

/// One size for every axis; an unknown length has the empty name. `None` when there is an empty axis or several unknowns.
fn sizes(dims: &[Dim]) -> Option<Vec<Size>> {
    let of = |d: &Dim| match d {
        Dim::Known(n) => (*n, Vec::new()),
        Dim::Symbol(s) => (1, vec![format!("={s}")]),
        Dim::Unknown => (1, vec![String::new()]),
    };
    let sizes = dims.iter().map(of).map(|(known, names)| Size { known, names });
    let all: Vec<Size> = sizes.collect();
    let unknown = dims.iter().filter(|d| **d == Dim::Unknown).count();
    (unknown <= 1 && all.iter().all(|s| s.known > 0)).then_some(all)
}

/// Gives the one length that has no partner on the other side the same name on both; `None` when totals differ.
fn same_names(mut from: Vec<Size>, mut to: Vec<Size>) -> Option<(Vec<Size>, Vec<Size>)> {
    let total = |sizes: &[Size]| {
        let known = sizes.iter().try_fold(1usize, |p, s| p.checked_mul(s.known));
        let names: Vec<String> = sizes.iter().flat_map(|s| s.names.clone()).collect();
        known.map(|k| (k, names))
    };
    let ((a, mut only_from), (b, names)) = (total(&from)?, total(&to)?);
    let mut only_to = Vec::new();
    for n in names {
        match only_from.iter().position(|m| *m == n) {
            Some(i) => drop(only_from.swap_remove(i)),
            None => only_to.push(n),
        }
    }
    if a != b || only_from.len() != only_to.len() || only_from.len() > 1 {
        return None;
    }
    for (sizes, only) in [(&mut from, only_from), (&mut to, only_to)] {
        let odd = sizes.iter_mut().rev().find(|s| !only.is_empty() && s.names == only);
        if let Some(s) = odd {
            s.names = vec!["?".into()];
        }
    }
    Some((from, to))
}

fn reshape(at: &At, flow: &mut Flow) -> Option<()> {
    let runs = runs(&at.shape(In(0))?, &at.shape(Out(0))?)?;
    let (from, to) = (at.dims(In(0))?, at.dims(Out(0))?);
    for run in runs {
        if !tie_run(at, flow, &from, &to, &run) {
            run.from.for_each(|a| flow.stop((In(0), a), MIXED));
            run.to.for_each(|a| flow.stop((Out(0), a), MIXED));
        }
    }
    if at.node.is("Reshape") {
        let entries = entries(at, 1);
        for (a, _) in to.iter().enumerate() {
            match entries.as_ref().and_then(|e| e.get(a)) {
                Some(&Entry::Constant(_, _, n)) if n <= 0 => {}
                Some(&Entry::Constant(node, (slot, index), _)) => flow.fixes.push(Fix::Entry {
                    node,
                    slot,
                    index,
                    of: (Out(0), a),
                }),
                _ if to[a].is_none() => {}
                _ => flow.stop((Out(0), a), "its length is computed for a Reshape"),
            }
        }
    }
    moved(flow);
    Some(())
}

/// Ties the one axis on either side of a run that carries channels; every other axis of the run keeps its length.
fn tie_run(at: &At, flow: &mut Flow, from: &[Option<usize>], to: &[Option<usize>], run: &Run) -> bool {
    let carrier = |slot, d: &[Option<usize>], range: &std::ops::Range<usize>| {
        let long: Vec<usize> = range.clone().filter(|&a| d[a] != Some(1)).collect();
        let free = |a: &usize| at.value(slot).is_some_and(|v| !(at.stopped)(v, *a));
        let chosen = match long[..] {
            [only] => Some(only),
            _ => long.iter().copied().find(free),
        };
        (chosen, long)
    };
    let ((Some(a), ins), (Some(b), outs)) = (carrier(In(0), from, &run.from), carrier(Out(0), to, &run.to)) else {
        return run.from.clone().chain(run.to.clone()).count() == 0
            || from[run.from.clone()].iter().all(|d| *d == Some(1));
    };
    if ins.len() == 1 && outs.len() == 1 {
        flow.same((In(0), a), (Out(0), b));
        return true;
    }
    let digit = |d: &[Option<usize>], axis: usize, range: &std::ops::Range<usize>| {
        let inner = d[axis + 1..range.end]
            .iter()
            .try_fold(1usize, |p, x| p.checked_mul((*x)?));
        Some((inner?, d[axis]?))
    };
    let total = from[run.from.clone()]
        .iter()
        .try_fold(1usize, |p, x| p.checked_mul((*x)?));
    let (Some(x), Some(y), Some(total)) = (digit(from, a, &run.from), digit(to, b, &run.to), total) else {
        return false;
    };
    if total > MAX_RUN {
        return false;
    }
    let map = Map::Digits { total, from: x, to: y };
    flow.tie((In(0), a), (Out(0), b), map);
    ins.iter()
        .filter(|x| **x != a)
        .for_each(|&x| flow.stop((In(0), x), MIXED));
    outs.iter()
        .filter(|x| **x != b)
        .for_each(|&x| flow.stop((Out(0), x), MIXED));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(from: &[i64], to: &[i64]) -> Option<Vec<(std::ops::Range<usize>, std::ops::Range<usize>)>> {
        let dims = |d: &[i64]| {
            let dim = |&x: &i64| match x {
                0 => Dim::Unknown,
                x if x < 0 => Dim::Symbol(format!("n{x}")),
                x => Dim::Known(x as usize),
            };
            d.iter().map(dim).collect::<Vec<_>>()
        };
        Some(
            runs(&dims(from), &dims(to))?
                .into_iter()
                .map(|r| (r.from, r.to))
                .collect(),
        )
    }

    #[test]
    fn a_reshape_falls_into_runs_of_equal_size() {
        // 0 stands for an unknown length, negative numbers for names.
        assert_eq!(cut(&[0, 8, 7, 7], &[0, 392]), Some(vec![(0..1, 0..1), (1..4, 1..2)]));
        assert_eq!(cut(&[-1, 8, 7, 7], &[0, 392]), Some(vec![(0..1, 0..1), (1..4, 1..2)]));
        assert_eq!(
            cut(&[2, 6, 5], &[2, 3, 2, 5]),
            Some(vec![(0..1, 0..1), (1..2, 1..3), (2..3, 3..4)])
        );
        assert_eq!(
            cut(&[-1, -2, 12], &[-1, 0, 3, 4]),
            Some(vec![(0..1, 0..1), (1..2, 1..2), (2..3, 2..4)])
        );
        assert_eq!(cut(&[4, 3], &[6, 2]), Some(vec![(0..2, 0..2)]));
        assert_eq!(cut(&[0, 4], &[4, 0]), Some(vec![(0..2, 0..2)]));
        assert_eq!(cut(&[3], &[3, 1, 1]).map(|r| r.len()), Some(3));
        for (from, to) in [(&[0, 4], &[0, 5]), (&[0, 0], &[0, 0]), (&[-1, -2], &[-3, -4])] {
            assert_eq!(cut(from, to), None);
        }
        assert_eq!(cut(&[i64::MAX, 4], &[4, i64::MAX]), None);
    }
}
