//! Reading single fields of a JSON object with errors that name file and field.
//!
//! `null` counts as absent throughout, as transformers and PEFT write it for a setting that is off.

use super::Error;
use serde_json::{Map, Value};
use std::{fmt::Display, io::Read as _, path::Path};

/// Longest JSON file that is read, in bytes.
const LIMIT: u64 = 100_000_000;

/// Largest size that a field may give: products of two still fit 64 bits.
const LARGEST: u64 = 1 << 31;

/// Text of a JSON file.
pub(super) fn read(path: &Path) -> Result<String, Error> {
    let io = |source| Error::io("read", path, source);
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::NotAFile { path: path.display().to_string() });
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_end(&mut bytes)).map_err(io)?;
    let invalid = |reason: String| Error::Json { file: path.display().to_string(), reason };
    if bytes.len() as u64 > LIMIT {
        return Err(invalid(format!("it is longer than {LIMIT} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| invalid(error.to_string()))
}

/// The value of a JSON text.
pub(super) fn parse(file: &str, text: &str) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|error| Error::Json { file: file.into(), reason: error.to_string() })
}

/// An object and where it stands.
pub(super) struct Object<'a> {
    file: &'a str,
    prefix: String,
    fields: Option<&'a Map<String, Value>>,
}

impl<'a> Object<'a> {
    /// The outermost value, which must be an object.
    pub fn root(file: &'a str, value: &'a Value) -> Result<Self, Error> {
        match value.as_object() {
            Some(fields) => Ok(Self { file, prefix: String::new(), fields: Some(fields) }),
            None => Err(Error::Json { file: file.into(), reason: "expected an object".into() }),
        }
    }

    /// An inner object; one that is absent has no fields.
    pub fn object(&self, field: &str) -> Result<Self, Error> {
        let fields = match self.get(field) {
            None => None,
            Some(Value::Object(fields)) => Some(fields),
            Some(found) => return Err(self.wrong(field, found, "an object")),
        };
        Ok(Self { file: self.file, prefix: format!("{}{field}.", self.prefix), fields })
    }

    /// Whether the object has no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_none_or(Map::is_empty)
    }

    /// The fields in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.fields.into_iter().flatten().map(|(field, value)| (field.as_str(), value))
    }

    /// A field that is neither absent nor null.
    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields?.get(field).filter(|value| !value.is_null())
    }

    /// A string.
    pub fn string(&self, field: &str) -> Result<Option<String>, Error> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(found) => Err(self.wrong(field, found, "a string")),
        }
    }

    /// True or false.
    pub fn boolean(&self, field: &str) -> Result<Option<bool>, Error> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(found) => Err(self.wrong(field, found, "true or false")),
        }
    }

    /// A size: a whole number from 1 on.
    pub fn positive(&self, field: &str, default: usize) -> Result<usize, Error> {
        match self.get(field) {
            None => Ok(default),
            Some(found) => match found.as_u64() {
                Some(value) if value > 0 && value <= LARGEST => Ok(value as usize),
                _ => Err(self.wrong(field, found, &format!("a whole number from 1 to {LARGEST}"))),
            },
        }
    }

    /// Any finite number.
    pub fn number(&self, field: &str, default: f64) -> Result<f64, Error> {
        match self.get(field) {
            None => Ok(default),
            Some(found) => found
                .as_f64()
                .filter(|value| value.is_finite())
                .ok_or_else(|| self.wrong(field, found, "a finite number")),
        }
    }

    /// A finite number above 0.
    pub fn positive_number(&self, field: &str, default: f64) -> Result<f64, Error> {
        let value = self.number(field, default)?;
        if value > 0.0 { Ok(value) } else { Err(self.wrong(field, value, "a number above 0")) }
    }

    /// A token id.
    pub fn token(&self, field: &str) -> Result<Option<u32>, Error> {
        match self.get(field) {
            None => Ok(None),
            Some(found) => match found.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => Ok(Some(id)),
                None => Err(self.wrong(field, found, "a token id")),
            },
        }
    }

    /// Refuses a field that is set to anything that Python counts as true.
    pub fn refuse_set(&self, field: &str, reason: &str) -> Result<(), Error> {
        let set = match self.get(field) {
            None => false,
            Some(Value::Bool(value)) => *value,
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::Object(fields)) => !fields.is_empty(),
            Some(Value::String(text)) => !text.is_empty(),
            Some(_) => true,
        };
        if set { Err(self.unsupported(field, self.get(field).unwrap_or(&Value::Null), reason)) } else { Ok(()) }
    }

    /// A field of the wrong type or range.
    pub fn wrong(&self, field: &str, found: impl Display, expected: &str) -> Error {
        Error::Field {
            file: self.file.into(),
            field: format!("{}{field}", self.prefix),
            expected: expected.into(),
            found: shortened(found),
        }
    }

    /// A valid setting that is not computed.
    pub fn unsupported(&self, field: &str, found: impl Display, reason: &str) -> Error {
        Error::Unsupported {
            file: self.file.into(),
            field: format!("{}{field}", self.prefix),
            found: shortened(found),
            reason: reason.into(),
        }
    }
}

/// A value for a message: long ones are cut.
fn shortened(value: impl Display) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
