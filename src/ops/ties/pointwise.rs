//! Operators that work point by point, with numpy's broadcast from the right.

use super::Slot::{In, Out};
use super::{Arg, At, Flow, Law, Row};

pub(super) const ROWS: &[(&[&str], Row)] = &[
    (
        &[
            "Relu",
            "LeakyRelu",
            "Elu",
            "Selu",
            "Celu",
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Tanh",
            "Softplus",
            "Softsign",
            "Abs",
            "Neg",
            "Sqrt",
            "Exp",
            "Log",
            "Reciprocal",
            "Erf",
            "Gelu",
            "Mish",
            "Swish",
            "ThresholdedRelu",
            "Ceil",
            "Floor",
            "Round",
            "Sign",
            "Sin",
            "Cos",
            "Identity",
            "Cast",
            "CastLike",
            "Clip",
            "Shrink",
            "Not",
            "IsNaN",
            "IsInf",
        ],
        unary,
    ),
    (&["Dropout"], dropout),
    (
        &[
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Max",
            "Min",
            "Sum",
            "Mean",
            "PRelu",
            "Pow",
            "Where",
            "And",
            "Or",
            "Xor",
            "Equal",
            "Greater",
            "GreaterOrEqual",
            "Less",
            "LessOrEqual",
            "Mod",
        ],
        nary,
    ),
];

const UNKNOWN: &str = "an axis that it is combined with has an unknown length";

fn unary(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(In(0))?.len();
    (0..rank).for_each(|a| flow.same((In(0), a), (Out(0), a)));
    let f = function(at)?;
    flow.law = Some(Box::new(move |args: &[Arg]| {
        f(args.first()?.number()?).filter(|y| y.is_finite())
    }));
    Some(())
}

type Function = Box<dyn Fn(f32) -> Option<f32> + Send + Sync>;

