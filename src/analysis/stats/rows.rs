//! Rows for second moments, cut out of activations.
//!
//! A second moment needs some thousand rows, not all: neighbouring positions of a feature map tell much the same. When
//! a sample has more positions than wanted, they are parted into as many runs of equal length and one is taken of each,
//! by a hash of the sample's number and the run's. So the choice is spread out, follows no grid that could resonate with
//! the width of the map, and is the same in every run of the program.

use super::{Detail, Patch};
use crate::math::hash::splitmix;
use anyhow::{Context, Result, ensure};
use std::borrow::Cow;

/// Rows of every group, one group after the other, each row-major.
pub struct Rows {
    /// Numbers in a row.
    pub dim: usize,
    /// Number of groups of channels.
    pub groups: usize,
    /// `groups × rows × dim` numbers.
    pub data: Vec<f32>,
}

impl Rows {
    /// Rows of each group.
    pub fn count(&self) -> usize {
        self.data.len().checked_div(self.groups * self.dim).unwrap_or(0)
    }

    /// Leaves so many rows of each group.
    pub fn keep(&mut self, most: usize, sample: usize) {
        let (rows, chosen) = (self.count(), choose(self.count(), most, sample));
        if chosen.len() < rows {
            let at = |group: usize, row: &usize| (group * rows + row) * self.dim;
            let places = (0..self.groups).flat_map(|group| chosen.iter().map(move |row| at(group, row)));
            let mut data = Vec::with_capacity(self.groups * chosen.len() * self.dim);
            places.for_each(|at| data.extend_from_slice(&self.data[at..at + self.dim]));
            self.data = data;
        }
    }
}

/// Numbers in a row, and groups.
pub fn shape(dims: &[usize], patch: &Patch) -> Result<(usize, usize)> {
    match patch {
        Patch::Axis(axis) => Ok((dims[axis_of(dims, *axis)?], 1)),
        Patch::Windows { kernel, groups, .. } => {
            ensure!(
                dims.len() == kernel.len() + 2,
                "has dimensions {dims:?}, which do not fit a kernel of {kernel:?}"
            );
            ensure!(
                *groups > 0 && dims[1].is_multiple_of(*groups),
                "has {} channels, which {groups} groups do not divide",
                dims[1]
            );
            let taps = kernel.iter().try_fold(dims[1] / groups, |n, &k| n.checked_mul(k));
            Ok((taps.context("kernel too large")?, *groups))
        }
    }
}

/// An axis counted from the front.
pub fn axis_of(dims: &[usize], axis: i64) -> Result<usize> {
    let rank = dims.len() as i64;
    let front = if axis < 0 { axis + rank } else { axis };
    ensure!(
        (0..rank).contains(&front),
        "has dimensions {dims:?}, and no axis {axis}"
    );
    Ok(front as usize)
}

/// How many rows to take of one sample at most.
pub fn most_rows(dim: usize, samples: usize, detail: Detail) -> usize {
    detail.rows(dim).div_ceil(samples.max(1))
}

/// Cuts rows out of one value of sample number `sample`.
pub fn cut(x: &[f32], dims: &[usize], patch: &Patch, sample: usize, most: usize) -> Result<Rows> {
    let (dim, groups) = shape(dims, patch)?;
    let data = match patch {
        Patch::Axis(axis) => along_axis(x, dims, axis_of(dims, *axis)?, sample, most),
        Patch::Windows {
            kernel,
            strides,
            pads,
            dilations,
            ..
        } => Windows::new(dims, kernel, strides, pads, dilations, groups)?.cut(x, sample, most),
    };
    Ok(Rows { dim, groups, data })
}

fn along_axis(x: &[f32], dims: &[usize], axis: usize, sample: usize, most: usize) -> Vec<f32> {
    let length = dims[axis];
    let inner: usize = dims[axis + 1..].iter().product();
    let outer: usize = dims[..axis].iter().product();
    let chosen = choose(outer * inner, most, sample);
    let mut data = Vec::with_capacity(chosen.len() * length);
    for at in chosen {
        let start = at / inner * length * inner + at % inner;
        match inner {
            1 => data.extend_from_slice(&x[start..start + length]),
            _ => data.extend(x[start..].iter().step_by(inner).take(length)),
        }
    }
    data
}

