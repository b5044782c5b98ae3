//! Type and shape inference, operator by operator (ONNX operator specification, opsets 1 to 25).
//!
//! One file per family of operators; each gives a table of `(name, rule)`. An operator that is in no table gives unknown
//! facts, never an error. An `Err` means that the file is certainly illegal (dimensions that cannot fit), so a rule says
//! it only when the numbers are known. All arithmetic on numbers of the file is checked.

mod attention;
mod call;
mod concat;
mod control;
mod conv;
mod elementwise;
mod fact;
mod gather;
mod matmul;
mod misc;
mod norm;
mod pool;
mod quant;
mod recurrent;
mod reduce;
mod resize;
mod shape;
mod slice;
#[cfg(test)]
mod testing;
mod values;

pub use call::{Call, axes_of, axis_of};
pub use control::Bodies;
pub use fact::{Dim, Elem, Fact, MAX_ELEMS, broadcast_dims, known, product, show};
pub(super) use matmul::{ELLIPSIS, equation, labels};

use anyhow::Result;

/// Gives the facts of the outputs, in order; missing ones are unknown.
pub type Infer = fn(&Call) -> Result<Vec<Fact>>;
/// The same for operators with sub-graphs.
pub type InferBodies = fn(&Call, &mut dyn Bodies) -> Result<Vec<Fact>>;

type Table = &'static [(&'static str, Infer)];

/// The tables of the default domain. A name is in one of them only.
const DEFAULT: &[Table] = &[
    attention::TABLE,
    concat::TABLE,
    conv::TABLE,
    elementwise::TABLE,
    gather::TABLE,
    matmul::TABLE,
    misc::TABLE,
    norm::TABLE,
    pool::TABLE,
    quant::TABLE,
    recurrent::TABLE,
    reduce::TABLE,
    resize::TABLE,
    shape::TABLE,
    slice::TABLE,
];

/// The tables of `com.microsoft`.
const MICROSOFT: &[Table] = &[
    attention::MICROSOFT,
    conv::MICROSOFT,
    matmul::MICROSOFT,
    norm::MICROSOFT,
    quant::MICROSOFT,
];

/// How to infer an operator.
#[derive(Clone, Copy)]
pub enum Rule {
    /// From the facts of its inputs.
    Plain(Infer),
    /// From its sub-graphs as well.
    Bodies(InferBodies),
}

/// The rule of an operator, if it is known.
pub fn rule(domain: &str, name: &str) -> Option<Rule> {
    let tables = match domain {
        "" => DEFAULT,
        "com.microsoft" => MICROSOFT,
        _ => return None,
    };
    if domain.is_empty()
        && let Some((_, f)) = control::TABLE.iter().find(|(n, _)| *n == name)
    {
        return Some(Rule::Bodies(*f));
    }
    let mut all = tables.iter().flat_map(|t| t.iter());
    all.find(|(n, _)| *n == name).map(|(_, f)| Rule::Plain(*f))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn an_operator_stands_in_one_table_only() {
        for tables in [DEFAULT, MICROSOFT] {
            let mut seen = BTreeSet::new();
            for (name, _) in tables.iter().flat_map(|t| t.iter()) {
                assert!(seen.insert(name), "{name} is there twice");
            }
        }
    }

    #[test]
    fn what_is_in_no_table_has_no_rule() {
        assert!(rule("", "NoSuchOperator").is_none());
        assert!(rule("my.domain", "Conv").is_none());
        assert!(matches!(rule("", "If"), Some(Rule::Bodies(_))));
    }
}
