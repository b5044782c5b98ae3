//! TOML into a [`Recipe`]: every key is looked up in the table, every error names its line.

use super::{KEYS, Key, Recipe, TABLES};
use crate::passes::{ALL, Options, Request, Rule, SKIP, find, parse_list};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::path::PathBuf;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value and where it stands.
pub type Node<'a> = Spanned<DeValue<'a>>;

/// Reads a text.
pub fn recipe(source: &str) -> Result<Recipe> {
    let all = DeTable::parse(source).map_err(|e| anyhow!("{e}"))?;
    let mut recipe = Recipe::default();
    for (name, value) in all.get_ref() {
        let here = || format!("line {}", line(source, name.span().start));
        match (name.get_ref().as_ref(), value.get_ref()) {
            ("data", DeValue::Table(table)) => {
                for (name, value) in table {
                    let here = || format!("line {}", line(source, name.span().start));
                    let name = name.get_ref().as_ref();
                    let key = known("data", name).with_context(here)?;
                    (key.set)(&mut recipe, value)
                        .with_context(|| format!("data.{name}"))
                        .with_context(here)?;
                }
            }
            ("layer", DeValue::Array(layers)) => {
                for layer in layers {
                    let rules = rules(source, layer);
                    recipe.rules.extend(rules.context("layer").with_context(here)?);
                }
            }
            ("data", _) => bail!("{}: write [data]", here()),
            ("layer", _) => bail!("{}: write [[layer]], with two brackets", here()),
            (name, _) => {
                let key = known("", name).with_context(here)?;
                (key.set)(&mut recipe, value)
                    .with_context(|| name.to_owned())
                    .with_context(here)?;
            }
        }
    }
    Ok(recipe)
}

fn line(source: &str, at: usize) -> usize {
    1 + source.bytes().take(at).filter(|b| *b == b'\n').count()
}

/// The key of this name, or what may have been meant.
fn known(table: &str, name: &str) -> Result<&'static Key> {
    let found = KEYS.iter().find(|k| k.table == table && k.name == name);
    found.with_context(|| {
        let place = |table: &str| match table {
            "" => "the top of the file".to_owned(),
            "layer" => "[[layer]]".to_owned(),
            table => format!("[{table}]"),
        };
        let meant = KEYS
            .iter()
            .map(|k| (distance(k.name, name), k.table != table, k))
            .filter(|(d, ..)| *d <= 1 + name.len() / 4)
            .min_by_key(|(d, elsewhere, _)| (*d, *elsewhere));
        let guess = match meant {
            Some((0, _, k)) => format!("it belongs into {}; ", place(k.table)),
            Some((_, false, k)) => format!("did you mean {:?}? ", k.name),
            Some((_, true, k)) => format!("did you mean {:?} in {}? ", k.name, place(k.table)),
            None => String::new(),
        };
        let mut here: Vec<&str> = KEYS.iter().filter(|k| k.table == table).map(|k| k.name).collect();
        if table.is_empty() {
            here.extend(TABLES);
        }
        format!(
            "there is no key {name:?} at {}; {guess}there are: {}",
            place(table),
            here.join(", ")
        )
    })
}

/// How many characters have to be put in, taken out or changed (Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(before + 1);
        }
    }
    row[b.len()]
}

/// What one `[[layer]]` says.
fn rules(source: &str, layer: &Node) -> Result<Vec<Rule>> {
    let DeValue::Table(table) = layer.get_ref() else {
        bail!("a layer is a table: write [[layer]]")
    };
    let (mut globs, mut passes) = (None, None);
    for (name, value) in table {
        let here = || format!("line {}", line(source, name.span().start));
        match known("layer", name.get_ref()).with_context(here)?.name {
            "match" => globs = Some(words(value).with_context(here)?),
            _ => passes = Some(value),
        }
    }
    let globs = globs
        .filter(|g| !g.is_empty())
        .context("say which nodes: match = \"encoder/*\"")?;
    let passes = passes.context("say what is another there: passes = false, or passes.int8 = false")?;
    let mut rules = Vec::new();
    for glob in &globs {
        match passes.get_ref() {
            DeValue::Boolean(run) => rules.extend(Rule::skip_all(glob, !run)),
            DeValue::Table(table) => {
                for (pass, what) in table {
                    let here = || format!("line {}", line(source, pass.span().start));
                    rules.extend(of_pass(glob, pass.get_ref(), what).with_context(here)?);
                }
            }
            _ => bail!("passes: write passes = false, passes.int8 = false or passes.lowrank.error = 0.001"),
        }
    }
    Ok(rules)
}

