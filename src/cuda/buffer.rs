//! A matrix in device memory: `[rows, cols]`, rows `stride` elements apart, f32 or bf16.
//!
//! `stride` is `cols` rounded up to 64 elements, and the columns from `cols` on hold zeros: whatever writes a row writes its padding
//! too, and whatever reads may read it. Rows are not padded. Addresses are multiples of 256 bytes.

use super::launch::Arg;
use super::memory::{Block, Pool};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Elements between rows are a multiple of this: a K-tile of the products.
pub const PADDING: usize = 64;

/// Elements from one row of `cols` columns to the next.
pub const fn stride(cols: usize) -> usize {
    cols.div_ceil(PADDING) * PADDING
}

/// What a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Single precision: the residual stream, what is added to it, logits, statistics.
    F32,
    /// bfloat16: what enters a product.
    Bf16,
}

impl Element {
    /// Bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// As kernels' names spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// A matrix on the device.
pub struct Buf {
    rows: usize,
    cols: usize,
    element: Element,
    block: Block,
    copies: Copies,
}

/// bf16 copies of parts of a parameter vector, by offset and shape: made when first needed, gone when it changes.
#[derive(Default)]
pub(super) struct Copies(Mutex<BTreeMap<(usize, usize, usize), Arc<Buf>>>);

impl Buf {
    /// A buffer with stale contents.
    pub(super) fn stale(pool: &Arc<Pool>, rows: usize, cols: usize, element: Element) -> Self {
        let block = pool.block(rows * stride(cols) * element.size());
        Self { rows, cols, element, block, copies: Copies::default() }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns that count.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements between rows.
    pub fn stride(&self) -> usize {
        stride(self.cols)
    }

    /// What it holds.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Elements in memory, padding included.
    pub fn elements(&self) -> usize {
        self.rows * self.stride()
    }

    /// Address on the device; 0 for an empty buffer.
    pub fn address(&self) -> u64 {
        self.block.address()
    }

    /// Bytes in memory, padding included.
    pub fn bytes(&self) -> usize {
        self.elements() * self.element.size()
    }

    /// To be called before its values change.
    pub(super) fn forget_copies(&mut self) {
        self.copies.0.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The copy of this part, made by `make` if there is none.
    pub(super) fn copy_of(&self, offset: usize, rows: usize, cols: usize, make: impl FnOnce() -> Buf) -> Arc<Buf> {
        let mut copies = self.copies.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(copies.entry((offset, rows, cols)).or_insert_with(|| Arc::new(make())))
    }
}

impl From<&Buf> for Arg {
    fn from(buf: &Buf) -> Self {
        Self::address(buf.address())
    }
}

/// Words on the device: row numbers, token ids, intervals.
pub struct Words {
    block: Block,
    len: usize,
}

impl Words {
    pub(super) fn stale(pool: &Arc<Pool>, len: usize) -> Self {
        Self { block: pool.block(4 * len), len }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address on the device; 0 where there are none.
    pub fn address(&self) -> u64 {
        self.block.address()
    }
}

impl From<&Words> for Arg {
    fn from(words: &Words) -> Self {
        Self::address(words.address())
    }
}

/// A buffer that was there in the wanted form, or one made of it.
pub enum Form<'a> {
    /// It was there.
    Own(&'a Buf),
    /// It was made.
    Made(Buf),
}

impl Deref for Form<'_> {
    type Target = Buf;

    fn deref(&self) -> &Buf {
        match self {
            Self::Own(buf) => buf,
            Self::Made(buf) => buf,
        }
    }
}
