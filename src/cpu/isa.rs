//! Instruction sets: what this CPU has, chosen once at start-up and handed to every kernel as a value.
//!
//! In f32 all of them give the same bits, so `--isa` changes speed only. Every dispatch to a kernel compiled for an
//! instruction set goes through [`Isa::require`], which makes the unsafe call behind it sound.

use crate::ops::Error;
use std::fmt;

/// An instruction set that kernels are compiled for, in ascending order of speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// Plain Rust with `f32::mul_add`: every target. Slow where the target has no FMA at compile time.
    Portable,
    /// x86-64 with AVX2 and FMA: eight lanes.
    Avx2,
    /// x86-64 with AVX-512F: sixteen lanes.
    Avx512,
}

impl Isa {
    /// Every instruction set the engine knows, whether this CPU has it or not.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Those that this CPU has, slowest first; `Portable` is always there.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The fastest that this CPU has.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// Reads a name as [`Display`](fmt::Display) prints it, in any case.
    ///
    /// # Errors
    /// [`Error::Isa`] where the name is unknown or this CPU lacks the instruction set; it lists what there is.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name.trim()));
        match found {
            Some(isa) if isa.is_available() => Ok(isa),
            _ => {
                let names: Vec<&str> = Self::available().into_iter().map(Self::name).collect();
                Err(Error::Isa { asked: name.to_owned(), available: names.join(", ") })
            }
        }
    }

    /// Its name on the command line and in result files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this CPU (and operating system) has it. Cheap: the answer is cached by the standard library.
    #[inline]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f") && Self::Avx2.is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Checks that this CPU has it, before a kernel compiled for it is called.
    ///
    /// # Panics
    /// Where it is lacking. [`Isa::parse`] and [`Isa::best`] never return such a value.
    #[inline]
    pub fn require(self) {
        assert!(self.is_available(), "this CPU lacks the instruction set `{self}`");
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_is_the_last_available_and_portable_is_always_there() {
        let available = Isa::available();
        assert_eq!(available.first(), Some(&Isa::Portable));
        assert_eq!(available.last(), Some(&Isa::best()));
        for isa in available {
            isa.require();
            assert_eq!(Isa::parse(&isa.to_string()).unwrap(), isa);
            assert_eq!(Isa::parse(&isa.to_string().to_uppercase()).unwrap(), isa);
        }
    }

    #[test]
    fn unknown_names_list_what_there_is() {
        let message = Isa::parse("avx1024").unwrap_err().to_string();
        assert!(message.contains("`avx1024`") && message.contains("portable"), "{message}");
        assert!(Isa::parse("").is_err());
    }

    #[test]
    fn a_lacking_instruction_set_is_an_error() {
        for isa in Isa::ALL {
            assert_eq!(Isa::parse(isa.name()).is_ok(), isa.is_available());
        }
    }
}
