//! Contractions and normalizations: Conv, ConvTranspose, Gemm, MatMul, BatchNormalization, ….

use super::Slot::{In, Out};
use super::{Arg, At, Dot, Fix, Flow, Map, Row};

pub(super) const ROWS: &[(&[&str], Row)] = &[
    (&["Conv"], conv),
    (&["ConvTranspose"], conv_transpose),
    (&["Gemm"], gemm),
    (&["MatMul"], matmul),
    (&["BatchNormalization"], batch_norm),
    (&["InstanceNormalization"], instance_norm),
    (&["LayerNormalization", "RMSNormalization"], layer_norm),
    (&["Softmax", "LogSoftmax", "Hardmax"], softmax),
    (&["MaxPool", "AveragePool", "LpPool"], pool),
    (&["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"], global_pool),
    (
        &[
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceSum",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
        ],
        reduce,
    ),
];

const WINDOW: &str = "windows run over this axis";
const NORM: &str = "statistics are taken over this axis";
const SUMMED: &str = "it is reduced over this axis";

/// The batch axis of the first input and output.
fn batch(flow: &mut Flow) {
    flow.same((In(0), 0), (Out(0), 0));
}

fn stop_spatial(flow: &mut Flow, rank: usize) {
    for a in 2..rank {
        flow.stop((In(0), a), WINDOW);
        flow.stop((Out(0), a), WINDOW);
    }
}

/// True when no window reaches over the border.
fn unpadded(at: &At) -> bool {
    let zero = at.node.ints("pads").is_none_or(|p| p.iter().all(|&x| x == 0));
    let auto = at.node.string("auto_pad").unwrap_or("NOTSET");
    matches!(auto, "VALID") || (auto == "NOTSET" && zero)
}

fn groups(at: &At) -> Option<usize> {
    usize::try_from(at.node.int_or("group", 1)).ok().filter(|g| *g > 0)
}

fn conv(at: &At, flow: &mut Flow) -> Option<()> {
    let w = at.full_dims(In(1))?;
    let (&[out, per_group], g) = (w.get(..2)?, groups(at)?) else {
        return None;
    };
    let channels = per_group.checked_mul(g)?;
    if w.len() < 3 || out == 0 || out % g != 0 {
        return None;
    }
    batch(flow);
    stop_spatial(flow, w.len());
    flow.same((In(1), 0), (Out(0), 1));
    if at.node.input(2).is_some() {
        flow.same((In(2), 0), (Out(0), 1));
    }
    let depthwise = g > 1 && per_group == 1;
    if depthwise {
        let map = Map::Digits {
            total: out,
            from: (out / g, g),
            to: (1, out),
        };
        flow.tie((In(0), 1), (Out(0), 1), map);
        flow.fixes.push(Fix::Attr {
            name: "group",
            of: (In(0), 1),
        });
    } else {
        spread_over_groups(flow, (channels, out), g);
    }
    flow.dots.push(Dot {
        data: (0, 1),
        weight: (1, 1),
        row: 0,
        out: 1,
        groups: g,
        bias: Some(2),
        alpha: 1.0,
        beta: 1.0,
        uniform: unpadded(at),
        inside: depthwise,
    });
    Some(())
}

/// Every group must lose as many channels as every other: the same index in all groups is one channel.
fn spread_over_groups(flow: &mut Flow, (channels, out): (usize, usize), g: usize) {
    let map = Map::Digits {
        total: channels,
        from: (1, channels / g),
        to: (1, channels),
    };
    flow.tie((In(1), 1), (In(0), 1), map);
    if g > 1 {
        let map = Map::Digits {
            total: out,
            from: (1, out / g),
            to: (1, out),
        };
        flow.tie((Out(0), 1), (Out(0), 1), map);
    }
}

