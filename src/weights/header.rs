//! The JSON header of a safetensors file, checked in full before any byte of data is believed.
//!
//! Kept apart from the map so that hostile headers can be tested as plain byte slices. The rules are those of the
//! format: the tensors, sorted by offset, tile the buffer exactly; nothing overlaps, nothing is left over, no key occurs
//! twice, and every size is computed without wrapping.

use super::{Dtype, Error};
use serde::de::{
    Deserialize as _, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor, value::MapAccessDeserializer,
};
use std::{cell::RefCell, collections::BTreeMap, fmt};

/// Longest header that the format allows, in bytes.
pub(super) const HEADER_LIMIT: u64 = 100_000_000;

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    /// Element type as stored; `None` in `dtype()` if the engine does not read it.
    pub dtype: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub start: usize,
    /// Length in bytes.
    pub length: usize,
}

impl Entry {
    /// The element type, if the engine reads it.
    pub fn dtype(&self) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|dtype| dtype.name() == self.dtype)
    }
}

/// A checked header.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Header {
    /// Entries by stored name.
    pub entries: BTreeMap<String, Entry>,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// First byte of data, from the start of the file.
    pub data_start: usize,
}

/// Bits of one element of each dtype of the format.
fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "F64" | "I64" | "U64" | "C64" => 64,
        _ => return None,
    })
}

/// Length of the header from the first eight bytes, checked against the format's limit and the file's length.
pub(super) fn header_length(file: &str, start: [u8; 8], file_length: u64) -> Result<usize, Error> {
    let length = u64::from_le_bytes(start);
    if length > HEADER_LIMIT {
        return Err(Error::HeaderTooLong { file: file.into(), length, limit: HEADER_LIMIT });
    }
    if 8 + length > file_length {
        return Err(Error::HeaderOutsideFile { file: file.into(), header_end: 8 + length, length: file_length });
    }
    Ok(length as usize)
}

/// Checks the header (its bytes only, without the length) of a file of `file_length` bytes.
pub(super) fn parse(file: &str, header: &[u8], file_length: u64) -> Result<Header, Error> {
    match header.first() {
        Some(b'{') => {}
        Some(&byte) => return Err(Error::HeaderStart { file: file.into(), found: format!("byte 0x{byte:02x}") }),
        None => return Err(Error::HeaderStart { file: file.into(), found: "nothing".into() }),
    }
    let text = std::str::from_utf8(header)
        .map_err(|error| Error::HeaderEncoding { file: file.into(), at: error.valid_up_to() })?;
    let raw = read_json(file, text)?;

    let mut entries = BTreeMap::new();
    let mut spans = Vec::with_capacity(raw.entries.len());
    let data_start = 8 + header.len() as u64;
    for (tensor, entry) in raw.entries {
        let length = entry_length(file, &tensor, &entry)?;
        let [begin, end] = entry.data_offsets;
        if begin.checked_add(length) != Some(end) {
            return Err(Error::SizeMismatch {
                file: file.into(),
                tensor,
                shape: entry.shape,
                dtype: entry.dtype,
                expected: length,
                begin,
                end,
            });
        }
        spans.push((begin, end, tensor.clone()));
        // A shape with a zero may hold any other extent, so each one is checked, not only their product.
        let shape = entry.shape.iter().map(|&extent| usize::try_from(extent)).collect::<Result<Vec<_>, _>>();
        let start = data_start.checked_add(begin).and_then(|start| usize::try_from(start).ok());
        let (Ok(shape), Some(start), Ok(length)) = (shape, start, usize::try_from(length)) else {
            return Err(Error::SizeOverflow { file: file.into(), tensor, shape: entry.shape, dtype: entry.dtype });
        };
        entries.insert(tensor, Entry { dtype: entry.dtype, shape, start, length });
    }
    check_tiling(file, spans, data_start, file_length)?;
    Ok(Header { entries, metadata: raw.metadata, data_start: data_start as usize })
}

