//! The account of a run: one structure; text, JSON, Markdown and HTML are renderings of it.

mod baseline;
pub mod html;
mod layers;
pub mod markdown;
mod recipe;
mod speed;
pub mod text;
mod weights;

pub use baseline::Baseline;
pub use layers::{LayerSize, credit, layer_sizes};
pub use speed::bench;
pub use weights::{WeightSize, weights};

use crate::analysis::cost::cost;
use crate::ir::Model;
use crate::ops::types::infer_for;
use crate::passes::{Chart, Note, Rule};
use crate::verify::{Budget, LayerDamage, OutputGap, Speed, Verdict};
use serde::Serialize;
use std::collections::BTreeMap;

/// Size of a model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Size {
    /// Bytes on disk, external data included; 0 for a model that was not written.
    pub bytes: u64,
    /// Nodes, those in sub-graphs included.
    pub nodes: usize,
    /// Elements of all weights.
    pub params: u64,
    /// Multiply-accumulate operations for one sample, where the shapes are known.
    pub macs: Option<u64>,
}

impl Size {
    /// Nodes, parameters and MACs of a model, for inputs of these dimensions. MACs stay unknown where the shapes of the
    /// file contradict each other or depend on data.
    pub fn of(model: &Model, inputs: &BTreeMap<String, Vec<usize>>) -> Size {
        let cost = infer_for(model, inputs)
            .map(|types| cost(model, &types))
            .unwrap_or_default();
        Size {
            bytes: 0,
            nodes: model.nodes().count(),
            params: cost.params,
            macs: cost.macs,
        }
    }
}

/// The samples that were used.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DataUsed {
    /// Where they come from.
    pub origin: String,
    /// For images: how they became inputs.
    pub preprocess: Option<String>,
    /// True when they were made up.
    pub synthetic: bool,
    /// Samples that passes could look at.
    pub calibration: usize,
    /// Samples that only the verdict saw.
    pub held_back: usize,
}

impl DataUsed {
    /// Where they come from, and how images became inputs.
    pub fn whence(&self) -> String {
        match &self.preprocess {
            Some(line) => format!("{} ({line})", self.origin),
            None => self.origin.clone(),
        }
    }
}

/// What one pass did.
#[derive(Clone, Debug, Serialize)]
pub struct PassRun {
    /// The pass as it was asked for.
    pub pass: String,
    /// True when it changed anything.
    pub changed: bool,
    /// Wall time.
    pub seconds: f64,
    /// Its account, node by node.
    pub notes: Vec<Note>,
    /// What it chose from.
    pub charts: Vec<Chart>,
}

/// A result that a search measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tried {
    /// The passes, as `--passes` takes them.
    pub passes: String,
    /// The passes with all calibration samples, when the same error would have meant more there.
    pub made: Option<String>,
    /// Whether its numbers come from an earlier run.
    pub cached: bool,
    /// Bytes of the result.
    pub bytes: u64,
    /// Multiply-accumulate operations for one sample, where they are known.
    pub macs: Option<u64>,
    /// What it used up of the budget on the tuning samples: 1 is all.
    pub used: f64,
    /// The lowest SQNR of an output, dB.
    pub sqnr_db: f64,
    /// Wall time.
    pub seconds: f64,
    /// True for the one that was taken.
    pub chosen: bool,
    /// Why it was refused: by the held-back samples, when it was to be taken, or by the engine.
    pub refused: Option<String>,
}

/// The whole account.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of onnxzip.
    pub version: &'static str,
    /// The machine: operating system, processor, how many of them.
    pub host: String,
    /// The engine that verified.
    pub engine: String,
    /// Path of the input.
    pub input: String,
    /// Path of the output.
    pub output: String,
    /// True when the output was put into place.
    pub written: bool,
    /// True when verification was refused by the user.
    pub unverified: bool,
    /// The original.
    pub before: Size,
    /// The result.
    pub after: Size,
    /// The original's weights, largest first.
    pub weights_before: Vec<WeightSize>,
    /// The result's weights, largest first.
    pub weights_after: Vec<WeightSize>,
    /// What the layers cost, in the original's order.
    pub layer_sizes: Vec<LayerSize>,
    /// Seed of everything random.
    pub seed: u64,
    /// True when weights were put into a file beside the model on request.
    pub external_data: bool,
    /// True when names inside were made short.
    pub short_names: bool,
    /// The samples.
    pub data: DataUsed,
    /// The passes, in order.
    pub passes: Vec<PassRun>,
    /// Options that were another for some nodes.
    pub rules: Vec<Rule>,
    /// What a search measured before it chose the passes; empty when they were given.
    pub search: Vec<Tried>,
    /// Calibration samples on which the search measured.
    pub tuning_samples: usize,
    /// What was allowed to be lost.
    pub budget: Budget,
    /// What was lost, output by output.
    pub gaps: Vec<OutputGap>,
    /// Noise that came in layer by layer, the worst first; empty when nobody asked for it and the budget holds.
    pub layers: Vec<LayerDamage>,
    /// Latency, throughput and memory side by side, when they were asked for.
    pub speed: Option<Speed>,
    /// The judgement.
    pub verdict: Verdict,
    /// The first pass after which the budget no longer held.
    pub culprit: Option<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Wall time of everything.
    pub seconds: f64,
}

