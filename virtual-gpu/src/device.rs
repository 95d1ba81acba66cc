//! Devices that the library can pass for: what programs ask of a GPU before they launch anything on it.

/// A GPU's properties, from its vendor's data sheets and programming guide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// As `VIRTUAL_GPU_DEVICE` names it.
    pub key: &'static str,
    /// As the driver names it.
    pub name: &'static str,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub processors: i32,
    /// Bytes of device memory.
    pub memory: u64,
    /// Bytes of shared memory that a block may ask for.
    pub shared_opt_in: i32,
    /// Bytes of shared memory of a multiprocessor.
    pub shared_per_processor: i32,
    /// Threads that a multiprocessor holds.
    pub threads_per_processor: i32,
    /// Blocks that a multiprocessor holds.
    pub blocks_per_processor: i32,
    /// Bytes of the second-level cache.
    pub l2: i32,
    /// kHz.
    pub clock: i32,
    /// kHz.
    pub memory_clock: i32,
    /// Bits.
    pub memory_bus: i32,
}

/// Bytes of shared memory of a block that asks for nothing special.
pub const SHARED_DEFAULT: i32 = 48 << 10;
/// Bytes of shared memory that the driver takes of each block.
pub const SHARED_RESERVED: i32 = 1 << 10;
/// Threads of a block.
pub const THREADS_PER_BLOCK: i32 = 1024;
/// Registers of a multiprocessor, and of a block.
pub const REGISTERS: i32 = 65_536;

/// All of them.
pub const MODELS: [Model; 3] = [
    Model {
        key: "a100",
        name: "NVIDIA A100-SXM4-80GB (virtual)",
        capability: (8, 0),
        processors: 108,
        memory: 80 << 30,
        shared_opt_in: 163 << 10,
        shared_per_processor: 164 << 10,
        threads_per_processor: 2048,
        blocks_per_processor: 32,
        l2: 40 << 20,
        clock: 1_410_000,
        memory_clock: 1_593_000,
        memory_bus: 5120,
    },
    Model {
        key: "rtx4090",
        name: "NVIDIA GeForce RTX 4090 (virtual)",
        capability: (8, 9),
        processors: 128,
        memory: 24 << 30,
        shared_opt_in: 99 << 10,
        shared_per_processor: 100 << 10,
        threads_per_processor: 1536,
        blocks_per_processor: 24,
        l2: 72 << 20,
        clock: 2_520_000,
        memory_clock: 10_501_000,
        memory_bus: 384,
    },
    Model {
        key: "h100",
        name: "NVIDIA H100 80GB HBM3 (virtual)",
        capability: (9, 0),
        processors: 132,
        memory: 80 << 30,
        shared_opt_in: 227 << 10,
        shared_per_processor: 228 << 10,
        threads_per_processor: 2048,
        blocks_per_processor: 32,
        l2: 50 << 20,
        clock: 1_980_000,
        memory_clock: 2_619_000,
        memory_bus: 5120,
    },
];

impl Model {
    /// The model of that key, in any case.
    pub fn named(key: &str) -> Option<Self> {
        MODELS.into_iter().find(|model| model.key.eq_ignore_ascii_case(key.trim()))
    }

    /// A device attribute by its number in the driver's interface; `None` for one that is not known here.
    pub fn attribute(&self, number: i32) -> Option<i32> {
        Some(match number {
            1..=3 => THREADS_PER_BLOCK,
            4 => 64,
            5 => i32::MAX,
            6 | 7 => 65_535,
            8 => SHARED_DEFAULT,
            9 => 64 << 10,
            10 => 32,
            11 => i32::MAX,
            12 | 82 => REGISTERS,
            13 => self.clock,
            16 => self.processors,
            // Integrated, exclusive, and the like; pools of memory are plain allocations here.
            15 | 17 | 18 | 20 | 32 | 33 | 34 | 35 | 50 | 115 => 0,
            31 | 40 | 41 | 78 | 79 | 80 => 1,
            36 => self.memory_clock,
            37 => self.memory_bus,
            38 => self.l2,
            39 => self.threads_per_processor,
            75 => self.capability.0,
            76 => self.capability.1,
            81 => self.shared_per_processor,
            97 => self.shared_opt_in,
            106 => self.blocks_per_processor,
            111 => SHARED_RESERVED,
            _ => return None,
        })
    }

    /// Blocks of so many threads and bytes of shared memory that a multiprocessor holds at once. Registers are ptxas's affair.
    pub fn blocks_at_once(&self, threads: i32, shared: i32) -> i32 {
        if threads <= 0 || threads > THREADS_PER_BLOCK || shared > self.shared_opt_in {
            return 0;
        }
        let warps = threads.div_euclid(32) + i32::from(threads % 32 > 0);
        let by_threads = self.threads_per_processor / (32 * warps);
        let by_shared = self.shared_per_processor / (shared.max(0) + SHARED_RESERVED);
        by_threads.min(by_shared).min(self.blocks_per_processor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_known_by_name_and_attributes_by_number() {
        let model = Model::named(" H100 ").unwrap();
        assert_eq!((model.attribute(75), model.attribute(76), model.attribute(16)), (Some(9), Some(0), Some(132)));
        assert_eq!((model.attribute(2), model.attribute(4), model.attribute(9999)), (Some(1024), Some(64), None));
        assert_eq!(Model::named("v100"), None);
    }

    #[test]
    fn occupancy_is_what_the_scarcest_resource_allows() {
        let a100 = Model::named("a100").unwrap();
        assert_eq!(a100.blocks_at_once(256, 0), 8);
        assert_eq!(a100.blocks_at_once(128, 81 << 10), 2);
        assert_eq!(a100.blocks_at_once(1, 0), 32);
        assert_eq!((a100.blocks_at_once(2048, 0), a100.blocks_at_once(32, 200 << 10)), (0, 0));
    }
}
