//! Weights and activations in float16 or bfloat16.
//!
//! The flow: what every value's type is (`ops::types`), which operators stay in float32 and why (`decide`), then new weights and the
//! Casts between the two regions (`apply`). With `only=weights` activations stay as they are (`stored`).
//!
//! Does nothing to a model that is quantized already: its scales are part of what its integers mean; with `only=weights` it
//! stores what is left in float32. Costs one run over the calibration samples, for the ranges of all values.

mod apply;
mod decide;
mod stored;

use super::{Context, Names, NoteKind, Opt, Options, Part, Pass, PassInfo};
use crate::ir::{DType, Model, NodeId, Tensor};
use crate::math::narrow;
use crate::passes::opset::raise_opset;
use anyhow::Result;
use std::collections::BTreeMap;

/// The pass's row in the table.
pub const INFO: PassInfo = PassInfo {
    name: "fp16",
    summary: "weights and activations in float16 or bfloat16, float32 where that would overflow",
    doc: include_str!("doc.md"),
    lossy: true,
    part: Part::Precision {
        ways: &["fp16(only=weights)"],
        error: None,
    },
    options: OPTIONS,
    build: |o| Ok(Box::new(build(o)?)),
};

const OPTIONS: &[Opt] = &[
    Opt {
        name: "type",
        default: "float16",
        values: "float16|bfloat16",
        doc: "the type",
    },
    Opt {
        name: "only",
        default: "all",
        values: "all|weights",
        doc: "weights: store weights in it and compute in float32",
    },
    Opt {
        name: "keep_io",
        default: "on",
        values: "on|off",
        doc: "inputs and outputs of the graph stay float32",
    },
    Opt {
        name: "min",
        default: "1024",
        values: "a number of elements",
        doc: "with only=weights, smaller weights stay as they are; biases err most by it, and are few",
    },
    Opt {
        name: "block",
        default: "",
        values: "names of nodes, `*` and `?` as wildcards, separated by `;`",
        doc: "nodes that stay in float32",
    },
];

/// The narrow type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half(DType);

impl Half {
    /// The type.
    pub fn dtype(self) -> DType {
        self.0
    }

    /// As it is spelled in names.
    pub fn name(self) -> &'static str {
        if self.wide() { "bfloat16" } else { "float16" }
    }

    /// As many exponents as float32.
    pub fn wide(self) -> bool {
        self.0 == DType::Bfloat16
    }

    /// Half of the largest number: data that were not seen may be larger than those that were.
    pub fn most(self) -> f32 {
        if self.wide() { 1.69e38 } else { 32_752.0 }
    }

    /// Above this not every whole number has a code.
    pub fn whole(self) -> f32 {
        if self.wide() { 256.0 } else { 2048.0 }
    }

    /// The nearest number, as float32.
    pub fn round(self, x: f32) -> f32 {
        match self.wide() {
            true => narrow::bfloat16(x),
            false => narrow::float16(x),
        }
    }

    /// The tensor in the type; `None` when it is not float32.
    pub fn tensor(self, t: &Tensor) -> Option<Tensor> {
        let floats = t.floats()?;
        Some(match self.wide() {
            true => Tensor::new(t.dims(), floats.iter().map(|&x| half::bf16::from_f32(x)).collect()),
            false => Tensor::new(t.dims(), floats.iter().map(|&x| half::f16::from_f32(x)).collect()),
        })
    }

    /// Why a constant cannot be stored in it.
    pub fn refuses(self, floats: &[f32]) -> Option<String> {
        /// Error over signal: 40 dB; float16 leaves some 70.
        const MOST: f64 = 1e-4;
        /// Constants of so few elements are no weights: each of them counts.
        const FEW: usize = 16;
        let beyond = floats
            .iter()
            .filter(|x| x.is_finite() && !self.round(**x).is_finite())
            .count();
        if beyond > 0 {
            let largest = floats
                .iter()
                .filter(|x| x.is_finite())
                .fold(0f32, |m, x| m.max(x.abs()));
            return Some(format!(
                "{beyond} of its elements are beyond what {} holds (up to {largest:.3e})",
                self.name()
            ));
        }
        let small = |x: f32| x != 0.0 && !self.wide() && x.abs() < LEAST;
        if floats.len() <= FEW
            && let Some(x) = floats.iter().find(|x| small(**x))
        {
            return Some(format!("{x:.1e} is too small for {}", self.name()));
        }
        let (mut signal, mut noise) = (0f64, 0f64);
        for &x in floats.iter().filter(|x| x.is_finite()) {
            signal += f64::from(x).powi(2);
            noise += f64::from(x - self.round(x)).powi(2);
        }
        (noise > MOST * signal).then(|| {
            let lost = floats.iter().filter(|x| **x != 0.0 && self.round(**x) == 0.0).count();
            let db = 10.0 * (signal / noise).log10();
            format!(
                "it would have {db:.1} dB in {}; {lost} of its {} elements would become zero",
                self.name(),
                floats.len()
            )
        })
    }
}

/// The least number that float16 holds with all its bits.
pub const LEAST: f32 = 6.103_515_6e-5;

