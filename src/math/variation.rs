//! How much values change from sample to sample: saturated ones hardly do, and say little of what they were computed from.

/// Below this variation values are taken to have saturated: repeating one sample's would give 30 dB.
const HARDLY: f64 = 1e-3;

/// The distance of later samples from the first one, and their power.
#[derive(Clone, Debug, Default)]
pub struct Variation {
    first: Vec<f32>,
    apart: f64,
    power: f64,
}

impl Variation {
    /// Adds a sample; one of another length than the first is left out, and so are numbers that are not finite.
    pub fn add(&mut self, values: &[f32]) {
        if self.first.is_empty() {
            self.first = values.to_vec();
        } else if self.first.len() == values.len() {
            let pairs = values.iter().zip(&self.first);
            for (x, first) in pairs.filter(|(x, f)| x.is_finite() && f.is_finite()) {
                self.apart += f64::from(x - first).powi(2);
                self.power += f64::from(*x).powi(2);
            }
        }
    }

    /// The mean squared distance in parts of the power; `None` of less than two samples, and of zeros.
    pub fn part(&self) -> Option<f64> {
        (self.power > 0.0).then(|| self.apart / self.power)
    }

    /// True when the values are known to hardly change.
    pub fn hardly(&self) -> bool {
        self.part().is_some_and(hardly)
    }
}

/// True of a variation ([`Variation::part`]) that is next to none.
pub fn hardly(part: f64) -> bool {
    part < HARDLY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturated_values_hardly_change() {
        let mut v = Variation::default();
        v.add(&[1.0, 0.0]);
        assert_eq!((v.part(), v.hardly()), (None, false), "of one sample nothing is known");
        v.add(&[1.0, 0.001]);
        assert!(v.hardly());
        v.add(&[0.0, 1.0]);
        assert!(!v.hardly());
    }
}
