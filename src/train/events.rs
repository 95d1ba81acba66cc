//! TensorBoard event files: scalars as TFRecord-framed protobuf, written by hand because both are small.
//!
//! ```text
//! record   length u64 | masked CRC-32C of these 8 bytes | event | masked CRC-32C of the event     (all little-endian)
//! event    1: wall_time double   2: step int64   3: file_version string   5: summary   7: session_log {1: status}
//! summary  1: value { 1: tag string   2: simple_value float }
//! ```
//!
//! A resumed run cuts what lies beyond its checkpoint off the earlier files and goes on in a file of its own, which begins with
//! a session start at its first step: a viewer that had read further drops those points, and no step is shown twice.

use super::metrics::StepMetrics;
use super::validation::Validation;
use crate::error::Result;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Beginning of every file's name; viewers look for `tfevents`.
const PREFIX: &str = "events.out.tfevents.";

/// The event files of a run.
#[derive(Debug)]
pub(super) struct EventLog {
    folder: PathBuf,
    /// Number of the next file.
    number: u64,
    /// The file of this process, made with the first event.
    file: Option<(PathBuf, File)>,
}

impl EventLog {
    /// Cuts the files in `folder` back to `step`.
    pub fn open(folder: &Path, step: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|source| crate::Error::io("create", folder, source))?;
        let mut number = 0;
        for entry in fs::read_dir(folder).map_err(|source| crate::Error::io("read", folder, source))? {
            let path = entry.map_err(|source| crate::Error::io("read", folder, source))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(found) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('.').next()?.parse().ok()) else {
                continue;
            };
            number = number.max(found);
            cut_back(&path, step)?;
        }
        Ok(Self { folder: folder.into(), number: number + 1, file: None })
    }

    /// Writes a step's scalars under the names that other trainers use.
    pub fn step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.scalars(
            metrics.step,
            &[
                ("train/loss", metrics.loss),
                ("train/loss_consistency", metrics.loss_consistency),
                ("train/loss_accuracy", metrics.loss_accuracy),
                ("train/grad_norm", metrics.grad_norm),
                ("train/learning_rate", metrics.learning_rate),
                ("train/epoch", metrics.epoch as f64),
                ("train/yes_rate", metrics.recent.yes_rate),
                ("train/margin_sd", metrics.recent.margin_sd),
            ],
        )
    }

    /// Writes a validation's scalars.
    pub fn validation(&mut self, step: u64, validation: &Validation) -> Result<()> {
        let mut scalars = vec![
            ("eval/loss".to_owned(), validation.loss),
            ("eval/loss_consistency".to_owned(), validation.loss_consistency),
            ("eval/loss_accuracy".to_owned(), validation.loss_accuracy),
            ("eval/margin_sd".to_owned(), validation.margins.margin_sd),
        ];
        scalars.extend(validation.rates().map(|(name, rate)| (format!("eval/{name}"), rate)));
        scalars.retain(|(_, value)| !value.is_nan());
        self.scalars(step, &scalars)
    }

    fn scalars(&mut self, step: u64, scalars: &[(impl AsRef<str>, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut one = Vec::new();
            bytes_field(&mut one, 1, tag.as_ref().as_bytes());
            one.push(key(2, FIXED_32));
            one.extend((*value as f32).to_le_bytes());
            bytes_field(&mut summary, 1, &one);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let event = |field: u8, content: &[u8]| {
            let mut event = vec![key(1, FIXED_64)];
            event.extend(now.to_le_bytes());
            event.push(key(2, VARINT));
            varint(&mut event, step);
            bytes_field(&mut event, field, content);
            record(&event)
        };
        let mut bytes = Vec::new();
        if self.file.is_none() {
            let path = self.folder.join(format!("{PREFIX}{:010}.unflip", self.number));
            let file = OpenOptions::new().create(true).append(true).open(&path);
            let file = file.map_err(|source| crate::Error::io("write", &path, source))?;
            // At step 0, so that a cut keeps it.
            let mut version = vec![key(1, FIXED_64)];
            version.extend(now.to_le_bytes());
            bytes_field(&mut version, 3, b"brain.Event:2");
            bytes.extend(record(&version));
            // SessionLog.START
            bytes.extend(event(7, &[key(1, VARINT), 1]));
            self.file = Some((path, file));
        }
        bytes.extend(event(5, &summary));
        match &mut self.file {
            Some((path, file)) => file.write_all(&bytes).map_err(|source| crate::Error::io("write", path, source)),
            None => Ok(()),
        }
    }
}

const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const BYTES: u8 = 2;
const FIXED_32: u8 = 5;

fn key(field: u8, kind: u8) -> u8 {
    field << 3 | kind
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes_field(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    out.push(key(field, BYTES));
    varint(out, content.len() as u64);
    out.extend(content);
}

fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked_crc(&length));
    bytes.extend(event);
    bytes.extend(masked_crc(event));
    bytes
}

