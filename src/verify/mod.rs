//! The comparison of a result with its original on held-back samples, and the verdict.

mod budget;
mod decisions;
mod layers;
mod meter;
mod speed;
mod spelled;

pub use budget::{Budget, Condition, Metric};
pub use decisions::Decisions;
pub use layers::{LayerDamage, layers, worst};
pub use speed::{Effort as SpeedEffort, Speed, Times, speed};

use crate::analysis::parts::{Part, parts};
use crate::analysis::{chosen, ends};
use crate::data::Samples;
use crate::engine::{Engine, NotRun, Session};
use crate::ir::{Model, Tensor, ValueId};
use crate::math::variation::hardly;
use crate::ops::labels::numbers;
use crate::ops::types::{Types, infer_sample};
use crate::parallel::in_order;
use crate::progress::Progress;
use anyhow::{Context, Result};
use meter::Meter;
use serde::Serialize;

/// Outputs of the original that wait for those of the result may take so many bytes.
const KEPT: usize = 64 << 20;

/// How far one output is from the original's.
#[derive(Clone, Debug, Serialize)]
pub struct OutputGap {
    /// The output's public name, or the name of the inner value that was compared as well.
    pub name: String,
    /// True for the value before a last nonlinearity that may have saturated.
    pub inner: bool,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Signal-to-quantization-noise ratio, dB; infinite (in JSON: null) when all is equal.
    pub sqnr_db: f64,
    /// The same with samples louder than the median turned down to it, which other samples may be more like; null of zeros, and
    /// when all is equal.
    pub typical_sqnr_db: Option<f64>,
    /// Cosine similarity over all elements.
    pub cosine: f64,
    /// Share of class decisions that agree, when the output looks like class scores.
    pub top1: Option<f64>,
    /// How much the lead of the best class over the second errs, root mean square.
    pub margin_noise: Option<f64>,
    /// The share of class decisions that is expected to change, from margins and noise: it resolves more than a count.
    pub top1_expected_change: Option<f64>,
    /// How many class decisions there were.
    pub decisions: u64,
    /// Against the labels, when there are any and the output is one decision for each sample.
    pub accuracy: Option<Accuracy>,
    /// Elements that are NaN or infinite on one side only.
    pub broken: u64,
    /// True when the original gives the same number everywhere: the comparison says nothing.
    pub constant: bool,
    /// How much the original's values change from sample to sample, in parts of their power.
    pub variation: Option<f64>,
    /// True for the inner value before an output that hardly changes from sample to sample, because it has saturated, or that
    /// is negligible: the budget holds for this value, too.
    pub stands_in: bool,
    /// True for an output of Sigmoid, Softmax or the like that differs by no more than the rounding of a number near 1. Ratios of
    /// such numbers say nothing where all of them are tiny, so that only the value before it is judged.
    pub negligible: bool,
    /// True for an output that is chosen from other values ([`crate::analysis::chosen`]), as the best boxes are: budgets about numbers hold for these.
    pub chosen: bool,
    /// For what is chosen inside the model, such as the queries of a detection transformer: what part of it the result chooses as well, left to itself.
    /// All other values are compared under the original's choice.
    pub same_choice: Option<f64>,
    /// For a value that an output is chosen from: the output's name; and for a part of an output that is put together from things of different kinds, such as boxes and scores ([`crate::analysis::parts`]): the
    /// output's name. The budget holds for every part, but for scores that change by no more than a hundredth anywhere.
    pub part_of: Option<String>,
}

/// Scores between 0 and 1 that change by no more than this lose nothing, however small they are.
const UNNOTICED: f64 = 0.01;

/// What the results of saturating operators may differ by without anyone taking notice: some steps of a float near 1.
const NEGLIGIBLE: f64 = 1e-6;

/// Top-1 accuracy of both models.
#[derive(Clone, Debug, Serialize)]
pub struct Accuracy {
    /// Share of samples that the original gets right.
    pub before: f64,
    /// Share of samples that the result gets right.
    pub after: f64,
    /// Samples with a label.
    pub samples: u64,
    /// The share of samples that is expected to be lost, from margins and noise.
    pub expected_loss: f64,
}

