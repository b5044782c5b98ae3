//! Weights that are rounded, each once, however many operators read it.
//!
//! Tied weights (a head that runs over several scales, the steps of an unrolled recurrent layer, the repeated layer of an ALBERT) stay tied:
//! one tensor of codes, rounded under the sum of the second moments of all inputs, with scales that leave room for every bias. What the
//! mean error shifts is the reader's own, and so are the codes of its bias.

use super::ranges::Scales;
use super::seen::{Moments, Seen};
use super::units::{Unit, Units};
use super::weights::{Known, Scheme, Weight, quantize};
use super::{Int8, bias_of};
use crate::analysis::sites::Site;
use crate::ir::{Model, NodeId};
use crate::math::affine::IntKind;
use crate::parallel::side_by_side;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// Where a range ends for all who read a value may move: the scale of an input that a tied weight is made for is so much smaller.
const ROOM: f32 = 0.5;

/// The weights of units, and what they were rounded to.
pub struct Weights<'a> {
    groups: Vec<(Vec<&'a Site>, Scheme)>,
    /// The group of each operator, and its place there.
    places: BTreeMap<NodeId, (usize, usize)>,
    /// By group and, where one operator reads it, the scale of its input (bits): nothing else that they depend on changes between rounds.
    rounded: BTreeMap<(usize, u32), Vec<Weight>>,
}

impl<'a> Weights<'a> {
    /// All that units read, each with the scheme of its operator.
    pub fn new(units: &'a Units, scheme: impl Fn(NodeId) -> Scheme) -> Weights<'a> {
        let mut all = Weights {
            groups: Vec::new(),
            places: BTreeMap::new(),
            rounded: BTreeMap::new(),
        };
        let mut of_weight: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for site in units.all.iter().filter_map(|u| u.site.as_ref()) {
            let (scheme, known) = (scheme(site.node), of_weight.entry(site.weight).or_default());
            let alike = |g: &&usize| all.groups[**g].1 == scheme && alike(all.groups[**g].0[0], site);
            let group = match known.iter().find(alike) {
                Some(&g) => g,
                None => {
                    all.groups.push((Vec::new(), scheme));
                    known.push(all.groups.len() - 1);
                    all.groups.len() - 1
                }
            };
            let sites = &mut all.groups[group].0;
            all.places.insert(site.node, (group, sites.len()));
            sites.push(site);
        }
        all
    }

    /// The operators that read each weight, and how it is rounded.
    pub fn all(&self) -> impl Iterator<Item = (&[&'a Site], Scheme)> {
        self.groups.iter().map(|(sites, scheme)| (&sites[..], *scheme))
    }

    /// What the weight of an operator was rounded to when its input has this scale, with the place of the weight among all.
    pub fn of(&self, node: NodeId, input_scale: f32) -> Option<(usize, &Weight)> {
        let &(group, place) = self.places.get(&node)?;
        let rounded = self.rounded.get(&self.key(group, input_scale))?;
        Some((group, rounded.get(place)?))
    }

    /// Puts something else in the place of what a weight was rounded to.
    pub fn replace(&mut self, group: usize, input_scale: f32, rounded: Vec<Weight>) {
        self.rounded.insert(self.key(group, input_scale), rounded);
    }

    fn key(&self, group: usize, input_scale: f32) -> (usize, u32) {
        match self.groups[group].0.len() {
            1 => (group, input_scale.to_bits()),
            _ => (group, 0),
        }
    }
}

/// Whether two operators that read the same weight read it in the same way.
fn alike(a: &Site, b: &Site) -> bool {
    let way = |s: &Site| {
        (
            s.layout.out_axis,
            s.layout.groups,
            s.layout.scale.to_bits(),
            s.is_transposed(),
            s.columns(),
        )
    };
    way(a) == way(b)
}

/// So many of the operators that read a weight, one at least, spread over all.
pub fn spread<'s, 'a>(sites: &'s [&'a Site], most: usize) -> impl Iterator<Item = &'s &'a Site> {
    let n = most.clamp(1, sites.len().max(1));
    (0..n).filter_map(move |i| sites.get((2 * i + 1) * sites.len() / (2 * n)))
}

impl Int8 {
    /// Rounds the weights of units that were not rounded for this scale of their input.
    pub(super) fn round<'u>(
        &self,
        model: &Model,
        units: impl Iterator<Item = &'u Unit>,
        scales: &Scales,
        seen: &Seen,
        weights: &mut Weights,
    ) -> Result<()> {
        let mut missing: BTreeMap<(usize, u32), f32> = BTreeMap::new();
        for site in units.filter_map(|u| u.site.as_ref()) {
            let input = scales.of(site.input).context("its input is quantized")?.scale;
            let (group, _) = weights.places[&site.node];
            missing.insert(weights.key(group, input), input);
        }
        missing.retain(|key, _| !weights.rounded.contains_key(key));
        let missing: Vec<((usize, u32), f32)> = missing.into_iter().collect();
        let groups = &weights.groups;
        let columns = |m: &((usize, u32), f32)| groups[m.0.0].0[0].columns();
        let rounded = side_by_side(&missing, columns, |(key, input)| {
            let (sites, scheme) = &groups[key.0];
            let moments = seen.all(sites, Vec::new())?;
            self.rounded(model, (sites, *scheme), *input, (seen, &moments), None)
        })?;
        weights.rounded.extend(missing.into_iter().map(|m| m.0).zip(rounded));
        Ok(())
    }

