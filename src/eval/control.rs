//! Controls of an evaluation: whether an answer depends on what else is computed beside it. It must not, or a flip rate would be a
//! property of the batch.

use super::Error;
use super::samples::{Question, Sample};
use crate::error::Result;
use crate::train::{EngineGroup, MarginEngine, says_yes};
use serde::Serialize;

/// Groups packed together by [`batching_control`], beside each group alone.
pub const BATCH_SIZES: [usize; 3] = [2, 3, 8];

/// What became of the margins when groups were packed together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BatchingControl {
    /// Groups a batch.
    pub sizes: Vec<usize>,
    /// Groups.
    pub groups: u64,
    /// Margins compared, over all sizes.
    pub compared: u64,
    /// Answers that differ from those of the group alone.
    pub answers_that_depend_on_the_batch: u64,
    /// Margins that differ in any bit.
    pub margins_that_depend_on_the_batch: u64,
    /// Largest |difference| of a margin.
    pub largest_difference: f64,
    /// The first margin that differs.
    pub first: Option<BatchDependence>,
}

/// A margin that depends on the batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BatchDependence {
    /// Id of its group.
    pub id: String,
    /// Phrasing.
    pub index: usize,
    /// Groups in the batch.
    pub size: usize,
    /// Of the group alone.
    pub alone: f64,
    /// In the batch.
    pub packed: f64,
}

impl BatchingControl {
    fn compare(&mut self, group: &EngineGroup, size: usize, alone: &[f64], packed: &[f64]) {
        for (index, (&alone, &packed)) in alone.iter().zip(packed).enumerate() {
            self.compared += 1;
            if alone.to_bits() == packed.to_bits() {
                continue;
            }
            self.margins_that_depend_on_the_batch += 1;
            self.answers_that_depend_on_the_batch += u64::from(says_yes(alone) != says_yes(packed));
            self.largest_difference = self.largest_difference.max((packed - alone).abs());
            let first = || BatchDependence { id: group.id.clone(), index, size, alone, packed };
            self.first.get_or_insert_with(first);
        }
    }

    /// The error of a control that found a dependence.
    ///
    /// # Errors
    /// [`Error::DependsOnBatch`].
    pub fn passed(&self) -> Result<(), Error> {
        let Some(first) = &self.first else { return Ok(()) };
        Err(Error::DependsOnBatch {
            answers: self.answers_that_depend_on_the_batch,
            margins: self.margins_that_depend_on_the_batch,
            phrasings: self.compared,
            group: first.id.clone(),
            index: first.index,
            alone: first.alone,
            packed: first.packed,
            size: first.size,
        })
    }
}