fn of_pass(glob: &str, pass: &str, what: &Node) -> Result<Vec<Rule>> {
    let skip = |skip: bool| Rule::new(glob, pass, SKIP, if skip { "on" } else { "off" });
    match what.get_ref() {
        DeValue::Boolean(run) => Ok(vec![skip(!run)?]),
        DeValue::Table(options) => options
            .iter()
            .map(|(option, value)| Rule::new(glob, pass, option.get_ref(), &word(value)?))
            .collect(),
        _ => bail!("passes.{pass}: write false, or a table such as {{ error = 0.001 }}"),
    }
}

/// Passes: a text, or a list of texts and tables.
pub fn passes(value: &Node) -> Result<Vec<Request>> {
    let DeValue::Array(list) = value.get_ref() else {
        return parse_list(&text(value)?);
    };
    let mut all = Vec::new();
    for one in list {
        match one.get_ref() {
            DeValue::Table(table) => all.push(request(table)?),
            _ => all.extend(parse_list(&text(one)?)?),
        }
    }
    Ok(all)
}

/// `{ pass = "int8", ranges = "mse" }`.
fn request(table: &DeTable) -> Result<Request> {
    let name = table.iter().find(|(k, _)| k.get_ref() == "pass");
    let name = text(name.context("say which: { pass = \"int8\", … }")?.1)?;
    let info = find(&name).with_context(|| {
        let known: Vec<&str> = ALL.iter().map(|p| p.name).collect();
        format!("there is no pass {name:?}; there are: {}", known.join(", "))
    })?;
    let mut options = Options::defaults(info);
    for (option, value) in table.iter().filter(|(k, _)| k.get_ref() != "pass") {
        let value = word(value).with_context(|| format!("{name}.{}", option.get_ref()))?;
        options.set(option.get_ref(), &value)?;
    }
    (info.build)(&options)?; // a bad value is found before any work is done
    Ok(Request { info, options })
}

/// A text; numbers are taken as they are written.
pub fn text(value: &Node) -> Result<String> {
    match value.get_ref() {
        DeValue::String(s) => Ok(s.to_string()),
        DeValue::Integer(_) => whole(value).map(|n| n.to_string()),
        DeValue::Float(x) => Ok(x.as_str().to_owned()),
        other => bail!("give a text in quotes, not {}", other.type_str()),
    }
}

/// The value of an option: `true` is `on`, a list of names has `;` between them.
fn word(value: &Node) -> Result<String> {
    match value.get_ref() {
        DeValue::Boolean(on) => Ok(if *on { "on" } else { "off" }.to_owned()),
        DeValue::Array(_) => Ok(words(value)?.join(";")),
        _ => text(value),
    }
}

/// A text or a list of texts.
fn words(value: &Node) -> Result<Vec<String>> {
    match value.get_ref() {
        DeValue::Array(list) => list.iter().map(text).collect(),
        _ => Ok(vec![text(value)?]),
    }
}

/// A path.
pub fn path(value: &Node) -> Result<PathBuf> {
    let text = text(value)?;
    ensure!(!text.is_empty(), "the path is empty");
    Ok(text.into())
}

/// Paths.
pub fn paths(value: &Node) -> Result<Vec<PathBuf>> {
    match value.get_ref() {
        DeValue::Array(list) => list.iter().map(path).collect(),
        _ => Ok(vec![path(value)?]),
    }
}

/// A whole number.
pub fn whole(value: &Node) -> Result<i64> {
    match value.get_ref() {
        DeValue::Integer(n) => {
            i64::from_str_radix(n.as_str(), n.radix()).with_context(|| format!("{} is too large", n.as_str()))
        }
        other => bail!("give a whole number, not {}", other.type_str()),
    }
}

