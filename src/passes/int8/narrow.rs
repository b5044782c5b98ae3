//! Weights of fewer than 8 bits where the outputs of the model allow it.
//!
//! Operators still compute in 8-bit integers, just as fast: a code of `b` bits stands for `2^(8−b)` times itself, and weights are put together
//! while a runtime loads the model ([`planes`](crate::passes::planes)). Which weights can bear how few bits is measured ([`mixed`]), together with
//! embedding tables ([`stored`]); they are rounded again with all samples then.

use super::seen::Moments;
use super::units::Units;
use super::weights::{Scheme, Weight};
use super::{Int8, Seen, Weights, integer, place, ranges, shifted_bias};
use crate::analysis::sites::{Site, float_tensor};
use crate::ir::{DType, Model, NodeId, Tensor, ValueId};
use crate::math::affine::IntKind;
use crate::parallel::side_by_side;
use crate::passes::Context;
use crate::passes::mixed::{self, Weight as _, choose};
use crate::passes::tables::narrow::{Any, stored};
use anyhow::{Context as _, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};

/// A weight that could have fewer bits, with all that it is rounded by.
struct Narrow<'a> {
    pass: &'a Int8,
    model: &'a Model,
    seen: &'a Seen<'a>,
    /// Its place among all weights.
    group: usize,
    sites: Vec<&'a Site>,
    scheme: Scheme,
    input_scale: f32,
    doubt: Vec<f64>,
}

impl Narrow<'_> {
    /// Rounded with all samples.
    fn whole(&self, kind: IntKind) -> Result<Vec<Weight>> {
        self.rounded_by(&self.seen.all(&self.sites, self.doubt.clone())?, kind)
    }

    fn rounded_by(&self, moments: &Moments, kind: IntKind) -> Result<Vec<Weight>> {
        let (read, seen) = ((&self.sites[..], self.scheme), (self.seen, moments));
        self.pass.rounded(self.model, read, self.input_scale, seen, Some(kind))
    }
}

impl mixed::Weight for Narrow<'_> {
    type Codes = Vec<Weight>;

    fn len(&self) -> usize {
        self.sites[0].dims().iter().product()
    }

    fn columns(&self) -> usize {
        self.sites[0].columns()
    }

    fn rounded(&self, kind: IntKind) -> Result<(Vec<Weight>, f64)> {
        let rounded = self.rounded_by(&self.seen.half(&self.sites, &self.doubt)?, kind)?;
        let sqnr = rounded.first().context("a weight")?.sqnr;
        Ok((rounded, sqnr))
    }

    /// In all sites that read it; each with its bias, if it can move, with what the weight shifts.
    fn put(&self, model: &mut Model, weights: &Vec<Weight>) -> Result<()> {
        let (first, codes) = (self.sites[0], weights.first().context("a weight")?);
        let graph = model.node(first.node).graph();
        let name = model.fresh_name(&format!("{}_few_bits", model.value(first.weight).name));
        let value = model.add_const(graph, &name, floats(first, codes)?);
        for (site, weight) in self.sites.iter().zip(weights) {
            model.set_input(site.node, site.slot, Some(value));
            if !weight.shift.is_empty() {
                let bias = shifted_bias(self.model, site, weight)?;
                crate::passes::lowrank::set_bias(model, site, &bias, DType::Float)?;
            }
        }
        Ok(())
    }
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
    /// Puts weights of fewer bits in the place of those that the outputs can bear, and gives the bits of tables, by their codes.
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
    ) -> Result<BTreeMap<ValueId, IntKind>> {
        let why = match self.target.unpacks {
            _ if cx.samples.synthetic() || seen.halves.is_none() => {
                Some("without real data, two samples at least, nobody knows the damage")
            }
            false => Some("the target is not known to put them together while it loads a model"),
            true => None,
        };
        if let Some(why) = why {
            cx.warn(format!("int8(mixed={}): weights keep 8 bits: {why}", self.mixed));
            return Ok(BTreeMap::new());
        }
        let in_integers: BTreeSet<NodeId> = integer(units, placement).map(|u| u.node).collect();
        let mut narrow = Vec::new();
        for (group, (sites, scheme)) in weights.all().enumerate() {
            let all = sites.iter().all(|s| in_integers.contains(&s.node));
            if !all || scheme.kind != IntKind::S8 || !can_narrow(model, sites) {
                continue;
            }
            narrow.push(Any::Weight(Narrow {
                pass: self,
                model,
                seen,
                group,
                sites: sites.to_vec(),
                scheme,
                input_scale: scales.of(sites[0].input).context("its input is quantized")?.scale,
                doubt: seen.doubt(sites)?,
            }));
        }
        narrow.extend(stored(model).into_iter().map(Any::Table));
        let (mut chosen, mut tables) = (Vec::new(), BTreeMap::new());
        for (one, kind) in choose(model, narrow, self.mixed, "int8", cx)? {
            match one {
                Any::Weight(w) => chosen.push((w, kind)),
                Any::Table(t) => _ = tables.insert(t.codes, kind),
            }
        }
        let rounded = side_by_side(&chosen, |(w, _)| w.columns(), |(w, kind)| w.whole(*kind))?;
        for ((weight, _), rounded) in chosen.iter().zip(rounded) {
            weights.replace(weight.group, weight.input_scale, rounded);
        }
        Ok(tables)
    }
}

/// Whether the weight that sites read can have fewer bits: nothing else reads it.
fn can_narrow(model: &Model, sites: &[&Site]) -> bool {
    let alone = |s: &&&Site| model.value(s.weight).uses().len() <= sites.len();
    let site = sites.first().filter(alone);
    site.is_some_and(|s| mixed::can_narrow(s.dims().iter().product()))
}
