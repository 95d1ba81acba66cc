//! Errors of model files: each says what was expected, what was found, in which file and at which tensor or field.
//!
//! File contents are never trusted, so every check in this module has its own variant; [`Error::hint`] says what the
//! user can do about the ones that a command or a setting can mend.

use std::path::{Path, PathBuf};

/// A model folder, safetensors file, `config.json` or adapter that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused to open, read, map, write or rename.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// `open`, `map`, `write`, …
        action: &'static str,
        /// The path.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A directory, pipe or device where a file was expected.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: String,
    },
    /// Fewer than the eight bytes that give the header's length.
    #[error("{file} is truncated: a safetensors file has at least 8 bytes, this one has {length}")]
    TooShort {
        /// The file.
        file: String,
        /// Its length in bytes.
        length: u64,
    },
    /// A header longer than the format allows.
    #[error("{file}: the header claims {length} bytes, the format's limit is {limit}")]
    HeaderTooLong {
        /// The file.
        file: String,
        /// Length in the first eight bytes.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// A header that ends after the file does.
    #[error("{file} is truncated: its header ends at byte {header_end}, the file at {length}")]
    HeaderOutsideFile {
        /// The file.
        file: String,
        /// First byte after the header.
        header_end: u64,
        /// Length of the file.
        length: u64,
    },
    /// A header that is not a JSON object from its first byte on.
    #[error("{file}: the header starts with {found}, expected `{{`")]
    HeaderStart {
        /// The file.
        file: String,
        /// First byte, or that there is none.
        found: String,
    },
    /// A header that is not UTF-8.
    #[error("{file}: the header is not UTF-8 at byte {at}")]
    HeaderEncoding {
        /// The file.
        file: String,
        /// Offset in the header.
        at: usize,
    },
    /// A header that is not JSON, or an entry without the format's three fields.
    #[error("{file}: the header's entry `{tensor}` is not valid: {reason}")]
    HeaderEntry {
        /// The file.
        file: String,
        /// The last key that was read; empty before the first.
        tensor: String,
        /// What the JSON reader says.
        reason: String,
    },
    /// One key twice in a header, an index or a metadata map.
    #[error("{file}: the key `{key}` occurs twice")]
    DuplicateKey {
        /// The file.
        file: String,
        /// The key.
        key: String,
    },
    /// An element type that the safetensors format does not have.
    #[error("{file}: tensor `{tensor}` has the unknown dtype `{found}`")]
    UnknownDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        found: String,
    },
    /// A shape whose size does not fit 64 bits or is not a whole number of bytes.
    #[error("{file}: tensor `{tensor}` of shape {shape:?} and dtype {dtype} has no representable size")]
    SizeOverflow {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Its dtype.
        dtype: String,
    },
    /// Offsets that do not enclose what shape and dtype need.
    #[error(
        "{file}: tensor `{tensor}` of shape {shape:?} and dtype {dtype} needs {expected} bytes, its offsets {begin}..{end} do not enclose that"
    )]
    SizeMismatch {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Its dtype.
        dtype: String,
        /// Bytes of that shape and dtype.
        expected: u64,
        /// First byte as stored.
        begin: u64,
        /// End as stored.
        end: u64,
    },
    /// Bytes between two tensors that belong to none.
    #[error(
        "{file}: there is a hole before tensor `{tensor}`: it begins at {found}, the one before ends at {expected}"
    )]
    Hole {
        /// The file.
        file: String,
        /// The tensor after the hole.
        tensor: String,
        /// Where it should begin.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// Two tensors that share bytes.
    #[error(
        "{file}: tensor `{tensor}` overlaps the one before: it begins at {found}, the one before ends at {expected}"
    )]
    Overlap {
        /// The file.
        file: String,
        /// The later tensor.
        tensor: String,
        /// Where it should begin.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// A file that ends before its tensors do.
    #[error("{file} is truncated: {tensor} ends at byte {expected}, the file has {found}")]
    TruncatedData {
        /// The file.
        file: String,
        /// The tensor at which the file's end falls.
        tensor: String,
        /// Length that the header promises.
        expected: u64,
        /// Length of the file.
        found: u64,
    },
    /// Bytes after the last tensor.
    #[error("{file}: the last tensor ends at byte {expected}, the file has {found}")]
    Tail {
        /// The file.
        file: String,
        /// Length that the header promises.
        expected: u64,
        /// Length of the file.
        found: u64,
    },
    /// A file that changed while it was mapped.
    #[error("{file} changed while in use: it had {expected} bytes when opened, now {found}")]
    Changed {
        /// The file.
        file: String,
        /// Length at opening.
        expected: u64,
        /// Length now.
        found: u64,
    },
    /// A tensor that is not stored.
    #[error("{place} has no tensor `{tensor}`")]
    MissingTensor {
        /// File or folder.
        place: String,
        /// Stored or canonical name.
        tensor: String,
        /// The nearest name that is there.
        nearest: Option<String>,
    },
    /// A tensor of a shape that the configuration does not promise.
    #[error("{file}: tensor `{tensor}` has shape {found:?}, expected {expected:?}")]
    WrongShape {
        /// The file or folder.
        file: String,
        /// Stored name.
        tensor: String,
        /// Shape that the configuration gives.
        expected: Vec<usize>,
        /// Shape as stored.
        found: Vec<usize>,
    },
    /// Half-precision base weights.
    #[error(
        "{file}: tensor `{tensor}` is F16, expected BF16 or F32: Gemma 3's residual stream overflows half precision, whose largest value is 65504"
    )]
    HalfPrecision {
        /// The file or folder.
        file: String,
        /// Stored name.
        tensor: String,
    },
    /// An element type that is valid but not computed with here.
    #[error("{file}: tensor `{tensor}` is {found}, expected {expected}")]
    WrongDtype {
        /// The file or folder.
        file: String,
        /// Stored name.
        tensor: String,
        /// What is accepted.
        expected: &'static str,
        /// As stored.
        found: String,
    },
    /// A text tensor beyond those of the configured decoder; leaving it out would change the model silently.
    #[error("{place}: tensor `{tensor}` is not part of a Gemma 3 decoder of {layers} layers")]
    UnexpectedTensor {
        /// The folder.
        place: String,
        /// Stored name.
        tensor: String,
        /// Layers in config.json.
        layers: usize,
    },
    /// Two stored names of one tensor.
    #[error("{place}: `{first}` and `{second}` both name the tensor `{canonical}`")]
    DuplicateName {
        /// File or folder.
        place: String,
        /// What both are.
        canonical: String,
        /// One stored name.
        first: String,
        /// The other.
        second: String,
    },
    /// A folder without weights in a format that is read here.
    #[error("{folder} holds neither model.safetensors nor model.safetensors.index.json")]
    NoWeights {
        /// The folder.
        folder: String,
        /// Weights in another format, or an adapter, that were found instead.
        instead: Option<String>,
    },
    /// A folder without `config.json`.
    #[error("{folder} holds no config.json")]
    NoConfig {
        /// The folder.
        folder: String,
    },
    /// A shard that the index names but that is not there.
    #[error("{index} names the shard `{shard}` (of tensor `{tensor}`), which is missing")]
    MissingShard {
        /// The index.
        index: String,
        /// The shard's file name.
        shard: String,
        /// A tensor that it should hold.
        tensor: String,
    },
    /// A shard name that is not a plain file name.
    #[error("{index} names the shard `{shard}` for tensor `{tensor}`, expected a plain file name")]
    ShardName {
        /// The index.
        index: String,
        /// As stored.
        shard: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that the index promises and its shard lacks.
    #[error("{index} says that `{shard}` holds tensor `{tensor}`, but it does not")]
    IndexHole {
        /// The index.
        index: String,
        /// The shard's file name.
        shard: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor in a shard that the index does not place there.
    #[error("`{shard}` holds tensor `{tensor}`, which {index} {instead}")]
    IndexExtra {
        /// The index.
        index: String,
        /// The shard's file name.
        shard: String,
        /// The tensor.
        tensor: String,
        /// `does not list`, or where it places it.
        instead: String,
    },
    /// A JSON file that cannot be read as such.
    #[error("{file} is not valid JSON: {reason}")]
    Json {
        /// The file.
        file: String,
        /// What the JSON reader says, with line and column.
        reason: String,
    },
    /// A field of the wrong type or range.
    #[error("{file}: `{field}` is {found}, expected {expected}")]
    Field {
        /// The file.
        file: String,
        /// Path of the field, as `text_config.head_dim`.
        field: String,
        /// What is accepted.
        expected: String,
        /// As stored.
        found: String,
    },
    /// A valid setting of a model that is not computed here.
    #[error("{file}: `{field}` = {found} is not supported: {reason}")]
    Unsupported {
        /// The file.
        file: String,
        /// Path of the field.
        field: String,
        /// As stored.
        found: String,
        /// What is supported, or why not.
        reason: String,
    },
    /// A folder without an adapter.
    #[error("{folder} is not a PEFT adapter folder: it holds no {missing}")]
    NoAdapter {
        /// The folder.
        folder: String,
        /// `adapter_config.json` or `adapter_model.safetensors`.
        missing: &'static str,
        /// Whether a model lies there.
        is_model: bool,
    },
    /// Adapter weights as a Python pickle, which can run code when opened.
    #[error("{file} is a pickle, expected adapter_model.safetensors")]
    Pickle {
        /// The file.
        file: String,
    },
    /// An adapter tensor of the vision tower.
    #[error("{file}: tensor `{tensor}` adapts the vision tower, only the language model's layers can be adapted")]
    VisionAdapter {
        /// The file.
        file: String,
        /// Stored name.
        tensor: String,
    },
    /// An adapter tensor that is not a LoRA matrix of a decoder layer.
    #[error("{file}: tensor `{tensor}` is not used by a LoRA adapter of Gemma 3's decoder: {reason}")]
    UnknownAdapterTensor {
        /// The file.
        file: String,
        /// Stored name.
        tensor: String,
        /// Which part of the name is unknown.
        reason: String,
    },
    /// An A without its B, or the reverse.
    #[error("{file}: `{tensor}` has no partner `{partner}`")]
    MissingPartner {
        /// The file.
        file: String,
        /// What is there.
        tensor: String,
        /// What is not.
        partner: String,
    },
    /// An adapter tensor that is empty or has not two extents.
    #[error("{file}: tensor `{tensor}` has shape {found:?}, expected {expected}")]
    NotAMatrix {
        /// The file.
        file: String,
        /// Stored name.
        tensor: String,
        /// `[rank, inputs]` or `[outputs, rank]`.
        expected: &'static str,
        /// As stored.
        found: Vec<usize>,
    },
    /// A matrix whose rank is not the configured one.
    #[error("{file}: tensor `{tensor}` has rank {found}, adapter_config.json gives it {expected}")]
    WrongRank {
        /// The file.
        file: String,
        /// Stored name.
        tensor: String,
        /// From `r` or `rank_pattern`.
        expected: usize,
        /// As stored.
        found: usize,
    },
    /// NaN or infinity.
    #[error("{file}: tensor `{tensor}` holds {value} at element {index}")]
    NonFinite {
        /// The file.
        file: String,
        /// Stored name.
        tensor: String,
        /// The value.
        value: f32,
        /// Row-major index.
        index: usize,
    },
    /// An adapter without any matrix.
    #[error("{file} holds no LoRA matrix")]
    EmptyAdapter {
        /// The file.
        file: String,
    },
    /// A request to write something that could not be read back.
    #[error("cannot write {file}: {reason}")]
    Unwritable {
        /// The file.
        file: String,
        /// What does not fit.
        reason: String,
    },
    /// Neither a folder nor a cached model.
    #[error("no model `{name}`: looked at {}", list(.looked))]
    ModelNotFound {
        /// As the user gave it.
        name: String,
        /// Folders that were tried.
        looked: Vec<PathBuf>,
        /// Whether it has the form `org/name`.
        is_hub_name: bool,
    },
    /// A cached model whose download did not finish.
    #[error("the cached model `{name}` is incomplete: {} lacks {missing}", .folder.display())]
    IncompleteModel {
        /// `org/name`.
        name: String,
        /// The newest snapshot.
        folder: PathBuf,
        /// The first file that is not there.
        missing: String,
    },
}

impl Error {
    /// What to do, as one line.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::TooShort { .. }
            | Self::HeaderOutsideFile { .. }
            | Self::TruncatedData { .. }
            | Self::MissingShard { .. } => "the download or copy did not finish: fetch the file again".into(),
            Self::Changed { .. } => "do not write to a model that is in use; start again once the file is whole".into(),
            Self::MissingTensor { nearest: Some(name), .. } => format!("the nearest name that is there is `{name}`"),
            Self::HalfPrecision { .. } => "use the bfloat16 checkpoint, or convert the original one to bfloat16".into(),
            Self::WrongDtype { .. } => "use the bfloat16 or float32 checkpoint, without quantisation".into(),
            Self::WrongShape { .. } | Self::UnexpectedTensor { .. } => {
                "config.json and the weights belong to different models: take both from one folder".into()
            }
            Self::NoWeights { instead, .. } => match instead.as_deref() {
                Some("adapter_config.json") => {
                    "this is an adapter folder: give its base model as --model and this folder as --adapter".into()
                }
                Some(file) => format!("found {file}: save the model again with safe_serialization=True"),
                None => "give the folder that `save_pretrained` wrote, or a snapshot of the Hugging Face cache".into(),
            },
            Self::NoConfig { .. } => "give the folder that holds config.json and the weights".into(),
            Self::IndexHole { .. } | Self::IndexExtra { .. } | Self::ShardName { .. } => {
                "index and shards come from different saves: fetch all of them again".into()
            }
            Self::NoAdapter { is_model: true, .. } => "this is a model folder: give it as --model".into(),
            Self::NoAdapter { .. } => "give the folder that PEFT's `save_pretrained` wrote".into(),
            Self::Pickle { .. } => {
                "load it with PEFT where you trust it and save it with safe_serialization=True".into()
            }
            Self::VisionAdapter { .. } => {
                "a list of target_modules also matches SigLIP's q_proj, k_proj and v_proj of the same layer numbers: train \
                 again with target_modules as a regular expression such as \
                 `.*language_model.*layers\\.(15|16)\\.(self_attn\\.(q|k|v|o)_proj|mlp\\.(gate|up|down)_proj)`, or with \
                 exclude_modules=\".*vision_tower.*\""
                    .into()
            }
            Self::MissingPartner { .. } | Self::EmptyAdapter { .. } => "save the adapter again with PEFT".into(),
            Self::WrongRank { .. } => "adapter_config.json and adapter_model.safetensors come from different runs".into(),
            Self::NonFinite { .. } => "the training run that wrote it diverged: use an earlier checkpoint".into(),
            Self::ModelNotFound { name, is_hub_name: true, .. } | Self::IncompleteModel { name, .. } => {
                format!("nothing is downloaded by itself: run `hf download {name}`")
            }
            Self::ModelNotFound { .. } => "give a model folder, or `org/name` of a model in the local cache".into(),
            _ => return None,
        };
        Some(hint)
    }

    /// Wraps an I/O error with what was tried on which path.
    pub(super) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.display().to_string(), source }
    }
}

/// Paths separated by commas.
fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
