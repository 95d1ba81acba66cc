//! Groups as token ids: `groups.json`, as recorded with other frameworks' results.
//!
//! `{"lambda": 0.5, "groups": [{"prefix": […], "suffixes": [[…], …], "yes_id": 1, "no_id": 2, "label": "yes", "image": null}]}`;
//! the answers' ids may stand on top for all groups instead: `"answer_ids": {"Yes": 1, "No": 2}`, and beside them the ids of their
//! other spellings, for pooling: `"answer_spellings": {"Yes": [3, 4], "No": []}`. Other keys are ignored.

use super::{Error, Problem, TokenGroup};
use serde_json::{Map, Value};
use std::path::Path;

/// Groups of token ids.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceInput {
    /// λ of the combined loss, where the file gives one.
    pub lambda: Option<f64>,
    /// Ids of further spellings of yes and of no, where the file gives them.
    pub spellings: Option<[Vec<u32>; 2]>,
    /// In the file's order, at least one.
    pub groups: Vec<TraceGroup>,
}

/// One group of token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceGroup {
    /// Its prompts.
    pub tokens: TokenGroup,
    /// Id of the yes token.
    pub yes: u32,
    /// Id of the no token.
    pub no: u32,
    /// Whether yes is right.
    pub answer_yes: bool,
    /// Index of the pixel values that belong to it.
    pub image: Option<usize>,
}

impl TraceInput {
    /// Reads a file.
    ///
    /// # Errors
    /// Unreadable, not JSON, no group, an empty group or suffix, missing answer ids, an unknown label, something else than
    /// integers where ids belong: the error names file and group.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: name.clone(), source })?;
        let whole = |problem| Error::Trace { path: name.clone(), group: None, problem };
        let top: Value = serde_json::from_slice(&bytes)
            .map_err(|error| whole(Problem::NotAnObject(format!("bad JSON: {error}"))))?;
        let Value::Object(top) = top else { return Err(whole(Problem::NotAnObject(describe(&top)))) };
        let lambda = match top.get("lambda") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let number = value.as_f64().filter(|lambda| *lambda >= 0.0);
                Some(number.ok_or_else(|| whole(kind("lambda", "a number, at least 0", value)))?)
            }
        };
        let shared = match top.get("answer_ids") {
            None | Some(Value::Null) => None,
            Some(Value::Object(ids)) => Some(ids),
            Some(other) => return Err(whole(kind("answer_ids", "an object", other))),
        };
        let spellings = spellings(&top).map_err(whole)?;
        let groups = match top.get("groups") {
            None => return Err(whole(Problem::Missing { key: "groups", nearest: None })),
            Some(Value::Array(groups)) if groups.is_empty() => return Err(Error::NoGroups { path: name }),
            Some(Value::Array(groups)) => groups,
            Some(other) => return Err(whole(kind("groups", "a list", other))),
        };
        let groups = groups
            .iter()
            .enumerate()
            .map(|(index, value)| {
                group(value, shared).map_err(|problem| Error::Trace { path: name.clone(), group: Some(index), problem })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { lambda, spellings, groups })
    }
}

/// Further spellings of both answers; none of them may be both.
fn spellings(top: &Map<String, Value>) -> Result<Option<[Vec<u32>; 2]>, Problem> {
    const KEY: &str = "answer_spellings";
    let lists = match top.get(KEY) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(lists)) => lists,
        Some(other) => return Err(kind(KEY, "an object", other)),
    };
    let list = |answer: &str| match lists.iter().find(|(name, _)| name.eq_ignore_ascii_case(answer)) {
        None => Ok(Vec::new()),
        Some((name, list)) => ids(&format!("{KEY}.{name}"), list),
    };
    let (yes, no) = (list("yes")?, list("no")?);
    match yes.iter().find(|id| no.contains(id)) {
        Some(&id) => Err(Problem::SameAnswerIds(id)),
        None => Ok(Some([yes, no])),
    }
}

