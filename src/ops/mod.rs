//! What is known of operators. `match` on operator names happens only in this room.
//!
//! Each facet is a table of its own, so that an operator may be known to one pass and unknown to another; what is not in
//! a table is left alone by whoever asks.

pub mod quant;
pub mod site;
