//! vocabulary on CUDA: `kernels/answer_head.cu`. The rows are cut into slices that a block can hold, each with the pairs among its rows; what a
//! stripe of the vocabulary gives is added here, stripes in order, in f64.

use super::{Head, Question, Statistics, Vocabulary};
use crate::cuda::{Buf, Cuda};
use crate::ops::Backend;
use crate::ops::answer_head::cuda::{COLS, THREADS, constants, tile};
use crate::ops::answer_head::{AnswerHead, HeadColumns};
use crate::ops::norm::Norm;

/// Columns of k that are staged at once.
const K_TILE: usize = 32;
/// Rows of a slice at most.
const MOST: usize = 64;

/// Rows and pairs as the kernel gets them, and where the answers to the question lie among its results.
#[derive(Debug, Default, PartialEq, Eq)]
struct Slices {
    /// (first row entry, rows, first pair entry, pairs) of each.
    slices: Vec<u32>,
    /// Rows of n, slice by slice.
    row_of: Vec<u32>,
    /// Places of a pair's rows among those of its slice, in the question's order.
    pair_of: Vec<u32>,
    /// Of each row its first entry in `row_of`.
    entry: Vec<usize>,
    /// Of each pair the entry of its first row.
    pair_entry: Vec<usize>,
}

impl Slices {
    /// Takes pairs in order as long as their rows fit into a slice, then the rows that no pair names.
    fn new(rows: usize, pairs: &[(u32, u32)]) -> Self {
        let mut slices = Self { entry: vec![usize::MAX; rows], ..Self::default() };
        let (mut first, mut first_pair) = (0, 0);
        for &(i, k) in pairs {
            let held = slices.row_of.len() - first;
            let missing = |row: u32, slices: &Self| usize::from(!slices.row_of[first..].contains(&row));
            if held + missing(i, &slices) + if i == k { 0 } else { missing(k, &slices) } > MOST {
                slices.close(&mut first, &mut first_pair);
            }
            let places = [i, k].map(|row| slices.place(row, first));
            slices.pair_of.extend(places.map(|place| place as u32));
            slices.pair_entry.push(first + places[0]);
        }
        for row in 0..rows {
            if slices.entry[row] == usize::MAX {
                if slices.row_of.len() - first == MOST {
                    slices.close(&mut first, &mut first_pair);
                }
                slices.place(row as u32, first);
            }
        }
        slices.close(&mut first, &mut first_pair);
        slices
    }

    /// Where the row is in the slice that begins at `first`; it is added if it is not there.
    fn place(&mut self, row: u32, first: usize) -> usize {
        let found = self.row_of[first..].iter().position(|&other| other == row);
        found.unwrap_or_else(|| {
            let entry = &mut self.entry[row as usize];
            *entry = (*entry).min(self.row_of.len());
            self.row_of.push(row);
            self.row_of.len() - 1 - first
        })
    }

    /// Ends a slice, unless it is empty.
    fn close(&mut self, first: &mut usize, first_pair: &mut usize) {
        let (rows, pairs) = (self.row_of.len() - *first, self.pair_of.len() / 2 - *first_pair);
        if rows > 0 {
            self.slices.extend([*first, rows, *first_pair, pairs].map(|number| number as u32));
        }
        (*first, *first_pair) = (self.row_of.len(), self.pair_of.len() / 2);
    }

    /// The most rows of a slice.
    fn largest(&self) -> usize {
        self.slices.chunks_exact(4).map(|slice| slice[1] as usize).max().unwrap_or(0)
    }
}

