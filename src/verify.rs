//! The comparison of a result with its original on held-back samples, and the verdict.

use crate::data::Samples;
use crate::engine::{Engine, NotRun};
use crate::ir::{DType, Model, Tensor, ValueId};
use crate::math::compare::Gap;
use crate::parallel::in_order;
use crate::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// What may be lost. Every condition that is given holds for every output.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Budget {
    /// Least signal-to-quantization-noise ratio, dB.
    pub sqnr_db: Option<f64>,
    /// Largest share of samples whose top-1 class changes, 0 to 1.
    pub top1: Option<f64>,
    /// Least cosine similarity.
    pub cosine: Option<f64>,
}

impl Budget {
    /// For passes that promise the same numbers up to rounding.
    pub const LOSSLESS: Budget = Budget::sqnr(60.0);
    /// For lossy passes, when the user says nothing. Files that other tools broke measure 6 to 9 dB.
    pub const LOSSY: Budget = Budget::sqnr(10.0);

    const fn sqnr(db: f64) -> Budget {
        Budget {
            sqnr_db: Some(db),
            top1: None,
            cosine: None,
        }
    }
}

impl FromStr for Budget {
    type Err = anyhow::Error;
    /// `sqnr:20dB`, `top1:1%`, `cosine:0.999`, or several separated by commas.
    fn from_str(text: &str) -> Result<Budget> {
        let mut budget = Budget {
            sqnr_db: None,
            top1: None,
            cosine: None,
        };
        for part in text.split(',') {
            let wrong = || format!("budget {part:?}: write sqnr:20dB, top1:1% or cosine:0.999");
            let (kind, amount) = part.trim().split_once(':').with_context(wrong)?;
            let number = |unit: &str| -> Result<f64> {
                let text = amount.trim().trim_end_matches(unit).trim();
                let x: f64 = text.parse().with_context(wrong)?;
                ensure!(x.is_finite() && x >= 0.0, "{}", wrong());
                Ok(x)
            };
            match kind.trim() {
                "sqnr" => budget.sqnr_db = Some(number("dB")?),
                "top1" => budget.top1 = Some(number("%")? / 100.0),
                "cosine" => budget.cosine = Some(number("")?),
                _ => bail!(wrong()),
            }
        }
        Ok(budget)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.sqnr_db.map(|x| format!("sqnr:{x}dB")));
        parts.extend(self.top1.map(|x| format!("top1:{}%", x * 100.0)));
        parts.extend(self.cosine.map(|x| format!("cosine:{x}")));
        f.write_str(&parts.join(","))
    }
}

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
    /// Cosine similarity over all elements.
    pub cosine: f64,
    /// Share of class decisions that agree, when the output looks like class scores.
    pub top1: Option<f64>,
    /// Elements that are NaN or infinite on one side only.
    pub broken: u64,
    /// True when the original gives the same number everywhere: the comparison says nothing.
    pub constant: bool,
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
    let a = || load(original, "the original", pairs.iter().map(|p| p.original).collect());
    let b = || load(changed, "the result", pairs.iter().map(|p| p.changed).collect());
    let (a, b) = both(threads, a, b)?;
    let mut meters: Vec<Meter> = pairs.iter().map(|_| Meter::default()).collect();
    progress.start("verify", samples.len());
    let mut xs = Vec::new();
    in_order(
        2 * samples.len(),
        threads,
        |i| [&a, &b][i % 2].run(&samples.get(i / 2)?),
        |i, ys| {
            if i % 2 == 0 {
                xs = ys;
                return Ok(());
            }
            for ((meter, pair), (x, y)) in meters.iter_mut().zip(&pairs).zip(xs.iter().zip(&ys)) {
                meter.add(x, y).with_context(|| format!("output {:?}", pair.name))?;
            }
            progress.advance(1);
            Ok(())
        },
    )?;
    progress.finish();
    Ok(pairs.into_iter().zip(meters).map(|(p, m)| m.gap(p)).collect())
}

