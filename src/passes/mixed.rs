//! Mixed precision of stored weights: each in as few bits as the outputs of the model bear; asked by a pass.
//!
//! What a weight of few bits does is measured with the fewest ([`trial`]): rounded on one half of the samples, it takes the place of the float
//! weight, and the outputs on the other half tell. Every bit more takes the noise of rounding to a quarter (its power is that of an
//! interval of the grid, `Δ²/12`), which predicts what more bits do, and the choice as a whole is measured again.

use super::charts::decibel;
use super::planes::{self, KINDS};
use super::trial::{self, Ladder};
use super::{Context, NoteKind};
use crate::engine::NotRun;
use crate::ir::Model;
use crate::math::affine::IntKind;
use crate::parallel::side_by_side;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// A weight that errs by more, relative to the power of its products, is not tried.
const MOST: f64 = 0.2;
/// What a bit more leaves of the noise.
const BIT: f64 = 0.25;

/// A weight that could have few bits.
pub trait Weight: Sync {
    /// What it is rounded to.
    type Codes: Send + Sync;

    /// The numbers in it.
    fn len(&self) -> usize;

    /// The numbers of it that make one output.
    fn columns(&self) -> usize;

    /// Codes of this kind, of one half of the samples, and their signal to noise at the products, dB.
    ///
    /// # Errors
    /// When the weight is not finite.
    fn rounded(&self, kind: IntKind) -> Result<(Self::Codes, f64)>;

    /// Puts the numbers that codes stand for into a model, in floating point.
    ///
    /// # Errors
    /// When they do not fit.
    fn put(&self, model: &mut Model, codes: &Self::Codes) -> Result<()>;
}

/// Whether so many numbers can have fewer than 8 bits: not few of them, nor an odd number.
pub fn can_narrow(len: usize) -> bool {
    boldest(len).is_some()
}

/// The fewest bits that so many numbers can have.
fn boldest(len: usize) -> Option<IntKind> {
    KINDS.into_iter().find(|kind| planes::fits(*kind, len))
}

/// What fewer and fewer bits do to a weight.
struct Trial<'a, W: Weight> {
    weight: &'a W,
    /// The boldest first, each with the error of its products.
    rungs: Vec<(IntKind, f64)>,
    /// What it was rounded to.
    codes: Vec<OnceLock<W::Codes>>,
}

impl<'a, W: Weight> Trial<'a, W> {
    /// A weight that was rounded to the fewest bits it can have; `None` when it can bear none.
    fn new(weight: &'a W, (codes, sqnr): (W::Codes, f64)) -> Option<Trial<'a, W>> {
        let first = boldest(weight.len())?;
        let error = 10f64.powf(-sqnr / 10.0);
        let predicted = |kind: IntKind| error * BIT.powi(kind.bits() as i32 - first.bits() as i32);
        let rungs: Vec<(IntKind, f64)> = KINDS
            .into_iter()
            .filter(|kind| planes::fits(*kind, weight.len()))
            .map(|kind| (kind, predicted(kind)))
            .filter(|(_, error)| *error <= MOST)
            .collect();
        let made: Vec<OnceLock<W::Codes>> = rungs.iter().map(|_| OnceLock::new()).collect();
        if rungs.first()?.0 == first {
            made[0].set(codes).ok()?;
        }
        Some(Trial {
            weight,
            rungs,
            codes: made,
        })
    }
}

impl<W: Weight> Ladder for Trial<'_, W> {
    fn rungs(&self) -> usize {
        self.rungs.len()
    }

    fn error(&self, rung: usize) -> f64 {
        self.rungs[rung].1
    }

    fn saved(&self, rung: usize) -> f64 {
        let len = self.weight.len();
        len.saturating_sub(planes::bytes(self.rungs[rung].0, len)) as f64
    }

    fn prepare(all: &[Self], choice: &trial::Choice) -> Result<()> {
        let chosen = all.iter().zip(choice).filter_map(|(t, rung)| Some((t, (*rung)?)));
        let missing: Vec<(&Self, usize)> = chosen.filter(|(t, rung)| t.codes[*rung].get().is_none()).collect();
        let work: Vec<(&W, IntKind)> = missing.iter().map(|(t, rung)| (t.weight, t.rungs[*rung].0)).collect();
        let codes = side_by_side(&work, |w| w.0.columns(), |(weight, kind)| weight.rounded(*kind))?;
        for ((trial, rung), (codes, _)) in missing.into_iter().zip(codes) {
            let _ = trial.codes[rung].set(codes); // it was empty
        }
        Ok(())
    }

    fn apply(&self, model: &mut Model, rung: usize) -> Result<()> {
        self.weight
            .put(model, self.codes[rung].get().context("it was rounded")?)
    }
}

