//! A whole kernel as NVIDIA's compiler emits it (tests/ptx/gemm.cu, compiled for compute_80): right numbers whatever the order, on any
//! number of host threads, with the same counts; and every mistake planted in its text is found.

use half::bf16;
use virtual_gpu::counters::Counters;
use virtual_gpu::exec::{Launch, launch};
use virtual_gpu::fault::{Fault, FaultKind};
use virtual_gpu::memory::GlobalMemory;
use virtual_gpu::ptx::Module;

const GEMM: &str = include_str!("ptx/gemm.ptx");

/// Ragged in M; N and K are whole tiles.
const M: usize = 77;
const N: usize = 128;
const K: usize = 96;

fn value(seed: usize) -> bf16 {
    bf16::from_f32(((seed * 2_654_435_761) % 1001) as f32 / 500.0 - 1.0)
}

struct Setting {
    seed: Option<u64>,
    threads: usize,
    /// Bytes missing from x.
    short: usize,
    /// Whether x is written at all.
    written: bool,
    /// Bytes that addresses are off.
    off: u64,
    shared: u32,
}

const USUAL: Setting = Setting { seed: None, threads: 1, short: 0, written: true, off: 0, shared: 8192 };

/// y = x·wᵀ by the kernel in `text`.
fn gemm(text: &str, setting: &Setting) -> Result<(Vec<f32>, Counters), Fault> {
    let module = Module::parse(text).expect("PTX");
    let kernel = module.kernel("gemm").expect("the kernel");
    let memory = GlobalMemory::new(1 << 30);
    let bytes =
        |count: usize, base: usize| -> Vec<u8> { (0..count).flat_map(|i| value(base + i).to_le_bytes()).collect() };
    let (x, w) = (bytes(M * K, 0), bytes(N * K, 100_000));
    let x = &x[..x.len() - setting.short];
    let at = |data: &[u8]| {
        let address = memory.allocate(data.len() as u64).expect("room");
        memory.write(address, data).expect("inside");
        address
    };
    let x_at = if setting.written { at(x) } else { memory.allocate(x.len() as u64).expect("room") };
    let w_at = at(&w);
    let y_at = memory.allocate((M * N * 4) as u64).expect("room");
    let mut parameters = Vec::new();
    [x_at + setting.off, w_at, y_at].iter().for_each(|address| parameters.extend(address.to_le_bytes()));
    [M, N, K].iter().for_each(|&extent| parameters.extend((extent as u32).to_le_bytes()));
    assert_eq!(parameters.len(), kernel.parameter_bytes);
    let counted = launch(
        &memory,
        &Launch {
            module: &module,
            kernel,
            grid: [M.div_ceil(64) as u32, (N / 64) as u32, 1],
            block: [128, 1, 1],
            dynamic_shared: setting.shared,
            parameters: &parameters,
            globals: &[],
            order_seed: setting.seed,
            threads: setting.threads,
            instruction_limit: Some(1 << 20),
        },
    )?;
    let mut y = vec![0; M * N * 4];
    memory.read(y_at, &mut y).expect("all of y was written");
    Ok((y.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(), counted))
}

#[test]
fn a_compiled_kernel_computes_the_product_in_any_order() {
    let (first, counts) = gemm(GEMM, &USUAL).expect("no findings");
    for i in 0..M {
        for j in 0..N {
            let exact: f64 = (0..K).map(|k| value(i * K + k).to_f64() * value(100_000 + j * K + k).to_f64()).sum();
            let found = f64::from(first[i * N + j]);
            assert!((found - exact).abs() < 1e-4, "[{i}, {j}]: {found} for {exact}");
        }
    }
    // 2 × 2 CTAs of 4 warps; a k-step of 32 has 2 slices of 8 products.
    assert_eq!(counts.mma, (4 * 4 * (K / 32) * 2 * 8) as u64);
    assert_eq!(counts.async_copies, (4 * 4 * (K / 32) * 4) as u64);
    assert_eq!((counts.launches, counts.barriers > 0, counts.local_accesses), (1, true, 0));
    for seed in 0..40 {
        let setting = Setting { seed: Some(seed), threads: 1 + seed as usize % 3, ..USUAL };
        let (other, same) = gemm(GEMM, &setting).expect("no findings");
        assert!(other == first && same == counts, "seed {seed}");
    }
}

