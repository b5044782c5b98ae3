//! `MatMulNBits` of ONNX Runtime as a MatMul with the float values of its weight.
//!
//! `B` is `[N, ⌈K / block⌉, block · bits / 8]` bytes, low bits first; scales `[N, ⌈K / block⌉]`; zero points packed like `B`, one row after
//! the other, or numbers of the scales' type; without them they are the middle code.

use super::graph::{Flat, plain_node};
use crate::ir::{DType, Tensor};
use crate::pb;
use anyhow::{Context, Result, ensure};

/// The nodes that compute the same; `None` when the weight is not constant, or its columns are reordered.
pub fn rewrite(n: &pb::NodeProto, flat: &mut Flat) -> Result<Option<Vec<pb::NodeProto>>> {
    let input = |i: usize| n.input.get(i).filter(|v| !v.is_empty());
    let (Some(a), Some(output)) = (input(0), n.output.first()) else {
        return Ok(None);
    };
    let constant = |i: usize| input(i).map(|v| flat.tensors.get(v));
    let (Some(Some(b)), Some(Some(scales)), None) = (constant(1), constant(2), constant(4)) else {
        return Ok(None);
    };
    let zeros = match constant(3) {
        None => None,
        Some(None) => return Ok(None),
        Some(Some(z)) => Some(z),
    };
    let weight = Blocks::new(n)?.values(b, scales, zeros)?;
    let name = format!("{output}/weight");
    flat.tensors.insert(name.clone(), weight);
    let Some(bias) = input(5) else {
        let matmul = plain_node("MatMul", n.name(), vec![a.clone(), name], vec![output.clone()]);
        return Ok(Some(vec![matmul]));
    };
    let product = format!("{output}/product");
    let matmul = plain_node("MatMul", n.name(), vec![a.clone(), name], vec![product.clone()]);
    let add = plain_node(
        "Add",
        &product,
        vec![product.clone(), bias.clone()],
        vec![output.clone()],
    );
    Ok(Some(vec![matmul, add]))
}

/// The geometry of a packed weight.
struct Blocks {
    k: usize,
    n: usize,
    bits: usize,
    block: usize,
}

impl Blocks {
    fn new(node: &pb::NodeProto) -> Result<Blocks> {
        let get = |name: &str, default: Option<i64>| -> Result<usize> {
            let found = node.attribute.iter().find(|a| a.name() == name).and_then(|a| a.i);
            let value = found
                .or(default)
                .with_context(|| format!("attribute {name} is missing"))?;
            usize::try_from(value).with_context(|| format!("attribute {name} is {value}"))
        };
        let all = Blocks {
            k: get("K", None)?,
            n: get("N", None)?,
            bits: get("bits", Some(4))?,
            block: get("block_size", None)?,
        };
        ensure!([2, 4, 8].contains(&all.bits), "{} bits", all.bits);
        ensure!(all.block > 0 && all.block.is_multiple_of(8), "blocks of {}", all.block);
        Ok(all)
    }

    /// `[K, N]` floats.
    fn values(&self, b: &Tensor, scales: &Tensor, zeros: Option<&Tensor>) -> Result<Tensor> {
        let blocks = self.k.div_ceil(self.block);
        let code = |row: &[u8], i: usize| {
            let per = 8 / self.bits;
            let byte = u32::from(row[i / per]);
            (byte >> (i % per * self.bits) & ((1 << self.bits) - 1)) as f32
        };
        let row = blocks
            .checked_mul(self.block)
            .and_then(|x| x.checked_mul(self.bits))
            .context("its size overflows")?
            / 8;
        let (bytes, scales) = (b.raw(), scales.to_f32().context("scales are floats")?);
        let whole = self.n.checked_mul(row) == Some(bytes.len()) && self.n.checked_mul(blocks) == Some(scales.len());
        ensure!(
            whole && b.dtype() == DType::Uint8,
            "weight or scales have the wrong size"
        );
        let zero_row = (blocks * self.bits).div_ceil(8);
        let zeros = match zeros {
            None => vec![(1u32 << (self.bits - 1)) as f32; scales.len()],
            Some(z) if z.dtype() == DType::Uint8 => {
                let raw = z.raw();
                ensure!(raw.len() == self.n * zero_row, "zero points have the wrong size");
                let rows = raw.chunks_exact(zero_row.max(1));
                rows.flat_map(|r| (0..blocks).map(move |i| code(r, i))).collect()
            }
            Some(z) => z
                .to_f32()
                .filter(|z| z.len() == scales.len())
                .context("zero points have the wrong size")?
                .into_owned(),
        };
        let mut data = vec![0f32; self.k.checked_mul(self.n).context("its size overflows")?];
        for (j, codes) in bytes.chunks_exact(row.max(1)).enumerate() {
            for i in 0..self.k {
                let at = j * blocks + i / self.block;
                data[i * self.n + j] = (code(codes, i) - zeros[at]) * scales[at];
            }
        }
        Ok(Tensor::new(&[self.k, self.n], data))
    }
}
