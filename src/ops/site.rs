//! Where a constant weight meets an activation: which inputs of an operator they are, and how the weight acts.
//!
//! Whatever the operator, it computes `y = scale · W x + bias_scale · b` at many places, with `W` an `out × in` matrix for every group and `x` a row
//! cut out of the activation. The table says for each operator how to find `W`, `x` and `b`
//! ([ONNX operators](https://onnx.ai/onnx/operators/): Conv, ConvTranspose, Gemm, MatMul).

use crate::ir::Node;

/// How a weight tensor is a matrix, and how the rows that it multiplies lie in the activation.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// Axis of the weight that counts outputs (per group for ConvTranspose).
    pub out_axis: usize,
    /// Axis of the weight that counts inputs (per group for Conv).
    pub in_axis: usize,
    /// Groups of channels; 1 for all but convolutions.
    pub groups: usize,
    /// The axis of the activation along which `x` lies (negative: from the end).
    pub input_axis: i64,
    /// The axis of the result along which `y` lies (negative: from the end).
    pub output_axis: i64,
    /// Factor of `W x` (Gemm's `alpha`).
    pub scale: f32,
    /// Factor of the bias (Gemm's `beta`).
    pub bias_scale: f32,
    /// For convolutions: how windows are cut.
    pub window: Option<Window>,
}

/// The geometry of a convolution; all lists have one number per spatial axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Kernel sizes.
    pub kernel: Vec<usize>,
    /// Steps.
    pub strides: Vec<usize>,
    /// Distances between kernel taps.
    pub dilations: Vec<usize>,
    /// Padding with zeros.
    pub pads: Pads,
    /// True for ConvTranspose: one input position is spread over a window of the output.
    pub transposed: bool,
}

/// Padding of a convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pads {
    /// Begins, then ends.
    Explicit(Vec<usize>),
    /// `auto_pad=SAME_UPPER`: output size = input size / stride, rounded up; the odd one at the end.
    SameUpper,
    /// `auto_pad=SAME_LOWER`: the odd one at the beginning.
    SameLower,
}

/// A row of the table.
pub struct SiteOp {
    /// The operator (default domain).
    pub name: &'static str,
    /// Pairs of inputs: if the first is constant and the second is not, they are weight and activation.
    pub slots: &'static [(usize, usize)],
    /// The input that is the bias.
    pub bias: Option<usize>,
    /// Reads the layout off a node whose weight, at input `.1`, has dimensions `.2`; the error says why it cannot.
    pub layout: fn(&Node, usize, &[usize]) -> Result<Layout, &'static str>,
}

/// All operators whose weights are known.
pub const TABLE: &[SiteOp] = &[
    SiteOp {
        name: "Conv",
        slots: &[(1, 0)],
        bias: Some(2),
        layout: conv,
    },
    SiteOp {
        name: "ConvTranspose",
        slots: &[(1, 0)],
        bias: Some(2),
        layout: conv_transpose,
    },
    SiteOp {
        name: "Gemm",
        slots: &[(1, 0), (0, 1)],
        bias: Some(2),
        layout: gemm,
    },
    SiteOp {
        name: "MatMul",
        slots: &[(1, 0), (0, 1)],
        bias: None,
        layout: matmul,
    },
];

/// The row for a node, if its operator is in the table.
pub fn find(node: &Node) -> Option<&'static SiteOp> {
    TABLE.iter().find(|s| node.is(s.name))
}

fn conv(node: &Node, _: usize, dims: &[usize]) -> Result<Layout, &'static str> {
    convolution(node, dims, false)
}

fn conv_transpose(node: &Node, _: usize, dims: &[usize]) -> Result<Layout, &'static str> {
    convolution(node, dims, true)
}

fn convolution(node: &Node, dims: &[usize], transposed: bool) -> Result<Layout, &'static str> {
    let [first, _, kernel @ ..] = dims else {
        return Err("the weight of a convolution has at least two axes");
    };
    let groups = usize::try_from(node.int_or("group", 1)).map_err(|_| "its number of groups is not positive")?;
    if groups == 0 || first % groups != 0 {
        return Err("its channels are not divisible by its groups");
    }
    let ones = vec![1usize; kernel.len()];
    let list = |name, default: &[usize]| match node.ints(name) {
        None => Ok(default.to_vec()),
        Some(given) => {
            let list: Option<Vec<usize>> = given.iter().map(|&x| usize::try_from(x).ok()).collect();
            list.filter(|l| l.len() == default.len())
                .ok_or("a list of its attributes has the wrong length or a negative number")
        }
    };
    if list("kernel_shape", kernel)? != kernel {
        return Err("its kernel_shape is not that of its weight");
    }
    let strides = list("strides", &ones)?;
    let dilations = list("dilations", &ones)?;
    if strides.iter().chain(&dilations).any(|&x| x == 0) {
        return Err("a stride or a dilation is zero");
    }
    let none = vec![0usize; 2 * kernel.len()];
    let pads = match node.string("auto_pad").unwrap_or("NOTSET") {
        "SAME_UPPER" => Pads::SameUpper,
        "SAME_LOWER" => Pads::SameLower,
        "VALID" => Pads::Explicit(none),
        _ => Pads::Explicit(list("pads", &none)?),
    };
    let (out_axis, in_axis) = if transposed { (1, 0) } else { (0, 1) };
    Ok(Layout {
        out_axis,
        in_axis,
        groups,
        input_axis: 1,
        output_axis: 1,
        scale: 1.0,
        bias_scale: 1.0,
        window: Some(Window {
            kernel: kernel.to_vec(),
            strides,
            dilations,
            pads,
            transposed,
        }),
    })
}

/// `Y = alpha · A' B' + beta · C`: `B` acts on the rows of `A'` from the right, `A` on the columns of `B'` from the left.
fn gemm(node: &Node, slot: usize, dims: &[usize]) -> Result<Layout, &'static str> {
    if dims.len() != 2 {
        return Err("the weight of a Gemm has two axes");
    }
    let (ta, tb) = (node.int_or("transA", 0) != 0, node.int_or("transB", 0) != 0);
    let plain = |out_axis, input_axis, output_axis| Layout {
        scale: node.float("alpha").unwrap_or(1.0),
        bias_scale: node.float("beta").unwrap_or(1.0),
        ..dense(out_axis, input_axis, output_axis)
    };
    Ok(match slot {
        1 => plain(if tb { 0 } else { 1 }, if ta { -2 } else { -1 }, -1),
        _ => plain(if ta { 1 } else { 0 }, if tb { -1 } else { -2 }, -2),
    })
}

fn matmul(_: &Node, slot: usize, dims: &[usize]) -> Result<Layout, &'static str> {
    match (slot, dims.len()) {
        (1, 2) => Ok(dense(1, -1, -1)),
        (_, 2) => Ok(dense(0, -2, -2)),
        (_, 0 | 1) => Err("its constant is a vector"),
        _ => Err("its constant is a batch of matrices"),
    }
}

fn dense(out_axis: usize, input_axis: i64, output_axis: i64) -> Layout {
    Layout {
        out_axis,
        in_axis: 1 - out_axis,
        groups: 1,
        input_axis,
        output_axis,
        scale: 1.0,
        bias_scale: 1.0,
        window: None,
    }
}
