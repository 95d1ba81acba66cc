//! `samples.jsonl`: a header that says what was evaluated, then one record a phrasing, appended group by group. A restarted
//! evaluation checks the header, keeps the whole groups and goes on; a torn last group is cut off. A file of anything else
//! is refused and stays as it is.

use super::Error;
use crate::digest::sha256;
use crate::error::Result;
use crate::objective::Pool;
use crate::train::{EngineGroup, says_yes};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A question to evaluate.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its prompts and truth.
    pub group: EngineGroup,
    /// Paraphrase phenomenon of each phrasing, where known; the original's is unused. May be shorter than the phrasings.
    pub phenomena: Vec<Option<String>>,
    /// The finding asked about, where known.
    pub finding: Option<String>,
    /// Patient, image or report that questions share: the unit of resampling.
    pub cluster: String,
    /// Where the question comes from, for other units.
    pub origin: Origin,
}

/// What questions may share; absent where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Patient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patient: Option<String>,
    /// Image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
}

/// What an evaluation's margins depend on. All of it must be equal for an evaluation to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Identifies the model's files.
    pub model: String,
    /// Identifies the adapter's files; `None` without one.
    pub adapter: Option<String>,
    /// Hash of the data file.
    pub data: String,
    /// Hash of the prompt template.
    pub template: String,
    /// Precision computed with.
    pub precision: String,
    /// Factor of the embedding, as it was rounded.
    #[serde(default)]
    pub embed_scale: String,
    /// Whether a group's prefix is computed once.
    #[serde(default)]
    pub share_prefix: bool,
    /// Token id of yes.
    #[serde(default)]
    pub yes: u32,
    /// Token id of no.
    #[serde(default)]
    pub no: u32,
    /// How an answer's spellings become one logit.
    #[serde(default)]
    pub pool: Pool,
    /// Token ids of yes's other spellings, where they are pooled.
    #[serde(default)]
    pub yes_spellings: Vec<u32>,
    /// Of no's.
    #[serde(default)]
    pub no_spellings: Vec<u32>,
    /// What decides the bits beyond that: device and unit.
    pub unit: String,
    /// Version of unflip.
    pub version: String,
}

impl Header {
    /// (name, here, there) of every field that differs.
    pub fn differences(&self, other: &Self) -> Vec<(&'static str, String, String)> {
        let fields = self.entries().into_iter().zip(other.entries());
        let different = fields.filter(|((_, here), (_, there))| here != there);
        different.map(|((key, here), (_, there))| (key, here, there)).collect()
    }

    /// Every field by the name that an error gives it.
    fn entries(&self) -> [(&'static str, String); 14] {
        // Without `..`, so that a new field cannot be forgotten here.
        let Self {
            model,
            adapter,
            data,
            template,
            precision,
            embed_scale,
            share_prefix,
            yes,
            no,
            pool,
            yes_spellings,
            no_spellings,
            unit,
            version,
        } = self;
        let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
        [
            ("model", or_none(model)),
            ("adapter", or_none(adapter.as_deref().unwrap_or_default())),
            ("data hash", or_none(data)),
            ("template hash", or_none(template)),
            ("precision", or_none(precision)),
            ("embedding scale", or_none(embed_scale)),
            ("prefix sharing", share_prefix.to_string()),
            ("yes token", yes.to_string()),
            ("no token", no.to_string()),
            ("pool", pool.name().to_owned()),
            ("spellings of yes", format!("{yes_spellings:?}")),
            ("spellings of no", format!("{no_spellings:?}")),
            ("unit", or_none(unit)),
            ("version", or_none(version)),
        ]
    }
}

/// One phrasing's record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Id of its group.
    pub id: String,
    /// Phrasing; 0 is the original.
    pub index: usize,
    /// Phenomenon of a paraphrase, where known.
    pub phenomenon: Option<String>,
    /// Finding asked about, where known.
    pub finding: Option<String>,
    /// Unit of resampling.
    pub cluster: String,
    /// Other units.
    #[serde(flatten)]
    pub origin: Origin,
    /// z_yes − z_no.
    pub margin: f64,
    /// `yes` iff the margin is above 0, else `no`.
    pub answer: String,
    /// `yes` or `no`.
    pub truth: String,
    /// Whether the answer differs from the original's; `None` for the original.
    pub flipped: Option<bool>,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// SHA-256 of the prompt's token ids as little-endian u32.
    pub tokens_sha256: String,
}

