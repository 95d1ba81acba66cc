//! What an adapter folder says about itself beyond PEFT's two files: `unflip.json` (prompt template, answers, base model,
//! data, settings) and a model card, `README.md`. Bytes are a function of the run alone: neither clock nor places.

use crate::error::Result;
use crate::objective::Pool;
use crate::text::{AnswerStrings, PromptTemplate};
use crate::weights::{Checkpoint, write_atomically};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Name of the notes in an adapter folder.
const NOTES: &str = "unflip.json";
/// Name of the model card.
const CARD: &str = "README.md";

/// How an adapter came about, and how it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterNotes {
    /// Version of unflip that trained it.
    pub version: String,
    /// The model that it was trained on, as named when the run began.
    pub base_model: String,
    /// Identifies that model's files.
    pub base_model_fingerprint: String,
    /// Pattern of the user's turn.
    pub template: PromptTemplate,
    /// What the margin compares.
    pub answers: AnswerStrings,
    /// SHA-256 of the training groups.
    pub train_data: String,
    /// SHA-256 of the validation groups; empty without.
    pub validation_data: String,
    /// Identifies the adapter that training started from; empty for a new one.
    pub start_adapter: String,
    /// Every setting that decides the result, by section.
    pub settings: serde_json::Value,
}

impl AdapterNotes {
    /// Writes `unflip.json` and `README.md` into an existing adapter folder.
    ///
    /// # Errors
    /// Whatever files can do.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(NOTES);
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|error| crate::Error::io("write", &path, error.into()))?;
        text.push(b'\n');
        write_atomically(&path, &text)?;
        Ok(write_atomically(&folder.join(CARD), self.card().as_bytes())?)
    }

    /// The model card, with the front matter that adapter folders have.
    fn card(&self) -> String {
        // A JSON string is a YAML string too, whatever the path holds.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let or = |text: &str, otherwise: &str| if text.is_empty() { otherwise.to_owned() } else { format!("`{text}`") };
        let setting = |section: &str, name: &str| match &self.settings[section][name] {
            serde_json::Value::Null => "unset".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let mut card = format!(
            "---\nbase_model: {base}\nlibrary_name: peft\ntags:\n- lora\n- unflip\n---\n\n# LoRA adapter for consistent yes/no answers\n\n\
             Trained with unflip {version} to give the same answer to every phrasing of a question.\n\n\
             | | |\n|---|---|\n| base model | {base} |\n| fingerprint of the base model | `{fingerprint}` |\n\
             | training groups (SHA-256) | `{train}` |\n| validation groups (SHA-256) | {validation} |\n\
             | started from | {start} |\n| answers | `{yes}` and `{no}` |\n",
            base = quoted(&self.base_model),
            version = self.version,
            fingerprint = self.base_model_fingerprint,
            train = self.train_data,
            validation = or(&self.validation_data, "none"),
            start = or(&self.start_adapter, "a new adapter"),
            yes = self.answers.yes,
            no = self.answers.no,
        );
        let loss = match &self.settings["objective"]["loss"] {
            serde_json::Value::Null => {
                format!("{} with {}", setting("objective", "consistency"), setting("objective", "accuracy"))
            }
            _ => setting("objective", "loss"),
        };
        for (what, value) in [
            ("loss", loss),
            ("λ", setting("objective", "lambda")),
            ("pool of spellings", setting("objective", "pool")),
            ("rank, α", format!("{}, {}", setting("adapter", "rank"), setting("adapter", "alpha"))),
            ("layers", setting("adapter", "layers")),
            ("learning rate", setting("optimizer", "lr")),
            ("seed", setting("run", "seed")),
        ] {
            card.push_str(&format!("| {what} | {value} |\n"));
        }
        card.push_str(&format!(
            "\n`{NOTES}` has every setting. Prompts must be written with the pattern that it was trained on:\n\n{}\n\n\
             ## Limits\n\n\
             - It answers yes/no questions about the text that stands in the prompt; other uses were not trained for.\n\
             - Fewer flips do not mean right answers: a model that always says the same is consistent. Measure accuracy too.\n\
             - For research. It is no medical device and must not guide care.\n",
            indented(self.template.pattern())
        ));
        card
    }
}

/// A code block, whatever the text holds.
fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}").trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// The notes in an adapter folder; `None` where another tool wrote it.
///
/// # Errors
/// Notes that cannot be read.
pub fn read_adapter_notes(folder: &Path) -> Result<Option<AdapterNotes>> {
    let path = folder.join(NOTES);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(crate::Error::io("read", &path, error)),
    };
    let notes = serde_json::from_slice(&text);
    notes.map(Some).map_err(|error| {
        super::Error::Record {
            place: path.display().to_string(),
            problem: format!("expected an adapter's notes: {error}"),
        }
        .into()
    })
}

