//! A `BufMut` over a file: a model is written without a copy of it in memory.

use crate::ir::store::stream;
use bytes::buf::UninitSlice;
use bytes::{Buf, BufMut};
use std::io::{self, Write};

const CHUNK: usize = 64 * 1024;

/// Collects small writes; large ones go straight to the file. The first error is kept for [`Sink::finish`].
pub struct Sink<W: Write> {
    out: W,
    buffer: Vec<u8>,
    error: Option<io::Error>,
}

impl<W: Write> Sink<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Sink {
            out,
            buffer: Vec::with_capacity(CHUNK),
            error: None,
        }
    }

    fn flush(&mut self) {
        if self.error.is_none() {
            self.error = self.out.write_all(&self.buffer).err();
        }
        self.buffer.clear();
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// The first error of any write.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush();
        match self.error {
            None => Ok(self.out),
            Some(e) => Err(e),
        }
    }
}

// SAFETY: `chunk_mut` gives the spare capacity of the buffer, which `advance_mut` takes into its length.
unsafe impl<W: Write> BufMut for Sink<W> {
    fn remaining_mut(&self) -> usize {
        usize::MAX - self.buffer.len()
    }

    unsafe fn advance_mut(&mut self, n: usize) {
        // SAFETY: the caller has written `n` bytes of the spare capacity.
        unsafe { self.buffer.advance_mut(n) }
        if self.buffer.len() == self.buffer.capacity() {
            self.flush();
        }
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        if self.buffer.len() == self.buffer.capacity() {
            self.flush();
        }
        UninitSlice::uninit(self.buffer.spare_capacity_mut())
    }

    fn put_slice(&mut self, src: &[u8]) {
        if self.buffer.len() + src.len() <= CHUNK {
            self.buffer.extend_from_slice(src);
            return;
        }
        self.flush();
        if src.len() <= CHUNK {
            self.buffer.extend_from_slice(src);
        } else if self.error.is_none() {
            self.error = stream(src, |chunk| self.out.write_all(chunk)).err();
        }
    }

    fn put<T: Buf>(&mut self, mut src: T)
    where
        Self: Sized,
    {
        while src.has_remaining() {
            let n = src.chunk().len();
            let chunk = src.chunk();
            self.put_slice(chunk);
            src.advance(n);
        }
    }
}