fn word(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

impl Sample {
    /// Records of one question's phrasings.
    pub fn of(question: &Question, margins: &[f64]) -> Result<Vec<Self>, Error> {
        let group = &question.group;
        let original = margins.first().copied().map(says_yes);
        let record = |(index, &margin): (usize, &f64)| {
            if !margin.is_finite() {
                return Err(Error::NonFinite { group: group.id.clone(), index, margin });
            }
            let (tokens, tokens_sha256) = prompt_identity(group, index);
            Ok(Self {
                id: group.id.clone(),
                index,
                phenomenon: question.phenomena.get(index).cloned().flatten().filter(|_| index > 0),
                finding: question.finding.clone(),
                cluster: question.cluster.clone(),
                origin: question.origin.clone(),
                margin,
                answer: word(says_yes(margin)),
                truth: word(group.answer_yes),
                flipped: (index > 0).then(|| Some(says_yes(margin)) != original),
                tokens,
                tokens_sha256,
            })
        };
        margins.iter().enumerate().map(record).collect()
    }
}

/// Length and hash of one prompt.
fn prompt_identity(group: &EngineGroup, index: usize) -> (usize, String) {
    let suffix = group.tokens.suffixes.get(index).map_or(&[][..], Vec::as_slice);
    let bytes: Vec<u8> = group.tokens.prefix.iter().chain(suffix).flat_map(|id| id.to_le_bytes()).collect();
    (bytes.len() / 4, sha256(&bytes))
}

#[derive(Serialize, Deserialize)]
struct HeaderLine {
    header: Header,
}

/// An open `samples.jsonl`.
#[derive(Debug)]
pub(super) struct SampleFile {
    path: PathBuf,
    file: File,
}

impl SampleFile {
    /// Opens or begins the file and returns the groups that are whole, in the order of `questions`.
    pub fn open(path: &Path, header: &Header, questions: &[Question]) -> Result<(Self, Vec<Vec<Sample>>)> {
        let io = |action| move |source| crate::Error::io(action, path, source);
        let text = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io("read")(error)),
        };
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        // A file without a whole line is ours only where a kill tore the header itself.
        if whole == 0 && !header_line(header, path)?.starts_with(&text) {
            return Err(not_samples(path, "it does not begin with an evaluation's header").into());
        }
        let (stored, groups, length) = parse(path, &text[..whole])?;
        if let Some((key, stored, given)) =
            stored.as_ref().and_then(|stored| stored.differences(header).into_iter().next())
        {
            let path = path.display().to_string();
            return Err(Error::OtherEvaluation { path, key: key.into(), stored, given }.into());
        }
        // Groups beyond the last question may stand when --limit fell; they are kept and not used.
        let mut length = length;
        let mut finished = Vec::new();
        let last = groups.len().saturating_sub(1);
        for (place, (group, question)) in groups.into_iter().zip(questions).enumerate() {
            let first = &group.samples[0];
            if first.id != question.group.id {
                let problem = format!("expected group `{}`, found `{}`", question.group.id, first.id);
                return Err(Error::Record { place: format!("{}:{}", path.display(), group.line), problem }.into());
            }
            for sample in &group.samples {
                if prompt_identity(&question.group, sample.index).1 != sample.tokens_sha256 {
                    let problem = format!("phrasing {} of `{}` had other tokens", sample.index, sample.id);
                    return Err(Error::Record { place: format!("{}:{}", path.display(), group.line), problem }.into());
                }
            }
            let (found, expected) = (group.samples.len(), question.group.tokens.suffixes.len());
            if found != expected {
                // A kill tears the last group only.
                if place < last || found > expected {
                    let problem = format!("expected {expected} phrasings of `{}`, found {found}", first.id);
                    return Err(Error::Record { place: format!("{}:{}", path.display(), group.line), problem }.into());
                }
                length = group.start;
                break;
            }
            finished.push(group.samples);
        }
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(io("write"))?;
        file.set_len(length as u64).map_err(io("write"))?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(io("write"))?;
        let mut opened = Self { path: path.into(), file };
        if stored.is_none() {
            let line = header_line(header, path)?;
            opened.file.write_all(&line).map_err(io("write"))?;
        }
        Ok((opened, finished))
    }

    /// Appends one group's records with one write.
    pub fn append(&mut self, samples: &[Sample]) -> Result<()> {
        let mut write = || {
            let mut text = Vec::new();
            for sample in samples {
                serde_json::to_writer(&mut text, sample)?;
                text.push(b'\n');
            }
            self.file.write_all(&text)
        };
        write().map_err(|source: std::io::Error| crate::Error::io("write", &self.path, source))
    }

    /// Puts everything on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|source| crate::Error::io("sync", &self.path, source))
    }
}

/// The first line of the file.
fn header_line(header: &Header, path: &Path) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&HeaderLine { header: header.clone() })
        .map_err(|error| crate::Error::io("write", path, error.into()))?;
    line.push(b'\n');
    Ok(line)
}

fn not_samples(path: &Path, problem: &str) -> Error {
    Error::NotSamples { path: path.display().to_string(), problem: problem.into() }
}

/// Consecutive records of one group.
struct StoredGroup {
    samples: Vec<Sample>,
    /// Byte where it starts.
    start: usize,
    /// Line where it starts.
    line: usize,
}

/// Header, groups and length of the readable part.
fn parse(path: &Path, text: &[u8]) -> Result<(Option<Header>, Vec<StoredGroup>, usize), Error> {
    let mut header = None;
    let mut groups: Vec<StoredGroup> = Vec::new();
    let mut start = 0;
    for (number, line) in (1..).zip(text.split_inclusive(|&byte| byte == b'\n')) {
        let problem = |problem: String| Error::Record { place: format!("{}:{number}", path.display()), problem };
        if header.is_none() {
            let found: HeaderLine = serde_json::from_slice(line).map_err(|error| {
                not_samples(path, &format!("it does not begin with an evaluation's header: {error}"))
            })?;
            header = Some(found.header);
        } else {
            let sample: Sample =
                serde_json::from_slice(line).map_err(|error| problem(format!("expected a sample: {error}")))?;
            match groups.last_mut().filter(|_| sample.index > 0) {
                Some(group) if group.samples[0].id == sample.id && group.samples.len() == sample.index => {
                    group.samples.push(sample);
                }
                None if sample.index == 0 => groups.push(StoredGroup { samples: vec![sample], start, line: number }),
                _ => return Err(problem(format!("phrasing {} of `{}` is out of order", sample.index, sample.id))),
            }
        }
        start += line.len();
    }
    Ok((header, groups, start))
}

/// Header and groups of a finished file.
pub(super) fn read(path: &Path) -> Result<(Header, Vec<Vec<Sample>>)> {
    let text = fs::read(path).map_err(|source| crate::Error::io("read", path, source))?;
    let (header, groups, _) = parse(path, &text)?;
    let header = header.ok_or_else(|| not_samples(path, "it is empty"))?;
    Ok((header, groups.into_iter().map(|group| group.samples).collect()))
}
