//! What is measured of one output, sample by sample.

use super::{Accuracy, OutputGap};
use crate::analysis::parts::Part;
use crate::ir::{DType, Tensor};
use crate::math::compare::{Gap, typical_noise};
use crate::math::margins::{Margins, Noise};
use crate::math::variation::Variation;
use anyhow::{Result, ensure};

/// Sums over the samples that were seen.
#[derive(Default)]
pub struct Meter {
    gap: Gap,
    /// Of signal and noise, of each sample.
    powers: Vec<(f64, f64)>,
    agree: u64,
    decisions: u64,
    margins: Margins,
    noise: Noise,
    /// Samples with a label, and those that each model gets right.
    labelled: u64,
    right: [u64; 2],
    least: Option<f32>,
    most: Option<f32>,
    variation: Variation,
    /// Samples whose dimensions differ.
    unlike: u64,
}

impl Meter {
    /// Counts a sample of which the original chose more or fewer than the result.
    pub fn unlike(&mut self) {
        self.unlike += 1;
    }

    /// Adds the original's output for a sample, the result's, and the sample's label.
    ///
    /// # Errors
    /// When their dimensions differ.
    pub fn add(&mut self, x: &Tensor, y: &Tensor, label: Option<usize>) -> Result<()> {
        ensure!(
            x.dims() == y.dims(),
            "has dimensions {:?}, but the original's are {:?}",
            y.dims(),
            x.dims()
        );
        let (Some(a), Some(b)) = (x.to_f32(), y.to_f32()) else {
            return Ok(()); // strings are not compared
        };
        self.compare(&a, &b)?;
        self.decide(x, &a, &b, label);
        Ok(())
    }

    /// Adds a part of the original's output, and of the result's.
    pub fn add_part(&mut self, part: &Part, x: &Tensor, y: &Tensor) -> Result<()> {
        match part.both(x, y) {
            Some((a, b)) => self.compare(&a, &b),
            None => Ok(()),
        }
    }

    fn compare(&mut self, a: &[f32], b: &[f32]) -> Result<()> {
        let mut one = Gap::new();
        one.add(a, b)?;
        self.powers.push(one.powers());
        self.gap.merge(&one);
        for &v in a.iter().filter(|v| v.is_finite()) {
            self.least = Some(self.least.map_or(v, |l| l.min(v)));
            self.most = Some(self.most.map_or(v, |m| m.max(v)));
        }
        self.variation.add(a);
        Ok(())
    }

    fn decide(&mut self, t: &Tensor, a: &[f32], b: &[f32], label: Option<usize>) {
        if t.ints().is_some() {
            // Integers are decisions themselves.
            self.agree += a.iter().zip(b).filter(|(x, y)| x == y).count() as u64;
            self.decisions += a.len() as u64;
            return;
        }
        let Some((classes, label)) = classes(t, label) else {
            return;
        };
        for (x, y) in a.chunks_exact(classes).zip(b.chunks_exact(classes)) {
            let (before, after) = (argmax(x), argmax(y));
            self.agree += u64::from(before == after);
            self.decisions += 1;
            self.margins.add(x, label);
            self.noise.add(x, y);
            if let Some(l) = label {
                self.labelled += 1;
                self.right[0] += u64::from(before == l);
                self.right[1] += u64::from(after == l);
            }
        }
    }

    /// What was measured in all, of an output or inner value of this name.
    pub fn gap(self, name: String, inner: bool) -> OutputGap {
        let n = self.labelled as f64;
        let share = |k: usize| self.right[k] as f64 / n;
        let noise = self.noise.level();
        OutputGap {
            name,
            inner,
            max_abs: if self.unlike > 0 {
                f64::INFINITY
            } else {
                self.gap.max_abs()
            },
            sqnr_db: self.gap.sqnr_db(),
            typical_sqnr_db: typical_noise(&self.powers).map(|x| -10.0 * x.log10()),
            cosine: self.gap.cosine(),
            top1: (self.decisions > 0).then(|| self.agree as f64 / self.decisions as f64),
            margin_noise: noise,
            top1_expected_change: noise.and_then(|x| self.margins.changes(x)),
            decisions: self.decisions,
            accuracy: (self.labelled > 0).then(|| Accuracy {
                before: share(0),
                after: share(1),
                samples: self.labelled,
                expected_loss: noise.and_then(|x| self.margins.loss(x)).unwrap_or(0.0),
            }),
            broken: self.gap.broken,
            constant: self.least == self.most,
            variation: self.variation.part(),
            stands_in: false,
            negligible: false,
            chosen: false,
            part_of: None,
            same_choice: None,
        }
    }
}

/// How many classes an output chooses among, and the label where it is about this one decision. Scores lie along the last
/// axis longer than 1; an output with spatial axes after the classes is no list of decisions.
pub fn classes(t: &Tensor, label: Option<usize>) -> Option<(usize, Option<usize>)> {
    if t.dtype() == DType::Undefined || t.dims().len() < 2 {
        return None;
    }
    let long: Vec<usize> = t.dims().iter().copied().filter(|d| *d > 1).collect();
    if long.len() > 2 || (t.dims().len() > 3 && long.len() > 1) {
        return None;
    }
    let classes = long.last().copied()?;
    Some((classes, label.filter(|l| t.len() == classes && *l < classes)))
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(dims: &[usize], a: &[f32], b: &[f32], label: Option<usize>) -> OutputGap {
        let mut m = Meter::default();
        let of = |x: &[f32]| Tensor::new(dims, x.to_vec());
        m.add(&of(a), &of(b), label).expect("same dimensions");
        m.gap("y".into(), false)
    }

    #[test]
    fn decisions_are_counted_along_the_class_axis() {
        let g = measured(&[2, 3], &[0., 1., 2., 5., 1., 0.], &[0., 9., 2., 5., 1., 0.], None);
        assert_eq!((g.top1, g.decisions), (Some(0.5), 2));
        let image = measured(&[1, 2, 2, 2], &[0.; 8], &[0.; 8], None);
        assert_eq!((image.top1, image.decisions), (None, 0));
    }

    #[test]
    fn an_output_that_stays_the_same_varies_by_nothing() {
        let mut m = Meter::default();
        let t = |x: f32| Tensor::new(&[1, 2], vec![1.0, x]);
        m.add(&t(0.0), &t(0.0), None).expect("same dimensions");
        m.add(&t(0.001), &t(0.0), None).expect("same dimensions");
        assert!(m.gap("y".into(), false).variation.is_some_and(|v| v < 1e-5));
        assert_eq!(
            measured(&[1, 2], &[1., 2.], &[1., 2.], None).variation,
            None,
            "of one sample nothing is known"
        );
    }

    #[test]
    fn accuracy_is_counted_where_a_sample_is_one_decision() {
        let (x, y) = ([0., 1., 2.], [0., 9., 2.]);
        let a = measured(&[1, 3], &x, &y, Some(2)).accuracy.expect("a label");
        assert_eq!((a.before, a.after, a.samples), (1.0, 0.0, 1));
        assert!(a.expected_loss > 0.2, "{a:?}");
        assert!(measured(&[1, 3], &x, &y, None).accuracy.is_none());
        assert!(
            measured(&[1, 3], &x, &y, Some(3)).accuracy.is_none(),
            "there is no class 3"
        );
        assert!(measured(&[2, 3], &[0.; 6], &[0.; 6], Some(1)).accuracy.is_none());
    }
}
