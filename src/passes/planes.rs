//! Weights of 3 to 6 bits in bytes, taken apart by operators that every runtime has.
//!
//! A code `q` of `b` bits stands for the int8 code `2^(8−b)·q`, whose bits are those of `q` and zeros. They are cut into planes of 4, 2 or
//! 1 bits, from the top (6 = 4 + 2, 5 = 4 + 1, 3 = 2 + 1). A byte of a plane of `w` bits holds those of `m = 8/w` codes: of `n` codes,
//! seen as `m` rows, that of column `j` holds column `j`, the first row in the highest bits. With `P` of `n/m` bytes and the column
//! `L = (0, w, …, 8−w)`, `((P ≪ L) ≫ (8−w)) ≪ p` are all codes with nothing but this plane, whose lowest bit is bit `p`: BitShift
//! broadcasts, and on bytes it loses what leaves them (BitShift-11). Planes are added in int32, and Cast keeps the lower bits (Cast-13:
//! what is out of range wraps). No input of the model is read, so a runtime that folds constants does it once, while loading, before
//! it looks for Q/DQ pairs. int4 tensors are not used: before version 1.23 ONNX Runtime
//! cannot make int8 of them, and every other use of them makes a float operator.

use crate::ir::{Attr, DType, GraphId, Model, Tensor, ValueId};
use crate::math::affine::IntKind;
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;

/// What weights may have instead of 8 bits, the boldest first.
pub const KINDS: [IntKind; 4] = [IntKind::S3, IntKind::S4, IntKind::S5, IntKind::S6];
/// About what the operators that take one plane out take in a file, in bytes.
const OVERHEAD: usize = 440;
/// Smaller weights would save less than these operators are worth.
const LEAST: usize = 2048;

/// The planes of codes of so many bits: the bits of each, and its lowest one in a byte.
fn planes(kind: IntKind) -> impl Iterator<Item = (u8, u8)> {
    let widths = [4u8, 2, 1].into_iter().filter(move |w| kind.bits() as u8 & w != 0);
    widths.scan(8, |lowest, w| {
        *lowest -= w;
        Some((w, *lowest))
    })
}

/// An int8 code for every step of a code of this kind.
pub fn step(kind: IntKind) -> f32 {
    (1u32 << 8u32.saturating_sub(kind.bits())) as f32
}

/// Whether so many codes fill the bytes of all planes.
pub fn fits(kind: IntKind, len: usize) -> bool {
    len >= LEAST && planes(kind).all(|(w, _)| len.is_multiple_of(8 / usize::from(w)))
}

/// About what so many codes take in a file, with what takes them apart.
pub fn bytes(kind: IntKind, len: usize) -> usize {
    planes(kind).map(|(w, _)| len * usize::from(w) / 8 + OVERHEAD).sum()
}

/// The bytes of one plane of int8 codes.
fn plane(codes: &[i8], (width, lowest): (u8, u8)) -> Vec<u8> {
    let rows = 8 / usize::from(width);
    let columns = codes.len() / rows;
    let mut bytes = vec![0u8; columns];
    for (k, row) in codes.chunks_exact(columns.max(1)).enumerate() {
        let place = 8 - width * (k as u8 + 1);
        for (byte, q) in bytes.iter_mut().zip(row) {
            *byte |= (*q as u8 >> lowest & (0xff >> (8 - width))) << place;
        }
    }
    bytes
}

/// Puts codes of few bits into graphs. What they are shifted by, and equal dimensions, are stored once in each; names are short, since a network
/// of many small weights has many of them.
#[derive(Default)]
pub struct Packer {
    shifts: BTreeMap<(GraphId, Vec<u8>), ValueId>,
    dims: BTreeMap<(GraphId, Vec<usize>), ValueId>,
    count: usize,
}

impl Packer {
    /// Puts int8 codes, multiples of [`step`], into a graph, and gives them: those of fewer than 8 bits plane by plane, with what puts them together
    /// again.
    ///
    /// # Errors
    /// When the codes are not as said, or do not fill bytes.
    pub fn codes(
        &mut self,
        model: &mut Model,
        graph: GraphId,
        name: &str,
        (kind, codes): (IntKind, Tensor),
    ) -> Result<ValueId> {
        if kind.bits() >= 8 {
            let name = model.fresh_name(name);
            return Ok(model.add_const(graph, &name, codes));
        }
        let data = codes.view::<i8>().context("codes are int8")?;
        let (bits, below) = (kind.bits(), (step(kind) as i32 - 1) as i8);
        ensure!(
            data.iter().all(|q| q & below == 0),
            "a code needs more than {bits} bits"
        );
        ensure!(fits(kind, data.len()), "{} codes do not fill bytes", data.len());
        self.count += 1;
        let mut build = Build {
            model,
            graph,
            short: format!("bits_{}", self.count),
        };
        let dims = self.dims(&mut build, codes.dims());
        let mut sum: Option<ValueId> = None;
        for (width, lowest) in planes(kind) {
            let bytes = plane(&data, (width, lowest));
            let bytes = build.constant(&format!("{name}_bits{width}"), Tensor::new(&[bytes.len()], bytes));
            let out = self.unpacked(&mut build, (width, lowest), [bytes, dims])?;
            sum = Some(match sum {
                None if bits == u32::from(width) => out,
                None => build.cast(out, DType::Int32)?,
                Some(sum) => {
                    let out = build.cast(out, DType::Int32)?;
                    build.node("Add", &[sum, out], vec![])?
                }
            });
        }
        let codes = build.cast(sum.context("a code has bits")?, DType::Int8)?;
        let name = build.model.fresh_name(name);
        build.model.rename(codes, name);
        Ok(codes)
    }

