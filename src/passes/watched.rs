//! The values that tell how far a changed model is from what it was: its outputs, or what an output is chosen from.

use crate::analysis::chosen;
use crate::ir::{Model, ValueId};
use crate::math::compare::Gap;
use crate::ops::labels::numbers;

/// Scores between 0 and 1 count as if they were at least so large, root mean square: where there are none, there is nothing to lose.
pub const LEAST: f64 = 1e-3;

/// One of them.
struct Place {
    value: ValueId,
    /// The number of the output.
    of: usize,
    /// The output is chosen from it, and from others.
    source: bool,
    /// It holds scores, of which many are close to zero.
    scores: bool,
}

/// All of them, in the order of the outputs.
pub struct Watched(Vec<Place>);

impl Watched {
    /// Those of a model.
    pub fn of(model: &Model) -> Watched {
        let outputs = model.main().outputs().iter().enumerate();
        let all = outputs.flat_map(|(of, port)| {
            let output = numbers(model, port.value);
            let sources = chosen::from(model, output);
            let source = sources.is_some();
            let values = sources.unwrap_or_else(|| vec![output]);
            values.into_iter().map(move |value| Place {
                value,
                of,
                source,
                scores: source && chosen::are_scores(model, value),
            })
        });
        Watched(all.collect())
    }

    /// The values.
    pub fn values(&self) -> Vec<ValueId> {
        self.0.iter().map(|p| p.value).collect()
    }

    /// The same values in a model that was made of this one; `None` where an output is chosen from others there.
    pub fn values_in(&self, changed: &Model) -> Option<Vec<ValueId>> {
        let theirs = Watched::of(changed).0;
        let same = |a: &&Place, b: &&Place| a.of == b.of && a.source == b.source && a.value == b.value;
        let (a, b): (Vec<&Place>, Vec<&Place>) = (self.0.iter().collect(), theirs.iter().collect());
        let found = chosen::matched(&a, &b, same)?;
        let alike = found
            .iter()
            .zip(&self.0)
            .all(|(i, p)| theirs[*i].of == p.of && theirs[*i].source == p.source);
        alike.then(|| found.iter().map(|i| theirs[*i].value).collect())
    }

    /// Where an output stands that is not chosen.
    pub fn place_of(&self, output: usize) -> Option<usize> {
        self.0.iter().position(|p| p.of == output && !p.source)
    }

    /// Whether a value of this number is an output itself.
    pub fn is_output(&self, place: usize) -> bool {
        self.0.get(place).is_some_and(|p| !p.source)
    }

    /// The noise of a value relative to its power.
    pub fn noise(&self, place: usize, gap: &Gap) -> Option<f64> {
        match self.0[place].scores {
            true => gap.noise_above(LEAST),
            false => gap.noise(),
        }
    }
}
