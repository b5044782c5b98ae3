//! Statistics of inner values over calibration samples, streamed in bounded memory.
//!
//! All measures are sums over samples, in the order of the samples: the result does not depend on the number of threads.

use crate::data::Samples;
use crate::engine::Engine;
use crate::ir::{Model, ValueId};
use crate::math::gram::Gram;
use crate::math::histogram::{Histogram, Range};
use crate::progress::Progress;
use anyhow::Result;
use std::collections::HashMap;

/// What to measure of a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Measure {
    /// Least and largest element.
    Range,
    /// The distribution of the elements.
    Histogram,
    /// The mean along every index of one axis (negative axes count from the end).
    Mean(i64),
    /// The second moment of rows cut out of the value.
    Gram(Patch),
}

/// How the rows x of a second moment are cut out of a value.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Patch {
    /// A row is what lies along this axis, at every index of the others (Gemm, MatMul: -1; 1×1 Conv: 1).
    Axis(i64),
    /// A row is one window of a convolution, channels first: [C/group, k…] flattened, as in the weight's rows; one
    /// moment for every group.
    Windows {
        /// Kernel sizes.
        kernel: Vec<usize>,
        /// Steps.
        strides: Vec<usize>,
        /// Padding with zeros: begins, then ends.
        pads: Vec<usize>,
        /// Distances between kernel taps.
        dilations: Vec<usize>,
        /// Number of groups of channels.
        groups: usize,
    },
}

/// What was measured.
#[derive(Default)]
pub struct Stats {
    /// Number of samples seen.
    pub samples: usize,
    ranges: HashMap<ValueId, Range>,
    histograms: HashMap<ValueId, Histogram>,
    means: HashMap<(ValueId, i64), Vec<f64>>,
    grams: HashMap<(ValueId, Patch), Vec<Gram>>,
}

impl Stats {
    /// The range of a value, if it was measured and is a float tensor.
    pub fn range(&self, v: ValueId) -> Option<&Range> {
        self.ranges.get(&v)
    }
    /// The distribution of a value.
    pub fn histogram(&self, v: ValueId) -> Option<&Histogram> {
        self.histograms.get(&v)
    }
    /// The means of a value along an axis.
    pub fn mean(&self, v: ValueId, axis: i64) -> Option<&[f64]> {
        self.means.get(&(v, axis)).map(Vec::as_slice)
    }
    /// The second moments of a value, one for every group.
    pub fn gram(&self, v: ValueId, patch: &Patch) -> Option<&[Gram]> {
        self.grams.get(&(v, patch.clone())).map(Vec::as_slice)
    }
}

/// Measures values of the main graph. Values that are no float tensors are left out of the result.
///
/// # Errors
/// When the engine cannot load the model, or a sample fails.
pub fn measure(
    model: &Model,
    wanted: &[(ValueId, Measure)],
    engine: &dyn Engine,
    samples: &Samples,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Stats> {
    let _ = (model, wanted, engine, samples, threads, progress);
    anyhow::bail!("not yet")
}
