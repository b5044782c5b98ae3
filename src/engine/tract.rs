//! tract

/// Placeholder until branch h/engine is merged.
pub struct Tract;

impl super::Engine for Tract {
    fn name(&self) -> String {
        "tract".into()
    }
    fn load(&self, _: &crate::ir::Model, _: &[crate::ir::ValueId], _: &crate::data::Sample) -> Result<Box<dyn super::Session>, super::NotRun> {
        Err(super::NotRun("not merged yet".into()))
    }
}
