//! Prompt groups as text, one JSON object a line.
//!
//! `{"id": "q3", "image": "relative/path.png", "context": null, "question": "…?", "paraphrases": ["…", …], "answer": "yes",
//! "meta": {"dataset": "…", "finding": "…", "phenomena": ["…", …]}}`. `image`, `context` and `meta` may be null or absent; a paraphrase
//! may be `{"text": …, "phenomenon": …}`. Keys of one's own belong in `meta`; elsewhere they are ignored, unless they are nearly a
//! known one, which is an error, as it would lose data.

use super::trace_input::describe;
use super::{Error, Problem};
use crate::digest::sha256;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

const KEYS: [&str; 7] = ["id", "image", "context", "question", "paraphrases", "answer", "meta"];
const REPORT_KEYS: [&str; 4] = ["report", "report_id", "study", "study_id"];
const PATIENT_KEYS: [&str; 4] = ["patient", "patient_id", "subject", "subject_id"];

/// The right answer of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Yes.
    Yes,
    /// No.
    No,
}

impl Answer {
    /// Whether it is yes.
    pub fn is_yes(self) -> bool {
        self == Self::Yes
    }
}

/// Another wording of a group's question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paraphrase {
    /// The question.
    pub text: String,
    /// How it differs from the original (`lexical_substitution`, …): its own, else the entry of `meta.phenomena` at its place.
    pub phenomenon: Option<String>,
}

/// What a group says about where it comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    /// `dataset`.
    pub dataset: Option<String>,
    /// `finding` that is asked about.
    pub finding: Option<String>,
    /// `report`, `report_id`, `study` or `study_id`.
    pub report: Option<String>,
    /// `patient`, `patient_id`, `subject` or `subject_id`.
    pub patient: Option<String>,
    /// Every other key but `phenomena` (those are with the paraphrases), as found.
    pub extra: Map<String, Value>,
}

/// One question with all its phrasings.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptGroup {
    /// Unique in its file.
    pub id: String,
    /// Path relative to the data file.
    pub image: Option<String>,
    /// Text before the question.
    pub context: Option<String>,
    /// Phrasing 0.
    pub question: String,
    /// Phrasings 1, 2, ….
    pub paraphrases: Vec<Paraphrase>,
    /// The truth.
    pub answer: Answer,
    /// Origin.
    pub meta: Meta,
}

impl PromptGroup {
    /// All phrasings, the original first.
    pub fn phrasings(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.question.as_str())
            .chain(self.paraphrases.iter().map(|paraphrase| paraphrase.text.as_str()))
    }

    /// Whether a reader of groups takes it: no empty text, and paraphrases unless `options` allow none.
    ///
    /// # Errors
    /// The first flaw: [`Problem::Empty`] or [`Problem::NoParaphrases`].
    pub fn check(&self, options: ReadOptions) -> Result<(), Problem> {
        let named = |(index, paraphrase): (usize, &Paraphrase)| {
            paraphrase.text.trim().is_empty().then(|| format!("paraphrases[{index}]"))
        };
        let empty = |key: &str, text: &str| text.trim().is_empty().then(|| key.to_owned());
        let flaw = empty("id", &self.id)
            .or_else(|| empty("question", &self.question))
            .or_else(|| self.image.as_deref().and_then(|image| empty("image", image)))
            .or_else(|| self.paraphrases.iter().enumerate().find_map(named));
        match flaw {
            Some(key) => Err(Problem::Empty(key)),
            None if self.paraphrases.is_empty() && !options.allow_no_paraphrases => Err(Problem::NoParaphrases),
            None => Ok(()),
        }
    }

    /// What resampling keeps together, because questions about it are not independent: the patient where known, else the image, the
    /// report, the same context, and the group alone where it has none of them.
    pub fn cluster_id(&self) -> String {
        if let Some(patient) = &self.meta.patient {
            return format!("patient:{patient}");
        }
        if let Some(image) = &self.image {
            return format!("image:{image}");
        }
        if let Some(report) = &self.meta.report {
            return format!("report:{report}");
        }
        match &self.context {
            Some(context) => format!("context:{}", &sha256(context.as_bytes())[..16]),
            None => format!("id:{}", self.id),
        }
    }
}