/// Runs two jobs, at the same time when there are threads for it; the first error of the two, in order.
fn both<T: Send>(
    threads: usize,
    a: impl FnOnce() -> Result<T>,
    b: impl FnOnce() -> Result<T> + Send,
) -> Result<(T, T)> {
    if threads < 2 {
        return Ok((a()?, b()?));
    }
    std::thread::scope(|scope| {
        let b = scope.spawn(b);
        let a = a();
        let b = b.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((a?, b?))
    })
}

struct Pair {
    name: String,
    inner: bool,
    original: ValueId,
    changed: ValueId,
}

/// Outputs by name, and the inputs of last nonlinearities that both models have.
fn pairs(original: &Model, changed: &Model) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for port in original.main().outputs() {
        let same = changed.main().outputs().iter().find(|p| p.name() == port.name());
        let same = same.with_context(|| format!("the result has no output {:?}", port.name()))?;
        pairs.push(Pair {
            name: port.name().to_owned(),
            inner: false,
            original: port.value,
            changed: same.value,
        });
    }
    let ends: Vec<ValueId> = pairs.iter().map(|p| p.original).collect();
    for end in ends {
        let Some(node) = original.value(end).producer() else {
            continue;
        };
        let n = original.node(node);
        let saturates = ["Softmax", "Sigmoid", "Tanh", "LogSoftmax", "HardSigmoid"];
        let Some(before) = n.input(0).filter(|_| saturates.iter().any(|s| n.is(s))) else {
            continue;
        };
        let name = original.value(before).name.clone();
        let main = changed.main_id();
        let same = changed.values().find(|(_, v)| v.name == name && v.graph() == main);
        if let Some((changed, _)) = same {
            pairs.push(Pair {
                name,
                inner: true,
                original: before,
                changed,
            });
        }
    }
    Ok(pairs)
}

#[derive(Default)]
struct Meter {
    gap: Gap,
    agree: u64,
    decisions: u64,
    least: Option<f32>,
    most: Option<f32>,
}

impl Meter {
    fn add(&mut self, x: &Tensor, y: &Tensor) -> Result<()> {
        ensure!(
            x.dims() == y.dims(),
            "has dimensions {:?}, but the original's are {:?}",
            y.dims(),
            x.dims()
        );
        let (Some(a), Some(b)) = (x.to_f32(), y.to_f32()) else {
            return Ok(()); // strings are not compared
        };
        self.gap.add(&a, &b)?;
        for &v in a.iter().filter(|v| v.is_finite()) {
            self.least = Some(self.least.map_or(v, |l| l.min(v)));
            self.most = Some(self.most.map_or(v, |m| m.max(v)));
        }
        let (agree, decisions) = decisions(x, &a, &b);
        self.agree += agree;
        self.decisions += decisions;
        Ok(())
    }

    fn gap(self, pair: Pair) -> OutputGap {
        OutputGap {
            name: pair.name,
            inner: pair.inner,
            max_abs: self.gap.max_abs(),
            sqnr_db: self.gap.sqnr_db(),
            cosine: self.gap.cosine(),
            top1: (self.decisions > 0).then(|| self.agree as f64 / self.decisions as f64),
            broken: self.gap.broken,
            constant: self.least == self.most,
        }
    }
}

