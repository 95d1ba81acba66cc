//! Units: what computes a matrix product, and so decides its bits. Within a unit every instruction set, number of threads
//! and batch gives the same bits; between units results differ, so a run is stored with its unit.
//!
//! | unit | operands | sum of an element |
//! |---|---|---|
//! | `f32` | f32, weights as stored | one f32 FMA chain over k ascending |
//! | `bf16` | rounded to bf16 | the same chain |
//! | `avx512bf16` | rounded to bf16 | `vdpbf16ps`: one FMA chain over pairs of k ascending, the odd one of a pair first |
//! | `amx` | rounded to bf16 | `tdpbf16ps`: per 32 k an FMA chain of the even and one of the odd from 0, their sum added |
//!
//! The last two are as the instructions are documented (denormals count as 0).

use super::isa::Isa;
use crate::ops::Error;
use std::fmt;

/// A unit; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Unit {
    /// f32 on any instruction set.
    F32,
    /// bf16 operands through the f32 kernels of any instruction set.
    Bf16,
    /// AVX512-BF16's `vdpbf16ps`.
    Avx512Bf16,
    /// AMX's `tdpbf16ps`.
    Amx,
}

impl Unit {
    /// Every unit, in ascending order of speed.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Avx512Bf16, Self::Amx];

    /// Those that this CPU has.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|unit| unit.is_available()).collect()
    }

    /// The fastest bf16 unit of this CPU.
    pub fn best_bf16() -> Self {
        Self::ALL.into_iter().rev().find(|unit| unit.is_available()).unwrap_or(Self::Bf16)
    }

    /// Its name in tables and result files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Avx512Bf16 => "avx512bf16",
            Self::Amx => "amx",
        }
    }

    /// Whether operands of products are rounded to bf16.
    pub const fn rounds(self) -> bool {
        !matches!(self, Self::F32)
    }

    /// Whether this CPU (and operating system) has it. Cheap after the first call.
    pub fn is_available(self) -> bool {
        match self {
            Self::F32 | Self::Bf16 => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Isa::Avx512.is_available() && super::gemm::bf16::amx_is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Unit and instruction set of `--precision` and `--isa`: by default the fastest of that precision.
    ///
    /// # Errors
    /// [`Error::Isa`] for a name that is none or that this CPU lacks; [`Error::Unavailable`] for a bf16 unit in f32.
    pub fn choose(bf16: bool, isa: Option<&str>) -> Result<(Self, Isa), Error> {
        let by_default = if bf16 { Self::best_bf16() } else { Self::F32 };
        let Some(name) = isa else { return Ok((by_default, Isa::best())) };
        let special = [Self::Avx512Bf16, Self::Amx].into_iter().find(|u| u.name().eq_ignore_ascii_case(name.trim()));
        match special {
            Some(unit) if !bf16 => Err(Error::Unavailable {
                message: format!("`{unit}` computes in bf16, expected an instruction set of f32 kernels"),
                hint: format!("add --precision bf16, or use --isa {}", Isa::best()),
            }),
            Some(unit) if unit.is_available() => Ok((unit, Isa::best())),
            Some(_) => Err(lacking(name)),
            None => {
                let isa = Isa::parse(name).map_err(|error| if bf16 { lacking(name) } else { error })?;
                Ok((if bf16 { Self::Bf16 } else { Self::F32 }, isa))
            }
        }
    }
}

/// The error of an instruction set that this CPU lacks, in bf16.
fn lacking(asked: &str) -> Error {
    let mut names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    names.extend([Unit::Avx512Bf16, Unit::Amx].into_iter().filter(|unit| unit.is_available()).map(Unit::name));
    Error::Isa { asked: asked.to_owned(), available: names.join(", ") }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_and_instruction_set_choose_the_unit() {
        assert_eq!(Unit::choose(false, None).unwrap(), (Unit::F32, Isa::best()));
        assert_eq!(Unit::choose(true, None).unwrap(), (Unit::best_bf16(), Isa::best()));
        for isa in Isa::available() {
            assert_eq!(Unit::choose(false, Some(isa.name())).unwrap(), (Unit::F32, isa));
            assert_eq!(Unit::choose(true, Some(isa.name())).unwrap(), (Unit::Bf16, isa));
        }
        for unit in [Unit::Avx512Bf16, Unit::Amx] {
            let found = Unit::choose(true, Some(&unit.name().to_uppercase()));
            match unit.is_available() {
                true => assert_eq!(found.unwrap().0, unit),
                false => assert!(found.unwrap_err().to_string().contains("portable")),
            }
            let message = Unit::choose(false, Some(unit.name())).unwrap_err().to_string();
            assert!(message.contains("bf16"), "{message}");
        }
        assert!(Unit::choose(true, Some("neon")).is_err());
    }
}
