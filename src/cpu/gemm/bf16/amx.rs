//! The micro-kernel for AMX: 32 rows by 32 columns as 2×2 tiles of 16×16 f32, in inline assembly, because the intrinsics
//! are not stable.
//!
//! `tdpbf16ps` (Intel SDM) takes 32 k: of each element it sums even·even and odd·odd in two FMA chains from 0, adds the two
//! sums and adds that to C; every step is f32 rounded to nearest even, denormals as 0, whatever MXCSR says. Linux hands the
//! tile registers out on request (`arch_prctl`), once per process; a thread configures them while it multiplies.

use super::driver::{Line, Strip, Tile};
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::OnceLock;

pub(super) struct Kernel;

/// Tiles are configured as long as this lives.
pub(super) struct Configured;

/// What `ldtilecfg` reads: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Whether CPU and operating system have AMX with bf16 and the process may use it. The first call asks for permission.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const OSXSAVE: u32 = 1 << 27;
        const BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
        const TILE_STATE: u64 = 0b11 << 17;
        if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
            return false;
        }
        if __cpuid_count(7, 0).edx & BF16_AND_TILE != BF16_AND_TILE {
            return false;
        }
        // SAFETY: OSXSAVE says that `xgetbv` may be executed.
        (unsafe { enabled_state() }) & TILE_STATE == TILE_STATE && request_permission()
    })
}

/// XCR0: the register state that the operating system saves.
///
/// # Safety
/// The CPU has OSXSAVE.
unsafe fn enabled_state() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise; `xgetbv` reads a register.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) }
    u64::from(high) << 32 | u64::from(low)
}

/// Asks Linux for the tile data state (XFEATURE 18), for every thread of the process.
#[cfg(target_os = "linux")]
fn request_permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: this request takes two numbers and touches no memory of the process; a kernel that does not know it
    // returns an error. `syscall` overwrites rcx and r11.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
             out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// Other systems have no such request, and are not known to allow tiles.
#[cfg(not(target_os = "linux"))]
fn request_permission() -> bool {
    false
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: the session began, so the CPU has AMX. Tiles hold nothing between two micro-kernels.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) }
    }
}

impl super::driver::Kernel for Kernel {
    const ROWS: usize = 32;
    const GROUP: usize = 32;
    // Half of the 2 MiB second-level cache that CPUs with AMX have.
    const CHUNK: usize = 1 << 20;
    type Session = Configured;

    unsafe fn begin() -> Configured {
        // SAFETY: the CPU has AMX and the process its permission; 64 bytes are read.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(readonly, nostack, preserves_flags)) }
        Configured
    }

    unsafe fn tile(panels: usize, tile: &mut Tile<'_>) {
        let sums = tile.sums.0.as_mut_ptr().cast::<f32>();
        let mut lines = tile.panels;
        for strip in tile.strips {
            // SAFETY: the caller's promise: a session lives, the strip holds 32 rows of its k, the panels as many lines,
            // and the sums are [32][32].
            unsafe {
                match panels {
                    1 => one_panel(strip, lines, sums),
                    _ => two_panels(strip, lines, lines.add(tile.pairs), sums),
                }
                lines = lines.add(16 * strip.groups);
            }
        }
    }
}

/// Rounds of four independent tile products of zeros in registers; returns their operations.
///
/// # Safety
/// The CPU has AMX and the process its permission.
pub(super) unsafe fn burn(rounds: u32) -> f64 {
    use super::driver::Kernel as _;
    if rounds == 0 {
        return 0.0;
    }
    // SAFETY: the caller's promise.
    let _session = unsafe { Kernel::begin() };
    // SAFETY: tiles are configured; nothing but tile registers and the counter changes.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tilezero tmm4",
            "tilezero tmm5",
            "tilezero tmm6",
            "tilezero tmm7",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {rounds:e}",
            "jnz 2b",
            rounds = inout(reg) rounds => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nomem, nostack),
        );
    }
    // 16 rows by 16 columns by 32 k each.
    f64::from(rounds) * 4.0 * (2 * 16 * 16 * 32) as f64
}

/// Continues 32×32 sums by the k of one strip. Tile registers: 0 to 3 sums, 4 and 5 rows, 6 and 7 panels.
///
/// # Safety
/// Tiles are configured; 32 rows of `groups`·64 bytes, as many lines of both panels and the sums are accessible.
unsafe fn two_panels(strip: &Strip, first: *const Line, second: *const Line, sums: *mut f32) {
    let Strip { data, row_stride, groups } = *strip;
    // SAFETY: the caller's promise. Offset 2048 is row 16 of the sums, 64 their column 16.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {sums_stride}]",
            "tileloadd tmm1, [{sums} + {sums_stride} + 64]",
            "tileloadd tmm2, [{sums} + {sums_stride} + 2048]",
            "tileloadd tmm3, [{sums} + {sums_stride} + 2112]",
            "2:",
            "tileloadd tmm4, [{upper} + {row_stride}]",
            "tileloadd tmm6, [{first} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{second} + {line}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {row_stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {upper}, 64",
            "add {lower}, 64",
            "add {first}, 1024",
            "add {second}, 1024",
            "dec {groups}",
            "jnz 2b",
            "tilestored [{sums} + {sums_stride}], tmm0",
            "tilestored [{sums} + {sums_stride} + 64], tmm1",
            "tilestored [{sums} + {sums_stride} + 2048], tmm2",
            "tilestored [{sums} + {sums_stride} + 2112], tmm3",
            sums = in(reg) sums,
            sums_stride = in(reg) 128_usize,
            upper = inout(reg) data => _,
            lower = inout(reg) data.wrapping_add(16 * row_stride) => _,
            row_stride = in(reg) row_stride,
            first = inout(reg) first => _,
            second = inout(reg) second => _,
            line = in(reg) 64_usize,
            groups = inout(reg) groups => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Continues the first 16 columns of 32×32 sums by the k of one strip.
///
/// # Safety
/// As [`two_panels`], with one panel.
unsafe fn one_panel(strip: &Strip, panel: *const Line, sums: *mut f32) {
    let Strip { data, row_stride, groups } = *strip;
    // SAFETY: the caller's promise. Offset 2048 is row 16 of the sums.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {sums_stride}]",
            "tileloadd tmm2, [{sums} + {sums_stride} + 2048]",
            "2:",
            "tileloadd tmm6, [{panel} + {line}]",
            "tileloadd tmm4, [{upper} + {row_stride}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{lower} + {row_stride}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "add {upper}, 64",
            "add {lower}, 64",
            "add {panel}, 1024",
            "dec {groups}",
            "jnz 2b",
            "tilestored [{sums} + {sums_stride}], tmm0",
            "tilestored [{sums} + {sums_stride} + 2048], tmm2",
            sums = in(reg) sums,
            sums_stride = in(reg) 128_usize,
            upper = inout(reg) data => _,
            lower = inout(reg) data.wrapping_add(16 * row_stride) => _,
            row_stride = in(reg) row_stride,
            panel = inout(reg) panel => _,
            line = in(reg) 64_usize,
            groups = inout(reg) groups => _,
            out("tmm0") _, out("tmm2") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            options(nostack),
        );
    }
}
