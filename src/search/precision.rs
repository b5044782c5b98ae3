//! Which precision the other passes are searched with.

use super::plan::{Effort, Plan, REST, further, name, precisions};
use super::{Measured, Search};
use anyhow::Result;
use std::collections::VecDeque;

/// A result of this part of the original's size leaves little in float32.
pub(super) const SMALL: f64 = 0.3;
/// A precision that leaves so much, `simplify` included, has found next to nothing to do.
const NEARLY_ALL: f64 = 0.9;
/// A precision that uses at most this part of what may be used
const ROOM: f64 = 0.5;
/// and can go further is preferred to another down to this part of its size: 6 bits are three quarters of 8, and integers run faster
/// than what only stores them ([`REST`]).
const FURTHER: f64 = 0.75;

impl Search<'_> {
    /// The precision to search with (none when none fits alone), and what it uses of the budget: the first that fits, unless it
    /// leaves much as it was; then the smallest, with what it leaves in 8 bits or in float16. What can go further and has the room for it counts as smaller.
    pub(super) fn precision(&mut self) -> Result<(Option<String>, f64)> {
        let (mut best, fit) = (None::<(f64, String, f64)>, self.fit());
        let mut todo: VecDeque<String> = precisions().into_iter().map(str::to_owned).collect();
        while let Some(p) = todo.pop_front() {
            if best.is_some() && self.late() {
                break;
            }
            let k = self.measure(Plan::new(&[], 0.0, Some(&p)))?;
            let t = &self.tried[k].tried;
            // A limit that did not bind before binds no more: the same pass with another gives the same.
            let same =
                |m: &Measured| name(&m.tried.passes) == name(&p) && (m.tried.bytes, m.tried.used) == (t.bytes, t.used);
            if t.used > fit && self.tried[..k].iter().any(same) {
                todo.retain(|q| name(q) != name(&p));
                continue;
            }
            let rest = REST.iter().position(|rest| p.ends_with(rest));
            if rest.is_none() && t.bytes as f64 > NEARLY_ALL * self.before.bytes as f64 {
                continue;
            }
            let room = further(&p) > 0 && !REST.contains(&&*p) && t.used <= ROOM * fit;
            let cost = t.bytes as f64 * if room { FURTHER } else { 1.0 };
            if t.used > fit || best.as_ref().is_some_and(|b| b.0 <= cost) {
                if rest.is_some() {
                    todo.retain(|q| !leaves_the_same(q, &p)); // nothing is left to store
                }
                continue;
            }
            let small = (t.bytes as f64) < SMALL * self.before.bytes as f64;
            // What is less bold would not be smaller: another strength of the same pass, or of what follows it.
            todo.retain(|q| name(q) != name(&p));
            if !small {
                let next = &REST[rest.map_or(0, |k| k + 1)..];
                next.iter()
                    .rev()
                    .for_each(|rest| todo.push_front(format!("{p},{rest}")));
            }
            best = Some((cost, p, t.used));
            if small && self.effort != Effort::Smallest {
                break;
            }
        }
        match best {
            Some((_, p, used)) => Ok((Some(p), used)),
            None => {
                let k = self.measure(Plan::new(&[], 0.0, None))?;
                Ok((None, self.tried[k].tried.used))
            }
        }
    }
}

/// Whether two precisions differ only in how they store what the first pass of both leaves.
fn leaves_the_same<'a>(p: &'a str, q: &'a str) -> bool {
    let first = |p: &'a str| REST.iter().find_map(|rest| p.strip_suffix(rest));
    first(p).is_some() && first(p) == first(q)
}
