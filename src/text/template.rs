//! The prompt template: where instruction, image, context and question stand in the user's turn. A setting, stored with the run.

use super::Error;
use super::chat::{IMAGE_MARKER, user_turn};
use crate::digest::sha256;
use serde::{Deserialize, Serialize};

const DEFAULT: &str = "You are a medical imaging expert. For yes/no questions, respond with only Yes or No.\n\n\
    {image}{context}\n\n{question}";

/// Content of the user's turn with `{image}`, `{context}` and `{question}` where those go, for instance
/// `Answer Yes or No: {question}`.
///
/// What a group does not have leaves nothing behind: its placeholder goes, with the white space after it. A pattern without
/// `{image}` or `{context}` has them at its start, context followed by a blank line, so that neither is ever lost.
/// Other braces are plain text, except that `{word}` must be one of the three.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PromptTemplate {
    pattern: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Image,
    Context,
    Question,
}

impl Default for PromptTemplate {
    /// The paper's instruction, a blank line, image, context, a blank line, question.
    fn default() -> Self {
        Self::new(DEFAULT).expect("the default template is valid: a test reads it")
    }
}

impl PromptTemplate {
    /// Reads a pattern.
    ///
    /// # Errors
    /// `{question}` missing, a placeholder twice, or an unknown one.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let bad = |problem: String| Error::Template { pattern: pattern.to_owned(), problem };
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = pattern;
        while let Some(open) = rest.find('{') {
            text.push_str(&rest[..open]);
            rest = &rest[open..];
            let close = rest.find('}').unwrap_or(0);
            let word = rest.get(1..close).unwrap_or("");
            if word.is_empty() || !word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                text.push('{');
                rest = &rest[1..];
                continue;
            }
            let part = match word {
                "image" => Part::Image,
                "context" => Part::Context,
                "question" => Part::Question,
                _ => return Err(bad(format!("expected {{image}}, {{context}} or {{question}}, found {{{word}}}"))),
            };
            if parts.contains(&part) {
                return Err(bad(format!("{{{word}}} stands in it twice")));
            }
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text)));
            }
            parts.push(part);
            rest = &rest[close + 1..];
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        if !parts.contains(&Part::Question) {
            return Err(bad("{question} is missing".into()));
        }
        if !parts.contains(&Part::Context) {
            parts.splice(0..0, [Part::Context, Part::Text("\n\n".into())]);
        }
        if !parts.contains(&Part::Image) {
            parts.insert(0, Part::Image);
        }
        Ok(Self { pattern: pattern.to_owned(), parts })
    }

    /// The pattern as given.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// The whole prompt of one phrasing in Gemma's chat format, from `<bos>` to the generation prompt. An image is its marker
    /// `<start_of_image>`, see [`super::expand_images`].
    pub fn render(&self, question: &str, context: Option<&str>, has_image: bool) -> String {
        let mut content = String::new();
        let mut absent = false;
        for part in &self.parts {
            let piece = match part {
                Part::Text(text) if absent => Some(text.trim_start()),
                Part::Text(text) => Some(text.as_str()),
                Part::Image => has_image.then_some(IMAGE_MARKER),
                Part::Context => context,
                Part::Question => Some(question),
            };
            absent = piece.is_none();
            content.push_str(piece.unwrap_or_default());
        }
        user_turn(&content)
    }

    /// SHA-256 of what the template renders, in hexadecimal: equal for templates that write the same prompts.
    pub fn hash(&self) -> String {
        let mut rendered = String::new();
        for has_image in [false, true] {
            for context in [None, Some("\0context\0")] {
                rendered += &self.render("\0question\0", context, has_image);
            }
        }
        sha256(rendered.as_bytes())
    }
}

impl TryFrom<String> for PromptTemplate {
    type Error = Error;

    fn try_from(pattern: String) -> Result<Self, Error> {
        Self::new(&pattern)
    }
}

impl From<PromptTemplate> for String {
    fn from(template: PromptTemplate) -> Self {
        template.pattern
    }
}

impl std::str::FromStr for PromptTemplate {
    type Err = Error;

    fn from_str(pattern: &str) -> Result<Self, Error> {
        Self::new(pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTRUCTION: &str = "You are a medical imaging expert. For yes/no questions, respond with only Yes or No.";

    fn user(content: &str) -> String {
        format!("<bos><start_of_turn>user\n{content}<end_of_turn>\n<start_of_turn>model\n")
    }

    #[test]
    fn the_default_writes_instruction_image_context_question() {
        let template = PromptTemplate::default();
        let report = template.render("Is there a pleural effusion?", Some("Radiology report. Clear."), false);
        assert_eq!(report, user(&format!("{INSTRUCTION}\n\nRadiology report. Clear.\n\nIs there a pleural effusion?")));
        assert_eq!(template.render("Q?", None, false), user(&format!("{INSTRUCTION}\n\nQ?")));
        assert_eq!(template.render("Q?", None, true), user(&format!("{INSTRUCTION}\n\n<start_of_image>Q?")));
        assert_eq!(template.render("Q?", Some("C"), true), user(&format!("{INSTRUCTION}\n\n<start_of_image>C\n\nQ?")));
    }

    #[test]
    fn a_template_without_image_or_context_places_them_first() {
        let template = PromptTemplate::new("Answer Yes or No: {question}").unwrap();
        assert_eq!(template.render("Q?", None, false), user("Answer Yes or No: Q?"));
        assert_eq!(template.render("Q?", None, true), user("<start_of_image>Answer Yes or No: Q?"));
        assert_eq!(template.render("Q?", Some("C"), true), user("<start_of_image>C\n\nAnswer Yes or No: Q?"));
        let last = PromptTemplate::new("{question}\n\n{image}").unwrap();
        assert_eq!(last.render("Q?", None, true), user("Q?\n\n<start_of_image>"));
        assert_eq!(last.render("Q?", None, false), user("Q?"));
    }

    #[test]
    fn braces_of_question_and_pattern_stay_text() {
        let template = PromptTemplate::new("{ {} {a b} {question} }{").unwrap();
        assert_eq!(template.render("{context}", None, false), user("{ {} {a b} {context} }{"));
    }

    #[test]
    fn a_template_that_cannot_ask_is_refused() {
        for (pattern, problem) in [
            ("Hello", "{question} is missing"),
            ("{question} {question}", "{question} stands in it twice"),
            ("{query}", "expected {image}, {context} or {question}, found {query}"),
        ] {
            let error = PromptTemplate::new(pattern).unwrap_err();
            assert_eq!(error, Error::Template { pattern: pattern.into(), problem: problem.into() });
        }
        assert!(serde_json::from_str::<PromptTemplate>("\"no placeholder\"").is_err());
    }

    #[test]
    fn a_template_survives_serde_and_its_hash_follows_its_prompts() {
        let template = PromptTemplate::default();
        let stored = serde_json::to_string(&template).unwrap();
        assert_eq!(serde_json::from_str::<PromptTemplate>(&stored).unwrap(), template);
        let explicit = PromptTemplate::new("{image}{context}\n\n{question}").unwrap();
        assert_eq!(PromptTemplate::new("{question}").unwrap().hash(), explicit.hash());
        assert_ne!(template.hash(), explicit.hash());
        assert_eq!(template.hash().len(), 64);
    }
}
