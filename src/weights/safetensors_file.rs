//! One safetensors file.
