//! Putting together: Concat, Tile, and blocks of pixels as channels.

use super::Table;
use super::call::{Call, agree};
use super::fact::{Dim, Elem, Fact, MAX_ELEMS, product, show};
use super::values::{gather, strides};
use anyhow::{Context, Result, ensure};

pub(super) const TABLE: Table = &[
    ("Concat", |c| Ok(vec![concat(c, 0..c.inputs.len())?])),
    ("DepthToSpace", |c| blocks(c, true)),
    ("SpaceToDepth", |c| blocks(c, false)),
    ("Tile", tile),
];

/// The inputs `slots` along `axis` (which is 1 by default before opset 4).
pub(super) fn concat(c: &Call, slots: impl Iterator<Item = usize> + Clone) -> Result<Fact> {
    let dtype = slots.clone().find_map(|i| c.dtype(i));
    let Some(rank) = slots.clone().find_map(|i| c.shape(i)).map(<[Dim]>::len) else {
        return Ok(Fact::new(dtype, None));
    };
    let axis = c.axis(1, rank)?;
    let mut out = vec![Dim::Unknown; rank];
    out[axis] = Dim::Known(0);
    for i in slots.clone() {
        let Some(x) = c.shape(i) else {
            out[axis] = Dim::Unknown;
            continue;
        };
        ensure!(
            x.len() == rank,
            "input {i} is {}, another has {rank} dimensions",
            show(x)
        );
        for (at, d) in x.iter().enumerate() {
            if at == axis {
                out[at] = match out[at] {
                    Dim::Unknown => Dim::Unknown,
                    _ => out[at].plus(d),
                };
            } else {
                agree(
                    &out[at],
                    d,
                    &format!("dimension {at} of input {i} and of the inputs before it"),
                )?;
                out[at] = out[at].and(d);
            }
        }
    }
    let fact = Fact::new(dtype, Some(out));
    let elems = if rank == 1 {
        joined(c, slots)
    } else {
        joined_deep(c, &fact, axis, slots)
    };
    Ok(fact.with_elems(elems))
}

/// 1-D inputs one after the other; the elements of one that is not computed along are unknown.
fn joined(c: &Call, slots: impl Iterator<Item = usize>) -> Option<Vec<Elem>> {
    let mut all = Vec::new();
    for i in slots {
        match c.elems(i) {
            Some(e) => all.extend_from_slice(e),
            None => {
                let n = product(c.shape(i)?).filter(|n| *n <= MAX_ELEMS)?;
                all.resize(all.len() + n, Elem::Unknown);
            }
        }
        if all.len() > MAX_ELEMS {
            return None;
        }
    }
    Some(all).filter(|a| a.iter().any(|e| *e != Elem::Unknown))
}

fn joined_deep(c: &Call, out: &Fact, axis: usize, slots: impl Iterator<Item = usize>) -> Option<Vec<Elem>> {
    let mut parts = Vec::new();
    for i in slots {
        let dims = c.fact(i)?.dims()?;
        parts.push((c.elems(i)?, dims[axis], strides(&dims)?));
    }
    gather(&out.dims()?, |at| {
        let mut at = at.to_vec();
        for (elems, n, steps) in &parts {
            if at[axis] < *n {
                return elems
                    .get(at.iter().zip(steps).map(|(i, s)| i * s).sum::<usize>())
                    .cloned();
            }
            at[axis] -= n;
        }
        None
    })
}

