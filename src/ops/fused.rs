//! Operators of ONNX Runtime's own that are several of ONNX's: what its graph optimizer writes when a session saves what it has optimized.
//!
//! They are spelled out again, as the document ContribOperators.md of ONNX Runtime defines them, so that other runtimes can read the model and
//! passes see its convolutions and products; ONNX Runtime joins them again while it loads the result.
//!
//! So are operators that ONNX had on trial and dropped with operator set 10, which converters from Core ML wrote (`ImageScaler`, `Affine`, `Crop`).

mod attention;
mod norm;

use super::types::Types;
use crate::ir::{Attr, DType, GraphId, Model, Node, NodeId, Tensor, ValueId};
use anyhow::Result;

/// What has to be known of values.
pub trait Facts {
    /// The number of dimensions.
    fn rank(&self, v: ValueId) -> Option<usize>;
    /// The length of the last axis.
    fn width(&self, v: ValueId) -> Option<usize>;
    /// The type of the elements.
    fn dtype(&self, v: ValueId) -> Option<DType>;
}

impl Facts for Types {
    fn rank(&self, v: ValueId) -> Option<usize> {
        Types::rank(self, v)
    }
    fn width(&self, v: ValueId) -> Option<usize> {
        self.shape(v)?.last()?.known()
    }
    fn dtype(&self, v: ValueId) -> Option<DType> {
        Types::dtype(self, v)
    }
}

type Spell = fn(&mut Speller, &dyn Facts) -> Option<()>;

const ORT: &str = "com.microsoft";

/// Domain, operator, how it is spelled out.
const TABLE: &[(&str, &str, Spell)] = &[
    (ORT, "FusedConv", conv),
    (ORT, "FusedGemm", gemm),
    (ORT, "FusedMatMul", matmul),
    (ORT, "Gelu", gelu),
    (ORT, "BiasGelu", bias_gelu),
    (ORT, "FastGelu", fast_gelu),
    (ORT, "QuickGelu", quick_gelu),
    (ORT, "SkipLayerNormalization", norm::skip_layer_norm),
    (ORT, "EmbedLayerNormalization", norm::embed_layer_norm),
    (ORT, "Attention", attention::attention),
    (ORT, "MultiHeadAttention", attention::multi_head),
    ("", "ImageScaler", image_scaler),
    ("", "Affine", affine),
    ("", "Crop", crop),
];

/// What ONNX has, and an engine may lack where numbers are computed.
const LACKING: &[(&str, &str, Spell)] = &[("", "BatchNormalization", norm::batch_norm)];

/// Puts ONNX's operators in the place of a node: the last of them takes its name and its outputs. `None` when it is no such node, or something that
/// has to be known is not.
fn spell_out(model: &mut Model, id: NodeId, (spell, facts): (Spell, &dyn Facts)) -> Option<()> {
    let n = model.node(id);
    let (graph, first) = (n.graph(), n.output(0)?);
    if n.has_attr_refs() || model.graph(graph).function.is_some() {
        return None;
    }
    let base = model.value(first).name.clone();
    spell(&mut Speller { model, id, graph, base }, facts)
}

/// Spells out what can be in a whole model, by what `infer` says of it, which is not asked where there is nothing; gives the nodes, which bear the names and
/// outputs that they had, with what they were.
///
/// # Errors
/// Those of `infer`.
pub fn spell_out_all<F: Facts>(
    model: &mut Model,
    infer: impl FnOnce(&Model) -> Result<F>,
) -> Result<Vec<(NodeId, String)>> {
    spell_out_of(model, |model, id| row(TABLE, model, id), infer)
}

/// The same for an engine, which may lack an operator of ONNX in one of its forms.
///
/// # Errors
/// Those of `infer`.
pub fn spell_out_for_engine<F: Facts>(model: &mut Model, infer: impl FnOnce(&Model) -> Result<F>) -> Result<()> {
    let lacking = |model: &Model, id: NodeId| row(LACKING, model, id).filter(|_| computes_numbers(model, id));
    let rows = |model: &Model, id: NodeId| row(TABLE, model, id).or_else(|| lacking(model, id));
    spell_out_of(model, rows, infer).map(drop)
}