impl Report {
    /// An empty account.
    pub fn new(engine: String) -> Report {
        Report {
            version: env!("CARGO_PKG_VERSION"),
            host: host(),
            engine,
            input: String::new(),
            output: String::new(),
            written: false,
            unverified: false,
            before: Size::default(),
            after: Size::default(),
            weights_before: Vec::new(),
            weights_after: Vec::new(),
            layer_sizes: Vec::new(),
            seed: 0,
            external_data: false,
            short_names: false,
            data: DataUsed::default(),
            passes: Vec::new(),
            rules: Vec::new(),
            search: Vec::new(),
            tuning_samples: 0,
            budget: Budget::lossless(),
            gaps: Vec::new(),
            layers: Vec::new(),
            speed: None,
            verdict: Verdict::NotRun("not yet".into()),
            culprit: None,
            warnings: Vec::new(),
            seconds: 0.0,
        }
    }

    /// True when the verdict, or the user's refusal of one, lets the output go.
    pub fn may_leave(&self) -> bool {
        matches!(self.verdict, Verdict::Same | Verdict::Within) || self.unverified
    }

    /// The exit code that says it to a script: 0 inside the budget (or verification refused), 1 outside, 3 not verified.
    pub fn exit_code(&self) -> u8 {
        match self.verdict {
            Verdict::Same | Verdict::Within => 0,
            Verdict::Outside(_) => 1,
            Verdict::NotRun(_) if self.unverified => 0,
            Verdict::Vacuous(_) | Verdict::NotRun(_) => 3,
        }
    }

    /// The command that gives the same bytes again, without a search. It cannot say what is another for some nodes: then it takes the recipe.
    pub fn command(&self) -> String {
        if !self.rules.is_empty() {
            return "onnxzip optimize --recipe onnxzip.toml".to_owned();
        }
        let passes: Vec<&str> = self.passes.iter().map(|p| p.pass.as_str()).collect();
        let calib = match self.data.synthetic {
            true => String::new(),
            false => format!(" --calib {}", quoted(&self.data.origin)),
        };
        let engine = match self.on_ort() {
            true => " --engine ort",
            false => "",
        };
        let line = self.data.preprocess.as_ref();
        let calib = calib + &line.map_or(String::new(), |p| format!(" --preprocess {}", quoted(p)));
        let (passes, seed, budget) = (quoted(&passes.join(",")), self.seed, self.budget.to_string());
        format!(
            "onnxzip optimize --passes {passes}{calib}{engine} --budget {} --seed {seed} {} {}",
            quoted(&budget),
            quoted(&self.input),
            quoted(&self.output)
        )
    }

    /// True when ONNX Runtime ran the models.
    pub(crate) fn on_ort(&self) -> bool {
        self.engine.starts_with("ONNX Runtime")
    }

    /// The account as JSON. Infinite and undefined numbers are `null`.
    ///
    /// # Errors
    /// Never for a report made by this crate.
    pub fn json(&self) -> serde_json::Result<String> {
        /// What is worked out from the account stands in it, too.
        #[derive(Serialize)]
        struct Whole<'a> {
            #[serde(flatten)]
            report: &'a Report,
            recipe: String,
        }
        let whole = Whole {
            report: self,
            recipe: self.recipe(),
        };
        serde_json::to_string_pretty(&whole).map(|s| s + "\n")
    }
}

fn host() -> String {
    use std::env::consts::{ARCH, OS};
    match std::thread::available_parallelism().map_or(1, |n| n.get()) {
        1 => format!("{OS} on {ARCH}, 1 processor"),
        n => format!("{OS} on {ARCH}, {n} processors"),
    }
}

/// A word of a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
