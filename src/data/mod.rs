//! data

/// Errors.
#[derive(Debug, thiserror::Error)]
pub enum Error {}
impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        None
    }
}
