//! What a launch did: exact, the same in every run and at any thread count, so that a test can hold a kernel to it.

use std::ops::AddAssign;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts of one launch, or of several added up.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Names, in the order of [`Counters::values`].
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Every count, in the order of [`Counters::NAMES`].
            pub fn values(&self) -> Vec<u64> {
                vec![$(self.$name),*]
            }

            /// Every count with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                Self::NAMES.iter().copied().zip(self.values())
            }

            /// From counts with their names, as a driver's report has them; those not there are 0. An unknown name is the error.
            pub fn from_named<'a>(counts: impl IntoIterator<Item = (&'a str, u64)>) -> Result<Self, &'a str> {
                let mut counters = Self::default();
                for (name, count) in counts {
                    *counters.by_name(name).ok_or(name)? = count;
                }
                Ok(counters)
            }

            /// The count of that name.
            pub fn by_name(&mut self, name: &str) -> Option<&mut u64> {
                match name {
                    $(stringify!($name) => Some(&mut self.$name),)*
                    _ => None,
                }
            }
        }

        impl AddAssign for Counters {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    /// Kernels launched.
    launches,
    /// Warp instructions of any class.
    instructions,
    /// Matrix multiply-accumulate.
    mma,
    /// ldmatrix.
    ldmatrix,
    /// Loads from shared memory, ldmatrix apart.
    shared_loads,
    /// Stores to shared memory.
    shared_stores,
    /// Loads from global memory, cp.async apart.
    global_loads,
    /// Stores to global memory.
    global_stores,
    /// cp.async.
    async_copies,
    /// Atomics and reductions.
    atomics,
    /// Loads and stores of local memory: spills.
    local_accesses,
    /// Barriers, one for each warp that arrives.
    barriers,
    /// Branches, taken or not.
    branches,
    /// 32-byte sectors of global memory read, each once per warp instruction.
    sectors_read,
    /// 32-byte sectors of global memory written, each once per warp instruction.
    sectors_written,
    /// Passes that shared memory made: 1 for each access without conflict (of up to 128 bytes).
    shared_passes,
    /// Passes beyond the least that the access's bytes need: bank conflicts.
    bank_conflicts,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_out_and_in_by_name() {
        let mut counters = Counters::default();
        for (count, name) in (3..).zip(Counters::NAMES) {
            *counters.by_name(name).unwrap() = count;
        }
        assert_eq!(Counters::from_named(counters.named()), Ok(counters));
        assert_eq!(counters.values()[1], 4);
        assert_eq!(Counters::from_named([("mma", 8)]), Ok(Counters { mma: 8, ..Counters::default() }));
        assert_eq!(Counters::from_named([("mma", 8), ("nma", 1)]), Err("nma"));
        let mut sum = counters;
        sum += counters;
        assert!(sum.named().zip(counters.values()).all(|((_, sum), count)| sum == 2 * count));
    }
}