fn conv_transpose(at: &At, flow: &mut Flow) -> Option<()> {
    let w = at.full_dims(In(1))?;
    let (&[channels, per_group], g) = (w.get(..2)?, groups(at)?) else {
        return None;
    };
    if w.len() < 3 || (g > 1 && g != channels) {
        return None;
    }
    batch(flow);
    stop_spatial(flow, w.len());
    flow.same((In(1), 0), (In(0), 1));
    if at.node.input(2).is_some() {
        flow.same((In(2), 0), (Out(0), 1));
    }
    if g > 1 {
        let out = per_group.checked_mul(g)?;
        let map = Map::Digits {
            total: out,
            from: (per_group, g),
            to: (1, out),
        };
        flow.tie((In(0), 1), (Out(0), 1), map);
        flow.fixes.push(Fix::Attr {
            name: "group",
            of: (In(0), 1),
        });
        return Some(());
    }
    flow.same((In(1), 1), (Out(0), 1));
    flow.dots.push(Dot {
        data: (0, 1),
        weight: (1, 0),
        row: 1,
        out: 1,
        groups: 1,
        bias: Some(2),
        alpha: 1.0,
        beta: 1.0,
        uniform: false, // taps overlap unevenly: at the border always, elsewhere by the strides
        inside: false,
    });
    Some(())
}

fn gemm(at: &At, flow: &mut Flow) -> Option<()> {
    let (ta, tb) = (at.node.int_or("transA", 0) != 0, at.node.int_or("transB", 0) != 0);
    if at.dims(In(0))?.len() != 2 || at.dims(In(1))?.len() != 2 {
        return None;
    }
    let (m, ka) = if ta { (1, 0) } else { (0, 1) };
    let (kb, n) = if tb { (1, 0) } else { (0, 1) };
    flow.same((In(0), m), (Out(0), 0));
    flow.same((In(0), ka), (In(1), kb));
    flow.same((In(1), n), (Out(0), 1));
    if at.node.input(2).is_some() {
        let c = at.dims(In(2))?;
        for (a, d) in c.iter().enumerate() {
            let to = (a + 2).checked_sub(c.len())?;
            if *d != Some(1) {
                flow.same((In(2), a), (Out(0), to));
            }
        }
    }
    let (alpha, beta) = (
        at.node.float("alpha").unwrap_or(1.0),
        at.node.float("beta").unwrap_or(1.0),
    );
    flow.dots.push(Dot {
        data: (0, ka),
        weight: (1, kb),
        row: n,
        out: 1,
        groups: 1,
        bias: Some(2),
        alpha,
        beta,
        uniform: true,
        inside: false,
    });
    Some(())
}

fn matmul(at: &At, flow: &mut Flow) -> Option<()> {
    let (a, b) = (at.dims(In(0))?, at.dims(In(1))?);
    let (ra, rb) = (a.len(), b.len());
    let r = ra.max(rb);
    if ra < 2 || rb < 2 {
        return None;
    }
    flow.same((In(0), ra - 1), (In(1), rb - 2));
    flow.same((In(0), ra - 2), (Out(0), r - 2));
    flow.same((In(1), rb - 1), (Out(0), r - 1));
    for (slot, d) in [(In(0), &a), (In(1), &b)] {
        for axis in 0..d.len() - 2 {
            if d[axis] != Some(1) {
                flow.same((slot, axis), (Out(0), axis + r - d.len()));
            }
        }
    }
    let dot = |data, weight, row, out, flat: bool| Dot {
        data,
        weight,
        row,
        out,
        groups: 1,
        bias: None,
        alpha: 1.0,
        beta: 1.0,
        uniform: flat, // a stack of matrices adds another number for each of them
        inside: false,
    };
    flow.dots.push(dot((0, ra - 1), (1, rb - 2), rb - 1, r - 1, rb == 2));
    flow.dots.push(dot((1, rb - 2), (0, ra - 1), ra - 2, r - 2, ra == 2));
    Some(())
}

/// Per-channel parameters at inputs 1.. of length C, everything else point by point.
fn per_channel(at: &At, flow: &mut Flow, params: std::ops::Range<usize>) -> Option<usize> {
    let rank = at.dims(In(0))?.len();
    if rank < 2 {
        return None;
    }
    for i in params {
        at.node.input(i)?;
        flow.same((In(i), 0), (Out(0), 1));
    }
    Some(rank)
}

