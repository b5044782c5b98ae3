//! Samples: what is fed to a model to calibrate and to verify.
//!
//! A [`Dataset`] knows where its samples lie and reads one when it is asked for; it never holds them all, unless the file
//! is compressed, or images are few. [`Dataset::split`] parts them into calibration samples, which passes may look at, and held-back ones,
//! which only the verdict sees.

mod added;
mod array;
mod folder;
mod images;
mod labels;
mod npz;
mod pb_files;
pub mod preprocess;
mod raw;
mod spec;
mod synthetic;

pub use preprocess::Preprocess;
pub use spec::{InputSpec, inputs_of};

use crate::ir::{DType, Model, Tensor};
use crate::math::hash::splitmix;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// One run's inputs: a tensor, with all its axes, for every graph input, by its public name.
pub type Sample = BTreeMap<String, Tensor>;

/// Gives samples by number.
trait Source: Send + Sync {
    fn len(&self) -> usize;
    fn read(&self, i: usize) -> Result<Sample>;
    /// The dimensions of a sample's inputs, where they are known without reading one.
    fn dims(&self) -> Option<BTreeMap<String, Vec<usize>>> {
        None
    }
}

/// Samples for one model.
#[derive(Clone)]
pub struct Dataset {
    source: Arc<dyn Source>,
    specs: Arc<Vec<InputSpec>>,
    /// Where they come from, for reports.
    pub origin: String,
    /// For images: how they became inputs, with nothing left open ([`Preprocess`]).
    pub preprocess: Option<String>,
    /// True when the numbers were made up.
    pub synthetic: bool,
    /// The right class of every sample, or why it is not known.
    labels: Arc<Result<Vec<i64>, String>>,
}

impl Dataset {
    /// Samples for `model` from a path: an `.npz` (keys are input names, the first axis counts samples), an `.npy` for a model
    /// with a single input, a folder with `test_data_set_N/input_K.pb` or with `.bin` files of raw numbers, and, for models that
    /// take bytes, a folder of images.
    ///
    /// # Errors
    /// When the path cannot be read, a key is missing, a shape or type does not fit an input, or there is no sample.
    pub fn open(path: &Path, model: &Model) -> Result<Dataset> {
        Dataset::open_with(path, None, model)
    }

    /// As [`Dataset::open`], and folders of images (jpeg, png), which this line makes inputs of.
    ///
    /// # Errors
    /// As [`Dataset::open`]; when the line does not fit the model's input, or the data are no images.
    pub fn open_with(path: &Path, line: Option<&Preprocess>, model: &Model) -> Result<Dataset> {
        let specs = inputs_of(model);
        let (source, preprocess, folder_labels) = source(path, line, &specs)?;
        ensure!(source.len() > 0, "{}: there is no sample in it", path.display());
        let labels = match (labels::read(path, source.len()), folder_labels) {
            (Err(_), Some(labels)) if !labels::beside(path).exists() => Ok(labels),
            (read, _) => read.map_err(|e| format!("{e:#}")),
        };
        let data = Dataset {
            source,
            labels: Arc::new(labels),
            specs: Arc::new(specs),
            origin: path.display().to_string(),
            preprocess,
            synthetic: false,
        };
        data.get(0)?; // types and shapes are found out now
        Ok(data)
    }

    /// The `test_data_set_N` folders beside a model file, when there are any.
    ///
    /// # Errors
    /// When there are, but they do not fit the model.
    pub fn beside(model_path: &Path, model: &Model) -> Result<Option<Dataset>> {
        let folder = crate::onnx::folder_of(model_path);
        if !pb_files::PbFolders::any_below(folder) {
            return Ok(None);
        }
        let data = Dataset::open(folder, model)?;
        for i in 1..data.len() {
            data.get(i)?; // they are few, and whoever named none of them should not learn of a bad one half-way
        }
        Ok(Some(data))
    }

    /// `count` seeded samples: normal floats, zeros and ones for integers; unknown dimensions are guessed.
    pub fn synthetic(model: &Model, seed: u64, count: usize) -> Dataset {
        let specs = inputs_of(model);
        Dataset {
            source: Arc::new(synthetic::Synthetic::new(&specs, seed, count)),
            specs: Arc::new(specs),
            origin: format!("synthetic, seed {seed}"),
            preprocess: None,
            synthetic: true,
            labels: Arc::new(Err("made-up samples have none".into())),
        }
    }

