//! Matrix products: `MatMul`, `Gemm`, and convolutions whose windows are single places.
//!
//! tract cuts them into panels that it packs one after the other; faer's take a half to a quarter of the time, but for vectors, which stay
//! tract's. An einsum of two is a product of matrices, `C = A·B`, once or in a loop over what all share, when axes that only `A` and `C` have (rows), only `B` and `C`
//! (columns), and only `A` and `B` (depth) each lie in memory like one.

use super::kernel::Kernel;
use super::tail::{self, Tail};
use crate::math::decompose::{Layout, multiply_f32};
use std::cmp::Reverse;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_hir::internal::*;

/// An axis, or several that lie in memory like one: how long it is, and how far apart its numbers are in `A`, `B` and `C`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Axis {
    len: usize,
    steps: [usize; 3],
}

/// A product of two matrices of f32, row by row in `C`. Inputs: `A`, `B`, or the other way round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    swapped: bool,
    /// Loops around the product, the outermost first.
    outer: Vec<Axis>,
    rows: Axis,
    columns: Axis,
    depth: Axis,
    bias: Bias,
    tail: Tail,
    shape: TVec<usize>,
}

/// What is added to the product.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Bias {
    None,
    /// One number for each row, or one for all.
    Rows(Arc<Tensor>),
    /// One for each column.
    Columns(Arc<Tensor>),
}

impl Product {
    /// That of an einsum, if it is one.
    pub fn of(einsum: &EinSum, facts: &[&TypedFact], output: &TypedFact) -> Option<Product> {
        let [a, b] = facts else { return None };
        let all = [*a, *b, output];
        let floats = all.iter().all(|f| f.datum_type == f32::datum_type() && f.is_plain());
        if !floats || einsum.q_params.is_some() {
            return None;
        }
        let shapes: Vec<&[usize]> = all.iter().map(|f| f.shape.as_concrete()).collect::<Option<_>>()?;
        let steps = shapes.iter().map(|s| steps(s)).collect::<Vec<_>>();
        // By who has it, as bits: 1 for A, 2 for B, 4 for C.
        let mut kinds: [Vec<Axis>; 8] = Default::default();
        for axis in einsum.axes.iter_all_axes() {
            let places = axis.inputs.iter().chain(&axis.outputs);
            let mut found = Axis { len: 1, steps: [0; 3] };
            let mut kind = 0;
            for (i, at) in places.enumerate() {
                let [at] = at[..] else {
                    if at.is_empty() {
                        continue;
                    } else {
                        return None;
                    };
                };
                if shapes[i][at] > 1 {
                    found.len = shapes[i][at];
                    found.steps[i] = steps[i][at];
                    kind |= 1 << i;
                }
            }
            kinds[kind].push(found);
        }
        let [_, only_a, only_b, depth, only_c, rows, columns, outer] = kinds;
        if !(only_a.is_empty() && only_b.is_empty() && only_c.is_empty()) {
            return None;
        }
        let (mut rows, mut columns, depth, mut outer) =
            (merged(rows, 2), merged(columns, 2), merged(depth, 0), merged(outer, 2));
        let [depth] = depth[..] else { return None };
        let (row, column) = (rows.pop()?, columns.pop()?);
        outer.extend(rows);
        outer.extend(columns);
        let swapped = column.steps[2] != 1;
        let turn = |axis: Axis| Axis {
            len: axis.len,
            steps: match swapped {
                true => [axis.steps[1], axis.steps[0], axis.steps[2]],
                false => axis.steps,
            },
        };
        let (rows, columns) = if swapped { (column, row) } else { (row, column) };
        let op = Product {
            swapped,
            outer: outer.into_iter().map(turn).collect(),
            rows: turn(rows),
            columns: turn(columns),
            depth: turn(depth),
            bias: Bias::None,
            tail: Tail::NONE,
            shape: shapes[2].into(),
        };
        let direct = op.columns.steps[2] == 1
            && op.rows.steps[0].min(op.depth.steps[0]) == 1
            && op.columns.steps[1].min(op.depth.steps[1]) == 1;
        direct.then_some(op)
    }

    /// With what is done behind the einsum, and the last node that does it.
    ///
    /// # Errors
    /// When the model is not sound.
    pub fn with_what_follows(mut self, model: &TypedModel, einsum: usize) -> TractResult<(Product, usize)> {
        let mut last = einsum;
        if let Some((next, constant)) = tail::bias(model, einsum)? {
            self.bias = self.along(constant);
            last = if self.bias == Bias::None { einsum } else { next };
        }
        (self.tail, last) = Tail::behind(model, last)?;
        Ok((self, last))
    }

    /// A constant that is added to the result, if it is the same in all rows or all columns.
    fn along(&self, constant: Arc<Tensor>) -> Bias {
        let long: Vec<usize> = (0..constant.rank()).filter(|i| constant.shape()[*i] > 1).collect();
        let is = |axis: &Axis, i: usize| axis.len == constant.len() && axis.steps[2] == steps(&self.shape)[i];
        match long[..] {
            [] => Bias::Rows(constant),
            [i] if constant.rank() == self.shape.len() && is(&self.rows, i) => Bias::Rows(constant),
            [i] if constant.rank() == self.shape.len() && is(&self.columns, i) => Bias::Columns(constant),
            _ => Bias::None,
        }
    }