fn spell_out_of<F: Facts>(
    model: &mut Model,
    row: impl Fn(&Model, NodeId) -> Option<Spell>,
    infer: impl FnOnce(&Model) -> Result<F>,
) -> Result<Vec<(NodeId, String)>> {
    let rows = model.node_ids().into_iter();
    let rows: Vec<(NodeId, Spell)> = rows.filter_map(|id| Some((id, row(model, id)?))).collect();
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let name = |id: NodeId| {
        let op = &model.node(id).op;
        let dot = if op.domain.is_empty() { "" } else { "." };
        format!("{}{dot}{}", op.domain, op.name)
    };
    let names: Vec<String> = rows.iter().map(|(id, _)| name(*id)).collect();
    let facts = infer(model)?;
    let all = rows.into_iter().zip(names);
    let all = all.filter(|((id, spell), _)| spell_out(model, *id, (*spell, &facts)).is_some());
    Ok(all.map(|((id, _), name)| (id, name)).collect())
}

fn row(table: &[(&str, &str, Spell)], model: &Model, id: NodeId) -> Option<Spell> {
    let op = &model.node(id).op;
    let own = |f: &GraphId| {
        let function = model.graph(*f).function.as_ref();
        function.is_some_and(|f| f.domain() == op.domain && f.name() == op.name)
    };
    let row = table.iter().find(|r| op.domain == r.0 && op.name == r.1)?;
    (!model.functions().iter().any(own)).then_some(row.2)
}

/// Whether not all that a node reads besides its data is made of constants.
fn computes_numbers(model: &Model, id: NodeId) -> bool {
    let mut numbers = model.node(id).inputs().iter().skip(1).flatten();
    numbers.any(|v| !is_fixed(model, *v))
}

/// Whether a value is made of constants alone, by a few operators.
fn is_fixed(model: &Model, v: ValueId) -> bool {
    const MOST: usize = 16;
    let (mut open, mut at) = (vec![v], 0);
    while let Some(&v) = open.get(at) {
        at += 1;
        if model.constant(v).is_some() {
            continue;
        }
        let maker = model.value(v).producer().map(|p| model.node(p));
        match maker.filter(|n| at <= MOST && n.inputs().len() <= MOST) {
            Some(maker) => open.extend(maker.inputs().iter().flatten()),
            None => return false,
        }
    }
    true
}

/// A node that is being spelled out.
struct Speller<'m> {
    model: &'m mut Model,
    id: NodeId,
    graph: GraphId,
    /// The name of its output.
    base: String,
}

