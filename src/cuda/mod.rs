//! What the CUDA side of every operation shares: finding driver and NVRTC ([`probe`]), compiling kernels ([`compile`]), device
//! memory ([`memory`], [`buffer`], [`weight`]), launching ([`launch`]) and the device itself ([`device`]).
//!
//! Apart from `ops/*/cuda.rs`, the host side of each operation, which has no unsafe code: everything unsafe is here. Relies on
//! cudarc's bindings of the driver, which are loaded at run time: a build needs no CUDA, and a program starts without it.
//! Everything runs in the order of one stream.

#![warn(missing_docs)]

pub mod buffer;
pub mod compile;
pub mod device;
#[cfg(test)]
mod device_tests;
pub mod error;
pub mod launch;
pub mod memory;
mod nvrtc;
pub mod probe;
pub mod weight;

pub use buffer::{Buf, Element, stride};
pub use device::Cuda;
pub use error::{Error, caught};
pub use launch::{Arg, Kernel, Struct};
pub use weight::Weight;