/// The function of one number; `None` inside where only its value at zero is exact enough to rely on.
fn function(at: &At) -> Option<Function> {
    let attr = |name: &str, default: f32| at.node.float(name).unwrap_or(default);
    let zero_to_zero: Function = Box::new(|x| (x == 0.0).then_some(0.0));
    let wide = |f: fn(f64) -> f64| -> Function { Box::new(move |x| Some(f(f64::from(x)) as f32)) };
    Some(match at.node.op.name.as_str() {
        "Relu" => wide(|x| x.max(0.0)),
        "LeakyRelu" => {
            let alpha = attr("alpha", 0.01);
            Box::new(move |x| Some(if x < 0.0 { alpha * x } else { x }))
        }
        "Elu" => {
            let alpha = f64::from(attr("alpha", 1.0));
            Box::new(move |x| {
                Some(if x < 0.0 {
                    (alpha * f64::from(x).exp_m1()) as f32
                } else {
                    x
                })
            })
        }
        "Sigmoid" => wide(|x| 1.0 / (1.0 + (-x).exp())),
        "HardSigmoid" => {
            let (a, b) = (attr("alpha", 0.2), attr("beta", 0.5));
            Box::new(move |x| Some((a * x + b).clamp(0.0, 1.0)))
        }
        "HardSwish" => wide(|x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        "Tanh" => wide(f64::tanh),
        "Softplus" => wide(|x| x.max(0.0) + (-x.abs()).exp().ln_1p()),
        "Softsign" => wide(|x| x / (1.0 + x.abs())),
        "Abs" => wide(f64::abs),
        "Neg" => wide(|x| -x),
        "Sqrt" => wide(f64::sqrt),
        "Exp" => wide(f64::exp),
        "Reciprocal" => wide(f64::recip),
        "Identity" => Box::new(Some),
        "Clip" => {
            let (lo, hi) = clip_bounds(at)?;
            Box::new(move |x| (!lo.is_nan() && !hi.is_nan()).then(|| x.max(lo).min(hi)))
        }
        "Cast" if at.node.int("to") == Some(1) => Box::new(Some),
        "Selu" | "Celu" | "Erf" | "Gelu" | "Mish" | "Swish" | "Sign" | "Sin" | "Ceil" | "Floor" | "Round" | "Cast" => {
            zero_to_zero
        }
        _ => Box::new(|_| None),
    })
}

/// The bounds of a Clip; NaN stands for a computed one.
fn clip_bounds(at: &At) -> Option<(f32, f32)> {
    let bound = |name: &str, slot: usize, default: f32| match (at.node.float(name), at.node.input(slot)) {
        (Some(x), _) => Some(x),
        (None, Some(_)) => Some(at.number(slot).unwrap_or(f32::NAN)),
        (None, None) => Some(default),
    };
    let (lo, hi) = (bound("min", 1, f32::MIN)?, bound("max", 2, f32::MAX)?);
    Some((lo, hi))
}

fn dropout(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(In(0))?.len();
    for slot in [Out(0), Out(1)].into_iter().filter(|s| at.value(*s).is_some()) {
        (0..rank).for_each(|a| flow.same((In(0), a), (slot, a)));
    }
    if at.node.input(2).is_none() && at.node.output(1).is_none() {
        flow.law = Some(Box::new(|args: &[Arg]| args.first()?.number()));
    }
    Some(())
}

fn nary(at: &At, flow: &mut Flow) -> Option<()> {
    let legacy = at.node.attr("axis").is_some() || at.node.attr("broadcast").is_some();
    if legacy {
        return None;
    }
    let out = at.dims(Out(0))?;
    for i in 0..at.node.inputs().len() {
        let d = at.dims(In(i))?;
        let shift = out.len().checked_sub(d.len())?;
        for (a, n) in d.iter().enumerate() {
            let to = a + shift;
            match (n, out[to]) {
                (Some(1), _) | (None, None) => {}
                (Some(n), Some(m)) if *n == m => flow.same((In(i), a), (Out(0), to)),
                _ => {
                    flow.stop((In(i), a), UNKNOWN);
                    flow.stop((Out(0), to), UNKNOWN);
                }
            }
        }
    }
    flow.law = law(&at.node.op.name);
    Some(())
}

/// The combinations of constants that give a constant. Numbers are taken to be finite: 0 · x = 0.
fn law(op: &str) -> Option<Law> {
    fn all(args: &[Arg]) -> Option<Vec<f32>> {
        args.iter().map(|a| a.number()).collect()
    }
    fn two(args: &[Arg], f: impl Fn(f32, f32) -> f32) -> Option<f32> {
        let [a, b] = all(args)?[..] else { return None };
        Some(f(a, b)).filter(|y| y.is_finite())
    }
    Some(match op {
        "Add" | "Sum" => Box::new(|a| all(a).map(|x| x.iter().sum())),
        "Mean" => Box::new(|a| all(a).map(|x| x.iter().sum::<f32>() / x.len() as f32)),
        "Sub" => Box::new(|a| two(a, |x, y| x - y)),
        "Div" => Box::new(|a| two(a, |x, y| x / y)),
        "Mul" => Box::new(|a| match a.iter().any(|x| x.number() == Some(0.0)) {
            true => Some(0.0),
            false => two(a, |x, y| x * y),
        }),
        "Max" => Box::new(|a| all(a)?.into_iter().reduce(f32::max)),
        "Min" => Box::new(|a| all(a)?.into_iter().reduce(f32::min)),
        "PRelu" => Box::new(|a| match a.first()?.number()? {
            x if x >= 0.0 => Some(x),
            x => a.get(1)?.number().map(|s| s * x),
        }),
        "Where" => Box::new(|a| match (a.get(1)?.number()?, a.get(2)?.number()?) {
            (x, y) if x == y => Some(x),
            _ => None,
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_times_anything_is_zero_and_a_sum_needs_all_its_parts() {
        let (zero, any, two) = (Arg::Tied(Some(0.0)), Arg::Tied(None), Arg::Loose(Some(2.0)));
        let of = |op: &str, args: &[Arg]| law(op).and_then(|f| f(args));
        assert_eq!(of("Mul", &[zero, any]), Some(0.0));
        assert_eq!(of("Mul", &[two, any]), None);
        assert_eq!(of("Add", &[zero, any]), None);
        assert_eq!(of("Add", &[zero, two]), Some(2.0));
        assert_eq!(of("Div", &[two, zero]), None);
        assert_eq!(of("Where", &[any, zero, two]), None);
        assert_eq!(of("PRelu", &[two, any]), Some(2.0));
        assert_eq!(of("Equal", &[two, two]), None);
    }
}
