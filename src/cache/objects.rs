//! What takes long to make and is made of the same things again and again within one run: a search runs the same passes on the
//! same model with other strengths.

use super::Key;
use crate::math::hash::Digest;
use anyhow::{Context, Result};
use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All that is kept takes so many bytes at most; what was made first goes first.
const MOST: usize = 256 << 20;

/// Objects, by key, in memory.
#[derive(Default)]
pub struct Objects(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    all: HashMap<Digest, (Arc<dyn Any + Send + Sync>, usize)>,
    /// The oldest first.
    order: VecDeque<Digest>,
    bytes: usize,
}

impl Objects {
    /// The object of a key, which takes `bytes`; `make` makes it when it is not there.
    ///
    /// # Errors
    /// Those of `make`; when an object of another type has this key.
    pub fn get<T: Any + Send + Sync>(
        &self,
        key: Key,
        bytes: impl FnOnce(&T) -> usize,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        let key = key.0.finish();
        if let Some((known, _)) = self.lock().all.get(&key) {
            return known.clone().downcast().ok().context("an object of another type");
        }
        let made = Arc::new(make()?);
        let bytes = bytes(&made);
        if bytes <= MOST {
            self.lock().put(key, (made.clone(), bytes));
        }
        Ok(made)
    }

    /// The object of a key, kept where there is a place for it; the key is made only then.
    ///
    /// # Errors
    /// As [`Objects::get`].
    pub fn get_in<T: Any + Send + Sync>(
        place: Option<&Objects>,
        key: impl FnOnce() -> Key,
        bytes: impl FnOnce(&T) -> usize,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        match place {
            Some(objects) => objects.get(key(), bytes, make),
            None => make().map(Arc::new),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn put(&mut self, key: Digest, object: (Arc<dyn Any + Send + Sync>, usize)) {
        let bytes = object.1;
        if self.all.insert(key, object).is_some() {
            return; // made twice at a time
        }
        self.order.push_back(key);
        self.bytes += bytes;
        while self.bytes > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.all.remove(&oldest).map_or(0, |(_, bytes)| bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    fn key(i: usize) -> Key {
        Key::new("a test", "").number(i)
    }

    #[test]
    fn what_was_made_is_not_made_again_and_the_oldest_gives_way() {
        let objects = Objects::default();
        let half = |_: &usize| MOST / 2;
        let known = |i: usize| {
            objects
                .get(key(i), half, || bail!("it is made"))
                .ok()
                .map(|x: Arc<usize>| *x)
        };
        for i in 0..3 {
            objects.get(key(i), half, || Ok(i)).expect("made");
        }
        assert_eq!([0, 1, 2].map(known), [None, Some(1), Some(2)]);
        objects
            .get(key(3), |_| MOST + 1, || Ok(3usize))
            .expect("made, too large to keep");
        assert_eq!([1, 2, 3].map(known), [Some(1), Some(2), None]);
        assert!(objects.get(key(1), |_: &String| 0, || bail!("it is made")).is_err());
    }
}
