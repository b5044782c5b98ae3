//! Operators that tract gets from here.
//!
//! * [`FAKE`]: QuantizeLinear followed by DequantizeLinear of the same parameters, in one step:
//!   `(clip(round(x/s) + z, lo, hi) − z)·s = clip(round(x/s), lo − z, hi − z)·s`, exactly, since all integers involved
//!   are exact in f32. tract's own pair multiplies by `1/s`, which rounds another way at ties, and its rewrite of
//!   `DequantizeLinear → Softmax → QuantizeLinear` into a lookup table is wrong; nothing is rewritten around an operator
//!   that tract does not know.
//! * [`QUANTIZE`], [`DEQUANTIZE`]: the two alone, for 8 and 16 bits, with parameters that may be computed.
//! * [`ROUND`]: float16 or bfloat16 and back: arithmetic in f32 whose results are those of the narrow type, overflow included.
//! * [`REVERSE`]: one axis backwards; makes reverse recurrences out of forward ones.
//! * ReverseSequence, which tract does not have.
//! * [`SHAPE`], [`SIZE`], [`CAST64`]: tract's own give symbolic dimensions, into which int64 constants are truncated to
//!   32 bits; these give int64.
//! * [`SQUEEZE`]: Squeeze that does not say which axes, which tract does not have.
//! * [`RESIZE`]: Resize of operator set 13 in a model of any; tract has no Upsample, and takes the nearest element of
//!   Resize of operator set 10 to be the one that is next, where ONNX Runtime rounds down as Upsample did.

