//! From PTX statements to the decoded form. Every word of an opcode must be known: what is not is an error that names it.

use super::alu::*;
use super::arithmetic;
use super::program::*;
use crate::ptx::{Body, Error, Instruction, Kernel, Operand, Source, Space, Statement};
use std::collections::{BTreeMap, HashMap};

/// Decodes a kernel of a module.
pub(crate) fn decode(body: &Body, source: &Source) -> Result<Kernel, Error> {
    let mut decoder = Decoder::new(body, source)?;
    let mut places: HashMap<&str, u32> = HashMap::new();
    let mut count = 0;
    for statement in &body.statements {
        match statement {
            Statement::Label(name) => {
                if places.insert(name, count).is_some() {
                    return Err(Error::new(body.line, format!("a second label `{name}`")));
                }
            }
            Statement::Instruction(_) => count += 1,
        }
    }
    let mut instructions = Vec::with_capacity(count as usize + 1);
    for statement in &body.statements {
        let Statement::Instruction(instruction) = statement else { continue };
        let guard = match &instruction.guard {
            Some((name, negated)) => Some(Test { reg: decoder.predicate(name, instruction.line)?, negated: *negated }),
            None => None,
        };
        let op = decoder.instruction(instruction, &places)?;
        instructions.push(Inst { guard, line: instruction.line, op });
    }
    // A kernel ends with its text, if nothing ended it before.
    let line = instructions.last().map_or(body.line, |last: &Inst| last.line);
    instructions.push(Inst { guard: None, line, op: Op::Exit });
    let bytes = body.parameters.last().map_or(0, |last| last.offset + last.size);
    let program = Program {
        instructions,
        files: decoder.files,
        start32: decoder.start32.into_iter().map(|(start, reg)| (reg, start)).collect(),
        start64: decoder.start64.into_iter().map(|(start, reg)| (reg, start)).collect(),
        shared: decoder.shared,
        dynamic: decoder.dynamic,
        local: decoder.local,
    };
    Ok(Kernel {
        name: body.name.clone(),
        parameters: body.parameters.clone(),
        parameter_bytes: bytes,
        static_shared: decoder.shared,
        local_bytes: decoder.local,
        max_threads: body.max_threads,
        registers: body.registers.len(),
        program,
    })
}

struct Decoder<'a> {
    body: &'a Body,
    /// Registers by name: file and number. File 0: 32 bits, 1: 64 bits, 2: predicates.
    registers: HashMap<&'a str, (usize, Reg)>,
    /// Addresses of variables.
    homes: HashMap<&'a str, Start>,
    files: [usize; 3],
    start32: BTreeMap<Start, Reg>,
    start64: BTreeMap<Start, Reg>,
    shared: usize,
    dynamic: usize,
    local: usize,
}

impl<'a> Decoder<'a> {
    fn new(body: &'a Body, source: &'a Source) -> Result<Self, Error> {
        let mut decoder = Self {
            body,
            registers: HashMap::new(),
            homes: HashMap::new(),
            files: [0; 3],
            start32: BTreeMap::new(),
            start64: BTreeMap::new(),
            shared: 0,
            dynamic: 0,
            local: 0,
        };
        for (name, kind) in &body.registers {
            let file = match kind.as_str() {
                "pred" => 2,
                "b64" | "u64" | "s64" | "f64" => 1,
                _ => 0,
            };
            let number = decoder.fresh(file, body.line)?;
            decoder.registers.insert(name, (file, number));
        }
        let mut variable = 0;
        let mut dynamic_align = 16;
        for item in source.variables.iter().chain(&body.variables) {
            let home = match item.space {
                Space::Shared if item.bytes == 0 => {
                    dynamic_align = dynamic_align.max(item.align);
                    Start::DynamicShared
                }
                Space::Shared => {
                    let at = decoder.shared.next_multiple_of(item.align);
                    decoder.shared = at + item.bytes;
                    Start::Value(at as u64)
                }
                Space::Local => {
                    let at = decoder.local.next_multiple_of(item.align);
                    decoder.local = at + item.bytes;
                    Start::Value(at as u64)
                }
                _ => {
                    variable += 1;
                    Start::Variable(variable - 1)
                }
            };
            decoder.homes.insert(&item.name, home);
        }
        for parameter in &body.parameters {
            decoder.homes.insert(&parameter.name, Start::Value(parameter.offset as u64));
        }
        decoder.dynamic = decoder.shared.next_multiple_of(dynamic_align);
        Ok(decoder)
    }

