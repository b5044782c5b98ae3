//! Options that are another for some nodes: `[[layer]]` in a recipe.
//!
//! A [`Rule`] gives one option of one pass another value for the nodes whose names match; where several match, the last one holds. The
//! passes read them where they decide node by node: [`Options::at`] for numbers, [`super::Names`] for `skip`.

use super::{ALL, Options, find, names};
use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// Lets a pass leave nodes alone.
pub const SKIP: &str = "skip";

/// The options of each pass that may differ from node to node.
pub const SCOPED: &[(&str, &[&str])] = &[
    ("prune", &[SKIP, "ratio"]),
    ("sparsify", &[SKIP, "sparsity"]),
    (
        "lowrank",
        &[SKIP, "error", "rank", "ratio", "gain", "round_to", "min_size"],
    ),
    ("int8", &[SKIP, "weights", "per_channel", "rounding"]),
    ("weights", &[SKIP, "bits", "block", "symmetric"]),
    ("dynamic", &[SKIP, "weights"]),
    ("fp16", &[SKIP]),
];

/// One option of one pass, for nodes of these names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Names of nodes, in which `*` stands for any characters and `?` for one.
    #[serde(rename = "match")]
    pub glob: String,
    /// The pass.
    pub pass: &'static str,
    /// The option; [`SKIP`] takes `on` and `off`.
    pub option: &'static str,
    /// Its value there.
    pub value: String,
}

impl Rule {
    /// A rule for a pass that has such an option.
    ///
    /// # Errors
    /// When there is no such pass, the option is not among those that may differ, or the value is none that it takes.
    pub fn new(glob: &str, pass: &str, option: &str, value: &str) -> Result<Rule> {
        let info = find(pass).with_context(|| {
            let known: Vec<&str> = ALL.iter().map(|p| p.name).collect();
            format!("there is no pass {pass:?}; there are: {}", known.join(", "))
        })?;
        let scoped = SCOPED.iter().find(|(p, _)| *p == pass).map_or(&[][..], |(_, o)| o);
        let known = scoped.iter().find(|o| **o == option).with_context(|| match scoped {
            [] => format!("nothing in pass {pass} differs from node to node"),
            _ => format!(
                "{pass}.{option} cannot differ from node to node; these can: {}",
                scoped.join(", ")
            ),
        })?;
        if *known == SKIP {
            ensure!(matches!(value, "on" | "off"), "{pass}.skip: true or false");
        } else {
            let mut options = Options::defaults(info);
            options.set(option, value)?;
            (info.build)(&options)?;
        }
        Ok(Rule {
            glob: glob.to_owned(),
            pass: info.name,
            option: known,
            value: value.to_owned(),
        })
    }

    /// Rules that keep every pass that can leave nodes alone (or none of them) from these nodes.
    pub fn skip_all(glob: &str, skip: bool) -> Vec<Rule> {
        let passes = SCOPED.iter().filter(|(_, options)| options.contains(&SKIP));
        let rule = |(pass, _): &(&'static str, _)| Rule {
            glob: glob.to_owned(),
            pass,
            option: SKIP,
            value: if skip { "on" } else { "off" }.to_owned(),
        };
        passes.map(rule).collect()
    }

    /// True for nodes that it is about.
    pub fn matches(&self, label: &str) -> bool {
        names::matches(&self.glob, label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::passes::{Names, parse_list};

    fn with(list: &str, rules: &[Rule]) -> Options {
        let mut request = parse_list(list).expect("a list").remove(0);
        request.options.follow(rules);
        request.options
    }

    fn rule(glob: &str, pass: &str, option: &str, value: &str) -> Rule {
        Rule::new(glob, pass, option, value).expect("a rule")
    }

    #[test]
    fn the_last_rule_that_matches_holds() {
        let rules = [
            rule("enc/*", "lowrank", "error", "0.1"),
            rule("enc/last", "lowrank", "error", "0.2"),
            rule("enc/*", "int8", "weights", "7"),
        ];
        let options = with("lowrank(error=0.5,gain=0.2)", &rules);
        for (label, error) in [("enc/a", "0.1"), ("enc/last", "0.2"), ("dec", "0.5")] {
            assert_eq!(options.at(label).text("error"), error, "{label}");
            assert_eq!(options.at(label).text("gain"), "0.2");
        }
    }

    #[test]
    fn skip_is_lifted_by_a_later_rule() {
        let mut rules = Rule::skip_all("enc/*", true);
        rules.extend(Rule::skip_all("enc/last", false));
        let names = Names::of(&with("int8(skip=head)", &rules), "skip");
        for (label, skipped) in [("enc/a", true), ("enc/last", false), ("head", true), ("dec", false)] {
            assert_eq!(names.has(label), skipped, "{label}");
        }
        assert!(Names::of(&with("fp16", &rules), "block").has("enc/a"));
    }

    #[test]
    fn what_cannot_differ_is_refused_with_what_can() {
        for (pass, option, value, word) in [
            ("nosuch", "skip", "on", "there are: opset"),
            ("simplify", "skip", "on", "nothing in pass simplify"),
            ("prune", "round_to", "4", "these can: skip, ratio"),
            ("weights", "bits", "3", "choose one of 8, 4"),
            ("lowrank", "error", "2", "from 0 to 1"),
            ("int8", "skip", "maybe", "true or false"),
        ] {
            let error = Rule::new("*", pass, option, value).expect_err(word);
            assert!(format!("{error:#}").contains(word), "{error:#}");
        }
    }

    #[test]
    fn what_may_differ_are_options_and_every_lossy_pass_can_be_kept_away() {
        for (pass, options) in SCOPED {
            let info = find(pass).expect("a pass");
            for option in options.iter().filter(|o| **o != SKIP) {
                assert!(info.options.iter().any(|o| o.name == *option), "{pass}.{option}");
            }
        }
        for p in ALL.iter().filter(|p| p.lossy && !p.options.is_empty()) {
            assert!(
                !Rule::skip_all("*", true).iter().all(|r| r.pass != p.name),
                "{}",
                p.name
            );
        }
    }
}
