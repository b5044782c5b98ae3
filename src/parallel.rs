//! Work on several threads whose results are taken in order: the outcome does not depend on the number of threads.

use anyhow::{Result, anyhow};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, mpsc};

struct Turn {
    next: usize,
    folded: usize,
    stop: bool,
}

/// Runs `work(0..n)` on `threads` threads and hands the results to `fold` in the order of their numbers. At most
/// `2 × threads` results wait at any time, so memory stays bounded.
///
/// # Errors
/// The first error of `work` or `fold`; a panic in `work` becomes an error.
pub fn in_order<T: Send>(
    n: usize,
    threads: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
    fold: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    in_order_ahead(n, (threads, threads), work, fold)
}

/// As [`in_order`], but at most `ahead` results wait beside those that are being worked on: for large ones.
///
/// # Errors
/// As [`in_order`].
pub fn in_order_ahead<T: Send>(
    n: usize,
    (threads, ahead): (usize, usize),
    work: impl Fn(usize) -> Result<T> + Sync,
    mut fold: impl FnMut(usize, T) -> Result<()>,
) -> Result<()> {
    let threads = threads.clamp(1, n.max(1));
    if threads == 1 {
        return (0..n).try_for_each(|i| fold(i, guarded(&work, i)?));
    }
    let turn = Mutex::new(Turn {
        next: 0,
        folded: 0,
        stop: false,
    });
    let moved = Condvar::new();
    let lock = || turn.lock().expect("no thread panics while it holds the turn");
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let send = send.clone();
            let (work, lock, moved) = (&work, &lock, &moved);
            scope.spawn(move || {
                loop {
                    let mut t = lock();
                    while !t.stop && t.next < n && t.next >= t.folded + threads + ahead {
                        t = moved.wait(t).expect("no thread panics while it holds the turn");
                    }
                    if t.stop || t.next >= n {
                        return;
                    }
                    let i = t.next;
                    t.next += 1;
                    drop(t);
                    if send.send((i, guarded(work, i))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let mut waiting: BTreeMap<usize, Result<T>> = BTreeMap::new();
        let mut done = 0;
        let mut outcome = Ok(());
        while outcome.is_ok() && done < n {
            let Ok((i, result)) = receive.recv() else { break };
            waiting.insert(i, result);
            while let Some(result) = waiting.remove(&done) {
                outcome = result.and_then(|r| fold(done, r));
                done += 1;
                if outcome.is_err() {
                    break;
                }
            }
            lock().folded = done;
            moved.notify_all();
        }
        lock().stop = true;
        moved.notify_all();
        outcome
    })
}

fn guarded<T>(work: &(impl Fn(usize) -> Result<T> + Sync), i: usize) -> Result<T> {
    catch_unwind(AssertUnwindSafe(|| work(i))).unwrap_or_else(|p| Err(anyhow!("panicked: {}", panic_text(&*p))))
}

/// The message of a caught panic.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Second moments of more than so many numbers in a row are factored one at a time.
pub const LONG: usize = 640;

/// Works on weights, of rows of so many columns, side by side, but one by one on those of more than [`LONG`].
///
/// # Errors
/// Those of `work`.
pub fn side_by_side<T: Sync, R: Send>(
    weights: &[T],
    columns: impl Fn(&T) -> usize,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    large_ones_alone(weights, |w| columns(w) > LONG, work)
}

/// Works on small things side by side, and beside these on large ones, one by one. Several of the latter at once would take much memory; a
/// large one keeps all threads busy half of the time, and small ones fill the rest. Results come in order.
///
/// # Errors
/// Those of `work`.
pub fn large_ones_alone<T: Sync, R: Send>(
    all: &[T],
    large: impl Fn(&T) -> bool,
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let (long, short): (Vec<usize>, Vec<usize>) = (0..all.len()).partition(|i| large(&all[*i]));
    let numbered = |i: usize| Ok((i, work(&all[i])?));
    let one_by_one = || long.into_iter().map(numbered).collect::<Result<Vec<_>>>();
    let all_at_once = || short.into_par_iter().map(numbered).collect::<Result<Vec<_>>>();
    let (long, short) = rayon::join(one_by_one, all_at_once);
    let mut done: Vec<(usize, R)> = long?.into_iter().chain(short?).collect();
    done.sort_by_key(|d| d.0);
    Ok(done.into_iter().map(|d| d.1).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_on_any_number_of_threads() {
        for threads in [1, 2, 5] {
            let mut seen = Vec::new();
            in_order(
                37,
                threads,
                |i| Ok(i * i),
                |i, sq| {
                    seen.push((i, sq));
                    Ok(())
                },
            )
            .expect("no error");
            assert_eq!(seen, (0..37).map(|i| (i, i * i)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_error_in_order_ends_the_work() {
        for threads in [1, 3] {
            let work = |i: usize| if i >= 5 { Err(anyhow!("at {i}")) } else { Ok(()) };
            let e = in_order(1000, threads, work, |_, ()| Ok(())).expect_err("it fails");
            assert_eq!(e.to_string(), "at 5");
        }
    }

    #[test]
    fn a_panic_is_an_error() {
        let e = in_order(3, 2, |_| -> Result<()> { panic!("boom") }, |_, ()| Ok(())).expect_err("it fails");
        assert_eq!(e.to_string(), "panicked: boom");
    }
}