    fn fresh(&mut self, file: usize, line: u32) -> Result<Reg, Error> {
        let number = Reg::try_from(self.files[file]).map_err(|_| Error::new(line, "more than 65536 registers"))?;
        self.files[file] += 1;
        Ok(number)
    }

    fn constant(&mut self, wide: bool, start: Start, line: u32) -> Result<Reg, Error> {
        let known = if wide { &self.start64 } else { &self.start32 };
        if let Some(&reg) = known.get(&start) {
            return Ok(reg);
        }
        let reg = self.fresh(usize::from(wide), line)?;
        if wide {
            self.start64.insert(start, reg)
        } else {
            self.start32.insert(start, reg)
        };
        Ok(reg)
    }

    fn predicate(&self, name: &str, line: u32) -> Result<Reg, Error> {
        match self.registers.get(name) {
            Some(&(2, reg)) => Ok(reg),
            _ => Err(Error::new(line, format!("`{name}` is no predicate"))),
        }
    }

    fn test(&self, operand: &Operand, line: u32) -> Result<Test, Error> {
        match operand {
            Operand::Name(name) => Ok(Test { reg: self.predicate(name, line)?, negated: false }),
            Operand::Not(name) => Ok(Test { reg: self.predicate(name, line)?, negated: true }),
            other => Err(Error::new(line, format!("expected a predicate, found {other:?}"))),
        }
    }