impl Vocabulary for Cuda {
    fn vocabulary(&self, h: &Buf, head: Head<'_, Self>, question: Question<'_>) -> Statistics {
        let Question { ids, pairs } = question;
        let chosen = self.answer_head(h, head.norm, head.eps, head.embedding, HeadColumns::Ids(ids));
        let logits = self.download(&chosen);
        let n = self.branch_norm(h, head.norm, head.eps);
        let stored = head.embedding.stored(self);
        let (vocab, slices) = (head.embedding.rows(), Slices::new(h.rows(), pairs));
        let (rows, stripes) = (slices.row_of.len(), vocab.div_ceil(COLS));
        // Zeros, for the padding of one long row.
        let values = |width: usize| self.zeros(1, stripes * width);
        let (largest, sum, cross) = (values(rows), values(rows), values(pairs.len()));
        let centre: Vec<u32> =
            slices.row_of.iter().map(|&row| (logits[row as usize * ids.len()] as f32).to_bits()).collect();
        let kernel = self.kernel("answer_head.cu", "vocabulary", &constants(h.cols(), slices.largest(), stored));
        let words = [&slices.slices, &slices.row_of, &slices.pair_of, &centre].map(|values| self.words(values));
        let numbers = [vocab, rows, pairs.len()].map(|number| (number as i32).into());
        let buffers = [&largest, &sum, &cross, &n, stored].map(Into::into);
        let args = [&buffers[..], &words.each_ref().map(Into::into), &numbers].concat();
        let grid = [stripes as u32, (slices.slices.len() / 4) as u32, 1];
        let tile = tile(slices.largest());
        let shared = (4 * (K_TILE * (COLS + 1 + tile)).max((COLS + 1) * tile)) as u32;
        self.launch(&kernel, grid, [THREADS, 1, 1], shared, &args);

        let (largest, sum) = (self.download(&largest), self.download(&sum));
        let cross = if pairs.is_empty() { Vec::new() } else { self.download(&cross) };
        let stripe = |of: usize, width: usize| (0..stripes).map(move |stripe| stripe * width + of);
        let top = |entry: usize| stripe(entry, rows).map(|at| largest[at]).fold(f64::NEG_INFINITY, f64::max);
        let scaled =
            |entry: usize, top: f64| -> f64 { stripe(entry, rows).map(|at| sum[at] * (largest[at] - top).exp()).sum() };
        let log_sum = slices.entry.iter().map(|&entry| {
            let top = top(entry);
            top + scaled(entry, top).ln()
        });
        let cross = slices.pair_entry.iter().enumerate().map(|(pair, &entry)| {
            let top = top(entry);
            let weighted = stripe(pair, pairs.len()).zip(stripe(entry, rows));
            weighted.map(|(at, of)| cross[at] * (largest[of] - top).exp()).sum::<f64>() / scaled(entry, top)
        });
        Statistics { log_sum: log_sum.collect(), cross: cross.collect(), logits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_pair_share_a_slice() {
        let slices = Slices::new(4, &[(0, 2), (2, 0), (3, 3)]);
        assert_eq!(slices.row_of, [0, 2, 3, 1]);
        assert_eq!(slices.slices, [0, 4, 0, 3]);
        assert_eq!(slices.pair_of, [0, 1, 1, 0, 2, 2]);
        assert_eq!((slices.entry, slices.pair_entry), (vec![0, 3, 1, 2], vec![0, 1, 2]));
    }

    #[test]
    fn slices_hold_no_more_rows_than_a_block() {
        let pairs: Vec<(u32, u32)> = (0..99).map(|row| (row, row + 1)).chain([(0, 99)]).collect();
        let slices = Slices::new(100, &pairs);
        assert!(slices.largest() <= MOST);
        for slice in slices.slices.chunks_exact(4) {
            let of = slice[2] as usize..(slice[2] + slice[3]) as usize;
            for (places, pair) in slices.pair_of[2 * of.start..2 * of.end].chunks_exact(2).zip(&pairs[of]) {
                let row = |place: usize| slices.row_of[slice[0] as usize + places[place] as usize];
                assert_eq!((row(0), row(1)), *pair);
            }
        }
        let covered: u32 = slices.slices.chunks_exact(4).map(|slice| slice[3]).sum();
        assert_eq!(covered as usize, pairs.len());
    }
}
