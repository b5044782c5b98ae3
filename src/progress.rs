//! Showing how far a long step is. The library never prints: a caller hands in a [`Progress`].

/// Told how far a step is.
pub trait Progress: Sync {
    /// A step of `total` units begins.
    fn start(&self, what: &str, total: usize);
    /// So many more units are done.
    fn advance(&self, units: usize);
    /// The step is over.
    fn finish(&self);
}

/// Shows nothing.
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &str, _: usize) {}
    fn advance(&self, _: usize) {}
    fn finish(&self) {}
}
