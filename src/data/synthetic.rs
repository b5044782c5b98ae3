//! Made-up samples, when there are no real ones: nearly standard normal floats, zeros and ones for integers and booleans.
//!
//! They let every step run, but say nothing about the ranges that real inputs reach.

use super::{InputSpec, Sample, Source};
use crate::ir::{DType, Tensor};
use crate::math::hash;
use anyhow::{Result, bail};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Seeded samples for these inputs.
pub struct Synthetic {
    specs: Vec<InputSpec>,
    seed: u64,
    count: usize,
}

impl Synthetic {
    /// `count` samples.
    pub fn new(specs: &[InputSpec], seed: u64, count: usize) -> Synthetic {
        Synthetic {
            specs: specs.to_vec(),
            seed,
            count,
        }
    }
}

/// The first axis that may vary is the batch, 1; others get a size at which most networks run.
fn guess(spec: &InputSpec) -> Vec<usize> {
    let dims = spec.dims.clone().unwrap_or_default();
    let spatial = if dims.len() >= 4 { 64 } else { 16 };
    let of = |(i, d): (usize, &Option<usize>)| d.unwrap_or(if i == 0 { 1 } else { spatial });
    dims.iter().enumerate().map(of).collect()
}

/// A stream of numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        hash::next(&mut self.0)
    }
    /// Nearly: four uniform numbers of 16 bits summed, of mean 0 and variance 1, at most 2·√3 from 0. A large image is made in
    /// the time that reading one takes; logarithms and cosines would take longer than a small model runs.
    fn normal(&mut self) -> f32 {
        let word = self.next();
        let sum: i32 = (0..4).map(|k| i32::from((word >> (16 * k)) as u16)).sum();
        const MEAN: i32 = 2 * 65535;
        (sum - MEAN) as f32 * (1.732_050_8 / 65536.0)
    }
}

impl Source for Synthetic {
    fn len(&self) -> usize {
        self.count
    }
    fn read(&self, i: usize) -> Result<Sample> {
        let mut random = Random(self.seed ^ (i as u64).wrapping_mul(0xd134_2543_de82_ef95));
        let one = |spec: &InputSpec| Ok((spec.name.clone(), make(spec, &mut random)?));
        self.specs.iter().map(one).collect()
    }
    fn dims(&self) -> Option<BTreeMap<String, Vec<usize>>> {
        Some(self.specs.iter().map(|s| (s.name.clone(), guess(s))).collect())
    }
}

fn make(spec: &InputSpec, random: &mut Random) -> Result<Tensor> {
    let dims = guess(spec);
    let n = dims
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|n| *n < 1 << 30);
    let Some(n) = n else {
        bail!("input {:?} is too large to make up: {}", spec.name, spec.describe())
    };
    let mut floats = || (0..n).map(|_| random.normal()).collect::<Vec<f32>>();
    Ok(match spec.dtype {
        DType::Float | DType::Undefined => Tensor::new(&dims, floats()),
        DType::Double => Tensor::new(&dims, floats().into_iter().map(f64::from).collect()),
        DType::Float16 => Tensor::new(&dims, floats().into_iter().map(half::f16::from_f32).collect()),
        DType::Int64 => Tensor::new(&dims, (0..n).map(|_| (random.next() & 1) as i64).collect()),
        DType::Int32 => Tensor::new(&dims, (0..n).map(|_| (random.next() & 1) as i32).collect()),
        DType::Uint8 | DType::Int8 | DType::Bool => {
            let bytes: Vec<u8> = (0..n).map(|_| (random.next() & 1) as u8).collect();
            Tensor::from_raw(spec.dtype, &dims, Bytes::from(bytes))?
        }
        other => bail!(
            "input {:?} is {}; samples of this type cannot be made up, give real ones with --calib",
            spec.name,
            other.as_str_name().to_lowercase()
        ),
    })
}
