//! What can be learned of a model: measured on data, or read off the graph.

pub mod chosen;
pub mod cost;
pub mod ends;
pub mod groups;
pub mod legal;
pub mod parts;
pub mod readers;
pub mod sites;
pub mod stats;
