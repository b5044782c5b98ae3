//! One layer: its map, what is known of its input, and the map with zeros.

use super::store::deflated;
use crate::analysis::sites::{Site, float_tensor};
use crate::analysis::stats::Stats;
use crate::ir::{DType, Model};
use crate::math::sparse::{Moment, Pattern, blocks, largest, largest_of_rows, of_groups};
use anyhow::{Context as _, Result};
use ndarray::{Array1, Array2, Zip};

/// Which weights go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// What costs least when the others are refitted.
    Obs,
    /// The least products with the size of the input, in every row.
    Wanda,
    /// The smallest.
    Magnitude,
}

/// A site, its map, and what its input is like.
pub struct Layer {
    /// Where.
    pub site: Site,
    /// `out × in`; columns are ordered tap by tap, so that neighbours are channels.
    pub matrix: Array2<f64>,
    /// The part that becomes zero here, where it was asked for by name.
    pub own: Option<f64>,
    /// What each weight costs, relative to the power of the layer's output where that is known.
    pub costs: Array2<f64>,
    /// Column of the ordered matrix → column of the site's.
    order: Vec<usize>,
    known: Option<Known>,
}

struct Known {
    moment: Moment,
    mean: Array1<f64>,
    /// The bias, when it takes up mean errors.
    bias: Option<Vec<f32>>,
    power: f64,
}

/// A map with zeros.
pub struct Thin {
    matrix: Array2<f64>,
    /// In parts of the output's power.
    lost: Option<f64>,
}

impl Layer {
    /// A site with the sums over these parts of the samples; `None` when its input was zero throughout.
    ///
    /// # Errors
    /// When a weight or a sum is not usable.
    pub fn new(model: &Model, site: &Site, stats: Option<&[Stats]>, method: Method) -> Result<Option<Layer>> {
        let plain = site.matrix(model)?.mapv(f64::from);
        let (n, taps) = (plain.ncols(), site.taps().max(1));
        let order: Vec<usize> = (0..n).map(|k| k % (n / taps) * taps + k / (n / taps)).collect();
        let matrix = plain.select(ndarray::Axis(1), &order);
        let sizes = matrix.mapv(f64::abs);
        let known = match stats {
            Some(stats) => match Known::new(model, site, stats, &order, &matrix)? {
                None => return Ok(None),
                known => known,
            },
            None => None,
        };
        let costs = match (&known, method) {
            (Some(k), Method::Obs) => k.moment.costs(matrix.view()) / k.power,
            (Some(k), Method::Wanda) => k.moment.products(matrix.view()) / k.power,
            _ => sizes,
        };
        Ok(Some(Layer {
            site: site.clone(),
            matrix,
            own: None,
            costs,
            order,
            known,
        }))
    }

    /// The map with `keep` weights, or as the pattern says.
    ///
    /// # Errors
    /// When numbers are not finite.
    pub fn thinned(&self, keep: usize, method: Method, pattern: Pattern, block: usize, work: f64) -> Result<Thin> {
        let masked = |mask: Array2<bool>| {
            Zip::from(&self.matrix)
                .and(&mask)
                .map_collect(|w, m| if *m { *w } else { 0.0 })
        };
        let matrix = match (&self.known, method, pattern) {
            (Some(k), Method::Obs, _) if block > 1 => {
                let mask = blocks(&self.costs, keep, block);
                k.moment.refitted(self.matrix.view(), &mask)?.0
            }
            (Some(k), Method::Obs, _) => k.moment.thinned(self.matrix.view(), keep, pattern, work)?,
            (.., Pattern::Of(n, m)) => masked(of_groups(&self.costs, n, m)),
            _ if block > 1 => masked(blocks(&self.costs, keep, block)),
            (_, Method::Wanda, _) => masked(largest_of_rows(&self.costs, keep.div_ceil(self.matrix.nrows().max(1)))),
            _ => masked(largest(&self.costs, keep)),
        };
        let lost = self
            .known
            .as_ref()
            .map(|k| k.moment.power((&self.matrix - &matrix).view()) / k.power);
        Ok(Thin { matrix, lost })
    }