/// At most `most` of the numbers of a value, in runs of 64 that lie together.
pub fn some(x: &[f32], most: usize, sample: usize) -> Cow<'_, [f32]> {
    const RUN: usize = 64;
    if x.len() <= most {
        return Cow::Borrowed(x);
    }
    let runs = choose(x.len() / RUN, most / RUN, sample);
    let mut some = Vec::with_capacity(runs.len() * RUN);
    runs.into_iter()
        .for_each(|at| some.extend_from_slice(&x[at * RUN..][..RUN]));
    Cow::Owned(some)
}

/// At most `most` of the positions `0..total`, ascending.
pub fn choose(total: usize, most: usize, sample: usize) -> Vec<usize> {
    if total <= most {
        return (0..total).collect();
    }
    let edge = |j: usize| (j as u128 * total as u128 / most as u128) as usize;
    let pick = |j: usize| {
        let (start, end) = (edge(j), edge(j + 1));
        start + (splitmix((sample as u64) << 32 | j as u64) % (end - start) as u64) as usize
    };
    (0..most).map(pick).collect()
}

/// The windows of a convolution over one value `[N, C, spatial…]`.
struct Windows {
    batch: usize,
    channels: usize,
    groups: usize,
    /// Input sizes.
    sizes: Vec<usize>,
    /// Numbers of window positions.
    counts: Vec<usize>,
    strides: Vec<usize>,
    begins: Vec<usize>,
    /// For every tap of the kernel its distance from the window's corner, along every axis.
    taps: Vec<Vec<usize>>,
}

impl Windows {
    fn new(
        dims: &[usize],
        kernel: &[usize],
        strides: &[usize],
        pads: &[usize],
        dilations: &[usize],
        groups: usize,
    ) -> Result<Windows> {
        let rank = kernel.len();
        ensure!(
            strides.len() == rank && dilations.len() == rank && pads.len() == 2 * rank,
            "windows of {kernel:?}: strides, pads or dilations are too few"
        );
        ensure!(!strides.contains(&0), "windows with a step of zero");
        let sizes = dims[2..].to_vec();
        let mut counts = Vec::with_capacity(rank);
        for i in 0..rank {
            let reach = kernel[i].checked_sub(1).and_then(|k| k.checked_mul(dilations[i]));
            let reach = reach.context("windows of size zero")?;
            let padded = sizes[i].saturating_add(pads[i]).saturating_add(pads[i + rank]);
            counts.push(if padded > reach {
                (padded - reach - 1) / strides[i] + 1
            } else {
                0
            });
        }
        let mut taps = vec![Vec::new()];
        for i in 0..rank {
            let steps = |t: &Vec<usize>| {
                let t = t.clone();
                (0..kernel[i]).map(move |k| [t.as_slice(), &[k * dilations[i]]].concat())
            };
            taps = taps.iter().flat_map(steps).collect();
        }
        Ok(Windows {
            batch: dims[0],
            channels: dims[1],
            groups,
            sizes,
            counts,
            strides: strides.to_vec(),
            begins: pads[..rank].to_vec(),
            taps,
        })
    }

    fn cut(&self, x: &[f32], sample: usize, most: usize) -> Vec<f32> {
        let positions: usize = self.counts.iter().product();
        let plane: usize = self.sizes.iter().product();
        let chosen = choose(self.batch * positions, most, sample);
        let per_group = self.channels / self.groups;
        let mut data = Vec::with_capacity(chosen.len() * self.channels * self.taps.len());
        // Where each tap of each chosen window lies in a plane; `None` in the padding.
        let offsets: Vec<Option<usize>> = chosen.iter().flat_map(|at| self.offsets(at % positions)).collect();
        for group in 0..self.groups {
            for (row, at) in chosen.iter().enumerate() {
                let taps = &offsets[row * self.taps.len()..][..self.taps.len()];
                for channel in 0..per_group {
                    let channel = group * per_group + channel;
                    let start = (at / positions * self.channels + channel) * plane;
                    let plane = &x[start..start + plane];
                    data.extend(taps.iter().map(|o| o.map_or(0.0, |o| plane[o])));
                }
            }
        }
        data
    }