/// The notes of the adapter in `folder` if it was trained on another base model than `checkpoint`; `None` if on this one, or if
/// nothing says on which.
///
/// # Errors
/// Notes or weights that cannot be read.
pub fn other_base(folder: &Path, checkpoint: &Checkpoint) -> Result<Option<AdapterNotes>> {
    let Some(notes) = read_adapter_notes(folder)? else { return Ok(None) };
    let other = !notes.base_model_fingerprint.is_empty() && notes.base_model_fingerprint != checkpoint.fingerprint()?;
    Ok(other.then_some(notes))
}

/// How the adapter in a folder was trained to pool the spellings of an answer; `None` where its notes do not say.
///
/// # Errors
/// Notes that cannot be read.
pub fn adapter_pool(folder: &Path) -> Result<Option<Pool>> {
    let Some(notes) = read_adapter_notes(folder)? else { return Ok(None) };
    Ok(notes.settings["objective"]["pool"].as_str().map(str::parse).transpose()?)
}

/// The pattern that prompts are written with: the one asked for, else the adapter's, else the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateChoice {
    /// The pattern.
    pub template: PromptTemplate,
    /// The adapter's own pattern, where the one asked for writes other prompts.
    pub overridden: Option<PromptTemplate>,
}

impl TemplateChoice {
    /// Chooses among `given`, the notes in the folder `adapter`, and the default.
    ///
    /// # Errors
    /// A pattern without a question; notes that cannot be read.
    pub fn new(given: Option<&str>, adapter: Option<&Path>) -> Result<Self> {
        let own = adapter.map(read_adapter_notes).transpose()?.flatten().map(|notes| notes.template);
        let Some(pattern) = given else {
            return Ok(Self { template: own.unwrap_or_default(), overridden: None });
        };
        let template = PromptTemplate::new(pattern)?;
        let overridden = own.filter(|own| own.hash() != template.hash());
        Ok(Self { template, overridden })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes() -> AdapterNotes {
        AdapterNotes {
            version: "0.1.0".into(),
            base_model: "models/a: \"b\"".into(),
            base_model_fingerprint: "f".repeat(64),
            template: PromptTemplate::new("Answer Yes or No.\n\n{question}").expect("valid"),
            answers: AnswerStrings::default(),
            train_data: "d".repeat(64),
            validation_data: String::new(),
            start_adapter: String::new(),
            settings: crate::train::Settings::default().resolve().expect("valid").deciding_json(),
        }
    }

    #[test]
    fn notes_are_read_back_and_their_bytes_repeat() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert_eq!(read_adapter_notes(folder.path()).expect("none"), None);
        assert_eq!(read_adapter_notes(&folder.path().join("absent")).expect("none"), None);
        notes().write(folder.path()).expect("written");
        let bytes = || [NOTES, CARD].map(|name| std::fs::read(folder.path().join(name)).expect("read"));
        let first = bytes();
        notes().write(folder.path()).expect("written");
        assert_eq!(bytes(), first);
        assert_eq!(read_adapter_notes(folder.path()).expect("read"), Some(notes()));
        let card = String::from_utf8(first[1].clone()).expect("text");
        for line in ["base_model: \"models/a: \\\"b\\\"\"", "library_name: peft", "| loss | paper |", "    {question}"]
        {
            assert!(card.lines().any(|found| found == line), "{line} in {card}");
        }
        assert_eq!(adapter_pool(folder.path()).expect("read"), Some(Pool::Single));
        std::fs::write(folder.path().join(NOTES), "{}").expect("written");
        let error = read_adapter_notes(folder.path()).expect_err("not notes");
        assert!(error.to_string().contains("unflip.json: expected an adapter's notes: "), "{error}");
    }

    #[test]
    fn the_adapters_template_is_the_default_and_a_given_one_wins() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let choose = |given| TemplateChoice::new(given, Some(folder.path())).expect("chosen");
        assert_eq!(choose(None), TemplateChoice { template: PromptTemplate::default(), overridden: None });
        notes().write(folder.path()).expect("written");
        assert_eq!(choose(None), TemplateChoice { template: notes().template, overridden: None });
        let other = choose(Some("{question}"));
        assert_eq!((other.template.pattern(), other.overridden), ("{question}", Some(notes().template)));
        assert_eq!(choose(Some(notes().template.pattern())).overridden, None);
        assert!(TemplateChoice::new(Some("no question"), None).is_err());
    }
}
