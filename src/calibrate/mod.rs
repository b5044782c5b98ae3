//! Statistics that were measured elsewhere: machines share the samples, and the outcome is that of one machine, bit by bit.
//!
//! Passes ask for statistics of values ([`crate::analysis::stats`]) as they go, and what the second one asks depends on what the
//! first one did. So a file (`file.rs`) is a memo of *requests*: a model, measures of its values, numbers of samples, the engine.
//! A [`Shard`] runs the pipeline up to the first request that the files given do not answer, measures its part of the samples and
//! stops; with all parts of all requests, the pipeline runs through without measuring. A request is known by a hash of the
//! model *as it is then*: where a machine decided otherwise on the way (another kind of processor rounds otherwise), its files answer
//! nothing, rather than wrongly.
//!
//! Sums depend on their order, so they follow a fixed tree ([`crate::analysis::stats`]): samples are parted into sixteen runs,
//! shards measure whole runs, and files hold the sums of runs. Every sample is known by a hash of its content, which
//! costs no more than reading it; a shard reads its own samples and the first one.

pub mod file;
pub mod key;
mod shard;
mod sums;

pub use shard::Shard;

use crate::analysis::stats::fold::Sums;
use crate::analysis::stats::tree::{self, Known};
use crate::analysis::stats::{Measure, Runner, Stats, asked};
use crate::data::Samples;
use crate::engine::Engine;
use crate::ir::{Model, ValueId};
use crate::math::hash::{Digest, Hasher};
use crate::parallel::in_order;
use crate::progress::Progress;
use anyhow::{Context, Result, bail, ensure};
use file::{Head, Request, StatsFile, Writer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The reason why a shard goes no further: it has measured.
#[derive(Debug)]
pub struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the samples were measured; the next statistics need those of all shards")
    }
}
impl std::error::Error for Stopped {}

/// What a shard measured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Measured {
    /// The pass that asked, and whether it asked for the first time.
    pub pass: String,
    /// How often it had asked before, and was answered.
    pub before: usize,
    /// Samples that were run, of all halves.
    pub samples: usize,
    /// Of so many.
    pub of: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What runs a model, and how.
#[derive(Clone, Copy)]
pub struct With<'a> {
    /// The engine.
    pub engine: &'a dyn Engine,
    /// How many threads to use; results do not depend on it.
    pub threads: usize,
    /// Where progress is shown.
    pub progress: &'a dyn Progress,
}

/// What files say, and what of it was asked for.
pub struct Memo {
    head: Head,
    files: Vec<StatsFile>,
    part: Option<(Shard, PathBuf)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pass: String,
    /// How often this pass has asked.
    asked: usize,
    /// Which files had an answer.
    answered: Vec<bool>,
    /// By number in the data set.
    digests: BTreeMap<usize, Digest>,
    warnings: Vec<String>,
    measured: Option<Measured>,
}

/// Which file and request of it answer for a run.
type Places = Vec<Option<(usize, usize)>>;

struct Answers<'a> {
    files: &'a [StatsFile],
    places: &'a Places,
}

impl Known for Answers<'_> {
    fn has(&self, run: usize) -> bool {
        self.places.get(run).is_some_and(Option::is_some)
    }

    fn read(&self, job: usize, run: usize) -> Result<Sums> {
        let place = self.places.get(run).copied().flatten();
        let (file, request) = place.context("a run is not known")?;
        self.files[file].sums(request, run, job)
    }
}

impl Memo {
    /// Reads files for passes (as they would be written) on a model and a data set of so many samples.
    ///
    /// # Errors
    /// When a file cannot be read, or was made of another model, other data, with another engine or program.
    pub fn open(files: &[PathBuf], model: &Model, samples: usize, engine: &str, passes: &str) -> Result<Memo> {
        let head = Head {
            program: concat!("onnxzip ", env!("CARGO_PKG_VERSION")).into(),
            engine: engine.into(),
            passes: passes.into(),
            model: key::of_model(model)?,
            samples: samples as u64,
            ..Head::default()
        };
        let files = files.iter().map(|f| StatsFile::open(f)).collect::<Result<Vec<_>>>()?;
        for file in &files {
            same(&head, &file.head).with_context(|| format!("{}", file.path.display()))?;
        }
        let state = State {
            answered: vec![false; files.len()],
            ..State::default()
        };
        Ok(Memo {
            head,
            files,
            part: None,
            state: Mutex::new(state),
        })
    }

