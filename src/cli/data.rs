//! Prompt groups for `eval`, `train` and `ask`: tokenizer, template, answer ids.

use crate::data::{Error, GroupFile, ReadOptions, read_groups};
use crate::eval::{Question, questions};
use crate::objective::{Pool, Pooling};
use crate::text::{AnswerIds, AnswerStrings, Answers, PromptTemplate, Tokenizer, Variant};
use crate::train::{TemplateChoice, adapter_pool};
use crate::weights::Checkpoint;
use std::path::Path;

/// The pattern to write prompts with: `--template`, else the adapter's own, else the paper's. Says so where the one given
/// is not the adapter's.
///
/// # Errors
/// A pattern without a question; an adapter's notes that cannot be read.
pub fn template(given: Option<&str>, adapter: Option<&Path>) -> crate::Result<PromptTemplate> {
    let choice = TemplateChoice::new(given, adapter)?;
    if let Some(own) = &choice.overridden {
        eprintln!("note: --template is not the one that the adapter was trained with: {:?}", own.pattern());
    }
    Ok(choice.template)
}

/// How spellings are pooled: `--pool`, else as the adapter was trained, else the first alone. Says so where the one given is not
/// the adapter's.
///
/// # Errors
/// A pool that is none; an adapter's notes that cannot be read.
pub fn pool(given: Option<&str>, adapter: Option<&Path>) -> crate::Result<Pool> {
    let given = given.map(str::parse::<Pool>).transpose()?;
    let own = adapter.map(adapter_pool).transpose()?.flatten();
    if let (Some(given), Some(own)) = (given, own)
        && given != own
    {
        eprintln!("note: --pool is not the one that the adapter was trained with: {}", own.name());
    }
    Ok(given.or(own).unwrap_or_default())
}

/// How a model's prompts are made.
pub struct Prompting {
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The user's turn.
    pub template: PromptTemplate,
    /// Answer tokens.
    pub answers: AnswerIds,
    /// Their spellings.
    spellings: Answers,
    /// Whether the model has a vision tower, which this version does not run.
    vision: bool,
}

impl Prompting {
    /// Opens the model folder's tokenizer.
    ///
    /// # Errors
    /// No tokenizer, or an answer that is not one token.
    pub fn open(checkpoint: &Checkpoint, template: PromptTemplate) -> crate::Result<Self> {
        let tokenizer = Tokenizer::open(checkpoint.dir())?;
        tokenizer.check_chat_tokens()?;
        let spellings = Answers::look_up(&tokenizer, &AnswerStrings::default())?;
        let vision = checkpoint.config.vision.is_some();
        Ok(Self { tokenizer, template, answers: spellings.ids, spellings, vision })
    }

    /// The spellings to pool beside the answers themselves; none where only those count.
    pub fn pooling(&self, pool: Pool) -> Pooling {
        let others = |variants: &[Variant], first: u32| {
            let ids = variants.iter().map(|variant| variant.id);
            ids.filter(|&id| pool != Pool::Single && id != first).collect()
        };
        let Answers { ids, yes_variants, no_variants } = &self.spellings;
        Pooling { pool, yes: others(yes_variants, ids.yes), no: others(no_variants, ids.no) }
    }

    /// Reads and tokenizes the first `limit` groups of a file.
    ///
    /// # Errors
    /// Anything wrong with the file; an image, which this version cannot see.
    pub fn read(
        &self,
        path: &Path,
        limit: Option<usize>,
        options: ReadOptions,
    ) -> crate::Result<(GroupFile, Vec<Question>)> {
        let file = read_groups(path, options)?;
        let questions = questions(&file, limit, &self.tokenizer, &self.template, self.answers, None);
        let questions = questions.map_err(|error| match error {
            crate::Error::Data(Error::ImageForTextModel { id, image }) if self.vision => {
                Error::NoVisionTower { id, image }.into()
            }
            other => other,
        })?;
        Ok((file, questions))
    }
}
