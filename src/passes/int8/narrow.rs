//! Weights of 4 bits where the outputs of the model allow it; the others keep 8.
//!
//! Operators still compute in 8-bit integers, just as fast: a code of 4 bits stands for 16 times itself, and weights are taken apart
//! while a runtime loads the model ([`super::nibbles`]). Noise of a weight with 4 bits is some 24 dB above that of one with 8, so which weights
//! can bear it is measured: rounded on one half of the samples (`math::rounding`), they take the place of the float weights, and
//! the outputs on the other half say what may stay ([`crate::passes::trial`]). What stays is rounded again with all samples.

use super::tied::side_by_side;
use super::units::Units;
use super::weights::{Scheme, Weight};
use super::{Int8, Seen, Weights, integer, place, ranges, shifted_bias};
use crate::analysis::sites::{Site, float_tensor};
use crate::ir::{DType, Model, NodeId, Tensor};
use crate::math::affine::IntKind;
use crate::passes::Context;
use crate::passes::nibbles::{self, Trial, choose};
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeSet;

/// Why the weight that sites read cannot take 4 bits.
fn refusal(model: &Model, sites: &[&Site]) -> Option<&'static str> {
    let site = sites.first()?;
    match model.value(site.weight).uses().len() > sites.len() {
        true => Some("other operators read it too"),
        false => nibbles::refusal(site.dims()),
    }
}

/// A weight with 4 bits, to be tried in all sites that read it; each with its bias, if it can move, with what the weight shifts.
///
/// # Errors
/// When codes and scales do not fit the sites.
fn trial<'a>(
    model: &Model,
    sites: &'a [&'a Site],
    weights: &[Weight],
) -> Result<Trial<impl Fn(&mut Model) -> Result<()> + use<'a>>> {
    let (site, weight) = (sites.first().context("a site")?, weights.first().context("a weight")?);
    let float = floats(site, weight)?;
    let moved = |(site, weight): (&&Site, &Weight)| match weight.shift.is_empty() {
        true => Ok(None),
        false => shifted_bias(model, site, weight).map(Some),
    };
    let biases: Vec<Option<Vec<f32>>> = sites.iter().zip(weights).map(moved).collect::<Result<_>>()?;
    let (first, sqnr) = (*site, weight.sqnr);
    Ok(Trial::new(float.len(), sqnr, move |model| {
        let graph = model.node(first.node).graph();
        let name = model.fresh_name(&format!("{}_int4", model.value(first.weight).name));
        let weight = model.add_const(graph, &name, float.clone());
        sites.iter().zip(&biases).try_for_each(|(site, bias)| {
            model.set_input(site.node, site.slot, Some(weight));
            match bias {
                Some(bias) => crate::passes::lowrank::set_bias(model, site, bias, DType::Float),
                None => Ok(()),
            }
        })
    }))
}

/// `s·q`, without the factor of the site.
fn floats(site: &Site, weight: &Weight) -> Result<Tensor> {
    let (dims, axis) = (site.dims(), site.layout.out_axis);
    let codes = weight.codes.view::<i8>().context("codes are int8")?;
    let n = weight.scales.len();
    ensure!(n == 1 || n == dims[axis], "{n} scales for {} channels", dims[axis]);
    let inner: usize = dims[axis + 1..].iter().product();
    let scale = |i: usize| weight.scales[(i / inner) % dims[axis] % n] / site.layout.scale;
    let data = codes.iter().enumerate().map(|(i, q)| f32::from(*q) * scale(i));
    float_tensor(DType::Float, dims, data.collect())
}

impl Int8 {
    /// Puts weights of 4 bits in the place of those that the outputs can bear.
    ///
    /// # Errors
    /// When a sample fails.
    pub(super) fn narrow(
        &self,
        model: &Model,
        (units, placement): (&Units, &place::Placement),
        scales: &ranges::Scales,
        seen: &Seen,
        weights: &mut Weights,
        cx: &mut Context,
    ) -> Result<()> {
        let why = match self.target.unpacks {
            _ if cx.samples.synthetic() || seen.halves.is_none() => {
                Some("without real data, two samples at least, nobody knows the damage")
            }
            false => Some("the target is not known to take them apart while it loads a model"),
            true => None,
        };
        if let Some(why) = why {
            cx.warn(format!("int8(int4={}): weights keep 8 bits: {why}", self.int4));
            return Ok(());
        }
        let scale = |site: &Site| scales.of(site.input).map(|s| s.scale);
        let in_integers: BTreeSet<NodeId> = integer(units, placement).map(|u| u.node).collect();
        let groups: Vec<(usize, Vec<&Site>, Scheme)> = weights
            .all()
            .enumerate()
            .map(|(group, (sites, scheme))| (group, sites.to_vec(), scheme))
            .filter(|(_, sites, scheme)| {
                let all = sites.iter().all(|s| in_integers.contains(&s.node));
                all && scheme.kind == IntKind::S8 && refusal(model, sites).is_none()
            })
            .collect();
        let columns = |g: &(usize, Vec<&Site>, Scheme)| g.1[0].columns();
        let halves = side_by_side(&groups, columns, |(_, sites, scheme)| {
            let input = scale(sites[0]).context("its input is quantized")?;
            let doubt = seen.doubt(sites)?;
            let half = seen.half(sites, &doubt)?;
            let rounded = self.rounded(model, (sites, *scheme), input, (seen, &half), Some(IntKind::S4))?;
            Ok((rounded, input, doubt))
        })?;
        let (mut trials, mut places) = (Vec::new(), Vec::new());
        for ((group, sites, scheme), (rounded, input, doubt)) in groups.iter().zip(halves) {
            let trial = trial(model, sites, &rounded)?;
            if trial.bearable() {
                trials.push(trial);
                places.push((*group, sites, *scheme, input, doubt));
            }
        }
        let mut chosen = choose(model, &trials, self.int4, "int8", cx)?.into_iter();
        places.retain(|_| chosen.next() == Some(true));
        let rounded = side_by_side(
            &places,
            |p| p.1[0].columns(),
            |(_, sites, scheme, input, doubt)| {
                let all = seen.all(sites, doubt.clone())?;
                self.rounded(model, (sites, *scheme), *input, (seen, &all), Some(IntKind::S4))
            },
        )?;
        for (place, rounded) in places.into_iter().zip(rounded) {
            weights.replace(place.0, place.3, rounded);
        }
        Ok(())
    }
}
