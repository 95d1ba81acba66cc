//! Text to token ids: tokenizer, Gemma's chat format, prompt template, answer tokens.
//!
//! Rendered prompts start with `<bos>`, so nothing here ever lets the tokenizer add it a second time.

#![forbid(unsafe_code)]

mod answers;
mod chat;
mod error;
mod template;
mod tokenizer;

pub use answers::{AnswerIds, AnswerStrings, Answers, Variant};
pub use chat::{ImageTokens, expand_images, user_turn};
pub use error::Error;
pub use template::PromptTemplate;
pub use tokenizer::Tokenizer;

#[cfg(test)]
pub(crate) use tokenizer::tests::tiny as tiny_tokenizer;
