//! One budget shared by many choices: a common exchange rate.
//!
//! Of all choices whose damages sum up to an allowance, the one that saves most is, up to the gaps of a discrete set, the one
//! that maximizes `saving − rate · damage` at every place for a rate common to all (H. Everett, "Generalized Lagrange
//! Multiplier Method", Operations Research 11, 1963). The sum of damages falls as the rate rises, so the rate is bisected.

/// Halvings of the interval of exponents.
const STEPS: usize = 60;

/// The choice at the least rate, of those with an exponent (base e) in `exponents`, whose damages sum up to `allowed` at most;
/// `nothing` when no rate is high enough. `at` gives the best choice at a rate, and the sum of its damages.
pub fn within<C>(exponents: [f64; 2], allowed: f64, nothing: C, at: impl Fn(f64) -> (C, f64)) -> C {
    let ([mut low, mut high], mut found) = (exponents, nothing);
    for _ in 0..STEPS {
        let middle = (low + high) / 2.0;
        let (choice, damage) = at(middle.exp());
        if damage <= allowed {
            (high, found) = (middle, choice);
        } else {
            low = middle;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places with (saving, damage) to take or leave.
    fn taken(places: &[(f64, f64)], allowed: f64) -> Vec<usize> {
        within([-20.0, 40.0], allowed, Vec::new(), |rate| {
            let worth = |i: &usize| places[*i].0 > rate * places[*i].1;
            let choice: Vec<usize> = (0..places.len()).filter(worth).collect();
            let damage = choice.iter().map(|i| places[*i].1).sum();
            (choice, damage)
        })
    }

    #[test]
    fn what_saves_most_for_its_damage_is_taken_first() {
        let places = [(10.0, 1.0), (10.0, 5.0), (1.0, 1.0)];
        assert_eq!(taken(&places, 0.5), [0usize; 0]);
        assert_eq!(taken(&places, 1.0), [0]);
        assert_eq!(taken(&places, 6.5), [0, 1]);
        assert_eq!(taken(&places, 7.0), [0, 1, 2]);
    }
}
