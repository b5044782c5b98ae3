//! How long operators take in floating point and in integers, so that nothing becomes slower than it was.
//!
//! `t = call + mac·MACs + out·elements out + input·elements in + tap·(window positions × groups × taps) + gather·(elements of all windows)`, in
//! nanoseconds on one thread.
//! The rates were fitted to kernel times of ONNX Runtime 1.31.1 on an x86-64 server with AVX512-VNNI, some 60 shapes, float and
//! Q/DQ side by side, within 30 % for most; those of conversions and of operators on each element with 1.32, on maps that stay in the cache (up to a million
//! elements: there an Add takes as long in floats as in codes, and so it should not cost accuracy); those of convolutions in groups with 1.32 on 16 shapes, within 25 %
//! for most: an integer one copies each tap of each group by itself, and only a depthwise one of as many outputs as inputs has a kernel of its own. Only differences between the two columns decide, so a machine that is faster in both
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
    /// For each tap of each position and group, but for windows of size 1 without groups.
    pub tap: f64,
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
    /// Elements given out.
    pub out: f64,
    /// Elements of all data inputs.
    pub input: f64,
    /// Window positions times groups times taps.
    pub taps: f64,
    /// Elements of all windows.
    pub gathered: f64,
}

/// What kind of convolution or product it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// Every window sees a single channel of several, and gives out one.
    pub depthwise: bool,
    /// Groups of fewer channels than a vector register holds.
    pub narrow: bool,
    /// A single row is multiplied.
    pub vector: bool,
}

/// Floats in a vector register: channels are computed in blocks of so many.
pub const LANES: usize = 16;
/// To start a kernel at all.
pub const CALL: f64 = 1500.0;
/// QuantizeLinear, for each element.
pub const QUANTIZE: f64 = 0.13;
/// DequantizeLinear, for each element.
pub const DEQUANTIZE: f64 = 0.12;
/// For each element that passes between kernels of which one is a convolution, in floats or in integers: it has a layout of its own in either.
pub const REORDER: f64 = 0.17;
/// For a kernel that may give out floats to give out codes, for each element; no more than [`QUANTIZE`].
pub const REQUANTIZE: f64 = 0.12;

impl Rate {
    /// Nanoseconds for some work.
    pub fn of(&self, w: &Work) -> f64 {
        self.mac * w.macs + self.out * w.out + self.input * w.input + self.tap * w.taps + self.gather * w.gathered
    }
}

impl Kernel {
    /// The rates.
    pub fn times(self, shape: Shape) -> Times {
        match self {
            Kernel::Plain(times) => times,
            Kernel::Conv if shape.depthwise => DEPTHWISE,
            Kernel::Conv if shape.narrow => NARROW,
            Kernel::Conv => CONV,
            Kernel::Product if shape.vector => VECTOR,
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

const fn rate(mac: f64, out: f64, input: f64, tap: f64) -> Rate {
    Rate {
        mac,
        out,
        input,
        tap,
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
    float: rate(0.019, 0.1, 0.0, 0.0),
    int: rate(0.0045, 0.2, 0.0, 4.5),
};
/// A convolution in groups of few channels: floats are copied before they are multiplied.
const NARROW: Times = Times {
    float: Rate {
        gather: 0.27,
        ..CONV.float
    },
    int: CONV.int,
};
/// A depthwise convolution of as many outputs as inputs.
const DEPTHWISE: Times = Times {
    float: rate(0.045, 0.1, 0.0, 0.0),
    int: rate(0.03, 0.75, 0.0, 0.0),
};
/// A product of matrices.
const MATMUL: Times = Times {
    float: rate(0.019, 0.1, 0.0, 0.0),
    int: rate(0.0035, 0.6, 0.0, 0.0),
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
