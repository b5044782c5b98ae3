//! Numbers that take long to measure, kept from run to run: what a change does to the outputs of a model, what a list of passes
//! makes of it. They are known by a hash of all that they depend on ([`Key`]): the program, the engine, the models, the
//! content of the samples. So they are the numbers that would be measured again, and results do not depend on them.
//!
//! A file is text: a line that tells the format, then a line for each key, with the bits of its numbers in hexadecimal. It is written to a
//! temporary file and renamed; of two runs that write at a time the last one's numbers stay.

mod objects;

pub use objects::Objects;

use crate::calibrate::key::{of_model, of_sample};
use crate::data::{Sample, Samples};
use crate::ir::Model;
use crate::math::hash::{Digest, Hasher};
use crate::onnx::{check_target, folder_of, temp::Temp};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The first line of a file.
const FORMAT: &str = "onnxzip cache 1";
/// A larger file loses the entries that were not asked for in the run that writes it.
const MOST: usize = 50_000;
/// A larger file was not written by this program.
const MOST_BYTES: u64 = 256 << 20;

/// What a number depends on.
#[derive(Clone)]
pub struct Key(Hasher);

impl Key {
    /// Of a kind of number that an engine measures.
    pub fn new(kind: &str, engine: &str) -> Key {
        Key(Hasher::new())
            .text(concat!("onnxzip ", env!("CARGO_PKG_VERSION")))
            .text(kind)
            .text(engine)
    }

    /// And of a text.
    pub fn text(mut self, text: &str) -> Key {
        self.0.add_field(text.as_bytes());
        self
    }

    /// And of a number.
    pub fn number(mut self, x: usize) -> Key {
        self.0.add(&(x as u64).to_le_bytes());
        self
    }

    /// And of numbers.
    pub fn numbers<T: bytemuck::NoUninit>(mut self, all: &[T]) -> Key {
        self.0.add_field(bytemuck::cast_slice(all));
        self
    }

    /// And of a model.
    ///
    /// # Errors
    /// When the graph has a cycle.
    pub fn model(mut self, model: &Model) -> Result<Key> {
        self.0.add(&of_model(model)?);
        Ok(self)
    }

    /// And of a sample.
    pub fn sample(mut self, sample: &Sample) -> Key {
        self.0.add(&of_sample(sample));
        self
    }

    /// And of some samples of the only data set there is, in their order.
    pub fn samples(self, samples: &Samples) -> Key {
        let numbers: Vec<usize> = (0..samples.len()).map(|i| samples.number(i)).collect();
        self.numbers(&numbers)
    }
}

/// The numbers, by key.
#[derive(Default)]
pub struct Cache {
    path: Option<PathBuf>,
    all: Mutex<BTreeMap<Digest, Entry>>,
}

struct Entry {
    numbers: Vec<f64>,
    asked: bool,
}

