//! Names that nobody outside has to know become short, and what no runtime reads is left out: in a net of few weights they are
//! up to a third of the file.
//!
//! Inputs and outputs keep their names, nodes that hold weights theirs, and functions all; metadata of the model stay.

use crate::ir::{GraphId, Model, Origin, Value, ValueId};
use std::collections::HashSet;

/// Nodes that hold weights: their names stand in reports and profiles.
const LAYERS: &[&str] = &["Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"];

/// The same model with short names inside, without documentation, metadata of nodes, and declared types of inner values (where ONNX's own operators tell them).
pub fn stripped(model: &Model) -> Model {
    let mut model = model.clone();
    let own = |g: &GraphId| model.graph(*g).function.is_none();
    let graphs: HashSet<GraphId> = model.live_graphs().into_iter().filter(own).collect();
    let plain = model.nodes().all(|(_, n)| n.op.domain.is_empty());
    let mut short = Names::new(&model, &graphs);
    let inner = |v: &Value| graphs.contains(&v.graph()) && v.origin() != Origin::Input && !v.is_output();
    let values = model.values().filter(|(_, v)| inner(v));
    let values: Vec<ValueId> = values.map(|(id, _)| id).collect();
    for id in values {
        let name = short.next();
        // What is shorter already stays.
        if name.len() < model.value(id).name.len() {
            model.rename(id, name);
        }
    }
    for g in graphs {
        let graph = model.graph_mut(g);
        graph.infos.retain(|_| !plain);
        graph.rest.doc_string = None;
        for node in graph.nodes().to_vec() {
            let n = model.node_mut(node);
            let layer = LAYERS.contains(&n.op.name.as_str());
            n.rest.name = n.rest.name.take().filter(|_| layer);
            n.rest.doc_string = None;
            n.rest.metadata_props.clear();
        }
    }
    model
}

/// Names of one letter, of two, and so on.
struct Names {
    count: usize,
    /// Those that somebody has.
    taken: HashSet<String>,
}

impl Names {
    /// The names of all values, public or not: one that stays must not be given to another.
    fn new(model: &Model, graphs: &HashSet<GraphId>) -> Names {
        let ports = graphs.iter().flat_map(|g| {
            let graph = model.graph(*g);
            graph.inputs().iter().chain(graph.outputs())
        });
        let ports = ports.map(|p| p.name().to_owned());
        let values = model.values().map(|(_, v)| v.name.clone());
        Names {
            count: 0,
            taken: ports.chain(values).collect(),
        }
    }

    fn next(&mut self) -> String {
        loop {
            let name = letters(self.count);
            self.count += 1;
            if !self.taken.contains(&name) {
                return name;
            }
        }
    }
}

/// `a`, `b`, … `z`, `A`, … `Z`, `aa`, `ba`, …
fn letters(mut n: usize) -> String {
    let mut name = String::new();
    loop {
        let at = (n % 52) as u8;
        name.push(char::from(if at < 26 { b'a' + at } else { b'A' + at - 26 }));
        n /= 52;
        if n == 0 {
            return name;
        }
        n -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_names_are_the_same() {
        let all: HashSet<String> = (0..6000).map(letters).collect();
        assert_eq!(all.len(), 6000);
        assert_eq!([0, 25, 26, 51, 52, 53].map(letters), ["a", "z", "A", "Z", "aa", "ba"]);
    }
}
