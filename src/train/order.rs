//! Which groups and which paraphrases a step sees: a pure function of the seed, the epoch and the place in the file, so
//! that a resumed run needs to know nothing but its step, and every platform gets the same order.

use super::random::Random;
use super::settings::Paraphrases;
use std::ops::Range;

/// Purposes, so that streams of one seed do not coincide.
const SHUFFLE: u64 = 1;
const SAMPLE: u64 = 2;
const PAIRS: u64 = 3;

/// The order of `groups` groups in `epoch` (from 0): a Fisher–Yates shuffle keyed by (seed, epoch).
pub fn epoch_order(seed: u64, epoch: u64, groups: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..groups).collect();
    Random::keyed(&[seed, SHUFFLE, epoch]).shuffle(&mut order);
    order
}

/// Phrasings of a group that take part in `epoch`, ascending, the original (0) always first. `phrasings` counts the
/// original; `group` is the group's place in the file.
pub fn chosen_phrasings(choice: Paraphrases, seed: u64, epoch: u64, group: usize, phrasings: usize) -> Vec<usize> {
    let keep = match choice {
        Paraphrases::All => phrasings,
        Paraphrases::None => 1,
        Paraphrases::Sample(k) => k.saturating_add(1),
    };
    if keep >= phrasings {
        return (0..phrasings).collect();
    }
    let mut rest: Vec<usize> = (1..phrasings).collect();
    Random::keyed(&[seed, SAMPLE, epoch, group as u64]).shuffle(&mut rest);
    rest.truncate(keep - 1);
    rest.sort_unstable();
    rest.insert(0, 0);
    rest
}

/// `count` (group, paraphrase) pairs, or all if there are fewer, drawn by the seed without repetition from groups of `phrasings` phrasings
/// each (the original counted), in the order of the file.
pub fn drawn_pairs(seed: u64, phrasings: &[usize], count: usize) -> Vec<(usize, usize)> {
    let of = |(group, &phrasings): (usize, &usize)| (1..phrasings).map(move |paraphrase| (group, paraphrase));
    let mut pairs: Vec<(usize, usize)> = phrasings.iter().enumerate().flat_map(of).collect();
    Random::keyed(&[seed, PAIRS]).shuffle(&mut pairs);
    pairs.truncate(count);
    pairs.sort_unstable();
    pairs
}

/// Where a step lies in the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlace {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Positions in that epoch's order. The last step of an epoch may be shorter; none spans two epochs.
    pub positions: Range<usize>,
}

/// Steps of one pass over `groups` groups, `batch_groups` a step.
pub fn steps_per_epoch(groups: usize, batch_groups: usize) -> u64 {
    groups.div_ceil(batch_groups.max(1)) as u64
}

/// Place of `step`, counted from 1.
pub fn place(step: u64, groups: usize, batch_groups: usize) -> StepPlace {
    let per_epoch = steps_per_epoch(groups, batch_groups).max(1);
    let start = ((step - 1) % per_epoch) as usize * batch_groups;
    StepPlace { epoch: (step - 1) / per_epoch, positions: start..(start + batch_groups).min(groups) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_visits_every_group_once_in_an_order_of_its_own() {
        let first = epoch_order(7, 0, 50);
        let second = epoch_order(7, 1, 50);
        for order in [&first, &second] {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
        assert_ne!(first, epoch_order(8, 0, 50));
        assert_eq!(first, epoch_order(7, 0, 50));
    }

    #[test]
    fn the_order_of_a_seed_never_changes() {
        // From a second implementation of the generator and of Fisher–Yates, in Python.
        assert_eq!(epoch_order(0, 0, 10), [8, 5, 1, 6, 7, 0, 9, 3, 4, 2]);
        assert_eq!(chosen_phrasings(Paraphrases::Sample(2), 0, 0, 5, 6), [0, 2, 5]);
    }

    #[test]
    fn sampling_keeps_the_original_and_draws_every_paraphrase_in_time() {
        let mut seen = [0; 5];
        for epoch in 0..200 {
            let chosen = chosen_phrasings(Paraphrases::Sample(2), 1, epoch, 3, 5);
            assert_eq!((chosen.len(), chosen[0]), (3, 0));
            assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
            chosen.iter().for_each(|&k| seen[k] += 1);
        }
        assert_eq!(seen[0], 200);
        assert!(seen[1..].iter().all(|&count| (70..=130).contains(&count)), "{seen:?}");
        assert_eq!(chosen_phrasings(Paraphrases::Sample(9), 1, 0, 0, 4), [0, 1, 2, 3]);
        assert_eq!(chosen_phrasings(Paraphrases::None, 1, 0, 0, 4), [0]);
    }

    #[test]
    fn the_last_step_of_an_epoch_may_be_short() {
        assert_eq!(steps_per_epoch(10, 4), 3);
        assert_eq!(place(3, 10, 4), StepPlace { epoch: 0, positions: 8..10 });
        assert_eq!(place(4, 10, 4), StepPlace { epoch: 1, positions: 0..4 });
    }
}