impl Speller<'_> {
    fn input(&self, slot: usize) -> Option<ValueId> {
        self.model.node(self.id).input(slot)
    }

    fn float(&self, name: &str) -> Option<f32> {
        self.model.node(self.id).float(name)
    }

    fn opset(&self) -> i64 {
        self.model.opset("")
    }

    /// Its attributes, but for those of its activation.
    fn attrs(&self) -> Vec<Attr> {
        let kept = |a: &&Attr| !a.name().starts_with("activation");
        self.model.node(self.id).attrs.iter().filter(kept).cloned().collect()
    }

    /// One more operator before it.
    fn add(&mut self, op: &str, inputs: &[Option<ValueId>], attrs: Vec<Attr>) -> ValueId {
        let name = self.model.fresh_name(&format!("{}_{op}", self.base));
        self.model.add_node(self.graph, &name, op, inputs, &[&name], attrs).1[0]
    }

    fn pair(&mut self, op: &str, a: ValueId, b: ValueId) -> ValueId {
        self.add(op, &[Some(a), Some(b)], Vec::new())
    }

    fn number(&mut self, x: f32) -> ValueId {
        self.constant(Tensor::scalar(x))
    }

    fn constant(&mut self, t: Tensor) -> ValueId {
        let name = self.model.fresh_name(&format!("{}_number", self.base));
        self.model.add_const(self.graph, &name, t)
    }

    /// A dimension of a value, as a vector of one number.
    fn dimension(&mut self, of: ValueId, axis: i64) -> ValueId {
        let shape = self.add("Shape", &[Some(of)], Vec::new());
        let ends = [axis, axis + 1].map(|at| Some(self.constant(Tensor::new(&[1], vec![at]))));
        self.add("Slice", &[Some(shape), ends[0], ends[1]], Vec::new())
    }

    fn cast(&mut self, x: ValueId, to: DType) -> ValueId {
        self.add("Cast", &[Some(x)], vec![Attr::int("to", to as i64)])
    }

    /// The node itself becomes the last operator.
    fn last(&mut self, op: &str, inputs: &[Option<ValueId>], attrs: Vec<Attr>) {
        self.model.set_inputs(self.id, inputs.to_vec());
        let n = self.model.node_mut(self.id);
        n.set_op("", op);
        n.attrs = attrs;
    }

    /// The last operators: the activation of this name with these parameters.
    fn activate(&mut self, x: ValueId, name: &str, parameters: &[f32]) {
        let named = |names: &[&str]| {
            let given = names.iter().zip(parameters);
            given.map(|(n, p)| Attr::float(n, *p)).collect::<Vec<_>>()
        };
        let attrs = match name {
            "Clip" if self.opset() >= 11 => {
                let ends: Vec<Option<ValueId>> = parameters.iter().map(|p| Some(self.number(*p))).collect();
                return self.last(name, &[&[Some(x)], &ends[..]].concat(), Vec::new());
            }
            "Clip" => named(&["min", "max"]),
            "Selu" => named(&["alpha", "gamma"]),
            _ => named(&["alpha", "beta"]),
        };
        self.last(name, &[Some(x)], attrs);
    }
}

/// The activations that these operators have; ONNX Runtime knows no others.
fn activation(n: &Node) -> Option<Option<String>> {
    const KNOWN: &[&str] = &[
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "Tanh",
        "Clip",
        "HardSigmoid",
        "Elu",
        "Selu",
        "Softplus",
        "Softsign",
        "ThresholdedRelu",
    ];
    match n.string("activation").unwrap_or_default() {
        "" => Some(None),
        name if KNOWN.contains(&name) => Some(Some(name.to_owned())),
        _ => None,
    }
}

/// `activation(Conv(X, W, B) + Z)`.
fn conv(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    let n = s.model.node(s.id);
    let (name, z) = (activation(n)?, n.input(3));
    let parameters = n
        .attr("activation_params")
        .map_or(Vec::new(), |a| a.proto.floats.clone());
    if name.as_deref() == Some("Clip") && (parameters.len() != 2 || facts.dtype(s.input(0)?)? != DType::Float) {
        return None;
    }
    let inputs: Vec<Option<ValueId>> = n.inputs().iter().take(3).copied().collect();
    let attrs = s.attrs();
    match (z, name) {
        (None, None) => s.last("Conv", &inputs, attrs),
        (Some(z), None) => {
            let x = s.add("Conv", &inputs, attrs);
            s.last("Add", &[Some(x), Some(z)], Vec::new());
        }
        (z, Some(name)) => {
            let x = s.add("Conv", &inputs, attrs);
            let x = z.map_or(x, |z| s.pair("Add", x, z));
            s.activate(x, &name, &parameters);
        }
    }
    Some(())
}