/// Margins of every group alone against those in batches of `sizes`, and against the `samples` that were stored of it. Each size has
/// other neighbours: groups are taken forwards, then backwards, then forwards again. `progress` sees groups done.
///
/// # Errors
/// What the engine fails with.
pub fn batching_control<E: MarginEngine>(
    engine: &mut E,
    questions: &[Question],
    samples: &[Vec<Sample>],
    stored_size: usize,
    sizes: &[usize],
    mut progress: impl FnMut(usize),
) -> Result<BatchingControl> {
    let mut control = BatchingControl {
        sizes: sizes.to_vec(),
        groups: questions.len() as u64,
        compared: 0,
        answers_that_depend_on_the_batch: 0,
        margins_that_depend_on_the_batch: 0,
        largest_difference: 0.0,
        first: None,
    };
    let mut alone = Vec::with_capacity(questions.len());
    for (question, stored) in questions.iter().zip(samples) {
        let margins = engine.margins(std::slice::from_ref(&question.group))?.remove(0);
        let stored: Vec<f64> = stored.iter().map(|sample| sample.margin).collect();
        control.compare(&question.group, stored_size, &margins, &stored);
        alone.push(margins);
        progress(1);
    }
    for (pass, &size) in sizes.iter().enumerate() {
        let mut order: Vec<usize> = (0..questions.len()).collect();
        if pass % 2 == 1 {
            order.reverse();
        }
        for batch in order.chunks(size) {
            let groups: Vec<EngineGroup> = batch.iter().map(|&index| questions[index].group.clone()).collect();
            for (&index, packed) in batch.iter().zip(engine.margins(&groups)?) {
                control.compare(&questions[index].group, batch.len(), &alone[index], &packed);
            }
            progress(batch.len());
        }
    }
    Ok(control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::TokenGroup;

    /// Margins that change a little in the last place of batches beyond a size.
    struct Batched {
        exact_up_to: usize,
        off: f64,
        launches: Vec<Vec<String>>,
    }

    impl MarginEngine for Batched {
        fn margins(&mut self, groups: &[EngineGroup]) -> Result<Vec<Vec<f64>>> {
            self.launches.push(groups.iter().map(|group| group.id.clone()).collect());
            let off = if groups.len() > self.exact_up_to { self.off } else { 0.0 };
            Ok(groups.iter().map(|_| vec![1.0 + off, 1e-17 + off]).collect())
        }
    }

    fn questions(count: usize) -> Vec<Question> {
        let tokens = TokenGroup { prefix: vec![2], suffixes: vec![vec![3], vec![4]] };
        let group =
            |k: usize| EngineGroup { id: format!("g{k}"), tokens: tokens.clone(), yes: 5, no: 6, answer_yes: true };
        let question = |k| Question {
            group: group(k),
            phenomena: Vec::new(),
            finding: None,
            cluster: k.to_string(),
            origin: super::super::Origin::default(),
        };
        (0..count).map(question).collect()
    }

    fn control(engine: &mut Batched) -> BatchingControl {
        let questions = questions(5);
        let samples: Vec<_> =
            questions.iter().map(|question| Sample::of(question, &[1.0, 1e-17]).expect("finite")).collect();
        let mut done = 0;
        let found = batching_control(engine, &questions, &samples, 1, &[2, 3], |groups| done += groups);
        assert_eq!(done, 15);
        found.expect("controlled")
    }

    #[test]
    fn every_group_is_asked_alone_and_among_different_others() {
        let mut engine = Batched { exact_up_to: 9, off: 0.0, launches: Vec::new() };
        let found = control(&mut engine);
        assert_eq!((found.groups, found.compared, found.margins_that_depend_on_the_batch), (5, 30, 0));
        assert_eq!(found.passed().map_err(|error| error.to_string()), Ok(()));
        let launches: Vec<String> = engine.launches.iter().map(|launch| launch.join(" ")).collect();
        assert_eq!(launches[..5], ["g0", "g1", "g2", "g3", "g4"]);
        assert_eq!(launches[5..], ["g0 g1", "g2 g3", "g4", "g4 g3 g2", "g1 g0"]);
    }

    #[test]
    fn a_margin_that_moves_in_its_last_bit_is_found_and_an_answer_that_changes_is_told() {
        let found = control(&mut Batched { exact_up_to: 2, off: f64::EPSILON, launches: Vec::new() });
        assert_eq!((found.margins_that_depend_on_the_batch, found.answers_that_depend_on_the_batch), (6, 0));
        assert_eq!(found.first.as_ref().map(|first| (first.id.as_str(), first.size)), Some(("g4", 3)));
        let found = control(&mut Batched { exact_up_to: 1, off: -1e-16, launches: Vec::new() });
        assert_eq!(found.answers_that_depend_on_the_batch, 9);
        assert!(found.largest_difference > 0.0 && found.largest_difference < 2e-16, "{}", found.largest_difference);
        let error = found.passed().expect_err("depends").to_string();
        assert!(
            error.starts_with("9 answers and 18 margins of 30 depend on the batch, the first in group `g0`"),
            "{error}"
        );
    }
}
