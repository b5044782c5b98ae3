//! What could be done at a site, and what it would cost there: rungs, cheapest first.

use super::rewrite;
use crate::analysis::sites::Site;
use crate::ir::Model;
use crate::passes::charts::{self, Chart, Curve};
use crate::passes::trial;
use anyhow::Result;
use ndarray::{Array2, ArrayView2, s};
use std::sync::Arc;

/// What is chosen, and what errs, in words.
pub const RANK: &str = "rank";
/// With data.
pub const OF_OUTPUT: &str = "error of its output";
/// Without.
pub const OF_WEIGHTS: &str = "error of its weights";

/// The first rows and columns of a matrix that several rungs share.
#[derive(Clone)]
pub struct Cut {
    data: Arc<Array2<f32>>,
    rows: usize,
    cols: usize,
}

impl Cut {
    /// A whole matrix.
    pub fn whole(data: Array2<f32>) -> Cut {
        let (rows, cols) = data.dim();
        Cut {
            data: Arc::new(data),
            rows,
            cols,
        }
    }
    /// Its first rows.
    pub fn rows(&self, rows: usize) -> Cut {
        Cut { rows, ..self.clone() }
    }
    /// Its first columns.
    pub fn cols(&self, cols: usize) -> Cut {
        Cut { cols, ..self.clone() }
    }
    /// The entries.
    pub fn view(&self) -> ArrayView2<'_, f32> {
        self.data.slice(s![..self.rows, ..self.cols])
    }
}

/// Which spatial axes of a convolution one layer of a chain covers: it has kernel, stride, dilation and padding of the old one
/// there, and 1 elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Covers {
    /// None: a 1×1 convolution. Dense layers too.
    Nothing,
    /// All of them.
    Everything,
    /// One of them.
    Axis(usize),
}

/// One layer of a chain.
#[derive(Clone)]
pub struct Layer {
    /// out × (in · taps that are covered), channels first.
    pub weight: Cut,
    /// Where it looks beyond single positions.
    pub covers: Covers,
}

/// Layers that replace one layer.
#[derive(Clone)]
pub struct Chain {
    /// Two or more.
    pub layers: Vec<Layer>,
    /// All that is to be added to the output, when the mean error goes there.
    pub bias: Option<Vec<f32>>,
}

/// One thing that could be done.
pub struct Rung {
    /// Its form and ranks.
    pub what: String,
    /// The rank of a pair of as many weights: its own for a pair.
    pub rank: f64,
    /// Weights, as a part of those that were there.
    pub params: f64,
    /// Multiply-adds, as a part of those that were there.
    pub macs: f64,
    /// Predicted error of the output relative to its variance; without data, of the weight relative to its size.
    pub error: f64,
    /// Made from all samples.
    pub chain: Chain,
    /// Made from one half of them, to be tried on the other.
    pub trial: Option<Chain>,
}

/// Everything that could be done at a site; the first rung is the smallest and errs most.
pub struct Ladder {
    /// Where.
    pub site: Site,
    /// True when errors rest on data.
    pub measured: bool,
    /// Not empty.
    pub rungs: Vec<Rung>,
    /// `[rank, error in dB]` of a pair.
    pub curve: Vec<[f64; 2]>,
}

/// Why nothing can be done at a site.
pub struct Refused {
    /// In words.
    pub why: String,
    /// As in a [`Ladder`], as far as it is known.
    pub curve: Vec<[f64; 2]>,
}

impl Ladder {
    /// For the report: the curve, with the rung that was taken.
    pub fn chart(&self, node: String, chosen: Option<usize>) -> Chart {
        let rung = |(i, r): (usize, &Rung)| charts::Rung {
            what: r.what.clone(),
            at: r.rank,
            error_db: charts::decibel(r.error),
            chosen: chosen == Some(i),
        };
        let of = if self.measured { OF_OUTPUT } else { OF_WEIGHTS };
        Chart::Curve(Curve {
            node,
            along: RANK,
            of,
            points: self.curve.clone(),
            rungs: self.rungs.iter().enumerate().map(rung).collect(),
        })
    }
}

impl trial::Ladder for Ladder {
    fn rungs(&self) -> usize {
        self.rungs.len()
    }

    fn error(&self, rung: usize) -> f64 {
        self.rungs[rung].error
    }

    fn foreseen(&self) -> bool {
        self.measured
    }

    /// Weights.
    fn saved(&self, rung: usize) -> f64 {
        let size = self.site.dims().iter().product::<usize>() as f64;
        size * (1.0 - self.rungs[rung].params)
    }

    fn apply(&self, model: &mut Model, rung: usize) -> Result<()> {
        let rung = &self.rungs[rung];
        rewrite::replace(model, &self.site, rung.trial.as_ref().unwrap_or(&rung.chain))
    }
}
