//! Recurrent layers.

use super::Table;
use super::call::{Call, agree};
use super::fact::{Dim, Fact};
use anyhow::{Result, ensure};

pub(super) const TABLE: Table = &[
    ("GRU", |c| recurrent(c, 3)),
    ("LSTM", |c| recurrent(c, 4)),
    ("RNN", |c| recurrent(c, 1)),
];

/// X: [T, B, I] (`layout` 1: [B, T, I]), W: [D, gates·H, I], R: [D, gates·H, H] → Y: [T, D, B, H] ([B, T, D, H]),
/// Y_h, Y_c: [D, B, H] ([B, D, H]).
fn recurrent(c: &Call, gates: usize) -> Result<Vec<Fact>> {
    for i in 0..3 {
        c.want_rank(i, 3)?;
    }
    let dim = |i: usize, axis: usize| c.shape(i).map_or(Dim::Unknown, |s| s[axis].clone());
    agree(&dim(0, 2), &dim(1, 2), "features of the input and columns of W")?;
    let given = c.node.int("hidden_size");
    let hidden = given
        .and_then(|h| usize::try_from(h).ok())
        .map_or(Dim::Unknown, Dim::Known);
    let hidden = hidden.and(&dim(2, 2));
    let rows = hidden.map(|h| h.checked_mul(gates));
    agree(&dim(1, 1), &rows, "rows of W")?;
    agree(&dim(2, 1), &rows, "rows of R")?;
    agree(&dim(2, 2), &hidden, "columns of R and hidden_size")?;
    let directions = match c.node.string("direction") {
        Some("bidirectional") => 2,
        _ => 1,
    };
    if let Dim::Known(d) = dim(1, 0) {
        ensure!(d == directions, "W has {d} directions, the attribute says {directions}");
    }
    let d = Dim::Known(directions);
    let (y, last) = if c.int_or("layout", 0) == 0 {
        let (t, b) = (dim(0, 0), dim(0, 1));
        (vec![t, d.clone(), b.clone(), hidden.clone()], vec![d, b, hidden])
    } else {
        let (b, t) = (dim(0, 0), dim(0, 1));
        (vec![b.clone(), t, d.clone(), hidden.clone()], vec![b, d, hidden])
    };
    let dtype = c.dtype(0).or(c.dtype(1));
    let last = Fact::new(dtype, Some(last));
    Ok(vec![Fact::new(dtype, Some(y)), last.clone(), last])
}

#[cfg(test)]
mod tests {
    use super::super::show;
    use super::super::testing::{dims, f, facts};
    use crate::ir::Attr;

    #[test]
    fn outputs_have_directions_and_hidden_size() {
        let x = [f("T, N, 28"), f("2, 256, 28"), f("2, 256, 64")];
        let attrs = || vec![Attr::string("direction", "bidirectional"), Attr::int("hidden_size", 64)];
        let out = facts("LSTM", 14, attrs(), &x).expect("fits");
        let shapes: Vec<String> = out.iter().map(|f| show(f.shape.as_deref().expect("a shape"))).collect();
        assert_eq!(shapes, ["[T, 2, N, 64]", "[2, N, 64]", "[2, N, 64]"]);
        assert!(
            dims("LSTM", 14, vec![], &x).starts_with("error"),
            "W says two directions"
        );
        assert!(dims("GRU", 14, attrs(), &x).starts_with("error"), "GRU has three gates");
    }

    #[test]
    fn layout_1_puts_the_batch_first() {
        let x = [f("N, T, 28"), f("1, 64, 28"), f("1, 64, 64")];
        assert_eq!(dims("RNN", 14, vec![Attr::int("layout", 1)], &x), "[N, T, 1, 64]");
    }
}
