//! The promises of bf16 products: the documented sums of each unit, to the bit, whatever the layout, tiling and threads.
//! Where this CPU lacks a unit its instruction alone is emulated; packing, tiles, edges and loops are the real ones.

use super::super::tests::{KINDS, Kind, ORDERS, Operands, Order, Random, compare, framed, pools};
use super::super::{Left, Right, Segment};
use super::{Multiplier, gemm, gemm_serial};
use crate::cpu::isa::Isa;
use crate::cpu::rounding::round_bf16;
use crate::cpu::unit::Unit;

/// Every bf16 unit: on this CPU where it has it, and emulated.
fn multipliers() -> Vec<Multiplier> {
    let mut all = Vec::new();
    for isa in Isa::available() {
        all.push(Multiplier { unit: Unit::Bf16, isa, emulated: false });
    }
    for unit in [Unit::Avx512Bf16, Unit::Amx] {
        all.push(Multiplier { unit, isa: Isa::best(), emulated: true });
        if unit.is_available() {
            all.push(Multiplier { unit, isa: Isa::best(), emulated: false });
        } else {
            eprintln!("skipped: {unit} itself, which this CPU lacks; its emulation is tested");
        }
    }
    all
}

/// One element as the unit sums it.
fn sum(unit: Unit, operands: &[Operands], i: usize, j: usize, start: f32) -> f32 {
    let mut sum = start;
    for operand in operands {
        let pair = |p: usize| {
            let (a, b) = if p < operand.k { operand.pair(i, p, j) } else { (0.0, 0.0) };
            (round_bf16(a), round_bf16(b))
        };
        let step = |p: usize, chain: f32| pair(p).0.mul_add(pair(p).1, chain);
        match unit {
            Unit::Avx512Bf16 => (0..operand.k).step_by(2).for_each(|p| sum = step(p, step(p + 1, sum))),
            Unit::Amx => {
                for first in (0..operand.k).step_by(32) {
                    let (mut even, mut odd) = (0.0, 0.0);
                    for p in (first..first + 32).step_by(2) {
                        (even, odd) = (step(p, even), step(p + 1, odd));
                    }
                    sum += even + odd;
                }
            }
            _ => (0..operand.k).for_each(|p| sum = step(p, sum)),
        }
    }
    sum
}

/// All elements, each also checked against the exact sum of the rounded operands.
fn expected(unit: Unit, operands: &[Operands], m: usize, n: usize, start: &[f32], accumulate: bool) -> Vec<f32> {
    let mut all = Vec::with_capacity(m * n);
    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
        let first = if accumulate { start[i * n + j] } else { 0.0 };
        let found = sum(unit, operands, i, j, first);
        let (mut exact, mut size, mut length) = (f64::from(first), f64::from(first.abs()), 0);
        for operand in operands {
            for p in 0..operand.k {
                let (a, b) = operand.pair(i, p, j);
                let term = f64::from(round_bf16(a)) * f64::from(round_bf16(b));
                (exact, size, length) = (exact + term, size + term.abs(), length + 1);
            }
        }
        let bound = f64::from(length + 2) * f64::from(f32::EPSILON) / 2.0 * size;
        assert!((f64::from(found) - exact).abs() <= bound, "{unit} ({i}, {j}): {found} for {exact}, bound {bound}");
        all.push(found);
    }
    all
}

fn verify(operands: &[Operands], m: usize, n: usize, random: &mut Random, pools: &[rayon::ThreadPool]) {
    let segments: Vec<Segment<'_>> = operands.iter().map(Operands::segment).collect();
    let ldc = n + 1 + random.below(9);
    let start = random.values(m * n);
    for accumulate in [false, true] {
        for by in multipliers() {
            let sums = expected(by.unit, operands, m, n, &start, accumulate);
            let ks: Vec<usize> = operands.iter().map(|operand| operand.k).collect();
            let what =
                |threads: usize| format!("{by:?} [{m}, {n}] k {ks:?} accumulate {accumulate}, {threads} threads");
            let mut c = framed(&start, m, n, ldc);
            gemm_serial(by, m, n, &segments, &mut c, ldc, accumulate);
            compare(&c, &sums, m, n, ldc, &what(0));
            for pool in pools.iter().filter(|_| !accumulate) {
                let mut c = framed(&start, m, n, ldc);
                pool.install(|| gemm(by, m, n, &segments, &mut c, ldc, accumulate));
                compare(&c, &sums, m, n, ldc, &what(pool.current_num_threads()));
            }
        }
    }
}

#[test]
fn every_layout_and_dtype_gives_the_documented_sums() {
    let mut random = Random(11);
    for kind in KINDS {
        for left in ORDERS {
            for right in ORDERS {
                for (m, n, k) in [(37, 53, 70), (3, 70, 8), (33, 20, 65), (40, 34, 64)] {
                    let operands = [Operands::new(&mut random, m, n, k, left, right, kind)];
                    verify(&operands, m, n, &mut random, &[]);
                }
            }
        }
    }
}