fn batch_norm(at: &At, flow: &mut Flow) -> Option<()> {
    let one_output = at.node.outputs().iter().skip(1).all(Option::is_none);
    if !one_output || at.node.int_or("training_mode", 0) != 0 || at.node.int_or("spatial", 1) != 1 {
        return None;
    }
    let rank = per_channel(at, flow, 1..5)?;
    (0..rank).for_each(|a| flow.same((In(0), a), (Out(0), a)));
    let epsilon = at.node.float("epsilon").unwrap_or(1e-5);
    flow.law = Some(Box::new(move |args: &[Arg]| {
        let n = |i: usize| args.get(i).and_then(|a| a.number());
        let (scale, shift) = (n(1)?, n(2)?);
        if scale == 0.0 {
            return Some(shift);
        }
        let root = (f64::from(n(4)?) + f64::from(epsilon)).sqrt();
        let y = f64::from(scale) * (f64::from(n(0)?) - f64::from(n(3)?)) / root + f64::from(shift);
        Some(y as f32)
    }));
    Some(())
}

fn instance_norm(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = per_channel(at, flow, 1..3)?;
    batch(flow);
    flow.same((In(0), 1), (Out(0), 1));
    stop_spatial(flow, rank);
    flow.law = Some(Box::new(|args: &[Arg]| {
        let n = |i: usize| args.get(i).and_then(|a| a.number());
        let constant_or_scaled_away = n(0).is_some() || n(1) == Some(0.0);
        n(2).filter(|_| constant_or_scaled_away)
    }));
    Some(())
}

/// Axes below `first` pass through, the others keep their length.
fn stop_from(flow: &mut Flow, first: usize, rank: usize, why: &'static str) {
    for a in 0..rank {
        match a < first {
            true => flow.same((In(0), a), (Out(0), a)),
            false => {
                flow.stop((In(0), a), why);
                flow.stop((Out(0), a), why);
            }
        }
    }
}

fn layer_norm(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(In(0))?.len();
    let first = at.axis(at.node.int_or("axis", -1), rank)?;
    stop_from(flow, first, rank, NORM);
    for slot in at.slots() {
        if !matches!(slot, In(0) | Out(0)) {
            flow.stop_slot(slot, NORM);
        }
    }
    Some(())
}

fn softmax(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(In(0))?.len();
    if at.opset() < 13 {
        let first = at.axis(at.node.int_or("axis", 1), rank.max(2))?;
        stop_from(flow, first, rank, NORM);
        return Some(());
    }
    let axis = at.axis(at.node.int_or("axis", -1), rank)?;
    for a in (0..rank).filter(|a| *a != axis) {
        flow.same((In(0), a), (Out(0), a));
    }
    flow.stop((In(0), axis), NORM);
    flow.stop((Out(0), axis), NORM);
    Some(())
}

fn pool(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(In(0))?.len();
    if rank < 3 || at.node.output(1).is_some() {
        return None;
    }
    batch(flow);
    flow.same((In(0), 1), (Out(0), 1));
    stop_spatial(flow, rank);
    let only_zero = match at.node.op.name.as_str() {
        "MaxPool" => false,
        "AveragePool" => !unpadded(at) || at.node.int_or("ceil_mode", 0) != 0,
        _ => true,
    };
    flow.law = Some(constant_stays(only_zero));
    Some(())
}

/// A constant comes out as it goes in; or only zero does.
fn constant_stays(only_zero: bool) -> super::Law {
    Box::new(move |args: &[Arg]| args.first()?.number().filter(|x| !only_zero || *x == 0.0))
}

fn global_pool(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(In(0))?.len();
    batch(flow);
    flow.same((In(0), 1), (Out(0), 1));
    (2..rank).for_each(|a| flow.stop((In(0), a), SUMMED));
    flow.law = Some(constant_stays(at.node.op.name == "GlobalLpPool"));
    Some(())
}

fn reduce(at: &At, flow: &mut Flow) -> Option<()> {
    let rank = at.dims(In(0))?.len();
    let axes = match at.axes(1, rank)? {
        Some(a) if !a.is_empty() => a,
        _ if at.node.int_or("noop_with_empty_axes", 0) != 0 => return None,
        _ => (0..rank).collect(),
    };
    let keep = at.node.int_or("keepdims", 1) != 0;
    let mut to = 0;
    for a in 0..rank {
        match axes.contains(&a) {
            true => {
                flow.stop((In(0), a), SUMMED);
                to += usize::from(keep);
            }
            false => {
                flow.same((In(0), a), (Out(0), to));
                to += 1;
            }
        }
    }
    let only_zero = !matches!(at.node.op.name.as_str(), "ReduceMean" | "ReduceMax" | "ReduceMin");
    flow.law = Some(constant_stays(only_zero));
    Some(())
}