    /// Where they come from, and how images became inputs.
    pub fn whence(&self) -> String {
        match &self.preprocess {
            Some(line) => format!("{} ({line})", self.origin),
            None => self.origin.clone(),
        }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.source.len()
    }

    /// True when there is none. (Opening a file without samples is an error.)
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The right class of every sample.
    ///
    /// # Errors
    /// When none were given, or they are no class numbers; the message says how to give them.
    pub fn labels(&self) -> Result<&[i64]> {
        match &*self.labels {
            Ok(all) => Ok(all),
            Err(why) => bail!(
                "{}: no labels: {why}; add an array {:?} of class numbers, one for each sample, to the .npz, or \
                put labels.npy beside the data",
                self.origin,
                labels::NAME
            ),
        }
    }

    /// Sample number `i`.
    ///
    /// # Errors
    /// When it cannot be read, does not fit the model's inputs, or holds NaN or infinite numbers.
    pub fn get(&self, i: usize) -> Result<Sample> {
        let named = || format!("{}: sample {i}", self.origin);
        let sample = self.source.read(i).with_context(named)?;
        for spec in self.specs.iter() {
            let t = sample
                .get(&spec.name)
                .with_context(|| format!("input {:?} is missing", spec.name));
            let t = t.with_context(named)?;
            spec.accepts(t).with_context(named)?;
            finite(t)
                .with_context(|| format!("input {:?}", spec.name))
                .with_context(named)?;
        }
        Ok(sample)
    }

    /// The dimensions of the first sample's inputs, by name.
    ///
    /// # Errors
    /// As [`Dataset::get`], for samples that are read from a file.
    pub fn dims(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        if let Some(dims) = self.source.dims() {
            return Ok(dims);
        }
        let first = self.get(0)?;
        Ok(first.into_iter().map(|(name, t)| (name, t.dims().to_vec())).collect())
    }

    /// All samples.
    pub fn all(&self) -> Samples {
        self.numbered((0..self.len()).collect())
    }

    fn numbered(&self, indices: Vec<usize>) -> Samples {
        Samples {
            set: self.clone(),
            indices,
            decide: false,
        }
    }

    /// Calibration and held-back samples: one of every four in a row is held back, so that ordered data are parted evenly;
    /// a hash says which, so that data that repeat (the same four classes over and over) do not lose one of their kinds.
    /// Below four samples the last one is held back; a single sample serves as both.
    pub fn split(&self) -> (Samples, Samples) {
        let n = self.len();
        let held = |i: usize| if n < 4 { i + 1 == n } else { i % 4 == picked(i / 4, 4) };
        let (back, calib): (Vec<usize>, Vec<usize>) = (0..n).partition(|&i| held(i));
        let of = |indices| self.numbered(indices);
        (of(if calib.is_empty() { back.clone() } else { calib }), of(back))
    }
}

/// What gives the samples at a path; for images also the line that makes inputs of them, and the classes that folders name.
type Opened = (Arc<dyn Source>, Option<String>, Option<Vec<i64>>);

fn source(path: &Path, line: Option<&Preprocess>, specs: &[InputSpec]) -> Result<Opened> {
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_lowercase);
    let found = |endings| folder::files(path, endings).map(|all| !all.is_empty());
    let sets = path.is_dir() && pb_files::is_set(path);
    if !sets && found(images::ENDINGS)? {
        ensure!(
            !found(raw::ENDINGS)?,
            "{}: there are images and .bin files in it; keep them apart",
            path.display()
        );
        let images = images::Images::open(path, line, specs)?;
        let (line, labels) = (images.line().to_string(), images.labels(path));
        return Ok((Arc::new(images), Some(line), labels));
    }
    ensure!(
        line.is_none(),
        "{}: there are no images (.jpg, .png) in it, so there is nothing to preprocess",
        path.display()
    );
    let source: Arc<dyn Source> = match ending.as_deref() {
        _ if !sets && found(raw::ENDINGS)? => Arc::new(raw::Raw::open(path, specs)?),
        _ if path.is_dir() => Arc::new(pb_files::PbFolders::open(path, specs)?),
        Some("npz") => Arc::new(npz::Npz::open(path, specs)?),
        Some("npy") => Arc::new(npz::Npz::open_npy(path, specs)?),
        _ => bail!(
            "{}: not calibration data; give an .npz, an .npy, or a folder with images, .bin files or test_data_set_0/input_0.pb",
            path.display()
        ),
    };
    Ok((source, None, None))
}

