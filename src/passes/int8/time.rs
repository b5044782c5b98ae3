//! How long operators take in floating point and in integers, so that nothing becomes slower than it was.
//!
//! `t = call + mac·MACs + out·elements out + input·elements in + piece·(pieces of all windows) + gather·(elements of all windows)`, in nanoseconds on one
//! thread.
//! The rates were fitted to kernel times of ONNX Runtime 1.32 on an x86-64 server with AVX512-VNNI (Emerald Rapids), float and Q/DQ side by side in chains
//! of convolutions or products: 71 shapes of convolutions (rms 20 %), 28 depthwise (10 to 18 %), 12 in groups, 15 of products, and three maps for
//! each other operator. On another such server (1.31) multiply-adds of both kinds took 1.3 times as long and conversions half as long;
//! where the two differ in what wins, these here leave more in floating point. Only differences between the two columns decide, so a machine that is faster in both
//! changes nothing.

/// What a kernel costs, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// For each multiply-add.
    pub mac: f64,
    /// For each element that it gives out.
    pub out: f64,
    /// For each element of its data input.
    pub input: f64,
    /// For each piece of a window that an integer kernel looks up or copies by itself ([`Shape::pieces`]).
    pub piece: f64,
    /// For each element of each window that is copied before it is multiplied.
    pub gather: f64,
}

/// One operator in both forms.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// In floating point.
    pub float: Rate,
    /// In integers.
    pub int: Rate,
}

/// How the rates of an operator follow from its shape.
#[derive(Clone, Copy, Debug)]
pub enum Kernel {
    /// Not at all.
    Plain(Times),
    /// A convolution: one whose windows see a single channel has rates of its own.
    Conv,
    /// A product with a matrix: one of a single row has rates of its own, since reading the matrix is what takes time.
    Product,
    /// It computes in floating point all the same: what it reads, its weight included, becomes floats before.
    Stored,
}

/// What a kernel has to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Multiply-adds.
    pub macs: f64,
    /// Multiply-adds in floats, which come in full blocks of channels.
    pub blocked: f64,
    /// Elements given out.
    pub out: f64,
    /// Elements of all data inputs.
    pub input: f64,
    /// Pieces of all windows.
    pub pieces: f64,
    /// Elements of all windows.
    pub gathered: f64,
}

/// What kind of convolution or product it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Nothing special.
    Plain,
    /// Every window sees a single channel, and gives out one: a kernel of its own takes all groups at once. An integer one takes channels
    /// in eights, and those that are left over one by one: 4 channels took twice as long as 8.
    Depthwise,
    /// There are groups: an integer kernel copies each tap of each group by itself.
    Grouped,
    /// There are groups of fewer channels than a vector register holds: floats are copied, too.
    Narrow,
    /// Channels that an integer kernel cannot read in fours or give out in a whole register: it copies each row of each window.
    Copied,
    /// A single row is multiplied.
    Vector,
}

impl Shape {
    /// Of a convolution.
    pub fn of_conv(inputs: usize, outputs: usize, groups: usize) -> Shape {
        match groups {
            _ if inputs == groups && outputs == groups => Shape::Depthwise,
            1 if !inputs.is_multiple_of(4) || outputs < LANES => Shape::Copied,
            1 => Shape::Plain,
            _ if inputs.min(outputs) / groups < LANES => Shape::Narrow,
            _ => Shape::Grouped,
        }
    }

    /// As many channels as a convolution in floats computes for these, inputs and outputs: fewer inputs than a block are read as they are.
    pub fn blocked(self, inputs: usize, outputs: usize) -> (usize, usize) {
        match self {
            Shape::Plain | Shape::Copied if inputs < LANES => (inputs, outputs.next_multiple_of(LANES)),
            Shape::Plain | Shape::Copied => (inputs.next_multiple_of(LANES), outputs.next_multiple_of(LANES)),
            _ => (inputs, outputs),
        }
    }

    /// Into how many pieces an integer convolution takes a window of so many taps, of which `row` lie side by side.
    pub fn pieces(self, taps: usize, row: usize, groups: usize) -> usize {
        match self {
            Shape::Plain | Shape::Copied if taps == 1 => 0,
            Shape::Plain => taps,
            Shape::Depthwise => taps + (LEFT_OVER * (taps * (groups % 8)) as f64) as usize,
            Shape::Copied => taps / row.max(1),
            Shape::Grouped | Shape::Narrow => taps * groups,
            Shape::Vector => 0,
        }
    }
}

/// A tap of a channel that a depthwise integer kernel takes alone, in pieces.
const LEFT_OVER: f64 = 1.4;
/// Floats in a vector register: channels are computed in blocks of so many.
pub const LANES: usize = 16;
/// To start a kernel at all.
pub const CALL: f64 = 1500.0;
/// QuantizeLinear, for each element.
pub const QUANTIZE: f64 = 0.26;
/// DequantizeLinear, for each element.
pub const DEQUANTIZE: f64 = 0.19;
/// For each element that passes between kernels on maps of which one runs in floats and one in integers: in blocks of channels there, channels last here,
/// and by way of channels first between the two.
pub const REORDER: f64 = 0.35;
/// What such a change takes less in codes than in floats where there is one anyway, for each element.
pub const REORDERED: f64 = 0.1;
/// For each tap of each window of a pool over codes that no integer kernel made: channels come first there.
pub const POOLED: f64 = 4.5;
/// For a kernel that may give out floats to give out codes, for each element; no more than [`QUANTIZE`].
pub const REQUANTIZE: f64 = 0.2;

