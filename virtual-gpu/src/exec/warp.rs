//! A warp: its registers, where its lanes stand, and one step of those that stand lowest.
//!
//! Lanes that part at a branch run by turns, the lowest in the text first, and go on together where they meet: for code as compilers
//! lay it out that is where the branch ends.

use super::alu::{V32, V64};
use super::convert::convert;
use super::cta::{Cta, Stop};
use super::program::*;
use crate::fault::FaultKind;
use crate::memory::{Access, Data, LANES, WIDEST};
use crate::ptx::Space;

/// Generic addresses of shared and of local memory have these bits set.
pub(super) const SHARED_WINDOW: u64 = 1 << 56;
pub(super) const LOCAL_WINDOW: u64 = 1 << 57;
const WINDOWS: u64 = SHARED_WINDOW | LOCAL_WINDOW;

/// Lanes at one place.
#[derive(Clone, Copy, Debug)]
struct Group {
    pc: u32,
    mask: u32,
}

/// Why a warp stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It does not.
    Runs,
    /// At a barrier.
    Waits,
    /// Every lane has ended.
    Ended,
}

pub(super) struct Warp {
    pub index: u32,
    r32: Vec<V32>,
    r64: Vec<V64>,
    predicates: Vec<u32>,
    /// Lanes whose register was written.
    written32: Vec<u32>,
    written64: Vec<u32>,
    written_predicates: Vec<u32>,
    local: Vec<u8>,
    groups: Vec<Group>,
    pub standing: Standing,
    /// Lanes that exist.
    members: u32,
    /// Lanes that have ended.
    ended: u32,
}

/// A finding in a lane, at a line.
pub(super) type Trouble = (u32, FaultKind);

impl Warp {
    /// A warp at the start of a program. `start` gives the value that a lane's register starts with.
    pub fn new(index: u32, program: &Program, members: u32, start: impl Fn(Start, u32) -> u64) -> Self {
        let [count32, count64, predicates] = program.files;
        let mut warp = Self {
            index,
            r32: vec![[0; 32]; count32],
            r64: vec![[0; 32]; count64],
            predicates: vec![0; predicates],
            written32: vec![0; count32],
            written64: vec![0; count64],
            written_predicates: vec![0; predicates],
            local: vec![0; program.local * LANES],
            groups: vec![Group { pc: 0, mask: members }],
            standing: Standing::Runs,
            members,
            ended: 0,
        };
        for &(reg, value) in &program.start32 {
            warp.r32[reg as usize] = std::array::from_fn(|lane| start(value, lane as u32) as u32);
            warp.written32[reg as usize] = u32::MAX;
        }
        for &(reg, value) in &program.start64 {
            warp.r64[reg as usize] = std::array::from_fn(|lane| start(value, lane as u32));
            warp.written64[reg as usize] = u32::MAX;
        }
        warp
    }

    /// Lanes that have ended, of those that exist.
    pub fn has_ended_lanes(&self) -> bool {
        self.ended != 0
    }

    /// Runs up to `count` instructions; returns how many ran.
    pub fn run(&mut self, program: &Program, cta: &mut Cta<'_>, count: u32) -> Result<u32, Stop> {
        let mut ran = 0;
        while ran < count && self.standing == Standing::Runs {
            self.step(program, cta)?;
            ran += 1;
        }
        Ok(ran)
    }

