//! Prompt groups: a question, its paraphrases and its answer, from JSONL as text or from groups.json as token ids.

#![forbid(unsafe_code)]

mod error;
mod groups;
mod prompts;
mod token_group;
mod trace_input;

pub use error::{Error, Problem};
pub use groups::{Answer, GroupFile, Meta, Paraphrase, PromptGroup, ReadOptions, read_groups};
pub use token_group::TokenGroup;
pub use trace_input::{TraceGroup, TraceInput};
