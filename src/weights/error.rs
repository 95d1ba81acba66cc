//! Errors of model files.
