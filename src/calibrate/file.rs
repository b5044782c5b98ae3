//! Statistics files.
//!
//! ```text
//! "ONNXZIPS"  version u32
//! who measured: program, engine, passes, pass that asked (texts: length u32, UTF-8), digest of the model (16 bytes),
//!               samples u64, shard u32 of u32
//! requests u32, each: key (16 bytes), samples u64, measures u32
//! 1, request u32, run u32, a digest (16 bytes) of every sample of the run            what is measured in a run, and then
//! 2, request u32, run u32, measure u32, length u64, sums                             what every measure came to
//! 0, digest (16 bytes) of all bytes before it
//! ```
//!
//! Numbers are little-endian. Bytes are written as they come and never held; a reader notes where sums lie, and reads
//! them when they are asked for. Files come from other machines: a length is compared with that of the file before memory is taken.

use super::sums::{self, Bytes};
use crate::analysis::stats::fold::Sums;
use crate::analysis::stats::tree;
use crate::math::hash::{Digest, Hasher};
use crate::onnx::folder_of;
use crate::onnx::temp::Temp;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const MAGIC: &[u8; 8] = b"ONNXZIPS";
/// Of the format, and of what is measured and how.
const VERSION: u32 = 4;

/// Who measured, and for what.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// The program and its version.
    pub program: String,
    /// What ran the model.
    pub engine: String,
    /// The passes.
    pub passes: String,
    /// The pass that asked.
    pub pass: String,
    /// Tells the original model.
    pub model: Digest,
    /// Samples in the data set.
    pub samples: u64,
    /// Which of how many shards, counted from 1.
    pub shard: (u32, u32),
}

/// What was asked: a model, measures, samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Tells them.
    pub key: Digest,
    /// Samples.
    pub samples: u64,
    /// Measures.
    pub measures: u32,
}

/// A file that is being written. It has no name until it is finished.
pub struct Writer {
    out: BufWriter<Temp>,
    hash: Hasher,
    target: PathBuf,
}

impl Write for Temp {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file().flush()
    }
}

impl Writer {
    /// Begins a file.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn new(target: &Path, head: &Head, requests: &[Request]) -> Result<Writer> {
        let mut w = Writer {
            out: BufWriter::new(Temp::new_in(folder_of(target))?),
            hash: Hasher::new(),
            target: target.to_owned(),
        };
        let mut bytes = [MAGIC.as_slice(), &VERSION.to_le_bytes()].concat();
        for text in [&head.program, &head.engine, &head.passes, &head.pass] {
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend(head.model);
        bytes.extend(head.samples.to_le_bytes());
        bytes.extend(head.shard.0.to_le_bytes());
        bytes.extend(head.shard.1.to_le_bytes());
        bytes.extend((requests.len() as u32).to_le_bytes());
        for r in requests {
            bytes.extend(r.key);
            bytes.extend(r.samples.to_le_bytes());
            bytes.extend(r.measures.to_le_bytes());
        }
        w.put(&bytes)?;
        Ok(w)
    }

    /// Says which samples make up a run of a request.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn run(&mut self, request: usize, run: usize, samples: &[Digest]) -> Result<()> {
        let mut bytes = vec![1];
        bytes.extend((request as u32).to_le_bytes());
        bytes.extend((run as u32).to_le_bytes());
        bytes.extend(samples.iter().flatten());
        self.put(&bytes)
    }

    /// Adds what a measure came to in a run.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn sums(&mut self, request: usize, run: usize, measure: usize, sums: &Sums) -> Result<()> {
        let payload = sums::write(sums);
        let mut bytes = vec![2];
        for n in [request, run, measure] {
            bytes.extend((n as u32).to_le_bytes());
        }
        bytes.extend((payload.len() as u64).to_le_bytes());
        self.put(&bytes)?;
        self.put(&payload)
    }

    /// Puts the file into place; gives its length.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn finish(mut self) -> Result<u64> {
        self.put(&[0])?;
        let digest = std::mem::take(&mut self.hash).finish();
        self.put(&digest)?;
        let named = || format!("{}", self.target.display());
        let mut temp = self.out.into_inner().map_err(|e| e.into_error()).with_context(named)?;
        let length = temp.len()?;
        temp.persist(&self.target)?;
        Ok(length)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.add(bytes);
        let done = self.out.write_all(bytes);
        done.with_context(|| format!("{}", self.target.display()))
    }
}

/// Where the sums of a run lie.
#[derive(Default)]
struct Run {
    samples: Vec<Digest>,
    /// Offset and length, by number of the measure.
    sums: BTreeMap<u32, (u64, u64)>,
}

/// A file that was read.
pub struct StatsFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Who measured.
    pub head: Head,
    /// What was asked.
    pub requests: Vec<Request>,
    runs: BTreeMap<(usize, usize), Run>,
    file: Mutex<File>,
}

impl StatsFile {
    /// Reads a file, but for its sums.
    ///
    /// # Errors
    /// When it is no statistics file, of another version, cut short or changed; the message names it.
    pub fn open(path: &Path) -> Result<StatsFile> {
        StatsFile::read(path).with_context(|| format!("{}", path.display()))
    }

