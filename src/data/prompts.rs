//! From a group's text to the token ids of its prompts.

use super::{Error, PromptGroup, TokenGroup};
use crate::text::{ImageTokens, PromptTemplate, Tokenizer, expand_images};

impl PromptGroup {
    /// Token ids of all phrasings in a template, split behind their common prefix. `images` says how the model writes an image;
    /// `None` for a text-only one.
    ///
    /// # Errors
    /// An image for a text-only model; image markers in the group's own text; the tokenizer's failures.
    pub fn tokenize(
        &self,
        tokenizer: &Tokenizer,
        template: &PromptTemplate,
        images: Option<ImageTokens>,
    ) -> crate::Result<TokenGroup> {
        if let (Some(image), None) = (&self.image, images) {
            return Err(Error::ImageForTextModel { id: self.id.clone(), image: image.clone() }.into());
        }
        let mut prompts = Vec::with_capacity(1 + self.paraphrases.len());
        for question in self.phrasings() {
            let text = template.render(question, self.context.as_deref(), self.image.is_some());
            prompts.push(match images {
                None => tokenizer.encode(&text)?,
                Some(images) => self.encode_with_image(tokenizer, &text, images)?,
            });
        }
        Ok(TokenGroup::from_prompts(prompts, images.map(|images| images.token)))
    }

    fn encode_with_image(&self, tokenizer: &Tokenizer, text: &str, images: ImageTokens) -> crate::Result<Vec<u32>> {
        let count = usize::from(self.image.is_some());
        let ids = tokenizer.encode(&expand_images(text, count, images.count)?)?;
        let found = ids.iter().filter(|&&id| id == images.token).count();
        let expected = count * images.count;
        if found != expected {
            return Err(Error::ImageTokens { id: self.id.clone(), expected, found }.into());
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Answer, Meta, Paraphrase, ReadOptions, read_groups};
    use crate::text::{AnswerIds, AnswerStrings};
    use std::path::{Path, PathBuf};

    /// Tests on the real tokenizer need the folder of a Gemma 3 model.
    fn tokenizer() -> Option<Tokenizer> {
        let folder = std::env::var_os("UNFLIP_TEST_MODEL").filter(|value| !value.is_empty()).map(PathBuf::from);
        if folder.is_none() {
            eprintln!("skipped: UNFLIP_TEST_MODEL names no Gemma 3 270M folder");
        }
        folder.map(|folder| Tokenizer::open(folder).unwrap())
    }

    fn group(image: Option<&str>, question: &str) -> PromptGroup {
        PromptGroup {
            id: "g".into(),
            image: image.map(String::from),
            context: None,
            question: question.into(),
            paraphrases: vec![Paraphrase { text: "Is pneumothorax seen?".into(), phenomenon: None }],
            answer: Answer::Yes,
            meta: Meta::default(),
        }
    }

    #[test]
    fn report_prompts_share_instruction_and_report() {
        let Some(tokenizer) = tokenizer() else { return };
        let answers = AnswerIds::look_up(&tokenizer, &AnswerStrings::default()).unwrap();
        assert_eq!(answers, AnswerIds { yes: 10784, no: 3771 });
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/reports/reports-eval.jsonl");
        let file = read_groups(path, ReadOptions::default()).unwrap();
        for group in &file.groups[..5] {
            let tokens = group.tokenize(&tokenizer, &PromptTemplate::default(), None).unwrap();
            assert_eq!(tokens.prefix[..4], [2, 105, 2364, 107]);
            for (k, question) in group.phrasings().enumerate() {
                let prompt = tokens.prompt(k);
                assert_eq!(prompt.iter().filter(|&&id| id == 2).count(), 1, "one <bos>");
                assert_eq!(prompt[prompt.len() - 5..], [106, 107, 105, 4368, 107]);
                assert_eq!(
                    tokenizer.decode(&prompt).unwrap(),
                    PromptTemplate::default().render(question, group.context.as_deref(), false)
                );
            }
            let shared = tokenizer.decode(&tokens.prefix).unwrap();
            assert!(shared.contains(group.context.as_deref().unwrap()), "the report is shared: {shared}");
        }
    }

    #[test]
    fn an_image_is_written_with_merged_line_breaks_and_shared() {
        let Some(tokenizer) = tokenizer() else { return };
        let images = ImageTokens { token: 262_144, count: 256 };
        let tokens = group(Some("a.png"), "Is there pneumothorax?")
            .tokenize(&tokenizer, &PromptTemplate::default(), Some(images))
            .unwrap();
        let at = tokens.prefix.iter().position(|&id| id == images.token).unwrap();
        assert_eq!(tokens.prefix[at - 2..at], [110, 255_999], "instruction, four line breaks, start of image");
        assert_eq!(tokens.prefix[at + 256..at + 258], [256_000, 108]);
        let bare = PromptTemplate::new("{question}").unwrap();
        let tokens = group(Some("a.png"), "Is there pneumothorax?").tokenize(&tokenizer, &bare, Some(images)).unwrap();
        assert_eq!(tokens.prefix[..5], [2, 105, 2364, 109, 255_999], "user, three line breaks, start of image");
    }

    #[test]
    fn a_wrong_number_of_images_is_refused() {
        let tokenizer = crate::text::tiny_tokenizer();
        let images = ImageTokens { token: 5, count: 4 };
        let template = PromptTemplate::default();
        let error = group(Some("a.png"), "Q?").tokenize(&tokenizer, &template, None).unwrap_err();
        assert_eq!(error.to_string(), "group `g` has an image (`a.png`), and the model is text-only");
        assert!(error.hint().is_some());
        let error =
            group(None, "Is <start_of_image> there?").tokenize(&tokenizer, &template, Some(images)).unwrap_err();
        assert_eq!(error.to_string(), "the prompt has 0 image(s) and 1 `<start_of_image>` marker(s)");
        // <end_of_turn> is id 5 of this tokenizer: one appears in every prompt.
        let error = group(None, "Q?").tokenize(&tokenizer, &template, Some(images)).unwrap_err();
        assert_eq!(error.to_string(), "group `g`: expected 0 image tokens in the prompt, found 1");
    }
}
