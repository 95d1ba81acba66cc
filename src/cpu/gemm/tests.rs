//! The promises of the product: one FMA chain per element with the same bits everywhere, and an error within k·ε.

use super::driver::{self, Output, Tile};
use super::{Left, Right, Segment, gemm, gemm_serial};
use crate::cpu::isa::Isa;
use crate::cpu::threads;

/// A small deterministic generator (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub(super) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.value()).collect()
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// How Right is stored in a case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    F32,
    Bf16,
    F32Bytes,
}

/// Which stride is 1, or neither.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Order {
    Rows,
    Columns,
    Neither,
}

pub(super) const KINDS: [Kind; 3] = [Kind::F32, Kind::Bf16, Kind::F32Bytes];
pub(super) const ORDERS: [Order; 3] = [Order::Rows, Order::Columns, Order::Neither];

/// One segment's operands. Elements outside the shape are NaN, so that reading one too many shows.
pub(super) struct Operands {
    pub(super) k: usize,
    left: Vec<f32>,
    left_strides: (usize, usize),
    kind: Kind,
    right: Vec<f32>,
    right_bytes: Vec<u8>,
    right_strides: (usize, usize),
}

/// Strides of [outer, inner] with gaps, and the length that holds them with some to spare.
fn layout(order: Order, outer: usize, inner: usize) -> ((usize, usize), usize) {
    let strides = match order {
        Order::Rows => (inner + 3, 1),
        Order::Columns => (1, outer + 5),
        Order::Neither => (2 * inner + 1, 2),
    };
    (strides, outer.saturating_sub(1) * strides.0 + inner.saturating_sub(1) * strides.1 + 1)
}

impl Operands {
    pub(super) fn new(
        random: &mut Random,
        m: usize,
        n: usize,
        k: usize,
        left: Order,
        right: Order,
        kind: Kind,
    ) -> Self {
        let (left_strides, left_length) = layout(left, m, k);
        let (right_strides, right_length) = layout(right, k, n);
        let mut left = vec![f32::NAN; left_length];
        for i in 0..m {
            (0..k).for_each(|p| left[i * left_strides.0 + p * left_strides.1] = random.value());
        }
        let mut right = vec![f32::NAN; right_length];
        for p in 0..k {
            for j in 0..n {
                let value = random.value();
                let bf16 = f32::from_bits(value.to_bits() & 0xFFFF_0000);
                right[p * right_strides.0 + j * right_strides.1] = if kind == Kind::Bf16 { bf16 } else { value };
            }
        }
        // One byte in front, so that elements lie at odd addresses.
        let mut right_bytes = vec![0xFF];
        for value in &right {
            let bytes = value.to_le_bytes();
            right_bytes.extend_from_slice(if kind == Kind::Bf16 { &bytes[2..] } else { &bytes });
        }
        Self { k, left, left_strides, kind, right, right_bytes, right_strides }
    }

    pub(super) fn segment(&self) -> Segment<'_> {
        let (k_stride, col_stride) = self.right_strides;
        let bytes = &self.right_bytes[1..];
        Segment {
            left: Left { data: &self.left, row_stride: self.left_strides.0, k_stride: self.left_strides.1 },
            right: match self.kind {
                Kind::F32 => Right::F32 { data: &self.right, k_stride, col_stride },
                Kind::Bf16 => Right::Bf16 { bytes, k_stride, col_stride },
                Kind::F32Bytes => Right::F32Bytes { bytes, k_stride, col_stride },
            },
            k: self.k,
        }
    }

    pub(super) fn pair(&self, i: usize, p: usize, j: usize) -> (f32, f32) {
        let left = self.left[i * self.left_strides.0 + p * self.left_strides.1];
        (left, self.right[p * self.right_strides.0 + j * self.right_strides.1])
    }
}

/// C with a frame of sentinels: columns beyond n in every row and rows beyond m.
const SENTINEL: f32 = -7.25e30;

