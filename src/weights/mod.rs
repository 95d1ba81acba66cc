//! Memory-mapped model files: safetensors (one file or sharded), `config.json` of every era, PEFT adapters.
//!
//! Everything here treats files as hostile until checked, copies no weight data, and names file and tensor in errors.

mod adapter;
mod adapter_config;
mod atomic;
mod checkpoint;
mod config;
mod error;
mod header;
mod hub;
mod json;
mod names;
mod read_ahead;
mod safetensors_file;
mod safetensors_write;
mod view;

pub use adapter::{AdapterFile, LoraTensors, Module};
pub use adapter_config::{AdapterConfig, Naming, Scales, Targets};
pub use atomic::{check_place, is_leftover, remove_leftovers, replace_folder, sync, write_atomically};
pub use checkpoint::Checkpoint;
pub use config::{LayerKind, ModelConfig, Rope, TextConfig, VisionConfig};
pub use error::Error;
pub use hub::resolve_model;
pub use names::canonical;
pub use safetensors_file::SafetensorsFile;
pub use safetensors_write::{TensorSpec, write_safetensors, write_safetensors_streamed};
pub use view::{Dtype, TensorView};
