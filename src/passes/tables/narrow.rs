//! Tables of fewer than 8 bits, tried together with the weights of a pass ([`mixed`](crate::passes::mixed)).

use super::{Coded, tables};
use crate::ir::{DType, Model, NodeId, Tensor, ValueId};
use crate::math::affine::IntKind;
use crate::passes::mixed::Weight;
use crate::passes::planes::Packer;
use crate::passes::{Context, NoteKind};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;

/// A table in 8 bits, as [`quantize`](super::quantize) leaves it, that could have fewer. What it was before is gone: it is rounded once more, and of the
/// noise of both the first is the smaller by far.
pub struct Stored<'a> {
    model: &'a Model,
    /// Its codes: rows × columns.
    pub codes: ValueId,
    /// Of its columns.
    scales: ValueId,
}

/// All tables in 8 bits that Gathers alone read, each followed by Cast and a Mul with the same scales.
pub fn stored(model: &Model) -> Vec<Stored<'_>> {
    let of = |(codes, gathers): (ValueId, Vec<NodeId>)| {
        let scales = scales_behind(model, gathers[0])?;
        let same = gathers.iter().all(|g| scales_behind(model, *g) == Some(scales));
        // Whatever else read the scales would read others then.
        let alone = model.value(scales).uses().len() == gathers.len();
        (same && alone).then_some(Stored { model, codes, scales })
    };
    tables(model, DType::Int8).into_iter().filter_map(of).collect()
}

/// The scales of columns that what a Gather gives is multiplied by, in floats.
fn scales_behind(model: &Model, gather: NodeId) -> Option<ValueId> {
    let next = |id: NodeId, op: &str| {
        let (reader, _) = model.only_use(model.node(id).output(0)?)?;
        model.node(reader).is(op).then_some(reader)
    };
    let scales = model.node(next(next(gather, "Cast")?, "Mul")?).input(1)?;
    (model.constant(scales)?.dims().len() == 1).then_some(scales)
}

impl Stored<'_> {
    fn dims(&self) -> [usize; 2] {
        match self.model.constant(self.codes).map(Tensor::dims) {
            Some(&[rows, columns]) => [rows, columns],
            _ => [0, 0],
        }
    }

    fn floats(&self) -> Result<Vec<f32>> {
        let codes = self.model.constant(self.codes).context("a table is constant")?;
        let codes = codes.view::<i8>().context("its codes are int8")?;
        let scales = self.model.constant(self.scales).and_then(Tensor::floats);
        let scales = scales.context("its scales are floats")?;
        let mut floats = vec![0.0; codes.len()];
        let rows = floats
            .chunks_mut(scales.len().max(1))
            .zip(codes.chunks(scales.len().max(1)));
        rows.for_each(|(floats, codes)| {
            let all = floats.iter_mut().zip(codes).zip(scales.iter());
            all.for_each(|((x, q), scale)| *x = f32::from(*q) * scale);
        });
        Ok(floats)
    }
}

impl Weight for Stored<'_> {
    type Codes = Coded;

    fn len(&self) -> usize {
        self.dims().iter().product()
    }

    fn columns(&self) -> usize {
        self.dims()[0]
    }

    fn rounded(&self, kind: IntKind) -> Result<(Coded, f64)> {
        Coded::new(&self.floats()?, self.dims(), kind)
    }

    fn put(&self, model: &mut Model, coded: &Coded) -> Result<()> {
        model.set_const(self.codes, coded.codes.clone());
        model.set_const(self.scales, coded.scales.clone());
        Ok(())
    }
}

/// Puts tables of these numbers of bits into the place of those in 8 bits; `kinds` by their codes.
///
/// # Errors
/// When codes do not fill bytes.
pub fn apply(
    model: &mut Model,
    kinds: &BTreeMap<ValueId, IntKind>,
    packer: &mut Packer,
    cx: &mut Context,
) -> Result<()> {
    let rounded = |table: &Stored| {
        let kind = *kinds.get(&table.codes)?;
        Some(
            table
                .rounded(kind)
                .map(|coded| (table.codes, table.scales, kind, coded)),
        )
    };
    let all = stored(model).iter().filter_map(rounded).collect::<Result<Vec<_>>>()?;
    for (codes, scales, kind, (coded, sqnr)) in all {
        let name = model.value(codes).name.clone();
        let [rows, columns] = [coded.codes.dims()[0], coded.codes.dims()[1]];
        let bits = kind.bits();
        let what = format!("table of {rows} × {columns} in {bits} bits, {sqnr:.1} dB");
        cx.note(NoteKind::Did, name.clone(), what);
        let graph = model.value(codes).graph();
        let put = packer.codes(model, graph, &name, (kind, coded.codes))?;
        model.replace_uses(codes, put);
        model.erase_const(codes);
        model.rename(put, name);
        model.set_const(scales, coded.scales);
    }
    Ok(())
}

/// A weight of a pass, or a table: both are tried together, for one limit.
pub enum Any<'a, W> {
    /// A weight.
    Weight(W),
    /// A table.
    Table(Stored<'a>),
}

/// What one of them is rounded to.
pub enum AnyCodes<C> {
    /// A weight.
    Weight(C),
    /// A table.
    Table(Coded),
}

impl<W: Weight> Weight for Any<'_, W> {
    type Codes = AnyCodes<W::Codes>;

    fn len(&self) -> usize {
        match self {
            Any::Weight(w) => w.len(),
            Any::Table(t) => t.len(),
        }
    }

    fn columns(&self) -> usize {
        match self {
            Any::Weight(w) => w.columns(),
            Any::Table(t) => t.columns(),
        }
    }

    fn rounded(&self, kind: IntKind) -> Result<(Self::Codes, f64)> {
        Ok(match self {
            Any::Weight(w) => {
                let (codes, sqnr) = w.rounded(kind)?;
                (AnyCodes::Weight(codes), sqnr)
            }
            Any::Table(t) => {
                let (codes, sqnr) = t.rounded(kind)?;
                (AnyCodes::Table(codes), sqnr)
            }
        })
    }

    fn put(&self, model: &mut Model, codes: &Self::Codes) -> Result<()> {
        match (self, codes) {
            (Any::Weight(w), AnyCodes::Weight(c)) => w.put(model, c),
            (Any::Table(t), AnyCodes::Table(c)) => t.put(model, c),
            _ => bail!("codes of another kind"),
        }
    }
}