/// In opset 1 the inputs were `tiles` and `axis`.
fn tile(c: &Call) -> Result<Vec<Fact>> {
    let Some(x) = c.shape(0) else {
        return Ok(vec![Fact::new(c.dtype(0), None)]);
    };
    let repeats = c.elems(1).filter(|_| c.opset >= 6);
    let Some(repeats) = repeats else {
        return Ok(vec![Fact::new(c.dtype(0), Some(vec![Dim::Unknown; x.len()]))]);
    };
    ensure!(repeats.len() == x.len(), "{} repeats for {}", repeats.len(), show(x));
    let out: Vec<Dim> = x.iter().zip(repeats).map(|(d, r)| d.times(&r.dim())).collect();
    let fact = Fact::new(c.dtype(0), Some(out));
    let elems = c.elems(0).zip(c.fact(0).and_then(Fact::dims)).and_then(|(e, from)| {
        let steps = strides(&from)?;
        let place = |at: &[usize]| {
            at.iter()
                .zip(&from)
                .zip(&steps)
                .map(|((i, n), s)| (i % n) * s)
                .sum::<usize>()
        };
        gather(&fact.dims()?, |at| e.get(place(at)).cloned())
    });
    Ok(vec![fact.with_elems(elems)])
}

/// [N, C, H, W] ↔ [N, C·b², H/b, W/b].
fn blocks(c: &Call, to_space: bool) -> Result<Vec<Fact>> {
    c.want_rank(0, 4)?;
    let b = c
        .node
        .int("blocksize")
        .and_then(|b| usize::try_from(b).ok())
        .filter(|b| *b > 0);
    let (Some(x), Some(b)) = (c.shape(0), b) else {
        return Ok(vec![Fact::new(c.dtype(0), Some(vec![Dim::Unknown; 4]))]);
    };
    let square = b.checked_mul(b).context("blocksize overflows")?;
    let up = |d: &Dim, k: usize| d.map(|n| n.checked_mul(k));
    let down = |d: &Dim, k: usize| -> Result<Dim> {
        ensure!(d.known().is_none_or(|n| n % k == 0), "{} in blocks of {b}", show(x));
        Ok(d.map(|n| Some(n / k)))
    };
    let out = if to_space {
        vec![x[0].clone(), down(&x[1], square)?, up(&x[2], b), up(&x[3], b)]
    } else {
        vec![x[0].clone(), up(&x[1], square), down(&x[2], b)?, down(&x[3], b)?]
    };
    Ok(vec![Fact::new(c.dtype(0), Some(out))])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, elems, f, ints, typed};
    use crate::ir::{Attr, DType};

    #[test]
    fn concat_of_shapes_is_a_value() {
        assert_eq!(
            elems("Concat", 13, vec![Attr::int("axis", 0)], &[ints(&[1]), ints(&[2, 3])]),
            "1 2 3"
        );
        let partly = [ints(&[1]), typed(DType::Int64, "1")];
        assert_eq!(elems("Concat", 13, vec![Attr::int("axis", 0)], &partly), "1 ?");
    }

    #[test]
    fn concat_adds_and_compares() {
        let cat = |a: &str, b: &str| dims("Concat", 13, vec![Attr::int("axis", 1)], &[f(a), f(b)]);
        assert_eq!(cat("N, 3, ?", "?, 4, 7"), "[N, 7, 7]");
        assert_eq!(cat("N, C", "N, 4"), "[N, ?]");
        assert!(cat("2, 3", "4, 3").starts_with("error"));
        assert!(cat("2, 3", "4").starts_with("error"));
    }

    #[test]
    fn blocks_move_pixels_to_channels() {
        assert_eq!(
            dims("DepthToSpace", 13, vec![Attr::int("blocksize", 2)], &[f("N, 8, 3, W")]),
            "[N, 2, 6, ?]"
        );
        assert!(dims("SpaceToDepth", 13, vec![Attr::int("blocksize", 2)], &[f("N, 8, 3, 4")]).starts_with("error"));
    }

    #[test]
    fn tile_repeats() {
        assert_eq!(dims("Tile", 13, vec![], &[f("N, 3"), ints(&[1, 2])]), "[N, 6]");
        assert_eq!(elems("Tile", 13, vec![], &[ints(&[1, 2]), ints(&[2])]), "1 2 1 2");
        assert!(dims("Tile", 13, vec![], &[f("N, 3"), ints(&[2])]).starts_with("error"));
        assert_eq!(dims("Tile", 13, vec![], &[f("4"), ints(&[i64::MAX])]), "[?]");
    }
}