/// The outcome of a verification.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", content = "reason", rename_all = "kebab-case")]
pub enum Verdict {
    /// Every output equals the original's bit for bit.
    Same,
    /// Inside the budget.
    Within,
    /// Outside the budget, with the reason.
    Outside(String),
    /// The comparison proves nothing, with the reason.
    Vacuous(String),
    /// It was not compared, with the reason.
    NotRun(String),
}

/// Runs both models over the samples and measures every output.
///
/// # Errors
/// [`NotRun`] (in the chain) when the engine cannot run one of them; otherwise when a sample fails or outputs do not correspond.
pub fn compare(
    original: &Model,
    changed: &Model,
    samples: &Samples,
    engine: &dyn Engine,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<OutputGap>> {
    let pairs = pairs(original, changed)?;
    let like = samples.get(0)?;
    let load = |model: &Model, which: &str, wanted: Vec<ValueId>| {
        let session = engine.load(model, &wanted, &like);
        session.map_err(|NotRun(why)| anyhow::Error::new(NotRun(format!("{which}: {why}"))))
    };
    let types = infer_sample(original, &like).ok();
    let parts = types.as_ref().map(|types| parts(original, types));
    let mut parts: Vec<(usize, Part, Meter)> = parts
        .into_iter()
        .flatten()
        .map(|(of, part)| (of, part, Meter::default()))
        .collect();
    let mut meters: Vec<Meter> = pairs.iter().map(|_| Meter::default()).collect();
    progress.start("verify", samples.len());
    let at_once = at_once(types.as_ref(), &pairs).max(threads);
    let wanted = || pairs.iter().map(|p| p.original).collect();
    let given = || pairs.iter().map(|p| p.changed).collect();
    let mut before = Some(load(original, "the original", wanted())?);
    let mut after = None;
    for start in (0..samples.len()).step_by(at_once) {
        let n = at_once.min(samples.len() - start);
        let run = |session: &dyn Session, i: usize| session.run(&samples.get(start + i)?);
        let mut xs = Vec::with_capacity(n);
        if let Some(before) = &before {
            let keep = |_, x| {
                xs.push(x);
                Ok(())
            };
            in_order(n, threads, |i| run(&**before, i), keep)?;
        }
        if start + n == samples.len() {
            before = None;
        }
        let after = match &after {
            Some(session) => session,
            None => after.insert(load(changed, "the result", given())?),
        };
        let count = |i: usize, ys: Vec<Tensor>| {
            let label = samples.label(start + i);
            for ((meter, pair), (x, y)) in meters.iter_mut().zip(&pairs).zip(xs[i].iter().zip(&ys)) {
                if pair.kind == Kind::Chosen && x.dims() != y.dims() {
                    meter.unlike();
                    continue;
                }
                let added = meter.add(x, y, label);
                added.with_context(|| format!("output {:?}", pair.name))?;
            }
            for (of, part, meter) in &mut parts {
                meter.add_part(part, &xs[i][*of], &ys[*of])?;
            }
            progress.advance(1);
            Ok(())
        };
        in_order(n, threads, |i| run(&**after, i), count)?;
    }
    progress.finish();
    let mut gaps: Vec<OutputGap> = Vec::with_capacity(pairs.len());
    for (pair, meter) in pairs.iter().zip(meters) {
        let inner = !matches!(pair.kind, Kind::Output | Kind::Chosen);
        let mut gap = meter.gap(pair.name.clone(), inner);
        gap.chosen = pair.kind == Kind::Chosen;
        if let Kind::Source { scores } = pair.kind {
            gap.of(&gaps[pair.of].name, scores);
        }
        gaps.push(gap);
    }
    for (k, pair) in pairs.iter().enumerate() {
        if pair.kind == Kind::Before {
            let output = &mut gaps[pair.of];
            output.negligible = output.max_abs <= NEGLIGIBLE && output.broken == 0;
            gaps[k].stands_in = output.negligible || output.variation.is_some_and(hardly);
        }
    }
    for (of, part, meter) in parts {
        if pairs[of].kind == Kind::Chosen {
            continue;
        }
        let mut gap = meter.gap(part.name, true);
        gap.of(&gaps[of].name, part.saturates);
        gaps.push(gap);
    }
    Ok(gaps)
}

impl OutputGap {
    /// Makes it one of a part of an output; `scores`: between 0 and 1.
    fn of(&mut self, output: &str, scores: bool) {
        self.part_of = Some(output.to_owned());
        if scores {
            self.typical_sqnr_db = None; // most samples have no scores to speak of
        }
        self.stands_in = !scores || self.max_abs > UNNOTICED || self.broken > 0;
    }
}

/// The lowest SQNR of an output, or of what an output is chosen from, dB; `None` where nothing was measured.
pub fn worst_db(gaps: &[OutputGap]) -> Option<f64> {
    let chosen = |name: &String| gaps.iter().any(|g| g.chosen && g.name == *name);
    let told = |g: &&OutputGap| match &g.part_of {
        Some(output) => chosen(output),
        None => !g.inner && !g.chosen,
    };
    gaps.iter().filter(told).map(|g| g.sqnr_db).reduce(f64::min)
}

/// How many samples the original is run on before the result is: where the outputs for all of them are small, only one of the two is in
/// memory at a time. One where their dimensions are not known.
fn at_once(types: Option<&Types>, pairs: &[Pair]) -> usize {
    let bytes = |types: &Types| {
        let all = pairs.iter().map(|p| types.dims(p.original));
        let numbers = all.map(|dims| dims?.iter().try_fold(4usize, |n, d| n.checked_mul(*d)));
        numbers.sum::<Option<usize>>()
    };
    let bytes = types.and_then(bytes);
    bytes.map_or(1, |bytes| (KEPT / bytes.max(1)).max(1))
}

/// What a value is to an output.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// The output itself.
    Output,
    /// The output itself, which is chosen from others.
    Chosen,
    /// The input of its last nonlinearity.
    Before,
    /// It is chosen from this one; `scores`: between 0 and 1.
    Source { scores: bool },
}

