//! The numbers: slices and ndarray views in, numbers out. Imports nothing of the crate; `faer` does the heavy work inside.
//!
//! Every result here is the same bit for bit whatever the number of threads: work is cut into blocks whose size depends
//! on the shapes alone, each block is computed sequentially, and sums run in a fixed order.

/// Quantization parameters and codes with the numerics of ONNX Runtime.
pub mod affine;
mod block;
/// Weights with a scale per channel, search for that scale, int32 biases.
pub mod channel;
/// Removing inputs of a linear map, the others taking over.
pub mod channels;
mod cholesky;
/// How far a result is from its reference: largest difference, SQNR, cosine.
pub mod compare;
/// Products, eigenvalues, SVD, randomized range, damped Cholesky solve.
pub mod decompose;
/// Systems with a second moment from few rows.
pub mod few;
/// First and second moments of a stream of rows.
pub mod gram;
/// Scales and zero points for blocks of weights.
pub mod grid;
/// A hash of a number, for choices that are spread out.
pub mod hash;
/// Streaming histogram over an unknown range, in bounded memory.
pub mod histogram;
/// A convolution kernel as a chain of smaller ones, under the second moment of its windows.
pub mod kernel;
/// The best map of a given rank under the second moment of its input.
pub mod lowrank;
/// How many decisions a noise is expected to change.
pub mod margins;
/// What errors of outputs count, by what reads them next.
pub mod metric;
/// Rounding to float16 and bfloat16.
pub mod narrow;
/// Which range to quantize, chosen from a histogram: percentile, least squares, KL divergence.
pub mod ranges;
pub mod resample;
/// Rounding of weights so that errors cancel under the second moment of the input.
pub mod rounding;
mod scale;
/// A covariance from few samples, shrunk towards its diagonal.
pub mod shrink;
/// Which weights become zero, and what the others take over.
pub mod sparse;
/// Histograms of samples, kept apart by their peaks.
pub mod spread;
/// The strongest directions of a large layer's output.
pub mod subspace;
/// A table with a scale per column, row by row.
pub mod table;
/// Quantiles of times, and their ratio with its confidence interval.
pub mod timing;
/// How much values change from sample to sample.
pub mod variation;
/// Loops compiled for the vector instructions of the machine that runs them.
pub mod vector;