    /// A special register's value at the start.
    fn special(name: &str) -> Option<Start> {
        let axis = |axis: &str| match axis {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        Some(match name {
            "%laneid" => Start::Lane,
            "%warpid" => Start::Warp,
            "%lanemask_eq" => Start::LaneMask(0),
            "%lanemask_lt" => Start::LaneMask(1),
            "%lanemask_le" => Start::LaneMask(2),
            "%lanemask_gt" => Start::LaneMask(3),
            "%lanemask_ge" => Start::LaneMask(4),
            "%dynamic_smem_size" => Start::DynamicSharedSize,
            "%clock" | "%clock64" | "%globaltimer" => Start::Clock,
            "WARP_SZ" => Start::Value(32),
            _ => {
                let (what, of) = name.split_once('.')?;
                match what {
                    "%tid" => Start::Thread(axis(of)?),
                    "%ntid" => Start::BlockSize(axis(of)?),
                    "%ctaid" => Start::Block(axis(of)?),
                    "%nctaid" => Start::Grid(axis(of)?),
                    _ => return None,
                }
            }
        })
    }

    /// An operand that is read, in the file asked for.
    fn source(&mut self, wide: bool, operand: &Operand, line: u32) -> Result<Reg, Error> {
        let start = match operand {
            Operand::Name(name) => match self.registers.get(name.as_str()) {
                Some(&(file, reg)) if file == usize::from(wide) => return Ok(reg),
                Some(_) => {
                    let width = if wide { 64 } else { 32 };
                    return Err(Error::new(line, format!("`{name}` is no register of {width} bits or less")));
                }
                None => match self.homes.get(name.as_str()) {
                    Some(start) => *start,
                    None => Self::special(name).ok_or_else(|| Error::new(line, format!("unknown name `{name}`")))?,
                },
            },
            Operand::Integer(value) => Start::Value(if wide { *value as u64 } else { u64::from(*value as u32) }),
            Operand::Float(bits, width) if (*width == 64) == wide => Start::Value(*bits),
            other => return Err(Error::new(line, format!("expected a value, found {other:?}"))),
        };
        self.constant(wide, start, line)
    }

    fn sources<const N: usize>(&mut self, wide: bool, operands: &[Operand], line: u32) -> Result<[Reg; N], Error> {
        if operands.len() != N {
            return Err(Error::new(line, format!("expected {N} values, found {}", operands.len())));
        }
        let mut found = [0; N];
        for (found, operand) in found.iter_mut().zip(operands) {
            *found = self.source(wide, operand, line)?;
        }
        Ok(found)
    }

    /// A register that is written.
    fn target(&self, wide: bool, operand: &Operand, line: u32) -> Result<Reg, Error> {
        match operand {
            Operand::Name(name) => match self.registers.get(name.as_str()) {
                Some(&(file, reg)) if file == usize::from(wide) => Ok(reg),
                _ => Err(Error::new(line, format!("`{name}` is no register of {} bits", if wide { 64 } else { 32 }))),
            },
            other => Err(Error::new(line, format!("expected a register, found {other:?}"))),
        }
    }

    fn target_slot(&self, operand: &Operand, line: u32) -> Result<Slot, Error> {
        match operand {
            Operand::Name(name) => match self.registers.get(name.as_str()) {
                Some(&(file, reg)) if file < 2 => Ok(Slot { reg, wide: file == 1 }),
                _ => Err(Error::new(line, format!("`{name}` is no register for a value"))),
            },
            other => Err(Error::new(line, format!("expected a register, found {other:?}"))),
        }
    }

    /// A value in whichever file it is; numbers in that of `wide`.
    fn source_slot(&mut self, wide: bool, operand: &Operand, line: u32) -> Result<Slot, Error> {
        if let Operand::Name(name) = operand
            && let Some(&(file, reg)) = self.registers.get(name.as_str())
            && file < 2
        {
            return Ok(Slot { reg, wide: file == 1 });
        }
        Ok(Slot { reg: self.source(wide, operand, line)?, wide })
    }

    /// A memory operand, and the space that its variable says, if it is one.
    fn place(&mut self, operand: &Operand, line: u32) -> Result<Place, Error> {
        let Operand::Address(base, offset) = operand else {
            return Err(Error::new(line, format!("expected an address in brackets, found {operand:?}")));
        };
        let Some(name) = base else {
            return Ok(Place { base: self.constant(true, Start::Value(0), line)?, wide: true, offset: *offset });
        };
        let slot = self.source_slot(true, &Operand::Name(name.clone()), line)?;
        Ok(Place { base: slot.reg, wide: slot.wide, offset: *offset })
    }

    /// The parts of a vector operand, or the operand alone.
    fn parts(operand: &Operand) -> &[Operand] {
        match operand {
            Operand::Vector(parts) => parts,
            other => std::slice::from_ref(other),
        }
    }

    fn registers32<const N: usize>(&self, operand: &Operand, line: u32) -> Result<[Reg; N], Error> {
        let parts = Self::parts(operand);
        if parts.len() != N {
            return Err(Error::new(line, format!("expected {N} registers, found {}", parts.len())));
        }
        let mut found = [0; N];
        for (found, part) in found.iter_mut().zip(parts) {
            *found = self.target(false, part, line)?;
        }
        Ok(found)
    }

    fn instruction(&mut self, of: &Instruction, places: &HashMap<&str, u32>) -> Result<Op, Error> {
        let words: Vec<&str> = of.words.iter().map(String::as_str).collect();
        let (line, operands) = (of.line, &of.operands[..]);
        let unknown = || Error::new(line, format!("unknown instruction `{}`", words.join(".")));
        let arity = |count: usize| match operands.len() == count {
            true => Ok(()),
            false => {
                Err(Error::new(line, format!("`{}` takes {count} operands, found {}", words.join("."), operands.len())))
            }
        };
        let kind = words.last().copied().unwrap_or_default();
        let op = match &words[..] {
            ["ret" | "exit"] => Op::Exit,
            ["trap"] => Op::Trap,
            ["bra"] | ["bra", "uni"] => {
                arity(1)?;
                match &operands[0] {
                    Operand::Name(name) => {
                        let place = places.get(name.as_str());
                        Op::Branch(*place.ok_or_else(|| Error::new(line, format!("no label `{name}`")))?)
                    }
                    other => return Err(Error::new(line, format!("expected a label, found {other:?}"))),
                }
            }
            ["membar", "cta" | "gl" | "sys"] | ["fence", ..] | ["nanosleep", "u32"] | ["prefetch", ..] => Op::Nothing,
            ["bar", "sync"] | ["barrier", "sync"] | ["barrier", "sync", "aligned"] | ["bar", "cta", "sync"] => {
                if operands.len() != 1 || operands[0] != Operand::Integer(0) {
                    return Err(Error::new(line, "only barrier 0 of all threads is offered"));
                }
                Op::Barrier
            }
            ["bar", "warp", "sync"] => Op::WarpBarrier,
            ["activemask", "b32"] => {
                arity(1)?;
                Op::ActiveMask(self.target(false, &operands[0], line)?)
            }
            ["vote", "sync", how, "pred" | "b32"] => {
                arity(3)?;
                let (how, into) = match *how {
                    "ballot" => (Vote::Ballot, self.target(false, &operands[0], line)?),
                    how => {
                        let Operand::Name(name) = &operands[0] else { return Err(unknown()) };
                        let how = match how {
                            "all" => Vote::All,
                            "any" => Vote::Any,
                            "uni" => Vote::Uniform,
                            _ => return Err(unknown()),
                        };
                        (how, self.predicate(name, line)?)
                    }
                };
                let members = Some(self.source(false, &operands[2], line)?);
                Op::Vote { how, into, of: self.test(&operands[1], line)?, members }
            }
            ["shfl", "sync", how, "b32"] => {
                arity(5)?;
                let how = match *how {
                    "up" => Shuffle::Up,
                    "down" => Shuffle::Down,
                    "bfly" => Shuffle::Butterfly,
                    "idx" => Shuffle::Index,
                    _ => return Err(unknown()),
                };
                let (into, valid) = match &operands[0] {
                    Operand::Pair(value, valid) => (Operand::Name(value.clone()), Some(self.predicate(valid, line)?)),
                    other => (other.clone(), None),
                };
                let [of, by, clamp, members] = self.sources(false, &operands[1..], line)?;
                Op::Shuffle { how, into: self.target(false, &into, line)?, valid, of, by, clamp, members }
            }
            ["mma", "sync", "aligned", "m16n8k16", "row", "col", "f32", "bf16", "bf16", "f32"] => {
                arity(4)?;
                Op::MatrixMultiply {
                    into: self.registers32(&operands[0], line)?,
                    a: self.registers32(&operands[1], line)?,
                    b: self.registers32(&operands[2], line)?,
                    c: self.sources(false, Self::parts(&operands[3]), line)?,
                }
            }
            ["ldmatrix", "sync", "aligned", "m8n8", count, rest @ ..] => {
                arity(2)?;
                let transposed = match rest {
                    ["shared", "b16"] | ["shared::cta", "b16"] => false,
                    ["trans", "shared", "b16"] | ["trans", "shared::cta", "b16"] => true,
                    _ => return Err(unknown()),
                };
                let into = match *count {
                    "x1" => self.registers32::<1>(&operands[0], line)?.to_vec(),
                    "x2" => self.registers32::<2>(&operands[0], line)?.to_vec(),
                    "x4" => self.registers32::<4>(&operands[0], line)?.to_vec(),
                    _ => return Err(unknown()),
                };
                Op::MatrixLoad { transposed, into, from: self.place(&operands[1], line)? }
            }
            ["cp", "async", "commit_group"] => Op::CommitAsync,
            ["cp", "async", "wait_all"] => Op::WaitAsync(None),
            ["cp", "async", "wait_group"] => {
                arity(1)?;
                match operands[0] {
                    Operand::Integer(groups) if (0..=64).contains(&groups) => Op::WaitAsync(Some(groups as u32)),
                    _ => return Err(Error::new(line, "expected a number of groups")),
                }
            }
            ["cp", "async", "ca" | "cg", "shared" | "shared::cta", "global", rest @ ..]
                if rest.iter().all(|word| word.starts_with("L2::")) =>
            {
                if !(3..=4).contains(&operands.len()) {
                    return Err(Error::new(line, "cp.async takes 3 or 4 operands"));
                }
                let bytes = match operands[2] {
                    Operand::Integer(bytes @ (4 | 8 | 16)) => bytes as u8,
                    _ => return Err(Error::new(line, "cp.async copies 4, 8 or 16 bytes")),
                };
                let source = operands.get(3).map(|operand| self.source(false, operand, line)).transpose()?;
                Op::CopyAsync {
                    bytes,
                    to: self.place(&operands[0], line)?,
                    from: self.place(&operands[1], line)?,
                    source,
                }
            }
            ["cvta", rest @ ..] => {
                arity(2)?;
                let (back, space) = match rest {
                    ["to", space, "u64"] => (true, *space),
                    [space, "u64"] => (false, *space),
                    _ => return Err(unknown()),
                };
                let space = match space {
                    "global" | "const" => Space::Global,
                    "shared" | "shared::cta" => Space::Shared,
                    "local" => Space::Local,
                    _ => return Err(unknown()),
                };
                let (into, of) = (self.target(true, &operands[0], line)?, self.source(true, &operands[1], line)?);
                if back { Op::FromGeneric { space, into, of } } else { Op::ToGeneric { space, into, of } }
            }
            ["isspacep", space] => {
                arity(2)?;
                let space = match *space {
                    "global" => Space::Global,
                    "shared" => Space::Shared,
                    "local" => Space::Local,
                    _ => return Err(unknown()),
                };
                let Operand::Name(name) = &operands[0] else { return Err(unknown()) };
                Op::IsSpace { space, into: self.predicate(name, line)?, of: self.source(true, &operands[1], line)? }
            }
            ["ld" | "ldu", rest @ ..] => {
                arity(2)?;
                self.load(rest, operands, line)?.ok_or_else(unknown)?
            }
            ["st", rest @ ..] => {
                arity(2)?;
                let (space, count, bytes, _) = memory(rest).ok_or_else(unknown)?;
                let parts = Self::parts(&operands[1]);
                if parts.len() != count {
                    return Err(Error::new(line, format!("expected {count} values, found {}", parts.len())));
                }
                let mut of = Vec::new();
                for part in parts {
                    of.push(self.source_slot(bytes == 8, part, line)?);
                }
                Op::Store { space, bytes, of, to: self.place(&operands[0], line)? }
            }
            ["atom" | "red", rest @ ..] => {
                self.atomic(words[0] == "atom", rest, operands, line)?.ok_or_else(unknown)?
            }
            ["mov", kind] => {
                arity(2)?;
                self.moved(kind, operands, line)?.ok_or_else(unknown)?
            }
            ["setp", rest @ ..] => self.compare(rest, operands, line)?.ok_or_else(unknown)?,
            ["selp", kind] => {
                arity(4)?;
                let test = self.test(&operands[3], line)?;
                match width(kind) {
                    Some(64) => Op::Select64(
                        self.target(true, &operands[0], line)?,
                        self.sources(true, &operands[1..3], line)?,
                        test,
                    ),
                    Some(_) => Op::Select32(
                        self.target(false, &operands[0], line)?,
                        self.sources(false, &operands[1..3], line)?,
                        test,
                    ),
                    None => return Err(unknown()),
                }
            }
            [logic @ ("and" | "or" | "xor" | "not"), "pred"] => {
                let Operand::Name(name) = &operands[0] else { return Err(unknown()) };
                let into = self.predicate(name, line)?;
                let a = self.test(operands.get(1).ok_or_else(unknown)?, line)?;
                match *logic {
                    // ¬a = ¬a ∧ ¬a
                    "not" => {
                        let a = Test { negated: !a.negated, ..a };
                        Op::Predicate(Logic::And, into, [a, a])
                    }
                    logic => {
                        arity(3)?;
                        let logic = self.logic(logic).ok_or_else(unknown)?;
                        Op::Predicate(logic, into, [a, self.test(&operands[2], line)?])
                    }
                }
            }
            ["lop3", "b32"] => {
                arity(5)?;
                let Operand::Integer(table) = operands[4] else { return Err(unknown()) };
                Op::Lop3(
                    table as u32,
                    self.target(false, &operands[0], line)?,
                    self.sources(false, &operands[1..4], line)?,
                )
            }
            ["bfi", "b32"] => {
                arity(5)?;
                Op::Bfi(self.target(false, &operands[0], line)?, self.sources(false, &operands[1..], line)?)
            }
            ["cvt", rest @ ..] => self.convert(rest, operands, line)?.ok_or_else(unknown)?,
            ["mul", "wide", kind] | ["mad", "wide", kind] => {
                let function = arithmetic::wide(kind).ok_or_else(unknown)?;
                let into = self.target(true, operands.first().ok_or_else(unknown)?, line)?;
                let factors = self.sources::<2>(false, operands.get(1..3).ok_or_else(unknown)?, line)?;
                if words[0] == "mul" {
                    arity(3)?;
                    Op::Wide2(function.0, into, factors)
                } else {
                    arity(4)?;
                    Op::Wide3(function.1, into, [factors[0], factors[1], self.source(true, &operands[3], line)?])
                }
            }
            [shift @ ("shl" | "shr"), kind @ ("b64" | "u64" | "s64")] => {
                arity(3)?;
                let function = arithmetic::shift64(shift, kind).ok_or_else(unknown)?;
                let by = self.source(false, &operands[2], line)?;
                Op::Shift64(
                    function,
                    self.target(true, &operands[0], line)?,
                    [self.source(true, &operands[1], line)?, by],
                )
            }
            [count @ ("popc" | "clz" | "bfind"), "b64"] => {
                arity(2)?;
                let function = arithmetic::narrow(count).ok_or_else(unknown)?;
                Op::Narrow(function, self.target(false, &operands[0], line)?, self.source(true, &operands[1], line)?)
            }
            _ => {
                let wide = width(kind).ok_or_else(unknown)? == 64;
                let name = &words[..];
                match (wide, operands.len()) {
                    (false, 2) => Op::Unary32(
                        arithmetic::unary32(name).ok_or_else(unknown)?,
                        self.target(false, &operands[0], line)?,
                        self.source(false, &operands[1], line)?,
                    ),
                    (false, 3) => Op::Binary32(
                        arithmetic::binary32(name).ok_or_else(unknown)?,
                        self.target(false, &operands[0], line)?,
                        self.sources(false, &operands[1..], line)?,
                    ),
                    (false, 4) => Op::Ternary32(
                        arithmetic::ternary32(name).ok_or_else(unknown)?,
                        self.target(false, &operands[0], line)?,
                        self.sources(false, &operands[1..], line)?,
                    ),
                    (true, 2) => Op::Unary64(
                        arithmetic::unary64(name).ok_or_else(unknown)?,
                        self.target(true, &operands[0], line)?,
                        self.source(true, &operands[1], line)?,
                    ),
                    (true, 3) => Op::Binary64(
                        arithmetic::binary64(name).ok_or_else(unknown)?,
                        self.target(true, &operands[0], line)?,
                        self.sources(true, &operands[1..], line)?,
                    ),
                    (true, 4) => Op::Ternary64(
                        arithmetic::ternary64(name).ok_or_else(unknown)?,
                        self.target(true, &operands[0], line)?,
                        self.sources(true, &operands[1..], line)?,
                    ),
                    _ => return Err(unknown()),
                }
            }
        };
        Ok(op)
    }

    fn logic(&self, name: &str) -> Option<Logic> {
        match name {
            "and" => Some(Logic::And),
            "or" => Some(Logic::Or),
            "xor" => Some(Logic::Xor),
            _ => None,
        }
    }

    fn load(&mut self, words: &[&str], operands: &[Operand], line: u32) -> Result<Option<Op>, Error> {
        let Some((space, count, bytes, extend)) = memory(words) else { return Ok(None) };
        let parts = Self::parts(&operands[0]);
        if parts.len() != count {
            return Err(Error::new(line, format!("expected {count} registers, found {}", parts.len())));
        }
        let named = match &operands[1] {
            Operand::Address(Some(name), offset) if space == Space::Param => {
                self.body.parameters.iter().find(|parameter| parameter.name == *name).map(|found| (found, name, offset))
            }
            _ => None,
        };
        if let Some((parameter, name, offset)) = named {
            let inside = usize::try_from(*offset).ok().filter(|at| at + usize::from(bytes) * count <= parameter.size);
            let inside = inside.ok_or_else(|| Error::new(line, format!("{offset} lies outside `{name}`")))?;
            if extend == Extend::Sign && bytes < 4 {
                return Err(Error::new(line, "a short parameter is loaded without its sign"));
            }
            let mut words = Vec::with_capacity(count);
            for (index, part) in parts.iter().enumerate() {
                let offset = parameter.offset + inside + index * usize::from(bytes);
                let into = self.target_slot(part, line)?;
                let of = self.constant(into.wide, Start::Parameter { offset: offset as u32, bytes }, line)?;
                words.push((into, of));
            }
            return Ok(Some(Op::Parameters(words)));
        }
        let into = parts.iter().map(|part| self.target_slot(part, line)).collect::<Result<_, _>>()?;
        Ok(Some(Op::Load { space, bytes, extend, into, from: self.place(&operands[1], line)? }))
    }

    fn atomic(&mut self, returns: bool, words: &[&str], operands: &[Operand], line: u32) -> Result<Option<Op>, Error> {
        let skip =
            |word: &&&str| !matches!(**word, "relaxed" | "acquire" | "release" | "acq_rel" | "cta" | "gpu" | "sys");
        let words: Vec<&str> = words.iter().filter(skip).copied().collect();
        let (space, rest) = match &words[..] {
            ["global", rest @ ..] => (Space::Global, rest),
            ["shared" | "shared::cta", rest @ ..] => (Space::Shared, rest),
            rest => (Space::Generic, rest),
        };
        let [what, kind] = rest else { return Ok(None) };
        let Some(bits) = width(kind) else { return Ok(None) };
        let signed = kind.starts_with('s');
        let what = match (*what, *kind) {
            ("add", "f32") => Atomic::AddF32,
            (_, kind) if kind.starts_with('f') => return Ok(None),
            ("add", _) => Atomic::Add,
            ("min", _) => Atomic::Min { signed },
            ("max", _) => Atomic::Max { signed },
            ("and", _) => Atomic::And,
            ("or", _) => Atomic::Or,
            ("xor", _) => Atomic::Xor,
            ("exch", _) => Atomic::Exchange,
            ("cas", _) => Atomic::CompareExchange,
            _ => return Ok(None),
        };
        let first = usize::from(returns);
        let count = if what == Atomic::CompareExchange { 2 } else { 1 };
        if operands.len() != first + 1 + count || bits < 32 {
            return Ok(None);
        }
        let into = returns.then(|| self.target_slot(&operands[0], line)).transpose()?;
        let at = self.place(&operands[first], line)?;
        let mut values = [None; 2];
        for (value, operand) in values.iter_mut().zip(&operands[first + 1..]) {
            *value = Some(self.source_slot(bits == 64, operand, line)?);
        }
        Ok(Some(Op::Atomic { space, what, bytes: (bits / 8) as u8, into, at, operands: values }))
    }

    fn moved(&mut self, kind: &str, operands: &[Operand], line: u32) -> Result<Option<Op>, Error> {
        if kind == "pred" {
            let Operand::Name(name) = &operands[0] else { return Ok(None) };
            if let Operand::Integer(value) = &operands[1] {
                return Ok(Some(Op::Known(self.predicate(name, line)?, *value != 0)));
            }
            let of = self.test(&operands[1], line)?;
            return Ok(Some(Op::Predicate(Logic::And, self.predicate(name, line)?, [of, of])));
        }
        let Some(bits) = width(kind) else { return Ok(None) };
        Ok(match (&operands[0], &operands[1]) {
            (into, Operand::Vector(parts)) => {
                let parts = parts.iter().map(|part| self.source(false, part, line)).collect::<Result<_, _>>()?;
                Some(Op::Pack { into: self.target_slot(into, line)?, parts })
            }
            (Operand::Vector(parts), of) => {
                let part = |part: &Operand| match part {
                    Operand::Name(name) if name == "_" => Ok(None),
                    other => self.target(false, other, line).map(Some),
                };
                let parts = parts.iter().map(part).collect::<Result<_, _>>()?;
                Some(Op::Unpack { of: self.source_slot(bits == 64, of, line)?, parts })
            }
            (into, of) if bits == 64 => {
                Some(Op::Unary64(|a| *a, self.target(true, into, line)?, self.source(true, of, line)?))
            }
            (into, of) => Some(Op::Unary32(|a| *a, self.target(false, into, line)?, self.source(false, of, line)?)),
        })
    }

    fn compare(&mut self, words: &[&str], operands: &[Operand], line: u32) -> Result<Option<Op>, Error> {
        let words: Vec<&str> = words.iter().copied().filter(|word| *word != "ftz").collect();
        let (how, logic, kind) = match &words[..] {
            [how, kind] => (*how, None, *kind),
            [how, logic, kind] => match self.logic(logic) {
                Some(logic) => (*how, Some(logic), *kind),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        if operands.len() != 3 + usize::from(logic.is_some()) {
            return Ok(None);
        }
        let (yes, no) = match &operands[0] {
            Operand::Name(yes) => (self.predicate(yes, line)?, None),
            Operand::Pair(yes, no) => (self.predicate(yes, line)?, Some(self.predicate(no, line)?)),
            _ => return Ok(None),
        };
        let combined = match logic {
            Some(logic) => Some((logic, self.test(&operands[3], line)?)),
            None => None,
        };
        let verdict = Verdict { yes, no, combined };
        if width(kind) == Some(64) {
            let Some(function) = arithmetic::compare64(how, kind) else { return Ok(None) };
            return Ok(Some(Op::Compare64(function, verdict, self.sources(true, &operands[1..3], line)?)));
        }
        let Some(function) = arithmetic::compare32(how, kind) else { return Ok(None) };
        Ok(Some(Op::Compare32(function, verdict, self.sources(false, &operands[1..3], line)?)))
    }

    fn convert(&mut self, words: &[&str], operands: &[Operand], line: u32) -> Result<Option<Op>, Error> {
        // cvt.rn.bf16x2.f32 d, a, b: a is the high half.
        if let ["rn", "bf16x2", "f32"] = words {
            if operands.len() != 3 {
                return Ok(None);
            }
            let function =
                |a: &V32, b: &V32| map2(a, b, |a, b| bf16_of(f64::from(f(a))) << 16 | bf16_of(f64::from(f(b))));
            let into = self.target(false, &operands[0], line)?;
            return Ok(Some(Op::Binary32(function, into, self.sources(false, &operands[1..], line)?)));
        }
        let (mut round, mut saturate, mut whole) = (Round::Nearest, false, false);
        let mut types = Vec::new();
        for word in words {
            whole |= matches!(*word, "rni" | "rzi" | "rmi" | "rpi");
            match *word {
                "rn" | "rni" => round = Round::Nearest,
                "rz" | "rzi" => round = Round::Zero,
                "rm" | "rmi" => round = Round::Down,
                "rp" | "rpi" => round = Round::Up,
                "ftz" => {}
                "sat" => saturate = true,
                word => match number(word) {
                    Some(number) => types.push(number),
                    None => return Ok(None),
                },
            }
        }
        let ([to, from], [into, of]) = (&types[..], operands) else { return Ok(None) };
        let wide = matches!(from, Number::F64 | Number::Unsigned(64) | Number::Signed(64));
        let of = self.source_slot(wide, of, line)?;
        let into = self.target_slot(into, line)?;
        Ok(Some(Op::Convert { how: Conversion { from: *from, to: *to, round, whole, saturate }, into, of }))
    }
}

/// Bits of a type, up to 64.
fn width(kind: &str) -> Option<u32> {
    crate::ptx::type_bytes(kind).map(|bytes| 8 * bytes as u32)
}

fn number(kind: &str) -> Option<Number> {
    Some(match kind {
        "f32" => Number::F32,
        "f64" => Number::F64,
        "bf16" => Number::Bf16,
        "f16" => Number::F16,
        _ => {
            let bits = width(kind)?;
            match kind.chars().next()? {
                'u' | 'b' => Number::Unsigned(bits),
                's' => Number::Signed(bits),
                _ => return None,
            }
        }
    })
}

/// Space, count, bytes and extension of a load or store by the words after its name.
fn memory(words: &[&str]) -> Option<(Space, usize, u8, Extend)> {
    let (mut space, mut count, mut kind) = (Space::Generic, 1, None);
    for word in words {
        match *word {
            "global" => space = Space::Global,
            "shared" | "shared::cta" => space = Space::Shared,
            "local" => space = Space::Local,
            "const" => space = Space::Const,
            "param" => space = Space::Param,
            "v2" => count = 2,
            "v4" => count = 4,
            // How caches treat it.
            "nc" | "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "volatile" | "relaxed" | "weak" | "acquire"
            | "release" | "gpu" | "cta" | "sys" => {}
            word if word.starts_with("L1::") || word.starts_with("L2::") => {}
            word => kind = Some(word),
        }
    }
    let kind = kind?;
    let bytes = width(kind)? / 8;
    let extend = if kind.starts_with('s') { Extend::Sign } else { Extend::Zero };
    (bytes as usize * count <= 16).then_some((space, count, bytes as u8, extend))
}
