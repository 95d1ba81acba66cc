//! `--device`, `--precision`, `--isa`, `--threads`: which back end serves, chosen once per command.

use crate::cpu::{Cpu, Isa, Unit};
use crate::ops::reference::{Precision, Reference};
use crate::ops::{Backend as _, Error, TrainDevice};
use crate::train::Settings;
use clap::{Args, ValueEnum};

/// Back ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceName {
    /// Hand-written kernels on this machine's CPU.
    Cpu,
    /// CUDA kernels on an NVIDIA GPU.
    Cuda,
    /// Plain f64 loops: slow, the oracle of every test.
    Reference,
}

/// Where products round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionName {
    /// f32 on the CPU, bf16 on CUDA.
    Auto,
    /// f32 activations, weights as stored.
    F32,
    /// Activations rounded to bf16 where they enter products.
    Bf16,
}

/// Flags that choose the back end.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Back end
    #[arg(long, value_enum, default_value = "cpu", help_heading = "Device")]
    pub device: DeviceName,
    /// Where products round
    #[arg(long, value_enum, default_value = "auto", help_heading = "Device")]
    pub precision: PrecisionName,
    /// Instruction set of the CPU kernels: portable, avx2 or avx512; with --precision bf16 also avx512bf16 or amx (default: the
    /// fastest this CPU has)
    #[arg(long, value_name = "NAME", help_heading = "Device")]
    pub isa: Option<String>,
    /// Threads (default: all cores; results do not depend on it)
    #[arg(long, value_name = "N", help_heading = "Device", value_parser = super::count)]
    pub threads: Option<usize>,
}

/// Something to do on whichever back end was chosen.
pub trait OnDevice {
    /// What it returns.
    type Output;
    /// Does it.
    fn run<D: TrainDevice + 'static>(self, device: D) -> crate::Result<Self::Output>;
}

impl DeviceArgs {
    /// The same choices, as a training run's settings name them.
    ///
    /// # Errors
    /// A back end or precision that is none.
    pub fn named(settings: &Settings) -> crate::Result<Self> {
        Ok(Self {
            device: super::choice("model.device", &settings.model.device)?,
            precision: super::choice("model.precision", &settings.model.precision)?,
            isa: settings.run.isa.clone(),
            threads: settings.run.threads,
        })
    }

    /// The precision that will be computed in.
    pub fn precision_name(&self) -> &'static str {
        match (self.precision, self.device) {
            (PrecisionName::Bf16, _) | (PrecisionName::Auto, DeviceName::Cuda) => "bf16",
            _ => "f32",
        }
    }

    /// What would compute, as results name it.
    ///
    /// # Errors
    /// As [`DeviceArgs::run`].
    pub fn describe(&self) -> crate::Result<String> {
        Ok(match (self.device, self.precision) {
            (DeviceName::Reference, PrecisionName::Bf16) => Reference::new(Precision::Bf16).describe(),
            (DeviceName::Reference, _) => Reference::new(Precision::F32).describe(),
            _ => {
                let (unit, isa) = self.unit()?;
                Cpu::with_unit(unit, isa, Some(1))?.describe()
            }
        })
    }

    /// Unit and instruction set of the CPU back end.
    ///
    /// # Errors
    /// What this CPU lacks.
    pub fn unit(&self) -> Result<(Unit, Isa), Error> {
        Unit::choose(self.precision == PrecisionName::Bf16, self.isa.as_deref())
    }

    /// Makes the back end, runs `work` on it, and says on standard error what computed.
    ///
    /// # Errors
    /// A back end, precision or instruction set that this build or machine does not have.
    pub fn run<W: OnDevice>(&self, work: W) -> crate::Result<W::Output> {
        match (self.device, self.precision) {
            (DeviceName::Reference, PrecisionName::Bf16) => compute(Reference::new(Precision::Bf16), work),
            (DeviceName::Reference, _) => compute(Reference::new(Precision::F32), work),
            (DeviceName::Cpu, _) => {
                let (unit, isa) = self.unit()?;
                compute(Cpu::with_unit(unit, isa, self.threads)?, work)
            }
            (DeviceName::Cuda, _) => Err(Error::Unavailable {
                message: "--device cuda is not available: this version has no CUDA kernels".into(),
                hint: "use --device cpu".into(),
            }
            .into()),
        }
    }
}

/// Runs `work` and names what it ran on, where it came to an end.
fn compute<D: TrainDevice + 'static, W: OnDevice>(device: D, work: W) -> crate::Result<W::Output> {
    let name = device.describe();
    let output = work.run(device)?;
    eprintln!("computed by {name}");
    Ok(output)
}