    /// Writes the map, and the bias where it takes up mean errors.
    ///
    /// # Errors
    /// When the weight was replaced by one of another shape.
    pub fn write(&self, model: &mut Model, thin: &Thin) -> Result<()> {
        let mut plain = Array2::<f32>::zeros(thin.matrix.dim());
        for (k, &j) in self.order.iter().enumerate() {
            plain.column_mut(j).assign(&thin.matrix.column(k).mapv(|x| x as f32));
        }
        let tensor = self.site.tensor_of(model, plain.view())?;
        if let Some((bias, known)) = self.known.as_ref().and_then(|k| Some((k.bias.as_ref()?, k))) {
            let shift = (&self.matrix - &thin.matrix).dot(&known.mean);
            let new = bias
                .iter()
                .zip(&shift)
                .map(|(b, s)| (f64::from(*b) + s) as f32)
                .collect();
            let slot = self.site.bias.context("it had a bias")?.value;
            let old = model.constant(slot).context("the bias is gone")?;
            let new = float_tensor(old.dtype(), old.dims(), new)?;
            model.set_const(slot, new);
        }
        model.set_const(self.site.weight, tensor);
        Ok(())
    }

    /// A line of the table.
    pub fn account(&self, model: &Model, thin: &Thin) -> String {
        let (all, left) = (thin.matrix.len(), thin.matrix.iter().filter(|x| **x != 0.0).count());
        let lost = thin.lost.map_or(String::new(), |l| {
            format!("; predicted error {:.1} dB", super::decibel(l))
        });
        let packed = model.constant(self.site.weight).map_or(String::new(), |t| {
            let (bytes, small) = (t.byte_len(), deflated(&[&t.raw()]));
            format!(
                "; {bytes} bytes deflate to {small} ({:.2}×)",
                bytes as f64 / small.max(1) as f64
            )
        });
        format!(
            "{:.1} % zeros: {left} of {all} weights remain{lost}{packed}",
            100.0 * (all - left) as f64 / all.max(1) as f64
        )
    }
}

impl Known {
    fn new(
        model: &Model,
        site: &Site,
        stats: &[Stats],
        order: &[usize],
        matrix: &Array2<f64>,
    ) -> Result<Option<Known>> {
        let mut sums: Option<crate::math::gram::Gram> = None;
        for s in stats {
            let Some(g) = s
                .gram(site.input, &site.patch)
                .and_then(|g| g.first())
                .filter(|g| g.n > 0)
            else {
                continue;
            };
            match &mut sums {
                Some(all) => all.merge(g)?,
                None => sums = Some(g.clone()),
            }
        }
        let Some(sums) = sums.filter(|g| g.dim() == order.len()) else {
            return Ok(None);
        };
        let bias = bias(model, site);
        let second = if bias.is_some() {
            sums.covariance()
        } else {
            sums.moment()
        };
        if second.diag().sum() <= 0.0 {
            return Ok(None);
        }
        let axis = |m: Array2<f64>| m.select(ndarray::Axis(0), order).select(ndarray::Axis(1), order);
        let moment = Moment::new(axis(second))?;
        let power = moment.power(matrix.view()).max(f64::MIN_POSITIVE);
        Ok(Some(Known {
            moment,
            mean: sums.mean().select(ndarray::Axis(0), order),
            bias,
            power,
        }))
    }
}

/// The bias, when it is this layer's own, one number for every output, and nothing scales it.
fn bias(model: &Model, site: &Site) -> Option<Vec<f32>> {
    let b = site.bias.filter(|b| b.scale == 1.0 && site.layout.scale == 1.0)?;
    let t = model.constant(b.value)?;
    let plain = site.owns_bias(model) && t.len() == site.outputs() && t.dtype() == DType::Float;
    let rows = site.rows(site.layout.groups).end == site.outputs();
    t.floats().filter(|_| plain && rows).map(std::borrow::Cow::into_owned)
}
