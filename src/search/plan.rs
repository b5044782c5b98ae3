//! What a search tries: passes with their strengths.

use crate::passes::{ALL, Part, Request, parse_list, parts};
use anyhow::Result;
use std::fmt;

/// How long a search may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Effort {
    /// Precision only: two or three measurements; six where a target has to be met.
    Fast,
    /// Twelve measurements at most.
    Balanced,
    /// All precisions, and twenty-four measurements at most.
    Smallest,
}

impl Effort {
    /// Measurements for a part of the search.
    pub(super) fn probes(self) -> usize {
        match self {
            Effort::Fast => 3,
            Effort::Balanced => 4,
            Effort::Smallest => 8,
        }
    }

    /// Measurements in all.
    pub(super) fn most(self) -> usize {
        match self {
            Effort::Fast => 6,
            Effort::Balanced => 12,
            Effort::Smallest => 24,
        }
    }
}

/// A structural pass: its name, and the option that takes an error.
pub(super) type Knob = (&'static str, &'static str);

/// The structural passes.
pub(super) fn knobs() -> Vec<Knob> {
    let of = |p: &&crate::passes::PassInfo| match p.part {
        Part::Structure { error } => Some((p.name, error)),
        _ => None,
    };
    ALL.iter().filter_map(of).collect()
}

/// The passes that change the precision, as they are written, the boldest first.
pub(super) fn precisions() -> Vec<&'static str> {
    ALL.iter()
        .flat_map(|p| {
            if let Part::Precision { ways, .. } = p.part {
                ways
            } else {
                &[]
            }
        })
        .copied()
        .collect()
}

/// The first pass of a list.
pub(super) fn name(passes: &str) -> &str {
    passes.split(['(', ',']).next().unwrap_or(passes)
}

/// How many passes of a precision can go further, up to an error of the outputs.
pub(super) fn further(precision: &str) -> usize {
    parts(precision).filter_map(option).count()
}

/// The option that lets a pass go further.
fn option(pass: &str) -> Option<&'static str> {
    ALL.iter().find(|p| p.name == name(pass)).and_then(|p| match p.part {
        Part::Precision { error, .. } => error,
        _ => None,
    })
}

/// For what integers leave over: weights that no pass quantizes, such as those of a GRU.
/// The boldest way first; both cost no time when the model runs.
pub(super) const REST: [&str; 2] = ["weights(form=folded)", "fp16(only=weights)"];

/// Whether a pass (of a list the first) only stores weights in fewer bits.
fn only_stores(pass: &str) -> bool {
    REST.iter().any(|rest| name(rest) == name(pass))
}

/// Passes with their strengths.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    structure: Vec<Knob>,
    /// In parts of the outputs' power.
    error: f64,
    precision: Option<String>,
    /// The passes of the precision take the error, too, where they can.
    further: bool,
}

impl Plan {
    pub(super) fn new(structure: &[Knob], error: f64, precision: Option<&str>) -> Plan {
        // Two digits: what is written is what runs.
        let digits = 10f64.powf(error.max(f64::MIN_POSITIVE).log10().floor() - 1.0);
        Plan {
            structure: structure.to_vec(),
            error: match error > 0.0 {
                true => format!("{:.1e}", (error / digits).round() * digits)
                    .parse()
                    .unwrap_or(error),
                false => 0.0,
            },
            precision: precision.map(str::to_owned),
            further: false,
        }
    }

    /// With another error.
    pub(super) fn with(&self, error: f64) -> Plan {
        let plan = Plan::new(&self.structure, error, self.precision.as_deref());
        Plan {
            further: self.further,
            ..plan
        }
    }

    /// Without the structural passes that `idle` names, unless none is left then.
    pub(super) fn without(&self, idle: impl Fn(&str) -> bool) -> Plan {
        let left: Vec<Knob> = self.structure.iter().filter(|k| !idle(k.0)).copied().collect();
        match left.is_empty() {
            true => self.clone(),
            false => Plan {
                structure: left,
                ..self.clone()
            },
        }
    }

    /// The precision goes further, by the same error, if it can.
    pub(super) fn further(self) -> Plan {
        let further = self.precision.as_deref().is_some_and(|p| further(p) > 0);
        Plan { further, ..self }
    }

    /// The same passes with this part of the error; `None` where none takes it.
    pub(super) fn weaker(&self, part: f64) -> Option<Plan> {
        let takes = self.is_structural() || self.further;
        takes.then(|| self.with(self.error * part))
    }

    /// By how many times the error of another plan is larger than this one's, if all else is the same.
    pub(super) fn times(&self, other: &Plan) -> Option<f64> {
        (self.error > 0.0 && self.with(other.error) == *other).then(|| other.error / self.error)
    }

    /// The same passes, and what they leave stored in 8 bits; `None` where something stores it already, or there is no precision.
    pub(super) fn with_rest(&self) -> Option<Plan> {
        let precision = self.precision.as_deref()?;
        (!parts(precision).any(only_stores)).then(|| Plan {
            precision: Some(format!("{precision},{}", REST[0])),
            ..self.clone()
        })
    }