/// `activation(Gemm(A, B, C))`.
fn gemm(s: &mut Speller, _: &dyn Facts) -> Option<()> {
    let name = activation(s.model.node(s.id))?.filter(|name| name != "Clip");
    let inputs = s.model.node(s.id).inputs().to_vec();
    let attrs = s.attrs();
    let Some(name) = name else {
        s.last("Gemm", &inputs, attrs);
        return Some(());
    };
    let second = if name == "Selu" {
        "activation_gamma"
    } else {
        "activation_beta"
    };
    let parameters: Vec<f32> = [s.float("activation_alpha"), s.float(second)]
        .into_iter()
        .flatten()
        .collect();
    let x = s.add("Gemm", &inputs, attrs);
    s.activate(x, &name, &parameters);
    Some(())
}

/// `alpha · op(A) op(B)`, where the last two axes may be swapped first.
fn matmul(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    let n = s.model.node(s.id);
    if n.int_or("transBatchA", 0) != 0 || n.int_or("transBatchB", 0) != 0 {
        return None;
    }
    let alpha = n.float("alpha").unwrap_or(1.0);
    let swapped = ["transA", "transB"].map(|name| n.int_or(name, 0) != 0);
    let mut sides = [s.input(0)?, s.input(1)?];
    if alpha != 1.0 && facts.dtype(sides[0])? != DType::Float {
        return None;
    }
    let mut perms = Vec::new();
    for (i, &side) in sides.iter().enumerate().filter(|(i, _)| swapped[*i]) {
        let Some(rank) = facts.rank(side) else {
            return by_letters(s, sides, swapped, alpha);
        };
        if rank < 2 {
            return None;
        }
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        perm.swap(rank - 2, rank - 1);
        perms.push((i, perm));
    }
    for (i, perm) in perms {
        sides[i] = s.add("Transpose", &[Some(sides[i])], vec![Attr::ints("perm", perm)]);
    }
    times_alpha(s, "MatMul", sides, Vec::new(), alpha);
    Some(())
}

/// The same where the number of axes is not known.
fn by_letters(s: &mut Speller, sides: [ValueId; 2], [a, b]: [bool; 2], alpha: f32) -> Option<()> {
    if s.opset() < 12 {
        return None;
    }
    let left = if a { "...ji" } else { "...ij" };
    let right = if b { "...kj" } else { "...jk" };
    let equation = Attr::string("equation", &format!("{left},{right}->...ik"));
    times_alpha(s, "Einsum", sides, vec![equation], alpha);
    Some(())
}

fn times_alpha(s: &mut Speller, op: &str, sides: [ValueId; 2], attrs: Vec<Attr>, alpha: f32) {
    let inputs = sides.map(Some);
    if alpha == 1.0 {
        return s.last(op, &inputs, attrs);
    }
    let product = s.add(op, &inputs, attrs);
    let alpha = s.number(alpha);
    s.last("Mul", &[Some(product), Some(alpha)], Vec::new());
}

/// `x/2 · (1 + erf(x/√2))`, or by `tanh(√(2/π) (x + 0.044715 x³))`.
fn gelu_of(s: &mut Speller, x: ValueId, tanh: bool) {
    if s.opset() >= 20 {
        let attrs = if tanh {
            vec![Attr::string("approximate", "tanh")]
        } else {
            Vec::new()
        };
        return s.last("Gelu", &[Some(x)], attrs);
    }
    let inner = match tanh {
        true => {
            let (c, k) = (s.number(0.044715), s.number((2.0 / std::f32::consts::PI).sqrt()));
            let square = s.pair("Mul", x, x);
            let cube = s.pair("Mul", square, x);
            let part = s.pair("Mul", cube, c);
            let sum = s.pair("Add", x, part);
            let scaled = s.pair("Mul", sum, k);
            s.add("Tanh", &[Some(scaled)], Vec::new())
        }
        false => {
            let root = s.number(std::f32::consts::SQRT_2);
            let scaled = s.pair("Div", x, root);
            s.add("Erf", &[Some(scaled)], Vec::new())
        }
    };
    let (one, half) = (s.number(1.0), s.number(0.5));
    let sum = s.pair("Add", inner, one);
    let product = s.pair("Mul", x, sum);
    s.last("Mul", &[Some(product), Some(half)], Vec::new());
}