/// Which of the weights take fewer bits, and how many, when outputs may err by `limit` more, relative to their power.
///
/// # Errors
/// When a sample fails, or a weight is not finite.
pub fn choose<W: Weight>(
    model: &Model,
    weights: Vec<W>,
    limit: f64,
    pass: &str,
    cx: &mut Context,
) -> Result<Vec<(W, IntKind)>> {
    let sized = weights.iter().enumerate();
    let sized: Vec<(usize, IntKind)> = sized.filter_map(|(i, w)| Some((i, boldest(w.len())?))).collect();
    let round = |&(i, kind): &(usize, IntKind)| weights[i].rounded(kind);
    let first = side_by_side(&sized, |(i, _)| weights[*i].columns(), round)?;
    let trials = sized.iter().zip(first);
    let trials = trials.filter_map(|((i, _), first)| Some((*i, Trial::new(&weights[*i], first)?)));
    let (places, trials): (Vec<usize>, Vec<Trial<W>>) = trials.unzip();
    let kinds = settled(model, &trials, limit, pass, cx)?;
    drop(trials);
    let chosen = places.into_iter().zip(kinds);
    let chosen: BTreeMap<usize, IntKind> = chosen.filter_map(|(i, kind)| Some((i, kind?))).collect();
    let weights = weights.into_iter().enumerate();
    Ok(weights.filter_map(|(i, w)| Some((w, *chosen.get(&i)?))).collect())
}

/// The kind of each weight, as the outputs tell; `None`: 8 bits.
fn settled<W: Weight>(
    model: &Model,
    trials: &[Trial<W>],
    limit: f64,
    pass: &str,
    cx: &mut Context,
) -> Result<Vec<Option<IntKind>>> {
    if trials.is_empty() {
        cx.exhausted = true;
        return Ok(Vec::new());
    }
    let [one, other] = cx.samples.halves();
    let samples = if other.is_empty() { one } else { other };
    let settled = match trial::settle(model, trials, limit, &samples, cx) {
        Err(e) if e.chain().any(|c| c.is::<NotRun>()) => {
            cx.warn(format!(
                "{pass}(mixed={limit}): weights keep 8 bits, since nothing can be tried: {e:#}"
            ));
            return Ok(vec![None; trials.len()]);
        }
        other => other.with_context(|| format!("{pass}: trying weights of few bits"))?,
    };
    cx.exhausted = settled.choice.iter().all(|rung| *rung == Some(0));
    let kinds = settled.choice.iter().zip(trials);
    let kinds: Vec<Option<IntKind>> = kinds.map(|(rung, trial)| rung.map(|r| trial.rungs[r].0)).collect();
    let what = format!(
        "{} of the weights that were tried; on samples that had no part, outputs err by {:.1} dB because of them, of the {:.1} dB allowed",
        counts(&kinds),
        decibel(settled.last),
        decibel(limit)
    );
    cx.note(NoteKind::Did, String::new(), what);
    Ok(kinds)
}

/// How many have how many bits.
fn counts(kinds: &[Option<IntKind>]) -> String {
    let all = KINDS.into_iter().map(Some).chain([None]);
    let each = all.filter_map(|kind| {
        let n = kinds.iter().filter(|k| **k == kind).count();
        let bits = kind.map_or(8, IntKind::bits);
        (n > 0).then(|| format!("{bits} bits for {n}"))
    });
    each.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain(usize);

    impl Weight for Plain {
        type Codes = IntKind;

        fn len(&self) -> usize {
            self.0
        }

        fn columns(&self) -> usize {
            1
        }

        fn rounded(&self, kind: IntKind) -> Result<(IntKind, f64)> {
            Ok((kind, 0.0))
        }

        fn put(&self, model: &mut Model, kind: &IntKind) -> Result<()> {
            model.rest.producer_name = Some(format!("{kind:?}"));
            Ok(())
        }
    }

    #[test]
    fn a_bit_more_takes_the_noise_to_a_quarter_and_what_drowns_in_it_is_not_tried() {
        let (large, even) = (Plain(8000), Plain(4100));
        let trial = Trial::new(&large, (IntKind::S3, 10.0)).expect("bearable");
        let errors: Vec<f64> = trial.rungs.iter().map(|r| r.1).collect();
        let near = |(a, b): (&f64, f64)| (a / b - 1.0).abs() < 1e-9;
        let wanted = [0.1, 0.1 / 4.0, 0.1 / 16.0, 0.1 / 64.0];
        assert!(errors.iter().zip(wanted).all(near) && errors.len() == 4, "{errors:?}");
        let coarse = Trial::new(&large, (IntKind::S3, 0.0)).expect("with 5 bits");
        assert_eq!(coarse.rungs[0].0, IntKind::S5);
        assert!(Trial::new(&large, (IntKind::S3, -30.0)).is_none());
        // 4100 is no multiple of 8: there is no plane of one bit.
        let even = Trial::new(&even, (IntKind::S4, 10.0)).expect("bearable");
        assert_eq!(
            even.rungs.iter().map(|r| r.0).collect::<Vec<_>>(),
            [IntKind::S4, IntKind::S6]
        );
        assert!(even.saved(0) > even.saved(1) && even.saved(1) > 0.0);
        assert!(!can_narrow(4101) && can_narrow(4100));
    }

    #[test]
    fn what_was_not_rounded_before_is_rounded_when_it_is_tried() {
        let weight = Plain(8000);
        let trials = [Trial::new(&weight, (IntKind::S3, 10.0)).expect("bearable")];
        let mut model = Model::new(crate::pb::ModelProto::default());
        for (rung, kind) in [(0, "S3"), (2, "S5")] {
            model = trial::changed(&model, &trials, &vec![Some(rung)]).expect("it fits");
            assert_eq!(model.rest.producer_name.as_deref(), Some(kind));
        }
    }
}
