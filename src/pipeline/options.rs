//! What the main job is asked to do.

use super::Targets;
use crate::cache::{Cache, Objects};
use crate::data::Preprocess;
use crate::ir::Model;
use crate::onnx::WriteOptions;
use crate::passes::{Part, Request, Rule, find, fp16, fp32, parse_list};
use crate::report::Baseline;
use crate::verify::Budget;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What the user asked for.
#[derive(Clone)]
pub struct Options {
    /// The passes, in order. `simplify` is put in front (after `opset`) unless [`Options::simplify_first`] is off or it is there.
    pub passes: Vec<Request>,
    /// Options that are another for some nodes.
    pub rules: Vec<Rule>,
    /// Run `simplify` before everything else.
    pub simplify_first: bool,
    /// Calibration data; without it, `test_data_set_N` beside the model, or made-up numbers.
    pub calib: Option<PathBuf>,
    /// Files of statistics that were measured before ([`crate::calibrate`]).
    pub stats: Vec<PathBuf>,
    /// How images in [`Options::calib`] become inputs.
    pub preprocess: Option<Preprocess>,
    /// What may be lost; by default [`Budget::lossless`] or [`Budget::lossy`], as the passes are.
    pub budget: Option<Budget>,
    /// How small the result has to be.
    pub targets: Targets,
    /// An earlier result that this one must not fall behind.
    pub baseline: Option<Baseline>,
    /// The part of the budget that may be used up; a search leaves some for what few samples do not tell. What uses more of it is refused, and
    /// explained only when all of it might have been used: a search looks for another result first.
    pub part: f64,
    /// A result of another size is not looked at: [`super::OtherSize`].
    pub bytes: RangeInclusive<u64>,
    /// A search begins no further measurement after so long; `None`: it takes as long as its effort says.
    pub search_time: Option<Duration>,
    /// Measure how fast the result is beside the original.
    pub bench: bool,
    /// Write the output even when the verdict is against it.
    pub keep: bool,
    /// Compare the result with the original before it is let out.
    pub verify: bool,
    /// Say in the report how much noise came in at each layer, even when the budget holds.
    pub layers: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// Number of threads; results do not depend on it.
    pub threads: usize,
    /// What trials have measured; results do not depend on it.
    pub cache: Option<Arc<Cache>>,
    /// What is made again and again within a search, which gives it; it takes memory, and one run of passes has no use for it.
    pub objects: Option<Arc<Objects>>,
    /// How to write.
    pub write: WriteOptions,
}

impl Options {
    /// These passes, everything else at its default.
    pub fn new(passes: Vec<Request>) -> Options {
        Options {
            passes,
            rules: Vec::new(),
            simplify_first: true,
            calib: None,
            stats: Vec::new(),
            preprocess: None,
            budget: None,
            targets: Targets::default(),
            baseline: None,
            part: 1.0,
            bytes: 0..=u64::MAX,
            search_time: None,
            bench: false,
            keep: false,
            verify: true,
            layers: false,
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            cache: None,
            objects: None,
            write: WriteOptions::default(),
        }
    }

    /// The passes, and what is another for some nodes, in one line.
    pub fn spelled(&self) -> String {
        let rule = |r: &Rule| format!("{}: {}.{}={}", r.glob, r.pass, r.option, r.value);
        let passes: Vec<String> = self.requests().iter().map(Request::spelled).collect();
        let rules: Vec<String> = self.rules.iter().map(rule).collect();
        [vec![passes.join(",")], rules].concat().join("; ")
    }

    /// The passes that run, `simplify` included, with what is another for some nodes.
    pub fn requests(&self) -> Vec<Request> {
        let mut all = self.passes.clone();
        let first = all.iter().take_while(|r| r.info.name == "opset").count();
        let named = all.get(first).is_some_and(|r| r.info.name == "simplify");
        if let (true, false, Some(info)) = (self.simplify_first, named, find("simplify")) {
            let options = crate::passes::Options::defaults(info);
            all.insert(first, Request { info, options });
        }
        all.iter_mut().for_each(|r| r.options.follow(&self.rules));
        all
    }

    /// The same for a model whose weights may be in 16 bits: `fp32` comes before the first pass that works on float32 (and before a
    /// `simplify` in front of it, which reads through what fp32 makes superfluous), and `fp16` at the end unless something stores fewer bits.
    pub fn requests_for(&self, model: &Model) -> Vec<Request> {
        let mut all = self.requests();
        let wide = |r: &Request| r.info.lossy && !r.info.name.starts_with("fp");
        let (Some(half), Some(first)) = (fp32::half_weights(model), all.iter().position(wide)) else {
            return all;
        };
        let named = |name: &str| all.iter().any(|r| r.info.name == name);
        let narrow = all.iter().any(|r| matches!(r.info.part, Part::Precision { .. }));
        let (before, behind) = (!named("fp32"), !narrow && !named("fp16"));
        let with = |spelled: &str| parse_list(spelled).ok().and_then(|mut r| r.pop());
        all.extend(with(fp16::of(half)).filter(|_| behind));
        if let Some(request) = with("fp32").filter(|_| before) {
            let simplify = all[..first].iter().position(|r| r.info.name == "simplify");
            all.insert(simplify.unwrap_or(first), request);
        }
        all
    }
}
