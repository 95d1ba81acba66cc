//! Recycled memory of the CPU device: a dropped buffer goes to a free list of its size class, so that a training step
//! allocates nothing once the largest batch was seen.
//!
//! Classes are four per octave, so at most a quarter of a buffer lies idle. Contents of a recycled buffer are stale, never
//! uninitialised; [`Buffers::zeros`] clears them, [`Buffers::stale`] is for callers that write every element.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Free lists, shared by all buffers of a device.
#[derive(Clone, Default)]
pub struct Buffers {
    free: Arc<Mutex<Vec<Vec<Vec<f32>>>>>,
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
        let mut lists = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let recycled = lists.get_mut(class).and_then(Vec::pop);
        drop(lists);
        let mut data = recycled.unwrap_or_else(|| Vec::with_capacity(capacity(class)));
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
        let lists = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        lists.iter().flatten().map(|data| data.capacity() * size_of::<f32>()).sum()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let class = class(data.capacity());
        // Only memory that came from `stale` has a class's exact capacity or more; the class of a larger one would promise
        // too much, so round down.
        let class = if capacity(class) > data.capacity() { class.wrapping_sub(1) } else { class };
        if class == usize::MAX {
            return;
        }
        let mut lists = self.home.free.lock().unwrap_or_else(PoisonError::into_inner);
        if lists.len() <= class {
            lists.resize_with(class + 1, Vec::new);
        }
        lists[class].push(data);
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
}