/// How strictly a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Accept questions without paraphrase (enough for accuracy losses).
    pub allow_no_paraphrases: bool,
}

/// A data file.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupFile {
    /// Where it was read from; images are relative to its folder.
    pub path: PathBuf,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// In the file's order, at least one.
    pub groups: Vec<PromptGroup>,
}

/// Reads a JSONL file. Empty lines are skipped.
///
/// # Errors
/// Unreadable, without a group, or a line that is no valid group: the error names file, line and, where it could be read, id.
pub fn read_groups(path: impl AsRef<Path>, options: ReadOptions) -> Result<GroupFile, Error> {
    let path = path.as_ref();
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: name.clone(), source })?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut groups = Vec::new();
    let mut lines = HashMap::new();
    for (index, raw) in text.split(|&byte| byte == b'\n').enumerate() {
        if raw.trim_ascii().is_empty() {
            continue;
        }
        let line = index + 1;
        let wrong = |id: Option<String>, problem| Error::Line { path: name.clone(), line, id, problem };
        let value: Value = serde_json::from_slice(raw).map_err(|error| {
            // Each line is its own document, so the reader's "line 1" would mislead.
            let reason = error.to_string().replace(" at line 1 column ", " at column ");
            wrong(None, Problem::NotAnObject(format!("bad JSON: {reason}")))
        })?;
        let Value::Object(fields) = value else { return Err(wrong(None, Problem::NotAnObject(describe(&value)))) };
        let id = fields.get("id").and_then(text_or_number);
        let group = group(fields, options).map_err(|problem| wrong(id, problem))?;
        if let Some(first) = lines.insert(group.id.clone(), line) {
            return Err(wrong(Some(group.id), Problem::Duplicate { first }));
        }
        groups.push(group);
    }
    if groups.is_empty() {
        return Err(Error::NoGroups { path: name });
    }
    Ok(GroupFile { path: path.to_owned(), sha256: sha256(&bytes), groups })
}