    /// One instruction of the lowest group.
    fn step(&mut self, program: &Program, cta: &mut Cta<'_>) -> Result<(), Stop> {
        // The last group is the lowest.
        let Some(group) = self.groups.last().copied() else {
            self.standing = Standing::Ended;
            return Ok(());
        };
        let Group { pc, mask } = group;
        let inst = &program.instructions[pc as usize];
        let stop = |(lane, kind): Trouble| Stop { warp: self.index, lane, line: inst.line, kind };
        let active = match inst.guard {
            None => mask,
            Some(test) => mask & self.truth(test, mask).map_err(stop)?,
        };
        cta.counters.instructions += 1;
        let mut next = pc + 1;
        let mut parted = None;
        match &inst.op {
            Op::Branch(target) => {
                cta.counters.branches += 1;
                if active == mask {
                    next = *target;
                } else if active != 0 {
                    parted = Some(Group { pc: *target, mask: active });
                }
            }
            Op::Exit => {
                if active != 0 {
                    self.ended |= active;
                    let rest = mask & !active;
                    self.groups.pop();
                    if rest != 0 {
                        self.join(Group { pc: next, mask: rest });
                    }
                    if self.groups.is_empty() {
                        self.standing = Standing::Ended;
                    }
                    return Ok(());
                }
            }
            Op::Barrier => {
                if active != 0 {
                    let alive = self.members & !self.ended;
                    if active != alive {
                        let why =
                            format!("lanes {active:#010x} of warp {} are there, {alive:#010x} are running", self.index);
                        return Err(stop((active.trailing_zeros(), FaultKind::Barrier(why))));
                    }
                    cta.counters.barriers += 1;
                    self.standing = Standing::Waits;
                }
            }
            op => {
                if active != 0 || matches!(op, Op::MatrixMultiply { .. } | Op::MatrixLoad { .. }) {
                    let line = inst.line;
                    let index = self.index;
                    self.work(op, active, line, cta).map_err(|(lane, kind)| Stop { warp: index, lane, line, kind })?;
                }
            }
        }
        match parted {
            None => {
                // The common case: on to the next instruction, unless another group stands there or lower.
                if self.groups.len() == 1 {
                    self.groups[0].pc = next;
                } else {
                    self.groups.pop();
                    self.join(Group { pc: next, mask });
                }
            }
            Some(taken) => {
                self.groups.pop();
                self.join(Group { pc: next, mask: mask & !taken.mask });
                self.join(taken);
            }
        }
        Ok(())
    }

    /// Puts a group in its place, highest first, or together with one that stands there.
    fn join(&mut self, group: Group) {
        match self.groups.binary_search_by(|other| group.pc.cmp(&other.pc)) {
            Ok(at) => self.groups[at].mask |= group.mask,
            Err(at) => self.groups.insert(at, group),
        }
    }

    fn truth(&self, test: Test, mask: u32) -> Result<u32, Trouble> {
        let missing = mask & !self.written_predicates[test.reg as usize];
        if missing != 0 {
            return Err(unwritten(missing, "predicate"));
        }
        let value = self.predicates[test.reg as usize];
        Ok(if test.negated { !value } else { value })
    }

    fn set_predicate(&mut self, reg: Reg, value: u32, mask: u32) {
        let place = &mut self.predicates[reg as usize];
        *place = *place & !mask | value & mask;
        self.written_predicates[reg as usize] |= mask;
    }

    #[inline(always)]
    fn a32(&self, reg: Reg, mask: u32) -> Result<&V32, Trouble> {
        let missing = mask & !self.written32[reg as usize];
        if missing != 0 { Err(unwritten(missing, "32-bit register")) } else { Ok(&self.r32[reg as usize]) }
    }

    #[inline(always)]
    fn a64(&self, reg: Reg, mask: u32) -> Result<&V64, Trouble> {
        let missing = mask & !self.written64[reg as usize];
        if missing != 0 { Err(unwritten(missing, "64-bit register")) } else { Ok(&self.r64[reg as usize]) }
    }

    #[inline(always)]
    fn set32(&mut self, reg: Reg, value: &V32, mask: u32) {
        let place = &mut self.r32[reg as usize];
        if mask == u32::MAX {
            *place = *value;
        } else {
            for lane in 0..32 {
                if mask >> lane & 1 == 1 {
                    place[lane] = value[lane];
                }
            }
        }
        self.written32[reg as usize] |= mask;
    }