/// How the pass is asked for this type.
pub fn of(half: DType) -> &'static str {
    match half {
        DType::Bfloat16 => "fp16(type=bfloat16)",
        _ => "fp16",
    }
}

/// Stores float32 weights in float16 with a Cast behind each, as `fp16(only=weights)` does, but those of nodes with these names; false when there is none.
///
/// # Errors
/// When a constant is not what it was.
pub(super) fn store(model: &mut Model, skip: &Names, cx: &mut Context) -> Result<bool> {
    let min = Options::defaults(&INFO).get("min")?;
    stored::store(model, Half(DType::Float16), min, skip, cx)
}

struct Fp16 {
    half: Half,
    weights: bool,
    keep_io: bool,
    min: usize,
    block: Names,
}

fn build(o: &Options) -> Result<Fp16> {
    Ok(Fp16 {
        half: Half(if o.text("type") == "bfloat16" {
            DType::Bfloat16
        } else {
            DType::Float16
        }),
        weights: o.text("only") == "weights",
        keep_io: o.text("keep_io") == "on",
        min: o.get("min")?,
        block: Names::of(o, "block"),
    })
}

impl Pass for Fp16 {
    fn run(&self, model: &mut Model, cx: &mut Context) -> Result<()> {
        if !self.weights && cx.is_quantized(model) {
            return Ok(());
        }
        let mut work = model.clone();
        if let Err(why) = self.raise(&mut work) {
            let what = format!(
                "left as it is: {} needs a newer operator set, and {why:#}",
                self.half.name()
            );
            cx.leave(what);
            return Ok(());
        }
        let changed = match self.weights {
            true => stored::store(&mut work, self.half, self.min, &self.block, cx)?,
            false => self.compute(&mut work, cx)?,
        };
        if changed {
            *model = work;
        } else if cx.notes.is_empty() {
            cx.leave("there is nothing in float32");
        }
        Ok(())
    }
}

impl Fp16 {
    /// Raises the operator set as far as is needed. Initializers that callers could override become plain ones.
    fn raise(&self, model: &mut Model) -> Result<()> {
        let wanted = match (self.half.wide(), self.weights) {
            (true, false) => 22,
            (true, true) => 13,
            (false, _) => 7,
        };
        if model.opset("") < wanted {
            raise_opset(model, wanted)?;
        }
        // Weights have to be inputs below version 4, and inputs would change their types.
        model.raise_ir(4);
        Ok(())
    }

    fn compute(&self, model: &mut Model, cx: &mut Context) -> Result<bool> {
        let before = model.clone();
        let mut plan = decide::Plan::new(&before, self.half, self.keep_io)?;
        plan.block(
            |node| self.block.has(&before.label(node)),
            "left in float32 as asked (block)",
        );
        plan.block(
            |node| decide::crashes(&before, node),
            "stays in float32: ONNX Runtime 1.31 and 1.32 crash where it is joined with the MatMul behind it in float16",
        );
        plan.constants();
        let wanted = plan.ranges_wanted();
        if !wanted.is_empty() {
            match cx.stats(&before, &wanted) {
                Ok(stats) => plan.ranges(&stats),
                Err(e) => cx.warn(format!(
                    "fp16: ranges are not known, so nothing says what overflows: {e:#}"
                )),
            }
        }
        plan.settle();
        for (node, why) in &plan.stays {
            cx.skip(model, *node, why);
        }
        let half = plan.half_nodes();
        if half.is_empty() {
            return Ok(false);
        }
        let made = apply::apply(model, &plan)?;
        let what = format!(
            "{} of {} operators with floats in {}, {} Casts at the borders",
            half.len(),
            plan.count(),
            self.half.name(),
            made.casts
        );
        cx.note(NoteKind::Did, String::new(), what);
        report_small(cx, &made.flushed);
        Ok(true)
    }
}

/// Names weights of which elements became zero.
fn report_small(cx: &mut Context, flushed: &BTreeMap<String, (usize, usize)>) {
    for (name, (lost, all)) in flushed {
        let what = format!("{lost} of {all} elements are too small and became zero");
        cx.note(NoteKind::Did, name.clone(), what);
    }
}

/// Why each node stays in float32.
pub type Stays = BTreeMap<NodeId, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_float16_cannot_hold_is_refused() {
        let f16 = Half(DType::Float16);
        assert!(f16.refuses(&[1.0, 2.0, 0.0]).is_none());
        assert!(f16.refuses(&[1e-12]).is_some());
        assert!(f16.refuses(&[-3.4e38, 1.0]).is_some());
        assert!(f16.refuses(&[f32::NEG_INFINITY, f32::NAN, 0.5]).is_none());
        assert!(f16.refuses(&vec![1e-7; 100]).is_some(), "13 % off");
        assert!(f16.refuses(&[vec![1e-9; 100], vec![1.0; 100]].concat()).is_none());
        let bf16 = Half(DType::Bfloat16);
        assert!(bf16.refuses(&[1e-12, -3.3e38]).is_none());
        assert!(bf16.refuses(&[f32::MAX]).is_some());
    }
}
