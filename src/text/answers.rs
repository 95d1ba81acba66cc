//! Ids of the answer tokens, looked up in the model's tokenizer.

use super::{Error, Tokenizer};
use serde::{Deserialize, Serialize};

/// Answers that the margin compares, as strings: a setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnswerStrings {
    /// Affirmative answer.
    pub yes: String,
    /// Negative answer.
    pub no: String,
}

impl Default for AnswerStrings {
    fn default() -> Self {
        Self { yes: "Yes".into(), no: "No".into() }
    }
}

/// Token ids of the two answers (10784 and 3771 in Gemma 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerIds {
    /// Yes.
    pub yes: u32,
    /// No.
    pub no: u32,
}

/// One spelling of an answer that is a single token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// As it would be generated.
    pub string: String,
    /// Its token.
    pub id: u32,
}

/// Answer tokens and their other spellings, for pooling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// The two that the margin compares.
    pub ids: AnswerIds,
    /// Single-token spellings of yes: as set, in lower case, each also with a leading space.
    pub yes_variants: Vec<Variant>,
    /// The same of no.
    pub no_variants: Vec<Variant>,
}

impl AnswerIds {
    /// Looks both answers up.
    ///
    /// # Errors
    /// An answer that is unknown to the tokenizer or more than one token: the error names the string and its tokens.
    pub fn look_up(tokenizer: &Tokenizer, strings: &AnswerStrings) -> Result<Self, Error> {
        let ids = Self { yes: single(tokenizer, &strings.yes)?, no: single(tokenizer, &strings.no)? };
        if ids.yes == ids.no {
            return Err(Error::SameAnswer { yes: strings.yes.clone(), no: strings.no.clone(), id: ids.yes });
        }
        Ok(ids)
    }
}

impl Answers {
    /// Looks up both answers and those of their other spellings that are one token.
    ///
    /// # Errors
    /// As [`AnswerIds::look_up`]; a variant that is not one token is left out.
    pub fn look_up(tokenizer: &Tokenizer, strings: &AnswerStrings) -> Result<Self, Error> {
        let ids = AnswerIds::look_up(tokenizer, strings)?;
        let variants = |answer: &str| {
            let lower = answer.to_lowercase();
            let mut found: Vec<Variant> = Vec::new();
            for string in [answer.to_owned(), lower.clone(), format!(" {answer}"), format!(" {lower}")] {
                if let Ok(id) = single(tokenizer, &string)
                    && found.iter().all(|variant| variant.id != id)
                {
                    found.push(Variant { string, id });
                }
            }
            found
        };
        Ok(Self { ids, yes_variants: variants(&strings.yes), no_variants: variants(&strings.no) })
    }
}

/// The one token that a string is.
fn single(tokenizer: &Tokenizer, string: &str) -> Result<u32, Error> {
    let ids = tokenizer.encode(string)?;
    let unknown = tokenizer.token_id("<unk>");
    match ids[..] {
        [id] if Some(id) != unknown => Ok(id),
        _ => {
            let known = ids.iter().filter(|&&id| Some(id) != unknown);
            let tokens = known.map(|&id| tokenizer.token(id).unwrap_or_else(|| id.to_string())).collect();
            Err(Error::Answer { string: string.to_owned(), tokens })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::tests::tiny;

    fn strings(yes: &str, no: &str) -> AnswerStrings {
        AnswerStrings { yes: yes.into(), no: no.into() }
    }

    #[test]
    fn answers_come_from_the_tokenizer_with_their_single_token_spellings() {
        let tokenizer = tiny();
        let answers = Answers::look_up(&tokenizer, &AnswerStrings::default()).unwrap();
        assert_eq!(answers.ids.yes, tokenizer.token_id("Yes").unwrap());
        assert_eq!(answers.ids.no, tokenizer.token_id("No").unwrap());
        let spelled = |variants: &[Variant]| variants.iter().map(|v| v.string.clone()).collect::<Vec<_>>();
        assert_eq!(spelled(&answers.yes_variants), ["Yes", "yes", " Yes"]);
        assert_eq!(spelled(&answers.no_variants), ["No"]);
        for variant in &answers.yes_variants {
            assert_eq!(tokenizer.encode(&variant.string).unwrap(), [variant.id]);
        }
    }

    #[test]
    fn an_answer_that_is_not_one_token_is_refused_with_its_tokens() {
        let tokenizer = tiny();
        let error = AnswerIds::look_up(&tokenizer, &strings("Yes", "Nay")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "answer `Nay` must be one token of this model's tokenizer, found 3: `N`, `a`, `y`"
        );
        for missing in ["是", ""] {
            let error = AnswerIds::look_up(&tokenizer, &strings("Yes", missing)).unwrap_err();
            assert_eq!(error, Error::Answer { string: missing.into(), tokens: vec![] });
            assert!(error.to_string().ends_with("found no token"));
            assert!(error.hint().is_some());
        }
        let error = AnswerIds::look_up(&tokenizer, &strings("No", "No")).unwrap_err();
        assert!(matches!(error, Error::SameAnswer { .. }));
    }
}
