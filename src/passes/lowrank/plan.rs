//! The ladder of every site: measured in groups that fit the memory, worked on side by side.

use super::conv::{self, Cost, Form, Shape, Ways};
use super::fit::{self, Fit, Weight};
use super::known::{Halves, Known};
use super::ladder::{Chain, Ladder, OF_OUTPUT, OF_WEIGHTS, RANK, Refused, Rung};
use super::wide::measured_at;
use super::{Choice, LowRank, decibel, width};
use crate::analysis::sites::Site;
use crate::analysis::stats::{Detail, Measure, Patch};
use crate::engine::NotRun;
use crate::ir::{Model, ValueId};
use crate::parallel;
use crate::passes::Context;
use crate::passes::charts::{self, Chart, Curve};
use anyhow::{Context as _, Result};

/// Sites are measured in groups whose second moments take about this many bytes.
const MEASURE_BYTES: usize = 512 << 20;
/// Sites with wider inputs are worked on one at a time.
const WIDE: usize = 2048;
/// The errors of the rungs of a ladder, as parts of the error that is allowed.
const RUNGS: [f64; 4] = [1.0, 0.5, 0.25, 0.1];
/// Seed of the blocks that the search for directions starts from.
const SEED: u64 = 0x6f6e_6e78;

/// A site, and what was found out about it.
struct Found<'a> {
    site: &'a Site,
    shape: &'a Shape,
    weight: &'a Weight,
    known: Option<&'a Known>,
    fit: &'a Fit,
}

impl Found<'_> {
    /// The ladder of these choices.
    fn ladder(&self, ways: Option<&Ways>, choices: Vec<(Form, f64)>) -> Result<Ladder> {
        let ranks: Vec<usize> = choices
            .iter()
            .filter_map(|(form, _)| match form {
                Form::Pair(r) => Some(*r),
                _ => None,
            })
            .collect();
        let mut pairs = self.fit.chains(self.weight, self.known, &ranks).into_iter();
        let mut rungs = Vec::new();
        for (form, error) in choices {
            let made: Option<(Chain, Option<Chain>)> = match (form, ways) {
                (Form::Pair(_), _) => pairs.next(),
                (_, Some(ways)) => ways.chains(form)?.map(|[all, half]| (all, Some(half))),
                _ => None,
            };
            let Some((chain, trial)) = made else { continue };
            let cost = self.shape.cost(form);
            rungs.push(Rung {
                what: form.words(),
                rank: cost.params / self.shape.cost(Form::Pair(1)).params,
                params: cost.params,
                macs: cost.macs,
                error,
                chain,
                trial,
            });
        }
        Ok(Ladder {
            site: self.site.clone(),
            measured: self.known.is_some(),
            rungs,
            curve: self.curve(),
        })
    }

    /// The errors of pairs.
    fn curve(&self) -> Vec<[f64; 2]> {
        charts::curve(self.fit.known_errors())
    }
}

impl LowRank {
    /// What could be done at a site, or why nothing.
    fn ladder(
        &self,
        model: &Model,
        site: &Site,
        known: Option<&Known>,
    ) -> Result<std::result::Result<Ladder, Refused>> {
        let shape = Shape::of(site);
        let most = self.largest(&shape);
        let weight = Weight::new(
            model,
            site,
            known,
            self.centered && fit::free_bias(model, site).is_some(),
        )?;
        let allowed = match self.choice {
            Choice::Error(e) => e,
            _ => 0.0,
        };
        let fit = Fit::new(&weight, known, most, allowed, SEED)?;
        let found = Found {
            site,
            shape: &shape,
            weight: &weight,
            known,
            fit: &fit,
        };
        let choices: Vec<(Form, f64)> = match self.choice {
            Choice::Error(e) => return self.by_error(&found, e),
            Choice::Rank(r) => vec![(Form::Pair(r), fit.error(r))],
            Choice::Ratio(part) => {
                let whole = shape.cost(Form::Pair(1)).params;
                let r = ((part / whole) as usize).max(1);
                vec![(Form::Pair(r), fit.error(r))]
            }
        };
        if let Some((Form::Pair(r), error)) = choices.first()
            && *r > most
        {
            let why = format!(
                "the request needs rank {r}, but only up to {most} there is a gain (error {:.1} dB)",
                decibel(*error)
            );
            let curve = found.curve();
            return Ok(Err(Refused { why, curve }));
        }
        found.ladder(None, choices).map(Ok)
    }