struct Pair {
    name: String,
    kind: Kind,
    /// The number of the output that it belongs to.
    of: usize,
    original: ValueId,
    changed: ValueId,
}

/// Outputs by name, in their order, and then the inputs of last nonlinearities that both models have.
fn pairs(original: &Model, changed: &Model) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for port in original.main().outputs() {
        let same = changed.main().outputs().iter().find(|p| p.name() == port.name());
        let same = same.with_context(|| format!("the result has no output {:?}", port.name()))?;
        pairs.push(Pair {
            name: port.name().to_owned(),
            kind: Kind::Output,
            of: pairs.len(),
            original: numbers(original, port.value),
            changed: numbers(changed, same.value),
        });
    }
    for of in 0..pairs.len() {
        let (was, is) = (pairs[of].original, pairs[of].changed);
        let inner = |kind: Kind, was: ValueId, is: ValueId| Pair {
            name: original.value(was).name.clone(),
            kind,
            of,
            original: was,
            changed: is,
        };
        let sources = sources((original, was), (changed, is));
        if !sources.is_empty() {
            pairs[of].kind = Kind::Chosen;
            pairs.extend(sources.into_iter().map(|(was, is)| {
                let scores = chosen::are_scores(original, was);
                inner(Kind::Source { scores }, was, is)
            }));
        } else if let (Some(was), Some(is)) = (ends::before(original, was), ends::before(changed, is)) {
            pairs.push(inner(Kind::Before, was, is));
        }
    }
    Ok(pairs)
}

