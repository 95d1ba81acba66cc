//! The sum of a step's leaf gradients as a fixed balanced binary tree over leaf positions, so that its bits do not depend
//! on who summed which aligned subtree (one process accumulating, or ranks that each own a subtree).
//!
//! Node (level l, index i) covers positions i·2^l … (i+1)·2^l − 1 and is left child + right child; an absent leaf is
//! skipped, so a node with one present child is that child. Leaves arrive in ascending order and at most log₂(positions)
//! partial sums are alive: a pair of neighbours is added as soon as no later leaf can fall below their lowest common node.

/// Partial sums of a tree under construction.
#[derive(Debug)]
pub struct GradientTree<G> {
    /// (first position covered, sum), ascending; heights between neighbours fall from bottom to top.
    partial: Vec<(u64, G)>,
}

/// Level of the lowest node that covers both positions.
fn height(a: u64, b: u64) -> u32 {
    u64::BITS - (a ^ b).leading_zeros()
}

impl<G> Default for GradientTree<G> {
    fn default() -> Self {
        Self { partial: Vec::new() }
    }
}

impl<G> GradientTree<G> {
    /// Adds the leaf at `position`, or the finished sum of an aligned subtree that starts there. Positions ascend.
    pub fn push(&mut self, position: u64, gradient: G, mut add: impl FnMut(&mut G, &G)) {
        while let [.., left, right] = self.partial.as_slice() {
            if height(left.0, right.0) > height(right.0, position) {
                break;
            }
            self.merge(&mut add);
        }
        debug_assert!(self.partial.last().is_none_or(|last| last.0 < position), "leaves arrive in ascending order");
        self.partial.push((position, gradient));
    }

    /// The sum, or `None` if no leaf was pushed.
    pub fn finish(mut self, mut add: impl FnMut(&mut G, &G)) -> Option<G> {
        while self.partial.len() > 1 {
            self.merge(&mut add);
        }
        self.partial.pop().map(|(_, sum)| sum)
    }

    /// Adds the top partial sum to the one below it.
    fn merge(&mut self, add: &mut impl FnMut(&mut G, &G)) {
        if let Some((_, right)) = self.partial.pop()
            && let Some((_, left)) = self.partial.last_mut()
        {
            add(left, &right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::Random;
    use super::*;

    #[expect(clippy::ptr_arg, reason = "the tree adds its own element type")]
    fn add(into: &mut Vec<f32>, other: &Vec<f32>) {
        into.iter_mut().zip(other).for_each(|(a, b)| *a += b);
    }

    /// The definition, top down.
    fn recursive(leaves: &[Option<Vec<f32>>]) -> Option<Vec<f32>> {
        if leaves.len() == 1 {
            return leaves[0].clone();
        }
        let (left, right) = leaves.split_at(leaves.len() / 2);
        match (recursive(left), recursive(right)) {
            (Some(mut left), Some(right)) => {
                add(&mut left, &right);
                Some(left)
            }
            (left, right) => left.or(right),
        }
    }

    fn sum(leaves: &[Option<Vec<f32>>], first: usize) -> Option<Vec<f32>> {
        let mut tree = GradientTree::default();
        for (i, leaf) in leaves.iter().enumerate() {
            if let Some(leaf) = leaf {
                tree.push((first + i) as u64, leaf.clone(), add);
            }
        }
        tree.finish(add)
    }

    #[test]
    fn tree_sum_is_the_same_for_any_split() {
        let mut random = Random::keyed(&[11]);
        for _ in 0..60 {
            let absent_in_ten = random.below(5);
            let leaves: Vec<Option<Vec<f32>>> = (0..64)
                .map(|_| {
                    let leaf = (0..5).map(|_| (random.word() >> 40) as f32 * 1e-3 - 8000.0).collect();
                    (random.below(10) >= absent_in_ten).then_some(leaf)
                })
                .collect();
            let expected = recursive(&leaves);
            assert_eq!(sum(&leaves, 0), expected);
            for size in [2, 4, 8, 16, 32, 64] {
                let mut tree = GradientTree::default();
                for (rank, chunk) in leaves.chunks(size).enumerate() {
                    if let Some(partial) = sum(chunk, rank * size) {
                        tree.push((rank * size) as u64, partial, add);
                    }
                }
                assert_eq!(tree.finish(add), expected, "subtrees of {size}");
            }
        }
    }

    #[test]
    fn trailing_absent_leaves_change_nothing_and_the_order_of_sums_is_balanced() {
        let name = |into: &mut String, other: &String| *into = format!("({into}+{other})");
        let sum = |leaves: &[u64]| {
            let mut tree = GradientTree::default();
            leaves.iter().for_each(|&leaf| tree.push(leaf, leaf.to_string(), name));
            tree.finish(name)
        };
        assert_eq!(sum(&[]), None);
        assert_eq!(sum(&[0, 1, 2, 3, 4]).as_deref(), Some("(((0+1)+(2+3))+4)"));
        assert_eq!(sum(&[0, 1, 2, 3, 4, 5, 6]).as_deref(), Some("(((0+1)+(2+3))+((4+5)+6))"));
        assert_eq!(sum(&[1, 2, 3, 6]).as_deref(), Some("((1+(2+3))+6)"));
    }

    #[test]
    fn no_more_partial_sums_are_alive_than_the_tree_is_high() {
        let mut tree = GradientTree::default();
        for position in 0..1000 {
            tree.push(position, 1_u64, |a, b| *a += b);
            assert!(tree.partial.len() <= 11);
        }
        assert_eq!(tree.finish(|a, b| *a += b), Some(1000));
    }
}