/// How many class decisions agree, and how many there are. Scores lie along the last axis longer than 1; an output with
/// spatial axes after the classes is no list of decisions. Integer outputs are decisions themselves.
fn decisions(t: &Tensor, a: &[f32], b: &[f32]) -> (u64, u64) {
    if t.ints().is_some() {
        let same = a.iter().zip(b).filter(|(x, y)| x == y).count();
        return (same as u64, a.len() as u64);
    }
    if t.dtype() == DType::Undefined || t.dims().len() < 2 {
        return (0, 0);
    }
    let long: Vec<usize> = t.dims().iter().copied().filter(|d| *d > 1).collect();
    let Some(&classes) = long.last() else { return (0, 0) };
    if long.len() > 2 || (t.dims().len() > 3 && long.len() > 1) {
        return (0, 0);
    }
    let rows = a.chunks_exact(classes).zip(b.chunks_exact(classes));
    let same = rows.clone().filter(|(x, y)| argmax(x) == argmax(y)).count();
    (same as u64, rows.count() as u64)
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// Judges the gaps by a budget.
pub fn judge(gaps: &[OutputGap], budget: &Budget) -> Verdict {
    if let Some(g) = gaps.iter().find(|g| g.broken > 0) {
        return Verdict::Outside(format!(
            "output {:?}: {} numbers are NaN or infinite in only one of the models",
            g.name, g.broken
        ));
    }
    if let Some(reason) = gaps.iter().filter(|g| !g.inner).find_map(|g| exceeds(g, budget)) {
        return Verdict::Outside(reason);
    }
    if !gaps.is_empty() && gaps.iter().all(|g| g.constant) {
        return Verdict::Vacuous(
            "the original gives one and the same number for every sample, so equality proves nothing; give real data with --calib".into(),
        );
    }
    if gaps.iter().filter(|g| !g.inner).all(|g| g.max_abs == 0.0) {
        return Verdict::Same;
    }
    Verdict::Within
}

fn exceeds(g: &OutputGap, budget: &Budget) -> Option<String> {
    let name = &g.name;
    if let Some(least) = budget.sqnr_db.filter(|least| g.sqnr_db.is_nan() || g.sqnr_db < *least) {
        return Some(format!("output {name:?}: {:.1} dB SQNR, below {least} dB", g.sqnr_db));
    }
    if let (Some(most), Some(top1)) = (budget.top1, g.top1)
        && 1.0 - top1 > most
    {
        let (changed, most) = ((1.0 - top1) * 100.0, most * 100.0);
        return Some(format!(
            "output {name:?}: {changed:.2} % of the top-1 classes change, above {most} %"
        ));
    }
    let least = budget.cosine.filter(|least| g.cosine.is_nan() || g.cosine < *least)?;
    Some(format!("output {name:?}: cosine {:.5}, below {least}", g.cosine))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(sqnr_db: f64, top1: Option<f64>) -> OutputGap {
        OutputGap {
            name: "y".into(),
            inner: false,
            max_abs: 0.1,
            sqnr_db,
            cosine: 0.99,
            top1,
            broken: 0,
            constant: false,
        }
    }

    #[test]
    fn every_condition_of_a_budget_must_hold() {
        let b: Budget = "sqnr:20dB, top1:1%".parse().expect("a budget");
        assert_eq!(judge(&[gap(25.0, Some(1.0))], &b), Verdict::Within);
        assert!(matches!(judge(&[gap(19.0, Some(1.0))], &b), Verdict::Outside(_)));
        assert!(matches!(judge(&[gap(25.0, Some(0.98))], &b), Verdict::Outside(_)));
        assert!(matches!(judge(&[gap(f64::NAN, None)], &b), Verdict::Outside(_)));
    }

    #[test]
    fn a_constant_reference_proves_nothing() {
        let mut g = gap(f64::INFINITY, None);
        g.constant = true;
        g.max_abs = 0.0;
        assert!(matches!(judge(&[g], &Budget::LOSSY), Verdict::Vacuous(_)));
    }

    #[test]
    fn nonsense_is_not_a_budget() {
        for text in ["", "sqnr", "sqnr:", "sqnr:x", "top5:1%", "sqnr:-3dB", "cosine:nan"] {
            assert!(text.parse::<Budget>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn decisions_are_counted_along_the_class_axis() {
        let t = Tensor::new(&[2, 3], vec![0f32, 1., 2., 5., 1., 0.]);
        assert_eq!(
            decisions(&t, &[0., 1., 2., 5., 1., 0.], &[0., 9., 2., 5., 1., 0.]),
            (1, 2)
        );
        let image = Tensor::new(&[1, 2, 2, 2], vec![0f32; 8]);
        assert_eq!(decisions(&image, &[0.; 8], &[0.; 8]), (0, 0));
    }
}