    #[inline(always)]
    fn set64(&mut self, reg: Reg, value: &V64, mask: u32) {
        let place = &mut self.r64[reg as usize];
        if mask == u32::MAX {
            *place = *value;
        } else {
            for lane in 0..32 {
                if mask >> lane & 1 == 1 {
                    place[lane] = value[lane];
                }
            }
        }
        self.written64[reg as usize] |= mask;
    }

    /// A value of either file, widened.
    fn slot(&self, slot: Slot, mask: u32) -> Result<V64, Trouble> {
        match slot.wide {
            true => self.a64(slot.reg, mask).copied(),
            false => self.a32(slot.reg, mask).map(|value| value.map(u64::from)),
        }
    }

    fn set_slot(&mut self, slot: Slot, value: &V64, mask: u32) {
        match slot.wide {
            true => self.set64(slot.reg, value, mask),
            false => self.set32(slot.reg, &value.map(|value| value as u32), mask),
        }
    }

    fn addresses(&self, place: Place, mask: u32) -> Result<[u64; LANES], Trouble> {
        let offset = place.offset as u64;
        Ok(match place.wide {
            true => self.a64(place.base, mask)?.map(|base| base.wrapping_add(offset)),
            // Addresses of shared memory are 32 bits.
            false => self.a32(place.base, mask)?.map(|base| u64::from(base.wrapping_add(offset as u32))),
        })
    }

