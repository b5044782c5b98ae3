//! Elementwise operators: the dimensions are those of the operands, broadcast.

use super::call::Call;
use super::fact::{Elem, Fact};
use super::{Table, values};
use crate::ir::DType;
use anyhow::{Result, ensure};

pub(super) const TABLE: Table = &[
    ("Abs", unary),
    ("Acos", unary),
    ("Acosh", unary),
    ("Add", arithmetic),
    ("And", logic),
    ("Asin", unary),
    ("Asinh", unary),
    ("Atan", unary),
    ("Atanh", unary),
    ("Bernoulli", bernoulli),
    ("BitCast", |c| Ok(vec![c.shaped(c.type_attr("to"), 0)])),
    ("BitShift", arithmetic),
    ("BitwiseAnd", arithmetic),
    ("BitwiseNot", unary),
    ("BitwiseOr", arithmetic),
    ("BitwiseXor", arithmetic),
    ("Cast", cast),
    ("CastLike", cast_like),
    ("Ceil", unary),
    ("Celu", unary),
    ("Clip", clip),
    ("Cos", unary),
    ("Cosh", unary),
    ("Div", arithmetic),
    ("Elu", unary),
    ("Equal", logic),
    ("Erf", unary),
    ("Exp", unary),
    ("Floor", unary),
    ("Gelu", unary),
    ("Greater", logic),
    ("GreaterOrEqual", logic),
    ("HardSigmoid", unary),
    ("HardSwish", unary),
    ("Identity", identity),
    ("IsInf", test),
    ("IsNaN", test),
    ("LeakyRelu", unary),
    ("Less", logic),
    ("LessOrEqual", logic),
    ("Log", unary),
    ("Max", variadic),
    ("Mean", variadic),
    ("Min", variadic),
    ("Mish", unary),
    ("Mod", arithmetic),
    ("Mul", arithmetic),
    ("Neg", unary),
    ("Not", not),
    ("Or", logic),
    ("PRelu", prelu),
    ("Pow", arithmetic),
    ("Reciprocal", unary),
    ("Relu", unary),
    ("Round", unary),
    ("Selu", unary),
    ("Shrink", unary),
    ("Sigmoid", unary),
    ("Sign", unary),
    ("Sin", unary),
    ("Sinh", unary),
    ("Softplus", unary),
    ("Softsign", unary),
    ("Sqrt", unary),
    ("Sub", arithmetic),
    ("Sum", variadic),
    ("SwiGLU", unary),
    ("Swish", unary),
    ("Tan", unary),
    ("Tanh", unary),
    ("ThresholdedRelu", unary),
    ("Where", where_),
    ("Xor", logic),
];

fn unary(c: &Call) -> Result<Vec<Fact>> {
    let elems = c.elems(0).and_then(|x| values::unary(&c.node.op.name, c.dtype(0), x));
    Ok(vec![c.like(0).with_elems(elems)])
}

fn identity(c: &Call) -> Result<Vec<Fact>> {
    Ok(c.fact(0).cloned().into_iter().collect())
}

fn test(c: &Call) -> Result<Vec<Fact>> {
    Ok(vec![c.shaped(Some(DType::Bool), 0)])
}

fn not(c: &Call) -> Result<Vec<Fact>> {
    let flip = |e: &Elem| e.int().map_or(Elem::Unknown, |i| Elem::Int(i64::from(i == 0)));
    let elems = c.elems(0).map(|x| x.iter().map(flip).collect());
    Ok(vec![c.shaped(Some(DType::Bool), 0).with_elems(elems)])
}

/// Two operands. Before opset 7 the second was fitted to the first, by the attributes `broadcast` and `axis`.
fn binary(c: &Call, dtype: Option<DType>) -> Result<Vec<Fact>> {
    let limited = c.opset < 7 && c.node.op.name != "Mod";
    if limited {
        return Ok(vec![c.shaped(dtype, 0)]);
    }
    let shape = c.broadcast([0, 1])?;
    let elems = match (c.fact(0), c.fact(1)) {
        (Some(a), Some(b)) => values::binary(c, a, b, shape.as_deref()),
        _ => None,
    };
    Ok(vec![Fact::new(dtype, shape).with_elems(elems)])
}

fn arithmetic(c: &Call) -> Result<Vec<Fact>> {
    // The exponent may be of another type.
    let second = c.dtype(1).filter(|_| c.node.op.name != "Pow");
    binary(c, c.dtype(0).or(second))
}

fn logic(c: &Call) -> Result<Vec<Fact>> {
    binary(c, Some(DType::Bool))
}

/// Any number of operands; before opset 8 all had the same dimensions.
fn variadic(c: &Call) -> Result<Vec<Fact>> {
    let n = c.inputs.len();
    let dtype = (0..n).find_map(|i| c.dtype(i));
    if n == 1 {
        return Ok(vec![c.like(0).with_elems(c.elems(0).map(<[Elem]>::to_vec))]);
    }
    if n == 2 && c.opset >= 8 {
        return binary(c, dtype);
    }
    let shape = if c.opset < 8 {
        c.shape(0).map(<[_]>::to_vec)
    } else {
        c.broadcast(0..n)?
    };
    Ok(vec![Fact::new(dtype, shape)])
}