pub(super) fn framed(start: &[f32], m: usize, n: usize, ldc: usize) -> Vec<f32> {
    let mut c = vec![SENTINEL; (m + 2) * ldc];
    for i in 0..m {
        c[i * ldc..i * ldc + n].copy_from_slice(&start[i * n..(i + 1) * n]);
    }
    c
}

/// The element-wise chain that the module promises, and the f64 value with the bound of its error.
fn expected(operands: &[Operands], m: usize, n: usize, start: &[f32], accumulate: bool) -> Vec<f32> {
    let mut chains = Vec::with_capacity(m * n);
    for i in 0..m {
        for j in 0..n {
            let first = if accumulate { start[i * n + j] } else { 0.0 };
            let (mut chain, mut exact, mut size, mut length) = (first, f64::from(first), f64::from(first.abs()), 0);
            for operand in operands {
                for p in 0..operand.k {
                    let (a, b) = operand.pair(i, p, j);
                    chain = a.mul_add(b, chain);
                    exact += f64::from(a) * f64::from(b);
                    size += (f64::from(a) * f64::from(b)).abs();
                    length += 1;
                }
            }
            let bound = f64::from(length) * f64::from(f32::EPSILON) / 2.0 * size;
            assert!((f64::from(chain) - exact).abs() <= bound, "({i}, {j}): {chain} for {exact}, bound {bound}");
            chains.push(chain);
        }
    }
    chains
}

pub(super) fn compare(found: &[f32], chains: &[f32], m: usize, n: usize, ldc: usize, what: &str) {
    for (at, value) in found.iter().enumerate() {
        let (i, j) = (at / ldc, at % ldc);
        if i < m && j < n {
            let chain = chains[i * n + j];
            assert_eq!(value.to_bits(), chain.to_bits(), "{what}: ({i}, {j}) is {value}, the chain gives {chain}");
        } else {
            assert_eq!(value.to_bits(), SENTINEL.to_bits(), "{what}: ({i}, {j}) outside [{m}, {n}] was written");
        }
    }
}

/// Runs a case on every instruction set there is, serially and in pools, against the chain.
fn verify(operands: &[Operands], m: usize, n: usize, random: &mut Random, pools: &[rayon::ThreadPool]) {
    let segments: Vec<Segment<'_>> = operands.iter().map(Operands::segment).collect();
    let ldc = n + 1 + random.below(9);
    let start = random.values(m * n);
    for accumulate in [false, true] {
        let chains = expected(operands, m, n, &start, accumulate);
        for isa in Isa::available() {
            let what = |threads: usize| {
                let parts: Vec<String> = operands
                    .iter()
                    .map(|o| format!("k {} left {:?} {:?} right {:?}", o.k, o.left_strides, o.kind, o.right_strides))
                    .collect();
                format!("{isa} [{m}, {n}] {} accumulate {accumulate}, {threads} threads", parts.join(" + "))
            };
            let mut c = framed(&start, m, n, ldc);
            gemm_serial(isa, m, n, &segments, &mut c, ldc, accumulate);
            compare(&c, &chains, m, n, ldc, &what(0));
            for pool in pools {
                let mut c = framed(&start, m, n, ldc);
                pool.install(|| gemm(isa, m, n, &segments, &mut c, ldc, accumulate));
                compare(&c, &chains, m, n, ldc, &what(pool.current_num_threads()));
            }
        }
    }
}

pub(super) fn pools(counts: &[usize]) -> Vec<rayon::ThreadPool> {
    counts.iter().map(|&count| threads::pool(count).unwrap()).collect()
}

#[test]
fn every_ragged_size_gives_the_chain() {
    let mut random = Random(1);
    for m in 0..=14 {
        for n in [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 65, 97] {
            let k = random.below(21);
            let (left, right, kind) = (ORDERS[random.below(3)], ORDERS[random.below(3)], KINDS[random.below(3)]);
            let operands = [Operands::new(&mut random, m, n, k, left, right, kind)];
            verify(&operands, m, n, &mut random, &[]);
        }
    }
}

