//! What `optimize` and `calibrate` are told alike: the passes, the data, how to run them. They have to understand it alike too.

use crate::data::Preprocess;
use crate::passes::{Request, parse_list};
use crate::pipeline::Options;
use crate::recipe::Recipe;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// What runs on what
#[derive(clap::Args)]
pub struct What {
    /// Take what is not given here from a file (onnxzip.toml; see docs/recipe.md), the model files too
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Passes in order, with options: prune,lowrank(rank=32),int8. `simplify` always runs first, see --no-simplify.
    /// `onnxzip passes` lists them. Default: `simplify`; with a budget, target or preset `optimize` searches for the passes
    #[arg(long, value_name = "LIST")]
    pub passes: Option<String>,
    /// Data to calibrate and verify with: an .npz (keys are input names, the first axis counts samples), an .npy, a folder
    /// of images (jpg, png; see --preprocess), a folder of raw .bin files, or a folder with test_data_set_N/input_K.pb.
    /// Default: such folders beside the model, else made-up numbers
    #[arg(long, value_name = "PATH")]
    pub calib: Option<PathBuf>,
    /// What `onnxzip calibrate` measured before with the same passes, model and data; the rest is measured now. See
    /// docs/calibrate.md
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub stats: Vec<PathBuf>,
    /// How images become inputs, step by step: 'resize 256, crop 224, scale 1/255, mean 0.485 0.456 0.406, std 0.229
    /// 0.224 0.225'; also crop 87.5%, resize 224x224 bicubic, bgr, grey, nchw, nhwc. See docs/recipe.md
    #[arg(long, value_name = "STEPS")]
    pub preprocess: Option<Preprocess>,
}

/// How it runs
#[derive(clap::Args)]
pub struct How {
    /// Do not run `simplify` first
    #[arg(long)]
    no_simplify: bool,
    /// Raise the default operator set to N before all passes: runtimes and passes may need a newer one
    #[arg(long, value_name = "N")]
    opset: Option<i64>,
    /// Seed of everything random. Default: 0
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Threads; the output does not depend on it. Default: all processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

impl What {
    /// The recipe, empty when none is named.
    pub fn recipe(&self) -> Result<Recipe> {
        let read = self.recipe.as_deref().map(Recipe::read);
        Ok(read.transpose().context("--recipe")?.unwrap_or_default())
    }

    /// The passes on the command line.
    pub fn passes(&self) -> Result<Option<Vec<Request>>> {
        self.passes.as_deref().map(parse_list).transpose().context("--passes")
    }

    /// `names` of the command line, or else of the recipe. What neither has is taken from the end of `--stats`, which
    /// takes all names behind it.
    pub fn files<const N: usize>(
        &self,
        names: [(&str, &Option<PathBuf>, &Option<PathBuf>); N],
    ) -> Result<([PathBuf; N], Vec<PathBuf>)> {
        let mut stats = self.stats.clone();
        let mut found = names.map(|(_, flag, said)| flag.clone().or_else(|| said.clone()));
        let missing = found.iter_mut().rev().filter(|file| file.is_none());
        missing.for_each(|file| *file = stats.pop());
        for (file, (name, ..)) in found.iter().zip(names) {
            ensure!(
                file.is_some(),
                "name {name} on the command line, or its file in the recipe"
            );
        }
        let found = found.map(Option::unwrap_or_default);
        Ok((found, stats))
    }

    /// Options for these passes; `stats` are those of the command line.
    pub fn options(
        &self,
        how: &How,
        mut passes: Vec<Request>,
        recipe: &Recipe,
        stats: Vec<PathBuf>,
    ) -> Result<Options> {
        if let Some(to) = how.opset.or(recipe.opset) {
            let raise = parse_list(&format!("opset(to={to})")).context("--opset")?;
            passes.splice(0..0, raise);
        }
        let mut options = Options::new(passes);
        options.rules = recipe.rules.clone();
        options.simplify_first = !how.no_simplify && recipe.simplify.unwrap_or(true);
        options.calib = self.calib.clone().or(recipe.calib.clone());
        options.stats = if stats.is_empty() { recipe.stats.clone() } else { stats };
        let line = self.preprocess.clone().or(recipe.preprocess.clone());
        options.preprocess = line.filter(|line| !line.is_empty());
        options.seed = how.seed.or(recipe.seed).unwrap_or(0);
        options.threads = how.threads.or(recipe.threads).map_or(options.threads, usize::from);
        Ok(options)
    }
}