/// The text with the `which`-th line that contains `what` changed.
fn planted(what: &str, which: usize, change: impl Fn(&str) -> String) -> String {
    let mut seen = 0;
    let mut lines = Vec::new();
    for line in GEMM.lines() {
        let hit = line.contains(what);
        lines.push(if hit && seen == which { change(line) } else { line.to_owned() });
        seen += usize::from(hit);
    }
    assert!(seen > which, "`{what}` occurs {seen} times");
    lines.join("\n")
}

fn finding(text: &str, setting: &Setting) -> FaultKind {
    // An order in which the mistake shows is enough.
    let tries = (0..20).map(|seed| Setting { seed: Some(seed), ..*setting });
    tries.filter_map(|setting| gemm(text, &setting).err()).map(|fault| fault.kind).next().expect("a finding")
}

#[test]
fn planted_mistakes_are_found() {
    let without = |what: &str, which: usize| planted(what, which, |_| String::new());
    for barrier in 0..3 {
        let found = finding(&without("bar.sync", barrier), &USUAL);
        assert!(
            matches!(
                found,
                FaultKind::SharedRace { .. } | FaultKind::AsyncCopy { .. } | FaultKind::Uninitialised { .. }
            ),
            "{found}"
        );
    }
    let found = finding(&without("cp.async.wait_group", 0), &USUAL);
    assert!(matches!(found, FaultKind::AsyncCopy { .. }), "{found}");
    let found = finding(GEMM, &Setting { short: 2, ..USUAL });
    assert!(matches!(found, FaultKind::OutOfBounds { .. }), "{found}");
    let found = finding(GEMM, &Setting { shared: 8191, ..USUAL });
    assert!(matches!(found, FaultKind::OutOfBounds { .. }), "{found}");
    let found = finding(GEMM, &Setting { off: 2, ..USUAL });
    assert!(matches!(found, FaultKind::Misaligned { .. }), "{found}");
    let found = finding(GEMM, &Setting { written: false, ..USUAL });
    assert!(matches!(found, FaultKind::Uninitialised { .. }), "{found}");
    // Half a warp leaves before the first barrier.
    let early =
        planted("bar.sync", 0, |line| format!("mov.u32 %r0, %tid.x;\nsetp.lt.u32 %p0, %r0, 16;\n@%p0 ret;\n{line}"));
    assert!(matches!(finding(&early, &USUAL), FaultKind::Barrier(_)));
    // Half a warp waits, half goes on.
    let divergent =
        planted("bar.sync", 0, |line| format!("mov.u32 %r0, %tid.x;\nsetp.lt.u32 %p0, %r0, 16;\n@%p0 {line}"));
    assert!(matches!(finding(&divergent, &USUAL), FaultKind::Barrier(_)));
    // A loop without end.
    let endless = planted("bar.sync", 0, |line| format!("{line}\n$stay:\nbra $stay;"));
    assert!(matches!(finding(&endless, &USUAL), FaultKind::Endless(_)));
    // A register that nobody wrote.
    let unwritten = planted("ldmatrix", 0, |line| line.replace("[%r", "[%r345+0*%r").replace("+0*%r", "; //"));
    let unwritten = unwritten.replace("%r345; //", "%r345];//");
    assert!(matches!(finding(&unwritten, &USUAL), FaultKind::Uninitialised { what: "register read", .. }));
    // Two CTAs that write the same rows.
    let overlap = planted("mov.u32 \t%r", 0, |line| line.to_owned()).replace("%ctaid.y", "%ctaid.z");
    assert!(matches!(finding(&overlap, &USUAL), FaultKind::GlobalRace { .. }));
}

#[test]
fn text_that_is_cut_off_or_unknown_is_an_error_with_its_line() {
    for length in (0..GEMM.len()).step_by(173) {
        // Must not panic; most are errors.
        let _ = Module::parse(&GEMM[..length]);
    }
    let error =
        Module::parse(&planted("mma.sync", 0, |line| line.replace("bf16.bf16", "tf32.tf32"))).expect_err("unknown");
    let line = GEMM.lines().position(|line| line.contains("mma.sync")).expect("there is one") as u32 + 1;
    assert_eq!(error.line, line);
    assert!(error.message.contains("unknown instruction `mma.sync") && error.message.contains("tf32"), "{error}");
}
