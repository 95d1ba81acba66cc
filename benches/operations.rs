//! Time of every operation, forward and backward, on the fastest instruction set of this CPU, at the sizes of `unflip bench`
//! (`ops/*/cases.rs`). What is timed was checked against the reference just before, and nothing around the operation is timed.
//!
//! `cargo bench --bench operations -- [--quick] [FILTER]`. `projections` has the products alone, in the order of a layer.

use criterion::{Criterion, Throughput};
use unflip::bench::kernels::{Visit, each};
use unflip::bench::verify::{compute, operands, verify};
use unflip::cpu::{Cpu, Isa};
use unflip::ops::Backend;
use unflip::ops::case::{Benchmark, Case};
use unflip::ops::reference::{Precision, Reference};

/// Times every benchmark on a device.
struct Timer<'a> {
    criterion: &'a mut Criterion,
    device: &'a Cpu,
}

impl Visit for Timer<'_> {
    fn visit<C: Case>(&mut self, benchmark: Benchmark<C>) -> unflip::Result<()> {
        let reference = Reference::new(Precision::F32);
        for &pass in benchmark.passes {
            let mut group = self.criterion.benchmark_group(format!("{} {}", benchmark.name, pass.name()));
            for point in benchmark.points {
                let case = (benchmark.case)(point).expect("a case at every default size");
                let expected = compute(&reference, &case, pass, &operands(&reference, &case));
                let given = operands(self.device, &case);
                if let Err(problem) = verify(&case, &compute(self.device, &case, pass, &given), &expected) {
                    panic!("{}: {problem}", case.name());
                }
                group.throughput(Throughput::Elements(case.cost(pass).flops as u64));
                let axes: Vec<String> =
                    benchmark.axes.iter().zip(*point).map(|(axis, n)| format!("{axis}={n}")).collect();
                case.timed(self.device, &given.0, &given.1, pass, &mut |call| {
                    group.bench_function(axes.join(" "), |timer| timer.iter(&mut *call));
                });
            }
            group.finish();
        }
        Ok(())
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let device = Cpu::new(Isa::best(), None).expect("a device");
    eprintln!("{}, {} threads", device.describe(), device.threads());
    each(&mut Timer { criterion: &mut criterion, device: &device }).expect("every benchmark runs");
    criterion.final_summary();
}
