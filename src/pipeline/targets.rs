//! How small a result has to be.

use crate::report::{Size, text};
use crate::verify::Speed;
use anyhow::{Context, Result, bail, ensure};
use std::str::FromStr;

/// An amount, or a part of what the original has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// So many.
    Count(u64),
    /// This part of the original's.
    Part(f64),
}

impl Amount {
    /// The amount for an original that has `of`.
    pub fn of(self, of: u64) -> u64 {
        match self {
            Amount::Count(n) => n,
            Amount::Part(part) => (of as f64 * part) as u64,
        }
    }
}

impl Amount {
    /// `4x` as a part of what the original has.
    ///
    /// # Errors
    /// When it is no factor of 1 or more.
    pub fn times_smaller(text: &str) -> Result<Amount> {
        let wrong = || format!("{text:?}: write 4x");
        let times: f64 = text.trim().trim_end_matches(['x', '×']).parse().with_context(wrong)?;
        ensure!(times.is_finite() && times >= 1.0, "{}: at least 1", wrong());
        Ok(Amount::Part(1.0 / times))
    }
}

impl FromStr for Amount {
    type Err = anyhow::Error;
    /// `5MB`, `300kB`, `2GB`, `20M`, `1500` (decimal units), or `50%`.
    fn from_str(text: &str) -> Result<Amount> {
        let wrong = || format!("{text:?}: write 5MB, 20M, 1500 or 50%");
        let all = text.trim();
        let digits = all.trim_end_matches(|c: char| !c.is_ascii_digit() && c != '.');
        let number: f64 = digits.parse().with_context(wrong)?;
        ensure!(number.is_finite() && number >= 0.0, "{}", wrong());
        let scale = match all[digits.len()..].trim().trim_end_matches(['B', 'b']) {
            "%" => return Ok(Amount::Part(number / 100.0)),
            "" => 1.0,
            "k" | "K" => 1e3,
            "M" | "m" => 1e6,
            "G" | "g" => 1e9,
            _ => bail!(wrong()),
        };
        Ok(Amount::Count((number * scale) as u64))
    }
}

/// How small a result has to be; every target that is given has to be met.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Targets {
    /// Most bytes on disk.
    pub max_bytes: Option<Amount>,
    /// Most multiply-accumulate operations for one sample.
    pub max_macs: Option<Amount>,
    /// Most time for one sample, in parts of the original's. It is measured at the end, and steers no search.
    pub max_latency: Option<f64>,
}

impl Targets {
    /// True when there are any that a search can look for.
    pub fn any(&self) -> bool {
        self.max_bytes.is_some() || self.max_macs.is_some()
    }

    /// The first target that is missed, in words. MACs that are not known miss none.
    pub fn missed(&self, before: &Size, after: &Size) -> Option<String> {
        let bytes = self.max_bytes.map(|m| m.of(before.bytes)).filter(|m| after.bytes > *m);
        if let Some(most) = bytes {
            let (reached, most) = (text::bytes(after.bytes), text::bytes(most));
            return Some(format!("{reached} were reached, above the {most} that were asked for"));
        }
        let (had, have) = (before.macs?, after.macs?);
        let most = self.max_macs.map(|m| m.of(had)).filter(|m| have > *m)?;
        let (reached, most) = (text::count(have), text::count(most));
        Some(format!(
            "{reached} MACs were reached, above the {most} that were asked for"
        ))
    }

    /// How the target of latency is missed, in words. What was not measured misses it.
    pub fn too_slow(&self, speed: Option<&Speed>) -> Option<String> {
        let most = self.max_latency?;
        let Some(speed) = speed else {
            return Some("the latency that was asked for could not be measured".into());
        };
        let ([low, high], reached) = (speed.interval.map(|x| x * 100.0), speed.ratio * 100.0);
        (speed.ratio > most).then(|| {
            format!(
                "the result takes {reached:.1} % of the original's time (95 % interval {low:.1} to {high:.1} %), above the \
                 {:.0} % that were asked for",
                most * 100.0
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_decimal_units() {
        let of = |text: &str| text.parse::<Amount>().map_err(|e| e.to_string());
        assert_eq!(of("5MB"), Ok(Amount::Count(5_000_000)));
        assert_eq!(of("1.5 kB"), Ok(Amount::Count(1500)));
        assert_eq!(of("20M"), Ok(Amount::Count(20_000_000)));
        assert_eq!(of("512"), Ok(Amount::Count(512)));
        assert_eq!(of("50%"), Ok(Amount::Part(0.5)));
        for bad in ["", "MB", "-3", "5 parsecs", "1e400", "%"] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_missed_target_says_what_was_reached() {
        let size = |bytes, macs| Size {
            bytes,
            macs,
            ..Size::default()
        };
        let targets = Targets {
            max_bytes: Some(Amount::Part(0.25)),
            max_macs: Some(Amount::Count(100)),
            max_latency: None,
        };
        let before = size(4000, Some(500));
        assert_eq!(targets.missed(&before, &size(1000, Some(100))), None);
        assert_eq!(targets.missed(&before, &size(1000, None)), None);
        let why = targets.missed(&before, &size(1001, Some(100))).expect("too many bytes");
        assert!(why.contains("1.0 kB"), "{why}");
        let why = targets.missed(&before, &size(1000, Some(101))).expect("too many MACs");
        assert!(why.contains("101 MACs"), "{why}");
    }
}
