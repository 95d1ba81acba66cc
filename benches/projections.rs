//! Speed of the seven projections of a Gemma 3 270M layer at 420 rows: forward `x·Wᵀ` and input gradient `dy·W` with W
//! bf16 `[out, in]`, packing included, beside the peak multiply-add rate of the same cores. Prints one JSON object.
//!
//! `cargo bench --bench projections -- [--threads N] [--isa NAME] [--rows N] [--passes N]`; a pass runs all products once, in order,
//! so that a weight is out of the caches when its turn comes again. `tools/race_matmul.py` runs it against torch.

use serde_json::json;
use std::hint::black_box;
use std::time::{Duration, Instant};
use unflip::cpu::gemm::{Left, Right, Segment, gemm};
use unflip::cpu::isa::Isa;
use unflip::cpu::{Unit, peak, threads};

/// Name, inputs and outputs.
const PROJECTIONS: [(&str, usize, usize); 7] = [
    ("q", 640, 1024),
    ("k", 640, 256),
    ("v", 640, 256),
    ("o", 1024, 640),
    ("gate", 640, 2048),
    ("up", 640, 2048),
    ("down", 2048, 640),
];

/// One product of the table, with its operands.
struct Product {
    name: &'static str,
    forward: bool,
    inputs: usize,
    outputs: usize,
    weight: Vec<u8>,
    left: Vec<f32>,
    c: Vec<f32>,
    seconds: Vec<f64>,
}

impl Product {
    fn new(name: &'static str, inputs: usize, outputs: usize, forward: bool, rows: usize) -> Self {
        let mut state = 1_u64;
        let mut value = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        let (k, n) = if forward { (inputs, outputs) } else { (outputs, inputs) };
        let weight = (0..inputs * outputs).flat_map(|_| value().to_le_bytes().into_iter().skip(2)).collect();
        let left = (0..rows * k).map(|_| value()).collect();
        Self { name, forward, inputs, outputs, weight, left, c: vec![0.0; rows * n], seconds: Vec::new() }
    }

    fn run(&mut self, isa: Isa, rows: usize) -> Duration {
        let (k, n) = if self.forward { (self.inputs, self.outputs) } else { (self.outputs, self.inputs) };
        let (k_stride, col_stride) = if self.forward { (1, k) } else { (n, 1) };
        let segment = Segment {
            left: Left { data: &self.left, row_stride: k, k_stride: 1 },
            right: Right::Bf16 { bytes: &self.weight, k_stride, col_stride },
            k,
        };
        let start = Instant::now();
        gemm(isa, rows, n, &[segment], &mut self.c, n, false);
        let elapsed = start.elapsed();
        black_box(&self.c);
        elapsed
    }

    /// Median and least seconds.
    fn summary(&self) -> (f64, f64) {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        (sorted[sorted.len() / 2], sorted[0])
    }
}

/// What the threads of a pool could do at most, in GFLOP/s.
fn peak_of(isa: Isa, pool: &rayon::ThreadPool) -> f64 {
    pool.install(|| peak::flops(Unit::F32, isa, 0.1)) / 1e9
}

/// The value after `--name`.
fn option<T: std::str::FromStr>(arguments: &[String], name: &str) -> Option<T> {
    let at = arguments.iter().position(|argument| argument == name)?;
    Some(arguments.get(at + 1)?.parse().unwrap_or_else(|_| panic!("{name}: not a value")))
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let isa = match option::<String>(&arguments, "--isa") {
        Some(name) => Isa::parse(&name).unwrap_or_else(|error| panic!("{error}")),
        None => Isa::best(),
    };
    let rows = option(&arguments, "--rows").unwrap_or(420);
    let passes = option(&arguments, "--passes").unwrap_or(5_usize).max(1);
    let count = threads::thread_count(option(&arguments, "--threads")).expect("a number of threads");
    let pool = threads::pool(count).expect("threads start");
    let one = threads::pool(1).expect("a thread starts");

    let mut products: Vec<Product> = PROJECTIONS
        .iter()
        .flat_map(|&(name, inputs, outputs)| {
            [true, false].map(|forward| Product::new(name, inputs, outputs, forward, rows))
        })
        .collect();
    pool.install(|| {
        // The first pass brings in pages and packing space.
        products.iter_mut().for_each(|product| _ = product.run(isa, rows));
        for _ in 0..passes {
            for product in &mut products {
                let elapsed = product.run(isa, rows);
                product.seconds.push(elapsed.as_secs_f64());
            }
        }
    });
    let table: Vec<_> = products
        .iter()
        .map(|product| {
            let (seconds, least) = product.summary();
            let operations = 2.0 * (rows * product.inputs * product.outputs) as f64;
            json!({
                "projection": product.name,
                "pass": if product.forward { "forward" } else { "dx" },
                "in": product.inputs,
                "out": product.outputs,
                "seconds": seconds,
                "least_seconds": least,
                "gflops": operations / seconds / 1e9,
            })
        })
        .collect();
    let report = json!({
        "isa": isa.name(),
        "threads": pool.current_num_threads(),
        "rows": rows,
        "passes": passes,
        "peak_one_core_gflops": peak_of(isa, &one),
        "peak_gflops": peak_of(isa, &pool),
        "products": table,
    });
    println!("{report}");
}
