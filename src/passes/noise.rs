//! How far values of a changed model are from those of the model as it was.

use super::Context;
use super::checkpoints::{Checkpoints, Late};
use super::context::runs;
use super::watched::{self, Watched};
use crate::analysis::cost::cost;
use crate::analysis::ends;
use crate::analysis::parts::{Part, parts};
use crate::cache::{Cache, Key};
use crate::data::{Sample, Samples};
use crate::engine::{NotRun, Session};
use crate::ir::{Model, Tensor, ValueId};
use crate::math::compare::Gap;
use crate::math::variation::Variation;
use crate::ops::types::infer_sample;
use crate::parallel::in_order;
use anyhow::{Context as _, Result};
use std::borrow::Cow;
use std::sync::OnceLock;

/// Not more samples than this,
const SAMPLES: usize = 64;
/// nor more than so many multiply-adds take, all together and where one place is tried after the other; but so many samples in any case.
const WORK: [u64; 2] = [30_000_000_000, 6_000_000_000];
const FEWEST: [usize; 2] = [16, 4];
/// So many of the first ones are spread over all.
const SPREAD: usize = 8;
/// So many changes are run side by side at most: each is a graph with its weights.
const SIDE: usize = 4;
/// The outputs that others are compared with are kept, up to this size.
const KEPT: usize = 256 << 20;
/// With so many samples, half a limit is allowed.
const FEW: f64 = 4.0;

/// A changed model, ready to run, and which of the values that are compared it has.
type Loaded = (Box<dyn Session>, Vec<bool>);

/// Samples, and what the model as it was gives out for them.
pub struct Reference {
    /// Outputs, or what they are chosen from.
    watched: Watched,
    /// The places (in `watched`) of outputs behind functions that saturate, and by how much the values before those count: as much as the outputs where these
    /// have saturated, else [`ends::BEFORE`].
    before: Vec<(usize, f64)>,
    samples: Vec<Sample>,
    /// What is watched, and then the values before some of them, for each sample.
    wanted: Vec<Vec<Tensor>>,
    /// What outputs are put together from, with the place of each output.
    parts: Vec<(usize, Part)>,
    /// Tells the model and the samples, where there is a cache.
    key: Option<Key>,
    /// How many of them the work allows where one place is tried after the other.
    few: usize,
    /// The model as it was, where it is changed at one place after the other, and on how many samples that is tried.
    piecemeal: Option<(Model, usize)>,
    /// Made when the first such change is tried.
    checkpoints: OnceLock<Option<Checkpoints>>,
}

impl Reference {
    /// Runs the model on up to 64 samples, of which there is one at least; on fewer where it takes many multiply-adds.
    ///
    /// # Errors
    /// When a sample fails. [`crate::engine::NotRun`] is in the chain when the engine does not run the model.
    pub fn new(model: &Model, samples: &Samples, cx: &Context) -> Result<Reference> {
        let watched = Watched::of(model);
        let outputs = watched.values();
        let ends: Vec<(usize, ValueId)> = (0..outputs.len())
            .filter(|k| watched.is_output(*k))
            .filter_map(|k| Some((k, ends::before(model, outputs[k])?)))
            .collect();
        let all: Vec<ValueId> = outputs.iter().copied().chain(ends.iter().map(|e| e.1)).collect();
        let types = samples.get(0).and_then(|like| infer_sample(model, &like));
        let macs = types.as_ref().ok().and_then(|t| cost(model, t).macs);
        let [most, few] = [0, 1].map(|k| runs(macs, WORK[k], FEWEST[k]));
        // They may lie in the order of their classes.
        let samples = samples.spread(most.min(SAMPLES)).spread_first(few.min(SPREAD));
        cx.progress.start("try", samples.len());
        let session = cx.engine.load(model, &all, &samples.get(0)?)?;
        let parts = types.map(|types| parts(model, &types)).unwrap_or_default();
        let parts = parts
            .into_iter()
            .filter_map(|(k, part)| Some((watched.place_of(k)?, part)));
        let mut reference = Reference {
            before: Vec::new(),
            samples: Vec::new(),
            wanted: Vec::new(),
            parts: parts.collect(),
            watched,
            key: None,
            few,
            piecemeal: None,
            checkpoints: OnceLock::new(),
        };
        let named = |_: &Cache| {
            Key::new(
                "error of outputs or what they are chosen from, their parts, and what is before them",
                &cx.engine.name(),
            )
            .model(model)
        };
        let mut key = cx.cache.map(named).transpose()?;
        let mut variations = vec![Variation::default(); outputs.len()];
        let run = |i: usize| {
            let sample = samples.get(i)?;
            let wanted = session.run(&sample)?;
            Ok((sample, wanted))
        };
        let mut keep = |(sample, wanted): (Sample, Vec<Tensor>)| {
            for (variation, x) in variations.iter_mut().zip(&wanted) {
                variation.add(&x.reals().unwrap_or_default());
            }
            key = key.take().map(|k| k.sample(&sample));
            reference.samples.push(sample);
            reference.wanted.push(wanted);
            cx.progress.advance(1);
            Ok(())
        };
        let first = run(0)?;
        let bytes: usize = first.1.iter().map(Tensor::byte_len).sum();
        let count = samples.len().min(KEPT / bytes.max(1) + 1);
        keep(first)?;
        in_order(count - 1, cx.threads, |i| run(i + 1), |_, ran| keep(ran))?;
        drop(session);
        cx.progress.finish();
        let weight = |k: usize| if variations[k].hardly() { 1.0 } else { ends::BEFORE };
        reference.before = ends.iter().map(|(k, _)| (*k, weight(*k))).collect();
        reference.key = key;
        Ok(reference)
    }