    /// What is done to the product.
    fn finish(&self, c: &mut [f32]) -> TractResult<()> {
        if self.bias == Bias::None && self.tail == Tail::NONE {
            return Ok(());
        }
        for (i, row) in c.chunks_mut(self.rows.steps[2]).enumerate().take(self.rows.len) {
            let row = &mut row[..self.columns.len];
            match &self.bias {
                Bias::None => self.tail.of_all(row, 0.0),
                Bias::Rows(all) => {
                    let all = all.try_as_plain_ram()?;
                    let all = all.as_slice::<f32>()?;
                    self.tail.of_all(row, all[i % all.len()]);
                }
                Bias::Columns(all) => self.tail.of_each(row, all.try_as_plain_ram()?.as_slice::<f32>()?),
            }
        }
        Ok(())
    }

    fn multiply(&self, a: &[f32], b: &[f32], c: &mut [f32]) -> TractResult<()> {
        let (a, b) = if self.swapped { (b, a) } else { (a, b) };
        let times = self.outer.iter().map(|axis| axis.len).product::<usize>();
        let sizes = [self.rows.len, self.depth.len, self.columns.len];
        let [left, right] = [
            Layout::of(self.rows.steps[0], self.depth.steps[0]),
            Layout::of(self.depth.steps[1], self.columns.steps[1]),
        ];
        for i in 0..times {
            let mut at = [0; 3];
            let mut rest = i;
            for axis in self.outer.iter().rev() {
                for (at, step) in at.iter_mut().zip(axis.steps) {
                    *at += rest % axis.len * step;
                }
                rest /= axis.len;
            }
            let c = &mut c[at[2]..];
            multiply_f32(c, self.rows.steps[2], (&a[at[0]..], left), (&b[at[1]..], right), sizes);
            self.finish(c)?;
        }
        Ok(())
    }
}

/// How far apart numbers of each axis are in a tensor of these dimensions.
fn steps(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect()
}

/// Axes that lie behind one another in all tensors become one; in the order in which they lie in one of the tensors.
fn merged(mut axes: Vec<Axis>, by: usize) -> Vec<Axis> {
    axes.retain(|axis| axis.len > 1);
    axes.sort_by_key(|axis| Reverse(axis.steps[by]));
    let mut all: Vec<Axis> = Vec::new();
    for axis in axes {
        match all.last_mut() {
            Some(last) if (0..3).all(|i| last.steps[i] == axis.steps[i] * axis.len) => {
                last.len *= axis.len;
                last.steps = axis.steps;
            }
            _ => all.push(axis),
        }
    }
    all
}

