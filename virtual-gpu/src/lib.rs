//! A GPU that is not there: a CUDA driver library that interprets PTX on the CPU and checks every access.
//!
//! `memory` holds what kernels read and write and finds bad accesses and races; `counters` says what a launch did; `fault` says what
//! went wrong, where; `budget` holds counts to what a file allows.

pub mod budget;
pub mod counters;
pub mod device;
pub mod driver;
pub mod exec;
pub mod fault;
pub mod memory;
pub mod ptx;