    fn offsets(&self, position: usize) -> impl Iterator<Item = Option<usize>> {
        let mut corner = vec![0; self.counts.len()];
        let mut rest = position;
        for i in (0..corner.len()).rev() {
            corner[i] = rest % self.counts[i] * self.strides[i];
            rest /= self.counts[i];
        }
        self.taps.iter().map(move |tap| {
            let mut offset = 0;
            for i in 0..corner.len() {
                let at = (corner[i] + tap[i]).checked_sub(self.begins[i]);
                offset = offset * self.sizes[i] + at.filter(|at| *at < self.sizes[i])?;
            }
            Some(offset)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(kernel: &[usize], stride: usize, pad: usize, groups: usize) -> Patch {
        let rank = kernel.len();
        Patch::Windows {
            kernel: kernel.to_vec(),
            strides: vec![stride; rank],
            pads: vec![pad; 2 * rank],
            dilations: vec![1; rank],
            groups,
        }
    }

    #[test]
    fn rows_times_weights_are_the_convolution() {
        // x: [1, 2, 3, 3], kernel 2×2, pad 1, stride 2: position (1, 0) sees rows 1..3, columns -1..1.
        let x: Vec<f32> = (0..18).map(|i| i as f32).collect();
        let rows = cut(&x, &[1, 2, 3, 3], &windows(&[2, 2], 2, 1, 1), 0, 100).expect("fits");
        assert_eq!((rows.dim, rows.groups, rows.data.len()), (8, 1, 4 * 8));
        assert_eq!(rows.data[..8], [0., 0., 0., 0., 0., 0., 0., 9.]);
        assert_eq!(rows.data[2 * 8..3 * 8], [0., 3., 0., 6., 0., 12., 0., 15.]);
    }

    #[test]
    fn every_group_has_its_own_rows() {
        let x: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let rows = cut(&x, &[1, 2, 4], &windows(&[2], 2, 0, 2), 0, 100).expect("fits");
        assert_eq!((rows.dim, rows.groups), (2, 2));
        assert_eq!(rows.data, [0., 1., 2., 3., 4., 5., 6., 7.]);
    }

    #[test]
    fn an_axis_is_read_at_every_index_of_the_others() {
        let x: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let rows = |axis| cut(&x, &[1, 2, 3], &Patch::Axis(axis), 0, 100).expect("fits").data;
        assert_eq!(rows(-1), [0., 1., 2., 3., 4., 5.]);
        assert_eq!(rows(1), [0., 3., 1., 4., 2., 5.]);
    }

    #[test]
    fn chosen_positions_are_spread_distinct_and_differ_between_samples() {
        let a = choose(10_000, 256, 0);
        assert!(a.windows(2).all(|w| w[0] < w[1]) && a[255] < 10_000 && a.len() == 256);
        assert_ne!(a, choose(10_000, 256, 1));
        assert_eq!(a, choose(10_000, 256, 0));
        assert_eq!(choose(5, 256, 3), [0, 1, 2, 3, 4]);
        assert!(choose(0, 256, 3).is_empty());
    }

    #[test]
    fn some_numbers_are_runs_of_the_value() {
        let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
        assert_eq!(*some(&x, 1000, 0), x[..]);
        let few = some(&x, 256, 3);
        assert_eq!(few.len(), 256);
        assert!(few.chunks(64).all(|run| run.windows(2).all(|w| w[1] == w[0] + 1.0)));
    }

    #[test]
    fn fewer_rows_are_whole_rows_of_every_group() {
        let mut rows = Rows {
            dim: 2,
            groups: 2,
            data: (0..40).map(|i| i as f32).collect(),
        };
        rows.keep(3, 5);
        assert_eq!((rows.count(), rows.data.len()), (3, 12));
        let starts: Vec<f32> = rows.data.iter().copied().step_by(2).collect();
        assert!(
            (0..3).all(|i| starts[i] < 20.0 && starts[i + 3] == starts[i] + 20.0),
            "{starts:?}"
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(cut(&[0.0; 4], &[4], &Patch::Axis(1), 0, 9).is_err());
        assert!(cut(&[0.0; 4], &[1, 2, 2], &windows(&[1, 1], 1, 0, 1), 0, 9).is_err());
        assert!(cut(&[0.0; 6], &[1, 3, 2], &windows(&[1], 1, 0, 2), 0, 9).is_err());
        assert!(cut(&[0.0; 6], &[1, 3, 2], &windows(&[1], 0, 0, 1), 0, 9).is_err());
        assert!(cut(&[0.0; 6], &[1, 3, 2], &windows(&[0], 1, 0, 1), 0, 9).is_err());
        let wide = cut(&[0.0; 6], &[1, 3, 2], &windows(&[5], 1, 0, 1), 0, 9).expect("no position");
        assert!(wide.data.is_empty());
    }
}