/// Cuts a file off before the first record that is torn or beyond `step`.
fn cut_back(path: &Path, step: u64) -> Result<()> {
    let bytes = fs::read(path).map_err(|source| crate::Error::io("read", path, source))?;
    let mut kept = 0;
    while let Some((event, length)) = whole_record(&bytes[kept..]) {
        if event_step(event).is_none_or(|found| found > step) {
            break;
        }
        kept += length;
    }
    if kept < bytes.len() {
        let file = OpenOptions::new().write(true).open(path);
        let cut = file.and_then(|file| file.set_len(kept as u64).and_then(|()| file.sync_all()));
        cut.map_err(|source| crate::Error::io("write", path, source))?;
    }
    Ok(())
}

/// The event of the record at the beginning and the record's length, if it is whole.
fn whole_record(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = bytes.split_at_checked(8)?;
    let (check, rest) = rest.split_at_checked(4)?;
    if check != masked_crc(length) {
        return None;
    }
    let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    let (event, rest) = rest.split_at_checked(length)?;
    (rest.get(..4)? == masked_crc(event)).then_some((event, 16 + length))
}

/// The step of an event, 0 if it has none; `None` if it is no event.
fn event_step(mut event: &[u8]) -> Option<u64> {
    let mut step = 0;
    while let Some((&first, rest)) = event.split_first() {
        event = rest;
        let mut number = || -> Option<u64> {
            let length = event.iter().position(|&byte| byte < 0x80)? + 1;
            let (digits, rest) = event.split_at(length);
            event = rest;
            digits.iter().rev().try_fold(0_u64, |sum, &byte| sum.checked_mul(128)?.checked_add(u64::from(byte & 0x7f)))
        };
        let skip = match first & 7 {
            VARINT => {
                let value = number()?;
                if first >> 3 == 2 {
                    step = value;
                }
                0
            }
            FIXED_64 => 8,
            BYTES => usize::try_from(number()?).ok()?,
            FIXED_32 => 4,
            _ => return None,
        };
        event = event.get(skip..)?;
    }
    Some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (step, its event's bytes) of every whole record in the folder's files, in order of their names.
    fn events(folder: &Path) -> Vec<(u64, Vec<u8>)> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder).expect("listed").map(|entry| entry.expect("entry").path()).collect();
        paths.sort();
        let mut events = Vec::new();
        for path in paths {
            let bytes = fs::read(path).expect("read");
            let mut rest = &bytes[..];
            while let Some((event, length)) = whole_record(rest) {
                events.push((event_step(event).expect("an event"), event.to_vec()));
                rest = &rest[length..];
            }
            assert!(rest.is_empty(), "no torn record");
        }
        events
    }

    fn step(step: u64) -> StepMetrics {
        StepMetrics { step, loss: 0.5, ..StepMetrics::default() }
    }

    /// Steps of the events that hold scalars.
    fn shown(folder: &Path) -> Vec<u64> {
        let has_loss = |event: &[u8]| event.windows(10).any(|text| text == b"train/loss");
        events(folder).into_iter().filter(|(_, event)| has_loss(event)).map(|(step, _)| step).collect()
    }

    #[test]
    fn records_are_framed_as_the_format_says() {
        // From TensorFlow's documentation of CRC-32C masking, and RFC 3720's check value.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let bytes = record(b"abc");
        assert_eq!(bytes[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(whole_record(&bytes), Some((&b"abc"[..], 19)));
        let unmasked =
            u32::from_le_bytes(bytes[15..].try_into().expect("four")).wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked, 0x364b_3fb7, "CRC-32C of abc");
        for broken in 0..bytes.len() {
            let mut other = bytes.clone();
            other[broken] ^= 0x10;
            assert!(whole_record(&other).is_none_or(|(event, _)| event != b"abc"), "byte {broken}");
        }
    }

    #[test]
    fn steps_of_an_event_are_read_back() {
        for step in [0, 1, 127, 128, 300, u64::from(u32::MAX) + 5] {
            let mut event = vec![key(1, FIXED_64)];
            event.extend(1.5_f64.to_le_bytes());
            event.push(key(2, VARINT));
            varint(&mut event, step);
            bytes_field(&mut event, 5, b"summary");
            assert_eq!(event_step(&event), Some(step));
            assert_eq!(event_step(&event[..event.len() - 1]), None);
        }
    }

    #[test]
    fn no_step_is_shown_twice_after_resuming() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut log = EventLog::open(folder.path(), 0).expect("opened");
        (1..=5).for_each(|k| log.step(&step(k)).expect("written"));
        drop(log);
        let first = folder.path().join(format!("{PREFIX}0000000001.unflip"));
        let mut torn = fs::read(&first).expect("read");
        torn.truncate(torn.len() - 3);
        fs::write(&first, torn).expect("written");
        let mut log = EventLog::open(folder.path(), 3).expect("opened");
        (4..=6).for_each(|k| log.step(&step(k)).expect("written"));
        drop(log);
        assert_eq!(shown(folder.path()), [1, 2, 3, 4, 5, 6]);
        EventLog::open(folder.path(), 6).expect("nothing to cut");
        assert_eq!(shown(folder.path()), [1, 2, 3, 4, 5, 6]);
        EventLog::open(folder.path(), 0).expect("cut");
        assert_eq!(shown(folder.path()), Vec::<u64>::new());
    }
}