    fn read(path: &Path) -> Result<StatsFile> {
        let file = File::open(path)?;
        let mut from = Reader::new(file.try_clone()?)?;
        let magic = from.number::<8>().context("no statistics file")?;
        ensure!(magic == *MAGIC, "no statistics file: `onnxzip calibrate` writes such");
        let version = from.u32()?;
        ensure!(
            version == VERSION,
            "a statistics file of version {version}; this program reads version {VERSION}: calibrate again"
        );
        let head = from.head()?;
        let count = from.u32()?;
        let mut requests = Vec::new();
        for _ in 0..count {
            requests.push(Request {
                key: from.number()?,
                samples: from.u64()?,
                measures: from.u32()?,
            });
        }
        let runs = from.runs(&requests)?;
        Ok(StatsFile {
            path: path.to_owned(),
            head,
            requests,
            runs,
            file: Mutex::new(file),
        })
    }

    /// The runs of a request of which all sums are there.
    pub fn runs(&self, request: usize) -> BTreeSet<usize> {
        let whole = |run: &Run| run.sums.len() as u64 == u64::from(self.requests[request].measures);
        let all = self.runs.range((request, 0)..(request + 1, 0));
        all.filter(|(_, r)| whole(r)).map(|((_, run), _)| *run).collect()
    }

    /// Digests of the samples of a run.
    pub fn samples(&self, request: usize, run: usize) -> &[Digest] {
        self.runs.get(&(request, run)).map_or(&[], |r| &r.samples)
    }

    /// What a measure came to in a run.
    ///
    /// # Errors
    /// When it cannot be read; the message names the file.
    pub fn sums(&self, request: usize, run: usize, measure: usize) -> Result<Sums> {
        let read = || {
            let run = self.runs.get(&(request, run)).context("there is no such run")?;
            let measure = u32::try_from(measure)?;
            let (at, length) = *run.sums.get(&measure).context("there is no such measure")?;
            let mut bytes = vec![0; usize::try_from(length)?];
            let mut file = self.file.lock().ok().context("it was being read")?;
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut bytes)?;
            sums::read(&bytes)
        };
        read().with_context(|| format!("{}", self.path.display()))
    }
}

/// Reads a file from its begin to its end.
struct Reader {
    from: BufReader<File>,
    hash: Hasher,
    at: u64,
    length: u64,
}

impl Reader {
    fn new(file: File) -> Result<Reader> {
        let length = file.metadata()?.len();
        Ok(Reader {
            from: BufReader::with_capacity(1 << 16, file),
            hash: Hasher::new(),
            at: 0,
            length,
        })
    }

    /// So many bytes, if the file has them.
    fn take(&mut self, n: u64) -> Result<Vec<u8>> {
        ensure!(n <= self.length - self.at, "it is cut short");
        let mut bytes = vec![0; usize::try_from(n)?];
        self.from.read_exact(&mut bytes)?;
        self.hash.add(&bytes);
        self.at += n;
        Ok(bytes)
    }

    /// Goes over so many bytes.
    fn skip(&mut self, mut n: u64) -> Result<()> {
        while n > 0 {
            let part = n.min(1 << 16);
            self.take(part)?;
            n -= part;
        }
        Ok(())
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N]> {
        Bytes(&self.take(N as u64)?).number()
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.number()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.number()?))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u32()?;
        String::from_utf8(self.take(u64::from(length))?).context("a text is no UTF-8")
    }

    fn head(&mut self) -> Result<Head> {
        Ok(Head {
            program: self.text()?,
            engine: self.text()?,
            passes: self.text()?,
            pass: self.text()?,
            model: self.number()?,
            samples: self.u64()?,
            shard: (self.u32()?, self.u32()?),
        })
    }

    /// The rest of the file.
    fn runs(&mut self, requests: &[Request]) -> Result<BTreeMap<(usize, usize), Run>> {
        let mut all = BTreeMap::new();
        loop {
            let kind = self.number::<1>()?[0];
            if kind == 0 {
                let digest = self.hash.clone().finish();
                ensure!(
                    self.number()? == digest,
                    "it was changed: its bytes are not those that were written"
                );
                ensure!(self.at == self.length, "there is more behind its end");
                return Ok(all);
            }
            let at = (self.u32()? as usize, self.u32()? as usize);
            let request = requests.get(at.0).context("a request is missing")?;
            let samples = usize::try_from(request.samples)?;
            ensure!(
                at.1 < tree::runs(samples),
                "there is no run {} of {samples} samples",
                at.1
            );
            match kind {
                1 => {
                    let length = tree::run(at.1, samples).len() as u64;
                    let digests = self.take(length.checked_mul(16).context("too many samples")?)?;
                    let run = Run {
                        samples: digests.as_chunks().0.to_vec(),
                        ..Run::default()
                    };
                    all.insert(at, run);
                }
                2 => {
                    let (measure, length) = (self.u32()?, self.u64()?);
                    ensure!(measure < request.measures, "there is no measure {measure}");
                    let run = all.get_mut(&at).context("sums of a run without samples")?;
                    run.sums.insert(measure, (self.at, length));
                    self.skip(length)?;
                }
                _ => bail!("there is no part of kind {kind}"),
            }
        }
    }
}