#[test]
fn every_layout_and_dtype_gives_the_chain() {
    let mut random = Random(2);
    for kind in KINDS {
        for left in ORDERS {
            for right in ORDERS {
                for (m, n, k) in [(13, 53, 37), (3, 70, 8), (25, 20, 5)] {
                    let operands = [Operands::new(&mut random, m, n, k, left, right, kind)];
                    verify(&operands, m, n, &mut random, &[]);
                }
            }
        }
    }
}

#[test]
fn segments_follow_each_other_in_one_chain() {
    let mut random = Random(3);
    let pools = pools(&[2, 3]);
    for ks in [vec![640, 16], vec![16, 640], vec![0, 3, 0, 300, 1], vec![255, 2, 255], vec![0], vec![]] {
        for (m, n) in [(7, 33), (26, 100)] {
            let operands: Vec<Operands> = ks
                .iter()
                .map(|&k| {
                    let (left, right, kind) =
                        (ORDERS[random.below(3)], ORDERS[random.below(3)], KINDS[random.below(3)]);
                    Operands::new(&mut random, m, n, k, left, right, kind)
                })
                .collect();
            verify(&operands, m, n, &mut random, &pools);
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let mut random = Random(4);
    let pools = pools(&[1, 2, 3, 7]);
    for (m, n, k) in [(1, 3001, 96), (130, 257, 300), (61, 16, 640), (5, 700, 64), (300, 9, 77)] {
        for right in [Order::Rows, Order::Columns] {
            let operands = [Operands::new(&mut random, m, n, k, Order::Rows, right, Kind::Bf16)];
            verify(&operands, m, n, &mut random, &pools);
        }
    }
}

#[test]
fn more_rows_than_are_packed_at_a_time_give_the_chain() {
    let mut random = Random(5);
    let operands = [Operands::new(&mut random, 2100, 65, 9, Order::Rows, Order::Columns, Kind::Bf16)];
    verify(&operands, 2100, 65, &mut random, &[]);
    let operands = [Operands::new(&mut random, 20, 300, 1100, Order::Columns, Order::Columns, Kind::F32)];
    verify(&operands, 20, 300, &mut random, &[]);
}

#[test]
fn a_row_does_not_depend_on_the_other_rows() {
    let mut random = Random(6);
    let (n, k) = (75, 130);
    let operands = Operands::new(&mut random, 30, n, k, Order::Rows, Order::Columns, Kind::Bf16);
    let Segment { left, right, .. } = operands.segment();
    for isa in Isa::available() {
        let mut all = vec![0.0; 30 * n];
        gemm_serial(isa, 30, n, &[operands.segment()], &mut all, n, false);
        for i in 0..30 {
            let left = Left { data: &left.data[i * left.row_stride..], ..left };
            let mut one = vec![0.0; n];
            gemm_serial(isa, 1, n, &[Segment { left, right, k }], &mut one, n, false);
            assert!(one.iter().zip(&all[i * n..]).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}: row {i}");
        }
    }
}

#[test]
fn infinities_and_nan_stay_in_their_rows_and_columns() {
    let (m, n, k) = (9, 37, 20);
    let mut random = Random(7);
    let mut operands = Operands::new(&mut random, m, n, k, Order::Rows, Order::Columns, Kind::F32);
    let (row_stride, col_stride) = (operands.left_strides.0, operands.right_strides.1);
    operands.left[4 * row_stride + 3] = f32::INFINITY;
    operands.right[36 * col_stride + 5] = f32::NAN;
    for isa in Isa::available() {
        let mut c = vec![0.0_f32; m * n];
        gemm_serial(isa, m, n, &[operands.segment()], &mut c, n, false);
        for (at, value) in c.iter().enumerate() {
            assert_eq!(value.is_finite(), at / n != 4 && at % n != 36, "{isa}: ({}, {}) is {value}", at / n, at % n);
        }
    }
}

#[test]
fn too_short_operands_are_refused() {
    let (left, right) = (vec![0.0; 5], vec![0.0; 6]);
    let segment = Segment {
        left: Left { data: &left, row_stride: 3, k_stride: 1 },
        right: Right::F32 { data: &right, k_stride: 2, col_stride: 1 },
        k: 3,
    };
    let refused = |n: usize, ldc: usize, length: usize, segment: Segment<'_>| {
        let run = || gemm_serial(Isa::Portable, 2, n, &[segment], &mut vec![0.0; length], ldc, false);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
    };
    let whole = vec![0.0; 6];
    let fits = Segment { left: Left { data: &whole, ..segment.left }, ..segment };
    assert!(!refused(2, 2, 4, fits));
    assert!(refused(2, 2, 4, segment), "left too short");
    assert!(refused(3, 3, 6, fits), "right too short");
    assert!(refused(2, 2, 3, fits), "C too short");
    assert!(refused(2, 1, 4, fits), "rows of C overlap");
    let huge = Segment { left: Left { row_stride: usize::MAX, ..fits.left }, ..fits };
    assert!(refused(2, 2, 4, huge), "strides overflow");
}

/// Plain loops in the shape of the AVX-512 tiles: tests the loops around them where the CPU lacks the instructions.
struct WideTiles;

impl driver::Kernel for WideTiles {
    const ROWS: usize = 12;
    const WIDTH: usize = 32;

    fn panels(rows: usize) -> usize {
        [4, 2, 2].get(rows - 1).copied().unwrap_or(1)
    }

    unsafe fn tile(rows: usize, panels: usize, t: &Tile<'_>) {
        assert!((1..=Self::ROWS).contains(&rows) && (panels == 1 || panels == Self::panels(rows)));
        for (r, j) in (0..rows).flat_map(|r| (0..panels * 32).map(move |j| (r, j))) {
            // SAFETY: as the trait promises.
            unsafe {
                let c = t.c.data.add(r * t.c.stride + j);
                let mut chain = if t.load { *c } else { 0.0 };
                let mut right = t.panels.add(j / 32 * t.panel_stride + j % 32);
                for strip in t.strips {
                    for p in 0..strip.k {
                        let left = *strip.data.add((t.row + r) * strip.row_stride + p * strip.k_stride);
                        chain = left.mul_add(*right, chain);
                        right = right.wrapping_add(32);
                    }
                }
                *c = chain;
            }
        }
    }
}

#[test]
fn the_loops_serve_the_shape_of_avx512_tiles() {
    let mut random = Random(9);
    for m in (1..=27).chain([40]) {
        for (n, k) in [(131, 67), (32, 300), (200, 20), (5, 9)] {
            let operands = [
                Operands::new(&mut random, m, n, k, Order::Rows, Order::Columns, Kind::Bf16),
                Operands::new(&mut random, m, n, 3, Order::Columns, Order::Rows, Kind::F32),
            ];
            let segments: Vec<Segment<'_>> = operands.iter().map(Operands::segment).collect();
            let (start, ldc) = (random.values(m * n), n + 2);
            for accumulate in [false, true] {
                let mut c = framed(&start, m, n, ldc);
                let output = Output { data: c.as_mut_ptr(), stride: ldc };
                // SAFETY: operands and C cover the shape; the kernel needs no instruction set.
                unsafe { driver::run::<WideTiles>(0..m, 0..n, &segments, output, accumulate) }
                compare(&c, &expected(&operands, m, n, &start, accumulate), m, n, ldc, "wide tiles");
            }
        }
    }
}

#[test]
fn avx512_gives_the_bits_of_the_portable_chain() {
    if !Isa::Avx512.is_available() {
        println!("skipped: this CPU lacks avx512");
        return;
    }
    let mut random = Random(8);
    for m in 1..=26 {
        let operands = [Operands::new(&mut random, m, 131, 67, Order::Rows, Order::Columns, Kind::Bf16)];
        verify(&operands, m, 131, &mut random, &[]);
    }
}
