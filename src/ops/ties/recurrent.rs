//! LSTM, GRU: a hidden unit is a row of every gate, a column of the recurrence, and an index of the outputs and states.
//!
//! Both directions share the length of the hidden state, so a unit has its rows in both.

use super::Slot::{In, Out};
use super::{At, Dot, Fix, Flow, Map, Row};

pub(super) const ROWS: &[(&[&str], Row)] = &[(&["LSTM", "GRU"], recurrent)];

fn recurrent(at: &At, flow: &mut Flow) -> Option<()> {
    let (w, r) = (at.full_dims(In(1))?, at.full_dims(In(2))?);
    let gates = match at.node.op.name.as_str() {
        "LSTM" => 4,
        _ => 3,
    };
    let (&[_, rows, _], &[_, _, hidden]) = (&w[..], &r[..]) else {
        return None;
    };
    if hidden == 0 || rows != gates * hidden || at.node.int_or("layout", 0) != 0 {
        return None;
    }
    let per_gate = |flow: &mut Flow, slot, axis, parts: usize| {
        let map = Map::Digits {
            total: parts * hidden,
            from: (1, parts * hidden),
            to: (1, hidden),
        };
        flow.tie((slot, axis), (In(2), 2), map);
    };
    per_gate(flow, In(1), 1, gates);
    per_gate(flow, In(2), 1, gates);
    if at.node.input(3).is_some() {
        per_gate(flow, In(3), 1, 2 * gates);
    }
    // Sequence and batch, then the states; peepholes have one row for each of three gates.
    flow.same((In(0), 2), (In(1), 2));
    let lstm = gates == 4;
    let states = [(In(5), 2), (In(6), 2), (Out(0), 3), (Out(1), 2), (Out(2), 2)];
    for (slot, axis) in states
        .into_iter()
        .filter(|(s, _)| at.value(*s).is_some() && (lstm || *s != In(6)))
    {
        flow.same((slot, axis), (In(2), 2));
    }
    if lstm && at.node.input(7).is_some() {
        per_gate(flow, In(7), 1, 3);
    }
    if at.node.output(0).is_some() {
        flow.same((In(0), 0), (Out(0), 0));
        flow.same((In(0), 1), (Out(0), 2));
    }
    flow.fixes.push(Fix::Attr {
        name: "hidden_size",
        of: (In(2), 2),
    });
    // What the gates read: the input, and the state before; the columns of the recurrence stand for the latter.
    for (data, weight) in [((0, 2), (1, 2)), ((2, 2), (2, 2))] {
        flow.dots.push(Dot {
            data,
            weight,
            row: 1,
            out: 3,
            groups: 1,
            bias: None,
            alpha: 1.0,
            beta: 0.0, // its bias is one of several inputs of a gate, and no number can be added after it
            uniform: false,
            inside: false,
        });
    }
    Some(())
}