impl Cache {
    /// Reads a file, if there is one; [`Cache::save`] will write it.
    ///
    /// # Errors
    /// When it is not a cache, or cannot be read or written.
    pub fn open(path: &Path) -> Result<Cache> {
        check_target(path)?;
        let named = || format!("{}", path.display());
        let all = match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(e) => return Err(e).with_context(named),
            Ok(meta) if meta.len() > MOST_BYTES => bail!("{} is not a cache of onnxzip", path.display()),
            Ok(_) => {
                let bytes = std::fs::read(path).with_context(named)?;
                let text = std::str::from_utf8(&bytes).ok();
                let read = text.and_then(read);
                read.with_context(|| format!("{} is not a cache of onnxzip, or damaged: remove it", path.display()))?
            }
        };
        Ok(Cache {
            path: Some(path.into()),
            all: Mutex::new(all),
        })
    }

    /// The numbers of a key; `make` measures them when they are not known.
    ///
    /// # Errors
    /// Those of `make`; its numbers are not kept then.
    pub fn numbers(&self, key: Key, make: impl FnOnce() -> Result<Vec<f64>>) -> Result<Vec<f64>> {
        let key = key.0.finish();
        if let Some(entry) = self.lock().get_mut(&key) {
            entry.asked = true;
            return Ok(entry.numbers.clone());
        }
        let numbers = make()?;
        let entry = Entry {
            numbers: numbers.clone(),
            asked: true,
        };
        self.lock().insert(key, entry);
        Ok(numbers)
    }

    /// Whether numbers outlive this run.
    pub fn is_kept(&self) -> bool {
        self.path.is_some()
    }

    /// Writes the file, if there is one.
    ///
    /// # Errors
    /// When it cannot be written; it is then as it was.
    pub fn save(&self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut text = String::from(FORMAT);
        text.push('\n');
        let all = self.lock();
        let asked_only = all.len() > MOST;
        for (key, entry) in all.iter().filter(|(_, e)| e.asked || !asked_only) {
            text.push_str(&format!("{:032x}", u128::from_be_bytes(*key)));
            entry
                .numbers
                .iter()
                .for_each(|x| text.push_str(&format!(" {:016x}", x.to_bits())));
            text.push('\n');
        }
        let mut temp = Temp::new_in(folder_of(path))?;
        temp.file()
            .write_all(text.as_bytes())
            .with_context(|| format!("{}", path.display()))?;
        temp.persist(path)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a file says; `None` when it is not one.
fn read(text: &str) -> Option<BTreeMap<Digest, Entry>> {
    let mut lines = text.lines();
    if lines.next() != Some(FORMAT) {
        return None;
    }
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let key = words.next().filter(|w| w.len() == 32)?;
        let key = u128::from_str_radix(key, 16).ok()?.to_be_bytes();
        let number = |w: &str| (w.len() == 16).then(|| u64::from_str_radix(w, 16).ok().map(f64::from_bits))?;
        let entry = Entry {
            numbers: words.map(number).collect::<Option<_>>()?,
            asked: false,
        };
        Some((key, entry))
    };
    lines.map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: &str) -> Key {
        Key::new(kind, "tract").number(3)
    }

    fn known(cache: &Cache, kind: &str) -> bool {
        cache.numbers(key(kind), || bail!("it is measured")).is_ok()
    }

    #[test]
    fn numbers_come_back_bit_by_bit() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cache");
        let numbers = [0.1, -0.0, f64::INFINITY, 1e-300];
        let cache = Cache::open(&path).expect("a new one");
        cache.numbers(key("a"), || Ok(numbers.to_vec())).expect("made");
        cache.numbers(key("empty"), || Ok(Vec::new())).expect("made");
        cache.save().expect("written");
        let again = Cache::open(&path).expect("the same");
        assert!(known(&again, "empty") && !known(&again, "b"));
        let read = again.numbers(key("a"), || bail!("it is known")).expect("known");
        assert_eq!(read.map_bits(), numbers.to_vec().map_bits());
    }

    trait Bits {
        fn map_bits(&self) -> Vec<u64>;
    }
    impl Bits for Vec<f64> {
        fn map_bits(&self) -> Vec<u64> {
            self.iter().map(|x| x.to_bits()).collect()
        }
    }

    #[test]
    fn what_is_no_cache_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cache");
        for text in [
            "",
            "onnxzip cache 2\n",
            "onnxzip cache 1\n12 34\n",
            "onnxzip cache 1\n\u{fc}\n",
        ] {
            std::fs::write(&path, text).expect("written");
            let why = Cache::open(&path).err().expect("refused").to_string();
            assert!(why.contains("remove it"), "{text:?}: {why}");
            assert_eq!(std::fs::read_to_string(&path).expect("there"), text);
        }
    }

    #[test]
    fn of_too_many_numbers_those_stay_that_were_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cache");
        let cache = Cache::open(&path).expect("a new one");
        for i in 0..=MOST {
            cache.numbers(key("n").number(i), || Ok(vec![1.0])).expect("made");
        }
        cache.save().expect("written");
        let again = Cache::open(&path).expect("the same");
        again
            .numbers(key("n").number(7), || bail!("it is known"))
            .expect("known");
        again.save().expect("written");
        assert_eq!(Cache::open(&path).expect("the same").lock().len(), 1);
    }
}
