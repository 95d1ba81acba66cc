//! `--device`, `--precision`, `--isa`, `--threads`: which back end serves, chosen once per command.

use crate::cpu::{Cpu, Isa, Unit};
use crate::cuda::Cuda;
use crate::ops::reference::{Precision, Reference};
use crate::ops::{Backend, Device, Error, TrainDevice};
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

/// Forward work, to be done on whichever back end was chosen.
pub trait OnDevice {
    /// What it returns.
    type Output;
    /// Does it.
    fn run<D: Device + 'static>(self, device: D) -> crate::Result<Self::Output>;
}

/// Work that needs gradients, to be done on a back end that computes them.
pub trait OnTrainDevice {
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
        Ok(match self.device {
            DeviceName::Reference => self.reference().describe(),
            DeviceName::Cpu => Self { threads: Some(1), ..self.clone() }.cpu()?.describe(),
            DeviceName::Cuda => self.cuda()?.describe(),
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
    /// A back end, precision or instruction set that this build or machine does not have; a GPU that fails at the work.
    pub fn run<W: OnDevice>(&self, work: W) -> crate::Result<W::Output> {
        match self.device {
            DeviceName::Reference => compute(self.reference(), |device| work.run(device)),
            DeviceName::Cpu => compute(self.cpu()?, |device| work.run(device)),
            DeviceName::Cuda => {
                let device = self.cuda()?;
                // What fails on the GPU unwinds from within an operation, which has no error to return.
                crate::cuda::caught(|| compute(device, |device| work.run(device))).map_err(Error::from)?
            }
        }
    }

    /// As [`DeviceArgs::run`] for work that needs gradients.
    ///
    /// # Errors
    /// As there; [`Error::Unavailable`] for a back end that has the forward pass alone.
    pub fn run_training<W: OnTrainDevice>(&self, work: W) -> crate::Result<W::Output> {
        match self.device {
            DeviceName::Reference => compute(self.reference(), |device| work.run(device)),
            DeviceName::Cpu => compute(self.cpu()?, |device| work.run(device)),
            DeviceName::Cuda => Err(Error::Unavailable {
                message: "--device cuda computes no gradients: it has the forward pass alone".into(),
                hint: "use --device cpu".into(),
            }
            .into()),
        }
    }

    fn reference(&self) -> Reference {
        Reference::new(if self.precision == PrecisionName::Bf16 { Precision::Bf16 } else { Precision::F32 })
    }

    fn cpu(&self) -> Result<Cpu, Error> {
        let (unit, isa) = self.unit()?;
        Cpu::with_unit(unit, isa, self.threads)
    }

    fn cuda(&self) -> Result<Cuda, Error> {
        self.check_cuda()?;
        Ok(Cuda::open()?)
    }

    /// Whether the flags make sense for CUDA.
    fn check_cuda(&self) -> Result<(), Error> {
        let refuse = |message: &str, hint: &str| Err(Error::Unavailable { message: message.into(), hint: hint.into() });
        if self.precision == PrecisionName::F32 {
            return refuse(
                "--device cuda computes in bf16 alone: its products run on tensor cores, which take bf16 and sum in f32",
                "use --precision bf16, or --device cpu for f32",
            );
        }
        if self.isa.is_some() {
            return refuse("--isa names instructions of a CPU, and --device cuda was given", "leave --isa out");
        }
        Ok(())
    }
}

/// Runs `work` and names what it ran on, where it came to an end.
fn compute<D: Backend, T>(device: D, work: impl FnOnce(D) -> crate::Result<T>) -> crate::Result<T> {
    let name = device.describe();
    let output = work(device)?;
    eprintln!("computed by {name}");
    Ok(output)
}
