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

use sha2::{Digest, Sha256};

/// SHA-256 of bytes in hexadecimal.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
