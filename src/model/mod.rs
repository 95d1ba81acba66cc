//! Gemma 3's text decoder, written once over [`crate::ops::Device`]: weights, LoRA parameters, sites, forward pass.

/// Errors.
#[derive(Debug, thiserror::Error)]
pub enum Error {}
impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        None
    }
}
