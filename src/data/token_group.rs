//! Prompts of one group as token ids, split into what they share and what they do not.

/// Token ids of one group: every phrasing is `prefix` followed by its suffix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenGroup {
    /// Shared tokens (may be empty).
    pub prefix: Vec<u32>,
    /// One per phrasing, none empty; phrasing 0 is the original.
    pub suffixes: Vec<Vec<u32>>,
}

impl TokenGroup {
    /// Splits prompts behind their longest common prefix, at most the shortest prompt less one token, so that every suffix has a
    /// token. An image (a run of `image_token`) is never split: its tokens see each other both ways, so it lies wholly in the prefix
    /// or in the suffixes. An empty prompt gives an empty suffix, which the packer refuses.
    pub fn from_prompts(prompts: Vec<Vec<u32>>, image_token: Option<u32>) -> Self {
        let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0);
        let mut shared = 0;
        if let Some((first, others)) = prompts.split_first() {
            let limit = shortest.saturating_sub(1);
            shared = (0..limit).find(|&t| others.iter().any(|other| other[t] != first[t])).unwrap_or(limit);
        }
        let prefix = prompts.first().map_or(Vec::new(), |first| first[..shared].to_vec());
        let suffixes = prompts.into_iter().map(|prompt| prompt[shared..].to_vec()).collect();
        Self { prefix, suffixes }.with_whole_images(image_token)
    }

    /// The same prompts with an image that the prefix's end cuts moved into the suffixes.
    pub fn with_whole_images(mut self, image_token: Option<u32>) -> Self {
        let cut = image_token.is_some() && self.suffixes.iter().any(|suffix| suffix.first().copied() == image_token);
        if !cut {
            return self;
        }
        let tail = self.prefix.iter().rev().take_while(|&&id| Some(id) == image_token).count();
        let image = self.prefix.split_off(self.prefix.len() - tail);
        for suffix in &mut self.suffixes {
            suffix.splice(0..0, image.iter().copied());
        }
        self
    }

    /// Phrasings.
    pub fn phrasings(&self) -> usize {
        self.suffixes.len()
    }

    /// Whole prompt of a phrasing.
    pub fn prompt(&self, phrasing: usize) -> Vec<u32> {
        [self.prefix.as_slice(), self.suffixes[phrasing].as_slice()].concat()
    }

    /// Rows that the group occupies with its prefix stored once.
    pub fn unique_tokens(&self) -> usize {
        self.prefix.len() + self.suffixes.iter().map(Vec::len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_prefix_is_all_that_prompts_share_and_leaves_each_a_token() {
        let split =
            |prompts: &[&[u32]]| TokenGroup::from_prompts(prompts.iter().map(|p| p.to_vec()).collect(), Some(9));
        assert_eq!(split(&[&[1, 2, 3, 4], &[1, 2, 5]]).prefix, [1, 2]);
        let nested = split(&[&[1, 2, 3], &[1, 2, 3, 4]]);
        assert_eq!((nested.prefix, nested.suffixes), (vec![1, 2], vec![vec![3], vec![3, 4]]));
        assert_eq!(split(&[&[7]]).suffixes, [[7]]);
        assert_eq!(split(&[]).suffixes, Vec::<Vec<u32>>::new());
        assert_eq!(split(&[&[], &[1]]).suffixes, [vec![], vec![1]]);
    }

    #[test]
    fn an_image_lies_wholly_on_one_side() {
        let split =
            |prompts: &[&[u32]]| TokenGroup::from_prompts(prompts.iter().map(|p| p.to_vec()).collect(), Some(9));
        assert_eq!(split(&[&[1, 9, 9, 9, 2], &[1, 9, 9, 9, 3]]).prefix, [1, 9, 9, 9], "whole image in the prefix");
        assert_eq!(split(&[&[1, 9, 9, 9, 2], &[1, 9, 9, 5, 2]]).prefix, [1], "one prompt's image is longer");
        assert_eq!(split(&[&[1, 9, 9], &[1, 9, 9]]).prefix, [1], "the last token must stay, and its image with it");
        assert_eq!(split(&[&[9, 9, 1], &[9, 9, 9, 1]]).prefix, Vec::<u32>::new());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn splitting_loses_no_token(prompts in prop::collection::vec(prop::collection::vec(0u32..3, 1..12), 1..5)) {
            let group = TokenGroup::from_prompts(prompts.clone(), Some(2));
            prop_assert!(group.suffixes.iter().all(|suffix| !suffix.is_empty()));
            let back: Vec<_> = (0..group.phrasings()).map(|k| group.prompt(k)).collect();
            prop_assert_eq!(&back, &prompts);
            let ends_in_image = group.prefix.last() == Some(&2);
            prop_assert!(!ends_in_image || group.suffixes.iter().all(|suffix| suffix[0] != 2));
        }
    }
}