fn group(mut fields: Map<String, Value>, options: ReadOptions) -> Result<PromptGroup, Problem> {
    for key in fields.keys().filter(|key| !KEYS.contains(&key.as_str())) {
        let (distance, nearest) = KEYS
            .map(|known| (strsim::damerau_levenshtein(&key.to_lowercase(), known), known))
            .into_iter()
            .min()
            .expect("there are known keys");
        if distance <= 2 && 3 * distance <= key.len() {
            return Err(Problem::Misspelled { key: key.clone(), nearest });
        }
    }
    let id = match required(&fields, "id")? {
        value @ (Value::String(_) | Value::Number(_)) => text_or_number(value),
        _ => None,
    };
    let id = id.ok_or_else(|| kind("id", "a string or a whole number", &fields["id"]))?;
    let question = text("question", required(&fields, "question")?)?;
    let answer = required(&fields, "answer")?;
    let answer = match answer.as_str().map(|answer| answer.trim().to_lowercase()).as_deref() {
        Some("yes") => Answer::Yes,
        Some("no") => Answer::No,
        _ => return Err(Problem::Answer { key: "answer", found: describe(answer) }),
    };
    let image = optional("image", fields.get("image"))?;
    let context = optional("context", fields.get("context"))?.filter(|context| !context.trim().is_empty());
    let mut paraphrases = match fields.get("paraphrases") {
        None | Some(Value::Null) if options.allow_no_paraphrases => Vec::new(),
        None => return Err(missing(&fields, "paraphrases")),
        Some(Value::Array(values)) => {
            values.iter().enumerate().map(|(k, value)| paraphrase(k, value)).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(kind("paraphrases", "a list", other)),
    };
    let meta = match fields.remove("meta") {
        None | Some(Value::Null) => Meta::default(),
        Some(Value::Object(entries)) => meta(entries, &mut paraphrases)?,
        Some(other) => return Err(kind("meta", "an object", &other)),
    };
    let group = PromptGroup { id, image, context, question, paraphrases, answer, meta };
    group.check(options)?;
    Ok(group)
}

fn paraphrase(index: usize, value: &Value) -> Result<Paraphrase, Problem> {
    let key = format!("paraphrases[{index}]");
    match value {
        Value::String(_) => Ok(Paraphrase { text: text(&key, value)?, phenomenon: None }),
        Value::Object(fields) => {
            let value = fields.get("text").unwrap_or(&Value::Null);
            Ok(Paraphrase {
                text: text(&format!("{key}.text"), value)?,
                phenomenon: optional(&format!("{key}.phenomenon"), fields.get("phenomenon"))?,
            })
        }
        other => Err(kind(&key, "a string or an object with `text`", other)),
    }
}

/// Takes `meta` apart; entries of `phenomena` go to the paraphrases at their places that have none of their own.
fn meta(mut entries: Map<String, Value>, paraphrases: &mut [Paraphrase]) -> Result<Meta, Problem> {
    match entries.remove("phenomena") {
        None | Some(Value::Null) => (),
        Some(Value::Array(phenomena)) => {
            if phenomena.len() != paraphrases.len() {
                return Err(Problem::Phenomena { paraphrases: paraphrases.len(), phenomena: phenomena.len() });
            }
            for (k, (phenomenon, paraphrase)) in phenomena.iter().zip(paraphrases).enumerate() {
                let phenomenon = optional(&format!("meta.phenomena[{k}]"), Some(phenomenon))?;
                paraphrase.phenomenon = paraphrase.phenomenon.take().or(phenomenon);
            }
        }
        Some(other) => return Err(kind("meta.phenomena", "a list", &other)),
    }
    let dataset = optional("meta.dataset", entries.remove("dataset").as_ref())?;
    let finding = optional("meta.finding", entries.remove("finding").as_ref())?;
    let mut first_of = |keys: [&str; 4]| -> Result<Option<String>, Problem> {
        for key in keys {
            match entries.remove(key) {
                None | Some(Value::Null) => (),
                Some(value) => {
                    let text = text_or_number(&value);
                    let text =
                        text.ok_or_else(|| kind(&format!("meta.{key}"), "a string or a whole number", &value))?;
                    return Ok(Some(text));
                }
            }
        }
        Ok(None)
    };
    Ok(Meta { dataset, finding, report: first_of(REPORT_KEYS)?, patient: first_of(PATIENT_KEYS)?, extra: entries })
}

fn required<'a>(fields: &'a Map<String, Value>, key: &'static str) -> Result<&'a Value, Problem> {
    fields.get(key).ok_or_else(|| missing(fields, key))
}

fn missing(fields: &Map<String, Value>, key: &'static str) -> Problem {
    let mut unknown = fields.keys().filter(|found| !KEYS.contains(&found.as_str()));
    Problem::Missing { key, nearest: unknown.find(|found| found.contains(key)).cloned() }
}

fn text(key: &str, value: &Value) -> Result<String, Problem> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => Err(kind(key, "a string", other)),
    }
}

fn optional(key: &str, value: Option<&Value>) -> Result<Option<String>, Problem> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(kind(key, "a string or null", other)),
    }
}

