//! `onnxzip.toml`: everything that a run is asked for, in one file.
//!
//! [`KEYS`] is the table of keys: what is read, what an unknown key is compared with, and what `docs/recipe.md` lists come from it. Paths
//! are as seen from the folder of the file. What a run used is written back by [`crate::report::Report::recipe`].

mod read;

use crate::data::Preprocess;
use crate::passes::{Request, Rule};
use crate::pipeline::Amount;
use crate::search::Effort;
use crate::verify::Budget;
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use read::{Node, flag, path, text, whole};
use std::path::{Path, PathBuf};

/// What a recipe says; what it does not say is left to the command line and to defaults.
#[derive(Clone, Default)]
pub struct Recipe {
    /// The model.
    pub input: Option<PathBuf>,
    /// The result.
    pub output: Option<PathBuf>,
    /// The passes, in order.
    pub passes: Option<Vec<Request>>,
    /// Run `simplify` before everything else.
    pub simplify: Option<bool>,
    /// The operator set to reach first.
    pub opset: Option<i64>,
    /// How long to search for the passes.
    pub preset: Option<Effort>,
    /// What may be lost.
    pub budget: Option<Budget>,
    /// Most bytes of the result.
    pub max_bytes: Option<Amount>,
    /// Most multiply-adds of the result.
    pub max_macs: Option<Amount>,
    /// Seed of everything random.
    pub seed: Option<u64>,
    /// What runs the models: `tract` or `ort`.
    pub engine: Option<String>,
    /// Threads.
    pub threads: Option<u16>,
    /// Weights beside the model.
    pub external_data: Option<bool>,
    /// `names`: whether those inside become short.
    pub short_names: Option<bool>,
    /// Samples.
    pub calib: Option<PathBuf>,
    /// Statistics that were measured before.
    pub stats: Vec<PathBuf>,
    /// How images become inputs.
    pub preprocess: Option<Preprocess>,
    /// Options that are another for some nodes.
    pub rules: Vec<Rule>,
}

/// A key of a recipe.
pub struct Key {
    /// The table that it stands in; empty for the top.
    pub table: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it takes, as an example.
    pub example: &'static str,
    /// What it says. Markdown.
    pub doc: &'static str,
    set: fn(&mut Recipe, &Node) -> Result<()>,
}

/// A key at the top.
const fn top(name: &'static str, example: &'static str, doc: &'static str, set: Set) -> Key {
    Key {
        table: "",
        name,
        example,
        doc,
        set,
    }
}

/// A key in a table.
const fn within(table: &'static str, name: &'static str, example: &'static str, doc: &'static str, set: Set) -> Key {
    Key {
        table,
        name,
        example,
        doc,
        set,
    }
}

type Set = fn(&mut Recipe, &Node) -> Result<()>;

/// The tables.
pub const TABLES: &[&str] = &["data", "layer"];

