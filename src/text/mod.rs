//! Text to token ids: tokenizer, chat template, answer tokens.

/// Errors of tokenizer and answer tokens.
#[derive(Debug, thiserror::Error)]
pub enum Error {}
impl Error {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        None
    }
}
