//! Samples with more inputs than their source gives.

use super::{Dataset, Sample, Source, inputs_of};
use crate::ir::Model;
use anyhow::Result;
use std::collections::BTreeMap;
use std::sync::Arc;

struct Added {
    source: Arc<dyn Source>,
    more: Vec<Sample>,
}

impl Source for Added {
    fn len(&self) -> usize {
        self.source.len()
    }

    fn read(&self, i: usize) -> Result<Sample> {
        let mut sample = self.source.read(i)?;
        sample.extend(self.more[i].clone());
        Ok(sample)
    }

    fn dims(&self) -> Option<BTreeMap<String, Vec<usize>>> {
        let mut all = self.source.dims()?;
        let more = self.more.first()?.iter();
        all.extend(more.map(|(name, t)| (name.clone(), t.dims().to_vec())));
        Some(all)
    }
}

impl Dataset {
    /// The same samples with these inputs as well, one set for each sample, for a model that asks for them.
    ///
    /// # Panics
    /// When there are not as many sets as samples.
    pub fn with(&self, more: Vec<Sample>, model: &Model) -> Dataset {
        assert_eq!(more.len(), self.len(), "one set for each sample");
        Dataset {
            source: Arc::new(Added {
                source: self.source.clone(),
                more,
            }),
            specs: Arc::new(inputs_of(model)),
            ..self.clone()
        }
    }
}
