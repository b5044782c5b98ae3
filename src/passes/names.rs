//! Nodes that the user names in an option of a pass, or in a recipe.

use super::{Options, SKIP};

/// Names separated by `;`, in which `*` stands for any characters and `?` for one.
#[derive(Clone, Debug)]
pub struct Names {
    listed: Vec<String>,
    /// From rules ([`super::Rule`]): who is among them after all, and who is not; the last that matches holds.
    ruled: Vec<(String, bool)>,
}

impl Names {
    /// Those of an option that keeps the pass from nodes, and of rules that do.
    ///
    /// # Panics
    /// As [`Options::text`].
    pub fn of(o: &Options, option: &str) -> Names {
        let names = o.text(option).split(';').filter(|s| !s.is_empty());
        let ruled = o.rules().iter().filter(|r| r.option == SKIP);
        Names {
            listed: names.map(str::to_owned).collect(),
            ruled: ruled.map(|r| (r.glob.clone(), r.value == "on")).collect(),
        }
    }

    /// True when a node with this label is among them.
    pub fn has(&self, label: &str) -> bool {
        match self.ruled.iter().rev().find(|(glob, _)| matches(glob, label)) {
            Some((_, among)) => *among,
            None => self.listed.iter().any(|glob| matches(glob, label)),
        }
    }
}

/// `*` stands for any characters, `?` for one.
pub(super) fn matches(glob: &str, text: &str) -> bool {
    let (g, t): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut i, mut j, mut star) = (0, 0, None);
    while j < t.len() {
        match g.get(i) {
            Some('*') => {
                star = Some((i, j));
                i += 1;
            }
            Some(&c) if c == '?' || c == t[j] => {
                i += 1;
                j += 1;
            }
            _ => match star {
                Some((s, at)) => {
                    star = Some((s, at + 1));
                    i = s + 1;
                    j = at + 1;
                }
                None => return false,
            },
        }
    }
    g[i..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names() {
        for (glob, text, yes) in [
            ("a*c", "abc", true),
            ("*", "", true),
            ("/head/*", "/head/Conv_3", true),
            ("a?c", "ac", false),
            ("*b*b", "abab", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(glob, text), yes, "{glob} {text}");
        }
    }
}
