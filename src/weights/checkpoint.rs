//! A model folder.