fn group(value: &Value, shared: Option<&Map<String, Value>>) -> Result<TraceGroup, Problem> {
    let Value::Object(fields) = value else { return Err(Problem::NotAnObject(describe(value))) };
    let required = |key: &'static str| fields.get(key).ok_or(Problem::Missing { key, nearest: None });
    let prefix = ids("prefix", required("prefix")?)?;
    let suffixes = required("suffixes")?;
    let Value::Array(suffixes) = suffixes else {
        return Err(kind("suffixes", "a list of lists of token ids", suffixes));
    };
    if suffixes.is_empty() {
        return Err(Problem::Empty("suffixes".into()));
    }
    let suffixes = suffixes
        .iter()
        .enumerate()
        .map(|(k, suffix)| {
            let key = format!("suffixes[{k}]");
            let ids = ids(&key, suffix)?;
            if ids.is_empty() { Err(Problem::Empty(key)) } else { Ok(ids) }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let yes = answer_id(fields, shared, "yes_id", "yes")?;
    let no = answer_id(fields, shared, "no_id", "no")?;
    if yes == no {
        return Err(Problem::SameAnswerIds(yes));
    }
    let label = required("label")?;
    let answer_yes = match label.as_str().map(|label| label.trim().to_lowercase()).as_deref() {
        Some("yes") => true,
        Some("no") => false,
        _ => return Err(Problem::Answer { key: "label", found: describe(label) }),
    };
    let image = match fields.get("image") {
        None | Some(Value::Null) => None,
        Some(value) => Some(
            value
                .as_u64()
                .and_then(|index| usize::try_from(index).ok())
                .ok_or_else(|| kind("image", "null or an index", value))?,
        ),
    };
    Ok(TraceGroup { tokens: TokenGroup { prefix, suffixes }, yes, no, answer_yes, image })
}

/// An answer's id: the group's own, else the one on top, in whatever case.
fn answer_id(
    fields: &Map<String, Value>,
    shared: Option<&Map<String, Value>>,
    key: &'static str,
    answer: &str,
) -> Result<u32, Problem> {
    let on_top = || shared?.iter().find(|(name, _)| name.eq_ignore_ascii_case(answer)).map(|(_, value)| value);
    let value = fields.get(key).filter(|value| !value.is_null()).or_else(on_top);
    id(key, value.ok_or(Problem::Missing { key, nearest: None })?)
}

fn ids(key: &str, value: &Value) -> Result<Vec<u32>, Problem> {
    let Value::Array(values) = value else { return Err(kind(key, "a list of token ids", value)) };
    values.iter().enumerate().map(|(t, value)| id(&format!("{key}[{t}]"), value)).collect()
}

fn id(key: &str, value: &Value) -> Result<u32, Problem> {
    value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| kind(key, "a token id", value))
}

fn kind(key: &str, expected: &'static str, found: &Value) -> Problem {
    Problem::Kind { key: key.to_owned(), expected, found: describe(found) }
}

/// A value as an error message shows it.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(text) if text.chars().count() <= 40 => format!("`{text}`"),
        Value::String(text) => format!("`{}…`", text.chars().take(40).collect::<String>()),
        Value::Array(values) => format!("a list of {}", values.len()),
        Value::Object(_) => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<TraceInput, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("groups.json");
        std::fs::write(&path, json).unwrap();
        TraceInput::read(&path)
    }

    #[test]
    fn groups_read_with_ids_of_their_own_or_on_top() {
        let input = read(
            r#"{"lambda": 0.5, "answer_ids": {"Yes": 10, "no": 11}, "more": 1, "groups": [
                {"prefix": [], "suffixes": [[3], [4, 5]], "label": "YES", "image": null},
                {"prefix": [1, 2], "suffixes": [[3]], "label": "No", "yes_id": 7, "no_id": 8, "image": 1}]}"#,
        )
        .unwrap();
        assert_eq!(input.lambda, Some(0.5));
        let expected = [
            TraceGroup {
                tokens: TokenGroup { prefix: vec![], suffixes: vec![vec![3], vec![4, 5]] },
                yes: 10,
                no: 11,
                answer_yes: true,
                image: None,
            },
            TraceGroup {
                tokens: TokenGroup { prefix: vec![1, 2], suffixes: vec![vec![3]] },
                yes: 7,
                no: 8,
                answer_yes: false,
                image: Some(1),
            },
        ];
        assert_eq!(input.groups, expected);
        assert_eq!(input.spellings, None);
    }

    #[test]
    fn spellings_stand_on_top() {
        let with = |lists: &str| {
            read(&format!(
                r#"{{"answer_spellings": {lists}, "groups": [{{"prefix": [], "suffixes": [[3]], "yes_id": 1, "no_id": 2, "label": "no"}}]}}"#
            ))
        };
        assert_eq!(with(r#"{"YES": [3, 4], "No": [5]}"#).unwrap().spellings, Some([vec![3, 4], vec![5]]));
        assert_eq!(with(r#"{"yes": [3]}"#).unwrap().spellings, Some([vec![3], vec![]]));
        assert_eq!(with("null").unwrap().spellings, None);
        for (lists, message) in [
            ("[3]", ": `answer_spellings` must be an object, found a list of 1"),
            (r#"{"Yes": 3}"#, ": `answer_spellings.Yes` must be a list of token ids, found 3"),
            (r#"{"Yes": ["a"]}"#, ": `answer_spellings.Yes[0]` must be a token id, found `a`"),
            (r#"{"Yes": [3, 4], "No": [4]}"#, ": yes and no have the same token id 4"),
        ] {
            let error = with(lists).unwrap_err().to_string();
            assert!(error.ends_with(message), "{error}");
        }
    }

    #[test]
    fn the_recorded_groups_read() {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
        for (name, images) in [("text", [None, None]), ("vlm", [Some(0), Some(1)])] {
            let input = TraceInput::read(goldens.join(name).join("groups.json")).unwrap();
            assert_eq!(input.lambda, Some(0.5));
            assert_eq!(input.groups.iter().map(|group| group.image).collect::<Vec<_>>(), images);
            assert_eq!(input.groups.iter().map(|group| group.answer_yes).collect::<Vec<_>>(), [true, false]);
        }
    }

    #[test]
    fn each_flaw_is_named_with_its_group() {
        let group = |fields: &str| format!(r#"{{"groups": [{{{fields}}}]}}"#);
        let rest = r#""yes_id": 1, "no_id": 2, "label": "yes""#;
        for (json, message) in [
            ("{".to_owned(), ": expected a JSON object, found bad JSON"),
            ("[]".to_owned(), ": expected a JSON object, found a list of 0"),
            ("{}".to_owned(), ": `groups` is missing"),
            (r#"{"groups": []}"#.to_owned(), " has no prompt group"),
            (group(&format!(r#""prefix": [1], "suffixes": [], {rest}"#)), ", group 0: `suffixes` is empty"),
            (group(&format!(r#""prefix": [1], "suffixes": [[1], []], {rest}"#)), ", group 0: `suffixes[1]` is empty"),
            (
                group(&format!(r#""prefix": [1, 2.5], "suffixes": [[1]], {rest}"#)),
                ", group 0: `prefix[1]` must be a token id, found 2.5",
            ),
            (
                group(&format!(r#""prefix": [-1], "suffixes": [[1]], {rest}"#)),
                ", group 0: `prefix[0]` must be a token id, found -1",
            ),
            (
                group(r#""prefix": [1], "suffixes": [[1]], "yes_id": 1, "label": "yes""#),
                ", group 0: `no_id` is missing",
            ),
            (
                group(r#""prefix": [1], "suffixes": [[1]], "yes_id": 1, "no_id": 2, "label": "maybe""#),
                ", group 0: `label` must be yes or no, found `maybe`",
            ),
            (
                group(r#""prefix": [1], "suffixes": [[1]], "yes_id": 2, "no_id": 2, "label": "no""#),
                ", group 0: yes and no have the same token id 2",
            ),
            (
                group(&format!(r#""prefix": [1], "suffixes": [[1]], "image": "a.png", {rest}"#)),
                ", group 0: `image` must be null or an index, found `a.png`",
            ),
        ] {
            let error = read(&json).unwrap_err().to_string();
            assert!(error.contains("groups.json") && error.contains(message), "{json}: {error}");
        }
        let missing = TraceInput::read("no/such/file.json").unwrap_err().to_string();
        assert!(missing.starts_with("cannot read no/such/file.json: "), "{missing}");
    }
}
