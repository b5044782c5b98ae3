//! Codes that are unpacked from constants, computed once, before tract sees the graph.
//!
//! Weights in few bits are stored so: bytes, shifted, put together and cast. tract itself folds small constants only: it would unpack large
//! ones again in every run, and pack the matrix anew for every product; and where it does, it takes ten times as long as these loops.

use super::dequantize::{default_domain, int_attr};
use super::graph::Flat;
use crate::ir::{DType, Tensor};
use crate::pb;
use std::collections::{BTreeMap, BTreeSet};

/// Puts in the place of codes that are unpacked from constants what they are. What is computed in another way stays as it is.
pub fn compute(flat: &mut Flat) {
    let mut made: BTreeMap<String, Tensor> = BTreeMap::new();
    let outputs: BTreeSet<&str> = flat.graph.output.iter().map(|o| o.name()).collect();
    for n in &flat.graph.node {
        let [output] = &n.output[..] else { continue };
        let begins = n.op_type() == "BitShift" || n.input.iter().any(|v| made.contains_key(v));
        if !begins || outputs.contains(output.as_str()) || !default_domain(n) {
            continue;
        }
        let input = |i: usize| {
            let name = n.input.get(i)?;
            made.get(name).or_else(|| flat.tensors.get(name))
        };
        if let Some(tensor) = unpacked(n, input) {
            made.insert(output.clone(), tensor);
        }
    }
    if made.is_empty() {
        return;
    }
    let there = |n: &pb::NodeProto| n.output.iter().any(|o| made.contains_key(o));
    flat.graph.node.retain(|n| !there(n));
    flat.tensors.extend(made);
    flat.prune();
}

/// What a node makes of constants; `None`: it is none of those that unpack.
fn unpacked<'t>(n: &pb::NodeProto, input: impl Fn(usize) -> Option<&'t Tensor>) -> Option<Tensor> {
    let x = input(0)?;
    match n.op_type() {
        "BitShift" => {
            let direction = n.attribute.iter().find(|a| a.name() == "direction")?;
            let shift = match direction.s.as_deref()? {
                b"LEFT" => |x: u8, by: u8| x.checked_shl(by.into()).unwrap_or(0),
                _ => |x: u8, by: u8| x.checked_shr(by.into()).unwrap_or(0),
            };
            shifted(x, input(1)?, shift)
        }
        "Cast" => {
            let to = i32::try_from(int_attr(n, "to", 0)).ok()?;
            cast(x, DType::try_from(to).ok()?)
        }
        "Add" => {
            let (a, b) = (x.view::<i32>()?, input(1)?.view::<i32>()?);
            let same = x.dims() == input(1)?.dims();
            let sums = || a.iter().zip(b.iter()).map(|(a, b)| a.wrapping_add(*b)).collect();
            same.then(|| Tensor::new(x.dims(), sums()))
        }
        "Reshape" => {
            let dims = input(1)?.ints()?;
            let dims = dims.into_iter().map(|d| usize::try_from(d).ok().filter(|d| *d > 0));
            let dims: Vec<usize> = dims.collect::<Option<_>>()?;
            let len = dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            (len == Some(x.len())).then(|| x.with_dims(&dims))
        }
        _ => None,
    }
}

/// Bytes shifted by a single number, or a row of bytes by each number of a column.
fn shifted(x: &Tensor, by: &Tensor, shift: impl Fn(u8, u8) -> u8) -> Option<Tensor> {
    let (bytes, numbers) = (x.view::<u8>()?, by.view::<u8>()?);
    match (x.dims(), by.dims()) {
        (dims, []) => {
            let by = *numbers.first()?;
            Some(Tensor::new(dims, bytes.iter().map(|x| shift(*x, by)).collect()))
        }
        // A byte has so many bits that can be parted.
        ([columns], [rows @ 1..=8, 1]) => {
            let all = numbers.iter().flat_map(|by| bytes.iter().map(|x| shift(*x, *by)));
            Some(Tensor::new(&[*rows, *columns], all.collect::<Vec<u8>>()))
        }
        _ => None,
    }
}

/// Lower bits are kept.
fn cast(x: &Tensor, to: DType) -> Option<Tensor> {
    let dims = x.dims();
    Some(match (x.dtype(), to) {
        (DType::Uint8, DType::Int8) => Tensor::new(dims, x.view::<u8>()?.iter().map(|x| *x as i8).collect::<Vec<i8>>()),
        (DType::Uint8, DType::Int32) => Tensor::new(dims, x.view::<u8>()?.iter().map(|x| i32::from(*x)).collect()),
        (DType::Int32, DType::Int8) => {
            Tensor::new(dims, x.view::<i32>()?.iter().map(|x| *x as i8).collect::<Vec<i8>>())
        }
        _ => return None,
    })
}