#[test]
fn every_ragged_size_gives_the_documented_sums() {
    let mut random = Random(12);
    for m in [0, 1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 65] {
        for n in [0, 1, 3, 8, 15, 16, 17, 31, 32, 33, 49, 65] {
            let k = random.below(70);
            let (left, right, kind) = (ORDERS[random.below(3)], ORDERS[random.below(3)], KINDS[random.below(3)]);
            let operands = [Operands::new(&mut random, m, n, k, left, right, kind)];
            verify(&operands, m, n, &mut random, &[]);
        }
    }
}

#[test]
fn each_segment_starts_an_instruction() {
    let mut random = Random(13);
    let pools = pools(&[2, 3]);
    for ks in [vec![96, 16], vec![7, 64, 16], vec![0, 3, 0, 33, 1], vec![31, 2, 31], vec![0], vec![]] {
        for (m, n) in [(7, 33), (40, 67)] {
            let mut operands = Vec::new();
            for &k in &ks {
                let (left, right, kind) = (ORDERS[random.below(3)], ORDERS[random.below(3)], KINDS[random.below(3)]);
                operands.push(Operands::new(&mut random, m, n, k, left, right, kind));
            }
            verify(&operands, m, n, &mut random, &pools);
        }
    }
}

#[test]
fn weights_in_the_map_serve_in_place_at_any_number_of_threads() {
    // x·Wᵀ, dy·W and the products of an adapter's gradients, all with several tiles each way.
    let mut random = Random(14);
    let pools = pools(&[1, 2, 5]);
    for (m, n, k, left, right, kind) in [
        (70, 130, 128, Order::Rows, Order::Columns, Kind::Bf16),
        (70, 130, 128, Order::Rows, Order::Rows, Kind::Bf16),
        (130, 16, 70, Order::Columns, Order::Rows, Kind::F32),
        (16, 130, 70, Order::Columns, Order::Rows, Kind::F32),
        (1, 200, 96, Order::Rows, Order::Columns, Kind::Bf16),
    ] {
        let operands = [
            Operands::new(&mut random, m, n, k, left, right, kind),
            Operands::new(&mut random, m, n, 16, Order::Rows, right, Kind::F32),
        ];
        verify(&operands, m, n, &mut random, &pools);
    }
}

#[test]
fn long_sums_and_wide_products_are_cut_without_a_trace() {
    let mut random = Random(15);
    // Longer than a block of k, and more columns than a chunk of panels, in both orientations.
    for (m, n, k, right) in [
        (5, 9, 9000, Order::Columns),
        (9, 5, 9001, Order::Rows),
        (3, 300, 4096, Order::Rows),
        (300, 3, 4095, Order::Columns),
    ] {
        let operands = [Operands::new(&mut random, m, n, k, Order::Rows, right, Kind::Bf16)];
        verify(&operands, m, n, &mut random, &[]);
    }
}

#[test]
fn a_row_does_not_depend_on_the_other_rows() {
    let mut random = Random(16);
    let (m, n, k) = (70, 75, 130);
    for order in [Order::Columns, Order::Rows] {
        let operands = Operands::new(&mut random, m, n, k, Order::Rows, order, Kind::Bf16);
        let Segment { left, right, .. } = operands.segment();
        for by in multipliers() {
            let mut all = vec![0.0; m * n];
            gemm_serial(by, m, n, &[operands.segment()], &mut all, n, false);
            for i in 0..m {
                let left = Left { data: &left.data[i * left.row_stride..], ..left };
                let mut one = vec![0.0; n];
                gemm_serial(by, 1, n, &[Segment { left, right, k }], &mut one, n, false);
                assert!(one.iter().zip(&all[i * n..]).all(|(a, b)| a.to_bits() == b.to_bits()), "{by:?}: row {i}");
            }
        }
    }
}

#[test]
fn infinities_and_nan_stay_in_their_rows_and_columns() {
    let (m, n, k) = (9, 37, 20);
    let mut random = Random(17);
    let value = |random: &mut Random, count: usize| random.values(count);
    let (mut left, mut right) = (value(&mut random, m * k), value(&mut random, n * k));
    left[4 * k + 3] = f32::INFINITY;
    right[36 * k + 5] = f32::NAN;
    let segment = Segment {
        left: Left { data: &left, row_stride: k, k_stride: 1 },
        right: Right::F32 { data: &right, k_stride: 1, col_stride: k },
        k,
    };
    for by in multipliers() {
        let mut c = vec![0.0_f32; m * n];
        gemm_serial(by, m, n, &[segment], &mut c, n, false);
        for (at, value) in c.iter().enumerate() {
            assert_eq!(value.is_finite(), at / n != 4 && at % n != 36, "{by:?}: ({}, {}) is {value}", at / n, at % n);
        }
    }
}

#[test]
fn a_unit_that_this_cpu_lacks_is_refused() {
    for unit in [Unit::Avx512Bf16, Unit::Amx].into_iter().filter(|unit| !unit.is_available()) {
        let by = Multiplier { unit, isa: Isa::best(), emulated: false };
        let run = || gemm_serial(by, 1, 1, &[], &mut [0.0], 1, false);
        assert!(std::panic::catch_unwind(run).is_err(), "{unit}");
    }
}