    /// Whether the result computes in integers: other precisions only store them.
    pub(super) fn in_integers(&self) -> bool {
        self.precision.as_deref().is_some_and(|p| !only_stores(p))
    }

    /// Whether a pass of it, as it is written, takes the error.
    pub(super) fn takes(&self, pass: &str) -> bool {
        let structure = self.structure.iter().any(|k| k.0 == name(pass));
        structure || self.further && option(pass).is_some()
    }

    /// How many passes take the error; one at least.
    pub(super) fn takers(&self) -> usize {
        let precision = self.precision.as_deref().filter(|_| self.further);
        (self.structure.len() + precision.map_or(0, further)).max(1)
    }

    /// Whether there is a structural pass.
    pub(super) fn is_structural(&self) -> bool {
        !self.structure.is_empty()
    }

    /// The structural pass, when there is just one.
    pub(super) fn only(&self) -> Option<&'static str> {
        match self.structure[..] {
            [(name, _)] => Some(name),
            _ => None,
        }
    }

    /// The precision, as `--passes` takes it.
    fn precision(&self) -> Option<String> {
        let all: Vec<String> = parts(self.precision.as_deref()?).map(|p| self.pass(p)).collect();
        Some(all.join(","))
    }

    /// A pass of the precision, with the error if it takes it.
    fn pass(&self, pass: &str) -> String {
        match (option(pass), pass.split_once('(')) {
            (Some(option), Some((name, rest))) if self.further => format!("{name}({option}={},{rest}", self.error),
            (Some(option), None) if self.further => format!("{pass}({option}={})", self.error),
            _ => pass.to_owned(),
        }
    }

    /// The passes, after those that come first in any case.
    ///
    /// # Errors
    /// When the table of passes names an option that a pass does not have, which a test finds.
    pub(super) fn requests(&self, first: &[Request]) -> Result<Vec<Request>> {
        let mut all = first.to_vec();
        all.extend(parse_list(&self.to_string())?);
        Ok(all)
    }
}

impl fmt::Display for Plan {
    /// As `--passes` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let knobs = self
            .structure
            .iter()
            .map(|(pass, option)| format!("{pass}({option}={})", self.error));
        let all: Vec<String> = knobs.chain(self.precision()).collect();
        f.write_str(if all.is_empty() { "simplify" } else { "" })?;
        f.write_str(&all.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_written_as_passes_that_exist() {
        for precision in precisions().into_iter().map(Some).chain([None]) {
            let plan = Plan::new(&knobs(), 0.012_345, precision);
            let text = plan.to_string();
            assert!(text.contains("error=0.012)"), "{text}");
            assert_eq!(
                plan.requests(&[]).expect("they exist").len(),
                knobs().len() + precision.iter().len()
            );
        }
        let further = |precision| Plan::new(&[], 0.02, Some(precision)).further().to_string();
        assert_eq!(further("int8"), "int8(mixed=0.02)");
        assert_eq!(
            further("int8(error=0.01),fp16(only=weights)"),
            "int8(mixed=0.02,error=0.01),fp16(only=weights)"
        );
        assert_eq!(
            further("int8,weights(form=folded)"),
            "int8(mixed=0.02),weights(mixed=0.02,form=folded)"
        );
        assert_eq!(further("fp16(only=weights)"), "fp16(only=weights)");
        let rest = |precision| Plan::new(&[], 0.0, Some(precision)).with_rest().map(|p| p.to_string());
        assert_eq!(
            rest("int8(error=0.01)").as_deref(),
            Some("int8(error=0.01),weights(form=folded)")
        );
        assert_eq!(
            (rest("int8,fp16(only=weights)"), rest("weights(form=folded)")),
            (None, None)
        );
        let bold = Plan::new(&knobs(), 0.02, Some("int8,fp16(only=weights)"));
        let takes =
            |plan: &Plan| ["prune(error=0.02)", "int8(mixed=0.02)", "fp16(only=weights)"].map(|p| plan.takes(p));
        assert_eq!(takes(&bold), [true, false, false]);
        assert_eq!(takes(&bold.clone().further()), [true, true, false]);
        let both = Plan::new(&knobs(), 0.01, None);
        assert_eq!(both.times(&both.with(0.03)), Some(0.03 / 0.01));
        assert_eq!((both.times(&bold), both.with(0.0).times(&both)), (None, None));
        assert_eq!(both.without(|name| name == "lowrank").only(), Some("prune"));
        assert_eq!(both.without(|_| true), both, "something is left to search");
        assert_eq!(Plan::new(&[], 0.0, None).to_string(), "simplify");
        assert_eq!(
            Plan::new(&[("lowrank", "error")], 3.21e-5, None).to_string(),
            "lowrank(error=0.000032)"
        );
    }
}
