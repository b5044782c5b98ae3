//! Budgets as the user writes them.

use super::budget::{Budget, Condition, Metric};
use anyhow::{Context, Result, bail, ensure};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// How a budget is written.
const FORM: &str = "write sqnr:20dB, top1:1%, cosine:0.999 or accuracy:0.5pt, and @NAME behind it for one output only";

impl FromStr for Budget {
    type Err = anyhow::Error;
    /// `sqnr:20dB`, `top1:1%`, `cosine:0.999`, `accuracy:0.5pt`, each with `@NAME` behind it or not, separated by commas.
    fn from_str(text: &str) -> Result<Budget> {
        let conditions = text.split(',').map(condition).collect::<Result<_>>()?;
        Ok(Budget { conditions })
    }
}

fn condition(text: &str) -> Result<Condition> {
    let wrong = || format!("budget {text:?}: {FORM}");
    let (what, output) = match text.split_once('@') {
        Some((what, name)) => (what, Some(name.trim().to_owned())),
        None => (text, None),
    };
    ensure!(output.as_ref().is_none_or(|o| !o.is_empty()), "{}", wrong());
    let (kind, amount) = what.trim().split_once(':').with_context(wrong)?;
    let (metric, unit, scale) = match kind.trim() {
        "sqnr" => (Metric::Sqnr, "dB", 1.0),
        "cosine" => (Metric::Cosine, "", 1.0),
        "top1" => (Metric::Top1, "%", 100.0),
        "accuracy" => (Metric::Accuracy, "pt", 100.0),
        _ => bail!(wrong()),
    };
    let number = amount.trim().trim_end_matches(unit).trim();
    let number: f64 = number.parse().with_context(wrong)?;
    ensure!(number.is_finite() && number >= 0.0, "{}", wrong());
    let limit = number / scale;
    Ok(Condition { metric, limit, output })
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, c) in self.conditions.iter().enumerate() {
            let x = c.limit;
            // Percent as they were given: 0.1 and not 0.10000000000000001.
            let hundredth = (x * 1e12).round() / 1e10;
            let comma = if i > 0 { "," } else { "" };
            match c.metric {
                Metric::Sqnr => write!(f, "{comma}sqnr:{x}dB")?,
                Metric::Cosine => write!(f, "{comma}cosine:{x}")?,
                Metric::Top1 => write!(f, "{comma}top1:{hundredth}%")?,
                Metric::Accuracy => write!(f, "{comma}accuracy:{hundredth}pt")?,
            }
            if let Some(o) = &c.output {
                write!(f, "@{o}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_written_as_it_is_read() {
        for text in [
            "sqnr:20dB",
            "top1:0.1%",
            "cosine:0.999",
            "accuracy:0.3pt@y",
            "sqnr:7.5dB@a,top1:1%",
        ] {
            let budget: Budget = text.parse().expect("a budget");
            assert_eq!(budget.to_string(), text);
        }
        for text in [
            "",
            "sqnr",
            "sqnr:",
            "sqnr:x",
            "top5:1%",
            "sqnr:-3dB",
            "cosine:nan",
            "sqnr:3dB@",
        ] {
            assert!(text.parse::<Budget>().is_err(), "{text:?}");
        }
    }
}