/// One of `0..among`, by a hash of the run's number.
fn picked(run: usize, among: usize) -> usize {
    (splitmix(run as u64) >> 32) as usize % among
}

/// One of so many is kept out of decisions,
const PARTS: usize = 3;
/// but not of fewer than these.
const FEW: usize = 12;

/// Some of the samples of a [`Dataset`].
#[derive(Clone)]
pub struct Samples {
    set: Dataset,
    indices: Vec<usize>,
    /// Passes decide by all of them.
    decide: bool,
}

impl Samples {
    /// How many.
    pub fn len(&self) -> usize {
        self.indices.len()
    }
    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
    /// Reads one.
    ///
    /// # Errors
    /// As [`Dataset::get`].
    pub fn get(&self, i: usize) -> Result<Sample> {
        self.set.get(self.indices[i])
    }
    /// Its number in the [`Dataset`].
    pub fn number(&self, i: usize) -> usize {
        self.indices[i]
    }
    /// The right class of one, where it is known; negative labels stand for samples without.
    pub fn label(&self, i: usize) -> Option<usize> {
        let all = (*self.set.labels).as_ref().ok()?;
        usize::try_from(all[self.indices[i]]).ok()
    }
    /// Every `step`-th of them, beginning with number `from`.
    ///
    /// # Panics
    /// When `step` is zero.
    pub fn every(&self, step: usize, from: usize) -> Samples {
        self.numbered(self.indices.iter().copied().skip(from).step_by(step).collect())
    }
    /// What passes decide by, and the rest: of every three in a row a hash puts one into the second. Of fewer than three both are all.
    pub fn parted(&self) -> [Samples; 2] {
        let second = |i: usize| i % PARTS == picked(i / PARTS, PARTS);
        let (one, other) = (0..self.len()).partition::<Vec<usize>, _>(|&i| !second(i));
        if one.is_empty() || other.is_empty() {
            return [self.clone(), self.clone()];
        }
        let decide = Samples {
            decide: true,
            ..self.of(&one)
        };
        [decide, self.of(&other)]
    }
    /// Those that passes decide by, about two thirds where there are enough: a search measures on the others what was decided. All of them
    /// serve to carry it out, so that a result made of all is about what was measured.
    pub fn deciding(&self) -> Samples {
        match self.decide || self.len() < FEW {
            true => self.clone(),
            false => self.parted()[0].clone(),
        }
    }
    /// Two halves of those that passes decide by: of every two in a row a hash says which goes where. The second is empty when there is only one sample.
    pub fn halves(&self) -> [Samples; 2] {
        let all = self.deciding();
        let n = all.len();
        let first = |i: usize| n == 1 || i % 2 == picked(i / 2, 2);
        let (one, other) = (0..n).partition::<Vec<usize>, _>(|&i| first(i));
        [one, other].map(|half| all.of(&half))
    }
    /// Two halves of all: those of [`Samples::halves`], each with every second one of those that passes do not decide by. They are of one size: how
    /// far they disagree tells how far both are to be believed.
    pub fn measured_halves(&self) -> [Samples; 2] {
        let [one, other] = self.halves();
        let rest = self.without(&self.deciding());
        let with = |half: Samples, from: usize| {
            let mut indices = half.indices;
            indices.extend(rest.every(2, from).indices);
            indices.sort_unstable();
            self.numbered(indices)
        };
        [with(one, 0), with(other, 1)]
    }
    /// Those that are not among others.
    fn without(&self, others: &Samples) -> Samples {
        let others: BTreeSet<usize> = others.indices.iter().copied().collect();
        let left = (0..self.len()).filter(|&i| !others.contains(&self.indices[i]));
        self.of(&left.collect::<Vec<usize>>())
    }
    /// At most `most` of them: one of each of so many runs of about the same length, by a hash of the run's number.
    pub fn spread(&self, most: usize) -> Samples {
        let n = self.len();
        if n <= most {
            return self.clone();
        }
        let edge = |j: usize| (j as u128 * n as u128 / most as u128) as usize;
        let which: Vec<usize> = (0..most).map(|j| edge(j) + picked(j, edge(j + 1) - edge(j))).collect();
        self.of(&which)
    }
    /// All of them, those of [`Samples::spread`] first: the first ones show what the others are like.
    pub fn spread_first(&self, first: usize) -> Samples {
        let mut all = self.spread(first).indices;
        let first: BTreeSet<usize> = all.iter().copied().collect();
        all.extend(self.indices.iter().filter(|i| !first.contains(i)));
        self.numbered(all)
    }
    fn of(&self, which: &[usize]) -> Samples {
        self.numbered(which.iter().map(|&i| self.indices[i]).collect())
    }
    /// By their numbers in the [`Dataset`].
    fn numbered(&self, indices: Vec<usize>) -> Samples {
        self.set.numbered(indices)
    }
    /// True when the numbers are made up.
    pub fn synthetic(&self) -> bool {
        self.set.synthetic
    }
    /// The first `n` of them.
    pub fn first(&self, n: usize) -> Samples {
        self.numbered(self.indices[..n.min(self.len())].to_vec())
    }
}