/// The values that an output is chosen from in both models; none where it is not.
fn sources((original, was): (&Model, ValueId), (changed, is): (&Model, ValueId)) -> Vec<(ValueId, ValueId)> {
    let both = || {
        let (ours, theirs) = (chosen::from(original, was)?, chosen::from(changed, is)?);
        let same = |a: &ValueId, b: &ValueId| original.value(*a).name == changed.value(*b).name;
        let found = chosen::matched(&ours, &theirs, same)?;
        Some(ours.into_iter().zip(found.into_iter().map(|i| theirs[i])).collect())
    };
    both().unwrap_or_default()
}

/// Judges the gaps by a budget.
pub fn judge(gaps: &[OutputGap], budget: &Budget) -> Verdict {
    if let Some(g) = gaps.iter().find(|g| g.broken > 0 && !g.chosen) {
        return Verdict::Outside(format!(
            "output {:?}: {} numbers are NaN or infinite in only one of the models",
            g.name, g.broken
        ));
    }
    if let Some(reason) = budget.exceeded(gaps) {
        return Verdict::Outside(reason);
    }
    if !gaps.is_empty() && gaps.iter().all(|g| g.constant) {
        return Verdict::Vacuous(
            "the original gives one and the same number for every sample, so equality proves nothing; give real data with --calib".into(),
        );
    }
    if budget.used(gaps).is_none() {
        return Verdict::Vacuous(format!(
            "nothing that the budget {budget} is about was measured: classes are counted in outputs [samples, classes], \
             labels are class numbers"
        ));
    }
    if gaps.iter().filter(|g| !g.inner).all(|g| g.max_abs == 0.0) {
        return Verdict::Same;
    }
    Verdict::Within
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn gap(sqnr_db: f64, top1: Option<f64>) -> OutputGap {
        OutputGap {
            name: "y".into(),
            inner: false,
            max_abs: 0.1,
            sqnr_db,
            typical_sqnr_db: None,
            cosine: 0.99,
            top1,
            margin_noise: top1.map(|_| 0.1),
            top1_expected_change: top1.map(|_| 0.0),
            decisions: 100,
            accuracy: None,
            broken: 0,
            constant: false,
            variation: None,
            stands_in: false,
            negligible: false,
            part_of: None,
            same_choice: None,
            chosen: false,
        }
    }

    /// Boxes of some hundreds beside scores below 1; the logits of the latter are multiplied.
    #[cfg(feature = "tract")]
    fn detector(factor: f32, logit: f32) -> Model {
        use crate::engine::testing::Builder;
        use crate::ir::{Attr, DType};
        let mut b = Builder::new(13);
        let x = b.input("x", DType::Float, &[1, 2, 30]);
        let mut number = |name: &str, x: f32| b.constant(name, Tensor::new(&[], vec![x]));
        let (hundred, factor, logit) = (
            number("hundred", 100.0),
            number("factor", factor),
            number("logit", logit),
        );
        let boxes = b.op("Mul", &[x, hundred], vec![]);
        let logits = b.op("Add", &[x, logit], vec![]);
        let logits = b.op("Mul", &[logits, factor], vec![]);
        let scores = b.op("Sigmoid", &[logits], vec![]);
        let y = b.op("Concat", &[boxes, scores], vec![Attr::int("axis", 1)]);
        let info = crate::pb::ValueInfoProto {
            name: Some("y".into()),
            ..Default::default()
        };
        b.model.add_output(b.model.main_id(), info, y);
        b.model
    }

    #[test]
    #[cfg(feature = "tract")]
    fn scores_beside_boxes_are_judged_by_themselves() {
        use crate::engine::tract::Tract;
        let gaps = |factor: f32, size: f32| {
            let (a, b) = (detector(1.0, size), detector(factor, size));
            let samples = crate::data::Dataset::synthetic(&a, 1, 4).all();
            compare(&a, &b, &samples, &Tract, 1, &crate::progress::Silent).expect("both run")
        };
        let broken = gaps(0.0, 0.0);
        assert!(broken[0].sqnr_db > 40.0 && broken.len() == 3, "{broken:?}");
        assert!(broken[2].sqnr_db < 10.0 && broken[2].part_of.as_deref() == Some(&*broken[0].name));
        let Verdict::Outside(why) = judge(&broken, &Budget::lossy()) else {
            panic!("the scores are lost: {broken:?}");
        };
        assert!(why.contains("the part"), "{why}");
        // Where there is nothing to see, nothing is lost.
        let empty = gaps(1.5, -15.0);
        assert!(empty[2].sqnr_db < 10.0, "{empty:?}");
        assert_eq!(judge(&empty, &Budget::lossy()), Verdict::Within);
    }

    /// The rows of `x` with the largest sums, so many as are above `least` or four.
    #[cfg(feature = "tract")]
    fn best_rows(noise: f32, threshold: Option<f32>) -> Model {
        use crate::engine::testing::Builder;
        use crate::ir::{Attr, DType};
        let mut b = Builder::new(17);
        let x = b.input("x", DType::Float, &[32, 3]);
        let wave: Vec<f32> = (0..96).map(|i| noise * (i as f32 * 1.7).sin()).collect();
        let wave = b.constant("wave", Tensor::new(&[32, 3], wave));
        let x = b.op("Add", &[x, wave], vec![]);
        let axes = vec![Attr::ints("axes", vec![1]), Attr::int("keepdims", 0)];
        let sums = b.op("ReduceMean", &[x], axes);
        let at = match threshold {
            None => {
                let k = b.constant("k", Tensor::new(&[1], vec![4i64]));
                b.ops("TopK", &[Some(sums), Some(k)], 2, vec![Attr::int("axis", 0)])[1]
            }
            Some(least) => {
                let least = b.constant("least", Tensor::new(&[], vec![least]));
                let above = b.op("Greater", &[sums, least], vec![]);
                let all = b.op("NonZero", &[above], vec![]);
                let flat = b.constant("flat", Tensor::new(&[1], vec![-1i64]));
                b.op("Reshape", &[all, flat], vec![])
            }
        };
        let y = b.op("Gather", &[x, at], vec![Attr::int("axis", 0)]);
        let name = b.model.value(y).name.clone();
        b.model
            .add_output(b.model.main_id(), Model::elem_info(name, DType::Float), y);
        b.model
    }

    #[cfg(feature = "tract")]
    #[test]
    fn rows_that_change_places_or_numbers_are_judged_by_what_they_are_chosen_from() {
        use crate::engine::tract::Tract;
        for threshold in [None, Some(0.0)] {
            let gaps = |noise: f32| {
                let (a, b) = (best_rows(0.0, threshold), best_rows(noise, threshold));
                let samples = crate::data::Dataset::synthetic(&a, 1, 8).all();
                compare(&a, &b, &samples, &Tract, 1, &crate::progress::Silent).expect("both run")
            };
            let little = gaps(0.3);
            let row = &little[0];
            assert!(
                row.chosen && (row.max_abs.is_infinite() || row.sqnr_db < little[2].sqnr_db - 5.0),
                "{little:?}"
            );
            assert!(little[1..].iter().all(|g| g.part_of.as_ref() == Some(&little[0].name)));
            assert_eq!(
                judge(&little, &Budget::lossy()),
                Verdict::Within,
                "{threshold:?}: {little:?}"
            );
            let Verdict::Outside(why) = judge(&gaps(1.0), &Budget::lossy()) else {
                panic!("the rows are lost");
            };
            assert!(why.contains("the part"), "{why}");
        }
    }

    #[test]
    fn a_constant_reference_proves_nothing() {
        let mut g = gap(f64::INFINITY, None);
        g.constant = true;
        g.max_abs = 0.0;
        assert!(matches!(judge(&[g], &Budget::lossy()), Verdict::Vacuous(_)));
    }

    #[test]
    fn a_budget_about_nothing_that_was_measured_proves_nothing() {
        let classes: Budget = "top1:1%".parse().expect("a budget");
        assert!(matches!(judge(&[gap(30.0, None)], &classes), Verdict::Vacuous(_)));
        assert_eq!(judge(&[gap(30.0, Some(1.0))], &classes), Verdict::Within);
    }
}
