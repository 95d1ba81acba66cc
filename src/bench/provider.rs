//! Who computes a benchmark: the reference, the engine on one of this machine's instruction sets, a library in process.

use crate::cpu::{Isa, Unit};
use crate::ops::Error;
use crate::ops::reference::Precision;

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Provider {
    /// Plain f64 loops.
    Reference,
    /// The CPU's kernels: products by the unit, everything else by the instruction set.
    Cpu(Unit, Isa),
    /// The `gemm` crate, on plain products; in builds with the feature `rivals`.
    Gemm,
}

impl Provider {
    /// All that this machine and build have.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Reference];
        all.extend(Isa::available().into_iter().map(|isa| Self::Cpu(Unit::F32, isa)));
        let bf16 = Unit::available().into_iter().filter(|unit| unit.rounds());
        all.extend(bf16.map(|unit| Self::Cpu(unit, Isa::best())));
        if cfg!(feature = "rivals") {
            all.push(Self::Gemm);
        }
        all
    }

    /// Those that run unless told otherwise: the widest instruction set in f32, a bf16 unit with an instruction of its own, rivals.
    pub fn usual() -> Vec<Self> {
        let mut usual = vec![Self::Cpu(Unit::F32, Isa::best())];
        if Unit::best_bf16() != Unit::Bf16 {
            usual.push(Self::Cpu(Unit::best_bf16(), Isa::best()));
        }
        if cfg!(feature = "rivals") {
            usual.push(Self::Gemm);
        }
        usual
    }

    /// As tables and arguments name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Cpu(Unit::F32, isa) => isa.name(),
            Self::Cpu(unit, _) => unit.name(),
            Self::Gemm => "gemm",
        }
    }

    /// The unit and instruction set whose peak it is held against.
    pub fn unit(self) -> (Unit, Isa) {
        match self {
            Self::Cpu(unit, isa) => (unit, isa),
            Self::Reference | Self::Gemm => (Unit::F32, Isa::best()),
        }
    }

    /// Where it rounds operands of products.
    pub fn precision(self) -> Precision {
        if self.unit().0.rounds() { Precision::Bf16 } else { Precision::F32 }
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