use crate::math::vector::widest;
use crate::ops::half as narrow;
use tract_onnx::model::{Onnx, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// Quantize and dequantize. Inputs x, scale, zero point as float; attributes `axis`, `lo`, `hi`.
pub const FAKE: &str = "onnxzip.FakeQuantize";
/// QuantizeLinear, with attribute `code`, the ONNX type of the result.
pub const QUANTIZE: &str = "onnxzip.QuantizeLinear";
/// DequantizeLinear.
pub const DEQUANTIZE: &str = "onnxzip.DequantizeLinear";
/// Rounds to a narrow type and back; attribute `code` is the type.
pub const ROUND: &str = "onnxzip.Round";
/// Attribute `axis`.
pub const REVERSE: &str = "onnxzip.Reverse";
/// Shape as int64.
pub const SHAPE: &str = "onnxzip.Shape";
/// Size as int64.
pub const SIZE: &str = "onnxzip.Size";
/// Cast to int64.
pub const CAST64: &str = "onnxzip.Cast";
/// Without every axis of length 1.
pub const SQUEEZE: &str = "onnxzip.Squeeze";
/// Resize as of operator set 13.
pub const RESIZE: &str = "onnxzip.Resize";

/// Makes tract know them.
pub fn register(onnx: &mut Onnx) {
    let r = &mut onnx.op_register;
    r.insert(FAKE, |_, n| {
        let bound = |name| -> TractResult<f32> { Ok(n.get_attr::<i64>(name)? as f32) };
        built(n, Kind::Fake(bound("lo")?.to_bits(), bound("hi")?.to_bits()))
    });
    r.insert(QUANTIZE, |_, n| {
        let to = match n.get_attr::<i64>("code")? {
            2 => DatumType::U8,
            3 => DatumType::I8,
            4 => DatumType::U16,
            5 => DatumType::I16,
            other => bail!("quantizes to type {other}"),
        };
        built(n, Kind::Quantize(to))
    });
    r.insert(DEQUANTIZE, |_, n| built(n, Kind::Dequantize));
    r.insert(REVERSE, |_, n| built(n, Kind::Reverse));
    r.insert("ReverseSequence", |_, n| {
        let batch = n.get_attr_opt("batch_axis")?.unwrap_or(1);
        let time = n.get_attr_opt("time_axis")?.unwrap_or(0);
        let kind = Kind::Sequences(batch);
        Ok((expand(Own { kind, axis: time }), vec![]))
    });
    r.insert(ROUND, |_, n| built(n, Kind::Round(n.get_attr::<i64>("code")? == 16)));
    r.insert(SHAPE, |_: &ParsingContext, n: &NodeProto| {
        let start = n.get_attr_opt("start")?.unwrap_or(0);
        Ok((expand(Shape(start, n.get_attr_opt("end")?)), vec![]))
    });
    r.insert(SIZE, |_, _| {
        Ok((
            expand(tract_onnx::tract_hir::ops::array::Size::new(DatumType::I64)),
            vec![],
        ))
    });
    r.insert(SQUEEZE, |_, _| Ok((expand(Squeeze), vec![])));
    r.insert(CAST64, |_, n| built(n, Kind::Cast));
    r.insert(RESIZE, |cx, n| {
        let own = cx.framework.op_register.0.get("Resize").context("no Resize")?;
        let mut newer = cx.clone();
        newer.onnx_operator_set_version = 13;
        own(&newer, n)
    });
}

fn built(n: &NodeProto, kind: Kind) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let axis = n.get_attr_opt("axis")?.unwrap_or(1);
    Ok((expand(Own { kind, axis }), vec![]))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// Bits of the least and the largest integer.
    Fake(u32, u32),
    Quantize(DatumType),
    Dequantize,
    Reverse,
    /// The axis of sequences, of which the second input tells the lengths.
    Sequences(i64),
    /// To bfloat16, else to float16.
    Round(bool),
    Cast,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Own {
    kind: Kind,
    axis: i64,
}

impl Own {
    /// `f` of every element, its scale and its zero point.
    fn mapped(&self, x: &Tensor, params: &[TValue], f: impl Fn(f32, f32, f32) -> f32) -> TractResult<Tensor> {
        let grid = Grid::new(x.shape(), self.axis, params)?;
        let mut x = x.cast_to::<f32>()?.into_owned();
        let mut data = x.try_as_plain_ram_mut()?;
        let data = data.as_slice_mut::<f32>()?;
        widest!(for (i, run) in data.chunks_exact_mut(grid.inner.max(1)).enumerate() {
            let i = i % grid.scales.len();
            let (scale, zero) = (grid.scales[i], grid.zeros[i]);
            run.iter_mut().for_each(|x| *x = f(*x, scale, zero));
        });
        Ok(x)
    }
}

impl Expansion for Own {
    fn name(&self) -> StaticName {
        format!("{:?}", self.kind).into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        s.equals(&outputs[0].shape, &inputs[0].shape)?;
        match &self.kind {
            Kind::Fake(..) | Kind::Dequantize | Kind::Round(_) => {
                s.equals(&outputs[0].datum_type, f32::datum_type())?
            }
            Kind::Quantize(to) => s.equals(&outputs[0].datum_type, *to)?,
            Kind::Reverse | Kind::Sequences(_) => s.equals(&outputs[0].datum_type, &inputs[0].datum_type)?,
            Kind::Cast => s.equals(&outputs[0].datum_type, i64::datum_type())?,
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        if self.kind == Kind::Cast {
            return model.wire_node(prefix, tract_core::ops::cast::cast(DatumType::I64), inputs);
        }
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Own {
    fn name(&self) -> StaticName {
        format!("{:?}", self.kind).into()
    }
    op_as_typed_op!();
}

impl TypedOp for Own {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let dt = match &self.kind {
            Kind::Fake(..) | Kind::Dequantize | Kind::Round(_) => DatumType::F32,
            Kind::Quantize(to) => *to,
            Kind::Reverse | Kind::Sequences(_) => inputs[0].datum_type,
            Kind::Cast => DatumType::I64,
        };
        Ok(tvec!(dt.fact(inputs[0].shape.clone())))
    }
    as_op!();
}

impl EvalOp for Own {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        ensure!(!inputs.is_empty(), "no input");
        let x = inputs.remove(0);
        let out = match &self.kind {
            Kind::Fake(lo, hi) => {
                let (lo, hi) = (f32::from_bits(*lo), f32::from_bits(*hi));
                self.mapped(&x, &inputs, |x, s, z| Steps::new(s, lo - z, hi - z).nearest(x))?
            }
            Kind::Quantize(to) => {
                let (lo, hi) = bounds(*to);
                let codes = self.mapped(&x, &inputs, |x, s, z| round_within(x / s, lo - z, hi - z) + z)?;
                codes.cast_to_dt(*to)?.into_owned()
            }
            Kind::Dequantize => self.mapped(&x, &inputs, |x, s, z| (x - z) * s)?,
            Kind::Reverse => reversed(&x, self.axis)?,
            Kind::Sequences(batch) => {
                let lengths = inputs.first().context("no lengths")?.cast_to::<i64>()?;
                let lengths = lengths.try_as_plain_ram()?;
                reversed_sequences(&x, self.axis, *batch, lengths.as_slice::<i64>()?)?
            }
            Kind::Round(wide) => {
                let mut x = x.cast_to::<f32>()?.into_owned();
                let mut data = x.try_as_plain_ram_mut()?;
                let data = data.as_slice_mut::<f32>()?;
                // Two loops, each of which becomes vector instructions.
                match wide {
                    true => data.iter_mut().for_each(|x| *x = narrow::bfloat16(*x)),
                    false => data.iter_mut().for_each(|x| *x = narrow::float16(*x)),
                }
                x
            }
            Kind::Cast => x.cast_to::<i64>()?.into_owned(),
        };
        Ok(tvec!(out.into_tvalue()))
    }
}

fn bounds(dt: DatumType) -> (f32, f32) {
    match dt {
        DatumType::U8 => (0.0, 255.0),
        DatumType::I8 => (-128.0, 127.0),
        DatumType::U16 => (0.0, 65535.0),
        _ => (-32768.0, 32767.0),
    }
}

/// `x` rounded half to even, within integers `lo..=hi` of at most 17 bits. Adding 1.5·2²³ leaves no bit for a fraction,
/// and unlike `round_ties_even` it is one instruction on any processor.
#[inline(always)]
pub fn round_within(x: f32, lo: f32, hi: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    let x = if x > lo { x } else { lo };
    let x = if x < hi { x } else { hi };
    (x + SHIFT) - SHIFT
}

/// Numbers that a quantization with one scale for all knows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    scale: f32,
    /// The least and the largest, in steps.
    low: f32,
    high: f32,
}

impl Steps {
    #[inline(always)]
    fn new(scale: f32, low: f32, high: f32) -> Steps {
        Steps { scale, low, high }
    }

    /// Those of a [`FAKE`] whose parameters are one constant number each.
    ///
    /// # Errors
    /// When a constant is no number.
    pub fn of(node: &TypedNode, facts: &[&TypedFact]) -> TractResult<Option<Steps>> {
        let (Some(Own { kind, .. }), [_, params @ ..]) = (node.op_as::<Own>(), facts) else {
            return Ok(None);
        };
        let Kind::Fake(low, high) = kind else { return Ok(None) };
        let single = |f: &&TypedFact| f.konst.clone().filter(|t| t.len() == 1).map(IntoTValue::into_tvalue);
        let Some(params) = params.iter().map(single).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let Grid { scales, zeros, .. } = Grid::new(&[], 0, &params)?;
        let (low, high) = (f32::from_bits(*low) - zeros[0], f32::from_bits(*high) - zeros[0]);
        Ok(Some(Steps::new(scales[0], low, high)))
    }

    /// The nearest of them, of two the even one.
    #[inline(always)]
    pub fn nearest(self, x: f32) -> f32 {
        round_within(x / self.scale, self.low, self.high) * self.scale
    }
}

/// Which scale and zero point belong to which elements.
struct Grid {
    scales: Vec<f32>,
    zeros: Vec<f32>,
    inner: usize,
}

impl Grid {
    /// `params`: scale, and perhaps zero point; one number each, or one for every index of `axis`.
    fn new(shape: &[usize], axis: i64, params: &[TValue]) -> TractResult<Grid> {
        let floats = |t: &TValue| -> TractResult<Vec<f32>> {
            Ok(t.cast_to::<f32>()?.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
        };
        let scales = floats(params.first().context("no scale")?)?;
        let zeros = params.get(1).map_or(Ok(vec![0.0; scales.len()]), floats)?;
        ensure!(
            scales.len() == zeros.len() && !scales.is_empty(),
            "{} scales, but {} zero points",
            scales.len(),
            zeros.len()
        );
        let inner = if scales.len() == 1 {
            shape.iter().product()
        } else {
            let rank = shape.len() as i64;
            let axis = if axis < 0 { axis + rank } else { axis };
            ensure!((0..rank).contains(&axis), "axis {axis} of rank {rank}");
            ensure!(
                shape[axis as usize] == scales.len() && params[0].rank() <= 1,
                "{:?} scales for {shape:?}, axis {axis}",
                params[0].shape()
            );
            shape[axis as usize + 1..].iter().product()
        };
        Ok(Grid { scales, zeros, inner })
    }
}

fn reversed(x: &Tensor, axis: i64) -> TractResult<Tensor> {
    let axis = axis as usize;
    ensure!(
        axis < x.rank() && x.datum_type().is_copy(),
        "axis {axis} of rank {}",
        x.rank()
    );
    let length = x.shape()[axis];
    let chunk = x.shape()[axis + 1..].iter().product::<usize>() * x.datum_type().size_of();
    let mut out = x.deep_clone();
    if length * chunk == 0 {
        return Ok(out);
    }
    let from = x.as_bytes();
    for (from, to) in from
        .chunks_exact(length * chunk)
        .zip(out.as_bytes_mut().chunks_exact_mut(length * chunk))
    {
        for (from, to) in from.chunks_exact(chunk).rev().zip(to.chunks_exact_mut(chunk)) {
            to.copy_from_slice(from);
        }
    }
    Ok(out)
}

/// Of every sequence (an index of axis `batch`) its first elements along `time` backwards, as many as it is long; the others stay.
fn reversed_sequences(x: &Tensor, time: i64, batch: i64, lengths: &[i64]) -> TractResult<Tensor> {
    let dims = x.shape();
    let (Some(longest), Some(sequences)) = (dims.get(time as usize), dims.get(batch as usize)) else {
        bail!("axes {time} and {batch} of rank {}", x.rank());
    };
    let fits = |n: &i64| (0..=*longest as i64).contains(n);
    ensure!(
        time != batch && lengths.len() == *sequences && lengths.iter().all(fits) && x.datum_type().is_copy(),
        "sequences of lengths {lengths:?} in {dims:?}"
    );
    let mut out = x.deep_clone();
    let step = |axis: i64| dims[axis as usize + 1..].iter().product::<usize>();
    let (size, along, apart) = (x.datum_type().size_of(), step(time), step(batch));
    let (from, to) = (x.as_bytes(), out.as_bytes_mut());
    for (i, to) in to.chunks_exact_mut(size).enumerate() {
        let (t, length) = (i / along % longest, lengths[i / apart % sequences] as usize);
        if t < length {
            let place = (i + along * (length - 1) - 2 * along * t) * size;
            to.copy_from_slice(&from[place..place + size]);
        }
    }
    Ok(out)
}

#[derive(Debug, Clone)]
struct Shape(i64, Option<i64>);

impl Expansion for Shape {
    fn name(&self) -> StaticName {
        "Shape".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        s.equals(&outputs[0].rank, 1)?;
        s.equals(&outputs[0].datum_type, i64::datum_type())?;
        s.given(&inputs[0].shape, |s, shape| {
            if let Ok(dims) = self.of(&shape) {
                s.equals(&outputs[0].value, rctensor1(&dims))?;
            }
            Ok(())
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let dims = self.of(&model.outlet_fact(inputs[0])?.shape.to_tvec())?;
        Ok(tvec!(model.add_const(prefix, tensor1(&dims))?))
    }
}

impl Shape {
    fn of(&self, shape: &[TDim]) -> TractResult<Vec<i64>> {
        let rank = shape.len() as i64;
        let clamp = |axis: i64| (if axis < 0 { axis + rank } else { axis }).clamp(0, rank) as usize;
        let (start, end) = (clamp(self.0), self.1.map_or(shape.len(), clamp));
        shape[start..end.max(start)].iter().map(|d| Ok(d.to_i64()?)).collect()
    }
}

#[derive(Debug, Clone)]
struct Squeeze;

impl Expansion for Squeeze {
    fn name(&self) -> StaticName {
        "Squeeze".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        s.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        s.given(&inputs[0].shape, |s, shape| {
            let left: TVec<TDim> = shape.into_iter().filter(|d| *d != TDim::Val(1)).collect();
            s.equals(&outputs[0].shape, left)
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let dims = model.outlet_fact(inputs[0])?.shape.to_tvec();
        let mut wire: TVec<OutletId> = inputs.into();
        let ones = (0..dims.len()).rev().filter(|axis| dims[*axis] == TDim::Val(1));
        for axis in ones {
            wire = model.wire_node(format!("{prefix}.{axis}"), AxisOp::Rm(axis), &wire)?;
        }
        Ok(wire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_half_to_even_within_bounds() {
        for i in -70_000..70_000 {
            for x in [i as f32 * 0.5, i as f32 * 0.37] {
                assert_eq!(
                    round_within(x, -32768.0, 65535.0),
                    x.round_ties_even().clamp(-32768.0, 65535.0),
                    "{x}"
                );
            }
        }
        assert_eq!(round_within(f32::INFINITY, -5.0, 7.0), 7.0);
        assert_eq!(round_within(f32::NEG_INFINITY, -5.0, 7.0), -5.0);
    }

    #[test]
    fn sequences_are_reversed_as_far_as_they_are_long() {
        // Time, batch, two numbers each.
        let x: Vec<i32> = (0..24).collect();
        let x = Tensor::from_shape(&[4, 3, 2], &x).expect("fits");
        let got = reversed_sequences(&x, 0, 1, &[4, 1, 3]).expect("reversed");
        let want = [
            18, 19, 2, 3, 16, 17, 12, 13, 8, 9, 10, 11, 6, 7, 14, 15, 4, 5, 0, 1, 20, 21, 22, 23,
        ];
        assert_eq!(
            got.try_as_plain_ram().expect("plain").as_slice::<i32>().expect("ints"),
            want
        );
        // Batch, time.
        let got = reversed_sequences(&x, 1, 0, &[0, 1, 2, 3]).expect("reversed");
        let got = got
            .try_as_plain_ram()
            .expect("plain")
            .as_slice::<i32>()
            .expect("ints")
            .to_vec();
        assert_eq!(got[..12], (0..12).collect::<Vec<i32>>());
        assert_eq!(got[12..], [14, 15, 12, 13, 16, 17, 22, 23, 20, 21, 18, 19]);
        for wrong in [&[4, 1][..], &[5, 1, 1], &[-1, 1, 1]] {
            assert!(reversed_sequences(&x, 0, 1, wrong).is_err());
        }
        assert!(reversed_sequences(&x, 3, 1, &[1, 1, 1]).is_err());
    }
}