    fn by_error(&self, found: &Found, allowed: f64) -> Result<std::result::Result<Ladder, Refused>> {
        let &Found {
            site,
            shape,
            weight,
            known,
            fit,
        } = found;
        let cheap = |c: Cost| self.cheap(c);
        let round = |r: usize| r.next_multiple_of(self.round_to);
        let ways = match known {
            Some(k) if site.taps() > 1 && !k.outputs => Some(Ways::new(site, weight, k, self.round_to, cheap)?),
            _ => None,
        };
        let mut choices: Vec<(Form, f64)> = Vec::new();
        for part in RUNGS {
            if let Some(choice) = conv::choose(shape, fit, ways.as_ref(), part * allowed, round, cheap)?
                && choices.iter().all(|(form, _)| *form != choice.0)
            {
                choices.push(choice);
            }
        }
        if choices.is_empty() {
            let most = self.largest(shape);
            let why = match fit.rank_for(allowed) {
                Some(r) => format!("needs rank {r}"),
                None => "needs too many directions".to_owned(),
            };
            let why = format!(
                "an error of {:.1} dB {why}, but only up to {most} there is a gain (error there {:.1} dB)",
                decibel(allowed),
                decibel(fit.error(most))
            );
            let curve = found.curve();
            return Ok(Err(Refused { why, curve }));
        }
        found.ladder(ways.as_ref(), choices).map(Ok)
    }

    /// The ladders of a group of sites that were measured together.
    fn group(&self, model: &Model, group: &[Site], halves: Option<&Halves>, cx: &mut Context) -> Result<Vec<Ladder>> {
        let mut ladders = Vec::new();
        let work = |site: &Site| {
            let named = || format!("lowrank: {}", model.label(site.node));
            let centered = self.centered && fit::free_bias(model, site).is_some();
            let known = match halves {
                None => None,
                Some(h) => match h.of(model, site, centered).with_context(named)? {
                    None => {
                        return Ok(Err(Refused {
                            why: "its input could not be measured".to_owned(),
                            curve: Vec::new(),
                        }));
                    }
                    known => known,
                },
            };
            let here = self.at(model, site)?;
            here.ladder(model, site, known.as_ref()).with_context(named)
        };
        let all = parallel::large_ones_alone(group, |s| width(s) > WIDE, work)?;
        for (site, result) in group.iter().zip(all) {
            match result {
                Ok(ladder) => ladders.push(ladder),
                Err(refused) => {
                    cx.skip(model, site.node, refused.why);
                    cx.charts
                        .extend(refused_chart(model, site, halves.is_some(), refused.curve));
                }
            }
        }
        Ok(ladders)
    }

    pub(super) fn ladders(&self, model: &Model, sites: &[Site], cx: &mut Context) -> Result<Vec<Ladder>> {
        let mut ladders = Vec::new();
        let mut rest = sites;
        let measured = self.data && !cx.samples.synthetic();
        if self.data && !measured && !sites.is_empty() {
            cx.warn("lowrank: the samples are made up, so it takes plain singular values");
        }
        while measured && !rest.is_empty() {
            let (group, after) = rest.split_at(fitting(model, rest));
            match halves(model, group, cx) {
                Ok(halves) => ladders.extend(self.group(model, group, Some(&halves), cx)?),
                Err(e) if e.chain().any(|c| c.is::<NotRun>()) => {
                    cx.warn(format!(
                        "lowrank knows nothing of the data and takes plain singular values: {e:#}"
                    ));
                    break;
                }
                Err(e) => return Err(e.context("lowrank: measuring")),
            }
            rest = after;
        }
        // Each layer's factors are kept, not its spectrum: memory stays at a few times the size of the weights.
        ladders.extend(self.group(model, rest, None, cx)?);
        Ok(ladders)
    }
}

/// The curve of a site where nothing can be done.
fn refused_chart(model: &Model, site: &Site, measured: bool, points: Vec<[f64; 2]>) -> Option<Chart> {
    (!points.is_empty()).then(|| {
        Chart::Curve(Curve {
            node: model.label(site.node),
            along: RANK,
            of: if measured { OF_OUTPUT } else { OF_WEIGHTS },
            points,
            rungs: Vec::new(),
        })
    })
}

/// How many of the next sites are measured together: as many as fit, and at least one.
fn fitting(model: &Model, sites: &[Site]) -> usize {
    let mut seen: Vec<(ValueId, Patch)> = Vec::new();
    let mut bytes = 0usize;
    for (i, site) in sites.iter().enumerate() {
        let (value, patch, dim) = measured_at(model, site);
        if !seen.contains(&(value, patch.clone())) {
            // Two halves, in f64.
            bytes = bytes.saturating_add(16 * dim.saturating_mul(dim));
            seen.push((value, patch));
        }
        if i > 0 && bytes > MEASURE_BYTES {
            return i;
        }
    }
    sites.len()
}

/// Second moments of the sites' inputs over two halves of the samples.
fn halves(model: &Model, group: &[Site], cx: &mut Context) -> Result<Halves> {
    let wanted = group.iter().map(|s| {
        let (value, patch, _) = measured_at(model, s);
        (value, Measure::Gram(patch, Detail::Fine))
    });
    Ok(Halves {
        stats: cx.halves(model, wanted)?,
    })
}