/// True or false.
pub fn flag(value: &Node) -> Result<bool> {
    match value.get_ref() {
        DeValue::Boolean(b) => Ok(*b),
        other => bail!("give true or false, not {}", other.type_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        format!("{:#}", Recipe::parse(text).err().expect("it is wrong"))
    }

    #[test]
    fn a_recipe_says_all_that_flags_say() {
        let text = r#"
            passes = ["prune(error=0.01),lowrank", { pass = "int8", ranges = "mse", per_channel = false, skip = ["a", "b*"] }]
            budget = "top1:1%"
            target-ratio = "4x"
            seed = 0x10
            [data]
            calib = "photos"
            preprocess = "resize 256, crop 224, scale 1/255"
            [[layer]]
            match = ["enc/*", "dec/?"]
            passes.lowrank = { error = 0.001, rank = 16 }
            passes.int8 = false
            [[layer]]
            match = "enc/last"
            passes = true
        "#;
        let r = Recipe::parse(text).expect("a recipe");
        let spelled: Vec<String> = r.passes.iter().flatten().map(Request::spelled).collect();
        assert_eq!(
            spelled,
            [
                "prune(error=0.01)",
                "lowrank",
                "int8(per_channel=off,ranges=mse,skip=a;b*)"
            ]
        );
        assert_eq!((r.seed, r.threads), (Some(16), None));
        assert_eq!(r.calib, Some("photos".into()));
        assert_eq!(
            r.preprocess.map(|p| p.to_string()).as_deref(),
            Some("resize 256, crop 224, scale 1/255")
        );
        let rules: Vec<(&str, &str, &str, &str)> = r
            .rules
            .iter()
            .map(|r| (r.glob.as_str(), r.pass, r.option, r.value.as_str()))
            .collect();
        assert_eq!(
            rules[..3],
            [
                ("enc/*", "int8", "skip", "on"),
                ("enc/*", "lowrank", "error", "0.001"),
                ("enc/*", "lowrank", "rank", "16")
            ]
        );
        assert!(rules[6..].iter().all(|r| r.0 == "enc/last" && r.3 == "off"));
        assert!(Recipe::parse("").expect("nothing").passes.is_none());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line_and_what_may_have_been_meant() {
        for (text, parts) in [
            (
                "\nbudgit = \"top1:1%\"",
                &["line 2", "\"budgit\"", "did you mean \"budget\""][..],
            ),
            ("calib = \"x\"", &["line 1", "belongs into [data]"]),
            ("[data]\n\npreproces = \"\"", &["line 3", "did you mean \"preprocess\""]),
            ("frobnicate = 1", &["there is no key", "there are: input, output"]),
            ("seed = -1", &["line 1", "seed", "0 or more"]),
            ("seed = \"x\"", &["give a whole number, not string"]),
            ("threads = 0", &["from 1 to"]),
            ("engine = \"torch\"", &["give tract or ort"]),
            ("budget = \"top9\"", &["budget", "sqnr:20dB"]),
            ("passes = [\"int9\"]", &["line 1", "there is no pass \"int9\""]),
            ("passes = [{ pass = \"int8\", ranges = \"best\" }]", &["choose one of"]),
            ("passes = [{ ranges = \"mse\" }]", &["say which"]),
            ("passes = \"int8\"\npreset = \"fast\"", &["not both"]),
            ("max-bytes = \"5MB\"\ntarget-ratio = \"4x\"", &["not both"]),
            ("[layer]\nmatch = \"x\"", &["two brackets"]),
            ("[[layer]]\npasses = false", &["line 1", "say which nodes"]),
            ("[[layer]]\nmatch = \"x\"", &["say what is another"]),
            (
                "[[layer]]\nmatch = \"x\"\nmatches = 1\npasses = false",
                &["line 3", "did you mean \"match\""],
            ),
            (
                "[[layer]]\nmatch = \"x\"\npasses.int8.target = \"x\"",
                &["line 3", "these can: skip, weights"],
            ),
            ("[data]\npreprocess = \"crop\"", &["line 2", "say the size"]),
            ("budget = [", &["line 1"]),
        ] {
            let error = error(text);
            for part in parts {
                assert!(error.contains(part), "{text}: {error:?} lacks {part:?}");
            }
        }
    }

    #[test]
    fn distances_count_edits() {
        for (a, b, d) in [
            ("", "abc", 3),
            ("calib", "calib", 0),
            ("calib", "clalib", 1),
            ("max-bytes", "max_byte", 2),
        ] {
            assert_eq!(distance(a, b), d, "{a} {b}");
        }
    }
}