    /// What the files do not answer is measured over a shard of the samples, written to `target`, and ends the run with [`Stopped`].
    pub fn measuring(self, shard: Shard, target: &Path) -> Memo {
        Memo {
            part: Some((shard, target.to_owned())),
            ..self
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which pass asks from now on.
    pub fn enter(&self, pass: &str) {
        let mut state = self.state();
        (state.pass, state.asked) = (pass.to_owned(), 0);
    }

    /// What was measured for a shard.
    pub fn measured(&self) -> Option<Measured> {
        self.state().measured.clone()
    }

    /// What the user should know, once.
    pub fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.state().warnings)
    }

    /// # Errors
    /// [`Stopped`], after a shard has measured.
    pub fn go_on(&self) -> Result<()> {
        ensure!(self.state().measured.is_none(), Stopped);
        Ok(())
    }

    /// Sees that every file had something to say.
    ///
    /// # Errors
    /// When one had not.
    pub fn all_answered(&self) -> Result<()> {
        let state = self.state();
        let silent = self.files.iter().zip(&state.answered).find(|(_, a)| !**a);
        let Some((file, _)) = silent else { return Ok(()) };
        let (there, here) = (&file.head.passes, &self.head.passes);
        let why = match there == here {
            false => format!("it was measured for the passes {there}, and these are {here}"),
            true => {
                "a pass before took another decision than where it was measured, as on another kind of processor".into()
            }
        };
        bail!("{}: nothing in it was asked for: {why}", file.path.display())
    }

    /// Statistics over each of these sets of samples.
    ///
    /// # Errors
    /// As [`crate::analysis::stats::measure`]; when samples are not those of a file; [`Stopped`].
    pub fn ask(
        &self,
        model: &Model,
        wanted: &[(ValueId, Measure)],
        over: &[&Samples],
        with: With,
    ) -> Result<Vec<Stats>> {
        self.go_on()?;
        let names: Vec<String> = asked(model, wanted)
            .iter()
            .map(|want| key::spelled(model, want))
            .collect();
        let mut places = vec![Places::new(); over.len()];
        let mut requests = Vec::new();
        if !names.is_empty() {
            let model = key::of_model(model)?;
            for (samples, places) in over.iter().zip(&mut places) {
                let request = self.request(&model, &names, samples);
                *places = self.places(&request, samples, with.threads)?;
                requests.push(request);
            }
            self.state().asked += 1;
        }
        let missing = |(samples, places): (&&Samples, &Places)| -> Vec<usize> {
            let gaps = (0..places.len()).filter(|r| places[*r].is_none());
            gaps.flat_map(|r| tree::run(r, samples.len())).collect()
        };
        let missing: usize = over.iter().zip(&places).map(|p| missing(p).len()).sum();
        let runner = |samples| Runner {
            model,
            engine: with.engine,
            samples,
            threads: with.threads,
            progress: with.progress,
        };
        let total: usize = over.iter().map(|s| s.len()).sum();
        if let (Some((shard, target)), true) = (&self.part, missing > 0) {
            let runners: Vec<Runner> = over.iter().map(|s| runner(s)).collect();
            self.measure(*shard, target, &requests, &runners, wanted)?;
            bail!(Stopped);
        }
        if missing > 0 {
            let mut state = self.state();
            let what = format!(
                "{}: {missing} of {total} samples are in no statistics file for what it asks{}, so they were measured here",
                state.pass,
                again(state.asked - 1)
            );
            state.warnings.push(what);
        }
        let all = over.iter().zip(&places).map(|(samples, places)| {
            let known = Answers {
                files: &self.files,
                places,
            };
            runner(samples).all(wanted, Some(&known))
        });
        all.collect()
    }

    fn request(&self, model: &Digest, names: &[String], samples: &Samples) -> Request {
        let mut hash = Hasher::new();
        for text in [&self.head.program, &self.head.engine].into_iter().chain(names) {
            hash.add_field(text.as_bytes());
        }
        hash.add(model);
        // Halves of the samples are as many: their numbers tell them apart.
        (0..samples.len()).for_each(|i| hash.add(&(samples.number(i) as u64).to_le_bytes()));
        Request {
            key: hash.finish(),
            samples: samples.len() as u64,
            measures: names.len() as u32,
        }
    }