    /// Codes with the bits of one plane alone.
    fn unpacked(
        &mut self,
        build: &mut Build,
        (width, lowest): (u8, u8),
        [bytes, dims]: [ValueId; 2],
    ) -> Result<ValueId> {
        let left: Vec<u8> = (0..8 / width).map(|k| k * width).collect();
        let left = self.shift(build, left);
        let (down, up) = (self.shift(build, vec![8 - width]), self.shift(build, vec![lowest]));
        let mut x = bytes;
        for (by, direction) in [(left, "LEFT"), (down, "RIGHT"), (up, "LEFT")] {
            let to = Attr::string("direction", direction);
            x = build.node("BitShift", &[x, by], vec![to])?;
        }
        build.node("Reshape", &[x, dims], vec![])
    }

    /// A constant that bytes are shifted by: a scalar, or a column.
    fn shift(&mut self, build: &mut Build, by: Vec<u8>) -> ValueId {
        *self.shifts.entry((build.graph, by)).or_insert_with_key(|(_, by)| {
            let tensor = match by[..] {
                [one] => Tensor::scalar(one),
                _ => Tensor::new(&[by.len(), 1], by.clone()),
            };
            build.constant(&joined("shift", by), tensor)
        })
    }

    /// The dimensions of a weight, as Reshape reads them.
    fn dims(&mut self, build: &mut Build, dims: &[usize]) -> ValueId {
        let key = (build.graph, dims.to_vec());
        *self.dims.entry(key).or_insert_with(|| {
            let numbers = dims.iter().map(|d| *d as i64).collect();
            build.constant(&joined("dims", dims), Tensor::new(&[dims.len()], numbers))
        })
    }
}

fn joined<T: ToString>(what: &str, numbers: &[T]) -> String {
    let numbers: Vec<String> = numbers.iter().map(T::to_string).collect();
    format!("{what}_{}", numbers.join("_"))
}

/// What is being put into a graph.
struct Build<'a> {
    model: &'a mut Model,
    graph: GraphId,
    /// The name of nodes, and of what they give out, with a number behind it.
    short: String,
}

impl Build<'_> {
    fn constant(&mut self, name: &str, tensor: Tensor) -> ValueId {
        let name = self.model.fresh_name(name);
        self.model.add_const(self.graph, &name, tensor)
    }

    fn node(&mut self, op: &str, inputs: &[ValueId], attrs: Vec<Attr>) -> Result<ValueId> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        let name = self.model.fresh_name(&self.short);
        let (_, out) = self.model.add_node(self.graph, &name, op, &inputs, &[&name], attrs);
        out.first().copied().context("an output")
    }

    fn cast(&mut self, x: ValueId, to: DType) -> Result<ValueId> {
        self.node("Cast", &[x], vec![Attr::int("to", to as i64)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_cut_into_planes_from_the_top() {
        let all = |kind| planes(kind).collect::<Vec<_>>();
        assert_eq!(all(IntKind::S3), [(2, 6), (1, 5)]);
        assert_eq!(all(IntKind::S4), [(4, 4)]);
        assert_eq!(all(IntKind::S5), [(4, 4), (1, 3)]);
        assert_eq!(all(IntKind::S6), [(4, 4), (2, 2)]);
        assert_eq!(KINDS.map(step), [32.0, 16.0, 8.0, 4.0]);
        assert_eq!(KINDS.map(|k| fits(k, 4100)), [false, true, false, true]);
        assert!(!fits(IntKind::S4, 4101) && !fits(IntKind::S4, 64));
        assert_eq!(bytes(IntKind::S6, 8000), 4000 + 2000 + 2 * OVERHEAD);
    }

    #[test]
    fn the_first_row_lies_in_the_highest_bits() {
        let codes = [16i8, -16, 112, -112, 0, 32, -128, 48];
        assert_eq!(plane(&codes, (4, 4)), [0x10, 0xF2, 0x78, 0x93]);
        // Bits 3 and 2: 1, 3, 0, 2, of which 1 is the first row.
        assert_eq!(plane(&[0x04, 0x0C, 0x40, -8], (2, 2)), [0b0111_0010]);
        assert_eq!(plane(&[8, 0, 8, 8, 0, 0, -8, 0], (1, 3)), [0b1011_0010]);
    }

    #[test]
    fn codes_that_need_more_bits_are_refused() {
        let mut model = Model::new(crate::pb::ModelProto::default());
        let graph = model.main_id();
        let codes = Tensor::new(&[64, 64], vec![17i8; 4096]);
        let why = Packer::default().codes(&mut model, graph, "w", (IntKind::S4, codes));
        assert!(why.expect_err("17").to_string().contains("more than 4 bits"));
    }
}