fn clip(c: &Call) -> Result<Vec<Fact>> {
    Ok(vec![c.like(0).with_elems(values::clip(c))])
}

/// The slope is broadcast to the input, one way.
fn prelu(c: &Call) -> Result<Vec<Fact>> {
    if let (Some(x), Some(s), true) = (c.shape(0), c.shape(1), c.opset >= 9) {
        let per_channel = s.len() == 1; // accepted by engines along axis 1 as well
        ensure!(
            per_channel || s.len() <= x.len(),
            "the slope has more dimensions than the input"
        );
    }
    Ok(vec![c.like(0)])
}

fn cast(c: &Call) -> Result<Vec<Fact>> {
    // Before opset 6 the attribute was a string such as "FLOAT".
    let named = || DType::from_str_name(c.node.string("to")?);
    let to = c.type_attr("to").or_else(named);
    Ok(vec![cast_to(c, to)])
}

fn cast_like(c: &Call) -> Result<Vec<Fact>> {
    Ok(vec![cast_to(c, c.dtype(1))])
}

fn cast_to(c: &Call, to: Option<DType>) -> Fact {
    let elems = to.and_then(|to| Some(values::cast(to, c.elems(0)?)));
    c.shaped(to, 0).with_elems(elems)
}

fn bernoulli(c: &Call) -> Result<Vec<Fact>> {
    Ok(vec![c.shaped(c.type_attr("dtype").or(c.dtype(0)), 0)])
}

fn where_(c: &Call) -> Result<Vec<Fact>> {
    let shape = c.broadcast([0, 1, 2])?;
    let dtype = c.dtype(1).or(c.dtype(2));
    let elems = shape.as_deref().and_then(|s| values::select(c, s));
    Ok(vec![Fact::new(dtype, shape).with_elems(elems)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{dims, elems, f, facts, int, ints, typed};
    use super::super::{Elem, Fact};
    use crate::ir::{Attr, DType};

    #[test]
    fn before_opset_7_the_second_operand_was_fitted_to_the_first() {
        let x = [f("N, 3, 4"), f("3")];
        assert_eq!(
            dims("Add", 6, vec![Attr::int("broadcast", 1), Attr::int("axis", 1)], &x),
            "[N, 3, 4]"
        );
        assert!(dims("Add", 7, vec![], &x).starts_with("error"));
    }

    #[test]
    fn arithmetic_on_shapes_is_computed() {
        assert_eq!(elems("Mul", 13, vec![], &[ints(&[2, 3]), int(4)]), "8 12");
        assert_eq!(elems("Div", 13, vec![], &[ints(&[-7]), int(2)]), "-3", "towards zero");
        assert_eq!(elems("Mod", 13, vec![], &[ints(&[-7]), int(2)]), "1");
        assert_eq!(elems("Div", 13, vec![], &[ints(&[7]), int(0)]), "?");
        assert_eq!(elems("Mul", 13, vec![], &[ints(&[i64::MAX]), int(2)]), "?");
        assert_eq!(elems("Div", 13, vec![], &[ints(&[i64::MIN]), int(-1)]), "?");
        assert_eq!(elems("Less", 13, vec![], &[ints(&[1, 3]), int(2)]), "1 0");
    }

    #[test]
    fn names_survive_what_does_not_change_them() {
        let n = Fact::list(vec![Elem::Symbol("N".into())]);
        assert_eq!(elems("Mul", 13, vec![], &[n.clone(), int(1)]), "N");
        assert_eq!(elems("Add", 13, vec![], &[n.clone(), int(1)]), "?");
        assert_eq!(elems("Sub", 13, vec![], &[n.clone(), n.clone()]), "0");
        assert_eq!(
            elems("Equal", 13, vec![], &[n.clone(), int(-1)]),
            "0",
            "dimensions are not negative"
        );
        let cond = facts("Equal", 13, vec![], &[n.clone(), int(-1)])
            .expect("fits")
            .remove(0);
        assert_eq!(elems("Where", 13, vec![], &[cond, int(1), n]), "N");
    }

    #[test]
    fn casts_cut_off_and_keep_to_the_range() {
        let x = super::super::testing::floats(&[2.9, -2.9, 1e30]);
        let to = |d: DType| vec![Attr::int("to", d as i64)];
        assert_eq!(elems("Cast", 13, to(DType::Int64), &[x]), "2 -2 ?");
        assert_eq!(elems("Cast", 13, to(DType::Uint8), &[ints(&[300, 7])]), "? 7");
        assert_eq!(
            facts("Cast", 5, vec![Attr::string("to", "INT32")], &[f("N")]).expect("fits")[0],
            typed(DType::Int32, "N")
        );
    }
}
