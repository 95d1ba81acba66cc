//! Local Hugging Face cache.
