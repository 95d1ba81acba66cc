//! What CPU operations share: instruction-set dispatch, threads, buffers, packing and the GEMM with one thin file of
//! micro-kernels per instruction set.

pub mod buffers;
pub mod device;
pub mod gemm;
pub mod isa;
pub mod lanes;
pub mod peak;
#[cfg(feature = "rivals")]
pub mod rival;
pub mod rounding;
pub mod threads;
mod unit;

pub use device::{Cpu, CpuBuf, CpuWeight};
pub use isa::Isa;
pub use unit::Unit;
