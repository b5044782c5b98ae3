//! What a model wants to be fed.

use crate::ir::{DType, Model, Tensor};
use crate::pb;
use anyhow::{Result, ensure};

/// A graph input as declared.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// Public name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, `None` for those that may vary; `None` when the rank is not declared.
    pub dims: Option<Vec<Option<usize>>>,
    /// The symbols of dimensions that may vary, where they have one.
    pub symbols: Vec<Option<String>>,
}

/// The inputs of a model that a caller must feed: those without a default.
pub fn inputs_of(model: &Model) -> Vec<InputSpec> {
    let ports = model.main().inputs().iter();
    ports
        .filter(|p| model.value(p.value).tensor().is_none())
        .map(|p| spec(p.name(), p.info.r#type.as_ref()))
        .collect()
}

fn spec(name: &str, ty: Option<&pb::TypeProto>) -> InputSpec {
    use pb::tensor_shape_proto::dimension::Value as Dim;
    let tensor = match ty.and_then(|t| t.value.as_ref()) {
        Some(pb::type_proto::Value::TensorType(t)) => Some(t),
        _ => None,
    };
    let dims = tensor.and_then(|t| t.shape.as_ref()).map(|s| &s.dim);
    let fixed = |d: &pb::tensor_shape_proto::Dimension| match d.value {
        Some(Dim::DimValue(n)) if n > 0 => usize::try_from(n).ok(),
        _ => None,
    };
    let symbol = |d: &pb::tensor_shape_proto::Dimension| match &d.value {
        Some(Dim::DimParam(s)) if !s.is_empty() => Some(s.clone()),
        _ => None,
    };
    InputSpec {
        name: name.to_owned(),
        dtype: tensor.map_or(DType::Undefined, |t| {
            DType::try_from(t.elem_type()).unwrap_or(DType::Undefined)
        }),
        symbols: dims.map_or(Vec::new(), |d| d.iter().map(symbol).collect()),
        dims: dims.map(|d| d.iter().map(fixed).collect()),
    }
}

impl InputSpec {
    /// The declared type and dimensions as text, e.g. `float[N,3,224,224]`.
    pub fn describe(&self) -> String {
        let dims = self.dims.as_ref().map_or("…".to_owned(), |dims| {
            let one = |(i, d): (usize, &Option<usize>)| match d {
                Some(d) => d.to_string(),
                None => self.symbols[i].clone().unwrap_or_else(|| "?".into()),
            };
            dims.iter().enumerate().map(one).collect::<Vec<_>>().join(",")
        });
        format!("{}[{dims}]", self.dtype.as_str_name().to_lowercase())
    }

    /// Checks that a tensor may be fed to this input.
    ///
    /// # Errors
    /// Says what was expected and what is there.
    pub fn accepts(&self, t: &Tensor) -> Result<()> {
        let says = || {
            let have = format!("{}{:?}", t.dtype().as_str_name().to_lowercase(), t.dims());
            format!("input {:?} is {}, but the data are {have}", self.name, self.describe())
        };
        ensure!(self.dtype == DType::Undefined || self.dtype == t.dtype(), "{}", says());
        if let Some(dims) = &self.dims {
            ensure!(dims.len() == t.dims().len(), "{}", says());
            let fits = dims.iter().zip(t.dims()).all(|(d, h)| d.is_none_or(|d| d == *h));
            ensure!(fits, "{}", says());
        }
        Ok(())
    }
}
