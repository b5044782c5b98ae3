//! The recipe that gives the same bytes again: the passes that were run, with what the search found for them.

use super::Report;
use crate::passes::{Rule, SKIP};
use std::fmt::Write;

impl Report {
    /// What `optimize --recipe` takes to give the same bytes, without a search.
    pub fn recipe(&self) -> String {
        let mut out = format!(
            "# The same bytes again: onnxzip optimize --recipe FILE (onnxzip {}).\n\
             # Paths are as seen from the folder where the command ran: keep this file there.\n",
            self.version
        );
        let _ = writeln!(out, "input = {}\noutput = {}", text(&self.input), text(&self.output));
        out += "passes = [\n";
        for p in &self.passes {
            let _ = writeln!(out, "    {},", text(&p.pass));
        }
        out += "]\n";
        if !self.passes.iter().any(|p| p.pass.starts_with("simplify")) {
            out += "simplify = false\n";
        }
        let _ = writeln!(out, "budget = {}\nseed = {}", text(&self.budget.to_string()), self.seed);
        if self.on_ort() {
            out += "engine = \"ort\"\n";
        }
        if self.external_data {
            out += "external-data = true\n";
        }
        if self.short_names {
            out += "names = \"short\"\n";
        }
        if !self.data.synthetic && !self.data.origin.is_empty() {
            let _ = writeln!(out, "\n[data]\ncalib = {}", text(&self.data.origin));
            if let Some(line) = &self.data.preprocess {
                let _ = writeln!(out, "preprocess = {}", text(line));
            }
        }
        layers(&mut out, &self.rules);
        out
    }
}

/// A `[[layer]]` for rules in a row that are about the same names; a key may stand in it once.
fn layers(out: &mut String, rules: &[Rule]) {
    let mut begun = 0;
    for (i, rule) in rules.iter().enumerate() {
        let again = |r: &Rule| r.glob != rule.glob || (r.pass, r.option) == (rule.pass, rule.option);
        if i == 0 || rules[begun..i].iter().any(again) {
            begun = i;
            let _ = writeln!(out, "\n[[layer]]\nmatch = {}", text(&rule.glob));
        }
        let value = match rule.option {
            SKIP => (rule.value == "on").to_string(),
            _ => text(&rule.value),
        };
        let _ = writeln!(out, "passes.{}.{} = {value}", rule.pass, rule.option);
    }
}

/// A string in TOML.
fn text(x: &str) -> String {
    toml::Value::String(x.to_owned()).to_string()
}
