//! A result against an earlier one: what must not get worse.

use super::Report;
use super::text::{bytes, count};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;

/// What an earlier report says.
#[derive(Clone, Debug, PartialEq)]
pub struct Baseline {
    bytes: u64,
    macs: Option<u64>,
    /// The result's time in parts of the original's.
    ratio: Option<f64>,
    /// By output: SQNR in dB (none when it was equal), accuracy.
    outputs: Vec<(String, Option<f64>, Option<f64>)>,
    /// By how much, in parts, a number may be worse.
    pub tolerance: f64,
}

impl Baseline {
    /// Reads what `--json` wrote.
    ///
    /// # Errors
    /// When it is no report.
    pub fn read(path: &Path, tolerance: f64) -> Result<Baseline> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        let all: Value = serde_json::from_str(&text).with_context(|| format!("{}: not JSON", path.display()))?;
        Baseline::of(&all, tolerance).with_context(|| format!("{}: not a report of onnxzip", path.display()))
    }

    fn of(all: &Value, tolerance: f64) -> Result<Baseline> {
        let after = &all["after"];
        let bytes = after["bytes"].as_u64().context("after.bytes is missing")?;
        ensure!(bytes > 0, "it wrote nothing");
        let gaps = all["gaps"].as_array().context("gaps are missing")?;
        let outer = gaps.iter().filter(|g| g["inner"] == Value::Bool(false));
        let output = |g: &Value| {
            let name = g["name"].as_str()?.to_owned();
            Some((name, g["sqnr_db"].as_f64(), g["accuracy"]["after"].as_f64()))
        };
        Ok(Baseline {
            bytes,
            macs: after["macs"].as_u64(),
            ratio: all["speed"]["ratio"].as_f64(),
            outputs: outer.filter_map(output).collect(),
            tolerance,
        })
    }

    /// The first number that is worse than it may be, in words. Accuracy may fall by the tolerance in parts of one
    /// (1 % is one point), noise may rise by it, and so may the time in parts of the original's, beyond what is uncertain of it.
    pub fn worse(&self, r: &Report) -> Option<String> {
        let grown = |now: u64, then: u64| now as f64 > then as f64 * (1.0 + self.tolerance);
        if grown(r.after.bytes, self.bytes) {
            return Some(format!(
                "{} against {} in the baseline",
                bytes(r.after.bytes),
                bytes(self.bytes)
            ));
        }
        if let (Some(now), Some(then)) = (r.after.macs, self.macs)
            && grown(now, then)
        {
            return Some(format!("{} MACs against {} in the baseline", count(now), count(then)));
        }
        if let (Some(speed), Some(then)) = (&r.speed, self.ratio)
            && speed.interval[0] > then * (1.0 + self.tolerance)
        {
            let now = speed.ratio;
            return Some(format!(
                "{now:.3} of the original's time against {then:.3} in the baseline"
            ));
        }
        self.outputs.iter().find_map(|(name, sqnr, accuracy)| {
            let g = r.gaps.iter().find(|g| !g.inner && g.name == *name)?;
            if let (Some(now), Some(then)) = (&g.accuracy, accuracy) {
                let (now, then) = (now.after, *then);
                let words = || {
                    format!(
                        "output {name:?}: accuracy {:.2} % against {:.2} % in the baseline",
                        now * 100.0,
                        then * 100.0
                    )
                };
                return (now < then - self.tolerance - 1e-9).then(words);
            }
            let (now, then) = (g.sqnr_db, sqnr.unwrap_or(f64::INFINITY));
            // Above 60 dB it is rounding, which differs between machines.
            let least = then.min(60.0) - 10.0 * (1.0 + self.tolerance).log10() - 1e-9;
            (now < least).then(|| format!("output {name:?}: {now:.1} dB against {then:.1} dB in the baseline"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Size;

    fn report(bytes: u64, macs: u64) -> Report {
        let mut r = Report::new("none".into());
        r.after = Size {
            bytes,
            macs: Some(macs),
            ..Size::default()
        };
        r
    }

    #[test]
    fn what_is_worse_than_the_tolerance_is_named() {
        let old = serde_json::from_str(&report(1000, 500).json().expect("json")).expect("json");
        let baseline = Baseline::of(&old, 0.01).expect("a report");
        assert_eq!(baseline.worse(&report(1010, 505)), None);
        assert!(baseline.worse(&report(1011, 500)).expect("bytes").contains("1.0 kB"));
        assert!(baseline.worse(&report(900, 506)).expect("MACs").contains("506 MACs"));
        assert!(Baseline::of(&serde_json::json!({"after": 3}), 0.0).is_err());
    }
}
