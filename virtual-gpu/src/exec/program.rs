//! The decoded form: registers are numbers, constants lie in registers of their own that are set when a warp starts, and what an
//! instruction computes is a function over 32 lanes.

use super::alu::{V32, V64};
use crate::ptx::Space;

/// A register of the 32-bit or the 64-bit file, or a predicate.
pub(crate) type Reg = u16;

/// What a register holds when a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Start {
    /// A number.
    Value(u64),
    /// threadIdx by axis.
    Thread(u8),
    /// blockDim by axis.
    BlockSize(u8),
    /// blockIdx by axis.
    Block(u8),
    /// gridDim by axis.
    Grid(u8),
    /// Lane in the warp.
    Lane,
    /// Warp in the CTA.
    Warp,
    /// A bit for each lane: this one; those below, with or without it; those above, with or without it.
    LaneMask(u8),
    /// Bytes of the packed parameters from an offset on.
    Parameter { offset: u32, bytes: u8 },
    /// Where the CTA's dynamic shared memory begins.
    DynamicShared,
    /// Bytes of it.
    DynamicSharedSize,
    /// Address of a module's variable, by its place.
    Variable(u32),
    /// A counter that goes up.
    Clock,
}

/// An address: a register and an offset; `wide`: of the 64-bit file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub base: Reg,
    pub wide: bool,
    pub offset: i64,
}

/// A register of either file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub reg: Reg,
    pub wide: bool,
}

/// How a loaded value fills its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extend {
    Zero,
    Sign,
}

/// How two predicates meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

impl Logic {
    pub fn of(self, a: u32, b: u32) -> u32 {
        match self {
            Self::And => a & b,
            Self::Or => a | b,
            Self::Xor => a ^ b,
        }
    }
}

/// A predicate, maybe negated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Test {
    pub reg: Reg,
    pub negated: bool,
}

/// What a comparison writes, and what it is combined with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdict {
    pub yes: Reg,
    pub no: Option<Reg>,
    pub combined: Option<(Logic, Test)>,
}

/// Whom a lane of a shuffle reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What an atomic operation does to the old value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    AddF32,
    Min { signed: bool },
    Max { signed: bool },
    And,
    Or,
    Xor,
    Exchange,
    CompareExchange,
}

/// Integer or floating types of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    Unsigned(u32),
    Signed(u32),
    F32,
    F64,
    Bf16,
    F16,
}

/// Rounding of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

/// A conversion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversion {
    pub from: Number,
    pub to: Number,
    pub round: Round,
    /// Whether the result is a whole number, also of a floating-point type.
    pub whole: bool,
    pub saturate: bool,
}

/// What an instruction does.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Unary32(fn(&V32) -> V32, Reg, Reg),
    Binary32(fn(&V32, &V32) -> V32, Reg, [Reg; 2]),
    Ternary32(fn(&V32, &V32, &V32) -> V32, Reg, [Reg; 3]),
    Unary64(fn(&V64) -> V64, Reg, Reg),
    Binary64(fn(&V64, &V64) -> V64, Reg, [Reg; 2]),
    Ternary64(fn(&V64, &V64, &V64) -> V64, Reg, [Reg; 3]),
    /// 32-bit operands, 64-bit result.
    Wide2(fn(&V32, &V32) -> V64, Reg, [Reg; 2]),
    /// 32-bit factors, 64-bit addend and result.
    Wide3(fn(&V32, &V32, &V64) -> V64, Reg, [Reg; 3]),
    /// 64 bits shifted by 32.
    Shift64(fn(&V64, &V32) -> V64, Reg, [Reg; 2]),
    /// A count of bits of 64.
    Narrow(fn(&V64) -> V32, Reg, Reg),
    Lop3(u32, Reg, [Reg; 3]),
    Bfi(Reg, [Reg; 4]),
    Convert {
        how: Conversion,
        into: Slot,
        of: Slot,
    },
    Compare32(fn(&V32, &V32) -> u32, Verdict, [Reg; 2]),
    Compare64(fn(&V64, &V64) -> u32, Verdict, [Reg; 2]),
    Select32(Reg, [Reg; 2], Test),
    Select64(Reg, [Reg; 2], Test),
    Predicate(Logic, Reg, [Test; 2]),
    /// A predicate that is known.
    Known(Reg, bool),
    /// Words of equal width, the low one first, to a wider register.
    Pack {
        into: Slot,
        parts: Vec<Reg>,
    },
    Unpack {
        of: Slot,
        parts: Vec<Option<Reg>>,
    },
    /// Words of the parameters, each to its register.
    Parameters(Vec<(Slot, Reg)>),
    Load {
        space: Space,
        bytes: u8,
        extend: Extend,
        into: Vec<Slot>,
        from: Place,
    },
    Store {
        space: Space,
        bytes: u8,
        of: Vec<Slot>,
        to: Place,
    },
    Atomic {
        space: Space,
        what: Atomic,
        bytes: u8,
        into: Option<Slot>,
        at: Place,
        operands: [Option<Slot>; 2],
    },
    MatrixLoad {
        transposed: bool,
        into: Vec<Reg>,
        from: Place,
    },
    MatrixMultiply {
        into: [Reg; 4],
        a: [Reg; 4],
        b: [Reg; 2],
        c: [Reg; 4],
    },
    CopyAsync {
        bytes: u8,
        to: Place,
        from: Place,
        source: Option<Reg>,
    },
    CommitAsync,
    /// All but so many groups; `None`: everything.
    WaitAsync(Option<u32>),
    Barrier,
    WarpBarrier,
    Shuffle {
        how: Shuffle,
        into: Reg,
        valid: Option<Reg>,
        of: Reg,
        by: Reg,
        clamp: Reg,
        members: Reg,
    },
    Vote {
        how: Vote,
        into: Reg,
        of: Test,
        members: Option<Reg>,
    },
    ActiveMask(Reg),
    /// The generic address of one in a space, and back.
    ToGeneric {
        space: Space,
        into: Reg,
        of: Reg,
    },
    FromGeneric {
        space: Space,
        into: Reg,
        of: Reg,
    },
    IsSpace {
        space: Space,
        into: Reg,
        of: Reg,
    },
    Branch(u32),
    Exit,
    Trap,
    Nothing,
}

/// An instruction with its guard and line.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub guard: Option<Test>,
    pub line: u32,
    pub op: Op,
}

/// A decoded kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub instructions: Vec<Inst>,
    /// Registers of the 32-bit file, of the 64-bit file, predicates.
    pub files: [usize; 3],
    pub start32: Vec<(Reg, Start)>,
    pub start64: Vec<(Reg, Start)>,
    /// Bytes of static shared memory, before alignment for the dynamic part.
    pub shared: usize,
    /// Where dynamic shared memory begins.
    pub dynamic: usize,
    /// Bytes of local memory.
    pub local: usize,
}