/// Every key of the top and of `[data]`, and those of a `[[layer]]`, which are read together.
pub const KEYS: &[Key] = &[
    top("input", "\"model.onnx\"", "the model", |r, v| {
        path(v).map(|x| r.input = Some(x))
    }),
    top("output", "\"small.onnx\"", "the result", |r, v| {
        path(v).map(|x| r.output = Some(x))
    }),
    top(
        "passes",
        "[\"prune(error=0.01)\", { pass = \"int8\", ranges = \"mse\" }]",
        "passes in order, as `--passes` takes them or as tables; without them a budget, target or preset searches",
        |r, v| read::passes(v).map(|x| r.passes = Some(x)),
    ),
    top(
        "simplify",
        "true",
        "run `simplify` before all passes (the default)",
        |r, v| flag(v).map(|x| r.simplify = Some(x)),
    ),
    top(
        "opset",
        "21",
        "raise the default operator set to this one first",
        |r, v| whole(v).map(|x| r.opset = Some(x)),
    ),
    top(
        "preset",
        "\"balanced\"",
        "how long to search: `fast`, `balanced` or `smallest`",
        |r, v| {
            let found = Effort::from_str(&text(v)?, false).map_err(anyhow::Error::msg);
            found
                .context("give fast, balanced or smallest")
                .map(|x| r.preset = Some(x))
        },
    ),
    top(
        "budget",
        "\"top1:1%,sqnr:15dB\"",
        "what may be lost, as `--budget` takes it",
        |r, v| text(v)?.parse().map(|x| r.budget = Some(x)),
    ),
    top(
        "max-bytes",
        "\"5MB\"",
        "most bytes of the result, or a part such as `\"25%\"`",
        |r, v| text(v)?.parse().map(|x| r.max_bytes = Some(x)),
    ),
    top(
        "max-macs",
        "\"50%\"",
        "most multiply-accumulate operations for one sample",
        |r, v| text(v)?.parse().map(|x| r.max_macs = Some(x)),
    ),
    top(
        "target-ratio",
        "\"4x\"",
        "how many times smaller the result has to be, instead of `max-bytes`",
        |r, v| {
            ensure!(r.max_bytes.is_none(), "give max-bytes or target-ratio, not both");
            Amount::times_smaller(&text(v)?).map(|x| r.max_bytes = Some(x))
        },
    ),
    top("seed", "0", "seed of everything random", |r, v| {
        let seed = u64::try_from(whole(v)?).context("give 0 or more");
        seed.map(|x| r.seed = Some(x))
    }),
    top("threads", "2", "threads; the result does not depend on them", |r, v| {
        let n = u16::try_from(whole(v)?).ok().filter(|n| *n > 0);
        n.context("give a number from 1 to 65535").map(|x| r.threads = Some(x))
    }),
    top(
        "engine",
        "\"ort\"",
        "what runs the models: `tract` or `ort` (ONNX Runtime, found as `--engine-lib` says)",
        |r, v| {
            let name = text(v)?;
            ensure!(matches!(name.as_str(), "tract" | "ort"), "give tract or ort");
            r.engine = Some(name);
            Ok(())
        },
    ),
    top(
        "external-data",
        "false",
        "put weights into a file beside the model",
        |r, v| flag(v).map(|x| r.external_data = Some(x)),
    ),
    top(
        "names",
        "\"short\"",
        "names of inner values and of nodes without weights: `short` or `keep`",
        |r, v| {
            let name = text(v)?;
            ensure!(matches!(name.as_str(), "short" | "keep"), "give short or keep");
            r.short_names = Some(name == "short");
            Ok(())
        },
    ),
    within(
        "data",
        "calib",
        "\"photos\"",
        "samples, as `--calib` takes them",
        |r, v| path(v).map(|x| r.calib = Some(x)),
    ),
    within(
        "data",
        "stats",
        "[\"part1.stats\", \"part2.stats\"]",
        "statistics files of `onnxzip calibrate`, as `--stats` takes them",
        |r, v| read::paths(v).map(|x| r.stats = x),
    ),
    within(
        "data",
        "preprocess",
        "\"resize 256, crop 224, scale 1/255\"",
        "how images become inputs, step by step",
        |r, v| text(v)?.parse().map(|x| r.preprocess = Some(x)),
    ),
    within(
        "layer",
        "match",
        "\"encoder/*\"",
        "names of nodes, `*` for any characters and `?` for one; or a list of such",
        |_, _| Ok(()),
    ),
    within(
        "layer",
        "passes",
        "false, or passes.int8 = false, or passes.lowrank.error = 0.001",
        "`false` keeps all lossy passes from these nodes, `passes.NAME = false` one of them; `passes.NAME.OPTION` is another value of an option there. Where several \
         `[[layer]]` match a node, the last one holds",
        |_, _| Ok(()),
    ),
];

impl Recipe {
    /// Reads a file; relative paths in it are seen from its folder.
    ///
    /// # Errors
    /// When it cannot be read, is no TOML, or says something that does not exist; the message names the line.
    pub fn read(file: &Path) -> Result<Recipe> {
        let named = || format!("{}", file.display());
        let mut recipe = Recipe::parse(&std::fs::read_to_string(file).with_context(named)?).with_context(named)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        for p in [&mut recipe.input, &mut recipe.output, &mut recipe.calib]
            .into_iter()
            .flatten()
            .chain(&mut recipe.stats)
        {
            *p = folder.join(&*p);
        }
        Ok(recipe)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(text: &str) -> Result<Recipe> {
        let recipe = read::recipe(text)?;
        ensure!(
            recipe.passes.is_none() || recipe.preset.is_none(),
            "give passes or preset, not both"
        );
        Ok(recipe)
    }
}

/// The keys as Markdown: `docs/recipe.md` holds this table.
pub fn table() -> String {
    let mut out = String::from("| key | example | what |\n|---|---|---|\n");
    for k in KEYS {
        let head = match k.table {
            "" => String::new(),
            "layer" => "[[layer]] ".to_owned(),
            table => format!("[{table}] "),
        };
        out += &format!(
            "| `{head}{}` | `{}` | {} |\n",
            k.name,
            k.example.replace('|', "\\|"),
            k.doc
        );
    }
    out
}