/// Bytes of one tensor, from shape and dtype, without wrapping.
fn entry_length(file: &str, tensor: &str, entry: &RawEntry) -> Result<u64, Error> {
    let Some(bits) = bits(&entry.dtype) else {
        return Err(Error::UnknownDtype { file: file.into(), tensor: tensor.into(), found: entry.dtype.clone() });
    };
    // The product over the non-zero extents must fit too: readers multiply in any order.
    let product =
        entry.shape.iter().filter(|&&extent| extent != 0).try_fold(bits, |size, &extent| size.checked_mul(extent));
    let size = match product {
        Some(_) if entry.shape.contains(&0) => Some(0),
        Some(size) if size % 8 == 0 => Some(size / 8),
        _ => None,
    };
    size.ok_or_else(|| Error::SizeOverflow {
        file: file.into(),
        tensor: tensor.into(),
        shape: entry.shape.clone(),
        dtype: entry.dtype.clone(),
    })
}

/// The spans, sorted, must follow each other from 0 to the end of the file.
fn check_tiling(
    file: &str,
    mut spans: Vec<(u64, u64, String)>,
    data_start: u64,
    file_length: u64,
) -> Result<(), Error> {
    spans.sort();
    let available = file_length - data_start;
    let mut expected = 0;
    let mut truncated_at = None;
    for (begin, end, tensor) in spans {
        if begin > expected {
            return Err(Error::Hole { file: file.into(), tensor, expected, found: begin });
        }
        if begin < expected {
            return Err(Error::Overlap { file: file.into(), tensor, expected, found: begin });
        }
        expected = end;
        if end > available && truncated_at.is_none() {
            truncated_at = Some(tensor);
        }
    }
    let promised = data_start.saturating_add(expected);
    if let Some(tensor) = truncated_at {
        let tensor = format!("tensor `{tensor}` or one after it");
        return Err(Error::TruncatedData { file: file.into(), tensor, expected: promised, found: file_length });
    }
    if expected < available {
        return Err(Error::Tail { file: file.into(), expected: promised, found: file_length });
    }
    Ok(())
}

/// One entry as written.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header as written, its keys in order.
#[derive(Default)]
struct RawHeader {
    entries: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

/// Remembers the key being read and a repeated key, which the JSON reader's own errors do not carry.
#[derive(Default)]
struct Place {
    current: RefCell<String>,
    repeated: RefCell<Option<String>>,
}

fn read_json(file: &str, text: &str) -> Result<RawHeader, Error> {
    let place = Place::default();
    let mut reader = serde_json::Deserializer::from_str(text);
    let outcome = HeaderSeed(&place).deserialize(&mut reader).and_then(|header| reader.end().map(|()| header));
    outcome.map_err(|error| match place.repeated.take() {
        Some(key) => Error::DuplicateKey { file: file.into(), key },
        None => Error::HeaderEntry { file: file.into(), tensor: place.current.take(), reason: error.to_string() },
    })
}

struct HeaderSeed<'a>(&'a Place);

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = RawHeader;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<RawHeader, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = RawHeader;
    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                *self.0.repeated.borrow_mut() = Some(key);
                return Err(A::Error::custom("a key occurs twice"));
            }
            self.0.current.borrow_mut().clone_from(&key);
            if key == "__metadata__" {
                header.metadata = map.next_value_seed(UniqueStrings(&self.0.repeated))?;
            } else {
                header.entries.push((key, map.next_value_seed(EntrySeed)?));
            }
        }
        Ok(header)
    }
}

/// An entry must be an object: a derived reader alone would also take its fields as a list.
struct EntrySeed;

impl<'de> DeserializeSeed<'de> for EntrySeed {
    type Value = RawEntry;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<RawEntry, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed {
    type Value = RawEntry;
    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object of dtype, shape and data_offsets")
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawEntry, A::Error> {
        RawEntry::deserialize(MapAccessDeserializer::new(map))
    }
}

/// A map of strings to strings whose keys must not repeat; the repeated one is left in the cell.
pub(super) struct UniqueStrings<'a>(pub &'a RefCell<Option<String>>);

impl<'de> DeserializeSeed<'de> for UniqueStrings<'_> {
    type Value = BTreeMap<String, String>;
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for UniqueStrings<'_> {
    type Value = BTreeMap<String, String>;
    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object of strings")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut strings = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if strings.contains_key(&key) {
                *self.0.borrow_mut() = Some(key);
                return Err(A::Error::custom("a key occurs twice"));
            }
            strings.insert(key, value);
        }
        Ok(strings)
    }
}
