//! Memory-mapped model files: safetensors (one file or sharded), `config.json` of every era, PEFT adapters.
//!
//! Everything here treats files as hostile until checked, copies no weight data, and names file and tensor in errors.

mod adapter;
mod checkpoint;
mod config;
mod error;
mod hub;
mod safetensors_file;
mod view;

pub use adapter::{AdapterConfig, AdapterFile, LoraTensors, Module};
pub use checkpoint::Checkpoint;
pub use config::{LayerKind, ModelConfig, Rope, TextConfig, VisionConfig};
pub use error::Error;
pub use hub::resolve_model;
pub use safetensors_file::SafetensorsFile;
pub use view::{Dtype, TensorView};