    /// Where the runs of a request lie.
    fn places(&self, request: &Request, samples: &Samples, threads: usize) -> Result<Places> {
        let mut places = vec![None; tree::runs(samples.len())];
        for (f, file) in self.files.iter().enumerate() {
            for (r, _) in file.requests.iter().enumerate().filter(|(_, other)| *other == request) {
                self.state().answered[f] = true;
                for run in file.runs(r) {
                    places[run].get_or_insert((f, r));
                }
            }
        }
        let found = (0..places.len()).filter(|run| places[*run].is_some());
        let numbers: Vec<usize> = found.flat_map(|run| tree::run(run, samples.len())).collect();
        self.look_at(samples, &numbers, threads)?;
        let state = self.state();
        for (run, place) in places.iter().enumerate() {
            let Some((file, request)) = *place else { continue };
            let file = &self.files[file];
            for (i, theirs) in tree::run(run, samples.len()).zip(file.samples(request, run)) {
                let number = samples.number(i);
                ensure!(
                    state.digests.get(&number) == Some(theirs),
                    "{}: other data: sample {number} was another when it was measured",
                    file.path.display()
                );
            }
        }
        Ok(places)
    }

    /// Takes the digests of samples.
    fn look_at(&self, samples: &Samples, which: &[usize], threads: usize) -> Result<()> {
        let new: Vec<usize> = {
            let state = self.state();
            let unknown = |i: &&usize| !state.digests.contains_key(&samples.number(**i));
            which.iter().filter(unknown).copied().collect()
        };
        let work = |i: usize| Ok(key::of_sample(&samples.get(new[i])?));
        in_order(new.len(), threads, work, |i, digest| {
            self.state().digests.insert(samples.number(new[i]), digest);
            Ok(())
        })
    }

    fn measure(
        &self,
        shard: Shard,
        target: &Path,
        requests: &[Request],
        runners: &[Runner],
        wanted: &[(ValueId, Measure)],
    ) -> Result<()> {
        let (pass, asked) = {
            let state = self.state();
            (state.pass.clone(), state.asked)
        };
        let head = Head {
            pass: pass.clone(),
            shard: (shard.k, shard.n),
            ..self.head.clone()
        };
        let mut writer = Writer::new(target, &head, requests)?;
        let (mut count, mut of) = (0, 0);
        for (r, runner) in runners.iter().enumerate() {
            let samples = runner.samples;
            let runs: Vec<usize> = shard.of(tree::runs(samples.len())).collect();
            for run in &runs {
                let numbers: Vec<usize> = tree::run(*run, samples.len()).collect();
                self.look_at(samples, &numbers, runner.threads)?;
                let state = self.state();
                let digests = numbers.iter().map(|i| state.digests.get(&samples.number(*i)).copied());
                let digests = digests.collect::<Option<Vec<_>>>().context("a sample was not read")?;
                writer.run(r, *run, &digests)?;
                count += numbers.len();
            }
            runner.some(wanted, &runs, &mut |job, run, sums| writer.sums(r, run, job, &sums))?;
            of += samples.len();
        }
        self.state().measured = Some(Measured {
            pass,
            before: asked - 1,
            samples: count,
            of,
            bytes: writer.finish()?,
        });
        Ok(())
    }
}

/// Behind "what it asks": which time.
pub fn again(before: usize) -> String {
    match before {
        0 => String::new(),
        n => format!(" (question {})", n + 1),
    }
}

/// Whether a file is about the same run.
fn same(here: &Head, there: &Head) -> Result<()> {
    ensure!(
        here.program == there.program,
        "it was measured by {}, and this is {}: calibrate again",
        there.program,
        here.program
    );
    ensure!(here.model == there.model, "it was measured on another model");
    ensure!(
        here.engine == there.engine,
        "it was measured with {}, and this run uses {}",
        there.engine,
        here.engine
    );
    ensure!(
        here.samples == there.samples,
        "other data: there were {} samples, here are {}",
        there.samples,
        here.samples
    );
    Ok(())
}
