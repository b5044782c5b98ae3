//! Where the bytes of tensors lie: in a mapped file, on the heap, or in a mapped temporary file once the heap holds much.
//!
//! A model may be larger than the memory. Its weights stay in the mapped file, and what passes make of them goes to
//! temporary files beyond `HEAP` bytes. Pages of a mapped file count as memory once they were read: whoever reads a
//! large tensor through does so with [`stream`], which gives the pages back chunk by chunk.

use bytes::Bytes;
use memmap2::Mmap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Data made by passes stay on the heap up to so many bytes in all.
const HEAP: usize = 128 << 20;
/// Smaller data are not worth a file, and not counted.
const LARGE: usize = 1 << 20;
/// How much is read at a time.
pub const CHUNK: usize = 4 << 20;

/// The mappings that are alive, so that [`release`] touches nothing else.
static MAPS: Mutex<Vec<Weak<Mmap>>> = Mutex::new(Vec::new());
/// Bytes of large data on the heap.
static ON_HEAP: AtomicUsize = AtomicUsize::new(0);

struct Mapped(Arc<Mmap>);
impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

struct Owned<T>(Vec<T>);
impl<T: bytemuck::Pod> AsRef<[u8]> for Owned<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

struct Counted<T>(Vec<T>);
impl<T: bytemuck::Pod> AsRef<[u8]> for Counted<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}
impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        ON_HEAP.fetch_sub(std::mem::size_of_val(&*self.0), Ordering::Relaxed);
    }
}

/// Maps a file into memory, read only; an empty file gives no bytes.
///
/// # Errors
/// When the system refuses.
pub fn map(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the mapping is private and read only. Writing the result renames a new file over the old one and never
    // changes the mapped one; another process that truncates it can end this one, as with every mapped file.
    let map = Arc::new(unsafe { Mmap::map(file)? });
    let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    maps.retain(|m| m.strong_count() > 0);
    maps.push(Arc::downgrade(&map));
    Ok(Bytes::from_owner(Mapped(map)))
}

/// The bytes of a vector: on the heap, or in a temporary file when the heap holds enough and there is room on disk.
pub fn keep<T: bytemuck::Pod + Send + Sync>(data: Vec<T>) -> Bytes {
    let len = std::mem::size_of_val(&*data);
    if len < LARGE {
        return Bytes::from_owner(Owned(data));
    }
    let before = ON_HEAP.fetch_add(len, Ordering::Relaxed);
    let data = Counted(data);
    if before.saturating_add(len) > HEAP
        && let Ok(bytes) = spill(data.as_ref())
    {
        return bytes;
    }
    Bytes::from_owner(data)
}

fn spill(data: &[u8]) -> io::Result<Bytes> {
    let mut file = tempfile::tempfile()?;
    file.write_all(data)?;
    map(&file)
}

/// Gives back the pages that hold these bytes, when they lie in a mapped file; they are read again when they are needed.
pub fn release(bytes: &[u8]) {
    let maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    let alive = maps.iter().filter_map(Weak::upgrade);
    let range = bytes.as_ptr_range();
    for m in alive {
        let whole = m.as_ptr_range();
        if whole.start <= range.start && range.end <= whole.end {
            let _at = range.start as usize - whole.start as usize;
            // SAFETY: the pages belong to a private mapping of a file that was never written to: they come back as they were.
            #[cfg(unix)]
            let _ = unsafe { m.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, _at, bytes.len()) };
            return;
        }
    }
}

/// Gives back the pages of all mapped files.
pub fn release_all() {
    let maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    for _map in maps.iter().filter_map(Weak::upgrade) {
        // SAFETY: as in `release`.
        #[cfg(unix)]
        let _ = unsafe { _map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

/// Reads bytes through, at most [`CHUNK`] at a time (less at the end), and gives the pages back. Stops at the first error.
///
/// # Errors
/// What `f` says.
pub fn stream<E>(bytes: &[u8], mut f: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    for chunk in bytes.chunks(CHUNK) {
        let done = f(chunk);
        if bytes.len() >= LARGE {
            release(chunk);
        }
        done?;
    }
    Ok(())
}

/// True when both hold the same bytes.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && a.chunks(CHUNK).zip(b.chunks(CHUNK)).all(|(x, y)| {
            let same = x == y;
            if a.len() >= LARGE {
                release(x);
                release(y);
            }
            same
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_of_a_file_come_back_and_the_heap_is_left_alone() {
        let data: Vec<u8> = (0..3 * CHUNK).map(|i| (i / 7) as u8).collect();
        let bytes = spill(&data).expect("a temporary file");
        let mut at = 0;
        let ok = stream(&bytes[5..], |c| {
            let same = c == &data[5 + at..5 + at + c.len()];
            at += c.len();
            if same { Ok(()) } else { Err(()) }
        });
        assert_eq!((ok, at), (Ok(()), data.len() - 5));
        assert!(same(&bytes, &data));
        release_all();
        assert!(bytes == data);
        let heap = Bytes::from_owner(Owned(data.clone()));
        release(&heap);
        assert!(heap == data);
    }

    #[test]
    fn large_data_beyond_the_limit_go_to_a_file_unchanged() {
        let kept: Vec<Bytes> = (0..5).map(|i| keep(vec![i as u32; HEAP / 16])).collect();
        assert!(ON_HEAP.load(Ordering::Relaxed) <= HEAP + HEAP / 4);
        for (i, b) in kept.iter().enumerate() {
            assert_eq!(b.len(), HEAP / 4);
            assert!(b.chunks(4).step_by(1000).all(|c| c == (i as u32).to_le_bytes()));
        }
    }
}
