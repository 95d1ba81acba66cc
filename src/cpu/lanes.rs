//! Sixteen-lane arithmetic.