    /// The same, for changes of this model at one place after the other, on up to `most` samples: what comes before a change is
    /// run once.
    pub fn piecemeal(self, model: &Model, most: usize) -> Reference {
        let most = most.min(self.few).min(self.samples.len());
        Reference {
            piecemeal: Some((model.clone(), most)),
            ..self
        }
    }

    /// The rest of a changed model behind what has not changed; `None`: it is run as a whole.
    fn late(&self, changed: &Model, cx: &Context) -> Option<Late<'_>> {
        let (model, few) = self.piecemeal.as_ref()?;
        let first = &self.samples[..*few];
        // An engine that gives no inner values runs the whole model.
        let make = || Checkpoints::new(model, first, cx.engine, cx.threads).unwrap_or_default();
        self.checkpoints.get_or_init(make).as_ref()?.late(changed, first.len())
    }

    /// A limit of the error, lowered: an error that is seen on few samples may be several times as large on others.
    pub fn careful(&self, limit: f64) -> f64 {
        let seen = self.samples.len() as f64;
        limit * seen / (seen + FEW)
    }

    /// The error of a changed model's worst output relative to its power; of an output behind a function that
    /// saturates, that of the value before it counts, too. Infinite when a number is lost.
    ///
    /// # Errors
    /// As [`Reference::new`].
    pub fn error(&self, changed: &Model, cx: &Context) -> Result<f64> {
        let all = self.samples.len();
        self.known(changed, all, cx, || self.measured(changed, all, cx))
    }

    /// The same of a change at one place, on the samples of [`Reference::piecemeal`].
    ///
    /// # Errors
    /// As [`Reference::new`].
    pub fn error_alone(&self, changed: &Model, cx: &Context) -> Result<f64> {
        let Some((_, few)) = self.piecemeal else {
            return self.error(changed, cx);
        };
        self.known(changed, few, cx, || self.measured_alone(changed, few, cx))
    }

    /// The same of `n` changes; some run side by side, since an engine compiles a graph on one thread.
    ///
    /// # Errors
    /// As [`Reference::new`], and those of `change`.
    pub fn errors_alone(
        &self,
        n: usize,
        change: impl Fn(usize) -> Result<Model> + Sync,
        cx: &Context,
    ) -> Result<Vec<f64>> {
        let side = cx.threads.clamp(1, SIDE);
        let one = Context {
            threads: (cx.threads / side).max(1),
            ..cx.aside()
        };
        let mut errors = Vec::with_capacity(n);
        let error = |k: usize| self.error_alone(&change(k)?, &one);
        in_order(n, side, error, |_, error| {
            errors.push(error);
            cx.progress.advance(1);
            Ok(())
        })?;
        Ok(errors)
    }

    /// From the cache, where there is one.
    fn known(&self, changed: &Model, samples: usize, cx: &Context, make: impl FnOnce() -> Result<f64>) -> Result<f64> {
        let (Some(cache), Some(key)) = (cx.cache, &self.key) else {
            return make();
        };
        let key = key.clone().model(changed)?.number(samples);
        let known = cache.numbers(key, || Ok(vec![make()?]))?;
        known
            .first()
            .copied()
            .context("the cache holds another number of numbers: remove it")
    }

    /// On the first samples.
    fn measured(&self, changed: &Model, samples: usize, cx: &Context) -> Result<f64> {
        let Some(first) = self.samples.first() else {
            return Ok(0.0);
        };
        match self.load(changed, first, cx)? {
            Some(session) => self.worst(&session, samples, |i| Cow::Borrowed(&self.samples[i]), cx),
            None => Ok(f64::INFINITY),
        }
    }

    fn measured_alone(&self, changed: &Model, few: usize, cx: &Context) -> Result<f64> {
        if let Some(late) = self.late(changed, cx) {
            let sample = |i: usize| Cow::Owned(late.sample(i, &self.samples[i]));
            if let Ok(Some(session)) = self.load(&late.model, &sample(0), cx) {
                return self.worst(&session, few, sample, cx);
            }
        }
        self.measured(changed, few, cx)
    }

    /// A session for the values that are compared, and which of them there are; `None` where an output is chosen from other values now.
    fn load(&self, changed: &Model, like: &Sample, cx: &Context) -> Result<Option<Loaded>, NotRun> {
        // An output may be another value now: a clip at the end is gone when codes end where it did.
        let Some(outputs) = self.watched.values_in(changed) else {
            return Ok(None);
        };
        let before = self
            .before
            .iter()
            .map(|(k, _)| ends::before(changed, *outputs.get(*k)?));
        let places: Vec<Option<ValueId>> = outputs.iter().map(|v| Some(*v)).chain(before).collect();
        let there: Vec<ValueId> = places.iter().copied().flatten().collect();
        let session = cx.engine.load(changed, &there, like)?;
        Ok(Some((session, places.iter().map(Option::is_some).collect())))
    }

    /// The error of the worst value over the first samples.
    fn worst<'a>(
        &self,
        (session, there): &Loaded,
        samples: usize,
        sample: impl Fn(usize) -> Cow<'a, Sample> + Sync,
        cx: &Context,
    ) -> Result<f64> {
        let mut gaps = vec![Gap::new(); there.iter().filter(|t| **t).count()];
        let mut parts = vec![Gap::new(); self.parts.len()];
        let wanted = |i: usize| self.wanted[i].iter().zip(there).filter(|(_, there)| **there);
        in_order(
            samples,
            cx.threads,
            |i| session.run(&sample(i)),
            |i, values| {
                for (gap, (k, part)) in parts.iter_mut().zip(&self.parts) {
                    if let Some((x, y)) = part.both(&self.wanted[i][*k], &values[*k]) {
                        gap.add(&x, &y)?;
                    }
                }
                add(&mut gaps, wanted(i).map(|(x, _)| x), &values)
            },
        )?;
        let parts = parts
            .iter()
            .zip(&self.parts)
            .filter_map(|(gap, (_, part))| match part.saturates {
                true => gap.noise_above(watched::LEAST),
                false => gap.noise(),
            });
        let outputs = there.len() - self.before.len();
        let before = self.before.iter().zip(&there[outputs..]).filter(|(_, there)| **there);
        let before = gaps[outputs..].iter().zip(before);
        let before = before.filter_map(|(gap, ((_, w), _))| Some(w * gap.noise()?));
        let whole = gaps[..outputs].iter().enumerate();
        let whole = whole.filter_map(|(k, gap)| self.watched.noise(k, gap));
        Ok(whole.chain(before).chain(parts).fold(0.0, f64::max))
    }
}

/// Adds one sample's values, as they were and as they are now. What has other dimensions now counts as lost; integers are left out.
///
/// # Errors
/// Never for floats of equal number.
pub fn add<'a>(gaps: &mut [Gap], before: impl IntoIterator<Item = &'a Tensor>, after: &[Tensor]) -> Result<()> {
    for ((gap, x), y) in gaps.iter_mut().zip(before).zip(after) {
        match (x.reals(), y.reals()) {
            (Some(x), Some(y)) if x.len() == y.len() => gap.add(&x, &y)?,
            (Some(_), _) => gap.broken += 1,
            (None, _) => {}
        }
    }
    Ok(())
}
