//! The linear operators that scales and shifts fold into: where their weight and bias lie, and which channel of the
//! output (or input) an element of the weight belongs to.

use super::numbers::{Writer, every, floats, store};
use super::work::Work;
use crate::ir::{NodeId, Tensor, ValueId};

/// A weight that other nodes read as well is copied only when it is at most this large: no file grows by much.
const COPY_UP_TO: usize = 1024;

/// Scaled elements are handed on in batches of so many.
const BUFFER: usize = 1 << 14;

/// A Conv, ConvTranspose, Gemm or MatMul with a constant weight.
pub(super) struct Linear {
    pub node: NodeId,
    pub kind: Kind,
    pub weight: Tensor,
    /// Output channels.
    pub outs: usize,
    /// Input channels.
    pub ins: usize,
    group: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Weight [M, C/group, k…].
    Conv,
    /// Weight [C, M/group, k…].
    ConvTranspose,
    /// Weight [K, N], or [N, K] when `trans_b`.
    Gemm { trans_b: bool },
    /// Weight [K, N].
    MatMul,
}

impl Linear {
    pub fn read(w: &Work, node: NodeId) -> Option<Linear> {
        if !w.is_any(node, &["Conv", "ConvTranspose", "Gemm", "MatMul"]) {
            return None;
        }
        let n = w.model.node(node);
        let v = n.input(1)?;
        let weight = w.constant(v)?;
        if w.model.value(v).uses().len() > 1 && weight.byte_len() > COPY_UP_TO || weight.is_empty() {
            return None;
        }
        let d = weight.dims().to_vec();
        let group = usize::try_from(n.int_or("group", 1)).ok().filter(|g| *g > 0)?;
        let (kind, outs, ins) = match n.op.name.as_str() {
            "Conv" if d.len() >= 3 => (Kind::Conv, d[0], d[1].checked_mul(group)?),
            "ConvTranspose" if d.len() >= 3 => (Kind::ConvTranspose, d[1].checked_mul(group)?, d[0]),
            "Gemm" if d.len() == 2 && n.int_or("transB", 0) != 0 => (Kind::Gemm { trans_b: true }, d[0], d[1]),
            "Gemm" if d.len() == 2 => (Kind::Gemm { trans_b: false }, d[1], d[0]),
            "MatMul" if d.len() == 2 => (Kind::MatMul, d[1], d[0]),
            _ => return None,
        };
        if outs % group != 0 || ins % group != 0 {
            return None;
        }
        Some(Linear {
            node,
            kind,
            weight,
            outs,
            ins,
            group,
        })
    }

    /// The rank of its input and output and the axis of their channels; `None` for a MatMul of unknown rank.
    pub fn channel_axis(&self, w: &Work) -> Option<(usize, usize)> {
        Some(match self.kind {
            Kind::Conv | Kind::ConvTranspose => (self.weight.dims().len(), 1),
            Kind::Gemm { .. } => (2, 1),
            Kind::MatMul => {
                let rank = w.facts.rank(w.model.node(self.node).input(0)?)?;
                (rank, rank.checked_sub(1)?)
            }
        })
    }

    /// Elements of the weight for each pair of its first two axes.
    fn taps(&self) -> usize {
        self.weight.dims().iter().skip(2).product()
    }

    /// True when the first axis of the weight counts output channels.
    fn first_is_output(&self) -> bool {
        matches!(self.kind, Kind::Conv | Kind::Gemm { trans_b: true })
    }

    /// The channel that column 0 of a row of the weight belongs to: groups share the second axis.
    fn first_column(&self, row: usize) -> usize {
        let (outs, ins) = (self.outs / self.group, self.ins / self.group);
        match self.kind {
            Kind::Conv => row / outs * ins,
            Kind::ConvTranspose => row / ins * outs,
            Kind::Gemm { .. } | Kind::MatMul => 0,
        }
    }

    /// The numbers of a row's second-axis channels, each as often as it has taps.
    fn spread(&self, row: usize, by: &[f64]) -> Vec<f64> {
        let first = self.first_column(row);
        let channels = &by[first..first + self.weight.dims()[1]];
        channels
            .iter()
            .flat_map(|x| std::iter::repeat_n(*x, self.taps()))
            .collect()
    }

    /// Calls `f` with each row of the first axis, in order: its number, where in the row the elements begin (a row may come
    /// in parts), and the elements. `None` when the weight is not float.
    fn each_row(&self, mut f: impl FnMut(usize, usize, &[f64])) -> Option<()> {
        let len = self.weight.dims()[1] * self.taps();
        let (mut row, mut at) = (0, 0);
        every(&self.weight, |mut part| {
            while !part.is_empty() {
                let (run, rest) = part.split_at((len - at).min(part.len()));
                f(row, at, run);
                (at, part) = (at + run.len(), rest);
                if at == len {
                    (row, at) = (row + 1, 0);
                }
            }
            true
        })
        .map(|_| ())
    }

