//! Progress bars, on a terminal only; between steps, memory goes back to the system.

use super::memory::{step_begins, step_ended};
use crate::progress::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;

/// A bar on standard error; nothing when that is no terminal.
pub struct Bar {
    bar: Mutex<Option<ProgressBar>>,
    terminal: bool,
}

impl Bar {
    /// Looks whether standard error is a terminal.
    pub fn new() -> Bar {
        step_ended();
        Bar {
            bar: Mutex::new(None),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn with(&self, f: impl FnOnce(&mut Option<ProgressBar>)) {
        if let (true, Ok(mut bar)) = (self.terminal, self.bar.lock()) {
            f(&mut bar);
        }
    }
}

impl Progress for Bar {
    fn start(&self, what: &str, total: usize) {
        step_begins();
        self.with(|bar| {
            let style = ProgressStyle::with_template("{msg:12} [{bar:30}] {pos}/{len} {eta}");
            let new = ProgressBar::new(total as u64).with_message(what.to_owned());
            *bar = Some(match style {
                Ok(style) => new.with_style(style.progress_chars("=> ")),
                Err(_) => new,
            });
        });
    }
    fn advance(&self, units: usize) {
        self.with(|bar| {
            if let Some(bar) = bar {
                bar.inc(units as u64);
            }
        });
    }
    fn finish(&self) {
        step_ended();
        self.with(|bar| {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
        });
    }
}