impl Times {
    /// Nanoseconds for some work, in floating point and in integers.
    pub fn of(&self, w: &Work) -> (f64, f64) {
        let ns = |r: &Rate, macs: f64| {
            r.mac * macs + r.out * w.out + r.input * w.input + r.piece * w.pieces + r.gather * w.gathered
        };
        (ns(&self.float, w.blocked), ns(&self.int, w.macs))
    }
}

impl Kernel {
    /// The rates.
    pub fn times(self, shape: Shape) -> Times {
        match self {
            Kernel::Plain(times) => times,
            Kernel::Conv => match shape {
                Shape::Depthwise => DEPTHWISE,
                Shape::Grouped => GROUPED,
                Shape::Narrow => NARROW,
                Shape::Copied => COPIED,
                Shape::Plain | Shape::Vector => CONV,
            },
            Kernel::Product if shape == Shape::Vector => VECTOR,
            Kernel::Product => MATMUL,
            Kernel::Stored => STORED,
        }
    }

    /// With so much less for each element that is given out, where it costs that.
    pub fn less(self, each: f64) -> Kernel {
        let Kernel::Plain(mut times) = self else { return self };
        for rate in [&mut times.float, &mut times.int] {
            rate.out = (rate.out - each).max(0.0);
        }
        Kernel::Plain(times)
    }
}

const fn rate(mac: f64, out: f64, input: f64, piece: f64) -> Rate {
    Rate {
        mac,
        out,
        input,
        piece,
        gather: 0.0,
    }
}

/// An operator that costs so much for each element that it gives out.
pub const fn each(float: f64, int: f64) -> Kernel {
    Kernel::Plain(Times {
        float: rate(0.0, float, 0.0, 0.0),
        int: rate(0.0, int, 0.0, 0.0),
    })
}

/// An operator that costs so much for each element of its input.
pub const fn read(float: f64, int: f64) -> Kernel {
    Kernel::Plain(Times {
        float: rate(0.0, 0.0, float, 0.0),
        int: rate(0.0, 0.0, int, 0.0),
    })
}

/// A convolution.
const CONV: Times = Times {
    float: rate(0.015, 0.06, 0.0, 0.0),
    int: rate(0.0032, 0.21, 0.0, 1.1),
};
/// A convolution of channels that do not fit its kernel.
const COPIED: Times = Times {
    float: CONV.float,
    int: Rate {
        piece: 10.0,
        ..CONV.int
    },
};
/// A convolution in groups: an integer one copies each tap of each group by itself.
const GROUPED: Times = Times {
    float: CONV.float,
    int: Rate { piece: 4.5, ..CONV.int },
};
/// A convolution in groups of few channels: floats are copied before they are multiplied.
const NARROW: Times = Times {
    float: Rate {
        gather: 0.27,
        ..CONV.float
    },
    int: GROUPED.int,
};
/// A depthwise convolution of as many outputs as inputs.
const DEPTHWISE: Times = Times {
    float: rate(0.019, 0.22, 0.0, 0.0),
    int: rate(0.04, 0.17, 0.0, 1.3),
};
/// A product of matrices.
const MATMUL: Times = Times {
    float: rate(0.0125, 0.1, 0.0, 0.0),
    int: rate(0.0035, 0.35, 0.0, 0.0),
};
/// A product of a vector and a matrix.
const VECTOR: Times = Times {
    float: rate(0.15, 0.1, 0.0, 0.0),
    int: rate(0.07, 0.6, 0.0, 0.0),
};
/// A transposed convolution that reads codes.
const STORED: Times = Times {
    float: rate(0.0, 0.1, 0.0, 0.0),
    int: rate(0.0, 0.1, DEQUANTIZE + REORDER, 0.0),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_follow_from_channels_and_groups() {
        let of = Shape::of_conv;
        assert_eq!(
            (of(16, 32, 1), of(3, 32, 1), of(16, 8, 1)),
            (Shape::Plain, Shape::Copied, Shape::Copied)
        );
        assert_eq!(of(1, 1, 1), Shape::Depthwise, "one channel, by itself");
        assert_eq!(
            (of(64, 64, 64), of(64, 128, 64), of(64, 64, 4)),
            (Shape::Depthwise, Shape::Narrow, Shape::Grouped)
        );
    }

    #[test]
    fn windows_are_taken_in_taps_or_rows() {
        let pieces = |shape: Shape| shape.pieces(9, 3, 64);
        assert_eq!(
            (pieces(Shape::Plain), pieces(Shape::Depthwise), pieces(Shape::Copied)),
            (9, 9, 3)
        );
        assert_eq!(
            (Shape::Depthwise.pieces(9, 3, 1), Shape::Depthwise.pieces(9, 3, 12)),
            (21, 59)
        );
        assert_eq!(pieces(Shape::Grouped), 576);
        assert_eq!((Shape::Plain.pieces(1, 1, 1), Shape::Copied.pieces(1, 1, 1)), (0, 0));
    }

    #[test]
    fn floats_compute_full_blocks_of_channels() {
        assert_eq!(Shape::Plain.blocked(24, 40), (32, 48));
        assert_eq!(Shape::Copied.blocked(3, 8), (3, 16), "an image is read as it is");
        assert_eq!(Shape::Grouped.blocked(24, 40), (24, 40));
    }
}