fn is_float(s: &Speller, facts: &dyn Facts) -> Option<()> {
    (facts.dtype(s.input(0)?)? == DType::Float).then_some(())
}

fn gelu(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    is_float(s, facts)?;
    gelu_of(s, s.input(0)?, false);
    Some(())
}

fn bias_gelu(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    is_float(s, facts)?;
    let (a, b) = (s.input(0)?, s.input(1)?);
    let sum = s.pair("Add", a, b);
    gelu_of(s, sum, false);
    Some(())
}

fn fast_gelu(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    is_float(s, facts)?;
    let (x, bias) = (s.input(0)?, s.input(1));
    let x = bias.map_or(x, |b| s.pair("Add", x, b));
    gelu_of(s, x, true);
    Some(())
}

/// `x · σ(alpha x)`.
fn quick_gelu(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    is_float(s, facts)?;
    let x = s.input(0)?;
    let alpha = s.float("alpha").unwrap_or(1.702);
    let alpha = s.number(alpha);
    let scaled = s.pair("Mul", x, alpha);
    let gate = s.add("Sigmoid", &[Some(scaled)], Vec::new());
    s.last("Mul", &[Some(x), Some(gate)], Vec::new());
    Some(())
}

/// `scale · x + bias`, a bias for each channel; images are NCHW.
fn image_scaler(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    is_float(s, facts)?;
    let bias = s.model.node(s.id).attr("bias").map(|a| a.proto.floats.clone());
    let scale = s.float("scale").unwrap_or(1.0);
    let bias = bias.map(|b| Tensor::new(&[b.len(), 1, 1], b));
    scaled(s, scale, bias)
}

/// `alpha · x + beta`.
fn affine(s: &mut Speller, facts: &dyn Facts) -> Option<()> {
    is_float(s, facts)?;
    let [alpha, beta] = ["alpha", "beta"].map(|name| s.float(name));
    scaled(s, alpha.unwrap_or(1.0), beta.map(Tensor::scalar))
}

/// Before operator set 7 a sum says along which axis it is taken.
fn scaled(s: &mut Speller, scale: f32, bias: Option<Tensor>) -> Option<()> {
    let x = s.input(0).filter(|_| s.opset() >= 7)?;
    let scale = s.number(scale);
    match bias {
        Some(bias) => {
            let (product, bias) = (s.pair("Mul", x, scale), s.constant(bias));
            s.last("Add", &[Some(product), Some(bias)], Vec::new());
        }
        None => s.last("Mul", &[Some(x), Some(scale)], Vec::new()),
    }
    Some(())
}

/// An image without its border (left, top, right, bottom), or so much of it (height, width) as begins behind its left and upper border.
fn crop(s: &mut Speller, _: &dyn Facts) -> Option<()> {
    let n = s.model.node(s.id);
    let (&[left, top, right, bottom], size) = (n.ints("border")?, n.ints("scale")) else {
        return None;
    };
    let end = |border: i64| if border == 0 { i64::MAX } else { border.saturating_neg() };
    let ends = match size {
        Some(&[height, width]) => vec![top.checked_add(height)?, left.checked_add(width)?],
        Some(_) => return None,
        None => vec![end(bottom), end(right)],
    };
    if [left, top, right, bottom]
        .iter()
        .chain(size.into_iter().flatten())
        .any(|n| *n < 0)
    {
        return None;
    }
    let parts = [("starts", vec![top, left]), ("ends", ends), ("axes", vec![2, 3])];
    let x = Some(s.input(0)?);
    match s.opset() < 10 {
        true => s.last("Slice", &[x], parts.map(|(name, ints)| Attr::ints(name, ints)).into()),
        false => {
            let parts = parts.map(|(_, ints)| Some(s.constant(Tensor::new(&[2], ints))));
            s.last("Slice", &[&[x], &parts[..]].concat(), Vec::new());
        }
    }
    Some(())
}