fn text_or_number(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

fn kind(key: &str, expected: &'static str, found: &Value) -> Problem {
    Problem::Kind { key: key.to_owned(), expected, found: describe(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], options: ReadOptions) -> Result<GroupFile, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        std::fs::write(&path, text).unwrap();
        read_groups(&path, options)
    }

    fn one(line: &str) -> Result<PromptGroup, Error> {
        read(line.as_bytes(), ReadOptions::default()).map(|mut file| file.groups.remove(0))
    }

    #[test]
    fn a_full_group_reads_with_phenomena_at_their_paraphrases() {
        let group = one(
            r#"{"id": 7, "image": "x/1.png", "context": "C", "question": "Q?", "answer": " YES ",
                "paraphrases": ["A?", {"text": "B?", "phenomenon": "negation_pattern", "judge": 1}, {"text": "D?"}],
                "meta": {"dataset": "d", "finding": "f", "phenomena": ["one", "two", "three"], "study_id": 12, "view": "PA"}}"#
                .replace('\n', " ")
                .as_str(),
        )
        .unwrap();
        assert_eq!(group.id, "7");
        assert_eq!(group.phrasings().collect::<Vec<_>>(), ["Q?", "A?", "B?", "D?"]);
        let phenomena: Vec<_> = group.paraphrases.iter().map(|p| p.phenomenon.as_deref()).collect();
        assert_eq!(phenomena, [Some("one"), Some("negation_pattern"), Some("three")]);
        assert!(group.answer.is_yes());
        assert_eq!((group.image.as_deref(), group.context.as_deref()), (Some("x/1.png"), Some("C")));
        assert_eq!((group.meta.dataset.as_deref(), group.meta.finding.as_deref()), (Some("d"), Some("f")));
        assert_eq!((group.meta.report.as_deref(), group.meta.patient), (Some("12"), None));
        assert_eq!(group.meta.extra, serde_json::from_str(r#"{"view": "PA"}"#).unwrap());
    }

    #[test]
    fn groups_about_the_same_thing_share_a_cluster() {
        let cluster = |rest: &str| {
            one(&format!(r#"{{"id": "a", "question": "Q?", "paraphrases": ["P?"], "answer": "no"{rest}}}"#))
                .unwrap()
                .cluster_id()
        };
        assert_eq!(cluster(""), "id:a");
        assert_eq!(cluster(r#", "context": " ""#), "id:a");
        assert_eq!(cluster(r#", "context": "C""#), cluster(r#", "context": "C", "meta": null"#));
        assert_ne!(cluster(r#", "context": "C""#), cluster(r#", "context": "D""#));
        assert_eq!(cluster(r#", "context": "C", "meta": {"report": "r"}"#), "report:r");
        assert_eq!(cluster(r#", "context": "C", "image": "i.png", "meta": {"report": "r"}"#), "image:i.png");
        assert_eq!(cluster(r#", "image": "i.png", "meta": {"subject_id": 3}"#), "patient:3");
    }

    #[test]
    fn the_report_questions_read_and_every_report_is_a_cluster() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/reports");
        for (split, count) in [("train", 400), ("eval", 200), ("transfer", 200)] {
            let path = folder.join(format!("reports-{split}.jsonl"));
            let file = read_groups(&path, ReadOptions::default()).unwrap();
            assert_eq!(file.groups.len(), count);
            assert!(file.groups.iter().all(|group| group.phrasings().count() == 5));
            assert!(file.groups.iter().flat_map(|group| &group.paraphrases).all(|p| p.phenomenon.is_some()));
            let clusters: std::collections::HashSet<_> = file.groups.iter().map(PromptGroup::cluster_id).collect();
            assert_eq!(clusters.len(), count);
            assert_eq!(file.sha256, sha256(&std::fs::read(&path).unwrap()));
        }
    }

    #[test]
    fn each_flaw_is_named_with_file_line_and_id() {
        let group = |fields: &str| format!(r#"{{"id": "g", "question": "Q?", {fields}}}"#);
        let rest = r#""paraphrases": ["P?"], "answer": "yes""#;
        for (line, message) in [
            ("{\"id\": ".to_owned(), ": expected a JSON object, found bad JSON: EOF while parsing a value at column 7"),
            ("3".to_owned(), ": expected a JSON object, found 3"),
            (r#"{"question": "Q?", "answer": "no"}"#.to_owned(), ": `id` is missing"),
            (format!(r#"{{"id": "", "question": "Q?", {rest}}}"#), ", group ``: `id` is empty"),
            (
                format!(r#"{{"id": [1], "question": "Q?", {rest}}}"#),
                ": `id` must be a string or a whole number, found a list of 1",
            ),
            (format!(r#"{{"id": "g", "question": " ", {rest}}}"#), ", group `g`: `question` is empty"),
            (
                format!(r#"{{"id": "g", "original_question": "Q?", {rest}}}"#),
                ", group `g`: `question` is missing: is it `original_question`?",
            ),
            (
                group(r#""paraphrases": ["P?"], "answer": "maybe""#),
                ", group `g`: `answer` must be yes or no, found `maybe`",
            ),
            (group(r#""paraphrases": ["P?"], "answer": true"#), ", group `g`: `answer` must be yes or no, found true"),
            (group(r#""paraphrases": [], "answer": "yes""#), ", group `g`: the question has no paraphrase"),
            (group(r#""answer": "yes""#), ", group `g`: `paraphrases` is missing"),
            (group(r#""paraphrases": ["A?", ""], "answer": "yes""#), ", group `g`: `paraphrases[1]` is empty"),
            (
                group(r#""paraphrases": [{}], "answer": "yes""#),
                ", group `g`: `paraphrases[0].text` must be a string, found null",
            ),
            (
                group(r#""paraphrase": ["P?"], "answer": "yes""#),
                "unknown key `paraphrase`: did you mean `paraphrases`?",
            ),
            (group(&format!(r#""contxt": "C", {rest}"#)), "unknown key `contxt`: did you mean `context`?"),
            (group(&format!(r#""image": 3, {rest}"#)), ", group `g`: `image` must be a string or null, found 3"),
            (
                group(&format!(r#""meta": {{"phenomena": ["a", "b"]}}, {rest}"#)),
                ", group `g`: `meta.phenomena` has 2 entries for 1 paraphrases",
            ),
        ] {
            let error = read(format!("\n{line}\n").as_bytes(), ReadOptions::default()).unwrap_err().to_string();
            assert!(error.contains("data.jsonl, line 2") && error.contains(message), "{line}: {error}");
        }
    }

    #[test]
    fn an_id_appears_once_and_a_file_has_a_group() {
        let line = r#"{"id": "g", "question": "Q?", "paraphrases": ["P?"], "answer": "yes"}"#;
        let error = read(format!("{line}\r\n\n{line}").as_bytes(), ReadOptions::default()).unwrap_err();
        assert!(error.to_string().contains("line 3, group `g`: its id is that of line 1 already"), "{error}");
        assert!(error.hint().is_some());
        assert!(matches!(read(b"\n \n", ReadOptions::default()), Err(Error::NoGroups { .. })));
        assert!(read(b"\xff\n", ReadOptions::default()).unwrap_err().to_string().contains("line 1"));
        assert!(matches!(read_groups("no/such/file.jsonl", ReadOptions::default()), Err(Error::Read { .. })));
    }

    #[test]
    fn a_group_made_by_hand_is_checked_as_a_read_one_is() {
        let group = one(r#"{"id": "g", "question": "Q?", "paraphrases": ["A?", "B?"], "answer": "yes"}"#).unwrap();
        let check = |change: fn(&mut PromptGroup)| {
            let mut changed = group.clone();
            change(&mut changed);
            changed.check(ReadOptions::default())
        };
        assert_eq!(check(|_| ()), Ok(()));
        assert_eq!(check(|group| group.question = " \n".into()), Err(Problem::Empty("question".into())));
        assert_eq!(check(|group| group.paraphrases[1].text.clear()), Err(Problem::Empty("paraphrases[1]".into())));
        assert_eq!(check(|group| group.paraphrases.clear()), Err(Problem::NoParaphrases));
        let alone = PromptGroup { paraphrases: Vec::new(), ..group.clone() };
        assert_eq!(alone.check(ReadOptions { allow_no_paraphrases: true }), Ok(()));
    }

    #[test]
    fn questions_without_paraphrase_read_where_allowed() {
        let options = ReadOptions { allow_no_paraphrases: true };
        let text = br#"{"id": "a", "question": "Q?", "answer": "No", "is_yesno": true}
            {"id": "b", "question": "Q?", "answer": "no", "paraphrases": []}"#;
        let file = read(text, options).unwrap();
        assert!(file.groups.iter().all(|group| group.phrasings().eq(["Q?"]) && !group.answer.is_yes()));
    }
}