    /// The weight with each element multiplied by a number of its output channel.
    pub fn scaled_outputs(&self, by: &[f64]) -> Option<Tensor> {
        self.scaled(self.first_is_output(), by)
    }

    /// The weight with each element multiplied by a number of its input channel.
    pub fn scaled_inputs(&self, by: &[f64]) -> Option<Tensor> {
        self.scaled(!self.first_is_output(), by)
    }

    /// The weight times numbers of the channels of its first axis, or of its second.
    fn scaled(&self, first: bool, by: &[f64]) -> Option<Tensor> {
        let mut out = Writer::new(self.weight.dtype(), self.weight.dims())?;
        let mut scaled = Vec::with_capacity(BUFFER);
        let (mut group, mut factors) = (usize::MAX, Vec::new());
        self.each_row(|row, at, run| {
            if !first && self.first_column(row) != group {
                (group, factors) = (self.first_column(row), self.spread(row, by));
            }
            for (k, part) in run.chunks(BUFFER).enumerate() {
                if scaled.len() + part.len() > BUFFER {
                    out.push(&scaled);
                    scaled.clear();
                }
                match first {
                    true => scaled.extend(part.iter().map(|x| x * by[row])),
                    false => scaled.extend(part.iter().zip(&factors[at + k * BUFFER..]).map(|(x, f)| x * f)),
                }
            }
        })?;
        out.push(&scaled);
        out.tensor()
    }

    /// What the operator gives for an input that is `shift[i]` everywhere in channel `i` (without padding), by output
    /// channel; a Gemm's `alpha` is not in it.
    pub fn response(&self, shift: &[f64]) -> Option<Vec<f64>> {
        let mut out = vec![0.0; self.outs];
        let (mut group, mut shifts) = (usize::MAX, Vec::new());
        let taps = self.taps();
        self.each_row(|row, at, run| {
            let base = self.first_column(row);
            if self.first_is_output() {
                if base != group {
                    (group, shifts) = (base, self.spread(row, shift));
                }
                out[row] += run.iter().zip(&shifts[at..]).map(|(x, s)| x * s).sum::<f64>();
            } else if taps == 1 {
                let sums = &mut out[base + at..];
                sums.iter_mut().zip(run).for_each(|(sum, x)| *sum += x * shift[row]);
            } else {
                run.iter()
                    .enumerate()
                    .for_each(|(k, x)| out[base + (at + k) / taps] += x * shift[row]);
            }
        })?;
        Some(out)
    }

    /// The constant bias by output channel, `beta` included: zeros when there is none; `None` when it is not constant or
    /// does not depend on the channel alone.
    pub fn bias(&self, w: &Work) -> Option<Vec<f64>> {
        if self.kind == Kind::MatMul || w.model.node(self.node).input(2).is_none() {
            return Some(vec![0.0; self.outs]);
        }
        let b = w.constant_input(self.node, 2)?;
        let beta = match self.kind {
            Kind::Gemm { .. } => f64::from(w.model.node(self.node).float("beta").unwrap_or(1.0)),
            _ => 1.0,
        };
        let x: Vec<f64> = floats(&b)?.iter().map(|x| x * beta).collect();
        let row = b.dims().iter().rev().skip(1).all(|&d| d == 1);
        match x.len() {
            1 => Some(vec![x[0]; self.outs]),
            n if n == self.outs && row => Some(x),
            _ => None,
        }
    }

    /// Puts a new weight and bias in place. A bias of zeros is not added where there was none.
    pub fn rewrite(&self, w: &mut Work, weight: Option<Tensor>, bias: Option<Vec<f64>>) -> Option<()> {
        let bias = match bias {
            Some(b) if w.model.node(self.node).input(2).is_some() || b.iter().any(|&x| x != 0.0) => {
                Some(store(self.weight.dtype(), &[self.outs], &b)?)
            }
            _ => None,
        };
        let base = |slot: usize, what: &str| {
            let v: Option<ValueId> = w.model.node(self.node).input(slot);
            let v = v.or(w.model.node(self.node).output(0));
            v.map_or(what.to_owned(), |v| format!("{}_{what}", w.model.value(v).name))
        };
        let (weight_name, bias_name) = (base(1, "scaled"), base(2, "bias"));
        if let Some(t) = weight {
            w.set_const_input(self.node, 1, &weight_name, t);
        }
        if let Some(t) = bias {
            w.set_const_input(self.node, 2, &bias_name, t);
            if matches!(self.kind, Kind::Gemm { .. }) {
                w.model.node_mut(self.node).remove_attr("beta");
            }
        }
        Some(())
    }
}
