//! Gemma 3's text decoder, written once over [`crate::ops::Device`]: frozen weights, LoRA parameters, sites, and the forward
//! pass that evaluation, training and `trace` share.

#![forbid(unsafe_code)]

mod adapter;
mod effect;
mod engine;
mod error;
mod forward;
mod generate;
mod kv_cache;
mod lora;
mod loss_question;
mod merge;
mod rope;
mod sites;
mod weights;

pub use crate::ops::lora_linear::LoraSlot;
pub use adapter::Adapter;
pub use effect::AdapterEffect;
pub use engine::{AnswerColumns, Engine, Leaf, Target};
pub use error::Error;
pub use forward::{DropoutStep, Entry, Forward, ForwardRequest, OutputRows};
pub use generate::Generated;
pub use kv_cache::KvCache;
pub use lora::{LoraLayout, LoraSettings};
pub use merge::merge;
pub use rope::rope_table;
pub use sites::{Site, SiteKind, SitePlan, SiteWrite};
pub use weights::{EmbedScale, TextModel};
