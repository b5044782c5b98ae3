//! What could be done at a site, and what it would cost there: rungs, cheapest first.

use crate::analysis::sites::Site;
use ndarray::{Array2, ArrayView2, s};
use std::sync::Arc;

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
}

impl Ladder {
    /// Weights that a rung saves.
    pub fn saved(&self, rung: usize) -> f64 {
        let size = self.site.dims().iter().product::<usize>() as f64;
        size * (1.0 - self.rungs[rung].params)
    }
}
