//! Which part of the samples a machine measures.

use anyhow::{Context, Result, ensure};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// A part of the samples: number `k` (from 1) of `n`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shard {
    /// Which.
    pub k: u32,
    /// Of how many.
    pub n: u32,
}

impl Shard {
    /// All samples.
    pub const ALL: Shard = Shard { k: 1, n: 1 };

    /// Which of so many runs it measures: with more shards than runs, some measure none.
    pub fn of(self, runs: usize) -> Range<usize> {
        let edge = |k: u32| (u64::from(k) * runs as u64 / u64::from(self.n)) as usize;
        edge(self.k - 1)..edge(self.k)
    }
}

impl FromStr for Shard {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Shard> {
        let parts = text.split_once('/').context("write 3/8, the third of eight");
        let (k, n) = parts?;
        let number = |text: &str| text.trim().parse::<u32>().context("write 3/8, the third of eight");
        let (k, n) = (number(k)?, number(n)?);
        ensure!(
            1 <= k && k <= n,
            "shards are counted from 1: 1/{0} to {0}/{0}",
            n.max(1)
        );
        Ok(Shard { k, n })
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.k, self.n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_cover_all_runs_once() {
        for (n, runs) in [(1, 16), (3, 16), (8, 16), (16, 16), (40, 16), (5, 3), (2, 0)] {
            let all = (1..=n).flat_map(|k| Shard { k, n }.of(runs));
            assert_eq!(all.collect::<Vec<_>>(), (0..runs).collect::<Vec<_>>());
        }
    }

    #[test]
    fn shards_are_read_as_they_are_written() {
        let third: Shard = "3/8".parse().expect("a shard");
        assert_eq!((third.k, third.n, third.to_string().as_str()), (3, 8, "3/8"));
        for wrong in ["", "3", "0/3", "4/3", "0/0", "-1/2", "1/x", "1/99999999999"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