fn finite(t: &Tensor) -> Result<()> {
    if !matches!(
        t.dtype(),
        DType::Float | DType::Double | DType::Float16 | DType::Bfloat16
    ) {
        return Ok(());
    }
    let bad = t.to_f32().and_then(|x| x.iter().position(|x| !x.is_finite()));
    match bad {
        Some(i) => bail!("element {i} is NaN or infinite; clean the data first"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::Builder;

    #[test]
    fn what_a_search_shows_to_passes_is_what_they_decide_by_when_they_see_all() {
        let mut b = Builder::new(13);
        b.input("x", DType::Float, &[1]);
        let of = |n: usize| Dataset::synthetic(&b.model, 1, n).all();
        let numbers = |s: &Samples| (0..s.len()).map(|i| s.number(i)).collect::<Vec<usize>>();
        let all = of(96);
        let [shown, tuning] = all.parted();
        assert_eq!((shown.len(), tuning.len()), (64, 32));
        assert_eq!(numbers(&all.without(&shown)), numbers(&tuning));
        assert_eq!(numbers(&all.deciding()), numbers(&shown));
        assert_eq!(numbers(&shown.deciding()), numbers(&shown), "they are not parted twice");
        let [one, other] = all.halves();
        assert_eq!([&one, &other].map(numbers), shown.halves().each_ref().map(numbers));
        assert_eq!(numbers(&shown.without(&one)), numbers(&other));
        let [more, others] = all.measured_halves();
        assert_eq!((more.len(), others.len(), more.without(&others).len()), (48, 48, 48));
        assert!(one.without(&more).is_empty() && other.without(&others).is_empty());
        assert_eq!(
            shown.measured_halves().each_ref().map(numbers),
            [&one, &other].map(numbers)
        );
        let few = of(FEW - 1);
        assert_eq!(few.deciding().len(), few.len(), "all of few decide");
        assert_eq!(of(1).halves().map(|h| h.len()), [1, 0]);
    }

    #[test]
    fn some_of_the_samples_are_spread_over_all() {
        let mut b = Builder::new(13);
        b.input("x", DType::Float, &[1]);
        let all = Dataset::synthetic(&b.model, 1, 96).all();
        let some = all.spread(40);
        let numbers: Vec<usize> = (0..some.len()).map(|i| some.number(i)).collect();
        for (j, &n) in numbers.iter().enumerate() {
            assert!((j * 96 / 40..(j + 1) * 96 / 40).contains(&n), "{j}: {n}");
        }
        let steps: Vec<usize> = numbers.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(
            steps.iter().any(|&s| s != steps[0]),
            "data that repeat would lose one of their kinds"
        );
        assert_eq!(
            (numbers.len(), all.spread(96).len(), all.spread(500).len()),
            (40, 96, 96)
        );
        let first = all.spread_first(40);
        let mut order: Vec<usize> = (0..first.len()).map(|i| first.number(i)).collect();
        assert_eq!(order[..40], numbers);
        order.sort();
        assert_eq!(order, Vec::from_iter(0..96));
    }
}