    /// The weight that sites read, in integers: of the kind that its scheme says, or of another. `input_scale` counts where one reads it.
    pub(super) fn rounded(
        &self,
        model: &Model,
        (sites, mut scheme): (&[&Site], Scheme),
        input_scale: f32,
        (seen, moments): (&Seen, &Moments),
        kind: Option<IntKind>,
    ) -> Result<Vec<Weight>> {
        let site = sites.first().context("a site")?;
        let node = model.node(site.node);
        let (bias, input_scale) = match sites {
            _ if !self.target.int_bias => (vec![0.0; site.outputs()], input_scale), // no weight scale has to make room for it
            [one] => (bias_of(model, one)?, input_scale),
            all => self.largest_bias(model, all, seen, input_scale)?,
        };
        let known = Known {
            bias: &bias,
            moments,
            movable: sites.iter().all(|s| movable(model, s)),
            input_scale,
            objects: seen.objects,
        };
        scheme.per_channel &= !self.target.per_tensor.contains(&node.op.name.as_str());
        scheme.kind = kind.unwrap_or(scheme.kind);
        quantize(model, sites, &known, scheme).with_context(|| model.label(site.node))
    }

    /// The smallest scale of the inputs of sites, and for every output a bias that needs as much room with it as any of theirs.
    fn largest_bias(&self, model: &Model, sites: &[&Site], seen: &Seen, input_scale: f32) -> Result<(Vec<f32>, f32)> {
        let mut all = Vec::new();
        for site in sites {
            let Some(chosen) = seen.ranges.get(&site.input) else {
                continue;
            };
            let scale = ROOM * self.target.codes.cover(chosen.range.0, chosen.range.1)?.scale;
            all.push((bias_of(model, site)?, scale));
        }
        let least = all.iter().map(|b| b.1).reduce(f32::min).unwrap_or(input_scale);
        let mut largest = vec![0.0f32; sites[0].outputs()];
        for (bias, scale) in &all {
            let needed = bias.iter().map(|b| b.abs() * (least / scale));
            largest.iter_mut().zip(needed).for_each(|(l, b)| *l = l.max(b));
        }
        Ok((largest, least))
    }
}

/// Whether the operator has a bias, or can be given one.
fn movable(model: &Model, site: &Site) -> bool {
    let node = model.node(site.node);
    node.is("Conv") || node.is("Gemm")
}
