//! Recycled memory of the CPU device: a dropped buffer goes to a free list of its size class, so that steps of like sizes
//! allocate nothing after the first.
//!
//! Classes are four per octave. A buffer is made a quarter larger than asked at most; a recycled one may be of a class up to
//! twice as large, so that batches of other lengths use the same memory. Where none fits, idle memory is released before
//! more is taken: all that is held never exceeds twice the most that was on loan at once. Contents of a recycled buffer are
//! stale, never uninitialised; [`Buffers::zeros`] clears them, [`Buffers::stale`] is for callers that write every element.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Classes in which a doubling of the capacity is: a recycled buffer may be so much larger.
const LARGER: usize = 4;

/// Free lists, shared by all buffers of a device.
#[derive(Clone, Default)]
pub struct Buffers {
    store: Arc<Mutex<Store>>,
}

/// Elements are counted as capacities.
#[derive(Default)]
struct Store {
    /// Free memory by class.
    free: Vec<Vec<Vec<f32>>>,
    idle: usize,
    on_loan: usize,
    /// Most on loan at once.
    peak: usize,
}

impl Store {
    /// The smallest free buffer that holds `class`.
    fn take(&mut self, class: usize) -> Option<Vec<f32>> {
        let end = self.free.len().min(class + LARGER + 1);
        let data = self.free.get_mut(class..end)?.iter_mut().find_map(Vec::pop)?;
        self.idle -= data.capacity();
        Some(data)
    }

    fn lend(&mut self, class: usize) -> Vec<f32> {
        let recycled = self.take(class);
        self.on_loan += recycled.as_ref().map_or(capacity(class), Vec::capacity);
        self.peak = self.peak.max(self.on_loan);
        recycled.unwrap_or_else(|| {
            self.release_surplus();
            let data = Vec::with_capacity(capacity(class));
            // The system may give more.
            self.on_loan += data.capacity() - capacity(class);
            data
        })
    }

    /// Gives idle memory back to the system, the largest first, until what is held is at most twice the peak.
    fn release_surplus(&mut self) {
        for list in self.free.iter_mut().rev() {
            while self.idle + self.on_loan > 2 * self.peak
                && let Some(data) = list.pop()
            {
                self.idle -= data.capacity();
            }
        }
    }
}

/// Memory on loan from [`Buffers`]; dropping it gives it back.
pub struct Block {
    data: Vec<f32>,
    home: Buffers,
}

impl Buffers {
    /// `len` elements of whatever was there before: for callers that write all of them.
    pub fn stale(&self, len: usize) -> Block {
        let class = class(len);
        let mut data = self.lock().lend(class);
        data.resize(len, 0.0);
        Block { data, home: self.clone() }
    }

    /// `len` zeros.
    pub fn zeros(&self, len: usize) -> Block {
        let mut block = self.stale(len);
        block.fill(0.0);
        block
    }

    /// Bytes that lie in the free lists.
    pub fn idle_bytes(&self) -> usize {
        self.lock().idle * size_of::<f32>()
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let held = data.capacity();
        // Where the system gave more than a class's capacity, the next class would promise too much: round down.
        let class = class(held);
        let class = if capacity(class) > held { class - 1 } else { class };
        let mut store = self.home.lock();
        if store.free.len() <= class {
            store.free.resize_with(class + 1, Vec::new);
        }
        store.on_loan -= held;
        store.idle += held;
        store.free[class].push(data);
    }
}

impl Deref for Block {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

/// Elements of a buffer of this class: 64·(1, 1¼, 1½, 1¾)·2ᵏ.
fn capacity(class: usize) -> usize {
    (16 * (4 + class % 4)) << (class / 4)
}

/// The smallest class that holds `len` elements.
fn class(len: usize) -> usize {
    let len = len.max(64);
    // 64·2ᵒ ≤ len < 64·2ᵒ⁺¹
    let octave = (usize::BITS - 1 - len.leading_zeros()) as usize - 6;
    let quarter = 16 << octave;
    4 * octave + len.div_ceil(quarter) - 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_its_length_and_wastes_at_most_a_quarter() {
        for len in (1..5000).chain([1 << 20, (1 << 20) + 1, 123_456_789]) {
            let capacity = capacity(class(len));
            assert!(capacity >= len, "{len}: {capacity}");
            assert!(len <= 64 || capacity <= len + len / 4 + 1, "{len}: {capacity}");
            assert!(class(len) == 0 || super::capacity(class(len) - 1) < len.max(64));
        }
    }

    #[test]
    fn dropped_memory_is_used_again() {
        let buffers = Buffers::default();
        let first = buffers.stale(1000);
        let address = first.as_ptr();
        drop(first);
        assert_eq!(buffers.idle_bytes(), 4 * 1024);
        let mut second = buffers.zeros(1010);
        assert_eq!(second.as_ptr(), address);
        assert_eq!((second.len(), buffers.idle_bytes()), (1010, 0));
        second.fill(3.0);
        drop(second);
        assert!(buffers.zeros(990).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn a_shorter_batch_uses_the_memory_of_a_longer_one() {
        let buffers = Buffers::default();
        let long = buffers.stale(2048);
        let address = long.as_ptr();
        drop(long);
        assert_eq!(buffers.stale(1024).as_ptr(), address, "half as long");
        let _short = buffers.stale(800);
        assert_eq!(buffers.idle_bytes(), 4 * 2048, "a buffer of less than half stays its own");
    }

    /// Buffers of a step on `tokens` tokens: kept activations of a few widths, and scratch that comes and goes.
    fn step(buffers: &Buffers, tokens: usize) -> usize {
        let mut kept = Vec::new();
        for _layer in 0..4 {
            for width in [64, 64, 100, 250] {
                kept.push(buffers.stale(tokens * width));
                drop(buffers.stale(tokens * 32));
            }
        }
        kept.iter().map(|block| block.len() * size_of::<f32>()).sum::<usize>() + tokens * 32 * size_of::<f32>()
    }

    #[test]
    fn idle_memory_over_many_lengths_stays_near_the_need_of_the_largest_step() {
        let buffers = Buffers::default();
        let mut most = 0;
        for i in 0..400 {
            // Every length from 40 to 439 once, in a mixed order.
            most = most.max(step(&buffers, 40 + i * 171 % 400));
            let idle = buffers.idle_bytes();
            assert!(2 * idle <= 5 * most, "step {i}: {idle} bytes idle, the largest step needs {most}");
        }
    }

    #[test]
    fn memory_held_is_at_most_twice_the_most_on_loan() {
        let buffers = Buffers::default();
        // Each length is far from the others': nothing is recycled, and what lies idle makes room.
        for octave in (0..12).chain((0..12).rev()) {
            let blocks: Vec<_> = (0..1 << (12 - octave)).map(|_| buffers.stale(64 << octave)).collect();
            drop(blocks);
            let store = buffers.lock();
            assert_eq!(store.on_loan, 0);
            assert!(store.idle <= 2 * store.peak, "{} of {}", store.idle, store.peak);
            assert_eq!(store.idle, store.free.iter().flatten().map(Vec::capacity).sum::<usize>());
        }
    }

    #[test]
    fn steps_of_one_length_allocate_nothing_after_the_first() {
        let buffers = Buffers::default();
        step(&buffers, 300);
        let idle = buffers.idle_bytes();
        for _ in 0..3 {
            step(&buffers, 300);
            assert_eq!(buffers.idle_bytes(), idle);
        }
    }
}
