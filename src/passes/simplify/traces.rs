//! Stack traces of exporters: PyTorch writes into each node which lines of Python it comes from, some kilobytes for each. Documentation that
//! people have written stays.

use crate::ir::Model;
use crate::pb::StringStringEntryProto;

/// Removes them, from all nodes and graphs; gives how many bytes they took.
pub(super) fn drop(model: &mut Model) -> usize {
    let mut bytes = 0;
    for id in model.node_ids() {
        let rest = &model.node(id).rest;
        let props = rest.metadata_props.iter().any(is_trace);
        let doc = rest.doc_string().contains(".py");
        if !props && !doc {
            continue;
        }
        let rest = &mut model.node_mut(id).rest;
        if doc {
            bytes += rest.doc_string.take().map_or(0, |d| d.len());
        }
        bytes += without_traces(&mut rest.metadata_props);
    }
    for id in model.live_graphs() {
        let graph = model.graph_mut(id);
        bytes += without_traces(&mut graph.rest.metadata_props);
        for i in &mut graph.infos {
            bytes += without_traces(&mut i.info.metadata_props);
        }
    }
    bytes
}

/// What the exporter of PyTorch calls its own.
fn is_trace(p: &StringStringEntryProto) -> bool {
    p.key().starts_with("pkg.torch.")
}

fn without_traces(props: &mut Vec<StringStringEntryProto>) -> usize {
    let traces = props.iter().filter(|p| is_trace(p));
    let bytes = traces.map(|p| p.key().len() + p.value().len()).sum();
    props.retain(|p| !is_trace(p));
    bytes
}