    fn work(&mut self, op: &Op, mask: u32, line: u32, cta: &mut Cta<'_>) -> Result<(), Trouble> {
        match *op {
            Op::Unary32(f, into, a) => {
                let value = f(self.a32(a, mask)?);
                self.set32(into, &value, mask);
            }
            Op::Binary32(f, into, [a, b]) => {
                let value = f(self.a32(a, mask)?, self.a32(b, mask)?);
                self.set32(into, &value, mask);
            }
            Op::Ternary32(f, into, [a, b, c]) => {
                let value = f(self.a32(a, mask)?, self.a32(b, mask)?, self.a32(c, mask)?);
                self.set32(into, &value, mask);
            }
            Op::Unary64(f, into, a) => {
                let value = f(self.a64(a, mask)?);
                self.set64(into, &value, mask);
            }
            Op::Binary64(f, into, [a, b]) => {
                let value = f(self.a64(a, mask)?, self.a64(b, mask)?);
                self.set64(into, &value, mask);
            }
            Op::Ternary64(f, into, [a, b, c]) => {
                let value = f(self.a64(a, mask)?, self.a64(b, mask)?, self.a64(c, mask)?);
                self.set64(into, &value, mask);
            }
            Op::Wide2(f, into, [a, b]) => {
                let value = f(self.a32(a, mask)?, self.a32(b, mask)?);
                self.set64(into, &value, mask);
            }
            Op::Wide3(f, into, [a, b, c]) => {
                let value = f(self.a32(a, mask)?, self.a32(b, mask)?, self.a64(c, mask)?);
                self.set64(into, &value, mask);
            }
            Op::Shift64(f, into, [a, b]) => {
                let value = f(self.a64(a, mask)?, self.a32(b, mask)?);
                self.set64(into, &value, mask);
            }
            Op::Narrow(f, into, a) => {
                let value = f(self.a64(a, mask)?);
                self.set32(into, &value, mask);
            }
            Op::Lop3(table, into, [a, b, c]) => {
                let (a, b, c) = (self.a32(a, mask)?, self.a32(b, mask)?, self.a32(c, mask)?);
                let value = super::alu::map3(a, b, c, |a, b, c| super::alu::lop3(a, b, c, table));
                self.set32(into, &value, mask);
            }
            Op::Bfi(into, [a, b, c, d]) => {
                let (a, b, c, d) = (self.a32(a, mask)?, self.a32(b, mask)?, self.a32(c, mask)?, self.a32(d, mask)?);
                let value = std::array::from_fn(|lane| super::alu::bfi(a[lane], b[lane], c[lane], d[lane]));
                self.set32(into, &value, mask);
            }
            Op::Convert { how, into, of } => {
                let value = self.slot(of, mask)?.map(|bits| convert(bits, how));
                self.set_slot(into, &value, mask);
            }
            Op::Compare32(f, verdict, [a, b]) => {
                let found = f(self.a32(a, mask)?, self.a32(b, mask)?);
                self.settle(verdict, found, mask)?;
            }
            Op::Compare64(f, verdict, [a, b]) => {
                let found = f(self.a64(a, mask)?, self.a64(b, mask)?);
                self.settle(verdict, found, mask)?;
            }
            Op::Select32(into, [a, b], test) => {
                let chosen = self.truth(test, mask)?;
                // Only what is chosen is read.
                let value = {
                    let (a, b) = (self.a32(a, mask & chosen)?, self.a32(b, mask & !chosen)?);
                    std::array::from_fn(|lane| if chosen >> lane & 1 == 1 { a[lane] } else { b[lane] })
                };
                self.set32(into, &value, mask);
            }
            Op::Select64(into, [a, b], test) => {
                let chosen = self.truth(test, mask)?;
                let value = {
                    let (a, b) = (self.a64(a, mask & chosen)?, self.a64(b, mask & !chosen)?);
                    std::array::from_fn(|lane| if chosen >> lane & 1 == 1 { a[lane] } else { b[lane] })
                };
                self.set64(into, &value, mask);
            }
            Op::Known(into, value) => self.set_predicate(into, if value { u32::MAX } else { 0 }, mask),
            Op::Predicate(logic, into, [a, b]) => {
                let value = logic.of(self.truth(a, mask)?, self.truth(b, mask)?);
                self.set_predicate(into, value, mask);
            }
            Op::Pack { into, ref parts } => {
                let bits = (if into.wide { 64 } else { 32 }) / parts.len() as u32;
                let mut value = [0_u64; 32];
                for (index, &part) in parts.iter().enumerate() {
                    let part = self.a32(part, mask)?;
                    for lane in 0..32 {
                        let low = u64::from(part[lane]) & (u64::MAX >> (64 - bits));
                        value[lane] |= low << (bits * index as u32);
                    }
                }
                self.set_slot(into, &value, mask);
            }
            Op::Unpack { of, ref parts } => {
                let bits = (if of.wide { 64 } else { 32 }) / parts.len() as u32;
                let value = self.slot(of, mask)?;
                for (index, part) in parts.iter().enumerate() {
                    if let Some(part) = *part {
                        let low = value.map(|v| (v >> (bits * index as u32) & (u64::MAX >> (64 - bits))) as u32);
                        self.set32(part, &low, mask);
                    }
                }
            }
            Op::Parameters(ref words) => {
                for &(into, of) in words {
                    if into.wide {
                        let value = *self.a64(of, mask)?;
                        self.set64(into.reg, &value, mask);
                    } else {
                        let value = *self.a32(of, mask)?;
                        self.set32(into.reg, &value, mask);
                    }
                }
            }
            Op::Load { space, bytes, extend, ref into, from } => {
                let addresses = self.addresses(from, mask)?;
                self.load(space, bytes, extend, into, &addresses, mask, line, cta)?;
            }
            Op::Store { space, bytes, ref of, to } => {
                let addresses = self.addresses(to, mask)?;
                self.store(space, bytes, of, &addresses, mask, line, cta)?;
            }
            Op::Atomic { space, what, bytes, into, at, operands } => {
                let addresses = self.addresses(at, mask)?;
                self.atomic(space, what, bytes, into, operands, &addresses, mask, line, cta)?;
            }
            Op::MatrixLoad { transposed, ref into, from } => {
                self.whole(mask, "ldmatrix")?;
                // The addresses of 8 lanes for each matrix count.
                let rows = u32::MAX >> (32 - 8 * into.len() as u32);
                let addresses = self.addresses(from, rows)?;
                let addresses = addresses.map(|address| address & !SHARED_WINDOW);
                let access = Access { addresses: &addresses, mask: rows, bytes: 16, line, warp: self.index };
                let mut data: Data = [[0; WIDEST]; LANES];
                cta.counters.ldmatrix += 1;
                cta.shared.load_rows(&access, &mut data, &mut cta.counters).map_err(trouble)?;
                for (matrix, &reg) in into.iter().enumerate() {
                    let rows = &data[8 * matrix..8 * matrix + 8];
                    let word = |row: usize, column: usize| {
                        u16::from_le_bytes([rows[row][2 * column], rows[row][2 * column + 1]])
                    };
                    let value = std::array::from_fn(|lane| {
                        let (one, two) = (lane / 4, lane % 4 * 2);
                        let (low, high) = if transposed {
                            (word(two, one), word(two + 1, one))
                        } else {
                            (word(one, two), word(one, two + 1))
                        };
                        u32::from(high) << 16 | u32::from(low)
                    });
                    self.set32(reg, &value, u32::MAX);
                }
            }
            Op::MatrixMultiply { into, a, b, c } => {
                self.whole(mask, "mma")?;
                cta.counters.mma += 1;
                let get = |reg: Reg| self.a32(reg, u32::MAX);
                let a = [get(a[0])?, get(a[1])?, get(a[2])?, get(a[3])?];
                let c = [get(c[0])?, get(c[1])?, get(c[2])?, get(c[3])?];
                let value = super::alu::mma(a, [get(b[0])?, get(b[1])?], c);
                for (reg, value) in into.into_iter().zip(&value) {
                    self.set32(reg, value, u32::MAX);
                }
            }
            Op::CopyAsync { bytes, to, from, source } => {
                let (to, from) = (self.addresses(to, mask)?, self.addresses(from, mask)?);
                let to = to.map(|address| address & !SHARED_WINDOW);
                let sizes = match source {
                    Some(source) => self.a32(source, mask)?.map(|size| size.min(u32::from(bytes))),
                    None => [u32::from(bytes); LANES],
                };
                let mut data: Data = [[0; WIDEST]; LANES];
                let access = Access { addresses: &from, mask, bytes: u32::from(bytes), line, warp: self.index };
                cta.counters.async_copies += 1;
                cta.global.load_partial(&access, &sizes, &mut data, &mut cta.counters).map_err(trouble)?;
                let access = Access { addresses: &to, ..access };
                cta.shared.async_copy(&access, &data, &mut cta.counters).map_err(trouble)?;
            }
            Op::CommitAsync => cta.shared.commit(self.index, mask),
            Op::WaitAsync(Some(groups)) => cta.shared.wait(self.index, mask, groups),
            Op::WaitAsync(None) => cta.shared.wait_all(self.index, mask),
            Op::WarpBarrier => cta.shared.warp_barrier(self.index),
            Op::Shuffle { how, into, valid, of, by, clamp, members } => {
                let asked = self.a32(members, mask)?[mask.trailing_zeros() as usize];
                self.present(asked, mask, "shfl.sync")?;
                let (value, by, clamp) = (self.a32(of, mask)?, self.a32(by, mask)?, self.a32(clamp, mask)?);
                let mut inside = 0;
                let mut out = [0; 32];
                for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
                    let (b, c) = (by[lane as usize] & 31, clamp[lane as usize]);
                    let (limit, segments) = (c & 31, c >> 8 & 31);
                    let least = lane & segments;
                    let most = least | limit & !segments;
                    let (source, ok) = match how {
                        Shuffle::Up => (lane.wrapping_sub(b), lane >= b && lane - b >= most),
                        Shuffle::Down => (lane + b, lane + b <= most),
                        Shuffle::Butterfly => (lane ^ b, lane ^ b <= most),
                        Shuffle::Index => (least | b & !segments, least | b & !segments <= most),
                    };
                    let source = if ok { source & 31 } else { lane };
                    if mask >> source & 1 == 0 {
                        let why = format!("shfl.sync: lane {lane} reads from lane {source}, which takes no part");
                        return Err((lane, FaultKind::Illegal(why)));
                    }
                    inside |= u32::from(ok) << lane;
                    out[lane as usize] = value[source as usize];
                }
                self.set32(into, &out, mask);
                if let Some(valid) = valid {
                    self.set_predicate(valid, inside, mask);
                }
            }
            Op::Vote { how, into, of, members } => {
                if let Some(members) = members {
                    let asked = self.a32(members, mask)?[mask.trailing_zeros() as usize];
                    self.present(asked, mask, "vote.sync")?;
                }
                let found = self.truth(of, mask)? & mask;
                let all = |yes: bool| if yes { u32::MAX } else { 0 };
                match how {
                    Vote::Ballot => self.set32(into, &[found; 32], mask),
                    Vote::All => self.set_predicate(into, all(found == mask), mask),
                    Vote::Any => self.set_predicate(into, all(found != 0), mask),
                    Vote::Uniform => self.set_predicate(into, all(found == mask || found == 0), mask),
                }
            }
            Op::ActiveMask(into) => self.set32(into, &[mask; 32], mask),
            Op::ToGeneric { space, into, of } => {
                let window = window(space);
                let value = self.a64(of, mask)?.map(|address| address | window);
                self.set64(into, &value, mask);
            }
            Op::FromGeneric { space, into, of } => {
                let window = window(space);
                let value = self.a64(of, mask)?.map(|address| address & !window);
                self.set64(into, &value, mask);
            }
            Op::IsSpace { space, into, of } => {
                let of = self.a64(of, mask)?;
                let window = window(space);
                let value = (0..32).fold(0, |found, lane| found | u32::from(of[lane] & WINDOWS == window) << lane);
                self.set_predicate(into, value, mask);
            }
            Op::Trap => return Err((mask.trailing_zeros(), FaultKind::Trap)),
            Op::Nothing => {}
            Op::Branch(_) | Op::Exit | Op::Barrier => unreachable!("`step` does these"),
        }
        Ok(())
    }

    fn settle(&mut self, verdict: Verdict, found: u32, mask: u32) -> Result<(), Trouble> {
        let (yes, no) = match verdict.combined {
            None => (found, !found),
            Some((logic, test)) => {
                let other = self.truth(test, mask)?;
                (logic.of(found, other), logic.of(!found, other))
            }
        };
        self.set_predicate(verdict.yes, yes, mask);
        if let Some(reg) = verdict.no {
            self.set_predicate(reg, no, mask);
        }
        Ok(())
    }

    /// Instructions of the whole warp need every lane.
    fn whole(&self, mask: u32, what: &str) -> Result<(), Trouble> {
        if mask == u32::MAX {
            return Ok(());
        }
        let why = format!("{what} needs every lane of its warp; {mask:#010x} are there");
        Err(((!mask).trailing_zeros() & 31, FaultKind::Illegal(why)))
    }

    fn present(&self, asked: u32, mask: u32, what: &str) -> Result<(), Trouble> {
        let absent = asked & self.members & !self.ended & !mask;
        if absent == 0 && asked & mask == mask {
            return Ok(());
        }
        let why = format!("{what} names the lanes {asked:#010x}; {mask:#010x} are there");
        Err((absent.trailing_zeros() & 31, FaultKind::Illegal(why)))
    }

    /// The space that generic addresses lie in; all lanes' in one.
    fn settled(&self, space: Space, addresses: &mut [u64; LANES], mask: u32) -> Result<Space, Trouble> {
        if space != Space::Generic {
            if space == Space::Shared || space == Space::Local {
                *addresses = addresses.map(|address| address & !WINDOWS);
            }
            return Ok(space);
        }
        let first = addresses[mask.trailing_zeros() as usize] & WINDOWS;
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            if addresses[lane as usize] & WINDOWS != first {
                return Err((lane, FaultKind::Illegal("generic addresses of one instruction in two spaces".into())));
            }
        }
        *addresses = addresses.map(|address| address & !WINDOWS);
        Ok(match first {
            0 => Space::Global,
            SHARED_WINDOW => Space::Shared,
            _ => Space::Local,
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn load(
        &mut self,
        space: Space,
        bytes: u8,
        extend: Extend,
        into: &[Slot],
        addresses: &[u64; LANES],
        mask: u32,
        line: u32,
        cta: &mut Cta<'_>,
    ) -> Result<(), Trouble> {
        let mut addresses = *addresses;
        let space = self.settled(space, &mut addresses, mask)?;
        let width = u32::from(bytes) * into.len() as u32;
        let access = Access { addresses: &addresses, mask, bytes: width, line, warp: self.index };
        let mut data: Data = [[0; WIDEST]; LANES];
        match space {
            Space::Shared => {
                cta.counters.shared_loads += 1;
                cta.shared.load(&access, &mut data, &mut cta.counters).map_err(trouble)?;
            }
            Space::Local => {
                cta.counters.local_accesses += 1;
                self.local(&access, |memory, data| data.copy_from_slice(memory), &mut data)?;
            }
            Space::Param => {
                for lane in (0..LANES).filter(|lane| mask >> lane & 1 == 1) {
                    let bytes = usize::try_from(addresses[lane])
                        .ok()
                        .and_then(|at| cta.parameters.get(at..)?.get(..width as usize));
                    let missing = || {
                        (lane as u32, FaultKind::Illegal(format!("{} lies outside the parameters", addresses[lane])))
                    };
                    data[lane][..width as usize].copy_from_slice(bytes.ok_or_else(missing)?);
                }
            }
            _ => {
                cta.counters.global_loads += 1;
                cta.global.load(&access, &mut data, &mut cta.counters).map_err(trouble)?;
            }
        }
        let size = usize::from(bytes);
        for (index, slot) in into.iter().enumerate() {
            let value: V64 = std::array::from_fn(|lane| {
                let mut word = [0; 8];
                word[..size].copy_from_slice(&data[lane][index * size..(index + 1) * size]);
                let value = u64::from_le_bytes(word);
                if extend == Extend::Sign && size < 8 {
                    let spare = 64 - 8 * size as u32;
                    ((value << spare) as i64 >> spare) as u64
                } else {
                    value
                }
            });
            self.set_slot(*slot, &value, mask);
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn store(
        &mut self,
        space: Space,
        bytes: u8,
        of: &[Slot],
        addresses: &[u64; LANES],
        mask: u32,
        line: u32,
        cta: &mut Cta<'_>,
    ) -> Result<(), Trouble> {
        let mut addresses = *addresses;
        let space = self.settled(space, &mut addresses, mask)?;
        let size = usize::from(bytes);
        let mut data: Data = [[0; WIDEST]; LANES];
        for (index, slot) in of.iter().enumerate() {
            let value = self.slot(*slot, mask)?;
            for (data, value) in data.iter_mut().zip(&value) {
                data[index * size..(index + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
        }
        let access =
            Access { addresses: &addresses, mask, bytes: u32::from(bytes) * of.len() as u32, line, warp: self.index };
        match space {
            Space::Shared => {
                cta.counters.shared_stores += 1;
                cta.shared.store(&access, &data, &mut cta.counters).map_err(trouble)
            }
            Space::Local => {
                cta.counters.local_accesses += 1;
                self.local(&access, |memory, data| memory.copy_from_slice(data), &mut data)
            }
            Space::Const | Space::Param => {
                Err((mask.trailing_zeros(), FaultKind::Illegal("a store to constant memory".into())))
            }
            _ => {
                cta.counters.global_stores += 1;
                cta.global.store(&access, &data, &mut cta.counters).map_err(trouble)
            }
        }
    }

    /// Local memory: each lane's own.
    fn local(
        &mut self,
        access: &Access<'_>,
        act: impl Fn(&mut [u8], &mut [u8]),
        data: &mut Data,
    ) -> Result<(), Trouble> {
        let (each, bytes) = (self.local.len() / LANES, access.bytes as usize);
        for lane in (0..LANES).filter(|lane| access.mask >> lane & 1 == 1) {
            let address = access.addresses[lane];
            let inside =
                usize::try_from(address).ok().filter(|at| at.checked_add(bytes).is_some_and(|end| end <= each));
            let Some(at) = inside else {
                let nearest = format!("a thread has {each} bytes");
                return Err((
                    lane as u32,
                    FaultKind::OutOfBounds { what: "local access", bytes: access.bytes, address, nearest },
                ));
            };
            act(&mut self.local[lane * each + at..][..bytes], &mut data[lane][..bytes]);
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn atomic(
        &mut self,
        space: Space,
        what: Atomic,
        bytes: u8,
        into: Option<Slot>,
        operands: [Option<Slot>; 2],
        addresses: &[u64; LANES],
        mask: u32,
        line: u32,
        cta: &mut Cta<'_>,
    ) -> Result<(), Trouble> {
        let mut addresses = *addresses;
        let space = self.settled(space, &mut addresses, mask)?;
        let value = |slot: Option<Slot>| slot.map_or(Ok([0; 32]), |slot| self.slot(slot, mask));
        let (first, second) = (value(operands[0])?, value(operands[1])?);
        let size = usize::from(bytes);
        let mut before = [0_u64; 32];
        let signed = |value: u64| if size == 4 { i64::from(value as i32) } else { value as i64 };
        let apply = |lane: usize, old: [u8; WIDEST]| {
            let mut word = [0; 8];
            word[..size].copy_from_slice(&old[..size]);
            let old = u64::from_le_bytes(word);
            before[lane] = old;
            let (a, b) = (first[lane], second[lane]);
            let new = match what {
                Atomic::Add => old.wrapping_add(a),
                Atomic::AddF32 => u64::from((f32::from_bits(old as u32) + f32::from_bits(a as u32)).to_bits()),
                Atomic::Min { signed: true } => {
                    if signed(a) < signed(old) {
                        a
                    } else {
                        old
                    }
                }
                Atomic::Max { signed: true } => {
                    if signed(a) > signed(old) {
                        a
                    } else {
                        old
                    }
                }
                Atomic::Min { signed: false } => old.min(a),
                Atomic::Max { signed: false } => old.max(a),
                Atomic::And => old & a,
                Atomic::Or => old | a,
                Atomic::Xor => old ^ a,
                Atomic::Exchange => a,
                Atomic::CompareExchange => {
                    if old == a {
                        b
                    } else {
                        old
                    }
                }
            };
            let mut out = [0; WIDEST];
            out[..size].copy_from_slice(&new.to_le_bytes()[..size]);
            out
        };
        let access = Access { addresses: &addresses, mask, bytes: u32::from(bytes), line, warp: self.index };
        cta.counters.atomics += 1;
        match space {
            Space::Shared => cta.shared.atomic(&access, &mut cta.counters, apply).map_err(trouble)?,
            Space::Global => cta.global.atomic(&access, &mut cta.counters, apply).map_err(trouble)?,
            _ => return Err((mask.trailing_zeros(), FaultKind::Illegal("an atomic operation on local memory".into()))),
        }
        if let Some(into) = into {
            self.set_slot(into, &before, mask);
        }
        Ok(())
    }
}

fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        _ => 0,
    }
}

fn trouble(fault: crate::memory::LaneFault) -> Trouble {
    (fault.lane, fault.kind)
}

#[cold]
fn unwritten(missing: u32, place: &str) -> Trouble {
    let kind = FaultKind::Uninitialised { what: "register read", bytes: 0, address: 0, place: place.to_owned() };
    (missing.trailing_zeros(), kind)
}
