//! Who computes a benchmark: the reference, the engine on one of this machine's instruction sets, a library in process.

use crate::cpu::Isa;
use crate::ops::Error;

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Provider {
    /// Plain f64 loops.
    Reference,
    /// The CPU's kernels in f32.
    Cpu(Isa),
    /// The `gemm` crate, on plain products; in builds with the feature `rivals`.
    Gemm,
}

impl Provider {
    /// All that this machine and build have.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Reference];
        all.extend(Isa::available().into_iter().map(Self::Cpu));
        if cfg!(feature = "rivals") {
            all.push(Self::Gemm);
        }
        all
    }

    /// Those that run unless told otherwise: the widest instruction set, and rivals.
    pub fn usual() -> Vec<Self> {
        let mut usual = vec![Self::Cpu(Isa::best())];
        if cfg!(feature = "rivals") {
            usual.push(Self::Gemm);
        }
        usual
    }

    /// As tables and arguments name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Cpu(isa) => isa.name(),
            Self::Gemm => "gemm",
        }
    }

    /// The instruction set whose peak it is held against.
    pub fn isa(self) -> Isa {
        match self {
            Self::Cpu(isa) => isa,
            Self::Reference | Self::Gemm => Isa::best(),
        }
    }

    /// Reads a name.
    ///
    /// # Errors
    /// An unknown one, or one that is not here; the error lists what is.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let all = Self::available();
        all.iter().copied().find(|provider| provider.name() == name).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|provider| provider.name()).collect();
            Error::Unavailable {
                message: format!(
                    "provider `{name}` is not available: this build on this machine has {}",
                    names.join(", ")
                ),
                hint: "other libraries are in builds with `--features rivals`".into(),
            }
        })
    }
}
