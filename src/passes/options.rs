//! `int8(ranges=mse),lowrank(rank=32)`: how passes and their options are written.

use super::{ALL, PassInfo, Rule, SKIP, find};
use crate::ir::Model;
use anyhow::{Context as _, Result, bail, ensure};
use std::fmt::Display;
use std::str::FromStr;

/// One option of a pass.
#[derive(Debug)]
pub struct Opt {
    /// Its name.
    pub name: &'static str,
    /// What it is when it is not given, as it would be written.
    pub default: &'static str,
    /// What may stand after `=`, for the help: `a|b` lists the only choices, anything else describes.
    pub values: &'static str,
    /// What it does.
    pub doc: &'static str,
}

/// The options that a request gives to a pass; what is not given has its default.
#[derive(Clone, Debug)]
pub struct Options {
    info: &'static [Opt],
    pass: &'static str,
    given: Vec<(String, String)>,
    /// What is another for some nodes.
    rules: Vec<Rule>,
}

impl Options {
    /// The options of a pass, all at their defaults.
    pub fn defaults(info: &'static PassInfo) -> Options {
        Options {
            info: info.options,
            pass: info.name,
            given: Vec::new(),
            rules: Vec::new(),
        }
    }

    /// Takes the rules that are about this pass.
    pub fn follow(&mut self, rules: &[Rule]) {
        self.rules = rules.iter().filter(|r| r.pass == self.pass).cloned().collect();
    }

    /// What is another for some nodes.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The options for the node with this label.
    pub fn at(&self, label: &str) -> Options {
        let mut here = self.clone();
        here.rules.clear();
        let about = self.rules.iter().filter(|r| r.option != SKIP && r.matches(label));
        here.given.extend(about.map(|r| (r.option.to_owned(), r.value.clone())));
        here
    }

    /// The text of an option.
    ///
    /// # Panics
    /// When the pass did not declare it: that is a fault of the pass, which a test finds.
    pub fn text(&self, name: &str) -> &str {
        let opt = self.info.iter().find(|o| o.name == name);
        let opt = opt.unwrap_or_else(|| panic!("pass {} did not declare option {name}", self.pass));
        let given = self.given.iter().rev().find(|(n, _)| n == name);
        given.map_or(opt.default, |(_, v)| v)
    }

    /// An option as a number (or whatever parses).
    ///
    /// # Errors
    /// When the text does not parse; the message says what would.
    pub fn get<T: FromStr>(&self, name: &str) -> Result<T>
    where
        T::Err: Display,
    {
        let text = self.text(name);
        text.parse().map_err(|e| {
            let wants = self.info.iter().find(|o| o.name == name).map_or("", |o| o.values);
            anyhow::anyhow!("{}({name}={text}): {e}; give {wants}", self.pass)
        })
    }

    /// An option as a number, or `None` where it says `auto`.
    ///
    /// # Errors
    /// As [`Options::get`].
    pub fn get_or_auto<T: FromStr>(&self, name: &str) -> Result<Option<T>>
    where
        T::Err: Display,
    {
        if self.text(name) == "auto" {
            return Ok(None);
        }
        self.get(name).map(Some)
    }

    /// Gives an option a value.
    ///
    /// # Errors
    /// When the pass has no such option, or the value is not among its choices.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let Some(opt) = self.info.iter().find(|o| o.name == name) else {
            let known: Vec<&str> = self.info.iter().map(|o| o.name).collect();
            bail!(
                "pass {:?} has no option {name:?}; it has: {}",
                self.pass,
                if known.is_empty() {
                    "none".into()
                } else {
                    known.join(", ")
                }
            );
        };
        let choices: Vec<&str> = opt.values.split('|').collect();
        ensure!(
            choices.len() < 2 || choices.contains(&value),
            "{}({name}={value}): choose one of {}",
            self.pass,
            choices.join(", ")
        );
        self.given.push((name.to_owned(), value.to_owned()));
        Ok(())
    }
}

/// A pass that was asked for, with its options.
#[derive(Clone)]
pub struct Request {
    /// The pass.
    pub info: &'static PassInfo,
    /// Its options.
    pub options: Options,
}

impl Request {
    /// Builds the pass for a model, and sees that what is another for some of its nodes can be.
    ///
    /// # Errors
    /// When a value is bad, or does not go with the others; the message names the node.
    pub fn build(&self, model: &Model) -> Result<Box<dyn super::Pass>> {
        let named = |rule: &Rule| rule.option != SKIP;
        if self.options.rules.iter().any(named) {
            for id in model.node_ids() {
                let label = model.label(id);
                if self.options.rules.iter().any(|r| named(r) && r.matches(&label)) {
                    (self.info.build)(&self.options.at(&label)).with_context(|| format!("options for node {label}"))?;
                }
            }
        }
        (self.info.build)(&self.options)
    }

    /// The request as it would be written, without rules.
    pub fn spelled(&self) -> String {
        let given: Vec<String> = self.options.given.iter().map(|(n, v)| format!("{n}={v}")).collect();
        match given.is_empty() {
            true => self.info.name.to_owned(),
            false => format!("{}({})", self.info.name, given.join(",")),
        }
    }
}

/// The passes of a list, each with its options, as they are written.
pub fn parts(list: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    list.split(move |c| {
        inside = c == '(' || inside && c != ')';
        c == ',' && !inside
    })
}

/// Reads a list of passes: names separated by commas, options in parentheses.
///
/// # Errors
/// When a pass or option is not known, or a parenthesis is missing; the message lists what there is.
pub fn parse_list(text: &str) -> Result<Vec<Request>> {
    let mut rest = text.trim();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let end = rest.find([',', '(']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let name = name.trim();
        let info = find(name).with_context(|| {
            let known: Vec<&str> = ALL.iter().map(|p| p.name).collect();
            format!("there is no pass {name:?}; there are: {}", known.join(", "))
        })?;
        let mut options = Options::defaults(info);
        rest = after;
        if let Some(inside) = rest.strip_prefix('(') {
            let close = inside.find(')');
            let close = close.with_context(|| format!("pass {name:?}: a closing parenthesis is missing"))?;
            for part in inside[..close].split(',').filter(|p| !p.trim().is_empty()) {
                let (k, v) = part
                    .split_once('=')
                    .with_context(|| format!("pass {name:?}: write options as name=value, not {part:?}"))?;
                options.set(k.trim(), v.trim())?;
            }
            rest = inside[close + 1..].trim_start();
        }
        (info.build)(&options)?; // a bad value is found before any work is done
        all.push(Request { info, options });
        rest = match rest.strip_prefix(',') {
            Some(r) => r.trim_start(),
            None => {
                ensure!(rest.is_empty(), "after pass {name:?}: expected a comma, not {rest:?}");
                rest
            }
        };
    }
    Ok(all)
}