impl Kernel for Product {
    const NAME: &'static str = "OwnProduct";

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn compute(&self, inputs: &[&[f32]], out: &mut [f32]) -> TractResult<()> {
        let [a, b] = inputs else {
            bail!("{} inputs", inputs.len())
        };
        self.multiply(a, b, out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::replace;
    use super::*;
    use tract_onnx::tract_core::ops::math::{add, max, min};

    /// What is done behind a product: the operators, and the dimensions of their constants.
    type Behind<'a> = &'a [(&'a str, &'a [usize])];

    fn ramp(shape: &[usize], step: f32) -> Tensor {
        let all: Vec<f32> = (0..shape.iter().product::<usize>())
            .map(|i| (i as f32 * step).sin())
            .collect();
        Tensor::from_shape(shape, &all).expect("as many")
    }

    fn model(expression: &str, [a, b]: [&[usize]; 2], behind: Behind) -> TractResult<TypedModel> {
        let mut model = TypedModel::default();
        let inputs = [
            model.add_source("a", f32::fact(a))?,
            model.add_source("b", f32::fact(b))?,
        ];
        let op = EinSum::new(expression.parse()?, f32::datum_type());
        let mut last = model.wire_node("product", op, &inputs)?[0];
        for (k, (what, shape)) in behind.iter().enumerate() {
            let (op, constant) = match *what {
                "add" => (add(), ramp(shape, 2.1)),
                "max" => (max(), ramp(shape, 0.0)),
                _ => (min(), tensor0(0.9f32).broadcast_to_shape(shape)?),
            };
            let constant = model.add_const(format!("c{k}"), constant)?;
            last = model.wire_node(format!("n{k}"), op, &[last, constant])?[0];
        }
        model.select_output_outlets(&[last])?;
        Ok(model)
    }

    /// The operators, and what they give.
    fn run(model: TypedModel, inputs: &[Tensor; 2]) -> TractResult<(Vec<String>, Tensor)> {
        let model = model.into_compact()?;
        let names = model.nodes().iter().map(|n| n.op.name().into_owned()).collect();
        let inputs = inputs.iter().map(|t| t.clone().into_tvalue()).collect();
        Ok((names, model.into_runnable()?.run(inputs)?.remove(0).into_tensor()))
    }

    #[test]
    fn products_are_those_of_tract_whatever_the_order_of_axes() {
        let row: Behind = &[("add", &[9, 1, 1]), ("max", &[1, 1, 1]), ("min", &[1, 1, 1])];
        let cases: [(&str, [&[usize]; 2], Behind, usize); 12] = [
            ("amk,kn->mn", [&[1, 7, 5], &[5, 8]], &[("add", &[1, 8])], 0),
            (
                "amk,kn->mn",
                [&[1, 7, 5], &[5, 8]],
                &[("add", &[7, 1]), ("min", &[1, 1])],
                0,
            ),
            (
                "amk,kn->mn",
                [&[1, 7, 5], &[5, 8]],
                &[("add", &[1, 1]), ("max", &[1, 1])],
                0,
            ),
            ("amk,kn->mn", [&[1, 7, 5], &[5, 8]], &[("add", &[7, 8])], 1),
            ("tk,gk->btg", [&[6, 5], &[9, 5]], &[("max", &[1, 1, 1])], 0),
            ("IHW,OI->OHW", [&[4, 3, 5], &[9, 4]], row, 0),
            ("NIHW,OI->NOHW", [&[3, 4, 3, 5], &[9, 4]], &[("add", &[1, 9, 1, 1])], 0),
            ("mbk,nbk->abmn", [&[6, 3, 4], &[5, 3, 4]], &[("add", &[1, 3, 1, 1])], 1),
            ("abmk,kbn->mbn", [&[1, 3, 6, 4], &[4, 3, 5]], &[], 0),
            (
                "mbk,bkn->amn",
                [&[6, 3, 4], &[3, 4, 5]],
                &[("add", &[1, 1, 5]), ("max", &[1, 1, 1])],
                0,
            ),
            ("abk,kn->abn", [&[4, 5, 6], &[6, 7]], &[("add", &[4, 1, 1])], 1),
            ("mk,kn->nm", [&[6, 4], &[4, 5]], &[("add", &[1, 6])], 0),
        ];
        for (expression, shapes, behind, left) in cases {
            let inputs = shapes.map(|s| ramp(s, 0.7));
            let plain = model(expression, shapes, behind).expect(expression);
            let mut ours = plain.clone();
            replace(&mut ours).expect(expression);
            let (names, got) = run(ours, &inputs).expect(expression);
            let (_, want) = run(plain, &inputs).expect(expression);
            assert!(names.iter().any(|n| n == "OwnProduct"), "{expression}: {names:?}");
            let bare = names
                .iter()
                .filter(|n| ["Add", "Max", "Min"].contains(&n.as_str()))
                .count();
            assert_eq!(bare, left, "{expression} {behind:?}: {names:?}");
            got.close_enough(&want, Approximation::Close).expect(expression);
        }
    }

    #[test]
    fn what_is_no_product_of_matrices_is_left() {
        for (expression, shapes) in [
            ("mk,kn->mn", [&[1, 8][..], &[8, 5][..]]),
            ("mk,kn->m", [&[6, 4], &[4, 5]]),
            ("mkb,knb->mnb", [&[6, 4, 2], &[4, 5, 2]]),
            ("mkl,lkn->mn", [&[6, 4, 4], &[4, 4, 5]]),
        ] {
            let mut model = model(expression, shapes, &[]).expect(expression);
            replace(&mut model).expect(expression);
            assert!(model.nodes().iter().any(|n| n.op_is::<EinSum>()), "{expression}");
        }
    }

    #[test]
    fn what_somebody_else_reads_is_not_passed_over() {
        let mut both = model("mk,kn->mn", [&[6, 4], &[4, 5]], &[("add", &[1, 5]), ("max", &[1, 1])]).expect("a model");
        let (product, last) = (both.node_by_name("product").expect("it").id, both.outputs[0]);
        both.select_output_outlets(&[last, product.into()]).expect("both");
        replace(&mut both).expect("both");
        let names: Vec<String> = both.nodes().iter().map(|n| n.op.name().into_owned()).collect();
        assert!(
            names.contains(&"OwnProduct".to_owned()) && names.contains(&"Max".to_owned()),
            "{names:?}"
        );
    }

    #[test]
    fn nan_stays_nan_behind_bounds() {
        let held = |x: f32| {
            let mut all = [x];
            let model = model("mk,kn->mn", [&[6, 4], &[4, 5]], &[("max", &[1, 1]), ("min", &[1, 1])]).expect("a model");
            let product = model.node_by_name("product").expect("it").id;
            Tail::behind(&model, product).expect("sound").0.of_all(&mut all, 0.0);
            all[0]
        };
        assert!(held(f32::NAN).is_nan());
        assert_eq!([held(-1.0), held(0.5), held(7.0)], [0.0, 0.5, 0.9]);
    }
}
