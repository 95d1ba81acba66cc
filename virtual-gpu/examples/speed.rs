//! Warp instructions a second and core, every check on, of the matrix product in tests/ptx.
//!
//! `cargo run --release -p virtual-gpu --example speed [THREADS]`

use std::time::Instant;
use virtual_gpu::exec::{Launch, launch};
use virtual_gpu::memory::GlobalMemory;
use virtual_gpu::ptx::Module;

fn main() {
    let threads = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(1);
    let module = Module::parse(include_str!("../tests/ptx/gemm.ptx")).expect("PTX");
    let kernel = module.kernel("gemm").expect("the kernel");
    let (m, n, k) = (512, 512, 512);
    let memory = GlobalMemory::new(1 << 30);
    let inputs = [m * k, n * k].map(|count| {
        let address = memory.allocate(2 * count as u64).expect("room");
        memory.fill(address, &[0x80, 0x3f], count as u64).expect("inside");
        address
    });
    let output = memory.allocate(4 * (m * n) as u64).expect("room");
    let mut parameters = Vec::new();
    [inputs[0], inputs[1], output].iter().for_each(|address| parameters.extend(address.to_le_bytes()));
    [m, n, k].iter().for_each(|&extent| parameters.extend((extent as u32).to_le_bytes()));
    let mut rates: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            let counted = launch(
                &memory,
                &Launch {
                    module: &module,
                    kernel,
                    grid: [(m / 64) as u32, (n / 64) as u32, 1],
                    block: [128, 1, 1],
                    dynamic_shared: 8192,
                    parameters: &parameters,
                    globals: &[],
                    order_seed: None,
                    threads,
                    instruction_limit: None,
                },
            )
            .expect("no findings");
            counted.instructions as f64 / start.elapsed().as_secs_f64() / threads as f64
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{:.2} million warp instructions a second and core ({threads} threads, median of 5)", rates[2] / 1e6);
}
