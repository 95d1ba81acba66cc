//! From prompt groups as text to questions as token ids: what evaluation and training both start from.

use super::{Origin, Question};
use crate::Result;
use crate::data::GroupFile;
use crate::text::{AnswerIds, ImageTokens, PromptTemplate, Tokenizer};
use crate::train::EngineGroup;

/// Tokenizes the first `limit` groups of a file.
///
/// # Errors
/// An image for a text-only model, and the tokenizer's failures.
pub fn questions(
    file: &GroupFile,
    limit: Option<usize>,
    tokenizer: &Tokenizer,
    template: &PromptTemplate,
    answers: AnswerIds,
    images: Option<ImageTokens>,
) -> Result<Vec<Question>> {
    let question = |group: &crate::data::PromptGroup| {
        let mut phenomena = vec![None];
        phenomena.extend(group.paraphrases.iter().map(|paraphrase| paraphrase.phenomenon.clone()));
        Ok(Question {
            group: EngineGroup {
                id: group.id.clone(),
                tokens: group.tokenize(tokenizer, template, images)?,
                yes: answers.yes,
                no: answers.no,
                answer_yes: group.answer.is_yes(),
            },
            phenomena,
            finding: group.meta.finding.clone(),
            cluster: group.cluster_id(),
            origin: Origin {
                patient: group.meta.patient.clone(),
                image: group.image.clone(),
                report: group.meta.report.clone(),
            },
        })
    };
    file.groups.iter().take(limit.unwrap_or(usize::MAX)).map(question).collect()
}
